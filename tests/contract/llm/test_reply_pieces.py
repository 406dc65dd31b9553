"""Pieces of replies as unusual servers send them: which call they belong to, cut characters, fields to send back."""

import time
from typing import Any, cast

import orjson
import pytest

from app.domain.errors import ModelFailure
from app.domain.models.message import ProviderFields, Usage
from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.provider_fields import FieldCollector
from tests.fakes.scripted_openai import Raw

END = [b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', b"data: [DONE]\n\n"]
TOOLS = tuple(
    ToolSpec(name=name, description="", parameters={"type": "object"})
    for name in ("shell_exec", "file_write", "a", "b")
)


def event(*choices: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps({"choices": choices}) + b"\n\n"


def delta(**fields: Any) -> bytes:
    return event({"index": 0, "delta": fields})


def call(name: str | None = None, arguments: Any = None, **fields: Any) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {**fields, "function": function}


def deltas(*pieces: dict[str, Any] | list[dict[str, Any]]) -> list[bytes]:
    return [delta(tool_calls=piece if isinstance(piece, list) else [piece]) for piece in pieces]


NESTED = '{"a":{"a":1}}'
CALL_PIECES = {
    "no id, second name at the same index": (
        deltas(
            call("shell_exec", "", index=0),
            call(None, '{"x":', index=0),
            call(None, "1}", index=0),
            call("file_write", "", index=0),
            call(None, '{"y":2}', index=0),
        ),
        [("shell_exec", '{"x":1}'), ("file_write", '{"y":2}')],
    ),
    "no id, two offered names without arguments": (
        deltas(call("shell_exec", "", index=0), call("file_write", "", index=0)),
        [("shell_exec", ""), ("file_write", "")],
    ),
    "no id, the same function again with its arguments in pieces": (
        deltas(
            call("a", "", index=0),
            call(None, '{"x":1}', index=0),
            call("a", "", index=0),
            call(None, '{"y":2}', index=0),
        ),
        [("a", '{"x":1}'), ("a", '{"y":2}')],
    ),
    "each piece repeats everything so far": (
        deltas(*(call("a", text, index=0) for text in ("{", '{"a', '{"a":1', '{"a":1}', '{"a":1}'))),
        [("a", '{"a":1}')],
    ),
    "the whole comes once more at the end": (
        deltas(call("a", '{"a"', index=0, id="1"), call(None, ":1}", index=0), call("a", '{"a":1}', index=0, id="1")),
        [("a", '{"a":1}')],
    ),
    "the whole comes once more, written differently": (
        deltas(call("a", '{"a"', index=0, id="1"), call(None, ":1}", index=0), call(None, '{ "a": 1 }', index=0)),
        [("a", '{"a":1}')],
    ),
    "an empty object before the arguments": (
        deltas(call("a", "{}", index=0, id="1"), call(None, '{"a"', index=0), call(None, ":1}", index=0)),
        [("a", '{"a":1}')],
    ),
    "arguments that contain their own beginning": (
        deltas(*(call("a", text, index=0, id="1") for text in ('{"a":', '{"a":', "1}}"))),
        [("a", NESTED)],
    ),
    "arguments that repeat one text": (
        deltas(call("a", '{"x":"', index=0), *(call(None, text, index=0) for text in ("ha", "ha", "haha", '"}'))),
        [("a", '{"x":"hahahaha"}')],
    ),
    "continuations told apart by place, one index": (
        deltas(
            [call("a", "", index=0), call("b", "", index=0)],
            [call(None, '{"x"', index=0), call(None, '{"y"', index=0)],
            [call(None, ":1}", index=0), call(None, ":2}", index=0)],
        ),
        [("a", '{"x":1}'), ("b", '{"y":2}')],
    ),
    "continuations told apart by place, no index": (
        deltas(
            [call("a", ""), call("a", "")],
            [call(None, '{"x"'), call(None, '{"y"')],
            [call(None, ":1}"), {}],
            [call(None, ":2}")],
        ),
        [("a", '{"x":1}'), ("a", '{"y":2}')],
    ),
    "two pieces of one call in one delta": (
        deltas([call("a", "", index=0, id="1")], [call(None, '{"x"', index=0), call(None, ":1}", index=0)]),
        [("a", '{"x":1}')],
    ),
    "interleaved calls told apart by id": (
        deltas(
            call("a", '{"x"', index=0, id="1"),
            call("b", '{"y"', index=0, id="2"),
            call(None, ":1}", index=0, id="1"),
            call(None, ":2}", index=0, id="2"),
        ),
        [("a", '{"x":1}'), ("b", '{"y":2}')],
    ),
    "index counts the pieces": (
        deltas(call("a", '{"x"', index=0, id="1"), call(None, ":", index=1), call(None, "1}", index=2)),
        [("a", '{"x":1}')],
    ),
    "index as text": (
        deltas(
            call("a", '{"x"', index="0"),
            call("b", '{"y"', index="1"),
            call(None, ":1}", index="0"),
            call(None, ":2}", index="1"),
        ),
        [("a", '{"x":1}'), ("b", '{"y":2}')],
    ),
    "a name in pieces that are no functions": (
        deltas(call("file", "", index=0, id="1"), call("_write", "", index=0), call(None, "{}", index=0)),
        [("file_write", "{}")],
    ),
    "a name in growing pieces": (
        deltas(call("shell", "", index=0, id="1"), call("shell_exec", "", index=0), call(None, "{}", index=0)),
        [("shell_exec", "{}")],
    ),
    "the old form beside the new one": (
        [delta(tool_calls=[call("a", "{}", id="1", index=0)], function_call={"name": "a", "arguments": "{}"})],
        [("a", "{}")],
    ),
    "an object instead of a list": (
        [delta(tool_calls=call("a", "{}", id="1")), delta(tool_calls={"1": call("b", "{}", id="2")})],
        [("a", "{}"), ("b", "{}")],
    ),
    "calls in two choices": (
        [
            event({"index": 0, "delta": {"tool_calls": [call("a", "{}", index=0)]}}),
            event({"index": 1, "delta": {"tool_calls": [call("b", "{}", index=0)]}}),
        ],
        [("a", "{}"), ("b", "{}")],
    ),
    "the same call in two choices": (
        [event(*({"index": n, "delta": {"tool_calls": [call("a", "{}", index=0, id="1")]}} for n in range(2)))],
        [("a", "{}")],
    ),
    "an emoji cut in two": (
        [
            part.replace(b"HIGH", b"\\ud83d").replace(b"LOW", b"\\ude00")
            for part in deltas(call("a", '{"x":"HIGH', index=0), call(None, 'LOW"}', index=0))
        ],
        [("a", '{"x":"😀"}')],
    ),
}


@pytest.mark.parametrize(("events", "expected"), CALL_PIECES.values(), ids=CALL_PIECES)
async def test_pieces_of_calls_find_their_call(server, model, ask, listener, events, expected) -> None:
    server.script = [Raw(pieces=[*events, *END])]
    reply = await model.complete(ask(tools=TOOLS), listener=listener)
    assert [(call.name, call.arguments) for call in reply.tool_calls] == expected


async def test_listener_receives_repeated_arguments_once(server, model, ask, listener) -> None:
    texts = ("{", '{"a', '{"a":1', '{"a":1}', '{"a":1}')
    server.script = [Raw(pieces=[*deltas(*(call("a", text, index=0) for text in texts)), *END])]
    await model.complete(ask(tools=TOOLS), listener=listener)
    assert "".join(text for _, text in listener.calls) == '{"a":1}'


async def test_text_in_one_choice_and_call_in_another_are_one_turn(server, model, ask) -> None:
    choices = (
        {"index": 0, "delta": {"content": "Yes."}},
        {"index": 1, "delta": {"tool_calls": [call("a", "{}", id="1")]}},
    )
    ends = (
        {"index": 1, "delta": {}, "finish_reason": "tool_calls"},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    )
    server.script = [Raw(pieces=[event(*choices), event(*ends)])]
    reply = await model.complete(ask(tools=TOOLS))
    assert (reply.content, [call.name for call in reply.tool_calls]) == ("Yes.", ["a"])


async def test_complete_message_after_its_pieces_adds_only_what_is_missing(server, model, ask, listener) -> None:
    message = {"role": "assistant", "content": "Yes, it is.", "tool_calls": [call("a", "{}", id="1")]}
    end = event({"index": 0, "message": {**message, "reasoning_content": "hm"}, "finish_reason": "stop"})
    server.script = [Raw(pieces=[delta(content="Yes,", reasoning_content="hm"), *deltas(call("a", "{}", id="1")), end])]
    reply = await model.complete(ask(tools=TOOLS), listener=listener)
    assert (reply.content, "".join(listener.pieces)) == ("Yes, it is.", "Yes, it is.")
    assert [call.arguments for call in reply.tool_calls] == ["{}"]
    assert reply.provider_fields == ProviderFields(source=model.profile.identity, message={"reasoning_content": "hm"})


def raw_delta(content: bytes) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"' + content + b'"}}]}\n\n'


