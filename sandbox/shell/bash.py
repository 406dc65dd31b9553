"""A live bash on its own pseudo-terminal, and the scripts that make it take commands from a FIFO."""

import asyncio
import fcntl
import os
import pty
import secrets
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sandbox.identity import Identity
from sandbox.lifeline import launch_prefix
from sandbox.shell.environment import SHELL_MARK
from sandbox.shell.marks import Mark, MarkReader
from sandbox.shell.output import RunFolder

ABORT_SIGNAL: int = int(signal.SIGRTMAX) - 3 if hasattr(signal, "SIGRTMAX") else int(signal.SIGUSR2)
"""Signal that makes bash drop the rest of its command once the program in the foreground has ended."""

_RC = """\
__anker_number=0
__anker_status() {{ return "$1"; }}
if [[ {with_bashrc} && -r ~/.bashrc ]]; then \\builtin . ~/.bashrc; fi
set +eunvxH +o history
unset HISTFILE
shopt -s execfail
trap '__anker_aborted=1; kill -INT $$' {abort}
PROMPT_COMMAND='\\builtin . {loop}'
PS1=$'\\033]7717;{word};;P;\\007'
"""

_LOOP = """\
while {{
  __anker_returned=$?
  \\unset -f builtin
  \\builtin set +eunvxE
  \\builtin trap - DEBUG ERR RETURN
  \\builtin :
}} >/dev/null 2>&1; do
  if [[ $__anker_aborted && $__anker_returned == {aborted} ]]; then __anker_returned=130; fi
  {{ \\builtin . /dev/null; }} <{tty} >{tty} 2>&1 || \\builtin exit 97
  \\builtin printf '\\033]7717;{word};%s;E;%s\\007' "$__anker_number" "$__anker_returned" >{tty}
  {{
    IFS= \\builtin read -r -d '' __anker_number && IFS= \\builtin read -r -d '' __anker_folder
  }} <{fifo} || \\builtin exit 97
  IFS= \\builtin read -r -d '' __anker_command <{command}
  __anker_aborted= __anker_prompt=$'\\033]7717;{word};;P;\\007'
  [[ $PROMPT_COMMAND == '\\builtin . {loop}' ]] || PROMPT_COMMAND='\\builtin . {loop}'
  [[ $PS1 == "$__anker_prompt" ]] || PS1=$__anker_prompt
  \\builtin printf '\\033]7717;{word};%s;B;\\007' "$__anker_number" >{tty}
  if [[ -z $__anker_folder || $__anker_folder -ef . ]] || \\builtin cd -- "$__anker_folder"; then
    __anker_depth=${{#BASH_SOURCE[@]}}
    \\builtin set -E
    \\builtin trap '
      __anker_failed=$?
      if [[ $- == *e* && $BASH_SUBSHELL == 0 && -z $(\\builtin trap -p EXIT) ]]; then
        if ((${{#BASH_SOURCE[@]}} == __anker_depth + 1)); then \\builtin set +e; fi
        \\builtin return "$__anker_failed"
      fi
    ' ERR
    for __anker_once in 1; do \\builtin . {run} <{tty} >{tty} 2>&1; done
  fi
done
# A `break` out of more loops than there are leads here, a stopped program, or a lack of file descriptors.
__anker_returned=$?
{{ \\builtin . /dev/null; }} <{tty} >{tty} 2>&1 || \\builtin exit 97
__anker_status "$__anker_returned"
\\builtin . {loop}
"""

# One line, so that the line numbers in bash's messages are those of the command.
_RUN = """\
__anker_status "$__anker_returned"; \\builtin eval "$__anker_command"
"""


