"""The invariants of every event log and of every request to the model."""

from collections.abc import Sequence
from typing import Any

from tests.fakes.scripted_openai import Asked
from tests.support.strict_server import violation

UNSTORED_MESSAGES = 5
"""Maximum number of messages of a request that an interrupted attempt did not store, with the turns between them."""


def check_log(events: Sequence[dict[str, Any]], *, ended: bool = True) -> None:
    """Check the order and the pairs of a session's events.

    Args:
        events: Items of the form `{"event", "data"}`, as the history returns them.
        ended: Whether the last run must be over.
    """
    numbers = [int(item["data"]["event_id"]) for item in events]
    assert numbers == list(range(1, len(events) + 1)), "an event is missing or repeated"
    _check_tool_calls(events, ended=ended)
    _check_steps(events, ended=ended)
    _check_runs(events, ended=ended)


def _check_tool_calls(events: Sequence[dict[str, Any]], *, ended: bool) -> None:
    calling: dict[str, dict[str, Any]] = {}
    for item in events:
        if item["event"] != "tool":
            continue
        call_id = item["data"]["tool_call_id"]
        if item["data"]["status"] == "calling":
            assert call_id not in calling, "a tool call began twice"
            calling[call_id] = item["data"]
        else:
            began = calling.pop(call_id)
            assert all(item["data"][name] == began[name] for name in ("name", "function", "args"))
            assert set(item["data"]["result"]) == {"success", "message", "data"}
    assert not calling or not ended, f"tool calls never ended: {calling}"


def _check_steps(events: Sequence[dict[str, Any]], *, ended: bool) -> None:
    running: set[str] = set()
    messages = interrupted = 0
    for item in events:
        if item["event"] == "step":
            step_id = item["data"]["id"]
            if item["data"]["status"] == "running":
                assert not running, "two steps run at the same time"
                running.add(step_id)
            else:
                running.remove(step_id)
        elif item["event"] == "plan":
            # A step that a message interrupted has no event of its own: the new plan ends it.
            closed = running & {step["id"] for step in item["data"]["steps"] if step["status"] == "failed"}
            running -= closed
            interrupted += len(closed)
            assert not interrupted or interrupted < messages, "a step ended without an event or a message"
        elif item["event"] == "message" and item["data"]["role"] == "user":
            messages += 1
        elif item["event"] in ("done", "error"):
            assert not running, "a run ended within a step"
    assert not running or not ended, f"steps never ended: {running}"


def _check_runs(events: Sequence[dict[str, Any]], *, ended: bool) -> None:
    active = False
    for item in events:
        if item["event"] == "message" and item["data"]["role"] == "user":
            active = True
        elif item["event"] in ("done", "error"):
            assert active, "a run ended twice"
            active = False
    assert not active or not ended, "the last run never ended"


def check_requests(asked: Sequence[Asked]) -> None:
    """Check that a strict provider accepts each request, and that each extends the transcript of the one before."""
    before: dict[str, list[dict[str, Any]]] = {}
    tools: dict[str, Any] = {}
    for request in asked:
        assert not violation(request.body)
        transcript = "work" if request.kind == "executing" else "talk"
        earlier = before.get(transcript, [])
        # The end of an interrupted attempt may differ in the next one; the stored prefix never changes.
        shared = 0
        while shared < min(len(earlier), len(request.messages)) and earlier[shared] == request.messages[shared]:
            shared += 1
        assert shared >= len(earlier) - UNSTORED_MESSAGES, f"the {transcript} transcript was rewritten"
        before[transcript] = request.messages
        offered = request.body.get("tools")
        assert tools.setdefault(request.kind, offered) == offered, "the tools changed between calls"
