"""What a model's server sends, whatever it is: a reply that can be stored and read back, or a named failure."""

import itertools
import json
import random
from collections.abc import AsyncIterator, Sequence

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.external.llm import ModelReply
from app.domain.models.event import TERMINAL, ToolCallingEvent
from app.domain.models.message import AssistantMessage
from app.domain.models.model_profile import ModelProfile
from app.domain.models.tool import OpenCall
from app.domain.services.agents.limits import RunLimits
from app.domain.services.tools.arguments import BadArguments
from app.domain.services.tools.base import RunCall, ToolContext
from app.domain.services.tools.registry import EXECUTING
from app.infrastructure.llm.event_stream import EventDecoder, ReplyTooLarge
from app.infrastructure.llm.openai_model import OpenAIModel
from app.infrastructure.llm.reply import ChunkLost, ReplyBuilder, ServerFailed
from app.infrastructure.llm.wire_text import split_json
from app.infrastructure.persistence import codec
from app.infrastructure.queue.supervisor import InlineRunQueue
from app.interfaces.wire import encode_event
from tests.contract.llm.conftest import FakeSleep, Listener
from tests.contract.llm.test_strict_runs import WORK, StrictSession
from tests.fakes.scripted_openai import Answer, Raw, ScriptedOpenAI, Status
from tests.support.agent_runs import make_worker
from tests.support.fuzzing import examples

SPECS = tuple(tool.spec for tool in EXECUTING.values())
NAMES = st.sampled_from([spec.name for spec in SPECS] + ["create_plan", "", "no_such", "python", "\ud800"])

NUMBERS = st.sampled_from(("NaN", "Infinity", "-1e999", "1" + "0" * 400, "1" + "0" * 5_000, "-0", "1e5", "9" * 19))
DEEP = st.builds(
    lambda mark, depth, closed: mark[0] * depth + (mark[1] * depth if closed else ""),
    st.sampled_from(("[]", '{"a":|}'.partition("|")[::2], "{}", "([")),
    st.sampled_from((1, 5, 300, 3_000)),
    st.booleans(),
)
STRINGS = st.sampled_from(
    (
        "\\ud800",
        "\\udc00\\ud83d",
        "\\ud83d\\ude00",
        "\\u0000",
        "\x00",
        "\u2028",
        "</think>",
        "<think>",
        "<tool_call>",
        "</tool_call>",
        "<|python_tag|>",
        "[TOOL_CALLS]",
        "```json",
        "```",
        "<function=shell_exec>",
        "{'a': 1}",
        '\\"',
        "data: ",
        "[DONE]",
        "a" * 5_000,
    )
) | st.text(max_size=8).map(lambda text: json.dumps(text)[1:-1])
VALUES = st.recursive(
    STRINGS.map('"{}"'.format) | NUMBERS | DEEP | st.sampled_from(("null", "true", "{}", "[]", "")),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[{','.join(each)}]")
        | st.dictionaries(STRINGS, inner, max_size=3).map(
            lambda each: "{" + ",".join(f'"{name}":{value}' for name, value in each.items()) + "}"
        )
    ),
    max_leaves=5,
)
ARGUMENT_NAMES = sorted({name for spec in SPECS for name in spec.parameters.get("properties", {})})  # type: ignore[union-attr]
ARGUMENTS = (
    st.dictionaries(st.sampled_from(ARGUMENT_NAMES) | STRINGS, VALUES, max_size=4).map(
        lambda each: "{" + ",".join(f'"{name}":{value}' for name, value in each.items()) + "}"
    )
    | VALUES
    | st.text(max_size=20)
)
FIELDS = ("content", "reasoning_content", "refusal", "role", "tool_calls", "function_call", "reasoning_details")


@st.composite
def calls(draw: st.DrawFn) -> str:
    parts = {
        "index": draw(st.sampled_from(("0", "1", "-1", '"0"', "1e9", "null", "{}")) | VALUES),
        "id": draw(VALUES),
        "function": f'{{"name":{json.dumps(draw(NAMES))},"arguments":{json.dumps(draw(ARGUMENTS))}}}',
    }
    kept = draw(st.lists(st.sampled_from(tuple(parts)), unique=True, min_size=1))
    return f"[{{{','.join(f'{json.dumps(name)}:{parts[name]}' for name in kept)}}}]"


@st.composite
def chunks(draw: st.DrawFn) -> str:
    """Return a chunk of a stream: right, odd, or wrong."""
    name = draw(st.sampled_from(FIELDS))
    value = draw(calls() if name == "tool_calls" else STRINGS.map('"{}"'.format) | VALUES)
    inside = draw(st.sampled_from(("delta", "delta", "message")))
    finish = draw(st.sampled_from(("null", "null", '"stop"', '"tool_calls"', '"length"', '"content_filter"', "7")))
    usage = draw(st.sampled_from(("null", '{"prompt_tokens":3}')) | VALUES.map('{{"prompt_tokens":{}}}'.format))
    return f'{{"choices":[{{"index":0,"{inside}":{{"{name}":{value}}},"finish_reason":{finish}}}],"usage":{usage}}}'


