"""A real MongoDB server for tests: one process, a replica set of one member, in a folder of its own."""

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
"""Until it is a primary, on a machine that is busy with something else."""

QUIT_SECONDS = 30.0
_OURS = range(15_000, 32_000)
"""Below what Linux gives away."""
SET = "rs0"
"""The name of every replica set."""

_REPLICA_SET_NOT_INITIATED = 94


def mongod_binary() -> str | None:
    """The server: the one of the machine, or the one that comes with a package; None when there is neither."""
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
    """The test is left out where there is no mongod, and fails in CI."""
    if mongod_binary() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("there is no mongod here")
        pytest.skip("there is no mongod here")


def free_port() -> int:
    """A port that nobody listens on now, and that the system gives to nobody who asks for any port: neither to another
    server, nor to a client. One that connects again and again while our server is away could else be given that very
    port, and meet itself there."""
    while True:
        port = secrets.choice(_OURS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class Mongod:
    """The server, life after life on the same port and the same data. `start` before anything else.

    `arguments`: more of them for the program.
    """

    def __init__(self, folder: Path, *, replica_set: bool = True, arguments: Sequence[str] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self._replica_set = replica_set
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """What `MONGODB_URL` says of it."""
        return f"mongodb://127.0.0.1:{self.port}/" + (f"?replicaSet={SET}" if self._replica_set else "")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(self) -> None:
        """Start the process, and do not wait until it answers."""
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
            # A session of its own: a Ctrl-C for the tests is none for the server that they are still talking to.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def start(self) -> None:
        """Start it, and wait until it can be written."""
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
        """It is gone at once, as with a machine that lost its power."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """It ends in order."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """It hangs: nothing is answered, no connection breaks."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was paused."""
        os.kill(self.pid, signal.SIGCONT)

    def drop(self, database: str) -> None:
        """Remove a database."""
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
            if error.code not in (_REPLICA_SET_NOT_INITIATED, 23):  # 23: somebody was faster
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
