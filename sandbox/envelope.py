"""The envelope of every JSON answer, and the one place that turns failures into HTTP."""

import json
import logging
from collections.abc import Mapping

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from sandbox.failure import Failure

log = logging.getLogger("sandbox")


class Envelope(JSONResponse):
    """`{"success", "message", "data"}` as UTF-8; file names that are not valid text lose the bytes that are not."""

    def render(self, content: object) -> bytes:
        """The body's bytes."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def answer(data: Mapping[str, object] | None, message: str = "") -> Envelope:
    """A success that carries `data`."""
    return Envelope({"success": True, "message": message, "data": data})


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Envelope:
    """A failure with no data."""
    return Envelope({"success": False, "message": message, "data": None}, status_code=status, headers=headers)


async def _on_failure(_: Request, error: Exception) -> Envelope:
    if not isinstance(error, Failure):
        raise error
    return refusal(error.status, error.message)


async def _on_http(request: Request, error: Exception) -> Envelope:
    if not isinstance(error, HTTPException):
        raise error
    message = str(error.detail)
    if error.status_code == 404:
        message = f"no such route: {request.method} {request.url.path}"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed on {request.url.path}"
    return refusal(error.status_code, message, error.headers)


async def _on_invalid(_: Request, error: Exception) -> Envelope:
    if not isinstance(error, ValidationError):
        raise error
    parts: list[str] = []
    for problem in error.errors(include_url=False, include_input=False):
        if problem["type"] == "json_invalid":
            return refusal(400, f"the body is not valid JSON: {problem.get('ctx', {}).get('error', 'cannot be read')}")
        where = ".".join(str(part) for part in problem["loc"])
        parts.append(f"{where}: {problem['msg']}" if where else str(problem["msg"]))
    return refusal(400, "; ".join(parts[:5]))


async def _on_fault(request: Request, error: Exception) -> Envelope:
    log.error("fault in %s %s", request.method, request.url.path, exc_info=error)
    return refusal(500, "a fault in the sandbox service; its log has the details")


HANDLERS = {
    Failure: _on_failure,
    HTTPException: _on_http,
    ValidationError: _on_invalid,
    Exception: _on_fault,
}
"""Every failure, the framework's own included, becomes an envelope."""
