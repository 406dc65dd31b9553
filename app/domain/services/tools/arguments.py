"""Reading of a tool call's arguments: JSON text that a model wrote, with the slips of models undone.

Only slips with one possible meaning are undone; the text of a string is never changed. Everything else is an error
whose text tells the model what to correct (decision 18).
"""

import json
import re
from collections.abc import Mapping
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError

from app.domain.models.tool import JsonObject
from app.domain.services.tools.schema import json_schema

M = TypeVar("M", bound=BaseModel)

_FENCE = re.compile(r"```\w*\s*(.*?)\s*(?:```)?", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:(?P<double>"(?:[^"\\]|\\.)*")|'(?P<single>(?:[^'\\]|\\.)*)'|(?P<mark>[{}\[\]:,])|(?P<word>[^\s"'{}\[\]:,]+))""",
    re.DOTALL,
)
_LEFTOVERS = re.compile(r"[\s}\];`]*(?:<[^<>]*>\s*)*")
"""What may follow complete arguments without a meaning: closing marks, and remains of the server's markup."""

_CLOSING = {"{": "}", "[": "]"}
_LITERALS = {"True": "true", "False": "false", "None": "null", "undefined": "null"}
_WRAPPERS = frozenset(
    {
        "arguments",
        "parameters",
        "input",
        "args",
        "params",
        "kwargs",
        "function",
        "properties",
        "tool_input",
        "action_input",
    }
)
_WRAPPER_COMPANIONS = frozenset({"name", "type", "id", "tool", "tool_name", "function_name", "action", "required"})
_NOTHING = frozenset({"", "null", "None", "none", "undefined"})

_MAX_LAYERS = 5
"""Maximum number of wrappers and encodings around arguments that are undone."""


class BadArguments(ValueError):
    """The model's arguments are invalid; the message tells it how to correct them."""


def is_complete(arguments: str) -> bool:
    """Return whether `arguments` is valid JSON. The arguments of a call that was cut off may not be repaired."""
    try:
        json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return False
    return True


def parse_arguments(model: type[M], arguments: str, *, name: str = "") -> M:
    """Parse the model's arguments for the function `name`.

    Raises:
        BadArguments: The JSON is invalid, or an argument is missing, unknown or of the wrong type.
    """
    try:
        value = _load(arguments) if arguments.strip() else None
    except RecursionError:
        raise BadArguments("the arguments are nested too deeply") from None
    except ValueError as error:
        raise BadArguments(f"the arguments are not valid JSON ({error})") from None
    schema = json_schema(model)
    try:
        return model.model_validate(_repaired(_unwrapped(value, schema, name), schema))
    except ValidationError as error:
        problems = "; ".join(_problem(dict(item)) for item in error.errors(include_url=False)[:5])
        raise BadArguments(problems) from None


def _problem(error: Mapping[str, object]) -> str:
    where = ".".join(str(part) for part in cast("tuple[object, ...]", error["loc"]))
    match error["type"]:
        case "missing":
            return f"argument `{where}` is missing"
        case "extra_forbidden":
            return f"there is no argument `{where}`"
        case "model_type":
            return f"argument `{where}` must be an object" if where else "the arguments must be one JSON object"
        case _:
            return f"argument `{where}`: {error['msg']}"


def _load(text: str) -> object:
    """Parse JSON, and what is JSON but for its punctuation.

    Raises:
        ValueError: It is something else.
    """
    text = text.strip()
    if fenced := _FENCE.fullmatch(text):
        text = fenced[1]
    try:
        return json.loads(text, strict=False)  # Line breaks and tabs in strings are accepted as they are.
    except ValueError:
        rewritten = _with_json_punctuation(text)
        if rewritten is None:
            raise
        try:
            return json.loads(rewritten, strict=False)
        except ValueError:
            pass
        raise


def _with_json_punctuation(text: str) -> str | None:
    """Rewrite single quotes, bare keys, Python literals, trailing commas and missing closing marks as JSON.

    Return None if a string is not closed or if there is more than one value. A quote inside a string that is not
    escaped leaves two values without a comma between them, which JSON does not accept.
    """
    tokens: list[str] = []
    open_marks: list[str] = []
    position = 0
    while position < len(text) and (open_marks or not tokens):
        found = _TOKEN.match(text, position)
        if found is None:
            break
        position = found.end()
        if (mark := found["mark"]) is None:
            tokens.append(_json_value(found))
        elif mark in _CLOSING:
            open_marks.append(_CLOSING[mark])
            tokens.append(mark)
        elif mark in _CLOSING.values():
            if not open_marks or open_marks.pop() != mark:
                return None
            _close(tokens, mark)
        else:
            _separate(tokens, mark)
    if _LEFTOVERS.fullmatch(text, position) is None:
        return None
    for mark in reversed(open_marks):
        _close(tokens, mark)
    return "".join(tokens)