ODD_CHUNKS = {
    "emoji cut in two": ([raw_delta(b"FINAL \\ud83d"), raw_delta(b"\\ude00 done")], "FINAL 😀 done"),
    "half an emoji": ([raw_delta(b"FINAL \\ud83d"), raw_delta(b" done")], "FINAL \ufffd done"),
    "half an emoji at the end": ([raw_delta(b"FINAL \\ud83d")], "FINAL \ufffd"),
    "UTF-8 cut between events": ([raw_delta(b"\xf0\x9f"), raw_delta(b"\x98\x80 Gr\xc3"), raw_delta(b"\xbc")], "😀 Grü"),
    "invalid UTF-8": ([raw_delta(b"a\xffb")], "a\ufffdb"),
    "two objects in one line": (
        [raw_delta(b"a").strip() + b' {"choices":[{"delta":{"content":"b"}}]}\n\n', raw_delta(b"c")],
        "abc",
    ),
    "two lines without a blank line": ([raw_delta(b"a").rstrip() + b"\n", raw_delta(b"b")], "ab"),
    "object and [DONE] in one event": ([raw_delta(b"a"), END[0].rstrip() + b"\ndata: [DONE]\n\n"], "a"),
    "NaN in a field": (
        [b'data: {"x":NaN,"y":-Infinity,"usage":{"prompt_tokens":NaN},"choices":[{"delta":{"content":"a"}}]}\n\n'],
        "a",
    ),
    "raw line feed in a text": ([raw_delta(b"a\tb")], "a\tb"),
    "text that is not JSON": ([raw_delta(b"a"), b"data: keep-alive\n\n", b"data: {oops}\n\n", raw_delta(b"b")], "ab"),
    "JSON that is no chunk": ([raw_delta(b"a"), b'data: null\n\ndata: 5\n\ndata: "x"\n\ndata: []\n\n'], "a"),
    "a list of chunks": ([b'data: [{"choices":[{"delta":{"content":"a"}}]}]\n\n'], "a"),
    "an object cut over two events": (
        [b'data: {"choices":[{"delta":{"con\n\n', b'data: tent":"a"}}]}\n\n', raw_delta(b"b")],
        "ab",
    ),
    "line feeds within JSON": ([b'data: {\n"choices": [\n{"delta": {"content": "a\nb"}}]}\n\n'], "a\nb"),
    "byte order mark within the stream": ([raw_delta(b"a"), raw_delta(b"b").replace(b"{", b"\xef\xbb\xbf{", 1)], "ab"),
    "the whole text once more": (
        [raw_delta(b"one two"), raw_delta(b" three four five"), raw_delta(b"one two three four five")],
        "one two three four five",
    ),
    "each piece repeats the text": (
        [raw_delta(b"one two"), raw_delta(b"one two three"), raw_delta(b"one two three four five")],
        "one two three four five",
    ),
    "odd types": (
        [
            b'data: {"choices":null}\n\ndata: {"choices":[null,5]}\n\n',
            b'data: {"choices":[{"delta":null}],"usage":"none"}\n\n',
            b'data: {"choices":[{"delta":{"content":{"type":"text","text":"a"},"tool_calls":"none"},"index":{}}]}\n\n',
            b'data: {"choices":[{"delta":{"tool_calls":[null,3],"function_call":"x","refusal":[]}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":[null,"b"]}}]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":"5","completion_tokens":-1,"prompt_tokens_details":[]}}\n\n',
        ],
        "ab",
    ),
}


