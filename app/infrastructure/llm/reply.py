"""Assembly of a model's reply from the bytes that OpenAI-compatible servers send.

`ReplyBuilder` assembles the events of a stream, or one JSON reply. The format is
https://platform.openai.com/docs/api-reference/chat-streaming. Known deviations are accepted: calls whose pieces are
told apart in any of the ways of `call_pieces`; the legacy `function_call`; content as a list of parts; `message`
instead of `delta`, or after it; calls in another choice than the text; thinking and calls in the text; a complete
JSON reply instead of a stream; usage inside the choice; characters and objects cut in two; events that are not JSON.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

from app.domain.external.llm import FinishReason, ModelReply, ReplyListener
from app.domain.models.message import ProviderFields, ToolCall, Usage
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.call_pieces import CallAssembler, PartialCall, as_index
from app.infrastructure.llm.provider_fields import FieldCollector
from app.infrastructure.llm.reply_text import ReadText, read_text
from app.infrastructure.llm.text_gate import TextGate
from app.infrastructure.llm.wire_text import DONE, TextJoiner, clean, split_json

MIN_REPETITION = 20
"""Minimum number of characters of a piece of text that is taken for a repetition of everything so far."""

MAX_TORN_BYTES = 1024 * 1024
"""Maximum size of an object that is cut over several events, in bytes."""

_MODEL_NAME = re.compile(r"[\w.:/@+-]{1,100}")
_REFUSED_FINISH = re.compile(
    r"filter|sensitive|safety|recitation|blocklist|blocked|prohibited|spii|refus|guardrail|moderation|polic|toxic"
)
"""Matches values of `finish_reason` that report a content filter."""

MAX_FINISH = 100
"""Number of characters of a `finish_reason` that are read."""

_FAILED_FINISH = re.compile(
    r"error|fail|abort|time_?d?_?out|unavailable|overload|cancel|interrupt|disconnect|insufficient|malformed"
    r"|unexpected_tool|missing_thought"
)
"""Matches values that report a failure of the server or a malformed call: such a turn is no turn."""

_CUT_FINISH = re.compile(r"length|max\w*_tokens|token_limit|context_window")
"""Matches values that report a limit of the reply's length."""

_UNFINISHED = re.compile(f"{_REFUSED_FINISH.pattern}|{_CUT_FINISH.pattern}")

_CONTENT = re.compile(r"""["'](?:choices|delta|message|content|tool_calls|arguments|text)["']""")
"""Matches names of fields that carry a part of a reply."""

_FAILURE_FIELDS = (
    *("error_message", "error_msg", "error_code", "error_type", "errors", "detail", "details", "message", "Message"),
    "reason",
)
"""Fields of a chunk without choices that report a failure."""


class ServerFailed(Exception):
    """The server reported a failure inside its reply. `report` is the JSON object that says so."""

    def __init__(self, report: dict[str, object]) -> None:
        super().__init__("the model's server failed in the middle of its reply")
        self.report = report


class ChunkLost(Exception):
    """A part of the reply cannot be read, so the reply is not whole."""


