"""`python -m sandbox`: run the service until SIGTERM, SIGINT or the end of its parent, and leave no process behind."""

import asyncio
import gc
import os
import signal
import socket
import sys
from types import FrameType
from typing import cast

# Start-up consists of imports, which create objects that stay: garbage collection would only cost time.
gc.disable()

import uvicorn  # noqa: E402
import uvloop  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402
from uvicorn.server import ServerState  # noqa: E402

from sandbox import lifeline  # noqa: E402
from sandbox.auth import OutsideProtocol  # noqa: E402
from sandbox.bridges.websocket import WebSocketProtocol  # noqa: E402
from sandbox.identity import Identity, become, prepare_folder  # noqa: E402
from sandbox.main import Sandbox, create_app  # noqa: E402
from sandbox.settings import Settings, describe_errors  # noqa: E402
from sandbox.shell.environment import SHELL_MARK  # noqa: E402
from sandbox.shell.processes import kill_descendants  # noqa: E402

_KILL_SECONDS = 0.5
"""Maximum time to kill remaining descendants, in seconds."""


class _Server(uvicorn.Server):
    """Starts the sandbox once the server accepts requests, and closes it before the server waits for open requests.

    Open requests may wait for a shell, so the shells must end first.
    """

    def __init__(self, config: uvicorn.Config, sandbox: Sandbox) -> None:
        super().__init__(config)
        self._sandbox = sandbox

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then start the sandbox."""
        await super().startup(sockets)
        self._sandbox.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close bridges and the sandbox, then the remaining connections."""
        for connection in [one for one in self.server_state.connections if isinstance(one, WebSocketProtocol)]:
            connection.shutdown()
        await self._sandbox.close()
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Make `serve` return."""
        self.should_exit = True


def _exit_on_signal(_number: int, _frame: FrameType | None) -> None:
    """Unwind `main`. uvicorn raises the signal again after its end, which by default would skip our cleanup."""
    raise SystemExit(0)


def _take_user(settings: Settings) -> str:
    """Become the program's user. Return why the service cannot run with these settings; empty if it can."""
    program = Identity.of_user(settings.program_user)
    try:
        if program.foreign:
            if settings.state_dir is not None:
                prepare_folder(settings.state_dir, program)
            become(program, sudo=settings.sudo)
        with settings.agent.acting():
            pass
    except OSError as error:
        names = settings.program_user or "this user", settings.agent.name
        return (
            f"SANDBOX_USER: cannot separate {names[0]} from {names[1]} ({error.strerror}): start the program as root "
            "with the capabilities CHOWN, KILL, SETGID and SETUID"
        )
    try:
        with settings.agent.acting():
            settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"SANDBOX_HOME: {error.strerror}"
    return ""


async def _serve(settings: Settings) -> None:
    app = create_app(settings)
    sandbox: Sandbox = app.state.sandbox
    lifeline.start_guardian(f"{SHELL_MARK}={sandbox.shells.mark}")

    def upgrade(*, server_state: ServerState, **_: object) -> WebSocketProtocol:
        return WebSocketProtocol(
            sandbox.open_bridge, sandbox.token, sandbox.activity, cast(set[object], server_state.connections)
        )

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=OutsideProtocol if settings.agent.foreign else HttpToolsProtocol,
        ws=cast(type[asyncio.Protocol], upgrade),  # uvicorn only calls it
        timeout_graceful_shutdown=1,
        lifespan="on",
    )
    server = _Server(config, sandbox)
    if os.getpid() == 1:
        lifeline.stop_on_signal_from_outside(server.stop)
    if settings.lifeline_fd is not None:
        lifeline.watch_parent(settings.lifeline_fd, server.stop)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(lifeline.reap_orphans_forever(lambda: sandbox.pids))]
        if settings.idle_seconds:
            tasks.append(group.create_task(_stop_when_idle(server, sandbox, settings.idle_seconds)))
        await server.serve([socket.socket(fileno=settings.fd)] if settings.fd is not None else None)
        for task in tasks:
            task.cancel()


async def _stop_when_idle(server: _Server, sandbox: Sandbox, seconds: float) -> None:
    await sandbox.activity.wait_until_idle(seconds)
    server.stop()


def main() -> int:
    """Run the service and return its exit status: 0 after an orderly end, 2 for a setting that cannot be used."""
    try:
        settings = Settings.from_environment(os.environ)
    except ValidationError as error:
        print(describe_errors(error), file=sys.stderr)
        return 2
    if problem := _take_user(settings):
        print(problem, file=sys.stderr)
        return 2
    os.environ.pop("SANDBOX_TOKEN", None)
    lifeline.hide_process()
    lifeline.restore_default_signals()
    lifeline.become_subreaper()
    if os.getpid() == 1:
        lifeline.block_stop_signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_on_signal)
    gc.enable()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    finally:
        kill_descendants(_KILL_SECONDS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
