"""Routes whose body is JSON of a known shape."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Body(BaseModel):
    """No field that a call does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


B = TypeVar("B", bound=Body)


def post(path: str, kind: type[B], call: Callable[[B], Awaitable[Response]]) -> Route:
    """`POST path`, its body checked against `kind`; what does not fit raises pydantic's ValidationError."""

    async def endpoint(request: Request) -> Response:
        return await call(kind.model_validate_json(await request.body()))

    return Route(path, endpoint, methods=["POST"])
