"""A valid stream, cut, repeated, reordered and encoded in random ways, is the same reply or a named failure."""

import json
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app.domain.external.llm import ModelReply
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.event_stream import EventDecoder
from app.infrastructure.llm.reply import ChunkLost, ReplyBuilder, ServerFailed
from tests.contract.llm.conftest import Listener

NAMES = ("shell_exec", "file_write", "a", "browser_view")
TOOLS = tuple(ToolSpec(name=name, description="", parameters={"type": "object"}) for name in NAMES)
WORDS = ("ha", "haha", '{"a":', "}", '"', "\\", "\n", "😀", "👩‍👩‍👧", "ü", "�", " ", "`", "x", "1", "data:", "[DONE]")
TEXT = st.lists(st.sampled_from(WORDS), max_size=12).map("".join) | st.text(max_size=20)
OBJECTS = st.dictionaries(
    TEXT, TEXT | st.integers(-9, 9) | st.none() | st.dictionaries(TEXT, TEXT, max_size=2), max_size=3
)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), OBJECTS), max_size=3)


@dataclass(frozen=True)
class Whole:
    """A reply as the model meant it."""

    text: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]


WHOLES = st.builds(
    lambda text, reasoning, calls, spaces: Whole(
        text, reasoning, tuple((name, json.dumps(value, ensure_ascii=False, indent=spaces)) for name, value in calls)
    ),
    TEXT,
    TEXT,
    CALLS,
    st.sampled_from((None, 1)),
)


