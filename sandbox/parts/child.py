"""A child process in its own session and process group."""

import asyncio
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sandbox.identity import Identity
from sandbox.lifeline import launch_prefix

_READ = 65536
"""Number of bytes to read at once."""
_TAIL = 4096
"""Number of bytes of output to keep."""
_KILL_SECONDS = 1.0
"""Maximum wait for the end after SIGKILL, in seconds."""


@dataclass(frozen=True)
class Command:
    """A program with its arguments, its whole environment, its start folder and the user that runs it."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    user: Identity
    sockets: tuple[socket.socket, socket.socket] | None = None
    """Sockets for its standard input and output. They are closed here once it has started."""


class Child:
    """A running program. `on_output` receives its output; `exited` holds its exit status once it has ended."""

    def __init__(self, command: Command, on_output: Callable[[bytes], None]) -> None:
        """Start the program. Needs a running event loop.

        Raises:
            OSError: The program cannot be started.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._on_output = on_output
        self.exited: asyncio.Future[int] = loop.create_future()
        self._tail = bytearray()
        self._output, writing = os.pipe()
        try:
            # On the loop's thread: the death signal follows the thread that forked.
            self._process = subprocess.Popen(  # noqa: S603 - a command of ours
                command.user.command([*launch_prefix("KILL"), *command.arguments], command.folder),
                **command.user.popen_options(command.folder),
                env=dict(command.environment),
                stdin=command.sockets[0].fileno() if command.sockets else subprocess.DEVNULL,
                stdout=command.sockets[1].fileno() if command.sockets else writing,
                stderr=writing,
                start_new_session=True,
            )
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(writing)
            for each in command.sockets or ():
                each.close()
        self.pid = self._process.pid
        os.set_blocking(self._output, False)
        loop.add_reader(self._output, self._readable)
        threading.Thread(target=self._wait, name=f"child-{self.pid}", daemon=True).start()

    @property
    def output_tail(self) -> str:
        """The end of its output, at most 4 KB."""
        return self._tail.decode("utf-8", "replace").strip()

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, wait at most `grace` seconds, then kill its whole process group."""
        # Only to the program itself: a browser whose helpers die at the same moment cannot save its state.
        self._process.send_signal(signal.SIGTERM)
        await asyncio.wait({self.exited}, timeout=grace)
        if not self.exited.done():
            self._kill_group()
            await asyncio.wait({self.exited}, timeout=_KILL_SECONDS)

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _readable(self) -> None:
        try:
            data = os.read(self._output, _READ)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._output)
            return
        self._tail += data
        del self._tail[:-_TAIL]
        self._on_output(data)

    def _wait(self) -> None:
        returncode = self._process.wait()
        try:
            self._loop.call_soon_threadsafe(self._on_exit, returncode)
        except RuntimeError:
            return  # the event loop is closed, so nobody waits for the exit

    def _on_exit(self, returncode: int) -> None:
        # The rest of its process group is useless without it and may keep its files open.
        self._kill_group()
        self._readable()
        self._loop.remove_reader(self._output)
        os.close(self._output)
        self.exited.set_result(returncode)