@pytest.mark.parametrize(("events", "expected"), ODD_CHUNKS.values(), ids=ODD_CHUNKS)
async def test_odd_chunk_does_not_end_the_reply(server, model, ask, listener, events, expected) -> None:
    server.script = [Raw(pieces=[*events, *END])]
    reply = await model.complete(ask(), listener=listener)
    assert reply.content == expected
    assert "".join(listener.pieces) == expected
    assert (listener.restarts, reply.tool_calls) == (int("one two" in expected), ())


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([b'data: {"choices":[{"delta":{"content":"a"\n\n', raw_delta(b"b"), *END], id="half a chunk"),
        pytest.param([raw_delta(b"a"), b"data: upstream failed\n\n", END[1]], id="a message and no finish_reason"),
        pytest.param(
            [raw_delta(b"a"), b'data: {"choices":[{"delta":{"content":"b\n\n', END[1]], id="half a last chunk"
        ),
        pytest.param([raw_delta(b"a"), b'data: {"choices":[{"delta":{"content":bad}}]}\n\n', *END], id="a broken text"),
        pytest.param([raw_delta(b"a"), b"data: {'choices':[{'delta':{'content':'b'}}]}\n\n", *END], id="Python"),
    ],
)
async def test_reply_that_lost_a_part_is_requested_again(server, model, ask, listener, events) -> None:
    server.script = [Raw(pieces=events), Raw(pieces=[raw_delta(b"whole"), *END])]
    assert (await model.complete(ask(), listener=listener)).content == "whole"
    assert listener.pieces == ["whole"]


