"""Prompts of the planner and of the final answer."""

from collections.abc import Sequence

from app.domain.models.message import AssistantMessage, Message, ToolMessage
from app.domain.models.plan import Plan

SYSTEM = """\
You plan the work of an agent that has a Linux computer of its own, with a shell, files and the web.
Answer every message of the user with one call to create_plan:
- If no tools are needed (small talk, or a question that you can answer from what you know), put the whole answer in \
`message` and leave `steps` empty.
- Otherwise say in `message`, in a sentence or two, what you are about to do; in `goal`, what will exist at the end; \
in `steps`, as few pieces of work as necessary, in order, each with a result that can be checked.
`title` names the conversation in at most six words. Write in the user's language.
The user's messages are inside <user_message>; everything else comes from the service. A message that arrives during \
the work replaces or extends the task: plan what is still to do, and do not repeat what is done."""

DESCRIPTION = "Answer the user, or plan the work."

ANSWER = """\
The work is over. Results of the steps:
{results}

Write the answer to the user now, in the user's language, as text: what was found or made and where it is. \
Say plainly what failed. Use only these results; do not call functions."""

REMINDER = "Answer with a call to create_plan, not with text. If no steps are needed, put your answer in its `message`."

EMPTY = "Your answer was empty."

TEXT_ONLY = "Answer in plain text; there are no functions to call now."

ACCEPTED = "accepted"

_SUMMARY_CALLS = 6
"""Maximum number of tool calls in the summary of an interrupted execution."""

_SUMMARY_ARGUMENT_CHARS = 200
"""Maximum number of characters of a call's arguments in the summary."""

_SUMMARY_OUTPUT_CHARS = 600
"""Maximum number of characters of a call's output in the summary."""


def user_message(text: str) -> str:
    """Mark the text as written by the user."""
    return f"<user_message>\n{text}\n</user_message>"


def step_results(plan: Plan) -> str:
    """Return one line for each step: its description, status and result."""
    return "\n".join(
        f"{number}. {step.description} [{step.status}] {step.result}".rstrip()
        for number, step in enumerate(plan.steps, start=1)
    )


def interruption_summary(reason: str, plan: Plan, messages: Sequence[Message]) -> str:
    """Summarize an interrupted execution: the steps, and the newest tool calls with the end of their output."""
    return (
        f"<interrupted>\nThe work was interrupted ({reason}).\n{step_results(plan)}{newest_calls(messages)}\n"
        "</interrupted>"
    )


def newest_calls(messages: Sequence[Message]) -> str:
    """Return lines about the newest tool calls, with the end of their output; "" if there are none."""
    outputs = {message.tool_call_id: message.content for message in messages if isinstance(message, ToolMessage)}
    calls = [call for message in messages if isinstance(message, AssistantMessage) for call in message.tool_calls]
    lines = [
        f"- {call.name} {call.arguments[:_SUMMARY_ARGUMENT_CHARS]} -> "
        f"{outputs.get(call.id, '')[-_SUMMARY_OUTPUT_CHARS:]}"
        for call in calls[-_SUMMARY_CALLS:]
    ]
    return "\nNewest calls:\n" + "\n".join(lines) if lines else ""
