"""Tool calls that a model wrote as text, because its server does not parse them.

Each family of models has its own form: JSON, a name before JSON, XML with one element for each argument, or Python.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from app.domain.models.tool import ToolSpec
from app.infrastructure.llm.wire_text import to_json

_DECODER = json.JSONDecoder(strict=False)
_NAME_KEYS = ("name", "function", "tool", "tool_name", "function_name", "action")
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "params", "tool_input", "action_input", "kwargs")
_GAP = re.compile(r"[\s,;]*")
_SEPARATOR = r"(?:<[|\uff5c][^<>]{1,60}[|\uff5c]>|\[ARGS\]|\[CALL_ID\][\w-]*|```(?:json)?)"
_NAMED = re.compile(
    rf"(?:(?:{_SEPARATOR}|\[TOOL_CALLS\])\s*)*(?:function\s*{_SEPARATOR}\s*)?([\w.-]+)(?::\d+)?\s*(?:{_SEPARATOR}\s*)*(?=\{{)"
)
"""Matches a name before its arguments as JSON, with the tokens of DeepSeek, Kimi and Mistral."""

_AFTER_JSON = re.compile(rf"\s*(?:(?:```|{_SEPARATOR})\s*)*")
BLOCK = re.compile(
    r"<(?:[^\s<>/=]*[:\uff5c|])?(?:function|invoke)(?:\s*=\s*|\s+name\s*=\s*)[\"']?([^\"'<>\s]++)[^<>]*+>",
    re.IGNORECASE,
)
"""Matches the start of a call whose arguments are elements."""

BLOCK_END = re.compile(r"</(?:[^\s<>/=]*[:\uff5c|])?(?:function|invoke)\s*>", re.IGNORECASE)
_PARAMETER = re.compile(
    r"<(?:[^\s<>/=]*[:\uff5c|])?parameter(?:\s*=\s*|\s+name\s*=\s*)[\"']?([^\"'<>\s]++)[^<>]*+>(.*?)"
    r"(?=</(?:[^\s<>/=]*[:\uff5c|])?parameter\s*>|<(?:[^\s<>/=]*[:\uff5c|])?parameter[=\s]|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_PAIR = re.compile(r"<arg_key>([^<]*+)</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|\Z)", re.DOTALL)
_PAIRS_NAME = re.compile(r"\s*([\w.:-]+)\s*(?=<arg_key>|\Z)")
_ELEMENTS_NAME = re.compile(r"<(name|tool_name|function_name)>\s*([\w.:-]+)\s*</\1>")
_ARGUMENTS_OPENING = re.compile(r"<(arguments|parameters|params|input|args)>")
_OPENING = re.compile(r"<(\w+)>")
_MAX_UNCLOSED = 20
_BROKEN_NAME = re.compile(r"""["'](?:name|function|tool)["']\s*:\s*["']([\w.:-]+)["']""")
_BROKEN_ARGUMENTS = re.compile(r"""["'](?:arguments|parameters|args|input)["']\s*:\s*""")


@dataclass(frozen=True, slots=True)
class TextCall:
    """A call as the model wrote it."""

    name: str
    arguments: str
    """JSON text, unless the model made a mistake."""


