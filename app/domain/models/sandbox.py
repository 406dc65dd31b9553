"""Values that a sandbox returns: states of shells, contents of files, and the address of its browser."""

from dataclasses import dataclass, field
from typing import Literal

ShellStatus = Literal["completed", "running"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleRecord:
    """One command on a console: the prompt, the command, and its output with control sequences resolved."""

    ps1: str
    command: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellState:
    """The state of a shell after a call."""

    shell_id: str
    status: ShellStatus
    returncode: int | None = None
    output: str = ""
    """The output, shortened if `truncated`."""
    console: tuple[ConsoleRecord, ...] = ()
    truncated: bool = False
    output_file: str = ""
    """The path of a file with the whole output; "" if the sandbox keeps none."""
    version: str = ""
    """Changes whenever the console does; "" where the call returns none."""
    note: str = ""
    """What the user of the shell must know beside the exit code, such as the loss of its state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileText:
    """Text that was read from a file."""

    file: str
    content: str
    line_count: int | None = None
    truncated: bool = False
    encoding: str = ""
    encoding_is_guess: bool = False
    note: str = ""
    """What the reader must know beside the text, such as where to read on; "" for nothing."""
    view: str | None = None
    """What a person is shown of the file: all of it, or the part that the call was about; None if it is no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file that was changed, and how much: the bytes that were written, or the occurrences that were replaced."""

    file: str
    """The path in the sandbox, absolute."""
    count: int
    encoding: str = ""
    encoding_is_guess: bool = False
    note: str = ""
    """What else the change did, or was based on; "" for nothing."""
    view: str | None = None
    """What a person is shown of the file: all of it, or the part that the call was about; None if it is no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMatches:
    """The lines of a file that match a pattern; the first line of a file is number 0."""

    file: str
    matches: tuple[str, ...]
    line_numbers: tuple[int, ...]
    truncated: bool = False
    """Whether more lines may match."""
    note: str = ""
    """What the search left out, or was based on; "" for nothing."""
    view: str | None = None
    """What a person is shown of the file: all of it, or the part that the call was about; None if it is no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFiles:
    """The paths below `path` that match a glob."""

    path: str
    files: tuple[str, ...]
    truncated: bool = False
    unreadable: int = 0
    """Number of folders that could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderEntry:
    """An entry of a folder."""

    name: str
    kind: str
    """`file`, `directory`, `link`, or `other`."""
    size: int
    """Bytes of a file."""
    modified: float
    """Time of its last change, in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderListing:
    """The entries of a folder by name."""

    entries: tuple[FolderEntry, ...]
    truncated: bool = False
    """Whether the folder has more entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileImage:
    """A picture that was read from a file, scaled."""

    file: str
    jpeg: bytes = field(repr=False)
    original_width: int
    original_height: int
    """Size of the picture in the file, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserEndpoint:
    """The address at which a sandbox's Chromium is driven over CDP."""

    url: str
    """The base URL, such as `http://172.18.0.2:49171/cdp`; `<url>/json/version` has the address of the WebSocket."""
    token: str = field(repr=False)
    """The token for `Authorization: Bearer <token>`, which every request and the WebSocket needs."""
    home: str
    """The path of the workspace in the sandbox; downloads go to its folder `Downloads`."""
    shared: bool = False
    """Whether other sessions drive the browser too; each then uses tabs, cookies and downloads of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartStatus:
    """The state of one part of a sandbox (`shell`, `browser` or `desktop`): usable, or the reason why not."""

    ready: bool
    reason: str = ""
