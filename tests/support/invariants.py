"""What must hold for every session's log and for every request to the model, whatever happened."""

import json
from collections.abc import Sequence
from typing import Any

from tests.fakes.scripted_openai import Asked


def check_log(events: Sequence[dict[str, Any]], *, ended: bool = True) -> None:
    """`events`: `{"event", "data"}` as the history returns them."""
    numbers = [int(item["data"]["event_id"]) for item in events]
    assert numbers == list(range(1, len(events) + 1)), "a gap or a repeat"
    calling: dict[str, dict[str, Any]] = {}
    for item in events:
        if item["event"] != "tool":
            continue
        call = item["data"]["tool_call_id"]
        if item["data"]["status"] == "calling":
            assert call not in calling, "called twice"
            calling[call] = item["data"]
        else:
            began = calling.pop(call)
            assert all(item["data"][k] == began[k] for k in ("name", "function", "args"))
            assert set(item["data"]["result"]) == {"success", "message", "data"}
    assert not calling or not ended, f"never ended: {calling}"
    _check_steps(events, ended=ended)
    _check_ends(events, ended=ended)


def _check_steps(events: Sequence[dict[str, Any]], *, ended: bool) -> None:
    running: set[str] = set()
    for item in events:
        if item["event"] == "step":
            step = item["data"]["id"]
            if item["data"]["status"] == "running":
                assert not running, "two steps at once"
                running.add(step)
            else:
                running.remove(step)
        elif item["event"] in ("done", "error"):
            assert not running, "a run ended with a step under way"
    assert not running or not ended


def _check_ends(events: Sequence[dict[str, Any]], *, ended: bool) -> None:
    going = False
    for item in events:
        if item["event"] == "message" and item["data"]["role"] == "user":
            going = True
        elif item["event"] in ("done", "error"):
            assert going, "a run ended twice"
            going = False
    assert not going or not ended, "no end"


def check_requests(asked: Sequence[Asked]) -> None:
    """Every request is one that a strict provider accepts, and extends what its transcript held before."""
    before: dict[str, list[dict[str, Any]]] = {}
    tools: dict[str, Any] = {}
    for request in asked:
        check_conversation(request.messages)
        thread = "work" if request.kind == "executing" else "talk"
        earlier = before.get(thread, [])
        # What an attempt that was cut short had not stored yet may be asked anew; the stored prefix never changes.
        shared = 0
        while shared < min(len(earlier), len(request.messages)) and earlier[shared] == request.messages[shared]:
            shared += 1
        assert shared >= len(earlier) - 3, f"the {thread} transcript was rewritten"
        before[thread] = request.messages
        offered = request.body.get("tools")
        assert tools.setdefault(request.kind, offered) == offered, "the tools changed between calls"


def check_conversation(messages: Sequence[dict[str, Any]]) -> None:
    """No tool call without an answer, no answer without a call, arguments that are JSON objects."""
    open_calls: set[str] = set()
    assert messages[0]["role"] == "system"
    for message in messages:
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
            continue
        assert not open_calls, f"calls without an answer: {open_calls}"
        for call in message.get("tool_calls") or ():
            assert call["id"] not in open_calls
            open_calls.add(call["id"])
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
        if message["role"] == "assistant":
            assert message.get("content") or message.get("tool_calls")
    assert not open_calls, f"calls without an answer: {open_calls}"
