"""Assembly of a model's reply from the bytes that OpenAI-compatible servers send.

`EventDecoder` splits a response body into the data of its events; `ReplyBuilder` assembles the chunks into one reply.
The format is https://platform.openai.com/docs/api-reference/chat-streaming. Known deviations are accepted: no `index`
on tool calls, or the same index for all of them; a complete call in one chunk; the name repeated in every chunk; the
id only in the first chunk, or never; arguments as an object; the legacy `function_call`; content as a list of parts;
`message` instead of `delta`; a complete JSON reply instead of a stream; usage inside the choice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import orjson

from app.domain.external.llm import FinishReason, ModelReply, ReplyListener
from app.domain.models.message import ToolCall, Usage

MAX_BODY_BYTES = 128 * 1024 * 1024
"""Maximum size of one response body, in bytes."""

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Maximum size of one event, in bytes."""

_BOM = b"\xef\xbb\xbf"
_FIELDS = (b"data", b"event", b"id", b"retry", b":", b"error")

_REFUSED_FINISH = re.compile(
    r"filter|sensitive|safety|recitation|blocklist|blocked|prohibited|spii|refus|guardrail|moderation|polic|toxic"
)
"""Matches values of `finish_reason` that report a content filter."""

_FAILED_FINISH = re.compile(
    r"error|fail|abort|time_?d?_?out|unavailable|overload|cancel|interrupt|disconnect|insufficient|malformed"
    r"|unexpected_tool|missing_thought"
)
"""Matches values that report a failure of the server or a malformed call: such a turn is no turn."""

_CUT_FINISH = re.compile(r"length|max\w*_tokens|token_limit|context_window")
"""Matches values that report a limit of the reply's length."""

_FAILURE_FIELDS = ("error_message", "error_msg", "error_code", "error_type", "errors", "detail", "details", "message")
"""Fields of a chunk without choices that report a failure."""


class ReplyTooLarge(Exception):
    """The body exceeds `MAX_BODY_BYTES`, or one event exceeds `MAX_EVENT_BYTES`."""


class ServerFailed(Exception):
    """The server reported a failure inside its reply. `report` is the JSON object that says so."""

    def __init__(self, report: dict[str, object]) -> None:
        super().__init__("the model's server failed in the middle of its reply")
        self.report = report


class EventDecoder:
    """Splits one response body into the data of its server-sent events.

    Follows https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation with these
    exceptions: the last event counts without its blank line; a body that is not an event stream is kept whole; JSON
    without `data:` counts as data; the data of `event: error`, and of a line `error:`, becomes `{"error": data}`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._is_bare = False
        self._is_error = False
        self._size = 0
        self._is_stream: bool | None = None

    @property
    def plain_body(self) -> bytes | None:
        """The body so far if it is not an event stream but JSON or a page; None for a stream."""
        return None if self._is_stream else self._rest

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of each event that `chunk` completes.

        Raises:
            ReplyTooLarge: The body or the current event exceeds its limit.
        """
        self._size += len(chunk)
        text = self._rest + chunk
        if self._size > MAX_BODY_BYTES or len(text) > MAX_EVENT_BYTES:
            raise ReplyTooLarge
        if not self._is_stream and not self._recognize(text):
            self._rest = text
            return
        text = text.removeprefix(_BOM)
        if b"\r" in text:
            text = self._normalize_line_ends(text)
        *lines, rest = text.split(b"\n")
        self._rest = rest
        yield from self._events(lines)

    def finish(self) -> Iterator[bytes]:
        """Yield the last event if the body ended without a blank line after it."""
        if self._is_stream:
            lines = [self._rest.rstrip(b"\r"), b""]
            self._rest = b""
            yield from self._events(lines)

    def _recognize(self, text: bytes) -> bool:
        if self._is_stream is None:
            start = text.removeprefix(_BOM).lstrip()[:5]
            # Fewer than five bytes do not tell "data" from other text: wait for more.
            if len(start) == 5 or start[:1] in (b"{", b"<", b":"):
                self._is_stream = start.startswith(_FIELDS)
        return bool(self._is_stream)

    def _normalize_line_ends(self, text: bytes) -> bytes:
        # A CR at the end may be the first half of a CRLF, so it waits for the next chunk.
        half = b"\r" if text.endswith(b"\r") else b""
        return text.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + half

    def _events(self, lines: list[bytes]) -> Iterator[bytes]:
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip())
            elif line:
                self._add_unusual_line(line)
            else:
                if self._data:
                    data = b"\n".join(self._data)
                    yield _as_error(data) if self._is_error else data
                self._data.clear()
                self._is_bare = self._is_error = False

    def _add_unusual_line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name in (b"event", b"error"):
            self._is_error = self._is_error or b"error" in (name, value.strip())
        if name == b"error":
            self._data.append(value.strip())
        elif line.startswith(b"{") or self._is_bare:
            # A proxy or a server that fails in the middle of a stream appends its error as plain JSON.
            self._is_bare = True
            self._data.append(line)


def _as_error(data: bytes) -> bytes:
    is_json = data.startswith((b"{", b"[", b'"'))
    return b'{"error":%b}' % (data if is_json else orjson.dumps(data.decode("utf-8", "replace")))


@dataclass(slots=True)
class _PartialCall:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])

    @property
    def is_complete(self) -> bool:
        try:
            return isinstance(orjson.loads("".join(self.arguments)), dict)
        except orjson.JSONDecodeError:
            return False


