"""Reading a model server's error, in whatever shape it comes, and how long it asks to wait."""

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import cast

import orjson

from app.infrastructure.llm.reply import as_object

_MAX_DEPTH = 10
_MAX_ITEMS = 8
"""Limits of nesting and of list items to read."""

_MAX_TEXT = 4_000
"""Maximum number of characters of one message to read."""

_MAX_MESSAGES = 32
"""Maximum number of messages to keep. Every rule searches all of them."""

_MAX_CODE = 200
"""Maximum number of characters of a code, the name of a parameter, or a duration to read."""

_TEXTS = (
    "message",
    "errormessage",
    "errormsg",
    "msg",
    "errordescription",
    "description",
    "title",
    "errmsg",
    "statusmsg",
)
_NESTED = ("error", "errors", "metadata", "raw", "details", "detail", "cause", "baseresp")
_CODES = ("code", "errorcode", "type", "errortype", "status", "statuscode", "reason", "reasons", "kind", "errcode")
_PARAMETERS = ("param", "parameter", "field")
_HINTS = ("retryafter", "retrydelay", "retryafterseconds", "retryaftersecs", "retryin", "retryafterms", "estimatedtime")
"""Names of fields, in lower case without `_` and `-`. Other fields are not read: they may repeat the request."""

_ECHO = re.compile(
    r"""['"]input['"]\s*:.*?(?=\}\s*(?:,\s*\{\s*['"]type|\])|$)"""
    r"""|\binput_value\s*=.*?(?=,\s*input_type|$)"""
    r"""|\b(?:request(?: body)?|payload|received messages|raw_request|body)\s*[:=]\s*[\[{].*""",
    re.DOTALL | re.IGNORECASE,
)
"""Matches the parts of a validation error's text that repeat the request."""

_PAGE_TITLE = re.compile(r"<title[^>]*>([^<]{1,200})</title>", re.IGNORECASE)
_GENERIC = re.compile(r"(provider returned error|error|bad request|unprocessable entity|true|false|failed)\W*", re.I)
_EVENT = re.compile(rb"\s*(?:event:[^\n]*\n)?(?:data|error):[ \t]*([^\r\n]*)")
"""Matches a body that is an event stream although its status is that of an error."""

