"""Helpers of the tests that run local sandboxes as real processes."""

import asyncio
from pathlib import Path

import psutil

from app.domain.external.sandbox import Sandbox
from app.infrastructure.sandbox.local.process import MARK_VARIABLE, ProcessMarks
from tests.support.eventually import eventually

STRAYS = "sleep 1000 & (nohup sleep 1000 &) ; setsid sleep 1000 & sleep 1000"
"""A command that runs on and starts processes that leave its process group or its session."""

STRAY_COUNT = 4
"""Number of `sleep 1000` that `STRAYS` starts."""


def marked(data_dir: Path, session_id: str | None = None) -> list[psutil.Process]:
    """Return the processes with the mark of this data folder, or of one of its sessions."""
    mark = ProcessMarks(data_dir / "sandboxes").mark(session_id or "")
    return [
        process
        for process in psutil.process_iter()
        if (found := _mark(process)) == mark or (session_id is None and found.startswith(mark))
    ]


def sandbox_processes(data_dir: Path, session_id: str | None = None) -> list[psutil.Process]:
    """Return the marked processes that run `python -m sandbox`."""
    return [each for each in marked(data_dir, session_id) if _command(each).endswith("-m sandbox")]


def commands(processes: list[psutil.Process]) -> list[str]:
    """Return the command lines of the processes that still run, sorted."""
    return sorted(line for process in processes if (line := _command(process)))


async def run(sandbox: Sandbox, command: str) -> str:
    """Run a command in the shell `main` until it ends, and return its output."""
    state = await sandbox.shell_exec("main", "", command)
    output = state.output
    while state.status == "running":
        state = await sandbox.shell_wait("main", 20)
        output += state.output
    return output


async def strays_started(data_dir: Path, session_id: str | None = None, *, count: int = STRAY_COUNT) -> None:
    """Wait until `count` processes of `STRAYS` run: `shell_exec` returns after a while, started or not."""
    await eventually(
        lambda: asyncio.to_thread(lambda: commands(marked(data_dir, session_id)).count("sleep 1000") == count)
    )


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
