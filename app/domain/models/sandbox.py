"""What a sandbox answers: its shells, its files, and where its browser is."""

from dataclasses import dataclass, field
from typing import Literal

ShellStatus = Literal["completed", "running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleRecord:
    """One command on the console: its prompt, the command, and its output with control sequences resolved."""

    ps1: str
    command: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellState:
    """A shell after a call. `output` is bounded; the whole is in `output_file` where the sandbox keeps one."""

    shell_id: str
    """The shell's id (clients know it by this name), not the conversation's."""
    status: ShellStatus
    returncode: int | None = None
    output: str = ""
    console: tuple[ConsoleRecord, ...] = ()
    truncated: bool = False
    output_file: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileText:
    """Text read from a file. Lines count from 0."""

    file: str
    content: str
    line_count: int | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMatches:
    """Lines of a file that match a pattern."""

    file: str
    matches: tuple[str, ...]
    line_numbers: tuple[int, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFiles:
    """Paths that match a glob."""

    path: str
    files: tuple[str, ...]
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserEndpoint:
    """Where the sandbox's Chromium is driven over CDP."""

    url: str
    """The base URL, such as `http://172.18.0.2:8080/cdp`; `<url>/json/version` names the WebSocket."""
    token: str = field(repr=False)
    """Sent as `Authorization: Bearer <token>` with every request, the WebSocket's included."""
    home: str
    """The workspace as the browser sees it; downloads go to `Downloads` in it."""
    shared: bool = False
    """Other sessions drive it too: each keeps to tabs, cookies and downloads of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """One part of a sandbox (`shell`, `browser` or `desktop`): whether it can be used, and why not."""

    ready: bool
    reason: str = ""