class ReplyBuilder:
    """Builds one reply. Feed it every event in order, then call `finish`."""

    def __init__(
        self,
        listener: ReplyListener | None = None,
        *,
        tools: Sequence[ToolSpec] = (),
        source: str = "",
        is_thinking: bool = False,
    ) -> None:
        """Create the builder of one reply.

        Args:
            listener: Receives the reply while it arrives.
            tools: The functions that the request offers.
            source: Identity of the model, for its provider fields.
            is_thinking: Whether the text is expected to begin within the model's thinking.
        """
        self.was_thinking = is_thinking
        """Whether this text, or an earlier one of the model, began within its thinking."""
        self.listener_called = False
        """Whether the listener received any part of the reply."""
        self.finish_reason = ""
        """The server's `finish_reason` in lower case; empty until there is one."""
        self._listener = listener
        self._tools = tools
        self._source = source
        self._text: list[str] = []
        self._text_choice: int | None = None
        self._joiner = TextJoiner()
        self._gate = None if listener is None else TextGate(self._tell, has_tools=bool(tools), is_thinking=is_thinking)
        self._refusal: list[str] = []
        self._calls = CallAssembler(frozenset(tool.name for tool in tools))
        self._fields = FieldCollector()
        self._usage = Usage(calls=1)
        self._model = ""
        self._has_pieces = False
        self._torn = b""
        self._has_noise = False

    def feed_event(self, data: bytes) -> bool:
        """Add the data of one event and return whether it was `[DONE]`.

        Data that is not JSON is skipped, but half an object must go on in the next event.

        Raises:
            ServerFailed: The event reports a failure.
            ChunkLost: An object before this event is incomplete.
        """
        values, rest = split_json(self._torn + data)
        if self._torn and rest:
            if self.finish_reason:
                values, rest = split_json(data)
            elif b'"choices"' in data or len(self._torn) > MAX_TORN_BYTES:
                raise ChunkLost
        self._torn = rest.encode("utf-8", "surrogateescape") if _may_be_torn(rest) else b""
        self._has_noise = self._has_noise or bool(rest and not self._torn)
        for value in values:
            if value == DONE:
                return True
            for chunk in cast("list[object]", value) if isinstance(value, list) else [value]:
                self.feed(chunk)
        return False

    def is_complete(self, *, done: bool) -> bool:
        """Return whether the reply is whole. `done`: the server sent `[DONE]`."""
        # What is not JSON may have been an error message, after which the server sent only [DONE].
        return bool(self.finish_reason) or (done and not self._has_noise and not self._torn)

    def feed(self, chunk: object) -> None:
        """Add one chunk of a stream, or a complete JSON reply.

        Raises:
            ServerFailed: The chunk reports a failure.
            ChunkLost: The chunk is nested too deeply.
        """
        try:
            self._add_chunk(as_object(chunk))
        except RecursionError:
            raise ChunkLost from None

    def _add_chunk(self, value: dict[str, object]) -> None:
        if _is_failure(value):
            raise ServerFailed(value)
        if usage := as_object(value.get("usage")):
            self._usage = _parse_usage(usage)
        if isinstance(model := value.get("model"), str) and _MODEL_NAME.fullmatch(model):
            self._model = model
        choices = value.get("choices")
        if isinstance(choices, list):
            for position, item in enumerate(cast("list[object]", choices)):
                choice = as_object(item)
                number = as_index(choice.get("index"))
                self._add_choice(choice, position if number is None else number)

    def finish(self) -> ModelReply:
        """Return the reply. Nothing more arrives."""
        refusal = clean("".join(self._refusal))
        if refusal or _REFUSED_FINISH.search(self.finish_reason):
            # Calls that a content filter cut off must not run, and half a text is no reason.
            reason = refusal or f"the content filter of its server stopped the reply ({self.finish_reason})"
            return ModelReply(content=reason, finish="refused", usage=self._usage, model=self._model)
        partial = self._calls.finished()
        calls = [ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in partial]
        text = read_text(_without_repetition(self._text) + self._joiner.rest, self._tools)
        self.was_thinking = self.was_thinking or text.was_thinking
        if not calls and not text.content.strip() and not text.has_markup:
            text = self._calls_in_reasoning() or text
        # A server that parses calls may leave their markup in the text.
        text_calls = text.has_markup and not calls
        if text_calls:
            calls = [ToolCall(id="", name=call.name, arguments=call.arguments) for call in text.calls]
        self._tell_rest(text.content, calls if text_calls else [])
        finish: FinishReason = "tool_calls" if calls else "stop"
        if _CUT_FINISH.search(self.finish_reason):
            finish = "length"
        return ModelReply(
            content=text.content,
            tool_calls=tuple(calls),
            text_calls=text_calls,
            provider_fields=self._provider_fields(partial),
            finish=finish,
            usage=self._usage,
            model=self._model,
        )

    def _calls_in_reasoning(self) -> ReadText | None:
        """Return the calls of a model that does not end its reasoning before it makes them."""
        offered = {tool.name for tool in self._tools}
        for name in ("reasoning_content", "reasoning"):
            if isinstance(reasoning := self._fields.fields.get(name), str):
                text = read_text(reasoning, self._tools)
                if text.calls and all(call.name in offered for call in text.calls):
                    return replace(text, content="")
        return None

    def _tell_rest(self, content: str, text_calls: Sequence[ToolCall]) -> None:
        if self._listener is None or self._gate is None:
            return
        # Thoughts whose beginning was in the prompt are known as such only at their end.
        if not self._gate.finish(content) and not self._calls.calls:
            self._listener.restart()
            self._tell(content)
        for call in text_calls:
            self._listener.arguments(call.name, call.arguments)

    def _provider_fields(self, partial: Sequence[PartialCall]) -> ProviderFields | None:
        message, calls = self._fields.fields, tuple(call.fields.fields for call in partial)
        if not message and not any(calls):
            return None
        return ProviderFields(source=self._source, message=message, calls=calls if any(calls) else ())

    def _add_choice(self, choice: dict[str, object], number: int) -> None:
        if delta := as_object(choice.get("delta")):
            self._add_delta(delta, number)
            self._has_pieces = True
        if message := as_object(choice.get("message")):
            # Some servers send `message` instead of `delta`, others the complete message after its pieces.
            self._add_delta(self._add_whole(message) if self._has_pieces else message, number)
        if usage := as_object(choice.get("usage")):
            self._usage = _parse_usage(usage)
        if choice.get("error"):
            raise ServerFailed(choice)
        self._add_finish_reason(choice)

    def _add_whole(self, message: dict[str, object]) -> dict[str, object]:
        """Return what a complete message adds to its pieces."""
        content, known = _join_text(message.get("content")), "".join(self._text)
        new = {name: value for name, value in message.items() if name in self._fields.missing(message)}
        if not known.strip() or content.startswith(known):
            new["content"] = content[len(known) :] if known.strip() else content
        if not self._calls.calls:
            new |= {"tool_calls": message.get("tool_calls"), "function_call": message.get("function_call")}
        if not self._refusal:
            new["refusal"] = message.get("refusal")
        return new

    def _add_delta(self, delta: dict[str, object], number: int) -> None:
        self._fields.add_message(delta)
        content = _join_text(delta.get("content"))
        # The text is that of one choice. Calls may be in others.
        if content and self._text_choice in (None, number):
            self._text_choice = number if content.strip() else self._text_choice
            if text := self._joiner.feed(content):
                self._text.append(text)
                if self._gate is not None:
                    self._gate.feed(text)
        if refusal := _join_text(delta.get("refusal")):
            self._refusal.append(refusal)
            self._tell(clean(refusal))
        pieces = _call_pieces(delta)
        for name, arguments in self._calls.add(pieces, choice=number) if pieces else ():
            if self._listener is not None:
                self.listener_called = True
                self._listener.arguments(name, arguments)

    def _add_finish_reason(self, choice: dict[str, object]) -> None:
        # Gateways replace reasons that they do not know, and pass on the original.
        for name in ("native_finish_reason", "finish_reason"):
            if isinstance(reason := choice.get(name), str) and reason:
                reason = re.sub(r"[\s.-]+", "_", clean(reason[:MAX_FINISH])).lower()
                if _FAILED_FINISH.search(reason) and not _REFUSED_FINISH.search(reason):
                    message = choice.get("finish_message") or f"finish_reason: {reason}"
                    raise ServerFailed({"error": {"code": reason, "message": message}})
                # A second choice that ended well does not complete the first.
                if _REFUSED_FINISH.search(reason) or not _UNFINISHED.search(self.finish_reason):
                    self.finish_reason = reason

    def _tell(self, text: str) -> None:
        if self._listener is not None and text:
            self.listener_called = True
            self._listener.text(text)


