"""`python -m sandbox`: runs the service until SIGTERM, SIGINT or its parent's end, and leaves no process behind."""

import asyncio
import gc
import signal
import socket
import sys
from types import FrameType

# Start-up is mostly imports, which make lasting objects: collecting garbage meanwhile only costs time.
gc.disable()

import uvicorn  # noqa: E402
import uvloop  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from sandbox import lifeline  # noqa: E402
from sandbox.main import create_app  # noqa: E402
from sandbox.settings import Settings, complaint  # noqa: E402
from sandbox.shell.environment import SHELL_MARK  # noqa: E402
from sandbox.shell.manager import Shells  # noqa: E402
from sandbox.shell.processes import kill_descendants  # noqa: E402

_KILL_SECONDS = 0.5


class _Server(uvicorn.Server):
    """Ends the shells before it waits for open requests, which may be waiting for a shell."""

    def __init__(self, config: uvicorn.Config, shells: Shells) -> None:
        super().__init__(config)
        self._shells = shells

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by `serve` when it is to end."""
        await self._shells.close()
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
    shells: Shells = app.state.shells
    lifeline.start_guardian(f"{SHELL_MARK}={shells.word}")
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http="httptools",
        ws="none",  # no route needs it yet, and loading it takes time
        timeout_graceful_shutdown=1,
        lifespan="on",
    )
    server = _Server(config, shells)
    if settings.lifeline_fd is not None:
        lifeline.watch_parent(settings.lifeline_fd, server.stop)
    reaper = asyncio.create_task(lifeline.keep_reaping(lambda: shells.pids))
    try:
        await server.serve([socket.socket(fileno=settings.fd)] if settings.fd is not None else None)
    finally:
        reaper.cancel()


def main() -> int:
    """The exit status: 0 after an orderly end, 2 for a setting that cannot be used."""
    try:
        settings = Settings()  # pyright: ignore[reportCallIssue] - the token comes from the environment
    except ValidationError as error:
        print(complaint(error), file=sys.stderr)
        return 2
    if problem := _problem(settings):
        print(problem, file=sys.stderr)
        return 2
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
