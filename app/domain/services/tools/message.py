"""The message toolkit: notify and ask the user. Also `complete_step`, the call that ends a step."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from app.domain.external.sandbox import Sandbox
from app.domain.models.tool import JsonObject, ToolResult, ToolSpec
from app.domain.services.tools.base import (
    AskCall,
    BoundCall,
    CompleteCall,
    Tool,
    ToolContext,
    ToolInput,
    function_tool,
    json_schema,
    parse_arguments,
)


class _Text(ToolInput):
    text: str = Field(min_length=1)


async def _notify(args: _Text, _context: ToolContext) -> ToolResult:
    return ToolResult(success=True, text="shown", message="shown", content={"text": args.text})


class StepInput(BaseModel):
    """A step as the model writes it. A number is accepted as id, and unknown fields are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True, json_schema_extra={"required": ["id", "description"]})

    id: str = ""
    description: str = Field(min_length=1)


class _Changes(ToolInput):
    steps: list[StepInput] = Field(max_length=50)


class CompleteStepInput(ToolInput):
    """Arguments of `complete_step`."""

    success: bool
    result: str = Field(description="What was found or made: facts, figures, paths. All that the answer will rest on")
    plan_changes: _Changes | None = Field(
        None, description="Only when the rest of the plan is wrong: every step still to do"
    )


class _NothingToAbort:
    """Base class of tools that run nothing, so that there is nothing to abort."""

    async def abort(self, args: JsonObject, sandbox: Sandbox) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class _AskUser(_NothingToAbort):
    spec: ToolSpec

    def bind(self, arguments: str, context: ToolContext) -> BoundCall:
        return AskCall(question=parse_arguments(_Text, arguments).text)


@dataclass(frozen=True)
class _CompleteStep(_NothingToAbort):
    spec: ToolSpec

    def bind(self, arguments: str, context: ToolContext) -> BoundCall:
        return completion(parse_arguments(CompleteStepInput, arguments))


def completion(parsed: CompleteStepInput) -> CompleteCall:
    """Return valid arguments as a call."""
    changes = parsed.plan_changes
    pending = None if changes is None else tuple((step.id, step.description) for step in changes.steps)
    return CompleteCall(success=parsed.success, result=parsed.result, pending=pending)


TOOLS: tuple[Tool, ...] = (
    function_tool("message_notify_user", "message", "Tell the user something while the work goes on.", _Text, _notify),
    _AskUser(
        ToolSpec(
            name="message_ask_user",
            description="Ask the user and rest until the answer; only when you cannot go on without it.",
            parameters=json_schema(_Text),
        )
    ),
)

COMPLETE_STEP: Tool = _CompleteStep(
    ToolSpec(
        name="complete_step",
        description="End the current step, done or not.",
        parameters=json_schema(CompleteStepInput),
    )
)
