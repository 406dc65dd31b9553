"""The OpenAPI document. Routes answer with ready bytes, so what they send is said here, not found by FastAPI."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.interfaces.api.schemas import answers as answer_schemas
from app.interfaces.api.schemas import requests
from app.interfaces.api.schemas import streams as stream_schemas
from app.interfaces.envelope import JSON

Document = dict[str, Any]
"""A part of an OpenAPI document, as FastAPI types it."""

_REF = "#/components/schemas/{model}"

_RETRY_AFTER: Document = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
}


def ref(model: type[BaseModel]) -> Document:
    """A reference to the schema of `model`."""
    return {"$ref": _REF.format(model=model.__name__)}


def operation_id(route: APIRoute) -> str:
    """What clients that are generated from the document call a route: the name of its function."""
    return route.name


def body(model: type[BaseModel]) -> Document:
    """A route's `openapi_extra` for a JSON body that the route reads itself. Only a body that has a field which must
    be there is required."""
    required = any(field.is_required() for field in model.model_fields.values())
    return {"requestBody": {"required": required, "content": {JSON: {"schema": ref(model)}}}}


def answers(model: type[BaseModel], *failures: int) -> dict[int | str, Document]:
    """A route's `responses`: `model` when all is well, the failure envelope for each of `failures` and for 500."""
    found: dict[int | str, Document] = {200: {"description": "Success", "content": {JSON: {"schema": ref(model)}}}}
    return found | failures_of(failures)


def streams(model: type[BaseModel], *failures: int, example: str) -> dict[int | str, Document]:
    """As `answers`, for a stream whose frames are `model`s; `example` is what goes over the wire."""
    content: Document = {"text/event-stream": {"schema": ref(model), "example": example}}
    description = (
        "Server-Sent Events. The schema is that of one frame: its `event:`, its `id:` and its `data:`, which is one "
        "line of JSON. A comment at least every 15 s keeps the connection open."
    )
    found: dict[int | str, Document] = {200: {"description": description, "content": content}}
    return found | failures_of(failures)


def install_document(app: FastAPI) -> None:
    """Make `app` answer `/openapi.json` with the document of its routes, made when it is first asked for."""

    def document() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document


def _document(app: FastAPI) -> Document:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path in document["paths"].values():
        for operation in path.values():
            # FastAPI supposes that bad parameters are answered with 422; ours are with 400.
            operation["responses"].pop("422", None)
    _, schemas = models_json_schema([(model, "validation") for model in _models()], ref_template=_REF)
    definitions: Document = schemas["$defs"]
    document["components"] = {"schemas": dict(sorted(definitions.items()))}
    return document


def _models() -> list[type[BaseModel]]:
    return [
        requests.ChatBody,
        requests.ShellBody,
        requests.FileBody,
        requests.TicketBody,
        answer_schemas.FailureAnswer,
        answer_schemas.EmptyAnswer,
        answer_schemas.CreatedAnswer,
        answer_schemas.SessionAnswer,
        answer_schemas.SessionsAnswer,
        answer_schemas.ShellAnswer,
        answer_schemas.FileAnswer,
        answer_schemas.TicketAnswer,
        answer_schemas.HealthAnswer,
        answer_schemas.ReadyAnswer,
        stream_schemas.SessionsFrame,
        stream_schemas.EventFrame,
        stream_schemas.LiveFrame,
    ]


def text(description: str, *failures: int) -> dict[int | str, Document]:
    """As `answers`, for plain text."""
    found: dict[int | str, Document] = {200: {"description": description, "content": {"text/plain": {}}}}
    return found | failures_of(failures)


def screenshot(media_type: str, *failures: int) -> dict[int | str, Document]:
    """As `answers`, for a screenshot."""
    content: Document = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    found: dict[int | str, Document] = {200: {"description": "The screenshot.", "content": content}}
    return found | failures_of(failures)


def failures_of(statuses: tuple[int, ...]) -> dict[int | str, Document]:
    """The failure envelope for each of `statuses` and for 500: a part of a route's `responses`."""
    found: dict[int | str, Document] = {}
    for status in (*statuses, 500):
        answer: Document = {
            "description": HTTPStatus(status).phrase,
            "content": {JSON: {"schema": ref(answer_schemas.FailureAnswer)}},
        }
        if status in (429, 503):
            answer["headers"] = _RETRY_AFTER
        found[status] = answer
    return found
