"""Built-in facts about well-known models. `families.toml` has them all."""

import re
import tomllib
from functools import cache
from importlib import resources
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

_MAX_TEMPERATURE = 2


def _check_temperature(value: object) -> object:
    match value:
        case bool():
            pass
        case "none":
            return value
        case int() | float() if 0 <= value <= _MAX_TEMPERATURE:
            return value
        case _:
            pass
    raise ValueError(f'must be a number from 0 to {_MAX_TEMPERATURE}, or "none"')


Tokens = Annotated[int, Field(ge=1)]
ContextTokens = Annotated[int, Field(ge=1_000)]

Temperature = Annotated[float | Literal["none"], BeforeValidator(_check_temperature)]
"""A sampling temperature; "none" for a model that takes none."""


class ModelFacts(BaseModel):
    """Known facts of a model. None means that it is not known."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    context_tokens: ContextTokens | None = None
    output_limit: Tokens | None = None
    vision: bool | None = None
    temperature: Temperature | None = None


class _Family(ModelFacts):
    """The facts about the models whose name has a pattern."""

    pattern: str


class _FamilyFile(BaseModel):
    """The content of `families.toml`."""

    model_config = ConfigDict(extra="forbid")

    families: list[_Family]


class _CompiledFamily(NamedTuple):
    pattern: re.Pattern[str]
    facts: ModelFacts


def facts_of(model: str) -> ModelFacts:
    """Return the facts about the model with this name; none are known of a model that belongs to no family."""
    return next((family.facts for family in _families() if family.pattern.search(model)), ModelFacts())


@cache
def _families() -> tuple[_CompiledFamily, ...]:
    text = resources.files(__package__ or "").joinpath("families.toml").read_text("utf-8")
    found = _FamilyFile.model_validate(tomllib.loads(text)).families
    return tuple(
        _CompiledFamily(re.compile(rf"(?:^|[/.:])(?:{family.pattern})", re.IGNORECASE), family) for family in found
    )
