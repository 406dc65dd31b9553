"""The events whose records stand, one a line and in this order, in events_v1.jsonl (numbers from 1, at `AT`)."""

from app.domain.models.event import (
    DoneEvent,
    ErrorEvent,
    Event,
    MessageEvent,
    PlanEvent,
    StepEvent,
    TitleEvent,
    ToolCalledEvent,
    ToolCallingEvent,
    WaitEvent,
)
from app.domain.models.plan import Step
from app.domain.models.tool import OpenCall, ToolResult

AT = 1_700_000_000

_CALL = OpenCall(
    id="call_1",
    toolkit="shell",
    function="shell_exec",
    args={"id": "main", "exec_dir": "/home/ubuntu", "command": "printf 'a\\nb'"},
)

EVENTS: tuple[Event, ...] = (
    MessageEvent(role="user", content="Grüße, 世界 👋\nsecond line"),
    TitleEvent(title="A greeting"),
    MessageEvent(role="assistant", content="I will look."),
    PlanEvent.of(
        [
            Step(id="1", description="Look", status="running", result="for the model only"),
            Step(id="2", description="Answer"),
        ]
    ),
    StepEvent(id="1", description="Look", status="running"),
    ToolCallingEvent.of(_CALL),
    ToolCalledEvent.of(
        _CALL,
        ToolResult(
            success=True,
            text="for the model only",
            message="exit code 0",
            data={"output": "a\nb", "returncode": 0},
            content={"console": [{"ps1": "$", "command": "printf", "output": "a\nb"}]},
        ),
    ),
    ToolCalledEvent.of(_CALL, ToolResult(success=False, text="", message="interrupted")),
    StepEvent(id="1", description="Look", status="completed"),
    WaitEvent(),
    ErrorEvent(error="The model refused the key."),
    DoneEvent(),
)
