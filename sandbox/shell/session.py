"""A shell: one id, one bash at a time, one console."""

import asyncio
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path

from sandbox.shell.bash import Bash, BashLaunch
from sandbox.shell.console import Console
from sandbox.shell.marks import BEGIN, END, Mark
from sandbox.shell.processes import kill_shell_processes
from sandbox.shell.record import Record
from sandbox.web import Failure, NoProcessLeft


class WakeUp:
    """Wakes all present waiters at once. Later waiters are not affected."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def wake_all(self) -> None:
        """Wake all present waiters."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    async def wait(self, seconds: float) -> bool:
        """Wait for the next wake-up, at most `seconds`, and return whether it came."""
        if seconds <= 0:
            return False
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            return False
        finally:
            self._waiters.discard(waiter)
        return True


_START_SECONDS = 3.0
"""Maximum time for bash to start, in seconds."""
_BEGIN_SECONDS = 2.0
"""Maximum time for bash to begin a command, in seconds."""
_MAX_LOOP_EXITS = 5
"""Number of times that bash may leave its loop during a command before it is killed."""
_QUIET_SECONDS = 0.05
"""Silence after which output counts as complete, in seconds."""
_SETTLE_SECONDS = 1.0
"""Maximum wait for quiet output, in seconds."""
RESTARTED = "the shell had ended, so a new one was started: its variables, functions and jobs are gone"
"""Note to a command that runs in a new bash."""
_LOST = "the next command starts a new one in {folder}; variables, functions and jobs are gone"


