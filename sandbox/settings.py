"""Every setting of the sandbox service, read once from the environment."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


def default_output_dir() -> Path:
    """The folder for whole command outputs when none is set: one a user, in the system's temporary folder."""
    return Path(tempfile.gettempdir()) / f"anker-shell-{os.getuid()}"


class Settings(BaseModel):
    """Settings from `SANDBOX_*`; a wrong value raises pydantic's `ValidationError` (see `complaint`).

    Read without pydantic-settings: loading that takes longer than everything that is done with it here."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    token: str = Field(min_length=1, pattern=r"^[\x21-\x7e]+$")
    """What every request must carry as `Authorization: Bearer <token>`."""
    host: str = "0.0.0.0"  # noqa: S104 - a container is reached from outside; the token guards it
    port: int = Field(default=8080, ge=0, le=65535)
    fd: int | None = Field(default=None, ge=0)
    """An inherited listening socket, used instead of host and port."""
    home: Path = Field(default_factory=Path.home)
    """The workspace: where shells start and what relative paths start from."""
    home_alias: Path | None = None
    """Paths at or below it mean the same path below `home`."""
    roots: tuple[Path, ...] = ()
    """When set, the file API stays below these folders."""
    closed: tuple[Path, ...] = ()
    """Folders that the file API keeps out of even where they lie below a root, but for the roots inside them."""
    output_dir: Path = Field(default_factory=default_output_dir)
    lifeline_fd: int | None = Field(default=None, ge=0)
    """A pipe's read end; at its end of file the parent is gone."""
    exec_seconds: float = Field(default=10, ge=0, le=300)
    """How long exec waits for a command to end."""
    browser: Literal["eager", "lazy", "off"] = "lazy"
    """Whether Chromium is started at once, by the first who wants to drive it, or never."""
    desktop: bool = False
    """Whether there is a desktop (Xvnc); without one the browser is headless."""
    chromium: str = ""
    """Where Chromium is; empty: the first that is found under a usual name."""
    idle_seconds: float = Field(default=0, ge=0)
    """The service ends itself when it was not used for so long; 0: never."""
    sudo: bool = False
    """Whether the file API may work as root, through sudo."""
    instance: str = ""
    """Handed on to every shell as ANKER_SANDBOX, so that leftovers can be found by it."""

    @classmethod
    def from_environment(cls, source: Mapping[str, str]) -> "Settings":
        """The settings in `source`; a variable that is empty counts as absent. Raises ValidationError."""
        found = {name: source.get(variable(name)) for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in found.items() if value})

    @field_validator("roots", "closed", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("roots", "closed")
    @classmethod
    def _resolve_roots(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(Path(os.path.realpath(root)) for root in value)

    @field_validator("home")
    @classmethod
    def _resolve_home(cls, value: Path) -> Path:
        # The kernel reports a shell's folder without symlinks, so the home it is compared with has none either.
        return Path(os.path.realpath(value))


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return "ANKER_SANDBOX" if name == "instance" else f"SANDBOX_{name.upper()}"


def complaint(error: ValidationError) -> str:
    """One line that names each variable that cannot be used and why; never its value."""
    parts: list[str] = []
    for problem in error.errors(include_input=False, include_url=False):
        parts.append(f"{variable(str(problem['loc'][0]))}: {problem['msg'].lower()}")
    return "; ".join(parts)
