"""Puts a turn of the model together from the pieces that compatible servers really send.

The format is https://platform.openai.com/docs/api-reference/chat-streaming. Known departures, all understood here: no
`index` on tool calls, or the same one for all of them; a call whole in one piece; the name repeated in each piece; the
id only in the first piece, or never; arguments as an object; the legacy `function_call`; content as a list of parts;
a `message` where a `delta` belongs; a whole JSON answer instead of a stream; usage inside the choice.
"""

from dataclasses import dataclass, field
from typing import cast

import orjson

from app.domain.external.llm import FinishReason, ModelReply, ReplyListener
from app.domain.models.message import ToolCall, Usage

_BROKEN = ("error", "insufficient_system_resource")
"""Values of `finish_reason` by which a server says that it could not finish (OpenRouter, DeepSeek)."""


class BrokenReply(Exception):
    """The server gave up in the middle; `error` is what it said about it, an empty object when nothing."""

    def __init__(self, error: dict[str, object]) -> None:
        super().__init__("the model's server gave up in the middle of its answer")
        self.error = error


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list[str])

    @property
    def is_whole(self) -> bool:
        try:
            return isinstance(orjson.loads("".join(self.arguments)), dict)
        except orjson.JSONDecodeError:
            return False


class ReplyBuilder:
    """One turn under way. Feed it every chunk in order, then take `reply`."""

    def __init__(self, listener: ReplyListener | None = None) -> None:
        self.heard = False
        """Whether the listener was given anything."""
        self.finish = ""
        """The server's finish_reason, empty as long as there is none."""
        self._listener = listener
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._usage = Usage(calls=1)

    def feed(self, chunk: object) -> None:
        """Take in one chunk of a stream, or a whole JSON answer.

        Raises:
            BrokenReply: the server says in the stream that it failed.
        """
        value = as_object(chunk)
        if value.get("error"):
            error = value["error"]
            raise BrokenReply(as_object(error) or {"message": str(error)})
        if usage := as_object(value.get("usage")):
            self._usage = _usage(usage)
        choices = value.get("choices")
        if isinstance(choices, list) and choices:
            self._choice(as_object(cast("list[object]", choices)[0]))

    @property
    def reply(self) -> ModelReply:
        """The turn as it stands."""
        refusal = "".join(self._refusal)
        if refusal or self.finish == "content_filter":
            # Calls that a filter cut off are not for running.
            return ModelReply(content=refusal or "".join(self._text), finish="refused", usage=self._usage)
        calls = tuple(
            ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments))
            for call in self._calls
            if call.name or call.arguments
        )
        finish: FinishReason = "tool_calls" if calls else "stop"
        if self.finish in ("length", "max_tokens"):
            finish = "length"
        return ModelReply(content="".join(self._text), tool_calls=calls, finish=finish, usage=self._usage)

    def _choice(self, choice: dict[str, object]) -> None:
        delta = as_object(choice.get("delta")) or as_object(choice.get("message"))
        if content := _text(delta.get("content")):
            self._hear_text(content, self._text)
        if refusal := _text(delta.get("refusal")):
            self._hear_text(refusal, self._refusal)
        calls = delta.get("tool_calls")
        if isinstance(calls, list):
            for piece in cast("list[object]", calls):
                self._call_piece(as_object(piece))
        if function := as_object(delta.get("function_call")):
            self._call_piece({"index": 0, "function": function})
        if usage := as_object(choice.get("usage")):
            self._usage = _usage(usage)
        if finish := choice.get("finish_reason"):
            self.finish = str(finish)
            if self.finish in _BROKEN:
                raise BrokenReply({})

    def _hear_text(self, text: str, into: list[str]) -> None:
        into.append(text)
        if self._listener is not None:
            self.heard = True
            self._listener.text(text)

    def _call_piece(self, piece: dict[str, object]) -> None:
        # Some servers leave out the `function` level.
        function = as_object(piece.get("function")) or piece
        name, call_id = _text(function.get("name")), _text(piece.get("id"))
        arguments = _arguments(function.get("arguments"))
        call = self._find_call(piece.get("index"), call_id, name, arguments)
        call.id = call.id or call_id
        if name and not call.arguments and not call.name.endswith(name):
            call.name += name  # a name may come in pieces too, always before the arguments
        if arguments:
            call.arguments.append(arguments)
            if self._listener is not None:
                self.heard = True
                self._listener.arguments(call.name, arguments)

    def _find_call(self, index: object, call_id: str, name: str, arguments: str) -> _Call:
        number = index if isinstance(index, int) else None
        if number is not None:
            call = self._by_index.get(number)
        else:
            known = (call for call in self._calls if call_id and call.id == call_id)
            call = next(known, self._calls[-1] if self._calls else None)
        if call is None or _begins_another(call, call_id, name, arguments):
            call = _Call()
            self._calls.append(call)
            if number is not None:
                self._by_index[number] = call
        return call


def _begins_another(call: _Call, call_id: str, name: str, arguments: str) -> bool:
    """Whether a piece that seems to go on with `call` is the start of a new one."""
    if call_id and call.id:
        return call_id != call.id and bool(name)
    # Nothing can follow a whole JSON object, so what has a name and arguments of its own is another call.
    return bool(name and arguments and call.arguments) and call.is_whole


def as_object(value: object) -> dict[str, object]:
    """`value` when it is a JSON object, else an empty one."""
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [as_object(part) for part in cast("list[object]", value)]
        return "".join(_text(part.get("text")) for part in parts if part.get("type") in ("text", "refusal", None))
    return ""


def _arguments(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value).decode()


def _usage(usage: dict[str, object]) -> Usage:
    details = as_object(usage.get("prompt_tokens_details"))
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens", usage.get("prompt_cache_hit_tokens"))),
        completion_tokens=_count(usage.get("completion_tokens")),
        calls=1,
    )


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0
