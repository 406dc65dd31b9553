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

from app.application.context import request_id, session_id, span
from app.domain.external.secrets import NoSecrets, SecretMask

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""Attributes of every log record. Any other attribute comes from `extra`."""

_SECRET_NAME = re.compile(
    r"(?i)(token|secret|passw(or)?d|api[_-]?key|authorization|cookie|credentials?|ticket|signature)$"
)
_SECRET_TEXT = re.compile(
    r"""(?x) ((?i:\bbearer\s+)) [^\s"',;]+
    | \b(sk-|github_pat_|gh[pousr]_|glpat-|hf_|xox[a-z]-|A[KS]IA|AIza) [\w-]{6,} | \b(eyJ) [\w-]+ \.[\w.-]+
    | (-----BEGIN\ [A-Z ]*PRIVATE\ KEY-----) [^-]*
    | ((?i:\b[\w-]* (?:key|token|secret|passwo?r?d|ticket|signature) ["']? \s? [=:] \s? ["']?)) [^\s&"',;]+
    | (://[^\s/:@]*:) [^\s/@]+ (?=@)"""
)
"""Matches what looks like a secret, whoever it belongs to. The groups are what is shown of it."""

_QUOTED = frozenset({"error", "reason", "refusal"})
"""Extras with texts of others, such as the message of a model's server."""

_TOKEN_LIKE = re.compile(r"\b(?=\w*\d)(?=\w*[A-Za-z])\w{20,}", re.ASCII)
"""Matches long words of letters and digits, which in the text of others may be a key of a form that nobody knows."""

_HIDDEN = "***"


class JsonLines(logging.Formatter):
    """Format a record as one line of JSON: time, level, logger, message, context, extras and traceback."""

    def __init__(self, mask: SecretMask | None = None) -> None:
        """Create the formatter. `mask` knows the service's own secrets; None for none."""
        super().__init__()
        self._mask = mask or NoSecrets()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Mask the service's own secrets, and others by their names and forms."""
        is_ours = record.name.partition(".")[0] == "app"
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "event": self._masked(self._message(record), is_quoted=not is_ours),
        }
        for name, bound in (
            ("request_id", request_id.get()),
            ("session_id", session_id.get()),
            ("trace_id", span.get().trace_id),
        ):
            if bound:
                line[name] = self._masked(bound)
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[self._masked(name)] = self._clean(name, value)
        if record.exc_info:
            line["exception"] = self._masked(self.formatException(record.exc_info), is_quoted=True)
        if record.stack_info:
            line["stack"] = self._masked(self.formatStack(record.stack_info))
        return orjson.dumps(line, default=str).decode()

    def _message(self, record: logging.LogRecord) -> str:
        """Return the message, with the texts of exceptions in it masked as what others wrote."""
        arguments = record.args
        if not isinstance(arguments, tuple) or not any(isinstance(each, BaseException) for each in arguments):
            return record.getMessage()
        shown = (
            self._masked(str(each), is_quoted=True) if isinstance(each, BaseException) else each for each in arguments
        )
        return str(record.msg) % tuple(shown)

    def _clean(self, name: str, value: object) -> object:
        """Return the value of an extra, with secrets masked, and with a string for what JSON cannot represent."""
        if _SECRET_NAME.search(name):
            return _HIDDEN
        match value:
            case None | bool() | float():
                return value
            case int():
                return value if -(2**63) <= value < 2**63 else str(value)
            case Mapping():
                items = cast("Mapping[object, object]", value).items()
                return {self._masked(str(key)): self._clean(str(key), item) for key, item in items}
            case list() | tuple() | set() | frozenset():
                return [self._clean(name, item) for item in cast("list[object]", value)]
            case _:
                return self._masked(str(value), is_quoted=name in _QUOTED)

    def _masked(self, text: str, *, is_quoted: bool = False) -> str:
        """Return `text` with secrets masked and lone surrogates replaced, which cannot be written."""
        text = self._mask.mask(text.encode("utf-8", "replace").decode())
        text = _SECRET_TEXT.sub(lambda found: "".join(part or "" for part in found.groups()) + _HIDDEN, text)
        return _TOKEN_LIKE.sub(_HIDDEN, text) if is_quoted else text


def configure_logging(level: str, mask: SecretMask | None = None) -> None:
    """Log to stderr: the service's own records of `level` (a name such as `INFO`) and above, libraries' warnings.

    The level of libraries does not change: below WARNING, some of them log addresses, headers and messages.

    Args:
        level: The level.
        mask: Knows the service's own secrets; None for none.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(mask))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("app").setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)  # at INFO it logs its own start, which this service prints itself
    logging.getLogger("uvicorn.access").disabled = True  # `RequestLogMiddleware` logs requests
