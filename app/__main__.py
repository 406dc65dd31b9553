"""Run the service or one part of it: `python -m app [api | worker]`. `--reload` restarts it when the code changes.

`python -m app check-model` probes a model instead, see `app/check_model.py`; `backup` and `restore` copy the store, see
`app/backup.py`; `token NAME` makes a token for a login; `verify-audit` checks the audit log, see `app/verify_audit.py`.
"""

import argparse
import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from socket import AF_INET, AF_INET6, create_server, socket
from types import FrameType

import sniffio
import uvicorn
from fastapi import FastAPI

from app.bootstrap import RunningService, open_service
from app.domain.errors import AnkerError
from app.infrastructure.auth.tokens import new_token
from app.infrastructure.logging import configure_logging
from app.infrastructure.secrets.known_secrets import KnownSecrets
from app.interfaces.http_connection import HttpConnection, TrimmingServer
from app.interfaces.metrics import Metrics
from app.interfaces.viewer_connection import MAX_MESSAGE, PING_SECONDS, PONG_SECONDS, ViewerConnection
from app.main import create_app
from app.own_secrets import secrets_of
from app.providers import check_providers
from app.settings import Role, Settings, UnusableSetting, load_settings

DRAIN_SECONDS = 3
"""Maximum time that open requests may take to end when the service shuts down, in seconds."""

KEEP_ALIVE_SECONDS = 75
"""Time after which an idle connection is closed, in seconds.

It is more than the 5 to 60 s of most clients and proxies: a request that meets a closing connection fails, and only the
client knows whether it may send it again.
"""

IMAGE_MARKER = Path(sys.prefix, "anker-image")
"""A file that only the Dockerfile of the service makes. A variable could get into a `.env` by accident."""

NO_LOGIN = (
    "there is no login: whoever can connect to this service can run commands in its sandboxes and read all sessions; "
    "set API_TOKENS, or publish the port to this machine only (docker run -p 127.0.0.1:8000:8000)"
)
"""Warning of a service without a login that does not listen on loopback."""

log = logging.getLogger(__name__)


class Server(TrimmingServer):
    """A uvicorn server that prints its address, and ends all streams when it starts to shut down.

    It runs the lifespan of the application itself, because uvicorn reports an error there with a traceback.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, role: Role, *, warning: str = "") -> None:
        super().__init__(config)
        self._warning = warning
        self._app = app
        self._role: Role = role
        self._lifespan = app.router.lifespan_context(app)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Open the service, then start to serve. Exit with one line if a part of the service cannot be opened."""
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
            print("\n".join(start_message(service, f"http://{address}", self._role)), flush=True)
            if self._warning:
                log.warning(self._warning)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Stop serving, then close the service."""
        try:
            await super().shutdown(sockets)
        finally:
            await self._lifespan.__aexit__(None, None, None)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGINT or SIGTERM: end the streams, for which the server would otherwise wait."""
        super().handle_exit(sig, frame)
        service = self._service()
        if service is not None:
            # A signal handler may interrupt the event loop anywhere, so only schedule the call.
            self._loop.call_soon_threadsafe(service.services.end_streams)

    def _service(self) -> RunningService | None:
        return getattr(self._app.state, "service", None)


def start_message(service: RunningService, url: str, role: Role) -> list[str]:
    """Return the lines to print when the service is open: its address, the adapters in use, and a command to try."""
    used = f"It uses {service.description}"
    if role == "worker":
        return [f"Anker works on runs; {url}/health, /ready and /metrics say how it is", used]
    login = "" if service.services.auth_provider == "none" else ' -H "Authorization: Bearer $TOKEN"'
    return [
        f"Anker listens on {url} (API below /api/v1, documentation at /docs)",
        used,
        f"""Try: S=$(curl -sX PUT{login} {url}/api/v1/sessions | cut -d'"' -f12); """
        f"""curl -N{login} {url}/api/v1/sessions/$S/chat -d '{{"message":"What can this machine do?"}}'""",
    ]


def serve(settings: Settings, listener: socket, role: Role = "all") -> None:
    """Run the service until SIGINT or SIGTERM."""
    _set_async_library()
    app = create_app(settings, role=role)
    is_open = settings.auth_mode == "none" and not settings.is_loopback
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has closed everything
        Server(server_config(app), app, role, warning=NO_LOGIN if is_open else "").run(sockets=[listener])


def server_config(app: FastAPI) -> uvicorn.Config:
    """Return the configuration of the server of `app`."""
    return uvicorn.Config(
        app,
        proxy_headers=False,  # the address of a client is that of its connection, whatever a header says
        lifespan="off",
        log_config=None,
        access_log=False,
        http=HttpConnection,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        ws=ViewerConnection,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,  # a desktop compresses its pictures itself
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PONG_SECONDS,
    )