async def test_reply_that_always_lacks_a_part_is_a_named_failure(server, model, ask) -> None:
    server.script = lambda _asked: Raw(pieces=[b'data: {"choices":[{"delta":{"content":"a"\n\n', *END])
    with pytest.raises(ModelFailure, match="broke off"):
        await model.complete(ask())


SIGNATURE = {"google": {"thought_signature": "s"}}
ENCRYPTED = {"type": "reasoning.encrypted", "data": "x", "id": "r1", "index": 1}
FIELDS = {
    "reasoning in pieces": (
        [delta(reasoning_content="I "), delta(reasoning_content="think."), *deltas(call("a", "{}", id="1"))],
        {"reasoning_content": "I think."},
        (),
    ),
    "signature of a call": (
        deltas(call("a", "", index=0, id="1", type="function", extra_content=SIGNATURE), call(None, "{}", index=0)),
        {},
        ({"extra_content": SIGNATURE},),
    ),
    "signature of the second call, in every piece": (
        deltas(
            call("a", "{}", index=0, id="1"),
            call("b", "", index=1, id="2", thought_signature="xy"),
            call(None, "{}", index=1, thought_signature="xy"),
        ),
        {},
        ({}, {"thought_signature": "xy"}),
    ),
    "reasoning details in pieces": (
        [
            delta(reasoning="A", reasoning_details=[{"type": "reasoning.text", "text": "A", "index": 0}]),
            delta(
                reasoning="B", reasoning_details=[{"type": "reasoning.text", "text": "B", "index": 0, "format": "f"}]
            ),
            delta(reasoning_details=[{"type": "reasoning.text", "signature": "s", "index": 0, "format": "f"}]),
            delta(reasoning_details=[ENCRYPTED]),
            delta(reasoning_details=[ENCRYPTED | {"id": "r2"}]),
        ],
        {
            "reasoning": "AB",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "AB", "index": 0, "format": "f", "signature": "s"},
                ENCRYPTED,
                ENCRYPTED | {"id": "r2"},
            ],
        },
        (),
    ),
    "thinking blocks without an index": (
        [
            delta(thinking_blocks=[{"type": "thinking", "thinking": "A"}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "B"}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "", "signature": "s"}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "C"}]),
        ],
        {
            "thinking_blocks": [
                {"type": "thinking", "thinking": "AB", "signature": "s"},
                {"type": "thinking", "thinking": "C"},
            ]
        },
        (),
    ),
    "details of a complete message": (
        [
            event(
                {
                    "index": 0,
                    "message": {
                        "reasoning_details": [{"type": "t", "text": "A"}, {"type": "t", "text": "B"}, {"n": None}]
                    },
                }
            )
        ],
        {"reasoning_details": [{"type": "t", "text": "A"}, {"type": "t", "text": "B"}, {"n": None}]},
        (),
    ),
    "emoji cut in two": (
        [
            b'data: {"choices":[{"delta":{"reasoning":"\\ud83d"}}]}\n\n',
            b'data: {"choices":[{"delta":{"reasoning":"\\ude00"}}]}\n\n',
        ],
        {"reasoning": "😀"},
        (),
    ),
}