class ReplyBuilder:
    """Builds one reply. Feed it every chunk in order, then read `reply`."""

    def __init__(self, listener: ReplyListener | None = None) -> None:
        self.listener_called = False
        """Whether the listener received any part of the reply."""
        self.finish_reason = ""
        """The server's `finish_reason` in lower case; empty until there is one."""
        self._listener = listener
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[_PartialCall] = []
        self._by_index: dict[int, _PartialCall] = {}
        self._usage = Usage(calls=1)

    def feed(self, chunk: object) -> None:
        """Add one chunk of a stream, or a complete JSON reply.

        Raises:
            ServerFailed: The chunk reports a failure.
        """
        value = as_object(chunk)
        if _is_failure(value):
            raise ServerFailed(value)
        if usage := as_object(value.get("usage")):
            self._usage = _parse_usage(usage)
        choices = value.get("choices")
        if isinstance(choices, list) and choices:
            self._add_choice(as_object(cast("list[object]", choices)[0]))

    @property
    def reply(self) -> ModelReply:
        """The reply as far as it has arrived."""
        refusal = "".join(self._refusal)
        if refusal or _REFUSED_FINISH.search(self.finish_reason):
            # Calls that a content filter cut off must not run, and half a text is no reason.
            reason = refusal or f"the content filter of its server stopped the reply ({self.finish_reason})"
            return ModelReply(content=reason, finish="refused", usage=self._usage)
        calls = tuple(
            ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments))
            for call in self._calls
            if call.name or call.arguments
        )
        finish: FinishReason = "tool_calls" if calls else "stop"
        if _CUT_FINISH.search(self.finish_reason):
            finish = "length"
        return ModelReply(content="".join(self._text), tool_calls=calls, finish=finish, usage=self._usage)

    def _add_choice(self, choice: dict[str, object]) -> None:
        delta = as_object(choice.get("delta")) or as_object(choice.get("message"))
        if content := _join_text(delta.get("content")):
            self._add_text(content, self._text)
        if refusal := _join_text(delta.get("refusal")):
            self._add_text(refusal, self._refusal)
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            for piece in cast("list[object]", calls):
                self._add_call_piece(as_object(piece))
        if function := as_object(delta.get("function_call")):
            self._add_call_piece({"index": 0, "function": function})
        if usage := as_object(choice.get("usage")):
            self._usage = _parse_usage(usage)
        if choice.get("error"):
            raise ServerFailed(choice)
        self._finish(choice)

    def _finish(self, choice: dict[str, object]) -> None:
        # Gateways replace reasons that they do not know, and pass on the original.
        for name in ("native_finish_reason", "finish_reason"):
            if isinstance(reason := choice.get(name), str) and reason:
                self.finish_reason = re.sub(r"[\s.-]+", "_", reason).lower()
                if _FAILED_FINISH.search(self.finish_reason) and not _REFUSED_FINISH.search(self.finish_reason):
                    message = choice.get("finish_message") or f"finish_reason: {reason}"
                    raise ServerFailed({"error": {"code": self.finish_reason, "message": message}})

    def _add_text(self, text: str, parts: list[str]) -> None:
        parts.append(text)
        if self._listener is not None:
            self.listener_called = True
            self._listener.text(text)

    def _add_call_piece(self, piece: dict[str, object]) -> None:
        # Some servers leave out the `function` level.
        function = as_object(piece.get("function")) or piece
        name, call_id = _join_text(function.get("name")), _join_text(piece.get("id"))
        arguments = _arguments_text(function.get("arguments"))
        call = self._find_call(piece.get("index"), call_id, name, arguments)
        call.id = call.id or call_id
        if name and not call.arguments and not call.name.endswith(name):
            call.name += name  # a name may arrive in pieces too, always before the arguments
        if arguments:
            call.arguments.append(arguments)
            if self._listener is not None:
                self.listener_called = True
                self._listener.arguments(call.name, arguments)

    def _find_call(self, index: object, call_id: str, name: str, arguments: str) -> _PartialCall:
        number = index if isinstance(index, int) else None
        if number is not None:
            call = self._by_index.get(number)
        else:
            known = (call for call in self._calls if call_id and call.id == call_id)
            call = next(known, self._calls[-1] if self._calls else None)
        if call is None or _starts_new_call(call, call_id, name, arguments):
            call = _PartialCall()
            self._calls.append(call)
            if number is not None:
                self._by_index[number] = call
        return call


def _starts_new_call(call: _PartialCall, call_id: str, name: str, arguments: str) -> bool:
    """Return whether a piece that seems to continue `call` starts another one."""
    if call_id and call.id:
        return call_id != call.id and bool(name)
    # Nothing can follow a complete JSON object, so a name with arguments of its own starts another call.
    return bool(name and arguments and call.arguments) and call.is_complete


def _is_failure(chunk: dict[str, object]) -> bool:
    """Return whether a chunk reports a failure. Not every server puts it into `error`."""
    if chunk.get("error") or chunk.get("object") == "error" or chunk.get("type") == "error":
        return True
    # `"errors": null` and the like are in the chunks of some servers.
    return not chunk.get("choices") and any(chunk.get(name) for name in _FAILURE_FIELDS)


def as_object(value: object) -> dict[str, object]:
    """Return `value` if it is a JSON object, otherwise an empty one."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _join_text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [as_object(part) for part in cast("list[object]", value)]
        return "".join(_join_text(part.get("text")) for part in parts if part.get("type") in ("text", "refusal", None))
    return ""


def _arguments_text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value).decode()


def _parse_usage(usage: dict[str, object]) -> Usage:
    details = as_object(usage.get("prompt_tokens_details"))
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens", usage.get("prompt_cache_hit_tokens"))),
        completion_tokens=_count(usage.get("completion_tokens")),
        calls=1,
    )


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