async def work(settings: Settings) -> None:
    """Carry runs until SIGINT or SIGTERM, without serving requests.

    Raises:
        AnkerError: A part of the service cannot be opened.
        UnusableSetting: A setting cannot be used.
    """
    _set_async_library()
    secrets = KnownSecrets()
    configure_logging(settings.log_level, secrets)
    secrets.add(secrets_of(settings))
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_service(settings, {}, Metrics(), secrets=secrets, role="worker") as service:
        print(f"Anker works on runs\nIt uses {service.description}", flush=True)
        await stop.wait()


def _set_async_library() -> None:
    """Set the async library once. HTTP clients otherwise detect it several times a request, which takes long."""
    sniffio.current_async_library_cvar.set("asyncio")


def listen(settings: Settings, role: Role = "all") -> socket | None:
    """Open the socket on which the service listens. Return None for a worker without `WORKER_PORT`.

    Raises:
        UnusableSetting: The address cannot be used.
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


def check_exposure(settings: Settings) -> None:
    """Check that the service has a login where others can connect to it.

    A container of our image may go without one: it is reachable only at the ports that its operator publishes.

    Raises:
        UnusableSetting: It has none.
    """
    if settings.auth_mode != "none" or settings.is_loopback or settings.auth_none_anywhere:
        return
    if not (IMAGE_MARKER.exists() and _has_own_network()):
        raise UnusableSetting(
            f"HOST: others can connect to {settings.host}, and there is no login: set API_TOKENS (./run.sh token NAME "
            "makes one) or another AUTH; AUTH_NONE_ANYWHERE=true starts without"
        )


def _has_own_network() -> bool:
    """Return whether this container has its own network, as in `scripts/entrypoint.sh`."""
    interfaces = [path for path in Path("/sys/class/net").iterdir() if path.name != "lo"]
    return all((path / "iflink").read_text() != (path / "ifindex").read_text() for path in interfaces)


def _make_token(arguments: Sequence[str]) -> None:
    """Print a new token for the name in `arguments`, and its line for the file that `API_TOKENS` names."""
    parser = argparse.ArgumentParser(prog="token", description="Make a token for API_TOKENS. Nothing is stored.")
    parser.add_argument("name", help="who the token stands for")
    try:
        token, line = new_token(parser.parse_args(arguments).name)
    except ValueError as error:
        sys.exit(str(error))
    print(f"Token, shown only now:\n{token}\nLine for the file that API_TOKENS names:\n{line}")


def main() -> None:
    """Parse the command line and run."""
    if sys.argv[1:2] == ["token"]:
        _make_token(sys.argv[2:])
        return
    if sys.argv[1:2] == ["check-model"]:
        from app.check_model import main as check_model

        logging.basicConfig(level=logging.ERROR)  # failures of single calls are in the report
        sys.exit(check_model(sys.argv[2:]))
    if sys.argv[1:2] in (["backup"], ["restore"]):
        from app.backup import main as backup

        sys.exit(backup(sys.argv[1:]))
    if sys.argv[1:2] == ["verify-audit"]:
        from app.verify_audit import main as verify_audit

        logging.basicConfig(level=logging.ERROR)
        sys.exit(verify_audit(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="anker",
        description="An agent backend with a computer for every session.",
        epilog="Other commands: check-model, backup, restore, token, verify-audit; each has --help.",
    )
    parser.add_argument(
        "role",
        nargs="?",
        choices=("all", "api", "worker"),
        default="all",
        help="serve requests (api), carry runs (worker), or both; one alone needs MONGODB_URL and REDIS_URL",
    )
    parser.add_argument("--reload", action="store_true", help="restart whenever the code changes")
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
        check_exposure(settings)
    except (AnkerError, UnusableSetting) as error:
        sys.exit(str(error))
    if arguments.reload:
        _watch(listener)
    else:
        serve(settings, listener, role)


def _watch(listener: socket) -> None:
    from uvicorn.supervisors import ChangeReload

    # Import it by its name, because the process that the watcher starts has another `__main__`.
    from app.__main__ import serve_again

    config = uvicorn.Config("app.main:create_app", factory=True, reload=True, reload_dirs=["app", "sandbox"])
    ChangeReload(config, target=serve_again, sockets=[listener]).run()


def serve_again(sockets: list[socket] | None = None) -> None:
    """Run the service in a new process, which the watcher starts after each change; read the settings again."""
    try:
        settings = load_settings()
        check_providers(settings)
        check_exposure(settings)
    except UnusableSetting as error:
        sys.exit(str(error))
    assert sockets  # noqa: S101 - the watcher always passes its sockets
    serve(settings, sockets[0])


if __name__ == "__main__":
    main()
