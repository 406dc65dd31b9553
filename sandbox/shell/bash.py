"""One live bash on its own pseudo-terminal."""

import asyncio
import fcntl
import os
import pty
import secrets
import shutil
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandbox.lifeline import dies_with_us
from sandbox.shell.environment import SHELL_MARK
from sandbox.shell.marks import Mark, MarkReader
from sandbox.shell.script import ABORT_SIGNAL, Driver

ROWS, COLUMNS = 40, 160
_READ = 65536
_TURN = 128 * 1024
"""Bytes read in one turn of the event loop, so that a flood of output leaves room for others."""
_THROTTLE_AFTER = 64 * 1024 * 1024
_THROTTLE_SECONDS = 0.002

# An own open of the terminal by a session leader makes it the controlling one, on every Unix; then bash takes over.
_LAUNCH = 'exec "$1" --noediting --rcfile "$2" -i <>"$0" >&0 2>&0'


class Listener(Protocol):
    """Who is told what a bash does; called on the event loop."""

    def on_output(self, bash: "Bash", data: bytes) -> None:
        """Output with the marks taken out."""
        ...

    def on_mark(self, bash: "Bash", mark: Mark) -> None:
        """A mark, in order with the output."""
        ...

    def on_exit(self, bash: "Bash", returncode: int) -> None:
        """bash is gone; negative `returncode`: the signal that ended it. Nothing follows."""
        ...


@dataclass(frozen=True)
class Launch:
    """What every bash of this service is started with."""

    bash: str
    environment: Mapping[str, str]
    word: str
    """The start of every shell's own word, the same for all shells of this service."""
    folder: Path
    """Holds the private folders of all shells."""


class Bash:
    """A bash process, its terminal and the FIFO it takes commands from. Made by `start`; ended by `close`."""

    def __init__(self, launch: Launch, listener: Listener, *, cwd: str, with_bashrc: bool) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.word = f"{launch.word}-{secrets.token_hex(8)}"
        self._folder = launch.folder / f"shell-{secrets.token_hex(6)}"
        self._folder.mkdir(mode=0o700)
        self._reader = MarkReader(self.word)
        self._read_since_command = 0
        self._unsent = bytearray()
        self._closed = False
        self._master, self._slave = pty.openpty()
        self._driver = Driver(self._folder, self.word, os.ttyname(self._slave))
        self._driver.write(with_bashrc=with_bashrc)
        os.mkfifo(self._driver.fifo, 0o600)
        # Open for both, so that neither side ever waits for the other to open it; bash sees its end when we die.
        self._fifo = os.open(self._driver.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._master, False)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._modes = termios.tcgetattr(self._slave)
        self._modes[1] &= ~termios.ONLCR  # output comes as programs wrote it
        termios.tcsetattr(self._slave, termios.TCSANOW, self._modes)
        self._process = self._spawn(launch, cwd)
        self.pid = self._process.pid
        self._loop.add_reader(self._master, self._readable)
        threading.Thread(target=self._wait_for_exit, name=f"bash-{self.pid}", daemon=True).start()

    def _spawn(self, launch: Launch, cwd: str) -> subprocess.Popen[bytes]:
        # On the loop's thread: the death signal follows the thread that forked. Without a preexec function Python
        # uses vfork, so this takes about a millisecond whatever the size of this process.
        return subprocess.Popen(  # noqa: S603 - fixed program, no shell text from outside
            # HUP, not KILL: bash passes it on to its background jobs.
            [*dies_with_us("HUP"), "/bin/sh", "-c", _LAUNCH, self._driver.tty, launch.bash, str(self._driver.rc)],
            cwd=cwd,
            env={**launch.environment, "PWD": cwd, SHELL_MARK: self.word},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def alive(self) -> bool:
        """Whether bash has not ended and `close` was not called."""
        return not self._closed

    def folder_now(self) -> str | None:
        """The folder bash is in, or None where it cannot be told."""
        try:
            return os.readlink(f"/proc/{self.pid}/cwd")
        except OSError:
            return None

    def run(self, number: int, folder: str, command: str) -> None:
        """Has the idle bash run `command` in `folder` (empty: where it is); raises OSError if its files are gone."""
        self._driver.command.write_bytes(command.encode("utf-8", "replace"))
        # What the last program left unread, and the terminal modes it left, are not for the next one.
        termios.tcflush(self._slave, termios.TCIFLUSH)
        termios.tcsetattr(self._slave, termios.TCSANOW, self._modes)
        self._read_since_command = 0
        os.write(self._fifo, b"%d\0%s\0" % (number, os.fsencode(folder)))

    def type(self, data: bytes) -> None:
        """Types `data` on the terminal; what it does not take at once follows as the program reads."""
        self._unsent += data
        self._writable()

    def back_to_loop(self) -> None:
        """Brings a bash that fell to its prompt back into the command loop."""
        quiet = list(self._modes)
        quiet[3] &= ~termios.ECHO
        termios.tcflush(self._slave, termios.TCIFLUSH)
        termios.tcsetattr(self._slave, termios.TCSANOW, quiet)
        self.type(b" builtin . %s\n" % os.fsencode(self._driver.loop))

    def abort(self) -> None:
        """Has bash drop the rest of the command it runs once the foreground program is gone, or at once in bash."""
        self.signal(ABORT_SIGNAL)
        self.signal(signal.SIGINT)

    def signal(self, number: int) -> None:
        """Sends a signal to bash alone; no effect when it has ended."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Lets go of the terminal and the files; hangs up whatever still uses the terminal. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._master)
        self._loop.remove_writer(self._master)
        for fd in (self._master, self._slave, self._fifo):
            os.close(fd)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _writable(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._master, self._unsent[:4096])]
        except BlockingIOError:
            self._loop.add_writer(self._master, self._writable)
            return
        except OSError:
            self._unsent.clear()
        self._loop.remove_writer(self._master)

    def _readable(self) -> None:
        if self._drain(_TURN) >= _TURN and self._read_since_command > _THROTTLE_AFTER:
            # Nobody will read all of this: the terminal's own flow control slows the program down.
            self._loop.remove_reader(self._master)
            self._loop.call_later(_THROTTLE_SECONDS, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._master, self._readable)

    def _drain(self, limit: int) -> int:
        chunks: list[bytes] = []
        size = 0
        while size < limit:
            try:
                chunk = os.read(self._master, _READ)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self._loop.remove_reader(self._master)
                break
            chunks.append(chunk)
            size += len(chunk)
        self._read_since_command += size
        for part in self._reader.feed(b"".join(chunks)):
            if isinstance(part, Mark):
                self._listener.on_mark(self, part)
            else:
                self._listener.on_output(self, part)
        return size

    def _wait_for_exit(self) -> None:
        returncode = self._process.wait()
        try:
            self._loop.call_soon_threadsafe(self._exited, returncode)
        except RuntimeError:
            return  # the event loop is closed: nobody is left to be told

    def _exited(self, returncode: int) -> None:
        if not self._closed:
            # A job left behind may write for ever; what bash itself wrote is well within this.
            for _ in range(16):
                if self._drain(_TURN) < _TURN:
                    break
            self.close()
        self._listener.on_exit(self, returncode)
