"""All shells of a sandbox by their ids."""

import asyncio
import os
import re
import secrets
import shutil
import stat
from pathlib import Path

from sandbox.failure import Failure
from sandbox.settings import Settings
from sandbox.shell.bash import Launch
from sandbox.shell.environment import shell_environment
from sandbox.shell.processes import end_family
from sandbox.shell.session import Shell

MOST_SHELLS = 256
"""A bash takes about 4 MB. One sandbox may be shared by many sessions, hence more than one of them would need."""

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Shells:
    """Makes shells on first use and ends them together. `close` leaves no process and no file behind."""

    def __init__(self, settings: Settings) -> None:
        self.word = secrets.token_hex(8)
        """Every process of these shells has ANKER_SHELL=<word>-... in its environment, unless it was cleared."""
        self._settings = settings
        self._shells: dict[str, Shell] = {}
        self._launch: Launch | None = None
        self._bash = shutil.which("bash")

    @property
    def unavailable(self) -> str:
        """Why no shell can be started; empty when one can."""
        return "" if self._bash else "bash is not installed"

    @property
    def pids(self) -> set[int]:
        """The bash processes that somebody waits for."""
        return {shell.pid for shell in self._shells.values() if shell.pid is not None}

    def get(self, name: str) -> Shell:
        """The shell of that id; Failure 404 if nothing was run in it yet."""
        shell = self._shells.get(name)
        if shell is None:
            known = ", ".join(list(self._shells)[:10])
            there = f"the shells there are: {known}" if known else "there is none yet"
            raise Failure(404, f"no such shell: {name[:128]}; shell_exec makes one ({there})")
        return shell

    async def get_or_make(self, name: str) -> Shell:
        """The shell of that id, made if need be; Failure 400 for a bad id, 409 when there are too many."""
        if not _ID.fullmatch(name):
            raise Failure(400, "a shell id is 1 to 128 letters, digits or any of _ . : -")
        if name in self._shells:
            return self._shells[name]
        launch = self._prepared()
        # Put in place before anything is awaited, so that two requests at once get the same shell.
        shell = self._shells[name] = Shell(name, launch, self._settings.home)
        if len(self._shells) > MOST_SHELLS:
            try:
                await self._make_room(name)
            except Failure:
                del self._shells[name]
                raise
        return shell

    async def kill_all(self, prefix: str) -> list[str]:
        """Kills what runs in every shell whose id starts with `prefix`; gives their ids."""
        chosen = [name for name in self._shells if name.startswith(prefix)]
        await asyncio.gather(*(self._shells[name].kill() for name in chosen))
        return chosen

    async def close(self) -> None:
        """Ends all shells at once and removes their files."""
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
            # All at once: each search looks at every process of the machine.
            await asyncio.to_thread(end_family, leaders, grace=0)

    async def _make_room(self, wanted: str) -> None:
        others = [shell for name, shell in self._shells.items() if name != wanted and shell.running is None]
        free = next((shell for shell in others if not shell.alive or shell.dismissed), None)
        if free is None:
            # No names: of several sessions that share this sandbox, none may learn what the others call theirs.
            raise Failure(409, f"{MOST_SHELLS} shells are open, the most there may be: end one with "
                          "shell_kill_process, or use one again")  # fmt: skip
        del self._shells[free.name]
        await self._end([free])

    def _prepared(self) -> Launch:
        if self._bash is None:
            raise Failure(409, self.unavailable)
        if self._launch is None:
            settings = self._settings
            environment = shell_environment(settings.home, self._bash, settings.instance, os.environ)
            try:
                self._launch = Launch(self._bash, environment, self.word, _run_folder(settings.output_dir))
            except OSError as error:
                raise Failure(500, f"no folder for outputs: {error.strerror}") from error
        return self._launch


def _run_folder(parent: Path) -> Path:
    """A new private folder below `parent`, after removing those of services that are gone; raises OSError."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        # Somebody else made it first, in a folder all may write to.
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