class Shell:
    """Runs one command at a time in a bash that persists between commands. Starts a new bash if the old one ended."""

    def __init__(self, name: str, launch: BashLaunch, home: Path) -> None:
        self.name = name
        self.killed = False
        """Whether it was killed since its last command. Such a shell is evicted first."""
        self.start_failed = False
        """Whether the last command found no bash that takes commands."""
        self.console = Console(launch.outputs, name, launch.agent)
        self._launch = launch
        self._home = str(home)
        self._folder = self._home
        self._bash: Bash | None = None
        self._ready = False
        self._ending = False
        """Whether this program ends the bash itself."""
        self.leader: dict[int, str] = {}
        """The newest bash, alive or not: its pid and the mark of its processes."""
        self._word = secrets.token_hex(4)
        self._lock = asyncio.Lock()
        self._output_changed = WakeUp()
        self._state_changed = WakeUp()
        self._typed = ""

    @property
    def running(self) -> Record | None:
        """The record of the running command."""
        newest = self.console.newest
        return newest if newest is not None and newest.running else None

    @property
    def pid(self) -> int | None:
        """The pid of the bash; None if there is none."""
        return self._bash.pid if self._bash is not None else None

    @property
    def alive(self) -> bool:
        """Whether there is a bash."""
        return self._bash is not None

    @property
    def version(self) -> str:
        """Text that changes whenever the console does, and differs from that of every other shell."""
        newest = self.console.newest
        state = "" if newest is None else f"{newest.number}-{newest.output.total}-{newest.returncode}"
        return f"{self._word}-{state}"

    async def wait_for_change(self, version: str, seconds: float) -> None:
        """Wait until the console differs from `version`, at most `seconds`."""
        await wait_until(lambda: self.version != version, self._output_changed, seconds)

    async def run(self, command: str, folder: str = "") -> tuple[Record, str]:
        """Start `command` in `folder` and return its record and a note, which may be empty.

        Args:
            command: Text for bash.
            folder: Absolute folder; empty for the current one.

        Raises:
            Failure: 409 if another command runs; 500 if bash cannot be started; 503 if there is no process left.
        """
        async with self._lock:
            self._check_idle()
            self.killed = False
            note = RESTARTED if self.leader and self._bash is None else ""
            self._typed = ""
            record = None
            # An open bash may end at this moment, and a new one may be stopped by the user's own settings.
            attempts = (True, False) if self._bash is None else (True, True, False)
            try:
                for with_bashrc in attempts:
                    record = await self._start(command, folder, with_bashrc=with_bashrc)
                    if record is not None:
                        break
                    # Nothing has run: this bash no longer accepts commands, so a new one is needed.
                    await self._end_bash()
                    note = RESTARTED
            except (BlockingIOError, RuntimeError) as error:  # RuntimeError: there is no thread left
                self.start_failed = True
                raise NoProcessLeft from error
            except OSError as error:
                self.start_failed = True
                raise Failure(500, f"the shell could not be started: {error.strerror or error}") from error
            self.start_failed = record is None
            if record is None:
                raise Failure(500, "the shell does not take commands")
            return record, note

    async def wait_until_idle(self, seconds: float) -> bool:
        """Wait at most `seconds` until no command runs, and return whether none does."""
        return await self._until(lambda: self.running is None, seconds)

    async def wait_until_quiet(self) -> None:
        """Wait until the command ended or wrote nothing for 50 ms, at most a second."""
        deadline = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        while self.running is not None:
            left = deadline - asyncio.get_running_loop().time()
            if not await self._output_changed.wait(min(_QUIET_SECONDS, left)):
                return

    async def write(self, text: str) -> None:
        """Type `text` into the running program. In an idle shell, a complete line runs as a command."""
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
        """End the running command, its processes and background jobs. End bash only if necessary."""
        async with self._lock:
            bash, self._typed = self._bash, ""
            if bash is not None and self.running is not None:
                bash.abort()
                await self._kill_processes()
                if not await self.wait_until_idle(0.15):
                    await self._end_bash()
            # Also what bash still started before it gave up the command.
            await self._kill_processes()
            self.killed = True

    async def _kill_processes(self) -> None:
        if self.leader:
            await asyncio.to_thread(kill_shell_processes, self.leader, self._launch.agent)

    async def close(self) -> None:
        """Kill bash and remove the files. The caller ends other processes by `leader`."""
        async with self._lock:
            await self._end_bash()
            self.console.clear()

    # Implementation of `Listener`.

    def on_output(self, bash: Bash, data: bytes) -> None:
        """Append output to the newest command, including output of background jobs after its end."""
        newest = self.console.newest
        if bash is self._bash and newest is not None and self._ready:
            newest.output.append(data)
            self._output_changed.wake_all()

    def on_mark(self, bash: Bash, mark: Mark) -> None:
        """Follow the state of bash."""
        if bash is not self._bash:
            return
        record = self.running
        if mark.kind == END and mark.number == 0:
            self._ready = True
        elif record is None:
            return
        elif mark.kind == BEGIN and mark.number == record.number:
            record.started = True
        elif mark.kind == END and mark.number == record.number:
            self._finish(record, mark.value)
        elif mark.number == 0:
            self._on_loop_exit(bash, record)
        self._state_changed.wake_all()

    def on_exit(self, bash: Bash, returncode: int) -> None:
        """Handle the end of the shell: by `exit`, `exec` or a signal."""
        if bash is not self._bash:
            return
        if (record := self.running) is not None:
            cause = "the shell was ended together with its command" if self._ending else _end_of_shell(returncode)
            record.note = f"{cause}: {_LOST.format(folder=self._shorten(self._folder))}"
            self._finish(record, returncode if returncode >= 0 else 128 - returncode)
        self._bash = None
        self._state_changed.wake_all()

    def _finish(self, record: Record, returncode: int) -> None:
        record.returncode = returncode
        self._folder = (self._bash.current_folder() if self._bash is not None else None) or self._folder
        self._output_changed.wake_all()
        self._state_changed.wake_all()

    def _on_loop_exit(self, bash: Bash, record: Record) -> None:
        record.loop_exits += 1
        if record.loop_exits > _MAX_LOOP_EXITS:
            bash.signal(signal.SIGKILL)
        else:
            bash.reenter_loop()

    def _check_idle(self) -> None:
        if self.running is not None:
            command = self.running.command.strip().partition("\n")[0]
            command = command if len(command) <= 80 else f"{command[:80]}..."
            raise Failure(
                409,
                f"shell {self.name} still runs `{command}`: use shell_wait, shell_write_to_process or "
                "shell_kill_process on it, or run this in a shell with another id",
            )

    async def _start(self, command: str, folder: str, *, with_bashrc: bool) -> Record | None:
        """Return the record of the command once bash has started it; None if it does not."""
        bash = self._bash or await self._new_bash(with_bashrc=with_bashrc)
        if bash is None:
            return None
        record = await self.console.start_record(self._prompt(folder or self._folder), command)
        try:
            bash.run(record.number, folder, command)
        except OSError:
            self.console.discard_newest()  # the private folder was removed
            return None
        self._folder = folder or self._folder
        self._output_changed.wake_all()
        self._state_changed.wake_all()
        await self._until(lambda: record.started or not record.running, _BEGIN_SECONDS)
        if record.started:
            return record
        self.console.discard_newest()
        return None

    async def _new_bash(self, *, with_bashrc: bool) -> Bash | None:
        self._ready = self._ending = False
        if not await self._launch.agent.run(_may_enter, self._folder):
            self._folder = self._home
        self._bash = bash = Bash(self._launch, self, cwd=self._folder, with_bashrc=with_bashrc)
        self.leader = {bash.pid: bash.mark}
        await self._until(lambda: self._ready or self._bash is not bash, _START_SECONDS)
        if self._ready and self._bash is bash:
            return bash
        return None

    async def _end_bash(self) -> None:
        bash = self._bash
        if bash is None:
            return
        self._ending = True
        bash.signal(signal.SIGKILL)
        if not await self._until(lambda: self._bash is not bash, 0.3):
            self.on_exit(bash, -signal.SIGKILL)
        bash.close()

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        return await wait_until(condition, self._state_changed, seconds)

    def _prompt(self, folder: str) -> str:
        return f"{self._launch.agent.name}@{os.uname().nodename}:{self._shorten(folder)} $"

    def _shorten(self, folder: str) -> str:
        is_below_home = folder == self._home or folder.startswith(f"{self._home}/")
        return f"~{folder[len(self._home) :]}" if is_below_home else folder


async def wait_until(condition: Callable[[], bool], changed: WakeUp, seconds: float) -> bool:
    """Wait at most `seconds` until `condition` holds, and return whether it does. `changed` wakes when it may."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if not await changed.wait(deadline - asyncio.get_running_loop().time()):
            return condition()
    return True


def _end_of_shell(returncode: int) -> str:
    if returncode >= 0:
        return f"the shell ended with status {returncode}"
    if returncode == -signal.SIGKILL:
        return "the shell was killed (SIGKILL: by a command, or because memory ran out)"
    return f"the shell was killed ({_signal_name(-returncode)})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _may_enter(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.X_OK, effective_ids=True)