_RESET_HEADER = re.compile(r"rate-?limit.*reset")
_DURATION = re.compile(
    r"(\d+(?:\.\d+)?)\s*(ms|milliseconds?|h|hours?|hrs?|m|min(?:ute)?s?|s|sec(?:ond)?s?)(?![a-z])", re.IGNORECASE
)
_WAIT_TEXT = re.compile(
    r"(?:try again|retry|retrying|wait|resets?|available)(?:\s+(?:again|in|after|for|at least|about|another))*\s+"
    rf"((?:{_DURATION.pattern}[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


@dataclass(slots=True)
class ServerError:
    """Report of a server about a failure. Every field may be empty. Nothing in it repeats the request."""

    messages: list[str] = field(default_factory=list[str])
    codes: list[str] = field(default_factory=list[str])
    parameters: list[str] = field(default_factory=list[str])
    status: int = 0
    """The HTTP status that the body names."""
    retry_after: float | None = None
    """Seconds that the body asks to wait."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    """Headers of a provider behind a gateway."""
    generated: str = ""
    """What the model wrote, if the server could not read it as a tool call."""
    is_page: bool = False
    """Whether the body is an HTML page."""

    @property
    def message(self) -> str:
        """The text for a person."""
        useful = [text for text in self.messages if not _GENERIC.fullmatch(text)]
        useful = useful or self.messages or [code for code in self.codes if not code.isdigit()]
        parts: list[str] = []
        for text in useful:
            if not any(text in part for part in parts):
                parts.append(text)
        return ": ".join(parts[:4])

    @property
    def code_text(self) -> str:
        """All codes and types in lower case."""
        return " ".join(self.codes).lower()

    @property
    def text(self) -> str:
        """All codes, parameters and messages in lower case, to search for known phrases."""
        return " ".join((*self.codes, *self.parameters, *self.messages)).lower()


def read_body(body: bytes) -> ServerError:
    """Read the body of a response with an error status."""
    if event := _EVENT.match(body):
        body = event[1]
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        text = body[:_MAX_TEXT].decode("utf-8", "replace").strip()
        if not text.startswith("<"):
            return read_report(text)
        # Of an HTML page, only the title helps the user.
        title = _PAGE_TITLE.search(text)
        return ServerError(is_page=True, messages=[html.unescape(title[1]).strip()] if title else [])
    return read_report(value)


def read_report(report: object) -> ServerError:
    """Read an error, which may be nested, a list, or JSON inside a text."""
    error = ServerError()
    _collect(report, error, 0)
    if error.retry_after is None:
        error.retry_after = next((wait for wait in map(_wait_in_text, error.messages) if wait is not None), None)
    if not error.generated:
        error.generated = error.message.partition("raw='")[2].rpartition("', err=")[0]
    return error


def _collect(value: object, error: ServerError, depth: int) -> None:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str):
        _collect_text(value, error, depth)
    elif isinstance(value, list):
        for item in cast("list[object]", value)[:_MAX_ITEMS]:
            _collect(item, error, depth + 1)
    elif isinstance(value, dict):
        _collect_object(cast("dict[str, object]", value), error, depth)


def _collect_text(value: str, error: ServerError, depth: int) -> None:
    text = value.strip()
    if text.startswith(("{", "[")):
        try:
            nested: object = orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
        else:
            _collect(nested, error, depth + 1)
            return
    if text := _ECHO.sub("", text[:_MAX_TEXT]).strip():
        _add_message(text, error)


def _collect_object(fields: dict[str, object], error: ServerError, depth: int) -> None:
    named = {name.lower().replace("_", "").replace("-", ""): value for name, value in fields.items()}
    if isinstance(location := named.get("loc"), list):
        path = ".".join(str(part) for part in cast("list[object]", location))
        error.parameters.append(path[:_MAX_CODE])
        _add_message(f"{path}: {named.get('msg')}", error)
        return  # The other fields repeat the request.
    for name in _CODES:
        _add_code(named.get(name), error)
    error.parameters += [
        value[:_MAX_CODE] for name in _PARAMETERS if isinstance(value := named.get(name), str) and value
    ]
    if isinstance(generated := named.get("failedgeneration"), str):
        error.generated = error.generated or generated
    waits = [_parse_wait(named.get(name), milliseconds=name.endswith("ms")) for name in _HINTS]
    error.headers |= {name.lower(): str(value) for name, value in as_object(named.get("headers")).items()}
    error.retry_after = next((wait for wait in waits if wait is not None), error.retry_after)
    if isinstance(by_field := named.get("errors"), dict):
        named["errors"] = list(cast("dict[str, object]", by_field).values())
    for name in (*_TEXTS, *_NESTED):
        _collect(named.get(name), error, depth + 1)


def _add_message(text: str, error: ServerError) -> None:
    if len(error.messages) < _MAX_MESSAGES:
        error.messages.append(text[:_MAX_TEXT])


def _add_code(value: object, error: ServerError) -> None:
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    for item in items[:_MAX_ITEMS]:
        if isinstance(item, str | int) and not isinstance(item, bool):
            error.codes.append(str(item)[:_MAX_CODE])
            if re.fullmatch(r"[45]\d\d", str(item)):
                error.status = error.status or int(item)


def wait_in_headers(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that a server asks to wait, or None if it does not say.

    Reads `retry-after-ms`, `Retry-After` as seconds or as an HTTP date (RFC 9110, section 10.2.3), and the times at
    which exhausted limits end. `now`: seconds since the epoch.
    """
    milliseconds = _parse_wait(headers.get("retry-after-ms"), milliseconds=True)
    if milliseconds is not None:
        return milliseconds
    wait = _parse_time(headers.get("retry-after", ""), now)
    if wait is not None:
        return wait
    resets = [
        _parse_time(value, now)
        for name, value in headers.items()
        if _RESET_HEADER.search(name.lower())
        and headers.get(name.lower().replace("reset", "remaining"), "0").strip() in ("", "0")
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def _parse_time(value: str, now: float) -> float | None:
    """Return the seconds until a time: seconds, a duration, seconds or milliseconds since the epoch, or a date."""
    seconds = _parse_wait(value)
    if seconds is not None:
        if seconds < 1e9:
            return seconds
        return max(0.0, (seconds / 1_000 if seconds > 1e12 else seconds) - now)
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return max(0.0, parse(value).timestamp() - now)
        except (ValueError, TypeError, OverflowError):
            continue
    return None


def _parse_wait(value: object, *, milliseconds: bool = False) -> float | None:
    """Return a duration in seconds: a number, or a text such as `14s`, `6m0s` or `350ms`."""
    if isinstance(value, dict):
        value = as_object(cast("object", value)).get("seconds")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return _parse_duration(str(value))
    if not math.isfinite(number) or number < 0:
        return None
    return number / 1_000 if milliseconds else number


def _wait_in_text(text: str) -> float | None:
    found = _WAIT_TEXT.search(text)
    return _parse_duration(found[1]) if found else None


def _parse_duration(text: str) -> float | None:
    text = text[:_MAX_CODE]
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip(" ,").replace("and", "").strip():
        return None
    return sum(float(number) * _unit_seconds(unit.lower()) for number, unit in parts)


def _unit_seconds(unit: str) -> float:
    return 0.001 if unit.startswith(("ms", "mil")) else _UNIT_SECONDS[unit[0]]
