"""One program that was started, in a session and process group of its own."""

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sandbox.lifeline import dies_with_us

_READ = 65536
_TAIL = 4096
_KILL_SECONDS = 1.0


@dataclass(frozen=True)
class Command:
    """What to start: the program with its arguments, its whole environment and the folder it begins in."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str


class Child:
    """A running program. What it writes goes to `on_output`; `exited` is its exit status once it has ended."""

    def __init__(self, command: Command, on_output: Callable[[bytes], None]) -> None:
        """Starts it; needs a running event loop. Raises OSError."""
        loop = self._loop = asyncio.get_running_loop()
        self._on_output = on_output
        self.exited: asyncio.Future[int] = loop.create_future()
        self._tail = bytearray()
        self._output, writing = os.pipe()
        try:
            # On the loop's thread: the death signal follows the thread that forked.
            self._process = subprocess.Popen(  # noqa: S603 - a command of ours
                [*dies_with_us("KILL"), *command.arguments],
                env=dict(command.environment),
                cwd=command.folder,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
            )
        except OSError:
            os.close(self._output)
            raise
        finally:
            os.close(writing)
        self.pid = self._process.pid
        os.set_blocking(self._output, False)
        loop.add_reader(self._output, self._readable)
        threading.Thread(target=self._wait, name=f"child-{self.pid}", daemon=True).start()

    @property
    def last_words(self) -> str:
        """The end of what it wrote, at most 4 KB."""
        return self._tail.decode("utf-8", "replace").strip()

    async def end(self, grace: float) -> None:
        """SIGTERM, at most `grace` seconds, then SIGKILL to its whole process group."""
        # To it alone: a browser whose helpers die at the same moment cannot write down what they know.
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
            self._loop.call_soon_threadsafe(self._gone, returncode)
        except RuntimeError:
            return  # the event loop is closed: nobody is left to be told

    def _gone(self, returncode: int) -> None:
        # What it leaves behind of its group is of no use without it, and may hold on to its files.
        self._kill_group()
        self._readable()
        self._loop.remove_reader(self._output)
        os.close(self._output)
        self.exited.set_result(returncode)
