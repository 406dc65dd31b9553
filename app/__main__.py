"""`python -m app`: run the service. `--reload` starts it anew whenever the code changes."""

import argparse
import asyncio
import sys
from contextlib import suppress
from socket import socket
from types import FrameType

import uvicorn

from app.bootstrap import Container
from app.main import create_app
from app.settings import Settings, UnusableSetting, load_settings

PARTS = ("all",)
"""What can be run; API and worker processes of their own need both stores, which this version has not."""

DRAIN_SECONDS = 3
"""How long open requests may take to end once the service was told to stop."""


class Server(uvicorn.Server):
    """uvicorn's server that says where it listens, and ends the streams as soon as it is told to stop."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """See `uvicorn.Server.startup`."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        container = self._container()
        if self.started and container is not None:
            listening = self.servers[0].sockets[0].getsockname()
            print("\n".join(welcome(container, f"http://{listening[0]}:{listening[1]}")), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server.handle_exit`. Streams would otherwise keep the server waiting."""
        super().handle_exit(sig, frame)
        container = self._container()
        if container is not None:
            # A signal may come between any two instructions; the streams belong to the loop.
            self._loop.call_soon_threadsafe(container.services.end_streams)

    def _container(self) -> Container | None:
        return getattr(getattr(self.config.app, "state", None), "container", None)


def welcome(container: Container, url: str) -> list[str]:
    """Three lines: where it listens, what it uses, what to try."""
    return [
        f"Anker listens on {url} (API below /api/v1, documentation at /docs)",
        f"It uses {container.description}",
        f"""Try: S=$(curl -sX PUT {url}/api/v1/sessions | cut -d'"' -f12); """
        f"""curl -N {url}/api/v1/sessions/$S/chat -d '{{"message":"What can this machine do?"}}'""",
    ]


def serve(settings: Settings) -> None:
    """Run the service until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ws="none",
    )
    with suppress(KeyboardInterrupt):  # uvicorn hands Ctrl-C on once everything is closed
        Server(config).run()


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="anker", description="An agent backend with a computer for every session.")
    parser.add_argument("--reload", action="store_true", help="start anew whenever the code changes")
    parser.add_argument(
        "part",
        nargs="?",
        choices=("all",),
        default="all",
        help="all of it; parts of their own come with MongoDB and Redis",
    )
    arguments = parser.parse_args()
    try:
        settings = load_settings()
    except UnusableSetting as error:
        sys.exit(str(error))
    if arguments.reload:
        _watch(settings)
    else:
        serve(settings)


def _watch(settings: Settings) -> None:
    from uvicorn.supervisors import ChangeReload

    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        reload=True,
        reload_dirs=["app", "sandbox"],
        host=settings.host,
        port=settings.port,
    )
    listener = config.bind_socket()
    ChangeReload(config, target=_serve_again, sockets=[listener]).run()


def _serve_again(sockets: list[socket] | None = None) -> None:
    """What the watcher starts in a fresh process each time: the settings may have changed as well."""
    try:
        settings = load_settings()
    except UnusableSetting as error:
        sys.exit(str(error))
    config = uvicorn.Config(
        create_app(settings), log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=DRAIN_SECONDS
    )
    with suppress(KeyboardInterrupt):
        Server(config).run(sockets=sockets)


if __name__ == "__main__":
    main()