@dataclass(frozen=True)
class ShellScripts:
    """The scripts of one shell, in its private folder.

    bash runs PROMPT_COMMAND before each prompt. Ours is a loop that waits for the next command, so bash reads the
    terminal
    only on behalf of programs: nothing is typed into bash, no line is too long for it, no echo has to be removed, and
    input that a program left unread does not run as a command. Ctrl-C returns bash to its prompt and so to the loop.

    - The loop is a sourced file, not a function, because `declare` in a command must create global variables.
    - The command is evaluated in a second sourced file and a `for` with one round, which absorb `return` and `break`.
    - Each command gets the terminal as its standard streams again, so that `exec >file` does not outlast the command.
    - A backslash bypasses an alias of the same name, `builtin` a function.
    - Options and traps that would affect the loop (-e, -u, -x, DEBUG, …) do not outlast a command either.
    - `set -e` ends the command, not bash: our ERR trap, which runs just before bash would exit, returns from each
      function and file up to the loop. If there is an EXIT trap, bash does exit, so that the trap runs.
    - `exec` of a program that does not exist leaves bash running, as in a terminal.
    - A bash that cannot open enough files for another command, such as after `ulimit -n 5`, ends, so that the next
      command gets a new one.

    Attributes:
        folder: Private folder of the shell.
        mark: Random text that the shell's marks contain.
        tty: Path of its terminal.
    """

    folder: Path
    mark: str
    tty: str

    @property
    def fifo(self) -> Path:
        """FIFO through which the loop receives `<number> NUL <folder or nothing> NUL`."""
        return self.folder / "fifo"

    @property
    def command(self) -> Path:
        """File with the text of the next command."""
        return self.folder / "command"

    @property
    def rc(self) -> Path:
        """File that bash reads at its start."""
        return self.folder / "rc"

    @property
    def loop(self) -> Path:
        """File with the loop. Sourcing it again returns bash to the loop."""
        return self.folder / "loop"

    def write(self, *, with_bashrc: bool) -> None:
        """Write the files.

        Raises:
            OSError: The disk refused, or the folder's path needs quoting.
        """
        # The folder's own name is plain, but the path of the temporary folder may need quoting. Inside the single
        # quotes of PROMPT_COMMAND a quoted path would end them, so such a path is refused.
        loop, tty = str(self.loop), shlex.quote(self.tty)
        if shlex.quote(loop) != loop:
            raise OSError(f"the folder for outputs has a name that a shell would have to quote: {self.folder}")
        run = self.folder / "run"
        flag = "1" if with_bashrc else '""'
        self.rc.write_text(_RC.format(with_bashrc=flag, abort=ABORT_SIGNAL, loop=loop, word=self.mark))
        self.loop.write_text(
            _LOOP.format(
                word=self.mark,
                tty=tty,
                fifo=self.fifo,
                command=self.command,
                loop=loop,
                run=run,
                aborted=128 + ABORT_SIGNAL,
            )
        )
        run.write_text(_RUN)


ROWS, COLUMNS = 40, 160
_READ = 65536
"""Number of bytes to read at once."""
_TURN = 128 * 1024
"""Maximum number of bytes to read in one turn of the event loop, so that heavy output does not block it."""
_THROTTLE_AFTER = 64 * 1024 * 1024
"""Output of one command from which reading is slowed down, in bytes."""
_THROTTLE_SECONDS = 0.002
"""Pause between two reads of heavy output, in seconds."""

# A session leader that opens the terminal makes it the controlling one, on every Unix. Then bash takes over.
# When memory runs out, the kernel kills what the agent runs first: neither the browser nor this program.
_LAUNCH = 'echo 500 >/proc/self/oom_score_adj; exec "$1" --noediting --rcfile "$2" -i <>"$0" >&0 2>&0'


class Listener(Protocol):
    """Receives what a bash does, on the event loop."""

    def on_output(self, bash: "Bash", data: bytes) -> None:
        """Receive output without marks."""
        ...

    def on_mark(self, bash: "Bash", mark: Mark) -> None:
        """Receive a mark, in order with the output."""
        ...

    def on_exit(self, bash: "Bash", returncode: int) -> None:
        """Receive the end of bash. A negative `returncode` is the signal that ended it. Nothing follows."""
        ...


@dataclass(frozen=True)
class BashLaunch:
    """Parameters shared by every bash of this service."""

    bash: str
    environment: Mapping[str, str]
    mark: str
    """Prefix of every shell's own mark."""
    agent: Identity
    """The user as which bash runs."""
    state: RunFolder
    """Folder that contains the private folders of all shells. Only the program may change it."""
    outputs: RunFolder
    """Folder for the agent's files with outputs."""


