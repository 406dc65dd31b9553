"""Logging: one JSON object a line on stderr, for our own loggers and everybody else's.

A stdlib formatter on the root logger, so that any `logging.getLogger(...)` comes out structured, libraries included,
and nothing needs to be imported for it.
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
"""What every record has; whatever else it has came in `extra`."""

_SECRET_NAME = re.compile(r"(?i)(token|secret|passw(or)?d|api[_-]?key|authorization|cookie|credentials?|ticket)$")
_SECRET_TEXT = re.compile(
    r"""(?ix) (\bbearer\s+) [^\s"',;]+ | \b(sk-) [\w-]{6,}
    | (\b[\w-]* (?:key|token|secret|password|ticket) =) [^\s&"',;]+ | (://[^\s/:@]*:) [^\s/@]+ (?=@)"""
)
_HIDDEN = "***"

_LIBRARIES = (
    "asyncio", "docker", "h11", "hpack", "httpcore", "httpcore2", "httpx", "httpx2", "motor", "openai",
    "playwright", "primp", "pymongo", "redis", "sse_starlette", "urllib3", "websockets",
)  # fmt: skip


class JsonLines(logging.Formatter):
    """A record as one line of JSON: when, how grave, who, what, what it belongs to, the extras, the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. Values whose name or look says that they are secret are masked, in messages and tracebacks too."""
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
    """Send everything at `level` (a name such as `INFO`) and above to stderr, one line an event.

    The libraries' own talk begins at WARNING, unless `level` is DEBUG. Those that write whole requests, with their
    headers or messages, at DEBUG stay at INFO even then.
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
        logger.setLevel(quiet)  # at INFO it tells of its own start, which we do in our own words
    logging.getLogger("uvicorn.access").disabled = True  # `interfaces/request_log.py` says more, once


def _clean(value: object) -> object:
    """`value` with every secret masked; what JSON has no word for becomes a string."""
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
    """`text` without secrets, and without the lone surrogates that cannot be written."""
    text = text.encode("utf-8", "replace").decode()
    return _SECRET_TEXT.sub(lambda found: "".join(part or "" for part in found.groups()) + _HIDDEN, text)
