"""The bash code that turns an interactive bash into one that takes its commands from a FIFO.

bash runs PROMPT_COMMAND before each prompt; ours is a loop that waits for the next command, so bash reads the terminal
only on behalf of programs: nothing is typed into it, no line is too long for it, no echo has to be taken away, and
what a program left unread is not run as a command. Ctrl-C brings bash back to its prompt, hence into the loop.

- The loop is a sourced file, not a function: `declare` in a command must make global variables.
- The command is evaluated in a second sourced file and a one-round `for`, which take `return` and `break`.
- Each command gets the terminal anew as its standard streams, so that `exec >file` does not outlive it.
- A backslash keeps an alias of the same name away; `builtin` does so for functions.
- Options and traps that would run inside the loop (-e, -u, -x, DEBUG …) do not outlive a command either.
"""

import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

ABORT_SIGNAL: int = int(signal.SIGRTMAX) - 3 if hasattr(signal, "SIGRTMAX") else int(signal.SIGUSR2)
"""On it bash gives up the rest of the command it runs, as soon as the program in the foreground has ended."""

_RC = """\
__anker_number=0
__anker_status() {{ return "$1"; }}
if [[ {with_bashrc} && -r ~/.bashrc ]]; then \\builtin . ~/.bashrc; fi
set +eunvxH +o history
unset HISTFILE
trap 'kill -INT $$' {abort}
PROMPT_COMMAND='\\builtin . {loop}'
PS1=$'\\033]7717;{word};;P;\\007'
"""

_LOOP = """\
{{ __anker_returned=$?; \\builtin set +eunvx; \\builtin trap - DEBUG ERR RETURN; }} >/dev/null 2>&1
while \\builtin :; do
  \\builtin printf '\\033]7717;{word};%s;E;%s\\007' "$__anker_number" "$__anker_returned" >{tty}
  {{
    IFS= \\builtin read -r -d '' __anker_number && IFS= \\builtin read -r -d '' __anker_folder
  }} <{fifo} || \\builtin exit 97
  IFS= \\builtin read -r -d '' __anker_command <{command}
  PROMPT_COMMAND='\\builtin . {loop}' PS1=$'\\033]7717;{word};;P;\\007'
  \\builtin printf '\\033]7717;{word};%s;B;\\007' "$__anker_number" >{tty}
  if [[ -z $__anker_folder || $__anker_folder -ef . ]] || \\builtin cd -- "$__anker_folder"; then
    for __anker_once in 1; do \\builtin . {run} <{tty} >{tty} 2>&1; done
  fi
  {{ __anker_returned=$?; \\builtin set +eunvx; \\builtin trap - DEBUG ERR RETURN; }} >/dev/null 2>&1
done
# Only a `break` out of more loops than there are leads here.
\\builtin . {loop}
"""

_RUN = """\
__anker_status "$__anker_returned"
\\builtin eval "$__anker_command"
"""


@dataclass(frozen=True)
class Driver:
    """The files of one shell in its private `folder`; `word` is what its marks carry, `tty` its terminal's path."""

    folder: Path
    word: str
    tty: str

    @property
    def fifo(self) -> Path:
        """Through which the loop is told `<number> NUL <folder or nothing> NUL`."""
        return self.folder / "fifo"

    @property
    def command(self) -> Path:
        """The text of the next command."""
        return self.folder / "command"

    @property
    def rc(self) -> Path:
        """What bash reads at its start."""
        return self.folder / "rc"

    @property
    def loop(self) -> Path:
        """The loop; sourcing it again brings a bash that left it back."""
        return self.folder / "loop"

    def write(self, *, with_bashrc: bool) -> None:
        """Writes the files; raises OSError."""
        # The folder's name is ours and plain; quoting is for the temporary folder's own path. Inside the single
        # quotes of PROMPT_COMMAND such a quoted path would end them, so a path that needs quoting is refused.
        loop, tty = str(self.loop), shlex.quote(self.tty)
        if shlex.quote(loop) != loop:
            raise OSError(f"the folder for outputs has a name that a shell would have to quote: {self.folder}")
        run = self.folder / "run"
        flag = "1" if with_bashrc else '""'
        self.rc.write_text(_RC.format(with_bashrc=flag, abort=ABORT_SIGNAL, loop=loop, word=self.word))
        self.loop.write_text(
            _LOOP.format(word=self.word, tty=tty, fifo=self.fifo, command=self.command, loop=loop, run=run)
        )
        run.write_text(_RUN)
