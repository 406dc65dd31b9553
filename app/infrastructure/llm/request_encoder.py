"""Encoding of requests to `/chat/completions`. Every message is encoded once, so a call costs what it adds.

Wire format: https://platform.openai.com/docs/api-reference/chat/create
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never
from weakref import WeakKeyDictionary

import orjson

from app.domain.external.llm import ModelRequest
from app.domain.models.message import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolMessage,
    Transcript,
    UserMessage,
)
from app.domain.models.tool import ToolSpec

MAX_TOOL_SETS = 64
"""Maximum number of encoded tool sets to keep. It bounds memory if a caller keeps creating new tuples."""


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


class RequestEncoder:
    """Encodes the requests to one model and caches the encoded messages and tools."""

    def __init__(self, *, model: str, temperature: float, max_tokens: int) -> None:
        self._model = model
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._transcripts: WeakKeyDictionary[Transcript, tuple[int, bytearray]] = WeakKeyDictionary()
        self._tools: dict[int, tuple[Sequence[ToolSpec], bytes]] = {}
        self._parameters: tuple[Dialect, bytes] | None = None

    def encode(self, request: ModelRequest, dialect: Dialect) -> bytes:
        """Return the JSON body of `request`."""
        messages = self._encode_messages(request.transcript)
        return b"".join((self._encode_parameters(dialect), self._encode_tools(request.tools), messages, b"]}"))

    def _encode_parameters(self, dialect: Dialect) -> bytes:
        if self._parameters is None or self._parameters[0] != dialect:
            values: dict[str, object] = {"model": self._model, "stream": True}
            if dialect.usage_in_stream:
                values["stream_options"] = {"include_usage": True}
            if dialect.temperature:
                values["temperature"] = self._temperature
            limit = min(self._max_tokens, dialect.output_limit or self._max_tokens)
            values["max_completion_tokens" if dialect.completion_limit else "max_tokens"] = limit
            self._parameters = (dialect, orjson.dumps(values)[:-1])
        return self._parameters[1]

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

    def _encode_messages(self, transcript: Transcript) -> bytearray:
        count, encoded = self._transcripts.get(transcript) or (0, bytearray())
        added = transcript.since(count)
        for message in added:
            if encoded:
                encoded += b","
            encoded += _encode_message(message)
        if added:
            self._transcripts[transcript] = (count + len(added), encoded)
        return encoded


def _mapping_to_dict(value: object) -> dict[object, object]:
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - any mapping at all
    raise TypeError(f"cannot be sent as JSON: {type(value).__name__}")


def _wire_tool(spec: ToolSpec) -> dict[str, object]:
    function = {"name": spec.name, "description": spec.description, "parameters": spec.parameters}
    return {"type": "function", "function": function}


def _encode_message(message: Message) -> bytes:
    wire = _wire_message(message)
    try:
        return orjson.dumps(wire)
    except orjson.JSONEncodeError:
        # A lone surrogate, from a broken file name or a cut text, has no UTF-8 encoding.
        return json.dumps(wire, ensure_ascii=False).encode("utf-8", "replace")


def _wire_message(message: Message) -> dict[str, object]:
    match message:
        case SystemMessage() | UserMessage():
            return {"role": message.role, "content": message.content}
        case ToolMessage():
            return {"role": "tool", "tool_call_id": message.tool_call_id, "content": message.content}
        case AssistantMessage(tool_calls=()):
            return {"role": "assistant", "content": message.content}
        case AssistantMessage():
            calls = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
            return {"role": "assistant", "content": message.content or None, "tool_calls": calls}
        case _:
            assert_never(message)
