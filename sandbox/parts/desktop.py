"""The desktop: Xvnc, which is X server and VNC server in one, and a window manager."""

import asyncio
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from sandbox.failure import Failure
from sandbox.parts.child import Command
from sandbox.parts.keeper import Keeper

WIDTH, HEIGHT = 1280, 800
_MANAGER_SETTINGS = Path(__file__).parent / "jwm.xml"
_SERVER_ARGUMENTS = (
    *("-geometry", f"{WIDTH}x{HEIGHT}", "-depth", "24", "-desktop", "sandbox"),
    # Only the unix socket, which only our own port leads to: no TCP, no password of its own.
    *("-rfbport", "-1", "-rfbunixmode", "0600", "-SecurityTypes", "None", "-UseBlacklist=0"),
    # Viewers share the one desktop, and none of them decides on its size.
    *("-AlwaysShared", "-AcceptSetDesktopSize=0"),
    # Loading OpenGL for a screen that has none would take 50 MB and most of the start.
    *("-extension", "GLX", "-nolisten", "tcp", "-noreset", "-s", "0", "-displayfd", "1"),
)
_DISPLAY_NUMBER = re.compile(rb"^(\d+)\n", re.MULTILINE)
_START_SECONDS = 20.0


class Desktop:
    """A screen of 1280x800 with a VNC server on a unix socket. `begin` and `end` when it is wanted at all."""

    def __init__(self, environment: Mapping[str, str], home: Path, *, wanted: bool) -> None:
        """`environment` is what its programs get, without DISPLAY."""
        self.there = wanted and shutil.which("Xvnc") is not None
        """Whether there is a desktop to start."""
        self._environment = environment
        self._home = str(home)
        self._folder: Path | None = None
        self._server = Keeper("Xvnc", self._launch_server, ready=_DISPLAY_NUMBER)
        self._manager = Keeper("the window manager", self._launch_manager)

    @property
    def reason(self) -> str:
        """Why it cannot be used now; empty when it can."""
        if not self.there:
            return "not installed"
        return "" if self._server.said is not None else "starting"

    @property
    def pids(self) -> set[int]:
        """The processes that somebody waits for."""
        return self._server.pids | self._manager.pids

    def begin(self) -> None:
        """Starts it, if it is there; returns at once."""
        if self.there:
            self._folder = Path(tempfile.mkdtemp(prefix="anker-desktop-"))
            self._server.begin()
            if shutil.which("jwm") is not None:
                self._manager.begin()

    async def display(self) -> str:
        """The name of the display, such as `:0`, once it is there; raises TimeoutError."""
        return f":{await self._server.ready(_START_SECONDS)}"

    async def vnc(self) -> str:
        """The path of the VNC server's unix socket, once it listens. Failure 409 when there is no desktop, 503 when it
        does not come."""
        if not self.there:
            raise Failure(409, f"there is no desktop in this sandbox: {self.reason}")
        try:
            await self.display()
        except TimeoutError:
            raise Failure(503, f"the desktop did not start within {_START_SECONDS:g} s") from None
        return self._socket

    async def reach(self, use: Callable[[str], Awaitable[None]]) -> None:
        """Calls `use` with the VNC server's socket; a second time when it turns out to be gone. `use` may raise
        OSError. Failures as for `vnc`, and 503 when it does not answer."""
        try:
            try:
                await use(await self.vnc())
            except ConnectionError:
                await self._server.lost()
                await use(await self.vnc())
        except OSError as error:
            raise Failure(503, "the desktop does not answer") from error

    async def end(self) -> None:
        """Ends it and removes its files. Who draws on it is to be ended first."""
        await self._manager.end()
        await self._server.end()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    @property
    def _socket(self) -> str:
        return str((self._folder or Path()) / "vnc")

    async def _launch_server(self) -> Command:
        arguments = ("Xvnc", "-rfbunixpath", self._socket, *_SERVER_ARGUMENTS)
        return Command(arguments, self._environment, self._home)

    async def _launch_manager(self) -> Command:
        environment = {**self._environment, "DISPLAY": await self.display()}
        return Command(("jwm", "-f", str(_MANAGER_SETTINGS)), environment, self._home)
