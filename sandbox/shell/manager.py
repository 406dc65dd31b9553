"""All shells of a sandbox by their ids."""

import asyncio
import os
import re
import secrets
import shutil
from collections.abc import Iterable

from sandbox.identity import Identity
from sandbox.settings import Settings
from sandbox.shell.bash import BashLaunch
from sandbox.shell.environment import shell_environment
from sandbox.shell.output import RunFolder
from sandbox.shell.processes import kill_shell_processes, shell_processes
from sandbox.shell.session import Shell, WakeUp, wait_until
from sandbox.web import Failure, NoProcessLeft

MAX_SHELLS = 256
"""Maximum number of shells. A bash takes about 4 MB; many sessions may share one sandbox."""

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_NO_BASH = "bash is not installed"


class Shells:
    """Creates shells on first use and ends them together. `close` leaves no process and no file behind."""

    def __init__(self, settings: Settings) -> None:
        self.mark = secrets.token_hex(8)
        """Prefix of `ANKER_SHELL` in the environment of every process of these shells, unless a process removed it."""
        self._settings = settings
        self._shells: dict[str, Shell] = {}
        self._created = WakeUp()
        self._launch: BashLaunch | None = None
        self._bash = shutil.which("bash")

    async def find_problem(self) -> str:
        """Return why no shell can be started; empty if one can, at least after a kill of others.

        After a failed start, this is tried.
        """
        failed = [shell for shell in self._shells.values() if shell.start_failed]
        if self._bash is None or not failed:
            return "" if self._bash else _NO_BASH
        probe = Shell("probe", self._prepare_launch(), self._settings.home)
        try:
            await probe.run(":")
        except NoProcessLeft as failure:
            return "" if await self._has_processes() else failure.message
        except Failure as failure:
            return failure.message
        finally:
            await self._end([probe])
        for shell in failed:
            shell.start_failed = False
        return ""

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

    async def get_later(self, name: str, seconds: float) -> Shell:
        """Return the shell with id `name`; wait at most `seconds` until it is created.

        Raises:
            Failure: 404 if it was not created.
        """
        await wait_until(lambda: name in self._shells, self._created, seconds)
        return self.get(name)

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
        self._created.wake_all()
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
            for folder in (self._launch.state, self._launch.outputs):
                await asyncio.to_thread(folder.remove)
            self._launch = None

    async def _has_processes(self) -> bool:
        """Return whether the shells have processes that can be killed."""
        return bool(await asyncio.to_thread(shell_processes, _leaders(self._shells.values()), self._settings.agent))

    async def _end(self, shells: list[Shell]) -> None:
        leaders = _leaders(shells)
        await asyncio.gather(*(shell.close() for shell in shells))
        if leaders:
            # One search for all shells, because it looks at every process of the machine.
            await asyncio.to_thread(kill_shell_processes, leaders, self._settings.agent, grace=0)

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
            raise Failure(409, _NO_BASH)
        if self._launch is None:
            self._launch = _launch(self._settings, self._bash, self.mark)
        return self._launch


def _leaders(shells: Iterable[Shell]) -> dict[int, str]:
    return {pid: mark for shell in shells for pid, mark in shell.leader.items()}


def _launch(settings: Settings, bash: str, mark: str) -> BashLaunch:
    """Return the parameters of every bash."""
    agent = settings.agent
    # The agent may use the files of a shell if it knows their names, but it cannot list, change or remove them.
    mode = 0o711 if agent.foreign else 0o700
    return BashLaunch(
        bash=bash,
        environment=shell_environment(agent.name, settings.home, bash, settings.instance, os.environ),
        mark=mark,
        agent=agent,
        state=RunFolder(settings.state_dir or settings.output_dir, Identity.of_user(""), mode),
        outputs=RunFolder(settings.output_dir, agent),
    )
