"""The shell toolkit: run commands in shells of the session's sandbox. Each shell id is a shell of its own."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import Field

from app.domain.external.sandbox import Sandbox
from app.domain.models.sandbox import ShellState
from app.domain.models.tool import SavedText, ToolResult
from app.domain.services.tools.base import Tool, ToolContext, ToolInput, function_tool


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
        outcome = f"[still running in shell {shell_id}: shell_wait, shell_write_to_process or shell_kill_process]"
    elif state.returncode is None:
        outcome = "[nothing is running]"
    else:
        outcome = f"[exit code {state.returncode}]"
    if state.note:
        outcome += f"\n[{state.note}]"
    if state.truncated and state.output_file:
        outcome += f"\n[the whole output is in {state.output_file}]"
    output = state.output.rstrip("\n")
    console = [{"ps1": r.ps1, "command": r.command, "output": r.output} for r in state.console]
    return ToolResult(
        text=f"{output}\n{outcome}" if output else outcome,
        saved=SavedText(file=state.output_file, first_line=None) if state.output_file else None,
        message="; ".join(line.strip("[]") for line in outcome.splitlines()),
        is_running=state.status == "running",
        data={
            "session_id": shell_id,
            "status": state.status,
            "returncode": state.returncode,
            "output": state.output,
            "note": state.note,
        },
        content={"console": console or state.output},
    )


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

    return function_tool(f"shell_{name}", "shell", description, input, run, aborting=aborting)


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
