"""One sandbox service as a child process: how it is started, watched and ended."""

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from app.domain.errors import SandboxUnavailable
from app.infrastructure.sandbox.environment import clean_environment, temporary_folder
from app.infrastructure.sandbox.ledger import MARK_VARIABLE, descendants, kill
from app.infrastructure.sandbox.workspace import Place

REPOSITORY = Path(__file__).resolve().parents[3]
"""The folder that holds the package `sandbox`."""

HOME_ALIAS = "/home/ubuntu"
"""The workspace of a container: a model that was told of it finds its files here too."""

BACKLOG = 128
GRACE_SECONDS = 1.5
"""How long a sandbox may take to end its shells and itself; it needs less than a second."""
TAIL_BYTES = 4096


class SandboxProcess:
    """A running `python -m sandbox`. `stop` ends it, and what it started; so does the death of this process."""

    def __init__(self, child: asyncio.subprocess.Process, *, address: str, token: str, lifeline: int) -> None:
        """`lifeline` is the write end of the pipe whose end the child watches; owned from here on."""
        self.address = address
        self.token = token
        self._child = child
        self._lifeline = lifeline
        self._tail = bytearray()
        self._reader = asyncio.create_task(self._keep_tail())

    @classmethod
    async def spawn(
        cls, place: Place, *, mark: str, source: Mapping[str, str], exec_seconds: float
    ) -> "SandboxProcess":
        """Start one for `place`; it answers at `address` from now on, for its socket listens already.

        `source` is the environment to pick from. A child that dies at start resets whoever has connected.

        Raises:
            SandboxUnavailable: no process could be started.
        """
        token = secrets.token_urlsafe(32)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(BACKLOG)
            port: int = listener.getsockname()[1]
            read_end, write_end = os.pipe()
            try:
                child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "sandbox",
                    cwd=REPOSITORY,
                    env={
                        **clean_environment(source, place.workspace),
                        **_settings(place, exec_seconds),
                        MARK_VARIABLE: mark,
                        "SANDBOX_TOKEN": token,
                        "SANDBOX_FD": str(listener.fileno()),
                        "SANDBOX_LIFELINE_FD": str(read_end),
                    },
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(listener.fileno(), read_end),
                    start_new_session=True,
                )
            except OSError as error:
                os.close(write_end)
                raise SandboxUnavailable(f"No sandbox could be started: {error.strerror}.") from error
            except BaseException:
                os.close(write_end)  # a child that was started after all ends by it
                raise
            finally:
                os.close(read_end)
        return cls(child, address=f"http://127.0.0.1:{port}", token=token, lifeline=write_end)

    @property
    def pid(self) -> int:
        """The process id, and the id of its process group."""
        return self._child.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended yet, as far as is known."""
        return self._child.returncode is None

    async def ended(self) -> None:
        """Returns once it has ended, whoever ended it."""
        await self._child.wait()

    async def stop(self) -> int:
        """End it and all that it started; answers its exit status. At once when it has ended already."""
        self._cut_lifeline()
        try:
            if self.running:
                self._signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(GRACE_SECONDS):
                        await self._child.wait()
                except TimeoutError:
                    await self._kill()
            return await self._child.wait()
        finally:
            if self.running:  # cancelled: no time for manners
                self._signal(signal.SIGKILL)
            self._reader.cancel()

    async def last_words(self) -> str:
        """The end of what an ended process wrote, at most 4 KB."""
        await asyncio.wait({self._reader}, timeout=GRACE_SECONDS)
        return self._tail.decode("utf-8", "replace").strip()

    async def _kill(self) -> None:
        """For a sandbox that hangs: what it should have ended can be found by its parent only until that is dead."""
        orphans = await asyncio.to_thread(descendants, self.pid)
        self._signal(signal.SIGKILL)
        for process in orphans:
            kill(process)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return

    def _cut_lifeline(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1

    async def _keep_tail(self) -> None:
        """Read on for as long as it writes, so that it never blocks; keep the end only."""
        stream = self._child.stdout
        while stream is not None and (chunk := await stream.read(TAIL_BYTES)):
            self._tail += chunk
            del self._tail[:-TAIL_BYTES]


def _settings(place: Place, exec_seconds: float) -> dict[str, str]:
    workspace, output = os.path.realpath(place.workspace), os.path.realpath(place.output)
    return {
        "SANDBOX_HOME": workspace,
        "SANDBOX_HOME_ALIAS": HOME_ALIAS,
        "SANDBOX_ROOTS": os.pathsep.join((workspace, output, temporary_folder())),
        # Both may lie in the temporary folder: other sessions' files, our database, our own `.env`.
        "SANDBOX_CLOSED": os.pathsep.join((os.path.realpath(place.folder.parents[1]), os.path.realpath(REPOSITORY))),
        "SANDBOX_OUTPUT_DIR": output,
        "SANDBOX_EXEC_SECONDS": f"{exec_seconds:g}",
        # The first who drives a browser waits for it; a window would open on the operator's own desktop.
        "SANDBOX_BROWSER": "lazy",
        "SANDBOX_DESKTOP": "false",
    }
