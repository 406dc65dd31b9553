"""How a tool is made: its input model, what the model is told about it, and what runs.

A tool is a frozen value in an explicit dict (`registry.py`). The model's arguments are checked against the input
model before anything runs; what is wrong with them comes back as words that let the model correct itself.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from app.domain.external.browser import Browser, Browsers
from app.domain.external.sandbox import Sandbox, SandboxProvider
from app.domain.external.screenshots import Screenshots
from app.domain.external.search import SearchEngine
from app.domain.models.tool import JsonObject, ToolkitName, ToolResult, ToolSpec

MAX_TEXT = 16_000
"""Characters of one tool result that the model is given."""


class ToolInput(BaseModel):
    """Arguments of a tool. Unknown ones are an error, so that a misspelt argument is not quietly ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BadArguments(ValueError):
    """The model's arguments cannot be used; the text tells it how to mend them."""


@dataclass(slots=True, kw_only=True)
class ToolContext:
    """What the tools of one run may reach: the session's own sandbox and its browser, the search engine, and a place
    for screenshots."""

    session_id: str
    sandboxes: SandboxProvider
    browsers: Browsers
    screenshots: Screenshots
    engine: SearchEngine
    sandbox_instance: str = ""
    """The life of the sandbox that a tool was given last; empty while none asked for it."""

    async def sandbox(self) -> Sandbox:
        """The session's sandbox, started when it has none."""
        sandbox = await self.sandboxes.acquire(self.session_id)
        self.sandbox_instance = sandbox.instance_id
        return sandbox

    async def browser(self) -> Browser:
        """The browser in the session's sandbox, which is started when there is none."""
        await self.sandbox()
        return await self.browsers.open(self.session_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCall:
    """A call that does something. `parallel`: it may run at the same time as others of its kind."""

    toolkit: ToolkitName
    args: JsonObject
    parallel: bool
    run: Callable[[], Awaitable[ToolResult]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskCall:
    """A call that rests the run until the user answers `question`."""

    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteCall:
    """A call that ends the step; `pending`, when given, replaces the steps that nobody has begun."""

    success: bool
    result: str
    pending: tuple[tuple[str, str], ...] | None
    """(id, description) pairs."""


BoundCall = RunCall | AskCall | CompleteCall


class Tool(Protocol):
    """One function that the model may call."""

    @property
    def spec(self) -> ToolSpec:
        """What the model is told."""
        ...

    def bind(self, arguments: str, context: ToolContext) -> BoundCall:
        """Check `arguments` (JSON text) and make the call ready.

        Raises:
            BadArguments: they do not fit.
        """
        ...

    async def abort(self, args: JsonObject, sandbox: Sandbox) -> None:
        """End what a call with these (already checked) arguments may have left running when it was cut short."""
        ...


I = TypeVar("I", bound=ToolInput)  # noqa: E741 - the input


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool(Generic[I]):
    """A tool made of an input model and a coroutine function. `parallel`: it changes nothing, so that several such
    calls of one turn may run at the same time."""

    spec: ToolSpec
    toolkit: ToolkitName
    input: type[I]
    function: Callable[[I, ToolContext], Awaitable[ToolResult]]
    parallel: bool = False
    aborting: Callable[[I, Sandbox], Awaitable[None]] | None = None

    def bind(self, arguments: str, context: ToolContext) -> BoundCall:
        """See `Tool.bind`."""
        parsed = parse_arguments(self.input, arguments)
        return RunCall(
            toolkit=self.toolkit,
            args=parsed.model_dump(mode="json", exclude_unset=True),
            parallel=self.parallel,
            run=lambda: self.function(parsed, context),
        )

    async def abort(self, args: JsonObject, sandbox: Sandbox) -> None:
        """See `Tool.abort`."""
        if self.aborting is not None:
            await self.aborting(self.input.model_validate(args), sandbox)


def function_tool(
    name: str,
    toolkit: ToolkitName,
    description: str,
    input: type[I],
    function: Callable[[I, ToolContext], Awaitable[ToolResult]],
    *,
    parallel: bool = False,
    aborting: Callable[[I, Sandbox], Awaitable[None]] | None = None,
) -> FunctionTool[I]:
    """A `FunctionTool` whose specification is derived from its input model."""
    spec = ToolSpec(name=name, description=description, parameters=json_schema(input))
    return FunctionTool(
        spec=spec, toolkit=toolkit, input=input, function=function, parallel=parallel, aborting=aborting
    )


def parse_arguments(model: type[I], arguments: str) -> I:
    """The model's JSON arguments as an input object.

    Raises:
        BadArguments: broken JSON, a missing, unknown or mistyped argument.
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


_NEEDLESS = frozenset({"title", "default", "additionalProperties", "minLength", "maxLength", "maxItems"})
"""What the model need not read: it is checked here all the same, and a breach is told in words."""


def json_schema(model: type[BaseModel]) -> JsonObject:
    """The JSON Schema of `model` in as few tokens as possible: no titles, nulls, references or limits."""
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
        # A model's docstring is for engineers; what the model is told stands on the field that refers to it.
        source = {key: value for key, value in referred.items() if key != "description"} | {
            key: value for key, value in source.items() if key != "$ref"
        }
    properties = cast("dict[str, object]", source.get("properties", {}))
    lean: dict[str, object] = {}
    for key, value in source.items():
        if key == "properties":
            lean[key] = {name: _lean(item, defs) for name, item in properties.items()}
        elif key not in _NEEDLESS and not (key == "description" and properties):
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
    """`text`, its middle left out when it is longer than `limit` characters, saying so."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]}\n[... {len(text) - head - tail} characters left out ...]\n{text[-tail:]}"
