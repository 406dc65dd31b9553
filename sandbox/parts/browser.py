"""The sandbox's Chromium: when it is started, whether it can be used, where its DevTools listen."""

import asyncio
import logging
import re
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from sandbox.failure import Failure
from sandbox.parts import chromium
from sandbox.parts.child import Command
from sandbox.parts.desktop import Desktop
from sandbox.parts.farewell import close_browser
from sandbox.parts.keeper import Keeper

T = TypeVar("T")
BrowserMode = Literal["eager", "lazy", "off"]

START_SECONDS = 20.0
_LISTENING = re.compile(rb"DevTools listening on ws://(127\.0\.0\.1:\d+/devtools/browser/[\w-]+)\s")
_PROFILE = Path(".config") / "anker-chromium"

log = logging.getLogger("sandbox")


class Browser:
    """One Chromium, on the desktop or headless. Its profile is in the workspace and outlives it, its cache is not."""

    def __init__(
        self, mode: BrowserMode, program: str, environment: Mapping[str, str], home: Path, desktop: Desktop
    ) -> None:
        """`program` is where it is, or empty to look for it; `environment` what it gets, without DISPLAY."""
        self._mode = mode
        self._program = chromium.find_chromium(program) if mode != "off" else None
        self._environment = environment
        self._home = home
        self._desktop = desktop
        self._confined = not chromium.runs_as_root()
        self._cache: Path | None = None
        self._keeper = Keeper("Chromium", self._launch, ready=_LISTENING, farewell=close_browser)

    @property
    def reason(self) -> str:
        """Why it cannot be used now; empty when it can."""
        if self._mode == "off":
            return "switched off"
        if self._program is None:
            return "not installed"
        if self._keeper.said is not None:
            return ""
        return "starting" if self._keeper.begun else "starts when it is first used"

    @property
    def pids(self) -> set[int]:
        """The processes that somebody waits for."""
        return self._keeper.pids

    def begin(self) -> None:
        """Starts it if it is to be there from the beginning; returns at once."""
        if self._mode == "eager" and self._program is not None:
            self._keeper.begin()

    async def port(self) -> int:
        """The port of its DevTools on loopback; starts it if need be. Failure 409 when there is none, 503 when it does
        not come."""
        if self._program is None:
            raise Failure(409, f"there is no browser in this sandbox: {self.reason}")
        self._keeper.begin()
        try:
            address = await self._keeper.ready(START_SECONDS)
        except TimeoutError:
            log.warning("Chromium does not start: %s", self._keeper.failure)
            raise Failure(503, f"the browser did not start within {START_SECONDS:g} s") from None
        return int(address.partition("/")[0].rpartition(":")[2])

    async def reach(self, use: Callable[[int], Awaitable[T]]) -> T:
        """Calls `use` with the port of the DevTools; a second time, with the next browser's, when it turns out to be
        gone. `use` may raise OSError. Failures as for `port`, and 503 when it does not answer."""
        try:
            try:
                return await use(await self.port())
            except ConnectionError:
                await self._keeper.lost()
                return await use(await self.port())
        except OSError as error:
            raise Failure(503, "the browser does not answer") from error

    async def restart(self) -> None:
        """Ends it with all its processes, starts it again and waits until it can be driven. Failures as for `port`."""
        if self._keeper.begun:
            await self._keeper.restart()
        await self.port()

    async def end(self) -> None:
        """Ends it and removes its cache."""
        await self._keeper.end()
        if self._cache is not None:
            await asyncio.to_thread(shutil.rmtree, self._cache, ignore_errors=True)
            self._cache = None

    async def _launch(self) -> Command:
        if self._program is None:
            raise FileNotFoundError(2, "Chromium is not installed")
        if self._confined and chromium.refused_its_sandbox(self._keeper.failure):
            log.warning("this system does not let Chromium make its own sandbox: it runs without")
            self._confined = False
        environment = dict(self._environment)
        if self._desktop.there:
            environment["DISPLAY"] = await self._desktop.display()
        profile = self._home / _PROFILE
        await asyncio.to_thread(self._prepare, profile)
        arguments = chromium.arguments(
            self._program,
            profile,
            self._cache or profile,
            windowed=self._desktop.there,
            confined=self._confined,
        )
        return Command(arguments, environment, str(self._home))

    def _prepare(self, profile: Path) -> None:
        profile.mkdir(mode=0o700, parents=True, exist_ok=True)
        chromium.remove_locks(profile)
        if self._cache is None:
            self._cache = Path(tempfile.mkdtemp(prefix="anker-cache-"))