@pytest.mark.parametrize(("events", "message", "calls"), FIELDS.values(), ids=FIELDS)
async def test_fields_of_the_provider_are_kept(server, model, ask, listener, events, message, calls) -> None:
    server.script = [Raw(pieces=[*events, *END])]
    reply = await model.complete(ask(tools=TOOLS), listener=listener)
    assert reply.provider_fields == ProviderFields(source=model.profile.identity, message=message, calls=calls)
    assert (reply.content, listener.pieces) == ("", [])


async def test_empty_and_usual_fields_are_not_kept(server, model, ask) -> None:
    usual = {"role": "assistant", "refusal": None, "audio": None, "annotations": [], "reasoning_content": None}
    server.script = [
        Raw(pieces=[delta(**usual, reasoning=""), *deltas(call("a", "{}", id="1", type="function")), *END])
    ]
    reply = await model.complete(ask(tools=TOOLS))
    assert reply.provider_fields is None


@pytest.mark.parametrize(
    "path", ['"reasoning_details":%s', '"content":%s', '"tool_calls":[{"function":{"name":"a","arguments":%s}}]']
)
async def test_chunk_that_is_nested_deeply_is_no_error_of_the_service(server, model, ask, path) -> None:
    data = b'data: {"choices":[{"delta":{%b}}]}\n\n' % (path % ("[" * 900 + "]" * 900)).encode()
    server.script = lambda _asked: Raw(pieces=[data, *END])
    try:
        reply = await model.complete(ask(tools=TOOLS))
    except ModelFailure as error:
        assert "broke off" in str(error)
    else:
        assert (reply.content, reply.provider_fields) == ("", None)


async def test_fields_above_the_limit_are_dropped(server, model, ask) -> None:
    large = [delta(reasoning_content="x" * 400_000) for _ in range(2)]
    server.script = [Raw(pieces=[*large, delta(thought_signature="s"), *END])]
    reply = await model.complete(ask())
    assert reply.provider_fields is not None
    assert reply.provider_fields.message == {"thought_signature": "s"}


async def test_usage_counts_cached_and_reasoning_tokens_of_any_server(server, model, ask) -> None:
    usages = [
        {"prompt_tokens_details": {"cached_tokens": 3}, "completion_tokens_details": {"reasoning_tokens": 2}},
        {"cached_tokens": 3, "reasoning_tokens": 2},
        {"prompt_cache_hit_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}},
        {"cache_read_input_tokens": 3, "prompt_tokens_details": {"cached_tokens": 0}, "reasoning_tokens": 2},
    ]
    server.script = [Raw(pieces=[b"data: " + orjson.dumps({"usage": usage}) + b"\n\n", *END]) for usage in usages]
    for _ in usages:
        assert (await model.complete(ask())).usage == Usage(cached_tokens=3, reasoning_tokens=2, calls=1)


def test_reasoning_in_many_small_pieces_is_kept_whole_in_bounded_time() -> None:
    fields = FieldCollector()
    start = time.process_time()
    for piece in ["ab "] * 15_000:
        fields.add_message({"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": piece}]})
    for number in range(15_000):
        fields.add_message({"reasoning_details": [{"type": "reasoning.text", "index": 0, "signature": f"{number},"}]})
    assert time.process_time() - start < 10
    details = cast("list[dict[str, str]]", fields.fields["reasoning_details"])
    assert details[0]["text"] == "ab " * 15_000
    assert details[0]["signature"] == "".join(f"{number}," for number in range(15_000))


def test_fields_above_the_limit_are_dropped_and_not_cut() -> None:
    fields = FieldCollector()
    for _ in range(200):
        fields.add_message({"reasoning_content": "x" * 10_000})
    assert fields.fields == {}
