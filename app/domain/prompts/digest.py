"""What the planner is told about work that was cut short, and what the answer is written from."""

from collections.abc import Sequence

from app.domain.models.message import AssistantMessage, Message, ToolMessage
from app.domain.models.plan import Plan

_CALLS = 6
_ARGS = 200
_OUTPUT = 600


def results(plan: Plan) -> str:
    """One line a step: how it ended and what came of it."""
    return "\n".join(
        f"{number}. {step.description} [{step.status}] {step.result}".rstrip()
        for number, step in enumerate(plan.steps, start=1)
    )


def interruption(reason: str, plan: Plan, work: Sequence[Message]) -> str:
    """What was done until the interruption: the steps, and the newest tool calls with the ends of their output."""
    told = {message.tool_call_id: message.content for message in work if isinstance(message, ToolMessage)}
    calls = [call for message in work if isinstance(message, AssistantMessage) for call in message.tool_calls]
    lines = [
        f"- {call.name} {call.arguments[:_ARGS]} -> {told.get(call.id, '')[-_OUTPUT:]}" for call in calls[-_CALLS:]
    ]
    newest = "\nNewest calls:\n" + "\n".join(lines) if lines else ""
    return f"<interrupted>\nThe work was cut short ({reason}).\n{results(plan)}{newest}\n</interrupted>"
