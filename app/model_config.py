"""The models of the service: the profiles of `MODELS_CONFIG`, or the one that the settings describe.

A value that a profile leaves out comes from what is known of the model's family (`families.toml`), else from the
settings. docs/operations.md describes the file.
"""

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from app.domain.models.model_profile import ModelProfile, Prices
from app.infrastructure.llm.addresses import public_address
from app.infrastructure.llm.families import ContextTokens, ModelFacts, Temperature, Tokens, facts_of
from app.settings import Settings, UnusableSetting, environment, http_address

NO_KEY = "none"
"""Key that is sent to a server that needs none: requests without a key are refused by some of them."""

UNKNOWN_OUTPUT_LIMIT = 8_192
"""`output_limit` of a model of which nothing is known."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_POSITION = re.compile(r"(.*) \(at line (\d+), column \d+\)", re.DOTALL)
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
_REASONS = {
    "missing": "missing",
    "extra_forbidden": "unknown key",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "model_type": "must be a table",
}
"""Reasons by pydantic's error type; for others pydantic's message is shown."""

T = TypeVar("T")


def _variable(value: str) -> str:
    # Capitals only: a key that was written here by mistake must not be taken for a name, because names are shown.
    if not _VARIABLE.fullmatch(value):
        raise ValueError("must be the name of an environment variable, in capitals; the key itself belongs in .env")
    return value


class _PriceEntry(BaseModel):
    model_config = _STRICT

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)
    cached: Annotated[float, Field(ge=0)] | None = None


class _ModelEntry(BaseModel):
    """A table `[models.NAME]`."""

    model_config = _STRICT

    model: str = Field(min_length=1)
    base_url: Annotated[str, AfterValidator(http_address)] | None = None
    api_key_env: Annotated[str, AfterValidator(_variable)] | None = None
    context_tokens: ContextTokens | None = None
    max_tokens: Tokens | None = None
    output_limit: Tokens | None = None
    temperature: Temperature | None = None
    vision: bool | None = None
    parallel_calls: bool = True
    thinking_replay: bool = True
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    prices: _PriceEntry | None = None


class _ModelsFile(BaseModel):
    """The content of the file."""

    model_config = _STRICT

    models: dict[str, _ModelEntry]
    default: str | None = None
    planner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """A profile with what its adapter needs besides."""

    profile: ModelProfile
    base_url: str
    api_key: SecretStr
    temperature: float | None
    """None: the model takes none."""
    thinking_replay: bool
    """Whether the server takes back the fields that it added to its own turns."""
    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All profiles by name, in the order of the file."""

    models: Mapping[str, ModelOptions]
    default: str
    planner: str = ""
    """Name of the profile that plans and answers; empty if each session's own profile does."""


class _BadKey(ValueError):
    """A key of the file has an unusable value. `path`: its tables and its name."""

    def __init__(self, path: tuple[str, ...], reason: str) -> None:
        super().__init__(reason)
        self.path = path


def load_models(settings: Settings) -> ModelConfig:
    """Return the profiles of `MODELS_CONFIG`; without it, `default` as the settings describe it.

    Raises:
        UnusableSetting: The file cannot be used, or a key is missing.
    """
    config = _load_file(settings) if settings.models_config else _load_settings(settings)
    return replace(config, planner=planner_of(settings, config.models) or config.planner)


def planner_of(settings: Settings, models: Collection[str]) -> str:
    """Return `PLANNER_MODEL`.

    Raises:
        UnusableSetting: There is no such profile.
    """
    name = settings.planner_model
    if name and name not in models:
        raise UnusableSetting(f"PLANNER_MODEL: unknown; the models are {', '.join(models)}")
    return name


def _load_settings(settings: Settings) -> ModelConfig:
    """Return the profile that the settings describe."""
    if not settings.api_key.get_secret_value():
        raise UnusableSetting("API_KEY: LLM_PROVIDER=openai needs it, unless MODELS_CONFIG names the models")
    entry = _ModelEntry(
        model=settings.model_name,
        context_tokens=_unless_default(settings, "model_context_tokens", settings.model_context_tokens),
        max_tokens=_unless_default(settings, "max_tokens", settings.max_tokens),
        temperature=_unless_default(settings, "temperature", settings.temperature),
    )
    try:
        return ModelConfig(models={"default": _options("default", entry, settings, {})}, default="default")
    except _BadKey as error:
        raise UnusableSetting(f"MAX_TOKENS: {error}") from None


def _unless_default(settings: Settings, name: str, value: T) -> T | None:
    """Return the value of a setting, or None if it is the default. A copy of `.env.example` sets every default."""
    return None if value == type(settings).model_fields[name].default else value


