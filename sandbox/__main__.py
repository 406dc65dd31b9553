"""`python -m sandbox`: runs the service until SIGTERM, SIGINT or its parent's end, and leaves no process behind."""

import asyncio
import gc
import os
import signal
import socket
import sys
from types import FrameType
from typing import cast

# Start-up is mostly imports, which make lasting objects: collecting garbage meanwhile only costs time.
gc.disable()

import uvicorn  # noqa: E402
import uvloop  # noqa: E402
from pydantic import ValidationError  # noqa: E402
from uvicorn.server import ServerState  # noqa: E402

from sandbox import lifeline  # noqa: E402
from sandbox.bridges.upgrade import Upgrade  # noqa: E402
from sandbox.main import Sandbox, create_app  # noqa: E402
from sandbox.settings import Settings, complaint  # noqa: E402
from sandbox.shell.environment import SHELL_MARK  # noqa: E402
from sandbox.shell.processes import kill_descendants  # noqa: E402

_KILL_SECONDS = 0.5


class _Server(uvicorn.Server):
    """Begins the sandbox once requests are answered, and ends it before it waits for those that are open, which may be
    waiting for a shell."""

    def __init__(self, config: uvicorn.Config, sandbox: Sandbox) -> None:
        super().__init__(config)
        self._sandbox = sandbox

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by `serve` first."""
        await super().startup(sockets)
        self._sandbox.begin()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by `serve` when it is to end."""
        for connection in [one for one in self.server_state.connections if isinstance(one, Upgrade)]:
            connection.shutdown()
        await self._sandbox.close()
        await super().shutdown(sockets)

    def stop(self) -> None:
        """Has `serve` end."""
        self.should_exit = True


def _leave(_number: int, _frame: FrameType | None) -> None:
    """Unwinds `main`. uvicorn raises the signal it ended on once more; by default that would skip our last words."""
    raise SystemExit(0)


def _problem(settings: Settings) -> str:
    """Why the service cannot run with these settings, found out before anything starts; empty when it can."""
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"SANDBOX_HOME: {error.strerror}"
    return ""


async def _serve(settings: Settings) -> None:
    app = create_app(settings)
    sandbox: Sandbox = app.state.sandbox
    lifeline.start_guardian(f"{SHELL_MARK}={sandbox.shells.word}")

    def upgrade(*, server_state: ServerState, **_: object) -> Upgrade:
        return Upgrade(sandbox.open, sandbox.token, sandbox.activity, cast(set[object], server_state.connections))

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http="httptools",
        ws=cast(type[asyncio.Protocol], upgrade),  # it is only ever called
        timeout_graceful_shutdown=1,
        lifespan="on",
    )
    server = _Server(config, sandbox)
    if settings.lifeline_fd is not None:
        lifeline.watch_parent(settings.lifeline_fd, server.stop)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(lifeline.keep_reaping(lambda: sandbox.pids))]
        if settings.idle_seconds:
            tasks.append(group.create_task(_stop_when_idle(server, sandbox, settings.idle_seconds)))
        await server.serve([socket.socket(fileno=settings.fd)] if settings.fd is not None else None)
        for task in tasks:
            task.cancel()


async def _stop_when_idle(server: _Server, sandbox: Sandbox, seconds: float) -> None:
    await sandbox.activity.idle_for(seconds)
    server.stop()


def main() -> int:
    """The exit status: 0 after an orderly end, 2 for a setting that cannot be used."""
    try:
        settings = Settings.from_environment(os.environ)
    except ValidationError as error:
        print(complaint(error), file=sys.stderr)
        return 2
    if problem := _problem(settings):
        print(problem, file=sys.stderr)
        return 2
    os.environ.pop("SANDBOX_TOKEN", None)
    lifeline.hide()
    lifeline.take_signals_back()
    lifeline.become_subreaper()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
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
