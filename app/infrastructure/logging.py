"""Logging: one JSON object a line on stderr, for the service's own loggers and for those of libraries.

A standard formatter on the root logger does this, so every `logging.getLogger(...)` logs JSON without an import.
"""

import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import cast

import orjson

from app.application.context import request_id, session_id

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes of every log record. Any other attribute comes from `extra`."""

_SECRET_NAME = re.compile(
    r"(?i)(token|secret|passw(or)?d|api[_-]?key|authorization|cookie|credentials?|ticket|signature)$"
)
_SECRET_TEXT = re.compile(
    r"""(?ix) (\bbearer\s+) [^\s"',;]+ | \b(sk-) [\w-]{6,}
    | (\b[\w-]* (?:key|token|secret|password|ticket|signature) =) [^\s&"',;]+ | (://[^\s/:@]*:) [^\s/@]+ (?=@)"""
)
_HIDDEN = "***"

_LIBRARIES = (
    "asyncio", "docker", "h11", "hpack", "httpcore", "httpcore2", "httpx", "httpx2", "motor", "openai",
    "playwright", "primp", "pymongo", "redis", "sse_starlette", "urllib3", "websockets",
)  # fmt: skip


class JsonLines(logging.Formatter):
    """Format a record as one line of JSON: time, level, logger, message, context, extras and traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Mask secrets, which are found by name and by form, also in messages and tracebacks."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": _masked(record.getMessage()),
        }
        for name, bound in (("request_id", request_id.get()), ("session_id", session_id.get())):
            if bound:
                line[name] = bound
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[name] = _HIDDEN if _SECRET_NAME.search(name) else _clean(value)
        if record.exc_info:
            line["exception"] = _masked(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = _masked(self.formatStack(record.stack_info))
        return orjson.dumps(line, default=str).decode()


def configure_logging(level: str) -> None:
    """Log records of `level` (a name such as `INFO`) and above to stderr.

    Libraries log from WARNING on. If `level` is DEBUG, they log from INFO on, because at DEBUG some of them log whole
    requests with headers and messages.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    quiet = logging.INFO if level == "DEBUG" else logging.WARNING
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(quiet)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(quiet)  # at INFO it logs its own start, which this service prints itself
    logging.getLogger("uvicorn.access").disabled = True  # `RequestLogMiddleware` logs requests


def _clean(value: object) -> object:
    """Return `value` with secrets masked, and with a string for what JSON cannot represent."""
    match value:
        case None | bool() | float():
            return value
        case int():
            return value if -(2**63) <= value < 2**63 else str(value)
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {str(key): _HIDDEN if _SECRET_NAME.search(str(key)) else _clean(item) for key, item in items}
        case list() | tuple() | set() | frozenset():
            return [_clean(item) for item in cast("list[object]", value)]
        case _:
            return _masked(str(value))


def _masked(text: str) -> str:
    """Return `text` with secrets masked and lone surrogates replaced, which cannot be written."""
    text = text.encode("utf-8", "replace").decode()
    return _SECRET_TEXT.sub(lambda found: "".join(part or "" for part in found.groups()) + _HIDDEN, text)
