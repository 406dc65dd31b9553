"""Ports: a session's computer, and whoever provides it."""

from collections.abc import Mapping
from typing import Protocol

from app.domain.models.sandbox import BrowserEndpoint, FileMatches, FileText, FoundFiles, PartStatus, ShellState


class Desktop(Protocol):
    """One viewer's connection to a sandbox's desktop: the bytes of the RFB (VNC) protocol, in both directions."""

    async def receive(self) -> bytes:
        """The next bytes of the desktop; `b""` when it has ended the connection.

        Raises:
            SandboxUnavailable: the connection broke.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Give the desktop `data`; waits for as long as it takes no more.

        Raises:
            SandboxUnavailable: the connection broke.
        """
        ...

    async def close(self) -> None:
        """End the connection. Idempotent."""
        ...


class Sandbox(Protocol):
    """One session's computer.

    Paths may be absolute, relative to the workspace, or begin with `~`; the workspace is the shells' home.

    Raises (every method):
        SandboxFailure: the sandbox refused, with words that the model or a person can act on.
        SandboxUnavailable: it does not answer.
    """

    @property
    def instance_id(self) -> str:
        """Names this life of the sandbox. Another name than before: the files are the same, the processes are gone."""
        ...

    @property
    def browser(self) -> BrowserEndpoint:
        """Where the browser is driven; whether there is one shows when it is used, or in `status`."""
        ...

    async def status(self) -> Mapping[str, PartStatus]:
        """The state of each part by its name: `shell`, `browser`, `desktop`. Does not count as use."""
        ...

    async def restart_browser(self) -> None:
        """End the browser, start it again, and wait until it can be driven."""
        ...

    async def desktop(self) -> Desktop:
        """A new connection to the desktop; the caller closes it. Counts as use for as long as it is open."""
        ...

    async def shell_exec(self, shell: str, exec_dir: str, command: str) -> ShellState:
        """Run `command`; answers when it ends, or after a short while with status `running`."""
        ...

    async def shell_view(self, shell: str) -> ShellState:
        """The whole console of `shell`, newest part kept when it is long."""
        ...

    async def shell_wait(self, shell: str, seconds: int | None) -> ShellState:
        """Wait for the running command, at most `seconds`; the output is what came since the last look."""
        ...

    async def shell_write(self, shell: str, text: str, *, press_enter: bool) -> ShellState:
        """Type into the running program."""
        ...

    async def shell_kill(self, shell: str) -> ShellState:
        """Kill what runs in `shell`, the whole process tree."""
        ...

    async def kill_all(self) -> None:
        """Kill what runs in every shell of this session."""
        ...

    async def file_read(self, file: str, *, start: int | None, end: int | None, sudo: bool) -> FileText:
        """Lines `start` (from 0) up to, not including, `end`."""
        ...

    async def file_write(self, file: str, content: str, *, append: bool, sudo: bool) -> int:
        """Write or append text; answers the bytes written."""
        ...

    async def file_replace(self, file: str, old: str, new: str, *, sudo: bool) -> int:
        """Replace every occurrence; answers how many there were."""
        ...

    async def file_search(self, file: str, regex: str, *, sudo: bool) -> FileMatches:
        """The lines that match."""
        ...

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        """The files below `path` whose path matches `glob`."""
        ...


class SandboxProvider(Protocol):
    """Creates, finds and destroys sandboxes: one a session at most."""

    def warm(self, session_id: str) -> None:
        """Begin to start the session's sandbox in the background; returns at once, never raises."""
        ...

    async def acquire(self, session_id: str) -> Sandbox:
        """The session's sandbox, ready; started first when it has none.

        Raises:
            SandboxUnavailable: none can be had.
        """
        ...

    async def find(self, session_id: str) -> Sandbox | None:
        """The session's sandbox when it has one that runs; never starts one."""
        ...

    async def destroy(self, session_id: str) -> None:
        """End the session's sandbox with everything in it, workspace included. Idempotent."""
        ...

    async def check(self) -> str | None:
        """Why no sandbox could be started now; None when one could."""
        ...

    async def close(self) -> None:
        """Shut down: end what would otherwise be left behind. Workspaces stay."""
        ...
