"""Tools: their input models, their specifications for the model, and the functions that they run.

A tool is a frozen value in an explicit table (`registry.py`). The model's arguments are validated before anything runs
(`arguments.py`).
"""

import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.domain.errors import AnkerError
from app.domain.external.browser import Browser, Browsers
from app.domain.external.sandbox import Sandbox, SandboxProvider
from app.domain.external.screenshots import Screenshots
from app.domain.external.search import SearchEngine
from app.domain.external.telemetry import NO_RUN_OBSERVER, RunObserver
from app.domain.models.tool import JsonObject, ToolkitName, ToolResult, ToolSpec
from app.domain.services.tools.arguments import parse_arguments
from app.domain.services.tools.schema import json_schema

log = logging.getLogger(__name__)

MAX_TEXT = 16_000
"""Maximum length of a tool result that the model reads, in characters."""


class ToolInput(BaseModel):
    """Base class of tool arguments. Unknown arguments are an error, so that a misspelt one is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


def _as_text(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value


Text = Annotated[str, BeforeValidator(_as_text)]
"""Text to read or to keep. An object or a list in its place is taken as its JSON. Do not use it for commands."""

OptionalText = Annotated[Text, BeforeValidator(lambda value: "" if value is None else value)]
"""Text that may be empty, so that null in its place is taken as no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDependencies:
    """The dependencies that the tools of all runs share."""

    sandboxes: SandboxProvider
    browsers: Browsers
    screenshots: Screenshots
    engine: SearchEngine
    observer: RunObserver = NO_RUN_OBSERVER


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """The resources of the tools of one run: the session's sandbox and browser, and what all runs share."""

    session_id: str
    shared: ToolDependencies
    vision: bool = False
    """Whether the model that reads the results sees pictures."""
    _sandbox: Sandbox | None = None

    @property
    def sandbox_instance(self) -> str:
        """Instance id of the sandbox that a tool used last; empty before the first use."""
        return "" if self._sandbox is None else self._sandbox.instance_id

    async def sandbox(self) -> Sandbox:
        """Return the session's sandbox, and start it if there is none."""
        self._sandbox = await self.shared.sandboxes.acquire(self.session_id)
        return self._sandbox

    async def browser(self) -> Browser:
        """Return the browser in the session's sandbox, and start both if needed."""
        await self.sandbox()
        return await self.shared.browsers.open(self.session_id)

    async def keep_screenshot(self, jpeg: bytes) -> str | None:
        """Store a picture for clients and return its address. Return None if that fails: the tool itself succeeded."""
        try:
            return await self.shared.screenshots.keep(self.session_id, jpeg)
        except AnkerError as error:
            log.warning("cannot store a screenshot: %s", error)
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCall:
    """A call that runs a function. Calls that are all `parallel` may run at the same time."""

    toolkit: ToolkitName
    args: JsonObject
    parallel: bool
    run: Callable[[], Awaitable[ToolResult]]


class AskUserInput(ToolInput):
    """A call that makes the run wait until the user answers its text."""

    text: Text = Field(min_length=1)


class StepInput(BaseModel):
    """A step as the model writes it. A number is accepted as id, and unknown fields are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True, json_schema_extra={"required": ["id", "description"]})

    id: str = ""
    description: Text = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _accept_other_names(cls, value: object) -> object:
        if isinstance(value, str):
            return {"description": value}
        if not isinstance(value, dict) or "description" in value:
            return cast("object", value)
        fields = cast("dict[str, object]", value)
        name = next((name for name in _DESCRIPTION_NAMES if isinstance(fields.get(name), str)), None)
        return fields if name is None else {**fields, "description": fields[name]}


_DESCRIPTION_NAMES = ("step", "title", "task", "name", "text", "action", "instruction")
"""Names that models give to a step's description."""

_STEP_MARK = re.compile(r"\s*(?:[-*•]|\d+[.):]|step\s+\d+[.):])\s+", re.IGNORECASE)
"""What precedes an item of a list that is written as text."""


def _as_steps(value: object) -> object:
    """Return a list of steps for an object of steps, a single step, or a list written as text."""
    if value is None:
        return []
    if isinstance(value, str):
        lines = [line for line in value.splitlines() if line.strip()]
        marked = all(_STEP_MARK.match(line) for line in lines)
        return [_STEP_MARK.sub("", line, count=1) for line in lines] if marked else [value]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, object]", value)
    if fields.keys() == {"steps"}:
        return _as_steps(fields["steps"])
    if not {"description", *_DESCRIPTION_NAMES}.isdisjoint(fields):
        return [fields]
    return [_named_step(name, step) for name, step in fields.items()]


