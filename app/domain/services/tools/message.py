"""The message toolkit: notify and ask the user. Also `complete_step`, the call that ends a step."""

from pydantic import Field

from app.domain.models.tool import ToolResult
from app.domain.services.tools.base import (
    AskUserInput,
    CompleteStepInput,
    Text,
    Tool,
    ToolContext,
    ToolInput,
    control_tool,
    function_tool,
)


class _Text(ToolInput):
    text: Text = Field(min_length=1)


async def _notify(args: _Text, _context: ToolContext) -> ToolResult:
    return ToolResult(text="shown", message="shown", content={"text": args.text})


TOOLS: tuple[Tool, ...] = (
    function_tool("message_notify_user", "message", "Tell the user something.", _Text, _notify),
    control_tool(
        "message_ask_user",
        "Ask the user, only if you cannot go on without the answer.",
        AskUserInput,
    ),
)

COMPLETE_STEP = control_tool("complete_step", "End the current step, done or not.", CompleteStepInput)
