"""Encoding of requests to `/chat/completions`, in the form that the strictest server takes.

Servers refuse different things, and a refused transcript ends its session. So every transcript is sent in the one form
that all of them take, whatever is in it:

- The system prompt comes first. Then the user's and the assistant's turns alternate, beginning with the user's; results
  of calls follow the turn with the calls. Where two turns of the transcript do not fit together, a short one is added
  between them. No text is empty.
- Each call has exactly one result, an id of nine letters and digits, a valid name, and a JSON object as arguments.
- A request whose history has calls offers at least one function.
- For a model without parallel calls, a turn with several calls becomes several turns with one call each.

Every message is encoded once, so a call costs what it adds. Its encoding depends only on the messages before it, so
each prompt extends the one before byte for byte, also in another process.

Wire format: https://platform.openai.com/docs/api-reference/chat/create
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never, cast
from weakref import WeakKeyDictionary

import orjson

from app.domain.external.llm import ModelRequest
from app.domain.models.message import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    Transcript,
    UserMessage,
)
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import Image, JsonObject, ToolSpec

MAX_TOOL_SETS = 64
"""Maximum number of encoded tool sets to keep. It bounds memory if a caller keeps creating new tuples."""

MAX_INVALID_ARGUMENTS = 2_000
"""Maximum number of characters of invalid arguments that the model is shown again."""

EMPTY = "(empty)"
"""Stands for a text that is empty or blank."""

BRIDGE = "OK."
"""An assistant's turn between a user's turn or results of calls and another user's turn."""

CONTINUE = "Continue."
"""A user's turn between two turns of the assistant, before the first one, and after the last one."""

NO_RESULT = "There is no result."
"""Stands for the missing result of a call."""

PICTURES = "The pictures of the results above, in their order:"
"""Introduces the pictures of tool results."""

_NO_FUNCTION = ToolSpec(
    name="no_function",
    description="Does nothing. Do not call it: there are no functions to call now.",
    parameters={"type": "object", "properties": {}},
)
_ONLY_NO_FUNCTION = (_NO_FUNCTION,)

