"""The command `./run.sh check-model [PROFILE] [--save]`: probe a model and print what to expect of it."""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import cast

from app.infrastructure.llm.addresses import public_address
from app.infrastructure.llm.check.check import check_endpoint
from app.infrastructure.llm.check.findings import FactValue, Finding, Verdict
from app.model_config import ModelOptions, load_models
from app.settings import UnusableSetting, load_settings

SECONDS = 110.0
"""Default of the maximum time of a check, in seconds."""

NEW_FILE = "models.toml"
"""File that `--save` writes if `MODELS_CONFIG` is empty."""


def main(arguments: Sequence[str]) -> int:
    """Check a model as the command line says. Return the exit code: 0 if the model is usable, 1 if it is not."""
    parser = argparse.ArgumentParser(prog="anker check-model", description="Probe a model; say what to expect of it.")
    parser.add_argument("profile", nargs="?", default="", help="name of its profile; without it, the default one")
    parser.add_argument("--save", action="store_true", help="write what was found to the file MODELS_CONFIG")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="maximum time of the check (default: 110)")
    options = parser.parse_args(arguments)
    try:
        settings = load_settings()
        config = load_models(settings)
        name = str(options.profile or config.default)
        if name not in config.models:
            raise UnusableSetting(f"PROFILE: unknown; the models are {', '.join(config.models)}")
        verdict = asyncio.run(_check(config.models[name], options.seconds, in_file=bool(settings.models_config)))
        if options.save:
            path = Path(settings.models_config or NEW_FILE)
            print(_save(path, name, config.models[name], verdict))
            if verdict.usable and not settings.models_config:
                print(f"Set MODELS_CONFIG={path} to use it.")
    except UnusableSetting as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if verdict.usable else 1


async def _check(options: ModelOptions, seconds: float, *, in_file: bool) -> Verdict:
    profile = options.profile
    print(
        f"Checking {profile.name}: {profile.model} at {public_address(options.base_url)}, for up to {seconds:g} s …\n"
    )
    sys.stdout.flush()
    verdict = await check_endpoint(
        profile=profile,
        base_url=options.base_url,
        api_key=options.api_key.get_secret_value(),
        temperature=options.temperature,
        seconds=seconds,
        report=_print,
        in_file=in_file,
    )
    print(f"\nVerdict: {verdict.text}")
    return verdict


def _print(finding: Finding) -> None:
    print(f"{finding.level:<9}{finding.probe:<16}{finding.text}")
    if finding.advice:
        print(f"{'':<25}→ {finding.advice}")
    sys.stdout.flush()


def _save(path: Path, name: str, options: ModelOptions, verdict: Verdict) -> str:
    """Write what was found into the profile `name` of a file. Return the line to print.

    Raises:
        UnusableSetting: The file cannot be written.
    """
    if not verdict.usable:
        return "Nothing is saved, because the model is not usable."
    facts = dict(verdict.facts)
    window = facts.get("context_tokens", options.profile.context_tokens)
    if isinstance(window, int) and options.profile.max_tokens > window // 2:
        facts["max_tokens"] = window // 4  # a reply must leave room for the prompt
    target = path.resolve()
    try:
        text = target.read_text("utf-8-sig") if target.exists() else ""
        _replace(target, _with_profile(text, name, _identity(options), facts))
    except (OSError, ValueError) as error:  # tomlkit's errors are ValueErrors
        reason = (error.strerror or "cannot be written").lower() if isinstance(error, OSError) else str(error)
        raise UnusableSetting(f"MODELS_CONFIG: {path}: {reason}") from None
    found = ", ".join(f"{key} = {str(value).lower()}" for key, value in facts.items())
    return f"Saved to {path}, profile {name}: {found}."


def _identity(options: ModelOptions) -> Mapping[str, FactValue]:
    """Return the fields that say which model it is, without secrets."""
    fields: dict[str, FactValue] = {"model": options.profile.model, "api_key_env": "API_KEY"}
    if options.base_url == public_address(options.base_url):
        fields["base_url"] = options.base_url
    return fields


def _with_profile(text: str, name: str, identity: Mapping[str, FactValue], facts: Mapping[str, FactValue]) -> str:
    """Return the TOML `text` with `facts` in the profile `name`, which is added with `identity` if it is new."""
    import tomlkit  # only `--save` needs it

    document = tomlkit.parse(text)
    models = cast("MutableMapping[str, object]", document.setdefault("models", tomlkit.table(is_super_table=True)))
    if name not in models:
        models[name] = tomlkit.item(dict(identity))
    cast("MutableMapping[str, object]", models[name]).update(facts)
    return tomlkit.dumps(document)


def _replace(path: Path, text: str) -> None:
    """Replace the content of a file, or create it, so that a reader sees the old or the new content."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