def _call_pieces(delta: dict[str, object]) -> list[dict[str, object]]:
    """Return the pieces of calls in a delta."""
    calls = delta.get("tool_calls")
    if isinstance(calls, dict):  # one call, or calls by their index
        fields = cast("dict[str, object]", calls)
        calls = [fields] if "function" in fields or "name" in fields else list(fields.values())
    pieces = [as_object(piece) for piece in cast("list[object]", calls)] if isinstance(calls, list) else []
    function = as_object(delta.get("function_call"))
    # Some servers send a call in the new form and in the old one.
    return pieces or ([{"index": 0, "function": function}] if function else [])


def _without_repetition(pieces: Sequence[str]) -> str:
    """Return the text of pieces of which each, or the last one, repeats everything so far."""
    last = pieces[-1] if pieces else ""
    if len(pieces) > 2 and len(last) >= MIN_REPETITION:
        pairs = pairwise(pieces)
        if all(len(left) < len(right) and right.startswith(left) for left, right in pairs):
            return last
        if len(last) * 2 == sum(map(len, pieces)) and last == "".join(pieces[:-1]):
            return last
    return "".join(pieces)


def _may_be_torn(text: str) -> bool:
    """Return whether text that is not JSON may be a part of a chunk, and not just noise."""
    is_cut = text.startswith(("{", "[{")) and not text.rstrip().endswith("}")
    return is_cut or bool(_CONTENT.search(text))


def _is_failure(chunk: dict[str, object]) -> bool:
    """Return whether a chunk reports a failure. Not every server puts it into `error`."""
    if chunk.get("error") or chunk.get("object") == "error" or chunk.get("type") == "error":
        return True
    if as_object(chunk.get("base_resp")).get("status_code"):
        return True
    # `"errors": null` and the like are in the chunks of some servers.
    return not chunk.get("choices") and any(chunk.get(name) for name in _FAILURE_FIELDS)


def as_object(value: object) -> dict[str, object]:
    """Return `value` if it is a JSON object, otherwise an empty one."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _join_text(value: object) -> str:
    """Return the text of a content: a string, a part, or a list of both."""
    if isinstance(value, list):
        return "".join(_join_text(part) for part in cast("list[object]", value))
    if isinstance(value, dict):
        part = cast("dict[str, object]", value)
        return _join_text(part.get("text")) if part.get("type") in ("text", "output_text", "refusal", None) else ""
    return value if isinstance(value, str) else ""


def _parse_usage(usage: dict[str, object]) -> Usage:
    prompt = as_object(usage.get("prompt_tokens_details")) or usage
    completion = as_object(usage.get("completion_tokens_details")) or usage
    cached = (prompt.get("cached_tokens"), usage.get("prompt_cache_hit_tokens"), usage.get("cache_read_input_tokens"))
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=max(map(_count, cached)),
        completion_tokens=_count(usage.get("completion_tokens")),
        reasoning_tokens=_count(completion.get("reasoning_tokens")),
        calls=1,
    )


def _count(value: object) -> int:
    number = as_index(value)
    return number if number is not None and number > 0 else 0
