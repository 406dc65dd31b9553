"""Replies of compatible servers, as OpenAIModel understands them."""

from typing import Any

import orjson
import pytest

from app.domain.models.message import ToolCall, Usage
from tests.fakes.scripted_openai import Call, Raw, Reply


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


def pieces(*calls: dict[str, Any], finish: str | None = "tool_calls") -> Raw:
    """Return a stream with one piece of a tool call per chunk."""
    return Raw(pieces=[*(chunk({"tool_calls": [call]}) for call in calls), chunk({}, finish), b"data: [DONE]\n\n"])


async def test_streamed_text_reaches_listener_and_reply_with_usage(server, model, ask, listener) -> None:
    server.script = [Reply(text="Hello, world. Grüße 👋", size=5)]
    reply = await model.complete(ask(), listener=listener)
    assert reply.content == "Hello, world. Grüße 👋"
    assert reply.finish == "stop"
    assert reply.usage == Usage(prompt_tokens=11, cached_tokens=5, completion_tokens=7, calls=1)
    assert len(listener.pieces) == 5
    assert "".join(listener.pieces) == reply.content
    assert listener.restarts == 0


async def test_parallel_calls_are_assembled_by_index(server, model, ask, listener) -> None:
    server.script = [Reply(text="Both.", calls=[Call("a", {"x": 1}), Call("b", {"text": "long " * 9})], size=7)]
    reply = await model.complete(ask(), listener=listener)
    assert reply.content == "Both."
    assert reply.finish == "tool_calls"
    assert [(call.id, call.name) for call in reply.tool_calls] == [("call_0_0", "a"), ("call_0_1", "b")]
    assert orjson.loads(reply.tool_calls[1].arguments) == {"text": "long " * 9}
    assert "".join(text for name, text in listener.calls if name == "b") == reply.tool_calls[1].arguments


async def test_broken_arguments_are_returned_unchanged(server, model, ask) -> None:
    server.script = [Reply(calls=[Call("a", '{"x": ')], finish="length")]
    reply = await model.complete(ask())
    assert reply.tool_calls[0].arguments == '{"x": '
    assert reply.finish == "length"


A, B = '{"x":1}', '{"y":2}'


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param(
            [
                {"id": "1", "function": {"name": "a", "arguments": A}},
                {"id": "2", "function": {"name": "b", "arguments": B}},
            ],
            [("1", "a", A), ("2", "b", B)],
            id="no index, complete calls",
        ),
        pytest.param(
            [{"function": {"name": "a", "arguments": A}}, {"function": {"name": "a", "arguments": B}}],
            [("", "a", A), ("", "a", B)],
            id="no index, no id, the same function twice",
        ),
        pytest.param(
            [
                {"id": "1", "function": {"name": "a", "arguments": ""}},
                {"function": {"arguments": '{"x"'}},
                {"function": {"arguments": ":1}"}},
            ],
            [("1", "a", A)],
            id="no index, pieces, id only in first",
        ),
        pytest.param(
            [
                {"index": 0, "id": "1", "function": {"name": "a", "arguments": '{"x"'}},
                {"index": 0, "id": "1", "function": {"name": "a", "arguments": ":1}"}},
                {"index": 0, "id": "1", "function": {"name": "a", "arguments": ""}},
            ],
            [("1", "a", A)],
            id="name in every piece",
        ),
        pytest.param(
            [
                {"index": 0, "id": "1", "function": {"name": "a", "arguments": A}},
                {"index": 0, "id": "2", "function": {"name": "a", "arguments": B}},
            ],
            [("1", "a", A), ("2", "a", B)],
            id="same index for all",
        ),
        pytest.param(
            [{"index": 0, "function": {"name": "a", "arguments": {"x": 1}}}],
            [("", "a", A)],
            id="arguments as an object",
        ),
        pytest.param(
            [
                {"index": 0, "id": "1", "function": {"name": "fi", "arguments": None}},
                {"index": 0, "function": {"name": "nd"}},
            ],
            [("1", "find", "")],
            id="name in pieces, no arguments",
        ),
        pytest.param([{"index": 0, "name": "a", "arguments": A}], [("", "a", A)], id="no function level"),
    ],
)
async def test_tool_call_pieces_of_any_shape_are_assembled(server, model, ask, parts, expected) -> None:
    server.script = [pieces(*parts)]
    reply = await model.complete(ask())
    assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == expected
    assert reply.finish == "tool_calls"


async def test_legacy_function_call_becomes_tool_call(server, model, ask) -> None:
    server.script = [
        Raw(
            pieces=[
                chunk({"function_call": {"name": "a", "arguments": ""}}),
                chunk({"function_call": {"arguments": A}}),
                chunk({}, "function_call"),
            ]
        )
    ]
    reply = await model.complete(ask())
    assert reply.tool_calls == (ToolCall(id="", name="a", arguments=A),)
    assert reply.finish == "tool_calls"