EVENTS = st.one_of(
    chunks().map(lambda text: f"data: {text}\n\n".encode("utf-8", "surrogatepass")),
    chunks().map(lambda text: f"data: {text}\r\n\r\n".encode("utf-8", "surrogatepass")),
    VALUES.map(lambda text: f"data: {text}\n\n".encode("utf-8", "surrogatepass")),
    st.sampled_from(
        (
            b"data: [DONE]\n\n",
            b": ping\n\n",
            b"event: error\n",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\r",
            b"\n",
            b"data: ",
            b'data: {"error":{"message":"no"}}\n\n',
            b"<html>",
            b'{"choices":[',
        )
    ),
    st.binary(max_size=20),
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Return the body of a response: events, of which some bytes were lost, doubled or exchanged."""
    body = b"".join(draw(st.lists(EVENTS, max_size=6)))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 3)))):
        start = draw(st.integers(0, len(body)))
        end = start + draw(st.integers(0, 8))
        body = body[:start] + draw(st.sampled_from((b"", body[start:end] * 2, b"\0", b"\xc3", b'"'))) + body[end:]
    return body


def read(body: bytes, sizes: Sequence[int]) -> ModelReply | None:
    """Return the reply in `body`, as the adapter reads it in pieces; None if it is a failure."""
    builder, decoder, done, start = ReplyBuilder(Listener(), tools=SPECS, source="m"), EventDecoder(), False, 0  # type: ignore[arg-type]
    rng = random.Random(len(body))
    try:
        while start < len(body):
            size = rng.choice(sizes)
            for data in decoder.feed(body[start : start + size]):
                done = done or builder.feed_event(data)
            start += size
        for data in decoder.finish():
            done = done or builder.feed_event(data)
        if plain := (decoder.plain_body or b"").strip():
            for value in split_json(plain)[0]:
                builder.feed(value)
    except (ServerFailed, ChunkLost, ReplyTooLarge):
        return None
    return builder.finish()


def check_stored(reply: ModelReply) -> None:
    """Check that a turn survives storing, and that its events are JSON in UTF-8."""
    turn = AssistantMessage(content=reply.content, tool_calls=reply.tool_calls, provider_fields=reply.provider_fields)
    row = codec.encode_message(turn)
    orjson.loads(row)
    "".join((reply.content, *(call.name + call.arguments for call in reply.tool_calls))).encode()
    [again] = codec.decode_messages([row])
    assert codec.encode_message(again) == row
    for count in (reply.usage.prompt_tokens, reply.usage.cached_tokens, reply.usage.completion_tokens):
        assert 0 <= count <= 10**9


def check_calls(reply: ModelReply) -> None:
    """Check that the arguments of a call are taken, or refused with a text for the model; never anything else."""
    context = ToolContext(session_id="s", shared=None)  # type: ignore[arg-type]
    for call in reply.tool_calls:
        for tool in EXECUTING.values():
            try:
                bound = tool.bind(call.arguments, context)
            except BadArguments as error:
                str(error).encode("utf-8", "replace")
                continue
            if isinstance(bound, RunCall):
                opened = OpenCall(id="c", toolkit=bound.toolkit, function=tool.spec.name, args=bound.args)
                orjson.loads(encode_event(ToolCallingEvent.of(opened), 1, 0))


@examples(100, 30_000)
@given(bodies(), st.sampled_from(([1], [7, 100], [10_000], [1, 2, 3])))
def test_any_body_is_a_reply_that_can_be_stored_or_a_named_failure(body: bytes, sizes: list[int]) -> None:
    reply = read(body, sizes)
    if reply is not None:
        check_stored(reply)
        check_calls(reply)


@examples(250, 30_000)
@given(st.sampled_from([*EXECUTING.values()]), ARGUMENTS)
def test_any_arguments_are_taken_or_refused_with_a_text(tool: object, arguments: str) -> None:
    try:
        bound = tool.bind(arguments, ToolContext(session_id="s", shared=None))  # type: ignore[attr-defined, arg-type]
    except BadArguments as error:
        assert str(error)
        return
    if isinstance(bound, RunCall):
        opened = OpenCall(id="c", toolkit=bound.toolkit, function="f", args=bound.args)
        orjson.loads(encode_event(ToolCallingEvent.of(opened), 1, 0))


class ShortSession(StrictSession):
    """A session whose runs rest after a few model calls."""

    def _queue(self) -> InlineRunQueue:
        worker = make_worker(
            self.store, self.model, sandboxes=self.sandboxes, browsers=self.browsers, limits=RunLimits(max_calls=12)
        )
        return InlineRunQueue(worker)


@pytest.fixture
async def model() -> AsyncIterator[tuple[ScriptedOpenAI, OpenAIModel]]:
    """Yield a server and a model that calls it. To wait between two attempts takes no time."""
    sleep = FakeSleep()
    with ScriptedOpenAI() as server:
        model = OpenAIModel(
            api_key="k",
            base_url=server.url,
            model="m",
            profile=ModelProfile(model="m"),
            timeout_seconds=5,
            sleep=sleep.sleep,
            timer=sleep.time,
        )
        yield server, model
        await model.close()


ANSWERS = st.one_of(
    st.none(),  # a reply that carries the run on
    bodies().map(lambda body: Raw(pieces=[body[:50], body[50:]])),
    bodies().map(lambda body: Raw(pieces=[body], cut=True)),
    bodies().map(lambda body: Raw(pieces=[body], content_type="application/json")),
    st.builds(
        Status, status=st.sampled_from((200, 204, 400, 401, 404, 413, 429, 500, 503, 599)), body=VALUES | st.text()
    ),
)


@examples(15, 1_500)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=4))
async def test_run_with_any_replies_ends_with_json_events(
    model: tuple[ScriptedOpenAI, OpenAIModel], answers: list[Answer | None]
) -> None:
    turns = itertools.cycle(answers)
    model[0].script = lambda asked: next(turns) or WORK(asked)
    session = ShortSession(*model)
    await session.open()
    try:
        assert await session.run() in TERMINAL
    finally:
        await session.queue.close()
    for record in await session.store.read("s", after=0, limit=10_000):
        orjson.loads(record.data)
        assert b"something went wrong inside the service" not in record.data
