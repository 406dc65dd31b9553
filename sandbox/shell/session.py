"""A shell as its users know it: one id, one bash at a time, a console."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from sandbox.failure import Failure
from sandbox.shell.bash import Bash, Launch
from sandbox.shell.console import Console
from sandbox.shell.environment import user_name
from sandbox.shell.marks import BEGIN, END, Mark
from sandbox.shell.processes import end_family
from sandbox.shell.pulse import Pulse
from sandbox.shell.record import Record

_START_SECONDS = 3.0
_BEGIN_SECONDS = 2.0
_MOST_FALLS = 5
_QUIET_SECONDS = 0.05
_SETTLE_SECONDS = 1.0
RESTARTED = "the shell had ended, so a new one was started: its variables, functions and jobs are gone"


class Shell:
    """Runs one command at a time in a bash that lives on between them; starts a new bash when the old one ended."""

    def __init__(self, name: str, launch: Launch, home: Path) -> None:
        self.name = name
        self.dismissed = False
        """Killed since its last command: the first to go when room is needed."""
        self.console = Console(launch.folder, name)
        self._launch = launch
        self._home = str(home)
        self._folder = self._home
        self._bash: Bash | None = None
        self._ready = False
        self.leader: dict[int, str] = {}
        """The newest bash, alive or not: its pid and the word its processes carry."""
        self._lock = asyncio.Lock()
        self._changed = Pulse()
        self._turned = Pulse()
        self._typed = ""

    @property
    def running(self) -> Record | None:
        """The record of the command that runs now."""
        newest = self.console.newest
        return newest if newest is not None and newest.running else None

    @property
    def pid(self) -> int | None:
        """The process id of the bash, None when there is none."""
        return self._bash.pid if self._bash is not None else None

    @property
    def alive(self) -> bool:
        """Whether a bash is there."""
        return self._bash is not None

    async def run(self, command: str, folder: str = "") -> tuple[Record, str]:
        """Starts `command` in `folder` (absolute; empty: where the shell is). Gives its record and a note or "".

        Raises Failure 409 while another command runs, 500 when bash cannot be started."""
        async with self._lock:
            self._refuse_if_busy()
            self.dismissed = False
            note = RESTARTED if self.leader and self._bash is None else ""
            self._typed = ""
            try:
                record = await self._start(command, folder, with_bashrc=True)
                if record is None:
                    # Nothing has run: this bash no longer takes commands. A fresh one does.
                    await self._end_bash()
                    note = RESTARTED
                    record = await self._start(command, folder, with_bashrc=False)
            except OSError as error:
                raise Failure(500, f"the shell could not be started: {error.strerror or error}") from error
            if record is None:
                raise Failure(500, "the shell does not take commands")
            return record, note

    async def ended(self, seconds: float) -> bool:
        """Waits until no command runs, at most `seconds`; says whether none does."""
        return await self._until(lambda: self.running is None, seconds)

    async def settled(self) -> None:
        """Waits until the command ended or its output rests for 50 ms, at most a second."""
        deadline = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        while self.running is not None:
            left = deadline - asyncio.get_running_loop().time()
            if not await self._changed.wait(min(_QUIET_SECONDS, left)):
                return

    async def write(self, text: str) -> None:
        """Types `text` to the running program; to an idle shell it is a command, once its line is ended."""
        if self.running is not None and self._bash is not None:
            self._bash.type(text.encode("utf-8", "replace"))
            return
        if "\x03" in text:
            text, self._typed = text.rpartition("\x03")[2], ""
        self._typed += "".join(letter for letter in text if letter >= " " or letter in "\n\r\t")
        if self._typed.endswith(("\n", "\r")):
            command, self._typed = self._typed.replace("\r", "\n").strip("\n"), ""
            if command:
                await self.run(command)

    async def kill(self) -> None:
        """Ends the running command with all its processes, and background jobs; bash itself only if it must."""
        async with self._lock:
            bash, self._typed = self._bash, ""
            if bash is not None and self.running is not None:
                bash.abort()
            if self.leader:
                await asyncio.to_thread(end_family, self.leader)
            if self.running is not None and not await self.ended(0.08):
                await self._end_bash()
            self.dismissed = True

    async def close(self) -> None:
        """Ends bash with SIGKILL and removes the files; what it began is for the caller to end, by `leader`."""
        async with self._lock:
            await self._end_bash()
            self.console.clear()

    # What bash reports (see `Listener`).

    def on_output(self, bash: Bash, data: bytes) -> None:
        """Output belongs to the newest command, also what its background jobs write after its end."""
        newest = self.console.newest
        if bash is self._bash and newest is not None and self._ready:
            newest.output.append(data)
            self._changed.strike()

    def on_mark(self, bash: Bash, mark: Mark) -> None:
        """Follows the state of bash."""
        if bash is not self._bash:
            return
        record = self.running
        if mark.kind == END and mark.number == 0:
            self._ready = True
        elif record is None:
            return
        elif mark.kind == BEGIN and mark.number == record.number:
            record.begun = True
        elif mark.kind == END and mark.number == record.number:
            self._finish(record, mark.value)
        elif mark.number == 0:
            self._fell(bash, record)
        self._turned.strike()

    def on_exit(self, bash: Bash, returncode: int) -> None:
        """The shell ended with its command: `exit`, `exec`, a signal."""
        if bash is not self._bash:
            return
        if self.running is not None:
            self._finish(self.running, returncode if returncode >= 0 else 128 - returncode)
        self._bash = None
        self._turned.strike()

    def _finish(self, record: Record, returncode: int) -> None:
        record.returncode = returncode
        self._folder = (self._bash.folder_now() if self._bash is not None else None) or self._folder
        self._changed.strike()
        self._turned.strike()

    def _fell(self, bash: Bash, record: Record) -> None:
        record.fallen += 1
        if record.fallen > _MOST_FALLS:
            bash.signal(signal.SIGKILL)
        else:
            bash.back_to_loop()

    def _refuse_if_busy(self) -> None:
        if self.running is not None:
            command = self.running.command.strip().partition("\n")[0]
            command = command if len(command) <= 80 else f"{command[:80]}..."
            raise Failure(
                409,
                f"shell {self.name} still runs `{command}`: use shell_wait, shell_write_to_process or "
                "shell_kill_process on it, or run this in a shell with another id",
            )

    async def _start(self, command: str, folder: str, *, with_bashrc: bool) -> Record | None:
        """The record of the command once bash has begun it; None if it does not."""
        bash = self._bash or await self._new_bash(with_bashrc=with_bashrc)
        if bash is None:
            return None
        record = await self.console.begin(self._prompt(folder or self._folder), command)
        try:
            bash.run(record.number, folder, command)
        except OSError:
            self.console.withdraw()  # somebody removed our private folder
            return None
        self._turned.strike()
        if await self._until(lambda: record.begun or not record.running, _BEGIN_SECONDS):
            return record
        self.console.withdraw()
        return None

    async def _new_bash(self, *, with_bashrc: bool) -> Bash | None:
        self._ready = False
        if not await asyncio.to_thread(os.path.isdir, self._folder):
            self._folder = self._home
        self._bash = bash = Bash(self._launch, self, cwd=self._folder, with_bashrc=with_bashrc)
        self.leader = {bash.pid: bash.word}
        await self._until(lambda: self._ready or self._bash is not bash, _START_SECONDS)
        if self._ready and self._bash is bash:
            return bash
        return None

    async def _end_bash(self) -> None:
        bash = self._bash
        if bash is None:
            return
        bash.signal(signal.SIGKILL)
        if not await self._until(lambda: self._bash is not bash, 0.3):
            self.on_exit(bash, -signal.SIGKILL)
        bash.close()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + seconds
        while not condition():
            if not await self._turned.wait(deadline - asyncio.get_running_loop().time()):
                return condition()
        return True

    def _prompt(self, folder: str) -> str:
        if folder == self._home or folder.startswith(f"{self._home}/"):
            folder = f"~{folder[len(self._home) :]}"
        return f"{user_name()}@{os.uname().nodename}:{folder} $"
