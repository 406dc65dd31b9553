"""JSON Schemas of the tools' input models, in as few tokens as possible."""

from collections.abc import Mapping
from functools import cache
from typing import cast

from pydantic import BaseModel

from app.domain.models.tool import JsonObject

_OMITTED = frozenset(
    {"title", "default", "additionalProperties", "minLength", "maxLength", "maxItems", "minimum", "maximum"}
)
"""Schema keywords that the model need not read. Arguments are validated against them all the same."""


@cache
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
