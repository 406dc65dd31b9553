"""The sandbox's Chromium: when it starts, whether it can be used, and where its DevTools listen."""

import asyncio
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from sandbox.parts.child import Command
from sandbox.parts.desktop import HEIGHT, WIDTH, Desktop
from sandbox.parts.devtools import MAX_MESSAGE_BYTES, DevTools, DevToolsError
from sandbox.parts.supervisor import Supervisor
from sandbox.parts.workspace import BrowserWorkspace
from sandbox.settings import Settings
from sandbox.web import Failure

_NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Usual names of the program."""
_CACHE_BYTES = 48 * 1024 * 1024
"""Maximum size of the browser's cache, in bytes."""
_DISABLED_FEATURES = (
    *("Translate", "MediaRouter", "DialMediaRouteProvider", "GlobalMediaControls", "OptimizationHints"),
    # Pages that are part of its own window: each costs a renderer and confuses drivers.
    *("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "WebUIOmniboxFullPopup"),
)
_PIPE_SHELL = ("/bin/sh", "-c", 'umask 002; exec "$@" 3<&0 4>&1 </dev/null >&2', "sh")
"""Start of a command line that runs Chromium with its standard input and output as the two ends of its pipe.

What it downloads can be written by its group, which is the agent's.
"""
_XDG_FOLDERS = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
_FIXED_ARGUMENTS = (
    # Disable network requests, questions and bubbles of the browser itself.
    *("--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update"),
    # The browser must not end, and take its tabs with it, when a page closes the last window.
    "--keep-alive-for-test",
    *("--disable-sync", "--disable-quic", "--disable-breakpad", "--disable-crash-reporter", "--noerrdialogs"),
    *("--hide-crash-restore-bubble", "--disable-search-engine-choice-screen", "--password-store=basic"),
    f"--disable-features={','.join(_DISABLED_FEATURES)}",
)


def find_chromium(path: str) -> str | None:
    """Return the program at `path`, or the first one installed under a usual name if `path` is empty."""
    for name in (path,) if path else _NAMES:
        if found := shutil.which(name):
            return found
    return None


def chromium_arguments(program: str, profile: Path, cache: Path, *, windowed: bool, confined: bool) -> tuple[str, ...]:
    """Return the command line: DevTools on descriptors 3 and 4, Chromium's own sandbox only if `confined`."""
    return (
        program,
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        f"--disk-cache-dir={cache}",
        f"--disk-cache-size={_CACHE_BYTES}",
        f"--window-size={WIDTH},{HEIGHT}",
        *_FIXED_ARGUMENTS,
        *(("--start-maximized", "--window-position=0,0") if windowed else ("--headless=new",)),
        # Chromium warns of the missing sandbox in a bar across the page, but not as a test browser.
        *(() if confined else ("--no-sandbox", "--test-type")),
        # There is no GPU. The CPU draws WebGL, such as maps.
        *("--disable-gpu", "--enable-unsafe-swiftshader"),
        "about:blank",
    )


def sandbox_was_refused(output: str) -> bool:
    """Return whether Chromium ended because the system forbids its own sandbox. `output`: the end of its output."""
    return any(sign in output for sign in ("No usable sandbox", "Failed to move to new namespace", "zygote_host_impl"))


def runs_as_root() -> bool:
    """Return whether this process is root, which cannot use Chromium's sandbox."""
    return os.geteuid() == 0


T = TypeVar("T")

START_SECONDS = 20.0
"""Maximum time for Chromium to start, in seconds."""

_READ_BYTES = 256 * 1024
"""Maximum number of bytes to read at once."""
_KEPT_BYTES = 1024
"""Number of bytes at each end of a too large message to keep."""

log = logging.getLogger("sandbox")


class DevToolsPipe(asyncio.BufferedProtocol):
    """Splits what Chromium writes into messages, and writes messages to it. Each message ends with NUL.

    It consists of two socket pairs, because a pipe can be opened again through `/proc/<pid>/fd`.
    """

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        """Create the pipe without opening it. `max_message_bytes`: larger messages are not kept."""
        self.devtools = DevTools(self._write)
        self._limit = max_message_bytes
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._message = bytearray()
        self._dropped_head = b""
        """First bytes of a message that is too large, while the rest of it is read."""
        self._reading: asyncio.BaseTransport | None = None
        self._writing: asyncio.Transport | None = None

    async def open(self) -> tuple[socket.socket, socket.socket]:
        """Open both directions. Return the sockets that Chromium reads from and writes to; the caller closes them."""
        loop = asyncio.get_running_loop()
        ours, chromium_reads = socket.socketpair()
        self._writing, _ = await loop.create_unix_connection(lambda: _Writer(self), sock=ours)
        ours, chromium_writes = socket.socketpair()
        self._reading, _ = await loop.create_unix_connection(lambda: self, sock=ours)
        return chromium_reads, chromium_writes

    def get_buffer(self, sizehint: int) -> memoryview:
        """Implement `asyncio.BufferedProtocol`: return the buffer to read into."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Implement `asyncio.BufferedProtocol`: take the messages that are complete."""
        start = 0
        while (end := self._buffer.find(0, start, nbytes)) >= 0:
            self._append(self._view[start:end])
            self._complete()
            start = end + 1
        self._append(self._view[start:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        """Implement `asyncio.Protocol`: Chromium has ended."""
        self.close()

    def close(self) -> None:
        """Close both directions and all drivers. Idempotent. Chromium ends when it reads the end of its pipe."""
        for transport in (self._reading, self._writing):
            if transport is not None:
                transport.close()
        self._reading = self._writing = None
        self._message = bytearray()
        self.devtools.close()

    def _append(self, piece: memoryview) -> None:
        self._message += piece
        if self._dropped_head:
            del self._message[:-_KEPT_BYTES]
        elif len(self._message) > self._limit:
            self._dropped_head = bytes(self._message[:_KEPT_BYTES])
            del self._message[:-_KEPT_BYTES]

    def _complete(self) -> None:
        message, self._message = self._message, bytearray()
        head, self._dropped_head = self._dropped_head, b""
        if head:
            self.devtools.receive_oversized(head, bytes(message))
        else:
            self.devtools.receive(message)

    def _write(self, data: bytes) -> None:
        if self._writing is not None:
            self._writing.write(data)


class _Writer(asyncio.Protocol):
    """The direction to Chromium, which never sends anything on it."""

    def __init__(self, pipe: DevToolsPipe) -> None:
        self._pipe = pipe

    def pause_writing(self) -> None:
        self._pipe.devtools.pause_drivers()

    def resume_writing(self) -> None:
        self._pipe.devtools.resume_drivers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.close()


class Browser:
    """One Chromium, on the desktop or headless. Its profile is in the workspace; its cache is temporary."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], desktop: Desktop) -> None:
        """Create the browser without starting it.

        Args:
            settings: When to start it, where it is, and where its profile is.
            environment: Its environment without DISPLAY.
            desktop: The desktop to draw on.
        """
        self._mode = settings.browser
        self._program = find_chromium(settings.chromium) if settings.browser != "off" else None
        self._environment = environment
        self._home = settings.home
        self._owner = settings.browser_owner
        self._workspace = BrowserWorkspace(settings.home, settings.agent, settings.browser_owner)
        self._desktop = desktop
        self._confined = not runs_as_root()
        self._folder: Path | None = None
        """Temporary folder for what need not be kept."""
        # A folder such as ~/.cache that Chromium made would be closed to the agent.
        self._own_folders = _XDG_FOLDERS if settings.browser_owner.uid != settings.agent.uid else ()
        self._pipe = DevToolsPipe()
        self._keeper = Supervisor("Chromium", self._launch, probe=self._probe, close_gracefully=self._close_chromium)

    @property
    def unavailable_reason(self) -> str:
        """Why it cannot be used now; empty if it can."""
        if self._mode == "off":
            return "switched off"
        if self._program is None:
            return "not installed"
        if self._keeper.ready_text is not None:
            return ""
        return "starting" if self._keeper.started else "starts when it is first used"

    @property
    def pids(self) -> set[int]:
        """Processes that this program waits for."""
        return self._keeper.pids

    def start(self) -> None:
        """Start it if its mode is `eager`. Return at once."""
        if self._mode == "eager" and self._program is not None:
            self._keeper.start()

    async def devtools(self) -> DevTools:
        """Return its DevTools. Start it if necessary.

        Raises:
            Failure: 409 if there is no browser; 503 if it does not start.
        """
        if self._program is None:
            raise Failure(409, f"there is no browser in this sandbox: {self.unavailable_reason}")
        self._keeper.start()
        try:
            await self._keeper.wait_ready(START_SECONDS)
        except TimeoutError:
            log.warning("Chromium does not start: %s", self._keeper.last_failure)
            raise Failure(503, f"the browser did not start within {START_SECONDS:g} s") from None
        return self._pipe.devtools

    async def connect(self, use: Callable[[DevTools], Awaitable[T]]) -> T:
        """Call `use` with its DevTools, and once more if the browser has ended in the meantime.

        Args:
            use: Uses DevTools. May raise OSError.

        Raises:
            Failure: 409 if there is no browser; 503 if it does not start or respond.
        """
        try:
            try:
                return await use(await self.devtools())
            except ConnectionError:
                await self._keeper.wait_for_exit()
                return await use(await self.devtools())
        except OSError as error:
            raise Failure(503, "the browser does not answer") from error
        except DevToolsError as error:
            raise Failure(400, f"the browser refused: {error}") from error

    async def restart(self) -> None:
        """End it with all its processes, start it again and wait until it can be driven.

        Raises:
            Failure: As `devtools`.
        """
        if self._keeper.started:
            await self._keeper.restart()
        await self.devtools()

    async def stop(self) -> None:
        """Stop it and remove its cache."""
        await self._keeper.stop()
        self._pipe.close()
        if self._folder is not None:
            await self._owner.run(self._owner.remove_folder, self._folder)
            self._folder = None

    async def _launch(self) -> Command:
        if self._program is None:
            raise FileNotFoundError(2, "Chromium is not installed")
        if self._confined and sandbox_was_refused(self._keeper.last_failure):
            log.warning("this system does not let Chromium make its own sandbox: it runs without")
            self._confined = False
        environment = dict(self._environment)
        if self._desktop.installed:
            environment |= await self._desktop.client_environment()
        if self._folder is None:
            self._folder = Path(await self._owner.run(tempfile.mkdtemp, prefix="anker-browser-"))
        environment |= {name: str(self._folder) for name in self._own_folders}
        command_line = chromium_arguments(
            self._program,
            await self._workspace.prepare_profile(self._folder / "profile"),
            self._folder / "cache",
            windowed=self._desktop.installed,
            confined=self._confined,
        )
        self._pipe.close()
        self._pipe = DevToolsPipe()
        sockets = await self._pipe.open()
        return Command((*_PIPE_SHELL, *command_line), environment, str(self._home), self._owner, sockets)

    async def _probe(self) -> str:
        devtools = self._pipe.devtools
        while True:
            try:
                await devtools.call("Browser.getVersion")
                await self._workspace.watch_downloads(devtools)
            except TimeoutError:
                continue  # a busy machine: callers wait for as long as they want
            return devtools.browser_id

    async def _close_chromium(self) -> None:
        # Chromium saves more state, such as cookies, than after a signal.
        await self._pipe.devtools.call("Browser.close")
