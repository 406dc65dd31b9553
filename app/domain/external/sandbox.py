"""Ports: a session's sandbox, and the provider of sandboxes."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from app.domain.models.sandbox import (
    BrowserEndpoint,
    FileChange,
    FileImage,
    FileMatches,
    FileText,
    FolderListing,
    FoundFiles,
    PartStatus,
    ShellState,
)


class Desktop(Protocol):
    """One viewer's connection to a sandbox's desktop. It carries bytes of the RFB (VNC) protocol in both directions."""

    async def receive(self) -> bytes:
        """Return the next bytes from the desktop; `b""` when it has closed the connection in order.

        Raises:
            SandboxUnavailable: The connection broke.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send `data` to the desktop; wait while it takes no more.

        Raises:
            SandboxUnavailable: The connection broke.
        """
        ...

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        ...


class Sandbox(Protocol):
    """One session's sandbox.

    Paths may be absolute, relative to the workspace, or begin with `~`; the workspace is the shells' home.

    Every method may raise:
        SandboxFailure: The sandbox refused the request; the message tells the model or the user what to change.
        SandboxUnavailable: The sandbox does not respond.
    """

    @property
    def instance_id(self) -> str:
        """The name of the sandbox instance. When it changes, the files are the same but all processes have ended."""
        ...

    @property
    def browser(self) -> BrowserEndpoint:
        """The address of the browser. Whether there is a browser shows in `status`, or when it is used."""
        ...

    async def status(self) -> Mapping[str, PartStatus]:
        """Return the state of each part by its name: `shell`, `browser`, `desktop`. Does not count as use."""
        ...

    async def restart_browser(self) -> None:
        """End the browser, start it again, and wait until it can be driven."""
        ...

    async def desktop(self) -> Desktop:
        """Connect to the desktop. The caller closes the connection; it counts as use while it is open."""
        ...

    async def shell_exec(self, shell_id: str, exec_dir: str, command: str) -> ShellState:
        """Run `command`; return when it ends, or after a short while with status `running`."""
        ...

    async def shell_view(self, shell_id: str) -> ShellState:
        """Return the whole console of a shell; the newest part if it is too long."""
        ...

    async def shell_watch(self, shell_id: str, *, version: str = "", seconds: float = 0) -> ShellState:
        """Return the whole console of a shell for a person: this is no use of the sandbox, and the agent sees no less.

        Args:
            shell_id: The shell.
            version: The version that the person has seen; wait for another one.
            seconds: Maximum time to wait, also for a shell that does not exist yet.
        """
        ...

    async def shell_wait(self, shell_id: str, seconds: int | None) -> ShellState:
        """Wait for the running command, at most `seconds`; return the output since the last call."""
        ...

    async def shell_write(self, shell_id: str, text: str, *, press_enter: bool) -> ShellState:
        """Type `text` into the running program."""
        ...

    async def shell_kill(self, shell_id: str) -> ShellState:
        """Kill the command that runs in a shell, with all its child processes."""
        ...

    async def kill_all(self) -> None:
        """Kill the commands that run in all shells of this session."""
        ...

    async def file_read(
        self,
        file: str,
        *,
        start: int | None,
        end: int | None,
        sudo: bool,
        start_char: int | None = None,
        end_char: int | None = None,
        encoding: str | None = None,
    ) -> FileText:
        """Return the lines from `start` (the first line is 0) up to but not including `end`.

        Args:
            file: The file.
            start: The first line; None for the first one of the file.
            end: The line after the last one; None for all.
            sudo: Whether to read as root.
            start_char: The first character of these lines to return, from 0.
            end_char: The character after the last one.
            encoding: The encoding of the file; None to detect it.
        """
        ...

    async def file_watch(self, file: str) -> FileText:
        """Return a file for a person: this is no use of the sandbox."""
        ...

    async def file_write(
        self, file: str, content: str, *, append: bool, sudo: bool, encoding: str | None = None
    ) -> FileChange:
        """Write or append text; return the file with the number of bytes written.

        Without `encoding`, a new content is UTF-8, and what is appended has the encoding of the file.
        """
        ...

    async def file_replace(
        self, file: str, old: str, new: str, *, sudo: bool, encoding: str | None = None
    ) -> FileChange:
        """Replace every occurrence of `old`; return the file with the number of occurrences.

        All other bytes stay as they are. `encoding`: the encoding of the file; None to detect it.
        """
        ...

    async def file_search(self, file: str, regex: str, *, sudo: bool) -> FileMatches:
        """Return the lines that match `regex`."""
        ...

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        """Return the files below `path` whose path matches `glob`."""
        ...

    async def file_list(self, path: str) -> FolderListing:
        """Return the entries of a folder, up to 1000."""
        ...

    def file_download(self, file: str) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a file; `close` the generator. A file that becomes shorter meanwhile is an error."""
        ...

    async def file_image(self, file: str, *, max_side: int) -> FileImage:
        """Return the picture in `file`, with sides of at most `max_side` pixels."""
        ...


class SandboxProvider(Protocol):
    """Creates, finds and destroys sandboxes; a session has at most one."""

    def warm(self, session_id: str) -> None:
        """Start the session's sandbox in the background. Return at once and never raise."""
        ...

    async def acquire(self, session_id: str) -> Sandbox:
        """Return the session's sandbox, ready for use; start it first if it does not run.

        Raises:
            SandboxUnavailable: No sandbox can be started.
        """
        ...

    async def find(self, session_id: str) -> Sandbox | None:
        """Return the session's sandbox if it runs; never start one."""
        ...

    async def peek(self, session_id: str) -> Sandbox | None:
        """Return the session's sandbox as `find` does, but without using it. It may have ended a moment ago."""
        ...

    async def destroy(self, session_id: str) -> None:
        """End the session's sandbox and delete everything in it, the workspace included. Idempotent."""
        ...

    def counts(self) -> Mapping[str, int]:
        """Return the number of sandboxes that this process uses, by state."""
        ...

    async def check(self) -> str | None:
        """Return why no sandbox can be started now; None if one can."""
        ...

    async def close(self) -> None:
        """Shut down, and end what nobody else would end. Workspaces stay."""
        ...