class Server:
    """A server with the habits that its random source draws."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.has_index = rng.random() < 0.6
        self.ids = rng.choice(("every", "first", "none") if self.has_index else ("every", "first"))
        self.has_one_index = self.ids == "none" and rng.random() < 0.4
        self.repeats_names = rng.random() < 0.3
        self.grows = rng.random() < 0.25
        self.repeats_whole = rng.random() < 0.25
        self.cuts_characters = not self.grows and rng.random() < 0.5
        self.is_parallel = not self.has_one_index and (self.has_index or self.ids == "every")

    def cut(self, text: str) -> list[str]:
        """Cut a text anywhere, also between the halves of a character."""
        units = text.encode("utf-16-le") if self.cuts_characters else b""
        length = len(units) // 2 if units else len(text)
        places = sorted({0, length, *(self.rng.randrange(length + 1) for _ in range(self.rng.randrange(6)))})
        pairs = pairwise(places)
        if units:
            return [units[2 * a : 2 * b].decode("utf-16-le", "surrogatepass") for a, b in pairs]
        return [text[a:b] for a, b in pairs]

    def call_pieces(self, number: int, name: str, arguments: str) -> list[dict[str, Any]]:
        texts = ["", *self.cut(arguments)] if self.rng.random() < 0.5 else self.cut(arguments)
        if self.grows:
            texts = ["".join(texts[: end + 1]) for end in range(len(texts))]
        if self.repeats_whole:
            texts.append(arguments)
        pieces: list[dict[str, Any]] = []
        for position, text in enumerate(texts):
            piece: dict[str, Any] = {"function": {"arguments": text}}
            if position == 0 or (self.repeats_names and not self.has_one_index):
                piece["function"]["name"] = name
            if self.has_index:
                piece["index"] = 0 if self.has_one_index else number
            if self.ids == "every" or (self.ids == "first" and position == 0):
                piece["id"] = f"call_{number}"
            pieces.append({"tool_calls": [piece]})
        return pieces

    def deltas(self, whole: Whole) -> list[dict[str, Any]]:
        calls = [self.call_pieces(n, *call) for n, call in enumerate(whole.calls)]
        queues = [[{"content": piece} for piece in self.cut(whole.text)]]
        queues.append([{"reasoning_content": piece} for piece in self.cut(whole.reasoning)])
        queues += calls if self.is_parallel else [[piece for pieces in calls for piece in pieces]]
        result: list[dict[str, Any]] = []
        started = 0
        while queues := [queue for queue in queues if queue]:
            # Calls begin in their order; what follows may come in any.
            begun = [
                n
                for n, queue in enumerate(queues)
                if "tool_calls" not in queue[0] or not self._opens(queue[0], started)
            ]
            queue = queues[self.rng.choice(begun or [0])]
            delta = queue.pop(0)
            started = max(started, self._number(delta) + 1)
            result.append(delta)
        return result

    def _number(self, delta: dict[str, Any]) -> int:
        piece = delta.get("tool_calls", [{}])[0]
        number = str(piece.get("id", "")).removeprefix("call_") or piece.get("index", -1)
        return int(number)

    def _opens(self, delta: dict[str, Any], started: int) -> bool:
        """Return whether a piece begins a call before the one that is next."""
        return self.is_parallel and self._number(delta) > started

    def encode(self, deltas: list[dict[str, Any]], *, loses_part: bool = False) -> bytes:
        rng = self.rng
        end = rng.choice((b"\n", b"\r\n", b"\r"))
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "x": float("nan")})
        if rng.random() < 0.5:
            chunks.append({"choices": [], "usage": {"prompt_tokens": 3}})
        events: list[bytes] = []
        lost = rng.randrange(len(chunks)) if loses_part else None
        for number, chunk in enumerate(chunks):
            data = self.json(chunk)
            data = data[: rng.randrange(1, len(data))] if number == lost else data
            if events and rng.random() < 0.1 and b"\n" not in data:
                events[-1] += rng.choice((b"", b" ")) + data  # two objects in one event
            else:
                events.append(data)
        events += [b"[DONE]"] * (rng.random() < 0.8)
        body = b"\xef\xbb\xbf" * (rng.random() < 0.2)
        for data in events:
            if rng.random() < 0.15:
                body += rng.choice((b": ping", b":", b"event: message", b"id: 7", b"retry: 5")) + end
            if rng.random() < 0.1:
                body += b"data: keep-alive" + end + end
            for line in data.split(b"\n"):
                body += rng.choice((b"data: ", b"data:")) + line + end
            body += end
        return body

    def json(self, chunk: dict[str, Any]) -> bytes:
        spaces = self.rng.choice((None, None, 1))  # line feeds become several lines of data
        try:
            return json.dumps(chunk, ensure_ascii=self.rng.random() < 0.5, indent=spaces).encode()
        except UnicodeEncodeError:
            return json.dumps(chunk, indent=spaces).encode()


def read(body: bytes, rng: random.Random) -> tuple[ModelReply | None, Listener]:
    """Return the reply; None if it is a failure."""
    listener = Listener()
    builder = ReplyBuilder(listener, tools=TOOLS, source="model")  # type: ignore[arg-type]
    decoder, done, start = EventDecoder(), False, 0
    try:
        while start < len(body):
            size = rng.choice((1, 2, 7, 100, 10_000))
            for data in decoder.feed(body[start : start + size]):
                done = done or builder.feed_event(data)
            start += size
        for data in decoder.finish():
            done = done or builder.feed_event(data)
    except ChunkLost:
        return None, listener
    return (builder.finish() if builder.is_complete(done=done) else None), listener


def result(reply: ModelReply) -> Whole:
    fields = reply.provider_fields
    reasoning = str(fields.message.get("reasoning_content", "")) if fields else ""
    return Whole(reply.content, reasoning, tuple((call.name, call.arguments) for call in reply.tool_calls))


SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@SETTINGS
@given(WHOLES, st.integers(0, 2**32))
def test_stream_of_any_shape_is_the_same_reply(whole: Whole, seed: int) -> None:
    rng = random.Random(seed)
    server = Server(rng)
    # Without ids and indexes, the same call twice cannot be told from a repetition.
    assume(not server.has_one_index or len(set(whole.calls)) == len(whole.calls))
    reply, listener = read(server.encode(server.deltas(whole)), rng)
    assert reply is not None
    assert result(reply) == whole
    assert "".join(listener.pieces) == whole.text
    if not server.repeats_whole:
        assert sum(len(text) for _, text in listener.calls) == sum(len(text) for _, text in whole.calls)


@SETTINGS
@given(WHOLES, st.integers(0, 2**32))
def test_stream_that_lost_bytes_is_the_same_reply_or_a_failure(whole: Whole, seed: int) -> None:
    rng = random.Random(seed)
    server = Server(rng)
    assume(not server.has_one_index or len(set(whole.calls)) == len(whole.calls))
    loses_part = rng.random() < 0.5
    body = server.encode(server.deltas(whole), loses_part=loses_part)
    body = body if loses_part else body[: rng.randrange(len(body))]
    reply, _ = read(body, rng)
    assert reply is None or result(reply) == whole


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "choices", "delta", "message", "index", "content", "tool_calls", "function", "name", "arguments", "id", "usage",
    "finish_reason", "reasoning_details", "reasoning", "extra_content", "function_call", "refusal", "text", "type",
    "prompt_tokens_details", "completion_tokens", "thought_signature", "signature", "data",
)  # fmt: skip
ODD_CHUNKS = st.recursive(
    JSON_VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=12,
)


@SETTINGS
@given(
    st.lists(
        st.builds(
            lambda choice, more: {"choices": [choice], **more}, ODD_CHUNKS, JSON_VALUES.map(lambda x: {"usage": x})
        )
        | ODD_CHUNKS,
        max_size=5,
    )
)
def test_chunks_of_odd_types_never_raise_anything_else(chunks: list[object]) -> None:
    builder = ReplyBuilder(Listener(), tools=TOOLS, source="model")  # type: ignore[arg-type]
    try:
        for chunk in chunks:
            builder.feed_event(json.dumps(chunk).encode())
    except (ServerFailed, ChunkLost):
        return
    reply = builder.finish()
    json.dumps([reply.content, [call.arguments for call in reply.tool_calls]]).encode()
    assert reply.usage.prompt_tokens >= 0
