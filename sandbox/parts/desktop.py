"""The desktop: Xvnc, which is both X server and VNC server, and a window manager."""

import asyncio
import re
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from sandbox.identity import Identity
from sandbox.parts.child import Command
from sandbox.parts.keyboard import Keyboard
from sandbox.parts.supervisor import Supervisor
from sandbox.parts.x11 import XConnection, authority_file
from sandbox.settings import Settings
from sandbox.web import Failure

WIDTH, HEIGHT = 1280, 800
_MANAGER_SETTINGS = Path(__file__).parent / "jwm.xml"
_SERVER_ARGUMENTS = (
    *("-geometry", f"{WIDTH}x{HEIGHT}", "-depth", "24", "-desktop", "sandbox"),
    # Only a unix socket, which only our own port forwards to: no TCP and no password.
    *("-rfbport", "-1", "-rfbunixmode", "0600", "-SecurityTypes", "None", "-UseBlacklist=0"),
    # Viewers share the desktop, and none of them may resize it.
    *("-AlwaysShared", "-AcceptSetDesktopSize=0"),
    # Loading OpenGL without a GPU would take 50 MB and most of the start.
    *("-extension", "GLX", "-nolisten", "tcp", "-noreset", "-s", "0", "-displayfd", "1"),
)
_DISPLAY_NUMBER = re.compile(rb"^(\d+)\n", re.MULTILINE)
_COOKIE_BYTES = 16
_START_SECONDS = 20.0
"""Maximum time for the desktop to start, in seconds."""


class Desktop:
    """A screen of 1280x800 pixels with a VNC server on a unix socket."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]) -> None:
        """Create the desktop without starting it. `environment`: environment of its programs, without DISPLAY."""
        self.installed = settings.desktop and shutil.which("Xvnc") is not None
        """Whether there is a desktop to start."""
        self._environment = environment
        self._home = str(settings.home)
        self._owner = settings.browser_owner
        """User that runs the programs on the desktop."""
        self._state_dir = settings.state_dir
        self._folder: Path | None = None
        self._client_authority: Path | None = None
        """File with the cookie for the programs on the desktop, which only their user can read."""
        self._cookie = secrets.token_bytes(_COOKIE_BYTES)
        self.keyboard = Keyboard(self._connect_to_server)
        self._server = Supervisor("Xvnc", self._launch_server, ready=_DISPLAY_NUMBER)
        self._manager = Supervisor("the window manager", self._launch_manager)

    @property
    def unavailable_reason(self) -> str:
        """Why it cannot be used now; empty if it can."""
        if not self.installed:
            return "not installed"
        return "" if self._server.ready_text is not None else "starting"

    @property
    def pids(self) -> set[int]:
        """Processes that this program waits for."""
        return self._server.pids | self._manager.pids

    def start(self) -> None:
        """Start it if it is installed. Return at once."""
        if self.installed:
            self._folder = Path(tempfile.mkdtemp(prefix="anker-desktop-", dir=self._state_dir))
            self._server.start()
            if shutil.which("jwm") is not None:
                self._manager.start()

    async def display(self) -> str:
        """Return the display's name, such as `:0`, once it exists.

        Raises:
            TimeoutError: It did not start in time.
        """
        return f":{await self._server.wait_ready(_START_SECONDS)}"

    async def client_environment(self) -> dict[str, str]:
        """Return the environment variables by which a program finds the display and may draw on it.

        Raises:
            TimeoutError: The desktop did not start in time.
        """
        display = await self.display()
        self._client_authority = await self._owner.run(self._write_client_authority)
        return {"DISPLAY": display, "XAUTHORITY": str(self._client_authority)}

    async def vnc_socket(self) -> str:
        """Return the path of the VNC server's unix socket once it listens.

        Raises:
            Failure: 409 if there is no desktop; 503 if it does not start.
        """
        if not self.installed:
            raise Failure(409, f"there is no desktop in this sandbox: {self.unavailable_reason}")
        try:
            await self.display()
        except TimeoutError:
            raise Failure(503, f"the desktop did not start within {_START_SECONDS:g} s") from None
        return self._socket

    async def connect(self, use: Callable[[str], Awaitable[None]]) -> None:
        """Call `use` with the VNC server's socket, and once more if the server has ended or its socket was removed.

        Args:
            use: Connects to the socket. May raise OSError.

        Raises:
            Failure: 409 if there is no desktop; 503 if it does not start or respond.
        """
        try:
            try:
                await use(await self.vnc_socket())
            except ConnectionError:
                await self._server.wait_for_exit()
                await use(await self.vnc_socket())
            except FileNotFoundError:
                await self._server.restart()
                await use(await self.vnc_socket())
        except OSError as error:
            raise Failure(503, "the desktop does not answer") from error

    async def stop(self) -> None:
        """Stop it and remove its files. Stop programs that draw on it first."""
        self.keyboard.close()
        await self._manager.stop()
        await self._server.stop()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None
        if self._client_authority is not None:
            await self._owner.run(self._owner.remove_folder, self._client_authority.parent)
            self._client_authority = None

    @property
    def _socket(self) -> str:
        return str((self._folder or Path()) / "vnc")

    @property
    def _authority(self) -> Path:
        """The server's file with the cookie."""
        return (self._folder or Path()) / "authority"

    async def _connect_to_server(self) -> XConnection:
        return await XConnection.open(f"/tmp/.X11-unix/X{(await self.display())[1:]}", self._cookie)  # noqa: S108

    async def _launch_server(self) -> Command:
        # Somebody with the rights of root may have removed the folder.
        Path(self._socket).parent.mkdir(mode=0o700, exist_ok=True)
        self._authority.write_bytes(authority_file(self._cookie))
        arguments = ("Xvnc", "-rfbunixpath", self._socket, "-auth", str(self._authority), *_SERVER_ARGUMENTS)
        return Command(arguments, self._environment, "/", Identity.of_user(""))

    async def _launch_manager(self) -> Command:
        environment = {**self._environment, **await self.client_environment()}
        return Command(("jwm", "-f", str(_MANAGER_SETTINGS)), environment, self._home, self._owner)

    def _write_client_authority(self) -> Path:
        """Write the file unless it is there: programs of the agent may have removed it."""
        if self._client_authority is not None and self._client_authority.is_file():
            return self._client_authority
        path = Path(tempfile.mkdtemp(prefix="anker-display-")) / "authority"
        path.write_bytes(authority_file(self._cookie))
        return path