class CallReader:
    """Reads calls in any of the known forms. Arguments in elements get the types that the functions ask for."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def are_offered(self, calls: Sequence[TextCall]) -> bool:
        """Return whether there are calls, all to functions that the request offers."""
        return bool(calls) and all(call.name in self._tools for call in calls)

    def is_offered(self, name: str) -> bool:
        """Return whether the request offers the function `name`."""
        return name in self._tools

    def read_sequence(self, text: str, position: int) -> tuple[list[TextCall], int]:
        """Return the calls from `position` on that are JSON, or names before JSON, and the end of the last one."""
        calls: list[TextCall] = []
        end = position
        while True:
            start = _end(_GAP, text, end)
            named = _NAMED.match(text, start)
            value, after = _decode(text, named.end() if named else start)
            if value is None:
                return calls, end
            if named:
                found = [TextCall(self._known(named[1]), _arguments(value))]
                after = _end(_AFTER_JSON, text, after)
            else:
                found = self._from_value(value)
            if not found:
                return calls, end
            calls += found
            end = after

    def read(self, body: str) -> list[TextCall]:
        """Return the calls in the body of a piece of markup; none if it cannot be understood."""
        calls, end = self.read_sequence(body, 0)
        if calls and not body[end:].strip():
            return calls
        return self._read_blocks(body) or self._read_pairs(body) or self._read_elements(body) or self.read_python(body)

    def read_broken(self, body: str) -> list[TextCall]:
        """Return the call whose JSON is invalid or cut off, with its arguments as they are."""
        name, arguments = _BROKEN_NAME.search(body), _BROKEN_ARGUMENTS.search(body)
        if name is None:
            return []
        text = body[arguments.end() :].strip() if arguments else ""
        # The last bracket is that of the object around the arguments.
        text = text.removesuffix("}").rstrip() if text.count("{") < text.count("}") else text
        return [TextCall(self._known(name[1]), text)]

    def read_python(self, body: str) -> list[TextCall]:
        """Return the calls in a Python expression: `name(x=1)`, a list of such calls, or a dictionary."""
        try:
            tree = ast.parse(body.strip(), mode="eval").body
            nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
            calls: list[TextCall] = []
            for node in nodes:
                is_print = isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and len(node.args) == 1
                call = node.args[0] if is_print and isinstance(node, ast.Call) else node
                calls += (
                    self._from_call(call) if isinstance(call, ast.Call) else self._from_value(ast.literal_eval(call))
                )
            return calls
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            return []

    def _from_call(self, call: ast.Call) -> list[TextCall]:
        name = self._known(ast.unparse(call.func).removesuffix(".call"))
        name = name if name in self._tools else name.rpartition(".")[2]
        names = list(self._properties(name))
        values = {names[n] if n < len(names) else str(n): ast.literal_eval(value) for n, value in enumerate(call.args)}
        values |= {item.arg or "": ast.literal_eval(item.value) for item in call.keywords}
        return [TextCall(name, to_json(values) or "")]

    def _from_value(self, value: object, levels: int = 4) -> list[TextCall]:
        """Return the calls that a JSON value describes; none if it is ordinary JSON."""
        if isinstance(value, list) and levels:
            found = [self._from_value(item, levels - 1) for item in cast("list[object]", value)]
            return [call for calls in found for call in calls] if all(found) else []
        if not isinstance(value, dict) or not levels:
            return []
        fields = cast("dict[str, object]", value)
        for nested in (
            fields.get("tool_calls"),
            fields.get("function"),
            fields.get("tool_call"),
            fields.get("function_call"),
        ):
            if isinstance(nested, dict | list) and nested:
                return self._from_value(cast("object", nested), levels - 1)
        name = next((fields[key] for key in _NAME_KEYS if isinstance(fields.get(key), str)), None)
        arguments = next((key for key in _ARGUMENT_KEYS if key in fields), None)
        if isinstance(name, str) and arguments:
            inner = fields[arguments]
            # A JSON Schema there is the description of a function, not a call.
            is_schema = isinstance(inner, dict) and "properties" in inner and "type" in inner
            return [] if is_schema or not name.strip() else [TextCall(self._known(name), _arguments(fields[arguments]))]
        if len(fields) == 1:
            only, inner = next(iter(fields.items()))
            if self._known(only) in self._tools and isinstance(inner, dict):
                return [TextCall(self._known(only), to_json(fields[only]) or "")]
            if isinstance(name, str) and self._known(name) in self._tools:
                return [TextCall(self._known(name), "{}")]
        return []

    def _read_blocks(self, body: str) -> list[TextCall]:
        calls: list[TextCall] = []
        starts = list(BLOCK.finditer(body))
        for number, start in enumerate(starts):
            limit = starts[number + 1].start() if number + 1 < len(starts) else len(body)
            end = BLOCK_END.search(body, start.end(), limit)
            inner = body[start.end() : end.start() if end else limit]
            name = self._known(start[1])
            pairs = _PARAMETER.findall(inner) or _PAIR.findall(inner)
            if not pairs and inner.strip():
                value, _ = _decode(inner, _end(_GAP, inner, 0))
                calls.append(TextCall(name, inner.strip() if value is None else _arguments(value)))
            else:
                calls.append(TextCall(name, self._typed(name, pairs)))
        return calls

    def _read_pairs(self, body: str) -> list[TextCall]:
        name = _PAIRS_NAME.match(body)
        if name is None:
            return []
        known = self._known(name[1])
        return [TextCall(known, self._typed(known, _PAIR.findall(body)))]

    def _read_elements(self, body: str) -> list[TextCall]:
        if (name := _ELEMENTS_NAME.search(body)) is None:
            return []
        arguments = next((text for _, text in _elements(body, _ARGUMENTS_OPENING)), "{}")
        return [TextCall(self._known(name[2]), arguments.strip())]

    def read_element(self, name: str, body: str) -> list[TextCall]:
        """Return the call to `name` whose arguments are JSON, or an element each."""
        if is_json_at(body, _end(_GAP, body, 0)):
            return [TextCall(name, body.strip())]
        pairs = list(_elements(body, _OPENING))
        return [TextCall(name, self._typed(name, pairs))] if pairs or not body.strip() else []

    def _typed(self, name: str, pairs: Sequence[tuple[str, str]]) -> str:
        """Return arguments that were written as text as JSON."""
        properties = self._properties(name)
        values: dict[str, object] = {}
        for key, text in pairs:
            spec = properties.get(key.strip())
            is_text = isinstance(spec, dict) and cast("dict[str, object]", spec).get("type") == "string"
            # One line end on each side belongs to the markup.
            text = text.removeprefix("\n").removesuffix("\n")
            values[key.strip()] = text if is_text else _literal(text)
        return to_json(values) or ""

    def _properties(self, name: str) -> Mapping[str, object]:
        tool = self._tools.get(name)
        properties = tool.parameters.get("properties") if tool else None
        return cast("dict[str, object]", properties) if isinstance(properties, dict) else {}

    def _known(self, name: str) -> str:
        """Return a name without the decorations that some models add, if only they hide a known function."""
        name = name.strip()
        bare = re.sub(r"^(?:functions?|tools?|default_api)[.:]|:\d+$", "", name)
        return name if name in self._tools or not bare else bare


def _elements(text: str, opening: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each element whose first tag matches. Give up after many that are not closed."""
    position = unclosed = 0
    while unclosed < _MAX_UNCLOSED and (opened := opening.search(text, position)):
        position = opened.end()
        end = text.find(close := f"</{opened[1]}>", position)
        if end < 0:
            unclosed += 1
            continue
        yield opened[1], text[position:end]
        position = end + len(close)


def _decode(text: str, position: int) -> tuple[object, int]:
    """Return the JSON object or list at `position` and its end; None if there is none."""
    if text[position : position + 1] not in ("{", "["):
        return None, position
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, position


def is_json_at(text: str, position: int) -> bool:
    """Return whether a complete JSON object or list begins at `position`."""
    return _decode(text, position)[0] is not None


def _arguments(value: object) -> str:
    if isinstance(value, str):
        return value
    return "{}" if value is None else to_json(value) or ""


def _literal(text: str) -> object:
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        # What Python calls these values is what many models write.
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position
