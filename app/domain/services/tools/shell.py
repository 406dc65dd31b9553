"""The shell toolkit: run commands in shells of the session's sandbox. Each shell id is a shell of its own."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from pydantic import Field

from app.domain.external.sandbox import Sandbox
from app.domain.models.sandbox import ConsoleRecord, ShellState
from app.domain.models.tool import JsonObject, SavedText, ToolResult
from app.domain.services.tools.base import Tool, ToolContext, ToolInput, function_tool

MAX_CONSOLE = 65_536
"""Maximum number of characters of a console in an event, but for the newest record, which a sandbox bounds."""


class _Shell(ToolInput):
    id: str = Field(min_length=1, max_length=64)


S = TypeVar("S", bound=_Shell)


class _Exec(_Shell):
    exec_dir: str
    command: str = Field(min_length=1)


class _Wait(_Shell):
    seconds: int | None = Field(None, ge=0, le=300)


class _WriteInput(_Shell):
    input: str
    press_enter: bool


async def _abort(args: _Shell, sandbox: Sandbox) -> None:
    await sandbox.shell_kill(args.id)


def _result(shell_id: str, state: ShellState) -> ToolResult:
    if state.status == "running":
        facts = [f"still running in shell {shell_id}: shell_wait, shell_write_to_process or shell_kill_process"]
    elif state.returncode is None:
        facts = ["nothing is running"]
    else:
        facts = [f"exit code {state.returncode}"]
    if state.note:
        facts.append(state.note)
    if state.truncated and state.output_file:
        facts.append(f"the whole output is in {state.output_file}")
    output = state.output.rstrip("\n")
    return ToolResult(
        text="\n".join([*filter(None, [output]), *(f"[{fact}]" for fact in facts)]),
        saved=SavedText(file=state.output_file, first_line=None) if state.output_file else None,
        message="; ".join(facts),
        is_running=state.status == "running",
        data={
            "session_id": shell_id,
            "status": state.status,
            "returncode": state.returncode,
            "output": state.output,
            "note": state.note,
        },
        content=_console(state.console),
    )


def _console(records: Sequence[ConsoleRecord]) -> JsonObject:
    """Return records as clients show them: the newest ones, up to `MAX_CONSOLE` characters, as events are kept."""
    shown: list[JsonObject] = []
    size = 0
    for record in reversed(records):
        size += len(record.ps1) + len(record.command) + len(record.output)
        if shown and size > MAX_CONSOLE:
            break
        shown.append({"ps1": record.ps1, "command": record.command, "output": record.output})
    return {"console": shown[::-1]}


def _console_without_result(args: JsonObject, reason: str) -> JsonObject:
    command = args.get("command")
    return {"console": [{"ps1": "$", "command": command, "output": f"[{reason}]\n"}] if command else []}


async def _console_so_far(args: JsonObject, sandbox: Sandbox) -> JsonObject | None:
    newest = (await sandbox.shell_watch(str(args["id"]))).console[-1:]
    # Without its own record, the command of the call was not started.
    return _console(newest) if newest and args.get("command") in (None, newest[0].command) else None


def _tool(
    name: str,
    description: str,
    input: type[S],
    act: Callable[[S, Sandbox], Awaitable[ShellState]],
    *,
    aborting: Callable[[_Shell, Sandbox], Awaitable[None]] | None = None,
) -> Tool:
    async def run(args: S, context: ToolContext) -> ToolResult:
        return _result(args.id, await act(args, await context.sandbox()))

    return function_tool(
        f"shell_{name}",
        "shell",
        description,
        input,
        run,
        aborting=aborting,
        without_result=_console_without_result,
        content_so_far=_console_so_far,
    )


TOOLS: tuple[Tool, ...] = (
    _tool(
        "exec",
        "Run Bash in the shell `id` (any name). Returns after 10 s at most; the command runs on.",
        _Exec,
        lambda args, sandbox: sandbox.shell_exec(args.id, args.exec_dir, args.command),
        aborting=_abort,
    ),
    _tool("view", "Show a shell's console.", _Shell, lambda args, sandbox: sandbox.shell_view(args.id)),
    _tool(
        "wait",
        "Wait for a shell's command.",
        _Wait,
        lambda args, sandbox: sandbox.shell_wait(args.id, args.seconds),
        aborting=_abort,
    ),
    _tool(
        "write_to_process",
        "Type into a shell's program; \\u0003 is Ctrl-C.",
        _WriteInput,
        lambda args, sandbox: sandbox.shell_write(args.id, args.input, press_enter=args.press_enter),
        aborting=_abort,
    ),
    _tool("kill_process", "Kill a shell's program.", _Shell, lambda args, sandbox: sandbox.shell_kill(args.id)),
)