class Bash:
    """A bash process, its terminal, and the FIFO through which it receives commands. End it with `close`."""

    def __init__(self, launch: BashLaunch, listener: Listener, *, cwd: str, with_bashrc: bool) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.mark = f"{launch.mark}-{secrets.token_hex(8)}"
        self._agent = launch.agent
        self._folder = launch.state.make() / f"shell-{secrets.token_hex(6)}"
        self._folder.mkdir(mode=0o711)
        self._reader = MarkReader(self.mark)
        self._read_since_command = 0
        self._unsent = bytearray()
        self._closed = False
        with self._agent.acting():  # the terminal belongs to whoever opens it
            self._master, self._slave = pty.openpty()
        self._scripts = ShellScripts(self._folder, self.mark, os.ttyname(self._slave))
        self._scripts.write(with_bashrc=with_bashrc)
        os.mkfifo(self._scripts.fifo, 0o644)
        # Open for both directions, so that neither side waits for the other; bash sees the end when we die.
        self._fifo = os.open(self._scripts.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self._master, False)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._modes = termios.tcgetattr(self._slave)
        self._modes[1] &= ~termios.ONLCR  # output arrives as programs wrote it
        termios.tcsetattr(self._slave, termios.TCSANOW, self._modes)
        try:
            self._process = self._spawn(launch, cwd)
            self.pid = self._process.pid
            self._wait_in_thread()
        except (OSError, RuntimeError):
            self.close()
            raise
        self._loop.add_reader(self._master, self._readable)

    def _spawn(self, launch: BashLaunch, cwd: str) -> subprocess.Popen[bytes]:
        # HUP instead of KILL: bash passes it on to its background jobs.
        command = [*launch_prefix("HUP"), "/bin/sh", "-c", _LAUNCH, self._scripts.tty, launch.bash]
        # On the loop's thread: the death signal follows the thread that forked.
        return subprocess.Popen(  # noqa: S603 - fixed program, no shell text from outside
            self._agent.command([*command, str(self._scripts.rc)], cwd),
            **self._agent.popen_options(cwd),
            env={**launch.environment, "PWD": cwd, SHELL_MARK: self.mark},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _wait_in_thread(self) -> None:
        try:
            threading.Thread(target=self._wait_for_exit, name=f"bash-{self.pid}", daemon=True).start()
        except RuntimeError:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def alive(self) -> bool:
        """Return whether bash is running and `close` was not called."""
        return not self._closed

    def current_folder(self) -> str | None:
        """Return bash's current folder; None if it is unknown."""
        with self._agent.acting(), suppress(OSError):  # only bash's own user may see it
            return os.readlink(f"/proc/{self.pid}/cwd")
        return None

    def run(self, number: int, folder: str, command: str) -> None:
        """Make the idle bash run `command` in `folder`; empty means its current folder.

        Raises:
            OSError: The shell's files are gone.
        """
        self._scripts.command.write_bytes(command.encode("utf-8", "replace"))
        # Unread input and terminal modes of the last program must not affect the next one.
        termios.tcflush(self._slave, termios.TCIFLUSH)
        termios.tcsetattr(self._slave, termios.TCSANOW, self._modes)
        self._read_since_command = 0
        os.write(self._fifo, b"%d\0%s\0" % (number, os.fsencode(folder)))

    def type(self, data: bytes) -> None:
        """Type `data` on the terminal. What it does not accept at once follows as the program reads."""
        self._unsent += data
        self._writable()

    def reenter_loop(self) -> None:
        """Return a bash that fell back to its prompt to the command loop."""
        quiet = list(self._modes)
        quiet[3] &= ~termios.ECHO
        termios.tcflush(self._slave, termios.TCIFLUSH)
        termios.tcsetattr(self._slave, termios.TCSANOW, quiet)
        self.type(b" builtin . %s\n" % os.fsencode(self._scripts.loop))

    def abort(self) -> None:
        """Make bash drop the rest of its command, at once or after the program in the foreground has ended.

        A program that took the place of bash by `exec` does not know the abort signal. It receives SIGTERM.
        """
        if self._catches(ABORT_SIGNAL):
            self.signal(ABORT_SIGNAL)
            self.signal(signal.SIGINT)
        else:
            self.signal(signal.SIGTERM)

    def _catches(self, number: int) -> bool:
        """Return whether the process has a handler for a signal; true if that is unknown."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return True
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "f" * 16)
        return bool(int(caught, 16) >> (number - 1) & 1)

    def signal(self, number: int) -> None:
        """Send a signal to bash alone. Do nothing if it has ended."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Close the terminal, which hangs up its programs, and remove the files. Idempotent."""
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
            # This is more output than is kept, so the terminal's flow control may slow the program down.
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
            return  # the event loop is closed, so nobody waits for the exit

    def _exited(self, returncode: int) -> None:
        if not self._closed:
            # A background job may write forever; bash's own last output fits well into this limit.
            for _ in range(16):
                if self._drain(_TURN) < _TURN:
                    break
            self.close()
        self._listener.on_exit(self, returncode)
