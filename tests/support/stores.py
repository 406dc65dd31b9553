"""A MongoDB server for tests: one process, a replica set of one member, in a directory of its own."""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pymongo
import pytest
from pymongo.errors import OperationFailure, PyMongoError

START_SECONDS = 60.0
"""Maximum seconds until a server is primary, on a loaded machine."""

QUIT_SECONDS = 30.0
"""Maximum seconds until a server has ended."""

SET = "rs0"
"""Name of every replica set."""

_MAX_WORKERS = 8
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))

_PORTS = range(15_000 + _WORKER % _MAX_WORKERS, 32_000, _MAX_WORKERS)
"""Ports of the servers, below those that Linux assigns by itself; each pytest-xdist worker has ports of its own."""

_NOT_INITIATED_CODE = 94
_ALREADY_INITIATED_CODE = 23


def mongod_binary() -> str | None:
    """Return the path of mongod: from PATH, or from an installed package; None if there is neither."""
    found = shutil.which("mongod")
    if found is not None:
        return found
    package = importlib.util.find_spec("fiftyone")
    for folder in (package and package.submodule_search_locations) or ():
        binary = Path(folder) / "db" / "bin" / "mongod"
        if binary.exists():
            return str(binary)
    return None


def require_mongod() -> None:
    """Skip the test if there is no mongod. Fail it in CI."""
    if mongod_binary() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no mongod here")
        pytest.skip("there is no mongod here")


def free_port() -> int:
    """Return a free port that the system does not assign by itself.

    A client that reconnects while the server is away could otherwise be assigned the server's port, and connect to
    itself.
    """
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Mongod:
    """A server that can be started and stopped repeatedly, on the same port and the same data."""

    def __init__(self, folder: Path, *, replica_set: bool = True, arguments: Sequence[str] = ()) -> None:
        """Prepare the server; `start` starts it.

        Args:
            folder: Directory of the data and the log.
            replica_set: Whether the server is a replica set.
            arguments: Additional arguments of mongod.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._replica_set = replica_set
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port of the server."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Value of `MONGODB_URL` for the server."""
        return f"mongodb://127.0.0.1:{self.port}/" + (f"?replicaSet={SET}" if self._replica_set else "")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start the process without waiting until it answers."""
        binary = mongod_binary()
        assert binary is not None, "there is no mongod on this machine"
        command = [binary, "--dbpath", str(self.folder), "--port", str(self.port), "--bind_ip", "127.0.0.1"]
        command += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        command += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"]
        if self._replica_set:
            command += ["--replSet", SET]
        command += self._arguments
        with (self.folder / "mongod.log").open("ab") as log:
            # In a session of its own, so that Ctrl-C ends the tests and not the server that they still use.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def start(self) -> None:
        """Start the server, and wait until it can be written."""
        self.launch()
        deadline = time.monotonic() + START_SECONDS
        address = f"mongodb://127.0.0.1:{self.port}/?directConnection=true"
        with pymongo.MongoClient(address, serverSelectionTimeoutMS=1000, retryReads=False) as client:
            while not self._ready(client):
                assert self._process is not None
                assert self._process.poll() is None, (self.folder / "mongod.log").read_text()[-2000:]
                assert time.monotonic() < deadline, "mongod did not become ready"
                time.sleep(0.05)

    def kill(self) -> None:
        """End the server at once, like a machine that loses its power."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server in order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Make the server hang: it answers nothing, and no connection breaks."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a paused server."""
        os.kill(self.pid, signal.SIGCONT)

    def drop(self, database: str) -> None:
        """Drop a database."""
        with pymongo.MongoClient(self.url, serverSelectionTimeoutMS=5000) as client:
            client.drop_database(database)

    def _ready(self, client: "pymongo.MongoClient[dict[str, object]]") -> bool:
        try:
            hello = client.admin.command("hello")
            if not self._replica_set or hello.get("isWritablePrimary"):
                return True
            if "setName" not in hello:
                member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
                client.admin.command("replSetInitiate", {"_id": SET, "members": [member]})
        except OperationFailure as error:
            if error.code not in (_NOT_INITIATED_CODE, _ALREADY_INITIATED_CODE):
                raise
        except PyMongoError:
            pass
        return False

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
            if number is signal.SIGTERM:
                self._process.send_signal(signal.SIGCONT)
        self._process.wait(QUIT_SECONDS)
        self._process = None