_INVALID_IN_NAME = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME = 64
_MESSAGE_FIELDS = frozenset({"role", "content", "tool_calls", "tool_call_id"})
_CALL_FIELDS = frozenset({"id", "type", "function"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The parameters that a server supports, learned from its refusals."""

    usage_in_stream: bool = True
    temperature: bool = True
    completion_limit: bool = False
    """Whether the token limit is named `max_completion_tokens` (o-series) instead of `max_tokens`."""
    output_limit: int | None = None
    """Largest token limit that the server takes; None while it has refused none."""
    provider_fields: bool = True
    """Whether the server takes back the fields that it added to its own turns, such as `reasoning_content`."""
    pictures: bool = True
    """Whether the server takes pictures."""
    parallel_calls: bool = True
    """Whether the server takes several calls in one turn of the assistant; some chat templates do not."""


class RequestEncoder:
    """Encodes the requests to one model and caches the encoded messages and tools."""

    def __init__(self, *, profile: ModelProfile, temperature: float) -> None:
        self._profile = profile
        self._temperature = temperature
        self._transcripts: WeakKeyDictionary[Transcript, _EncodedTranscript] = WeakKeyDictionary()
        self._tools: dict[int, tuple[Sequence[ToolSpec], bytes]] = {}

    def encode(self, request: ModelRequest, dialect: Dialect) -> bytes:
        """Return the JSON body of `request`."""
        transcript = self._encode_transcript(request.transcript, dialect)
        rest = transcript.rest()
        # Servers that translate for Anthropic or Bedrock refuse calls in the history of a request without functions.
        tools = request.tools or (_ONLY_NO_FUNCTION if rest.calls else ())
        parameters = self._encode_parameters(request, dialect)
        return b"".join((parameters, self._encode_tools(tools), transcript.body, rest.body, b"]}"))

    def _encode_parameters(self, request: ModelRequest, dialect: Dialect) -> bytes:
        values: dict[str, object] = {"model": self._profile.model, "stream": True}
        if dialect.usage_in_stream:
            values["stream_options"] = {"include_usage": True}
        if dialect.temperature:
            values["temperature"] = self._temperature
        limit = request.max_tokens or self._profile.max_tokens
        limit = min(limit, dialect.output_limit or limit)
        values["max_completion_tokens" if dialect.completion_limit else "max_tokens"] = limit
        return orjson.dumps(values)[:-1]

    def _encode_tools(self, tools: Sequence[ToolSpec]) -> bytes:
        if not tools:
            return b',"messages":['
        known = self._tools.get(id(tools))
        if known is not None:
            return known[1]
        encoded = (
            b',"tools":'
            + orjson.dumps([_wire_tool(spec) for spec in tools], default=_mapping_to_dict)
            + b',"messages":['
        )
        if isinstance(tools, tuple):  # a list can change without changing its id
            if len(self._tools) >= MAX_TOOL_SETS:
                self._tools.clear()
            # The tuple is kept beside its encoding, so that no other object gets its id.
            self._tools[id(tools)] = (tools, encoded)
        return encoded

    def _encode_transcript(self, transcript: Transcript, dialect: Dialect) -> "_EncodedTranscript":
        source = self._profile.identity if dialect.provider_fields else None
        vision = self._profile.vision and dialect.pictures
        encoded = self._transcripts.get(transcript)
        parallel_calls = self._profile.parallel_calls and dialect.parallel_calls
        if encoded is None or (encoded.source, encoded.vision, encoded.parallel_calls) != (
            source,
            vision,
            parallel_calls,
        ):
            encoded = _EncodedTranscript(source=source, vision=vision, parallel_calls=parallel_calls)
            self._transcripts[transcript] = encoded
        for message in transcript.since(encoded.count):
            encoded.add(message)
        return encoded


@dataclass(slots=True, kw_only=True)
class _EncodedTranscript:
    """The messages of one transcript as JSON, without the brackets of the list."""

    source: str | None
    """Identity of the model whose provider fields are sent; None to send none."""
    vision: bool
    parallel_calls: bool
    body: bytearray = field(default_factory=bytearray)
    count: int = 0
    """Number of messages of the transcript that are encoded."""
    calls: int = 0
    """Number of calls in the encoded messages."""
    role: str = ""
    """Role of the last encoded message."""
    open_calls: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """IDs of the calls without a result: in the transcript, and as encoded."""
    held: list[tuple[AssistantMessage, ToolMessage | None]] = field(
        default_factory=list[tuple[AssistantMessage, ToolMessage | None]]
    )
    """Turns with one call each that wait until all of them have a result."""
    pictures: list[Image] = field(default_factory=list[Image])
    """Pictures of results that were encoded since the last turn with calls."""

    def add(self, message: Message) -> None:
        """Encode the next message of the transcript."""
        self.count += 1
        match message:
            case SystemMessage() if not self.role:
                self._write("system", {"content": _text(message.content)})
            case SystemMessage() | UserMessage():
                self._close_calls()
                self._write_user(_text(message.content))
            case AssistantMessage():
                self._close_calls()
                if self.parallel_calls or len(message.tool_calls) < 2:
                    self._write_turn(message)
                else:
                    self.held = [(turn, None) for turn in _single_calls(message)]
            case ToolMessage():
                self._add_result(message)
            case _:
                assert_never(message)

    def rest(self) -> "_EncodedTranscript":
        """Return what must follow the messages in a request that is sent now: it ends with a user's turn or a result.

        It is not part of the next request. A run has every result before it sends a request, so it is usually empty.
        """
        rest = replace(
            self,
            body=bytearray(),
            open_calls=self.open_calls.copy(),
            held=self.held.copy(),
            pictures=self.pictures.copy(),
        )
        rest.end()
        return rest

    def end(self) -> None:
        """Encode what makes the messages a complete request."""
        self._close_calls()
        if self.role not in ("user", "tool"):
            self._write("user", {"content": CONTINUE})

    def _write(self, role: str, fields: Mapping[str, object]) -> None:
        if self.role:
            self.body += b","
        self.body += _dumps({"role": role, **fields})
        self.role = role

    def _write_user(self, content: object) -> None:
        if self.role in ("user", "tool"):
            self._write("assistant", {"content": BRIDGE})
        self._write("user", {"content": content})

    def _write_turn(self, message: AssistantMessage) -> None:
        if self.role not in ("user", "tool"):
            self._write("user", {"content": CONTINUE})
        self._write("assistant", self._assistant_fields(message))

    def _assistant_fields(self, message: AssistantMessage) -> dict[str, object]:
        provided = message.provider_fields
        if provided is None or provided.source != self.source:
            message_fields: JsonObject = {}
            call_fields: Sequence[JsonObject] = ()
        else:
            message_fields, call_fields = provided.message, provided.calls
        fields: dict[str, object] = {"content": _text(message.content)}
        if message.tool_calls:
            calls = [self._open_call(call) for call in message.tool_calls]
            for call, more in zip(calls, call_fields, strict=False):
                _add_call_fields(call, more)
            fields = {"content": message.content if message.content.strip() else None, "tool_calls": calls}
        return fields | {name: value for name, value in message_fields.items() if name not in _MESSAGE_FIELDS}

    def _open_call(self, call: ToolCall) -> dict[str, object]:
        self.calls += 1
        # Nine letters and digits are what Mistral takes. The model's own id may be longer, repeated or empty.
        wire_id = f"c{self.calls:08}"
        self.open_calls.append((call.id, wire_id))
        function = {"name": _valid_name(call.name), "arguments": _valid_arguments(call.arguments)}
        return {"id": wire_id, "type": "function", "function": function}

    def _add_result(self, message: ToolMessage) -> None:
        """Encode the result of an open call. Leave out any other: no server takes it."""
        for index, (turn, result) in enumerate(self.held):
            if result is None and turn.tool_calls[0].id == message.tool_call_id:
                self.held[index] = (turn, message)
                if all(result for _, result in self.held):
                    self._close_calls()
                return
        call = next((call for call in self.open_calls if call[0] == message.tool_call_id), None)
        if call is None:
            return
        self.open_calls.remove(call)
        self._write("tool", {"tool_call_id": call[1], "content": _text(message.content)})
        if self.vision:
            self.pictures += message.images
        if not self.open_calls:
            self._close_calls()

    def _close_calls(self) -> None:
        """Encode the turns that wait, a result for each open call, then the pictures of all results."""
        held, self.held = self.held, []
        for turn, result in held:
            self._write_turn(turn)
            if result is None:
                self._close_calls()
            else:
                self._add_result(result)
        for _, wire_id in self.open_calls:
            self._write("tool", {"tool_call_id": wire_id, "content": NO_RESULT})
        self.open_calls.clear()
        if self.pictures:
            # Results of calls can hold only text at most servers.
            addresses = [f"data:{image.media_type};base64,{image.base64}" for image in self.pictures]
            parts = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
            self._write_user([{"type": "text", "text": PICTURES}, *parts])
            self.pictures.clear()


def _single_calls(message: AssistantMessage) -> list[AssistantMessage]:
    """Return the turn as turns with one call each. The first one has the text and the fields of the message."""
    turns: list[AssistantMessage] = []
    for index, call in enumerate(message.tool_calls):
        provided = message.provider_fields
        if provided is not None:
            provided = replace(provided, calls=provided.calls[index : index + 1])
        if index == 0:
            turns.append(replace(message, tool_calls=(call,), provider_fields=provided))
        else:
            provided = provided and replace(provided, message={})
            turns.append(AssistantMessage(tool_calls=(call,), provider_fields=provided))
    return turns


def _add_call_fields(call: dict[str, object], more: JsonObject) -> None:
    """Add the model's own fields to a call and to its function. What the encoder wrote stays."""
    function = more.get("function")
    if isinstance(function, Mapping):
        call["function"] = {**cast("JsonObject", function), **cast("JsonObject", call["function"])}
    call |= {name: value for name, value in more.items() if name not in _CALL_FIELDS}


def _text(text: str) -> str:
    return text if text.strip() else EMPTY


def _valid_name(name: str) -> str:
    return _INVALID_IN_NAME.sub("_", name)[:_MAX_NAME] or "unnamed"


def _valid_arguments(text: str) -> str:
    """Return the arguments, or a JSON object that shows the model what it wrote instead of one."""
    text = _well_formed(text)
    try:
        if isinstance(orjson.loads(text.strip() or "{}"), dict):
            return text if text.strip() else "{}"
    except orjson.JSONDecodeError:
        pass
    shown = text if len(text) <= MAX_INVALID_ARGUMENTS else f"{text[:MAX_INVALID_ARGUMENTS]}…"
    return json.dumps({"invalid_json": shown}, ensure_ascii=False)


def _well_formed(text: str) -> str:
    """Return `text` with lone surrogates replaced as in the store, so that a restart does not change the prompt."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _dumps(wire: Mapping[str, object]) -> bytes:
    try:
        return orjson.dumps(wire, default=_mapping_to_dict)
    except orjson.JSONEncodeError:
        # A lone surrogate, from a broken file name or a cut text, or an integer of more than 64 bits.
        return _well_formed(
            json.dumps(wire, ensure_ascii=False, separators=(",", ":"), default=_mapping_to_dict)
        ).encode()


def _mapping_to_dict(value: object) -> dict[object, object]:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[object, object]", value))
    raise TypeError(f"cannot be sent as JSON: {type(value).__name__}")


def _wire_tool(spec: ToolSpec) -> dict[str, object]:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}