def _named_step(name: str, step: object) -> dict[str, object]:
    if isinstance(step, dict):
        return {"id": name, **cast("dict[str, object]", step)}
    return {"id": name, "description": step}


Steps = Annotated[list[StepInput], BeforeValidator(_as_steps), Field(max_length=50)]
"""Steps of a plan, in every form in which models write them."""


class PlanChanges(ToolInput):
    """The steps that replace the pending steps of the plan."""

    steps: Steps = Field(json_schema_extra={"items": {"type": "string"}})

    @model_validator(mode="before")
    @classmethod
    def _accept_steps_alone(cls, value: object) -> object:
        if isinstance(value, list) or (isinstance(value, dict) and "steps" not in value):
            return {"steps": cast("object", value)}
        return cast("object", value)


class CompleteStepInput(ToolInput):
    """A call that ends the step, and replaces the pending steps if `plan_changes` is not None."""

    success: bool
    result: OptionalText = Field(description="Facts, figures and paths: all that the answer rests on")
    plan_changes: PlanChanges | None = Field(None, description="If the plan is wrong")
    answer: Text | None = Field(None, description="With the last step: the answer to the user")


BoundCall = RunCall | AskUserInput | CompleteStepInput
"""A valid call: a function to run, or the arguments of a call that the executor carries out itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    spec: ToolSpec
    """The specification that the model reads."""
    bind: Callable[[str, ToolContext], BoundCall]
    """Validates the arguments, which are JSON text, and returns the call. Raises `BadArguments` if they are invalid."""
    toolkit: ToolkitName = ""
    """Key of the toolkit in `TOOLKITS`; empty for a tool without tool events."""
    abort: Callable[[JsonObject, Sandbox], Awaitable[None]] | None = None
    """Stops what an interrupted call with these valid arguments may have left running; None if it leaves nothing."""
    without_result: Callable[[JsonObject, str], JsonObject] | None = None
    """Returns the `content` of a call with these arguments that has no result, for a reason; None for no content."""
    content_so_far: Callable[[JsonObject, Sandbox], Awaitable[JsonObject | None]] | None = None
    """Returns the `content` of an interrupted call as far as the sandbox has it; None if it has nothing."""
    needs_vision: bool = False
    """Whether the tool is offered only to a model that sees pictures."""

    def content_without_result(self, args: JsonObject, reason: str) -> JsonObject | None:
        """Return the `content` of a call that has no result."""
        return None if self.without_result is None else self.without_result(args, reason)


I = TypeVar("I", bound=ToolInput)  # noqa: E741 - the input


def function_tool(
    name: str,
    toolkit: ToolkitName,
    description: str,
    input: type[I],
    function: Callable[[I, ToolContext], Awaitable[ToolResult]],
    *,
    parallel: bool = False,
    aborting: Callable[[I, Sandbox], Awaitable[None]] | None = None,
    without_result: Callable[[JsonObject, str], JsonObject] | None = None,
    content_so_far: Callable[[JsonObject, Sandbox], Awaitable[JsonObject | None]] | None = None,
    needs_vision: bool = False,
) -> Tool:
    """Return a tool that runs a coroutine function. Its specification is derived from its input model.

    Args:
        name: Function name for the model.
        toolkit: Key of the toolkit in `TOOLKITS`.
        description: What the function does, for the model.
        input: Model of the arguments.
        function: What a call runs.
        parallel: Whether the tool changes nothing, so that several calls may run at the same time.
        aborting: What stops a call that was interrupted.
        without_result: See `Tool.without_result`.
        content_so_far: See `Tool.content_so_far`.
        needs_vision: See `Tool.needs_vision`.
    """

    def bind(arguments: str, context: ToolContext) -> BoundCall:
        parsed = parse_arguments(input, arguments, name=name)
        args = parsed.model_dump(mode="json", exclude_unset=True)
        return RunCall(toolkit=toolkit, args=args, parallel=parallel, run=lambda: function(parsed, context))

    return Tool(
        spec=ToolSpec(name=name, description=description, parameters=json_schema(input)),
        bind=bind,
        toolkit=toolkit,
        abort=None if aborting is None else lambda args, sandbox: aborting(input.model_validate(args), sandbox),
        without_result=without_result,
        content_so_far=content_so_far,
        needs_vision=needs_vision,
    )


def control_tool(name: str, description: str, input: type[AskUserInput] | type[CompleteStepInput]) -> Tool:
    """Return a tool that runs nothing: the executor carries out its calls itself."""
    spec = ToolSpec(name=name, description=description, parameters=json_schema(input))
    return Tool(spec=spec, bind=lambda arguments, _: parse_arguments(input, arguments, name=name))


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text`, with a note in place of its middle if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"
