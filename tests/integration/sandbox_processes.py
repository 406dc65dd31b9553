"""Helpers of the tests with real sandbox processes."""

from pathlib import Path

import psutil

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.ledger import MARK_VARIABLE, Identity, Ledger
from tests.support.eventually import eventually


def marked(data_dir: Path, session_id: str | None = None) -> list[psutil.Process]:
    """The living processes that carry the mark of this data folder, or of one of its sessions."""
    mark = Ledger(data_dir / "sandboxes").mark(session_id or "")
    return [
        process
        for process in psutil.process_iter()
        if (carried := _mark(process)) == mark or (session_id is None and carried.startswith(mark))
    ]


def services(data_dir: Path, session_id: str | None = None) -> list[psutil.Process]:
    """The sandbox services among them."""
    return [each for each in marked(data_dir, session_id) if _command(each).endswith("-m sandbox")]


def commands(processes: list[psutil.Process]) -> list[str]:
    """Their command lines, sorted."""
    return sorted(line for process in processes if (line := _command(process)))


async def run(sandbox: Sandbox, command: str) -> str:
    """What a command that ends wrote in the shell `main`, however long that took."""
    state = await sandbox.shell_exec("main", "", command)
    output = state.output
    while state.status == "running":
        state = await sandbox.shell_wait("main", 20)
        output += state.output
    return output


STRAYS = "sleep 1000 & (nohup sleep 1000 &) ; setsid sleep 1000 & sleep 1000"
"""A command that goes on, and what a careless end of it would leave behind."""


async def astray(data_dir: Path, session_id: str | None = None, *, count: int = 4) -> None:
    """Wait until all of `STRAYS` has begun: a sandbox answers after a while, whatever has become of a command."""
    await eventually(lambda: commands(marked(data_dir, session_id)).count("sleep 1000") == count)


async def kill_service(data_dir: Path, session_id: str | None = None) -> None:
    """SIGKILL to the one sandbox service there is. Only once it is dead, which the signal alone does not say."""
    (process,) = services(data_dir, session_id)
    victim = Identity.of(process.pid)
    process.kill()
    await eventually(lambda: not victim.alive)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _mark(process: psutil.Process) -> str:
    try:
        return process.environ().get(MARK_VARIABLE, "")
    except (psutil.Error, OSError):
        return ""
