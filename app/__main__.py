"""`python -m app [api | worker]`: run the service or one part of it. `--reload`: anew whenever the code changes."""

import argparse
import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from socket import AF_INET, AF_INET6, create_server, socket
from types import FrameType

import sniffio
import uvicorn
from fastapi import FastAPI

from app.bootstrap import RunningService, check_providers, open_service
from app.domain.errors import AnkerError
from app.infrastructure.logging import configure_logging
from app.interfaces.metrics import Metrics
from app.interfaces.viewer_connection import MAX_MESSAGE, PING_SECONDS, PONG_SECONDS, ViewerConnection
from app.main import create_app
from app.settings import Role, Settings, UnusableSetting, load_settings

DRAIN_SECONDS = 3
"""How long open requests may take to end once the service was told to stop."""


class Server(uvicorn.Server):
    """uvicorn's server that says where it listens, and ends the streams as soon as it is told to stop.

    It opens and closes the application itself: uvicorn would answer a data folder that is in use with a traceback.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, welcome: "Welcome") -> None:
        super().__init__(config)
        self._welcome = welcome
        self._lifespan = app.router.lifespan_context(app)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """See `uvicorn.Server.startup`. Exits with one line when something that is foreseen does not open."""
        self._loop = asyncio.get_running_loop()
        try:
            await self._lifespan.__aenter__()
        except (AnkerError, UnusableSetting) as error:
            sys.exit(str(error))
        await super().startup(sockets)
        service = self._service()
        if self.started and service is not None:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            print("\n".join(self._welcome(service, f"http://{address}")), flush=True)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        try:
            await super().shutdown(sockets)
        finally:
            await self._lifespan.__aexit__(None, None, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server.handle_exit`. Streams would otherwise keep the server waiting."""
        super().handle_exit(sig, frame)
        service = self._service()
        if service is not None:
            # A signal may come between any two instructions; the streams belong to the loop.
            self._loop.call_soon_threadsafe(service.services.end_streams)

    def _service(self) -> RunningService | None:
        return getattr(getattr(self.config.app, "state", None), "service", None)


Welcome = Callable[[RunningService, str], list[str]]
"""What is printed once everything is open, given the address that it answers on."""


def welcome(service: RunningService, url: str) -> list[str]:
    """Three lines: where it listens, what it uses, what to try."""
    return [
        f"Anker listens on {url} (API below /api/v1, documentation at /docs)",
        f"It uses {service.description}",
        f"""Try: S=$(curl -sX PUT {url}/api/v1/sessions | cut -d'"' -f12); """
        f"""curl -N {url}/api/v1/sessions/$S/chat -d '{{"message":"What can this machine do?"}}'""",
    ]


def welcome_worker(service: RunningService, url: str) -> list[str]:
    """Two lines: what it does and where it says how it is; what it uses."""
    return [
        f"Anker works on runs; {url}/health, /ready and /metrics say how it is",
        f"It uses {service.description}",
    ]


def serve(settings: Settings, listener: socket, role: Role = "all") -> None:
    """Run the service until SIGINT or SIGTERM."""
    _settle_async_library()
    app = create_app(settings, role=role)
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ws=ViewerConnection,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,  # what a desktop sends is compressed already
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
    )
    with suppress(KeyboardInterrupt):  # uvicorn hands Ctrl-C on once everything is closed
        Server(config, app, welcome_worker if role == "worker" else welcome).run(sockets=[listener])


async def work(settings: Settings) -> None:
    """Carry runs, without serving requests, until SIGINT or SIGTERM.

    Raises:
        AnkerError: something that is foreseen does not open.
        UnusableSetting: a setting cannot be used.
    """
    _settle_async_library()
    configure_logging(settings.log_level)
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with open_service(settings, {}, Metrics(), role="worker") as service:
        print(f"Anker works on runs\nIt uses {service.description}", flush=True)
        await told.wait()


def _settle_async_library() -> None:
    """Otherwise the HTTP clients find it out anew several times a request: a tenth of what a turn of the agent
    costs."""
    sniffio.current_async_library_cvar.set("asyncio")


def listen(settings: Settings, role: Role = "all") -> socket | None:
    """The socket that the service answers on; None for a worker that answers nothing.

    Raises:
        UnusableSetting: the address cannot be had.
    """
    setting, port = ("WORKER_PORT", settings.worker_port) if role == "worker" else ("PORT", settings.port)
    if port is None:
        return None
    family = AF_INET6 if ":" in settings.host else AF_INET
    try:
        return create_server((settings.host, port), family=family, backlog=2048)
    except OSError as error:
        number = error.errno or 0
        name = setting if number in (errno.EADDRINUSE, errno.EACCES) else "HOST"
        reason = os.strerror(number).lower() if number > 0 else "there is no such address"
        raise UnusableSetting(f"{name}: cannot listen on {settings.host}, port {port}: {reason}") from error


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="anker", description="An agent backend with a computer for every session.")
    parser.add_argument(
        "role",
        nargs="?",
        choices=("all", "api", "worker"),
        default="all",
        help="serve requests (api), carry runs (worker), or both; one alone needs MONGODB_URL and REDIS_URL",
    )
    parser.add_argument("--reload", action="store_true", help="start anew whenever the code changes")
    arguments = parser.parse_args()
    role: Role = arguments.role
    if arguments.reload and role != "all":
        parser.error("--reload is for the whole service in one process")
    try:
        settings = load_settings()
        settings.check_role(role)
        check_providers(settings)
        listener = listen(settings, role)
        if listener is None:
            asyncio.run(work(settings))
            return
    except (AnkerError, UnusableSetting) as error:
        sys.exit(str(error))
    if arguments.reload:
        _watch(listener)
    else:
        serve(settings, listener, role)


def _watch(listener: socket) -> None:
    from uvicorn.supervisors import ChangeReload

    # By its importable name: the process that the watcher starts does not know this one's `__main__`.
    from app.__main__ import serve_again

    config = uvicorn.Config("app.main:create_app", factory=True, reload=True, reload_dirs=["app", "sandbox"])
    ChangeReload(config, target=serve_again, sockets=[listener]).run()


def serve_again(sockets: list[socket] | None = None) -> None:
    """What the watcher starts in a fresh process each time: the settings may have changed as well."""
    try:
        settings = load_settings()
        check_providers(settings)
    except UnusableSetting as error:
        sys.exit(str(error))
    assert sockets  # noqa: S101 - the watcher hands its own on
    serve(settings, sockets[0])


if __name__ == "__main__":
    main()
