"""Every failure as an answer. The only place that knows which error is which HTTP status."""

import logging
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.domain.errors import (
    AnkerError,
    Conflict,
    Forbidden,
    InvalidInput,
    LimitReached,
    ModelFailure,
    NotFound,
    SandboxFailure,
    SandboxUnavailable,
    SearchFailure,
    StoreUnavailable,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from app.interfaces.envelope import failure

log = logging.getLogger(__name__)

INTERNAL = "internal error; the log has the details under this answer's X-Request-ID"

STATUS: Mapping[type[AnkerError], int] = {
    InvalidInput: 400,
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    LimitReached: 429,
    StoreUnavailable: 503,
    SandboxUnavailable: 503,
    Unavailable: 503,
    SandboxFailure: 502,
    SearchFailure: 502,
    ModelFailure: 502,
    AnkerError: 500,
}
"""The status of each class and of its subclasses that are not listed themselves."""

SANDBOX_STATUS = frozenset({400, 404, 409, 413})
"""What a sandbox may say about the caller's own request; anything else that it says is its failure, 502."""

_MAX_PROBLEMS = 3


def status_of(error: AnkerError) -> int:
    """The HTTP status of `error`: that of its most specific class in `STATUS`."""
    if isinstance(error, SandboxFailure) and error.status in SANDBOX_STATUS:
        return error.status
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer_to(error: AnkerError) -> Response:
    """The answer that tells the client about `error`."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, LimitReached | Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request failed", extra={"error": str(error), "kind": type(error).__name__})
    return failure(status, str(error) or HTTPStatus(status).phrase, headers=headers)


def explain(problems: Iterable[Mapping[str, object]]) -> str:
    """What pydantic found wrong, as one line that names the fields and never repeats a value."""
    lines = [_problem(problem) for problem in problems]
    more = len(lines) - _MAX_PROBLEMS
    return "; ".join(lines[:_MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def install_error_handlers(app: FastAPI, routes: Iterable[APIRoute]) -> None:
    """Answer every foreseen failure of `app`, the framework's own included, with the envelope.

    `routes` are those that a 405 looks for the methods that would have been allowed.
    """
    methods = [(route.path_regex, frozenset(route.methods or ())) for route in routes]

    async def on_http(request: Request, error: Exception) -> Response:
        return _http_answer(cast("HTTPException", error), _allowed(methods, request.url.path))

    app.add_exception_handler(AnkerError, _on_anker)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, on_http)


async def _on_anker(_request: Request, error: Exception) -> Response:
    return answer_to(cast("AnkerError", error))


async def _on_validation(_request: Request, error: Exception) -> Response:
    problems = cast("Iterable[Mapping[str, object]]", cast("RequestValidationError", error).errors())
    return failure(HTTPStatus.BAD_REQUEST, explain(problems))


def _http_answer(error: HTTPException, allowed: str) -> Response:
    """The envelope for what the framework refuses by itself."""
    headers = dict(error.headers or {})
    match error.status_code:
        case HTTPStatus.NOT_FOUND:
            return failure(HTTPStatus.NOT_FOUND, "there is nothing at this path; see /docs", headers=headers)
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = allowed or headers.get("Allow", "")
            headers["Allow"] = allowed
            return failure(HTTPStatus.METHOD_NOT_ALLOWED, f"this path allows only: {allowed}", headers=headers)
        case HTTPStatus.UNPROCESSABLE_ENTITY:
            return failure(HTTPStatus.BAD_REQUEST, str(error.detail), headers=headers)
        case status:
            return failure(status, str(error.detail), headers=headers)


def _allowed(methods: list[tuple[re.Pattern[str], frozenset[str]]], path: str) -> str:
    found = {method for pattern, names in methods if pattern.match(path) for method in names}
    if "GET" in found:
        found.add("HEAD")
    return ", ".join(sorted(found))


def _problem(problem: Mapping[str, object]) -> str:
    where = ".".join(str(part) for part in cast("tuple[object, ...]", problem["loc"]))
    if problem["type"] == "json_invalid":
        return f"the body is not valid JSON ({str(problem['msg']).removeprefix('Invalid JSON: ')})"
    if problem["type"] == "missing":
        return f"{where}: missing"
    if problem["type"] == "model_type":
        return "the body must be a JSON object"
    return f"{where}: {problem['msg']}"