@pytest.mark.parametrize(
    ("sent", "calls", "finish"),
    [
        ("stop", False, "stop"),
        ("stop", True, "tool_calls"),
        ("tool_calls", False, "stop"),
        ("length", False, "length"),
        ("eos", False, "stop"),
    ],
)
async def test_finish_is_derived_from_reply_content(server, model, ask, sent, calls, finish) -> None:
    server.script = [Reply(text="t", calls=[Call("a")] if calls else [], finish=sent)]
    assert (await model.complete(ask())).finish == finish


async def test_stream_without_finish_reason_is_complete_at_done(server, model, ask) -> None:
    server.script = [Raw(pieces=[chunk({"content": "Hi"}), b"data: [DONE]\n\n"])]
    reply = await model.complete(ask())
    assert (reply.content, reply.finish) == ("Hi", "stop")


@pytest.mark.parametrize(
    "finish",
    ["content_filter", "sensitive", "SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "guardrail_intervened"],
)
async def test_content_filter_finish_is_a_refusal_that_names_it(server, model, ask, finish) -> None:
    server.script = [Reply(text="The file con", finish=finish)]
    reply = await model.complete(ask())
    assert reply.finish == "refused"
    assert finish.lower() in reply.content
    assert "The file con" not in reply.content


async def test_long_finish_reason_that_is_no_unicode_is_shortened_and_replaced(server, model, ask) -> None:
    finish = b"content_filter\xff" + b"x" * 10_000
    server.script = [Raw(pieces=[b'data: {"choices":[{"delta":{},"finish_reason":"%b"}]}\n\n' % finish])]
    reply = await model.complete(ask())
    assert reply.finish == "refused"
    assert "content_filter\ufffdx" in reply.content
    assert len(reply.content.encode()) < 300


@pytest.mark.parametrize(
    "finish",
    ["network_error", "error", "insufficient_system_resource", "abort", "FinishReason.SERVER_ERROR", "timeout"],
)
async def test_reply_that_failed_in_its_middle_is_requested_again(server, model, ask, finish) -> None:
    server.script = [Reply(text="The file con", finish=finish), Reply(text="The file contains 3 lines.")]
    assert (await model.complete(ask())).content == "The file contains 3 lines."


@pytest.mark.parametrize("finish", ["eos", "stop_sequence", "COMPLETE", "unknown", "end_turn"])
async def test_complete_reply_with_unknown_finish_reason_is_accepted(server, model, ask, finish) -> None:
    server.script = [Reply(text="Whole.", finish=finish)]
    reply = await model.complete(ask())
    assert (reply.content, reply.finish) == ("Whole.", "stop")


async def test_refusal_text_is_returned(server, model, ask) -> None:
    server.script = [Raw(pieces=[chunk({"refusal": "I cannot "}), chunk({"refusal": "do that."}), chunk({}, "stop")])]
    reply = await model.complete(ask())
    assert (reply.content, reply.finish) == ("I cannot do that.", "refused")


async def test_reasoning_is_dropped_and_content_parts_are_joined(server, model, ask) -> None:
    parts = [{"type": "thinking", "thinking": "…"}, {"type": "text", "text": "Yes"}]
    server.script = [Raw(pieces=[chunk({"reasoning_content": "hm"}), chunk({"content": parts}), chunk({}, "stop")])]
    assert (await model.complete(ask())).content == "Yes"


async def test_reply_without_streaming_is_accepted(server, model, ask, listener) -> None:
    server.script = [Reply(text="All at once.", calls=[Call("a", {"x": 1})], plain=True)]
    reply = await model.complete(ask(), listener=listener)
    assert reply.content == "All at once."
    assert [(call.id, call.name, call.arguments) for call in reply.tool_calls] == [("call_0_0", "a", A)]
    assert reply.usage.completion_tokens == 7
    assert listener.pieces == ["All at once."]


async def test_events_cut_at_any_byte_are_decoded(server, model, ask) -> None:
    whole = (
        b"\xef\xbb\xbf: keep-alive\r\n\r\nevent: x\r\nid: 1\r\n"
        b'data: {"choices":[{"delta":{"content":"Gr\xc3\xbc\xc3\x9fe"}}]}'
        b'\r\n\r\ndata:{"choices":\r\ndata: [{"delta":{"content":"!"},"finish_reason":"stop"}]}\r\n\r\ndata: [DONE]'
    )
    server.script = [Raw(pieces=[whole[n : n + 1] for n in range(len(whole))]), Raw(pieces=[whole])]
    assert (await model.complete(ask())).content == "Grüße!"
    assert (await model.complete(ask())).content == "Grüße!"


async def test_consecutive_calls_reuse_one_connection(server, model, ask) -> None:
    server.script = lambda _asked: Reply(text="ok")
    for _ in range(3):
        await model.complete(ask())
    assert len({asked.client for asked in server.asked}) == 1