def _json_value(found: re.Match[str]) -> str:
    if (double := found["double"]) is not None:
        return double
    if (single := found["single"]) is not None:
        return '"' + re.sub(r'\\.|"', _requoted, single, flags=re.DOTALL) + '"'
    return _LITERALS.get(found["word"], found["word"])


def _requoted(found: re.Match[str]) -> str:
    return {"\\'": "'", '"': '\\"'}.get(found[0], found[0])


def _separate(tokens: list[str], mark: str) -> None:
    if mark == ":" and tokens and tokens[-1][0] not in '"{}[]:,':
        tokens[-1] = json.dumps(tokens[-1])
    if mark == ":" or not tokens or tokens[-1] not in ("{", "[", ","):  # Surplus commas are left out.
        tokens.append(mark)


def _close(tokens: list[str], mark: str) -> None:
    if tokens and tokens[-1] == ",":
        tokens.pop()
    tokens.append(mark)


def _unwrapped(value: object, schema: JsonObject, name: str) -> object:
    """Return the arguments inside further encodings and wrappers."""
    for _ in range(_MAX_LAYERS):
        inner: object
        if _is_nothing(value):
            return {}
        if isinstance(value, str):
            inner = _encoded(value)
        elif isinstance(value, list):
            inner = _single(cast("object", value))
        elif isinstance(value, dict):
            inner = _inside(cast("dict[str, object]", value), schema, name)
        else:
            return value
        if inner is value:
            return cast("object", value)
        value = inner
    return value


def _inside(value: dict[str, object], schema: JsonObject, name: str) -> object:
    """Return what `{"arguments": …}` or `{name: …}` wraps; `value` itself if it is no wrapper."""
    properties, required = _properties(schema), _required(schema)
    rest = set(value) - (_WRAPPER_COMPANIONS - properties.keys())
    if len(rest) != 1 or not ((key := rest.pop()) in _WRAPPERS or key == name):
        return value
    inner = _encoded(value[key])
    if key in properties and not (isinstance(inner, dict) and required and required <= inner.keys()):
        return value
    if isinstance(inner, dict | list):
        return cast("object", inner)
    return {} if _is_nothing(inner) else value


def _single(value: object) -> object:
    """Return the object in a list of one object; `value` itself if it is something else."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    if len(items) == 1 and isinstance(items[0], dict):
        return cast("object", items[0])
    return cast("object", value)


def _encoded(value: object) -> object:
    """Return the value that a string encodes as JSON; `value` itself if it is no such string."""
    if not isinstance(value, str) or not value.strip().startswith(("{", "[", '"', "```")):
        return value
    try:
        return _load(value)
    except (ValueError, RecursionError):
        return value


def _repaired(value: object, schema: JsonObject) -> object:
    """Return `value` with the type that the schema demands, if it only differs in form."""
    kind = schema.get("type")
    if kind in ("array", "object"):
        for _ in range(_MAX_LAYERS):
            value = _encoded(value)
        if value is False or (isinstance(value, str) and _is_nothing(value)):
            return None
    if kind == "object":
        value = _single(value)
    match kind, value:
        case "object", dict() if "properties" in schema:
            return _repaired_object(cast("dict[str, object]", value), schema)
        case "array", list() if isinstance(items := schema.get("items"), dict):
            return [_repaired(item, cast("JsonObject", items)) for item in cast("list[object]", value)]
        case "string", str() if isinstance(options := schema.get("enum"), list):
            wanted = value.strip().lower()
            return next((option for option in cast("list[str]", options) if option.lower() == wanted), value)
        case _:
            return value


def _repaired_object(value: dict[str, object], schema: JsonObject) -> dict[str, object]:
    properties, required = _properties(schema), _required(schema)
    result: dict[str, object] = {}
    for key, item in value.items():
        name = key.strip()
        known = properties.get(name)
        if known is None:
            if not _is_nothing(item):
                result[name] = item
            continue
        repaired = _repaired(item, known)
        # An empty text may be meant; any other nothing stands for an argument that is left out.
        is_text = known.get("type") == "string" and "enum" not in known
        if name in required or not _is_nothing(repaired) or (is_text and repaired == ""):
            result[name] = repaired
    return result


def _is_nothing(value: object) -> bool:
    if isinstance(value, dict):
        return all(item is None for item in cast("dict[str, object]", value).values())
    return value is None or value == [] or (isinstance(value, str) and value.strip() in _NOTHING)


def _properties(schema: JsonObject) -> Mapping[str, JsonObject]:
    return cast("Mapping[str, JsonObject]", schema.get("properties", {}))


def _required(schema: JsonObject) -> frozenset[str]:
    return frozenset(cast("list[str]", schema.get("required", [])))
