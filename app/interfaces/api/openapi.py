"""The OpenAPI document. Routes return encoded bytes, so each declares here what it sends; FastAPI cannot infer it."""

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from mimetypes import guess_type
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import HTMLResponse, Response

from app.domain.errors import NotFound
from app.interfaces.api.schemas import FailureAnswer
from app.interfaces.authentication import OPEN_PATH
from app.interfaces.envelope import JSON, UNLIMITED_PATHS
from app.interfaces.errors import NOTHING_HERE

Document = dict[str, Any]
"""A part of an OpenAPI document, as FastAPI types it."""

EVENT_STREAM = "text/event-stream"
"""Media type of Server-Sent Events."""

_REF = "#/components/schemas/{model}"

_RETRY_AFTER: Document = {
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
}


DESCRIPTION = """\
Every failure is the envelope `FailureAnswer`. Any request can be answered with `400` (not HTTP), `403` (a page of
another origin, or a host name that is not served), `408` (it arrived too slowly), `413` (the body is too large) and
`431` (address and headers are larger than 64 KiB). A method that a path does not have is answered with `405` (with
`Allow`)."""
"""Text of the document: what the server answers before a route sees the request."""

OPENAPI_PATH = "/openapi.json"

ASSETS = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js", "favicon.png"})
"""Files that the pages load, from the package `fastapi-offline`."""

_ASSETS = "/docs/assets/"
_TITLE = "Anker"
_LOGIN = (
    "A token of `API_TOKENS`, or a JWT of `OIDC_ISSUER`. Needed by every path but `/health`, unless `AUTH` is `none`."
)
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)

documentation_router = APIRouter(include_in_schema=False, default_response_class=Response)
"""Pages that show the document. Their scripts come from this service: a foreign one could call the API."""

_ANYWHERE = (400, 403, 408, 413, 431)
"""Failures of every operation; see `DESCRIPTION`."""


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
        content[EVENT_STREAM] = _frames(frame, example)
    return _with_failures("Success", content, failures)


def streams(model: type[BaseModel], *failures: int, example: str) -> dict[int | str, Document]:
    """Return the `responses` of a route that streams frames of type `model`, with an example of the bytes."""
    description = (
        "Server-Sent Events. `x-itemSchema` is the schema of one frame: its `event:`, its `id:` and its `data:`, which "
        "is one line of JSON. A comment at least every 15 s keeps the connection open."
    )
    return _with_failures(description, {EVENT_STREAM: _frames(model, example)}, failures)


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


def _frames(model: type[BaseModel], example: str) -> Document:
    """Return the content of a stream. The body is text to a validator.

    Version 3.2 of OpenAPI calls the schema of one frame `itemSchema`.
    """
    return {"schema": {"type": "string"}, "x-itemSchema": SchemaRef(model), "example": example}


def _with_failures(description: str, content: Document, failures: tuple[int, ...]) -> dict[int | str, Document]:
    success: dict[int | str, Document] = {200: {"description": description, "content": content}}
    return success | failures_of(failures)


def _build(app: FastAPI, routes: Sequence[APIRoute]) -> Document:
    document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
    over_limit = failures_of((429,))[429]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            # FastAPI assumes 422 for invalid parameters; this service sends 400.
            operation["responses"].pop("422", None)
            for status in _ANYWHERE:
                operation["responses"].setdefault(str(status), failures_of((status,))[status])
            if path != OPEN_PATH:
                for status, answer in failures_of((401, 503)).items():
                    operation["responses"].setdefault(str(status), answer)
            if path not in UNLIMITED_PATHS:
                operation["responses"].setdefault("429", over_limit)
    models = {model: None for route in routes for model in _models([route.responses, route.openapi_extra])}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    definitions: Document = schemas["$defs"]
    document["components"] = {
        "schemas": dict(sorted(definitions.items())),
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": _LOGIN}},
    }
    document["security"] = [{}, {"bearer": []}]
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


@documentation_router.get("/docs")
async def show_swagger_ui() -> Response:
    """Return Swagger UI, with which requests can be tried out."""
    page = get_swagger_ui_html(
        openapi_url=OPENAPI_PATH,
        title=_TITLE,
        swagger_js_url=_ASSETS + "swagger-ui-bundle.js",
        swagger_css_url=_ASSETS + "swagger-ui.css",
        swagger_favicon_url=_ASSETS + "favicon.png",
    )
    return _guarded(page)


@documentation_router.get("/redoc")
async def show_redoc() -> Response:
    """Return ReDoc, which is better to read."""
    page = get_redoc_html(
        openapi_url=OPENAPI_PATH,
        title=_TITLE,
        redoc_js_url=_ASSETS + "redoc.standalone.js",
        redoc_favicon_url=_ASSETS + "favicon.png",
        with_google_fonts=False,
    )
    return _guarded(page)


@documentation_router.get(_ASSETS + "{name}")
async def get_asset(name: str) -> Response:
    """Return a file that the pages load."""
    if name not in ASSETS:
        raise NotFound(NOTHING_HERE)
    return Response(_read_asset(name), media_type=guess_type(name)[0], headers={"Cache-Control": "max-age=86400"})


def _guarded(page: HTMLResponse) -> Response:
    """Allow the page nothing but its own script, the files of this service, and requests to it."""
    inline = _INLINE_SCRIPT.findall(bytes(page.body).decode())
    scripts = ["'self'", *(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in inline)]
    page.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page


@cache
def _read_asset(name: str) -> bytes:
    return files("fastapi_offline").joinpath("static", name).read_bytes()
