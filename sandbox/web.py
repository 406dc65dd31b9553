"""The JSON envelope of responses, the mapping of failures to HTTP, and responses that send a file."""

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import BinaryIO, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

_BLOCK = 256 * 1024
"""Number of bytes of a file to read at once."""


class Body(BaseModel):
    """A request body that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


B = TypeVar("B", bound=Body)


def json_route(path: str, kind: type[B], call: Callable[[B], Awaitable[Response]]) -> Route:
    """Return the route `POST path`, whose body is validated as `kind`. An invalid body raises `ValidationError`."""

    async def endpoint(request: Request) -> Response:
        return await call(kind.model_validate_json(await request.body()))

    return Route(path, endpoint, methods=["POST"])


class Failure(Exception):
    """An expected failure. `status` is its HTTP status; `message` tells a model or a person what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class NoProcessLeft(Failure):
    """The sandbox has reached its limit of processes and threads."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "the sandbox has reached its limit of processes, so nothing new can be started: end a shell that started "
            "many processes with shell_kill_process, then try again",
        )


log = logging.getLogger("sandbox")


class Envelope(JSONResponse):
    """A response `{"success", "message", "data"}` in UTF-8. Invalid bytes of file names are replaced."""

    def render(self, content: object) -> bytes:
        """Return the bytes of the body."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def success_response(data: Mapping[str, object] | None, message: str = "") -> Envelope:
    """Return a success that carries `data`."""
    return Envelope({"success": True, "message": message, "data": data})


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Envelope:
    """Return a failure without data."""
    return Envelope({"success": False, "message": message, "data": None}, status_code=status, headers=headers)


async def _on_failure(_: Request, error: Exception) -> Envelope:
    if not isinstance(error, Failure):
        raise error
    return error_response(error.status, error.message)


async def _on_http(request: Request, error: Exception) -> Envelope:
    if not isinstance(error, HTTPException):
        raise error
    message = str(error.detail)
    if error.status_code == 404:
        message = f"no such route: {request.method} {request.url.path}"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed on {request.url.path}"
    return error_response(error.status_code, message, error.headers)


async def _on_invalid(_: Request, error: Exception) -> Envelope:
    if not isinstance(error, ValidationError):
        raise error
    parts: list[str] = []
    for problem in error.errors(include_url=False, include_input=False):
        if problem["type"] == "json_invalid":
            return error_response(
                400, f"the body is not valid JSON: {problem.get('ctx', {}).get('error', 'cannot be read')}"
            )
        where = ".".join(str(part) for part in problem["loc"])
        parts.append(f"{where}: {problem['msg']}" if where else str(problem["msg"]))
    return error_response(400, "; ".join(parts[:5]))


async def _on_fault(request: Request, error: Exception) -> Envelope:
    log.error("fault in %s %s", request.method, request.url.path, exc_info=error)
    return error_response(500, "a fault in the sandbox service; its log has the details")


HANDLERS = {
    Failure: _on_failure,
    HTTPException: _on_http,
    ValidationError: _on_invalid,
    Exception: _on_fault,
}
"""Exception handlers that turn every failure, including the framework's, into an envelope."""


class FileResponse(StreamingResponse):
    """Sends a file, and closes it if the client leaves, when the iterator would keep it until garbage collection."""

    def __init__(self, file: BinaryIO, size: int, name: str) -> None:
        """Create the response. `size`: number of bytes to send; `name`: what the client may call the file."""
        self._file = file
        blocks = iter(lambda: file.read(min(_BLOCK, size - file.tell())), b"")  # the file may grow meanwhile
        headers = {
            "Content-Length": str(size),
            "Content-Disposition": f"attachment; filename*=utf-8''{quote(os.fsencode(name))}",
        }
        super().__init__(blocks, headers=headers, media_type="application/octet-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        with self._file:
            await super().__call__(scope, receive, send)
