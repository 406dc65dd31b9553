"""Settings of the sandbox service, read once from the environment."""

import os
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sandbox.identity import Identity


class Settings(BaseModel):
    """Settings from `SANDBOX_*`. A wrong value raises pydantic's `ValidationError` (see `describe_errors`).

    pydantic-settings is not used, because importing it takes longer than all other work at start-up.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    token: str = Field(min_length=1, pattern=r"^[\x21-\x7e]+$")
    """Token that every request must carry as `Authorization: Bearer <token>`."""
    host: str = "0.0.0.0"  # noqa: S104 - a container is reached from outside; the token guards it
    port: int = Field(default=49171, ge=0, le=65535)
    fd: int | None = Field(default=None, ge=0)
    """Inherited listening socket to use instead of host and port."""
    user: str = ""
    """User as which commands and file calls run; empty: the program's own."""
    browser_user: str = ""
    """User as which Chromium and the window manager run; empty: `user`. Its main group must be that of `user`."""
    program_user: str = ""
    """User that the program becomes if root starts it; empty: it stays the user that started it."""
    home: Path = Field(default_factory=lambda data: Path(Identity.of_user(data.get("user", "")).home))
    """The workspace: the start folder of shells and the base of relative paths."""
    home_alias: Path | None = None
    """Paths at or below this folder mean the same path below `home`."""
    roots: tuple[Path, ...] = ()
    """Folders that the file API is restricted to; empty allows all folders."""
    closed: tuple[Path, ...] = ()
    """Folders that the file API refuses, even below a root, except for roots inside them."""
    output_dir: Path = Field(
        default_factory=lambda data: (
            Path(tempfile.gettempdir()) / f"anker-shell-{Identity.of_user(data.get('user', '')).uid}"
        )
    )
    """Folder for outputs of commands. It belongs to `user`, who may remove it."""
    state_dir: Path | None = Field(default_factory=lambda data: Path("/run/anker") if data.get("user") else None)
    """Folder for files of the program that `user` may read but not change. None: `output_dir`."""
    lifeline_fd: int | None = Field(default=None, ge=0)
    """Read end of a pipe that reaches its end when the parent dies."""
    exec_seconds: float = Field(default=10, ge=0, le=300)
    """Time that exec waits for a command to end, in seconds."""
    browser: Literal["eager", "lazy", "off"] = "lazy"
    """When Chromium starts: at once, on first use, or never."""
    desktop: bool = False
    """Whether to run a desktop (Xvnc). Without it, the browser is headless."""
    chromium: str = ""
    """Path of Chromium; empty selects the first one installed under a usual name."""
    idle_seconds: float = Field(default=0, ge=0)
    """Time without use after which the service ends, in seconds; 0 disables it."""
    sudo: bool = False
    """Whether the file API may work as root through sudo."""
    instance: str = ""
    """Value of `ANKER_SANDBOX` in every shell, which identifies leftover processes."""

    @classmethod
    def from_environment(cls, source: Mapping[str, str]) -> "Settings":
        """Read the settings from `source`. An empty variable counts as absent.

        Raises:
            ValidationError: A value cannot be used.
        """
        found = {name: source.get(environment_variable(name)) for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in found.items() if value})

    @cached_property
    def agent(self) -> Identity:
        """The identity of `user`."""
        return Identity.of_user(self.user)

    @cached_property
    def browser_owner(self) -> Identity:
        """The identity of `browser_user`."""
        return Identity.of_user(self.browser_user or self.user)

    @field_validator("user", "program_user", "browser_user")
    @classmethod
    def _check_user(cls, value: str) -> str:
        try:
            Identity.of_user(value)
        except LookupError:
            raise ValueError("there is no such user") from None
        return value

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
        # The kernel reports folders without symlinks, so the home that they are compared with has none either.
        return Path(os.path.realpath(value))


def environment_variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return "ANKER_SANDBOX" if name == "instance" else f"SANDBOX_{name.upper()}"


def describe_errors(error: ValidationError) -> str:
    """Return one line that names each variable that cannot be used and why, but never its value."""
    parts: list[str] = []
    problems = error.errors(include_input=False, include_url=False)
    # A default that depends on a wrong value is no second error.
    for problem in (one for one in problems if one["type"] != "default_factory_not_called"):
        parts.append(f"{environment_variable(str(problem['loc'][0]))}: {problem['msg'].lower()}")
    return "; ".join(parts)
