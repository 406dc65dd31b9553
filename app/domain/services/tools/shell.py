"""The shell toolkit: run commands in shells of the session's sandbox. Each shell id is a shell of its own."""

from pydantic import Field

from app.domain.external.sandbox import Sandbox
from app.domain.models.sandbox import ShellState
from app.domain.models.tool import JsonObject, ToolResult
from app.domain.services.tools.base import Tool, ToolContext, ToolInput, clip, function_tool


class _Shell(ToolInput):
    id: str = Field(min_length=1, max_length=64, description="Shell id of your choice, e.g. main")


class _Exec(_Shell):
    exec_dir: str = Field(description="Working directory; ~ is your home and workspace")
    command: str = Field(min_length=1, description="Bash command")


class _Wait(_Shell):
    seconds: int | None = Field(None, ge=0, le=300, description="How long at most (15)")


class _WriteInput(_Shell):
    input: str = Field(description="Text to type; control characters such as \\u0003 (Ctrl-C) work")
    press_enter: bool = Field(description="Press Enter after it")


async def _exec(args: _Exec, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    return _result(args.id, await sandbox.shell_exec(args.id, args.exec_dir, args.command))


async def _view(args: _Shell, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    return _result(args.id, await sandbox.shell_view(args.id))


async def _wait(args: _Wait, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    return _result(args.id, await sandbox.shell_wait(args.id, args.seconds))


async def _write(args: _WriteInput, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    return _result(args.id, await sandbox.shell_write(args.id, args.input, press_enter=args.press_enter))


async def _kill(args: _Shell, context: ToolContext) -> ToolResult:
    sandbox = await context.sandbox()
    return _result(args.id, await sandbox.shell_kill(args.id))


async def _abort(args: _Shell, sandbox: Sandbox) -> None:
    await sandbox.shell_kill(args.id)


def _result(shell_id: str, state: ShellState) -> ToolResult:
    if state.status == "running":
        outcome = f"[still running in shell {shell_id}: shell_wait, shell_write_to_process or shell_kill_process]"
    elif state.returncode is None:
        outcome = "[nothing is running]"
    else:
        outcome = f"[exit code {state.returncode}]"
    if state.truncated and state.output_file:
        outcome += f"\n[the whole output is in {state.output_file}]"
    output = state.output.rstrip("\n")
    data: JsonObject = {
        "session_id": shell_id,
        "status": state.status,
        "returncode": state.returncode,
        "output": state.output,
    }
    console = [{"ps1": r.ps1, "command": r.command, "output": r.output} for r in state.console]
    return ToolResult(
        success=True,
        text=clip(f"{output}\n{outcome}" if output else outcome),
        message=outcome.strip("[]"),
        data=data,
        content={"console": console or state.output},
    )


TOOLS: tuple[Tool, ...] = (
    function_tool(
        "shell_exec",
        "shell",
        "Run a command in a shell. The shell keeps its directory and environment. Returns when the command ends, "
        "or after about 10 s with the output so far while it runs on.",
        _Exec,
        _exec,
        aborting=_abort,
    ),
    function_tool("shell_view", "shell", "Show a shell's whole console.", _Shell, _view),
    function_tool(
        "shell_wait", "shell", "Wait for a shell's running command; shows what is new.", _Wait, _wait, aborting=_abort
    ),
    function_tool(
        "shell_write_to_process",
        "shell",
        "Type into the program that runs in a shell.",
        _WriteInput,
        _write,
        aborting=_abort,
    ),
    function_tool("shell_kill_process", "shell", "Kill what runs in a shell.", _Shell, _kill),
)
