"""Turn every failure into a response. Only this module maps error classes to HTTP statuses."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.domain import errors
from app.domain.errors import AnkerError, LimitReached, SandboxFailure, Unavailable
from app.domain.external.secrets import SecretMask
from app.interfaces.api.services import services_of
from app.interfaces.envelope import failure

log = logging.getLogger(__name__)

INTERNAL = "internal error; the log has the details under this answer's X-Request-ID"
NOTHING_HERE = "there is nothing at this path; see /docs"

STATUS: Mapping[type[AnkerError], int] = {
    errors.InvalidInput: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    LimitReached: 429,
    errors.StoreUnavailable: 503,
    errors.SandboxUnavailable: 503,
    Unavailable: 503,
    SandboxFailure: 502,
    errors.SearchFailure: 502,
    errors.ModelFailure: 502,
    AnkerError: 500,
}
"""HTTP status of each error class, and of its subclasses that are not listed."""

SANDBOX_STATUS = frozenset({400, 404, 409, 413})
"""Statuses of the sandbox that are the caller's fault and are passed on; any other one becomes 502."""

FRAMEWORK_STATUS: Mapping[int, int] = {HTTPStatus.UNPROCESSABLE_ENTITY: HTTPStatus.BAD_REQUEST}
"""Statuses of the framework that this service reports as another one."""

FRAMEWORK_MESSAGES: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: NOTHING_HERE,
    HTTPStatus.METHOD_NOT_ALLOWED: "this path allows only: {allowed}",
}
"""Messages for failures that the framework reports, by status; for others its own detail is used."""

VALIDATION_MESSAGES: Mapping[str, Callable[[str, str], str]] = {
    "json_invalid": lambda _, msg: f"the body is not valid JSON ({msg.removeprefix('Invalid JSON: ')})",
    "missing": lambda field, _: f"{field}: missing",
    "model_type": lambda _field, _msg: "the body must be a JSON object",
}
"""Messages for pydantic's error types, made from the field's name and pydantic's message."""

_MAX_PROBLEMS = 3
"""Maximum number of invalid fields that one message names."""


def status_of(error: AnkerError) -> int:
    """Return the HTTP status of `error`: that of its most specific class in `STATUS`."""
    if isinstance(error, SandboxFailure) and error.status in SANDBOX_STATUS:
        return error.status
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_response(error: AnkerError, mask: SecretMask | None = None) -> Response:
    """Return the response that reports `error`, and log it if it is not the client's fault.

    `mask`: masks the message; None for one that quotes nothing.
    """
    status = status_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, LimitReached | Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("request failed", extra={"error": str(error), "kind": type(error).__name__})
    message = str(error) if mask is None else mask.mask(str(error))
    return failure(status, message or HTTPStatus(status).phrase, headers=headers)


def explain(problems: Iterable[Mapping[str, object]]) -> str:
    """Return pydantic's errors as one line that names the invalid fields and never repeats a value."""
    lines = [_problem(problem) for problem in problems]
    more = len(lines) - _MAX_PROBLEMS
    return "; ".join(lines[:_MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def install_error_handlers(app: FastAPI, routes: Iterable[APIRoute], mask: SecretMask) -> None:
    """Make `app` answer every expected failure, the framework's own included, with the envelope.

    Args:
        app: The application.
        routes: The routes whose methods the `Allow` header of a 405 names.
        mask: Masks the service's own secrets in messages, which may quote a request or a sandbox.
    """
    methods = [(route.path_regex, frozenset(route.methods or ())) for route in routes]

    async def on_framework_error(request: Request, error: Exception) -> Response:
        return _framework_response(cast("HTTPException", error), _allowed(methods, request.url.path), mask)

    async def on_anker_error(request: Request, error: Exception) -> Response:
        if isinstance(error, LimitReached):
            services_of(request).metrics.count_refusal(error.limit)
        return error_response(cast("AnkerError", error), mask)

    async def on_invalid_request(_request: Request, error: Exception) -> Response:
        problems = cast("Iterable[Mapping[str, object]]", cast("RequestValidationError", error).errors())
        return failure(HTTPStatus.BAD_REQUEST, mask.mask(explain(problems)))

    app.add_exception_handler(AnkerError, on_anker_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, on_framework_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_unexpected_error(_request: Request, _error: Exception) -> Response:
    # The framework raises the error again after this response, so `FailureMiddleware` logs it.
    return failure(HTTPStatus.INTERNAL_SERVER_ERROR, INTERNAL)


def _framework_response(error: HTTPException, allowed: str, mask: SecretMask) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = allowed = allowed or headers.get("Allow", "")
    message = FRAMEWORK_MESSAGES.get(error.status_code, "")
    status = FRAMEWORK_STATUS.get(error.status_code, error.status_code)
    return failure(status, message.format(allowed=allowed) or mask.mask(str(error.detail)), headers=headers)


def _allowed(methods: list[tuple[re.Pattern[str], frozenset[str]]], path: str) -> str:
    found = {method for pattern, names in methods if pattern.match(path) for method in names}
    if "GET" in found:
        found.add("HEAD")
    return ", ".join(sorted(found))


def _problem(problem: Mapping[str, object]) -> str:
    field = ".".join(str(part) for part in cast("tuple[object, ...]", problem["loc"]))
    message = VALIDATION_MESSAGES.get(str(problem["type"]), lambda field, msg: f"{field}: {msg}")
    return message(field, str(problem["msg"]))
