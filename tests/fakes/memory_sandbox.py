"""Sandboxes in memory: scripted shells and a dictionary of files, for tests of whatever uses a sandbox."""

import asyncio
import fnmatch
import itertools
import posixpath
import re
from dataclasses import dataclass, field

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.models.sandbox import (
    BrowserEndpoint,
    ConsoleRecord,
    FileMatches,
    FileText,
    FoundFiles,
    PartStatus,
    ShellState,
)

HOME = "/home/ubuntu"
PROMPT = "ubuntu@sandbox:~ $"
KILLED = 137
READY = PartStatus(ready=True)

_lives = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How a scripted command goes.

    `runs`: `shell_exec` answers `running` at once, and the command goes on until it is released or killed.
    `hangs`: `shell_exec` itself does not answer until then.
    """

    output: str = ""
    returncode: int = 0
    runs: bool = False
    hangs: bool = False


@dataclass(slots=True)
class Call:
    """One call on a sandbox: the method's name and its arguments by name."""

    method: str
    args: dict[str, object]


@dataclass(slots=True)
class _Command:
    text: str
    reply: Reply
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    returncode: int | None = None
    output: str = ""
    seen: int = 0

    def end(self, returncode: int, output: str) -> None:
        if self.returncode is None:
            self.returncode, self.output = returncode, self.output + output
            self.ended.set()


class MemoryDesktop:
    """`Desktop` in memory: `show` is what the viewer will receive, `heard` what it sent, `closed` that it left."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.closed = asyncio.Event()
        self.broken: SandboxUnavailable | None = None
        """When set, sending fails with it."""
        self._shown: asyncio.Queue[bytes | SandboxUnavailable] = asyncio.Queue()

    def show(self, data: bytes) -> None:
        """More of the desktop; `b""` ends the connection in order."""
        self._shown.put_nowait(data)

    def breaks(self, error: SandboxUnavailable) -> None:
        """The connection breaks, for who receives as for who sends."""
        self.broken = error
        self._shown.put_nowait(error)

    async def receive(self) -> bytes:
        data = await self._shown.get()
        if isinstance(data, SandboxUnavailable):
            raise data
        return data

    async def send(self, data: bytes) -> None:
        if self.broken is not None:
            raise self.broken
        self.heard += data

    async def close(self) -> None:
        self.closed.set()


class MemorySandbox:
    """`Sandbox` in memory. Scripts are found by a command's exact text; one without a script succeeds silently."""

    def __init__(self) -> None:
        self.instance_id = f"memory-{next(_lives)}"
        self.browser = BrowserEndpoint(url="http://127.0.0.1:1/cdp", token="t", home=HOME)
        """Nobody is there; a test that drives a browser says where it is."""
        self.parts: dict[str, PartStatus] = dict.fromkeys(("shell", "browser", "desktop"), READY)
        self.desktops: list[MemoryDesktop] = []
        self.calls: list[Call] = []
        self.files: dict[str, str] = {}
        self.replies: dict[str, Reply] = {}
        self.failure: SandboxFailure | SandboxUnavailable | None = None
        """When set, every call fails with it."""
        self._shells: dict[str, list[_Command]] = {}

    def script(
        self, command: str, output: str = "", *, returncode: int = 0, runs: bool = False, hangs: bool = False
    ) -> None:
        """How `command` will go."""
        self.replies[command] = Reply(output=output, returncode=returncode, runs=runs, hangs=hangs)

    def release(self, shell: str) -> None:
        """Let the command that runs in `shell` end as its script says."""
        command = self._shells[shell][-1]
        command.end(command.reply.returncode, command.reply.output)

    def running(self) -> list[str]:
        """The commands that run now."""
        return [each.text for shell in self._shells.values() for each in shell if each.returncode is None]

    async def status(self) -> dict[str, PartStatus]:
        self._note("status")
        return dict(self.parts)

    async def restart_browser(self) -> None:
        self._note("restart_browser")
        self._wants("browser")

    async def desktop(self) -> MemoryDesktop:
        self._note("desktop")
        self._wants("desktop")
        self.desktops.append(MemoryDesktop())
        return self.desktops[-1]

    async def shell_exec(self, shell: str, exec_dir: str, command: str) -> ShellState:
        self._note("shell_exec", shell=shell, exec_dir=exec_dir, command=command)
        commands = self._shells.setdefault(shell, [])
        if commands and commands[-1].returncode is None:
            raise SandboxFailure(f"shell {shell} still runs `{commands[-1].text}`", status=409)
        started = _Command(command, self.replies.get(command, Reply()))
        commands.append(started)
        if started.reply.hangs:
            await started.ended.wait()
        elif not started.reply.runs:
            started.end(started.reply.returncode, started.reply.output)
        return self._state(shell, commands[-1:])

    async def shell_view(self, shell: str) -> ShellState:
        self._note("shell_view", shell=shell)
        self._current(shell)
        return self._state(shell, self._shells[shell])

    async def shell_wait(self, shell: str, seconds: int | None) -> ShellState:
        self._note("shell_wait", shell=shell, seconds=seconds)
        command = self._current(shell)
        try:
            async with asyncio.timeout(seconds):
                await command.ended.wait()
        except TimeoutError:
            pass
        return self._news(shell, command)

    async def shell_write(self, shell: str, text: str, *, press_enter: bool) -> ShellState:
        self._note("shell_write", shell=shell, text=text, press_enter=press_enter)
        command = self._current(shell)
        if command.returncode is None:
            command.output += text + ("\n" if press_enter else "")
        return self._news(shell, command)

    async def shell_kill(self, shell: str) -> ShellState:
        self._note("shell_kill", shell=shell)
        command = self._current(shell)
        command.end(KILLED, "")
        return ShellState(shell_id=shell, status="completed", returncode=command.returncode)

    async def kill_all(self) -> None:
        self._note("kill_all")
        for commands in self._shells.values():
            for command in commands:
                command.end(KILLED, "")

    async def file_read(self, file: str, *, start: int | None, end: int | None, sudo: bool) -> FileText:
        self._note("file_read", file=file, start=start, end=end, sudo=sudo)
        lines = self._content(file).splitlines(keepends=True)
        return FileText(file=_absolute(file), content="".join(lines[start or 0 : end]), line_count=len(lines))

    async def file_write(self, file: str, content: str, *, append: bool, sudo: bool) -> int:
        self._note("file_write", file=file, content=content, append=append, sudo=sudo)
        path = _absolute(file)
        self.files[path] = (self.files.get(path, "") if append else "") + content
        return len(content.encode())

    async def file_replace(self, file: str, old: str, new: str, *, sudo: bool) -> int:
        self._note("file_replace", file=file, old=old, new=new, sudo=sudo)
        content = self._content(file)
        if not (found := content.count(old)):
            raise SandboxFailure(f"old_str does not occur in {file}", status=404)
        self.files[_absolute(file)] = content.replace(old, new)
        return found

    async def file_search(self, file: str, regex: str, *, sudo: bool) -> FileMatches:
        self._note("file_search", file=file, regex=regex, sudo=sudo)
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise SandboxFailure(f"not a valid regex: {error}") from error
        found = [(n, line) for n, line in enumerate(self._content(file).splitlines()) if pattern.search(line)]
        return FileMatches(
            file=_absolute(file), matches=tuple(line for _, line in found), line_numbers=tuple(n for n, _ in found)
        )

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        self._note("file_find", path=path, glob=glob)
        below = _absolute(path).rstrip("/") + "/"
        found = [name for name in sorted(self.files) if name.startswith(below)]
        return FoundFiles(
            path=_absolute(path),
            files=tuple(name for name in found if fnmatch.fnmatch(posixpath.basename(name), glob)),
        )

    def _note(self, method: str, **args: object) -> None:
        self.calls.append(Call(method, args))
        if self.failure is not None:
            raise self.failure

    def _wants(self, part: str) -> None:
        if not self.parts[part].ready:
            raise SandboxUnavailable(f"The sandbox's {part} cannot be used: {self.parts[part].reason}")

    def _current(self, shell: str) -> _Command:
        if shell not in self._shells:
            raise SandboxFailure(f"no such shell: {shell}; shell_exec makes one", status=404)
        return self._shells[shell][-1]

    def _content(self, file: str) -> str:
        try:
            return self.files[_absolute(file)]
        except KeyError:
            raise SandboxFailure(f"no such file: {file}", status=404) from None

    def _state(self, shell: str, commands: list[_Command]) -> ShellState:
        records = tuple(ConsoleRecord(ps1=PROMPT, command=each.text, output=each.output) for each in commands)
        newest = commands[-1]
        newest.seen = len(newest.output)
        whole = "".join(f"{each.ps1} {each.command}\n{each.output}" for each in records)
        return ShellState(
            shell_id=shell,
            status="running" if newest.returncode is None else "completed",
            returncode=newest.returncode,
            output=newest.output if len(records) == 1 else whole,
            console=records,
        )

    def _news(self, shell: str, command: _Command) -> ShellState:
        fresh, command.seen = command.output[command.seen :], len(command.output)
        status = "running" if command.returncode is None else "completed"
        return ShellState(shell_id=shell, status=status, returncode=command.returncode, output=fresh)