def _load_file(settings: Settings) -> ModelConfig:
    path = settings.models_config
    text = ""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return _parse(tomllib.loads(text), settings)
    except OSError as error:
        raise UnusableSetting(f"MODELS_CONFIG: {path}: {(error.strerror or 'cannot be read').lower()}") from None
    except UnicodeDecodeError:
        raise UnusableSetting(f"MODELS_CONFIG: {path}: not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise UnusableSetting(f"MODELS_CONFIG: {path}, {_syntax_problem(str(error), text)}") from None
    except _BadKey as error:
        line = _line_of(error.path, text)
        place = f"{path}, line {line}" if line else path
        raise UnusableSetting(f"MODELS_CONFIG: {place}, {_dotted(error.path)}: {error}") from None
    except (ValueError, RecursionError):  # tomllib's, which names no line
        raise UnusableSetting(
            f"MODELS_CONFIG: {path}: a number is too large, or values are nested too deeply"
        ) from None


def _parse(document: Mapping[str, object], settings: Settings) -> ModelConfig:
    try:
        found = _ModelsFile.model_validate(document)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        # A misspelt key is both unknown and missing: name the one that is in the file.
        first = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
        reason = _REASONS.get(first["type"], first["msg"].removeprefix("Value error, "))
        raise _BadKey(tuple(map(str, first["loc"])), reason.replace("Input should be", "must be")) from None
    if not found.models:
        raise _BadKey(("models",), "must name at least one model")
    for name in found.models:
        if not _NAME.fullmatch(name):
            reason = "a name has up to 64 letters, digits, hyphens, dots or underscores, a letter or digit first"
            raise _BadKey(("models", name), reason)
    known = ", ".join(found.models)
    for key, name in (("default", found.default), ("planner", found.planner)):
        if name is not None and name not in found.models:
            raise _BadKey((key,), f"unknown; the models are {known}")
    variables = environment()
    models = {name: _options(name, entry, settings, variables) for name, entry in found.models.items()}
    return ModelConfig(models=models, default=found.default or next(iter(models)), planner=found.planner or "")


def _options(name: str, entry: _ModelEntry, settings: Settings, variables: Mapping[str, str]) -> ModelOptions:
    """Return the profile `name` with the values that `entry` leaves out.

    Raises:
        _BadKey: The values do not fit together, or the key is missing.
    """
    facts = facts_of(entry.model)
    base_url = entry.base_url or settings.api_base
    context_tokens = entry.context_tokens or facts.context_tokens or settings.model_context_tokens
    max_tokens, output_limit = _output(name, entry, facts, settings, context_tokens)
    temperature = entry.temperature if entry.temperature is not None else facts.temperature
    if temperature is None:
        temperature = settings.temperature
    prices = entry.prices
    profile = ModelProfile(
        name=name,
        model=entry.model,
        identity=f"{entry.model} at {public_address(base_url)}",
        context_tokens=context_tokens,
        max_tokens=max_tokens,
        output_limit=output_limit,
        vision=bool(facts.vision) if entry.vision is None else entry.vision,
        parallel_calls=entry.parallel_calls,
        prices=prices and Prices(prompt=prices.prompt, completion=prices.completion, cached=prices.cached),
    )
    return ModelOptions(
        profile=profile,
        base_url=base_url,
        api_key=SecretStr(_key(name, entry, settings, variables)),
        temperature=None if temperature == "none" else temperature,
        thinking_replay=entry.thinking_replay,
        timeout_seconds=entry.timeout_seconds or settings.llm_timeout_seconds,
    )


def _output(
    name: str, entry: _ModelEntry, facts: ModelFacts, settings: Settings, context_tokens: int
) -> tuple[int, int]:
    """Return the usual and the largest length of a reply. Without a value of its own, neither fills the window."""
    limit = entry.output_limit or min(facts.output_limit or UNKNOWN_OUTPUT_LIMIT, context_tokens // 2)
    max_tokens = entry.max_tokens or min(settings.max_tokens, limit)
    if max_tokens >= context_tokens:
        reason = f"must be less than the {context_tokens} tokens of the context, which also holds the prompt"
        raise _BadKey(("models", name, "max_tokens"), reason)
    if entry.output_limit is not None and max_tokens > entry.output_limit:
        raise _BadKey(("models", name, "max_tokens"), "must be at most output_limit")
    return max_tokens, max(max_tokens, limit)


def _key(name: str, entry: _ModelEntry, settings: Settings, variables: Mapping[str, str]) -> str:
    variable = entry.api_key_env
    if variable is None:
        # A key goes only to the server that it was set for.
        return (settings.api_key.get_secret_value() if entry.base_url is None else "") or NO_KEY
    key = variables.get(variable, "").strip()
    if not key:
        raise _BadKey(("models", name, "api_key_env"), f"{variable} is not set, in the environment or in .env")
    if not (key.isascii() and key.isprintable()):
        raise _BadKey(("models", name, "api_key_env"), f"{variable} contains characters that cannot be sent")
    return key


def _syntax_problem(message: str, text: str) -> str:
    """Return the line, its key if it has one, and the reason of a syntax error."""
    found = _POSITION.fullmatch(message)
    if found is None:
        return f"end of the file: {message.removesuffix(' (at end of document)')}"
    line = text.split("\n")[int(found[2]) - 1]
    key = _dotted(_path_in(f"{line.partition('=')[0]} = 0"))
    return f"line {found[2]}, {key}: {found[1]}" if key else f"line {found[2]}: {found[1]}"


def _line_of(path: tuple[str, ...], text: str) -> int:
    """Return the number of the line in the TOML `text` that names most of `path`; 0 if none names any of it."""
    best, found, table = 0, 0, ()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.lstrip().startswith("["):
            named = table = _path_in(line)
        elif "=" in line:
            named = (*table, *_path_in(f"{line.partition('=')[0]} = 0"))
        else:
            continue
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(named, path, strict=False))))
        if best < shared:
            best, found = shared, number
    return found


def _dotted(path: tuple[str, ...]) -> str:
    """Return the name of a key on one line."""
    return ".".join(name if name.isprintable() else ascii(name) for name in path)


def _path_in(line: str) -> tuple[str, ...]:
    """Return the names in a table header or in a key; none if the line is a part of something longer."""
    try:
        node: object = tomllib.loads(line)
    except (ValueError, RecursionError):
        return ()
    names: list[str] = []
    while isinstance(node, dict) and node:
        name, node = next(iter(cast("dict[str, object]", node).items()))
        names.append(name)
    return tuple(names)
