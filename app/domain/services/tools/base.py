"""Tools: their input models, their specifications for the model, and the functions that they run.

A tool is a frozen value in an explicit table (`registry.py`). The model's arguments are validated before anything runs;
an error text tells the model how to correct them.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.domain.external.browser import Browser, Browsers
from app.domain.external.sandbox import Sandbox, SandboxProvider
from app.domain.external.screenshots import Screenshots
from app.domain.external.search import SearchEngine
from app.domain.models.tool import JsonObject, ToolkitName, ToolResult, ToolSpec

MAX_TEXT = 16_000
"""Maximum length of a tool result that the model reads, in characters."""


class ToolInput(BaseModel):
    """Base class of tool arguments. Unknown arguments are an error, so that a misspelt one is not silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BadArguments(ValueError):
    """The model's arguments are invalid; the message tells it how to correct them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDependencies:
    """The dependencies that the tools of all runs share."""

    sandboxes: SandboxProvider
    browsers: Browsers
    screenshots: Screenshots
    engine: SearchEngine


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """The resources of the tools of one run: the session's sandbox and browser, and what all runs share."""

    session_id: str
    shared: ToolDependencies
    sandbox_instance: str = ""
    """Instance id of the sandbox that a tool used last; empty before the first use."""

    async def sandbox(self) -> Sandbox:
        """Return the session's sandbox, and start it if there is none."""
        sandbox = await self.shared.sandboxes.acquire(self.session_id)
        self.sandbox_instance = sandbox.instance_id
        return sandbox

    async def browser(self) -> Browser:
        """Return the browser in the session's sandbox, and start both if needed."""
        await self.sandbox()
        return await self.shared.browsers.open(self.session_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCall:
    """A call that runs a function. Calls that are all `parallel` may run at the same time."""

    toolkit: ToolkitName
    args: JsonObject
    parallel: bool
    run: Callable[[], Awaitable[ToolResult]]


class AskUserInput(ToolInput):
    """A call that makes the run wait until the user answers its text."""

    text: str = Field(min_length=1)


class StepInput(BaseModel):
    """A step as the model writes it. A number is accepted as id, and unknown fields are ignored."""

    model_config = ConfigDict(coerce_numbers_to_str=True, json_schema_extra={"required": ["id", "description"]})

    id: str = ""
    description: str = Field(min_length=1)


class PlanChanges(ToolInput):
    """The steps that replace the pending steps of the plan."""

    steps: list[StepInput] = Field(max_length=50)


class CompleteStepInput(ToolInput):
    """A call that ends the step, and replaces the pending steps if `plan_changes` is not None."""

    success: bool
    result: str = Field(description="What was found or made: facts, figures, paths. All that the answer will rest on")
    plan_changes: PlanChanges | None = Field(
        None, description="Only when the rest of the plan is wrong: every step still to do"
    )


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
    """

    def bind(arguments: str, context: ToolContext) -> BoundCall:
        parsed = parse_arguments(input, arguments)
        args = parsed.model_dump(mode="json", exclude_unset=True)
        return RunCall(toolkit=toolkit, args=args, parallel=parallel, run=lambda: function(parsed, context))

    return Tool(
        spec=ToolSpec(name=name, description=description, parameters=json_schema(input)),
        bind=bind,
        toolkit=toolkit,
        abort=None if aborting is None else lambda args, sandbox: aborting(input.model_validate(args), sandbox),
    )


def control_tool(name: str, description: str, input: type[AskUserInput] | type[CompleteStepInput]) -> Tool:
    """Return a tool that runs nothing: the executor carries out its calls itself."""
    spec = ToolSpec(name=name, description=description, parameters=json_schema(input))
    return Tool(spec=spec, bind=lambda arguments, _: parse_arguments(input, arguments))


def parse_arguments(model: type[I], arguments: str) -> I:
    """Parse the model's JSON arguments.

    Raises:
        BadArguments: The JSON is invalid, or an argument is missing, unknown or of the wrong type.
    """
    try:
        return model.model_validate_json(arguments.strip() or "{}")
    except ValidationError as error:
        problems = "; ".join(_problem(dict(item)) for item in error.errors(include_url=False)[:5])
        raise BadArguments(problems) from None


def _problem(error: Mapping[str, object]) -> str:
    if error["type"] == "json_invalid":
        return f"the arguments are not valid JSON ({error['msg']})"
    where = ".".join(str(part) for part in cast("tuple[object, ...]", error["loc"]))
    match error["type"]:
        case "missing":
            return f"argument `{where}` is missing"
        case "extra_forbidden":
            return f"there is no argument `{where}`"
        case _:
            return f"argument `{where}`: {error['msg']}"


_OMITTED = frozenset({"title", "default", "additionalProperties", "minLength", "maxLength", "maxItems"})
"""Schema keywords that the model need not read. Arguments are validated against them all the same."""


def json_schema(model: type[BaseModel]) -> JsonObject:
    """Return the JSON Schema of `model` in few tokens: without titles, nulls, references or limits."""
    schema = model.model_json_schema()
    return cast("JsonObject", _lean(schema, cast("dict[str, object]", schema.pop("$defs", {}))))


def _lean(node: object, defs: Mapping[str, object]) -> object:
    if isinstance(node, list):
        return [_lean(item, defs) for item in cast("list[object]", node)]
    if not isinstance(node, dict):
        return node
    source = _without_null(cast("dict[str, object]", node))
    if isinstance(reference := source.get("$ref"), str):
        referred = cast("dict[str, object]", defs[reference.rpartition("/")[2]])
        # The docstring of an input class is for engineers; the field that refers to it has the text for the model.
        source = {key: value for key, value in referred.items() if key != "description"} | {
            key: value for key, value in source.items() if key != "$ref"
        }
    properties = cast("dict[str, object]", source.get("properties", {}))
    lean: dict[str, object] = {}
    for key, value in source.items():
        if key == "properties":
            lean[key] = {name: _lean(item, defs) for name, item in properties.items()}
        elif key not in _OMITTED and not (key == "description" and properties):
            lean[key] = _lean(value, defs)
    return lean


def _without_null(source: dict[str, object]) -> dict[str, object]:
    options = source.get("anyOf")
    if not isinstance(options, list):
        return source
    real = [option for option in cast("list[dict[str, object]]", options) if option.get("type") != "null"]
    rest = {key: value for key, value in source.items() if key != "anyOf"}
    return {**rest, **real[0]} if len(real) == 1 else source


def clip(text: str, limit: int = MAX_TEXT) -> str:
    """Return `text`, with a note in place of its middle if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"
