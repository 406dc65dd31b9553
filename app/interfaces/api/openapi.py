"""The OpenAPI document. Routes return encoded bytes, so each declares here what it sends; FastAPI cannot infer it."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from app.interfaces.api.schemas import FailureAnswer
from app.interfaces.envelope import JSON

Document = dict[str, Any]
"""A part of an OpenAPI document, as FastAPI types it."""

EVENT_STREAM = "text/event-stream"
"""Media type of Server-Sent Events."""

_REF = "#/components/schemas/{model}"

_RETRY_AFTER: Document = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
}


class SchemaRef(dict[str, Any]):
    """A reference to the schema of a model. It keeps the model, so that the document can be built from the routes."""

    def __init__(self, model: type[BaseModel]) -> None:
        super().__init__({"$ref": _REF.format(model=model.__name__)})
        self.model = model


def api_router(tag: str, prefix: str = "") -> APIRouter:
    """Return a router whose routes return encoded responses. An operation id is the name of the route's function."""
    return APIRouter(
        prefix=prefix, tags=[tag], default_response_class=Response, generate_unique_id_function=lambda route: route.name
    )


def body(model: type[BaseModel]) -> Document:
    """Return the `openapi_extra` of a route that reads a JSON body itself.

    The body is required only if one of its fields is.
    """
    required = any(field.is_required() for field in model.model_fields.values())
    return {"requestBody": {"required": required, "content": {JSON: {"schema": SchemaRef(model)}}}}


def answers(
    model: type[BaseModel], *failures: int, frame: type[BaseModel] | None = None, example: str = ""
) -> dict[int | str, Document]:
    """Return the `responses` of a route: `model` on success, and the failure envelope for `failures` and for 500.

    With `frame`, a client that accepts `text/event-stream` receives a stream of such frames instead.
    """
    content: Document = {JSON: {"schema": SchemaRef(model)}}
    if frame is not None:
        content[EVENT_STREAM] = {"schema": SchemaRef(frame), "example": example}
    return _with_failures("Success", content, failures)


def streams(model: type[BaseModel], *failures: int, example: str) -> dict[int | str, Document]:
    """Return the `responses` of a route that streams frames of type `model`, with an example of the bytes."""
    description = (
        "Server-Sent Events. The schema is that of one frame: its `event:`, its `id:` and its `data:`, which is one "
        "line of JSON. A comment at least every 15 s keeps the connection open."
    )
    return _with_failures(description, {EVENT_STREAM: {"schema": SchemaRef(model), "example": example}}, failures)


def text(description: str, *failures: int) -> dict[int | str, Document]:
    """Return the `responses` of a route that sends plain text."""
    return _with_failures(description, {"text/plain": {}}, failures)


def binary(media_type: str, description: str, *failures: int) -> dict[int | str, Document]:
    """Return the `responses` of a route that sends bytes of `media_type`."""
    return _with_failures(description, {media_type: {"schema": {"type": "string", "format": "binary"}}}, failures)


def failures_of(statuses: tuple[int, ...]) -> dict[int | str, Document]:
    """Return the failure envelope for each of `statuses` and for 500, as a part of a route's `responses`."""
    found: dict[int | str, Document] = {}
    for status in (*statuses, 500):
        answer: Document = {
            "description": HTTPStatus(status).phrase,
            "content": {JSON: {"schema": SchemaRef(FailureAnswer)}},
        }
        if status in (429, 503):
            answer["headers"] = _RETRY_AFTER
        found[status] = answer
    return found


def install_openapi(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Make `app` serve the document of `routes`, which is built on the first request for it."""

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = _build(app, routes)
        return app.openapi_schema

    app.openapi = openapi


def _with_failures(description: str, content: Document, failures: tuple[int, ...]) -> dict[int | str, Document]:
    success: dict[int | str, Document] = {200: {"description": description, "content": content}}
    return success | failures_of(failures)


def _build(app: FastAPI, routes: Sequence[APIRoute]) -> Document:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            # FastAPI assumes 422 for invalid parameters; this service sends 400.
            operation["responses"].pop("422", None)
    models = {model: None for route in routes for model in _models([route.responses, route.openapi_extra])}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    definitions: Document = schemas["$defs"]
    document["components"] = {"schemas": dict(sorted(definitions.items()))}
    return document


def _models(node: object) -> Iterator[type[BaseModel]]:
    """Return the models that the references in `node` name."""
    if isinstance(node, SchemaRef):
        yield node.model
    elif isinstance(node, dict):
        for value in cast("dict[str, object]", node).values():
            yield from _models(value)
    elif isinstance(node, list):
        for value in cast("list[object]", node):
            yield from _models(value)
