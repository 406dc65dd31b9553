"""The shell API. Answers carry `status` "completed" or "running" and the `returncode` of the newest command."""

import os

from pydantic import Field
from starlette.responses import Response
from starlette.routing import Route

from sandbox.envelope import answer
from sandbox.failure import Failure
from sandbox.files.paths import Paths
from sandbox.settings import Settings
from sandbox.shell.console import row
from sandbox.shell.excerpt import Excerpt
from sandbox.shell.manager import Shells
from sandbox.shell.record import Record
from sandbox.shell.session import Shell
from sandbox.web import Body, post

MOST_INPUT = 65_536


class ShellId(Body):
    """Which shell."""

    id: str


class Exec(ShellId):
    """A command; `exec_dir` absolute, relative to the home, `~` or empty (where the shell is)."""

    exec_dir: str = ""
    command: str


class Wait(ShellId):
    """How long to wait at most."""

    seconds: float | None = Field(default=15, ge=0, le=300)


class Write(ShellId):
    """What to type; control characters are allowed."""

    input: str = Field(max_length=MOST_INPUT)
    press_enter: bool = False


class KillAll(Body):
    """Which shells, by the start of their ids; empty: all."""

    prefix: str = ""


def shell_routes(shells: Shells, paths: Paths, settings: Settings) -> list[Route]:
    """The routes below `/shell`."""

    async def execute(body: Exec) -> Response:
        if "\0" in body.command:
            raise Failure(400, "a command cannot hold a NUL character")
        folder = await paths.folder_to_run_in(body.exec_dir)
        shell = await shells.get_or_make(body.id)
        record, note = await shell.run(body.command, folder)
        await shell.ended(settings.exec_seconds)
        return await _ran(shell, record, _message(record, note, settings.exec_seconds))

    async def view(body: ShellId) -> Response:
        shell = shells.get(body.id)
        newest = shell.console.newest
        if newest is not None:
            newest.reported = newest.output.total
        text, rows = await shell.console.text(), await shell.console.rows()
        return answer({**_state(shell, newest), "output": text, "console": rows})

    async def wait(body: Wait) -> Response:
        shell = shells.get(body.id)
        await shell.ended(15 if body.seconds is None else body.seconds)
        return await _news(shell)

    async def write(body: Write) -> Response:
        shell = shells.get(body.id)
        await shell.write(body.input + ("\r" if body.press_enter else ""))
        await shell.settled()
        return await _news(shell)

    async def kill(body: ShellId) -> Response:
        shell = shells.get(body.id)
        await shell.kill()
        return answer(_state(shell, shell.console.newest), "killed what ran")

    async def kill_all(body: KillAll) -> Response:
        return answer({"killed": await shells.kill_all(body.prefix)})

    return [
        post("/shell/exec", Exec, execute),
        post("/shell/view", ShellId, view),
        post("/shell/wait", Wait, wait),
        post("/shell/write", Write, write),
        post("/shell/kill", ShellId, kill),
        post("/shell/kill_all", KillAll, kill_all),
    ]


async def _ran(shell: Shell, record: Record, message: str) -> Response:
    """What `exec` answers: this command only, its output so far and where the whole of it is."""
    shown = await _first_report(record)
    data = {
        **_state(shell, record),
        "command": record.command,
        "output": shown.text,
        "truncated": shown.truncated,
        "output_file": os.fspath(record.output.path),
        "console": [await row(record)],
    }
    return answer(data, message)


def _state(shell: Shell, record: Record | None) -> dict[str, object]:
    running = record is not None and record.running
    return {
        "session_id": shell.name,
        "status": "running" if running else "completed",
        "returncode": record.returncode if record is not None else None,
    }


async def _first_report(record: Record) -> Excerpt:
    """The whole output of a command so far, marked as reported; what is cut through stays for the next report."""
    record.reported = 0
    return await record.news()


async def _news(shell: Shell) -> Response:
    record = shell.console.newest
    news = Excerpt("", truncated=False) if record is None else await record.news()
    state = _state(shell, record)
    message = "" if record is None else _message(record, "", None)
    return answer({**state, "output": news.text, "truncated": news.truncated}, message)


def _message(record: Record, note: str, seconds: float | None) -> str:
    if record.running:
        after = f" after {seconds:g} s" if seconds is not None else ""
        said = f"still running{after}: shell_wait waits on, shell_write_to_process types, shell_kill_process ends it"
    else:
        said = f"ended with exit code {record.returncode}"
    if record.output.cut:
        said = f"{said}; the output file holds only the first part of the output"
    return f"{said}; {note}" if note else said