class MemorySandboxProvider:
    """`SandboxProvider` in memory. `sandboxes` holds those that exist; `prepare` gives one scripts before its start."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, MemorySandbox] = {}
        self.prepared: dict[str, MemorySandbox] = {}
        self.warmed: list[str] = []
        self.destroyed: list[str] = []
        self.starts = 0
        self.refusal: SandboxUnavailable | None = None
        """When set, nothing can be acquired."""
        self.may_start = asyncio.Event()
        """Cleared, starts take until it is set."""
        self.may_start.set()
        self.closed = False

    def prepare(self, session_id: str) -> MemorySandbox:
        """The sandbox that the session will get."""
        return self.prepared.setdefault(session_id, MemorySandbox())

    def warm(self, session_id: str) -> None:
        self.warmed.append(session_id)

    async def acquire(self, session_id: str) -> MemorySandbox:
        await self.may_start.wait()
        if self.refusal is not None:
            raise self.refusal
        if session_id not in self.sandboxes:
            self.starts += 1
            self.sandboxes[session_id] = self.prepared.pop(session_id, None) or MemorySandbox()
        return self.sandboxes[session_id]

    async def find(self, session_id: str) -> MemorySandbox | None:
        return self.sandboxes.get(session_id)

    async def destroy(self, session_id: str) -> None:
        self.destroyed.append(session_id)
        if sandbox := self.sandboxes.pop(session_id, None):
            await sandbox.kill_all()

    async def check(self) -> str | None:
        return str(self.refusal) if self.refusal else None

    async def close(self) -> None:
        self.closed = True
        for sandbox in self.sandboxes.values():
            await sandbox.kill_all()
        self.sandboxes.clear()


def _absolute(path: str) -> str:
    if path == "~" or path.startswith("~/"):
        path = HOME + path[1:]
    return posixpath.normpath(posixpath.join(HOME, path))
