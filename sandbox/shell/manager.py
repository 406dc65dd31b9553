"""All shells of a sandbox by their ids."""

import asyncio
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from sandbox.settings import Settings
from sandbox.shell.bash import BashLaunch
from sandbox.shell.environment import shell_environment
from sandbox.shell.processes import kill_shell_processes
from sandbox.shell.session import Shell
from sandbox.web import Failure

MAX_SHELLS = 256
"""Maximum number of shells. A bash takes about 4 MB; many sessions may share one sandbox."""

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Shells:
    """Creates shells on first use and ends them together. `close` leaves no process and no file behind."""

    def __init__(self, settings: Settings) -> None:
        self.mark = secrets.token_hex(8)
        """Prefix of `ANKER_SHELL` in the environment of every process of these shells, unless a process removed it."""
        self._settings = settings
        self._shells: dict[str, Shell] = {}
        self._launch: BashLaunch | None = None
        self._bash = shutil.which("bash")

    @property
    def unavailable(self) -> str:
        """Why no shell can be started; empty if one can."""
        return "" if self._bash else "bash is not installed"

    @property
    def pids(self) -> set[int]:
        """The bash processes that this program waits for."""
        return {shell.pid for shell in self._shells.values() if shell.pid is not None}

    def get(self, name: str) -> Shell:
        """Return the shell with id `name`.

        Raises:
            Failure: 404 if no command was run in it yet.
        """
        shell = self._shells.get(name)
        if shell is None:
            known = ", ".join(list(self._shells)[:10])
            there = f"the shells there are: {known}" if known else "there is none yet"
            raise Failure(404, f"no such shell: {name[:128]}; shell_exec makes one ({there})")
        return shell

    async def get_or_create(self, name: str) -> Shell:
        """Return the shell with id `name`, created if necessary.

        Raises:
            Failure: 400 for an invalid id; 409 if there are too many shells.
        """
        if not _ID.fullmatch(name):
            raise Failure(400, "a shell id is 1 to 128 letters, digits or any of _ . : -")
        if name in self._shells:
            return self._shells[name]
        launch = self._prepare_launch()
        # Stored before the first await, so that two concurrent requests get the same shell.
        shell = self._shells[name] = Shell(name, launch, self._settings.home)
        if len(self._shells) > MAX_SHELLS:
            try:
                await self._evict_one(name)
            except Failure:
                del self._shells[name]
                raise
        return shell

    async def kill_all(self, prefix: str) -> list[str]:
        """Kill the processes of every shell whose id starts with `prefix`, and return the ids."""
        chosen = [name for name in self._shells if name.startswith(prefix)]
        await asyncio.gather(*(self._shells[name].kill() for name in chosen))
        return chosen

    async def close(self) -> None:
        """End all shells at once and remove their files."""
        shells = list(self._shells.values())
        self._shells.clear()
        await self._end(shells)
        if self._launch is not None:
            await asyncio.to_thread(shutil.rmtree, self._launch.folder, ignore_errors=True)
            self._launch = None

    @staticmethod
    async def _end(shells: list[Shell]) -> None:
        leaders: dict[int, str] = {}
        for shell in shells:
            leaders |= shell.leader
        await asyncio.gather(*(shell.close() for shell in shells))
        if leaders:
            # One search for all shells, because it looks at every process of the machine.
            await asyncio.to_thread(kill_shell_processes, leaders, grace=0)

    async def _evict_one(self, wanted: str) -> None:
        others = [shell for name, shell in self._shells.items() if name != wanted and shell.running is None]
        free = next((shell for shell in others if not shell.alive or shell.killed), None)
        if free is None:
            # Without ids: sessions that share this sandbox must not learn each other's ids.
            raise Failure(409, f"{MAX_SHELLS} shells are open, the most there may be: end one with "
                          "shell_kill_process, or use one again")  # fmt: skip
        del self._shells[free.name]
        await self._end([free])

    def _prepare_launch(self) -> BashLaunch:
        if self._bash is None:
            raise Failure(409, self.unavailable)
        if self._launch is None:
            settings = self._settings
            environment = shell_environment(settings.home, self._bash, settings.instance, os.environ)
            try:
                self._launch = BashLaunch(self._bash, environment, self.mark, _run_folder(settings.output_dir))
            except OSError as error:
                raise Failure(500, f"no folder for outputs: {error.strerror}") from error
        return self._launch


def _run_folder(parent: Path) -> Path:
    """Create a private folder below `parent`, after removing folders of services that have ended.

    Raises:
        OSError: The folder cannot be created.
    """
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        # Another user created it first in a shared temporary folder.
        raise PermissionError(1, f"{parent} belongs to another user")
    for folder in parent.glob("run-*-*"):
        owner = folder.name.split("-")[1]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
    folder = parent / f"run-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
