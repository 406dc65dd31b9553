"""Sandboxes in memory, with scripted shells and a dictionary of files."""

import asyncio
import fnmatch
import itertools
import posixpath
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.domain.models.sandbox import (
    BrowserEndpoint,
    ConsoleRecord,
    FileChange,
    FileImage,
    FileMatches,
    FileText,
    FolderEntry,
    FolderListing,
    FoundFiles,
    PartStatus,
    ShellState,
)

HOME = "/home/ubuntu"
PROMPT = "ubuntu@sandbox:~ $"
KILLED = 137
READY = PartStatus(ready=True)

_instances = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The result of a scripted command.

    `runs`: `shell_exec` returns with status `running`; the command runs until it is released or killed.
    `hangs`: `shell_exec` does not return until the command is released or killed.
    """

    output: str = ""
    returncode: int = 0
    runs: bool = False
    hangs: bool = False


@dataclass(slots=True)
class Call:
    """A recorded call of a sandbox method, with its arguments by name."""

    method: str
    args: dict[str, object]


@dataclass(slots=True)
class _Command:
    text: str
    reply: Reply
    notify: Callable[[], None]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    returncode: int | None = None
    output: str = ""
    seen: int = 0

    def end(self, returncode: int, output: str) -> None:
        if self.returncode is None:
            self.returncode, self.output = returncode, self.output + output
            self.ended.set()
            self.notify()


class MemoryDesktop:
    """`Desktop` in memory. `received` holds what the viewer sent; `close` sets `closed`."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed = asyncio.Event()
        self.broken: SandboxUnavailable | None = None
        """The error that `send` raises; None for none."""
        self._shown: asyncio.Queue[bytes | SandboxUnavailable] = asyncio.Queue()

    def show(self, data: bytes) -> None:
        """Queue bytes for `receive`; `b""` closes the connection in order."""
        self._shown.put_nowait(data)

    def breaks(self, error: SandboxUnavailable) -> None:
        """Break the connection: `receive` and `send` raise `error` from now on."""
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
        self.received += data

    async def close(self) -> None:
        self.closed.set()


class MemorySandbox:
    """`Sandbox` in memory. A command without a script of its exact text succeeds without output."""

    def __init__(self) -> None:
        self.instance_id = f"memory-{next(_instances)}"
        self.browser = BrowserEndpoint(url="http://127.0.0.1:1/cdp", token="t", home=HOME)
        """An address without a browser; a test that drives one replaces it."""
        self.parts: dict[str, PartStatus] = dict.fromkeys(("shell", "browser", "desktop"), READY)
        self.desktops: list[MemoryDesktop] = []
        self.calls: list[Call] = []
        self.files: dict[str, str] = {}
        self.listed: dict[str, list[FolderEntry]] = {}
        """What a folder seems to contain, by its absolute path; otherwise what `files` says."""
        self.images: dict[str, FileImage] = {}
        """Pictures by their absolute path."""
        self.replies: dict[str, Reply] = {}
        self.failure: SandboxFailure | SandboxUnavailable | None = None
        """The error that every call raises; None for none."""
        self._shells: dict[str, list[_Command]] = {}
        self._changed = asyncio.Event()

    def script(
        self, command: str, output: str = "", *, returncode: int = 0, runs: bool = False, hangs: bool = False
    ) -> None:
        """Set the result of `command`."""
        self.replies[command] = Reply(output=output, returncode=returncode, runs=runs, hangs=hangs)

    def release(self, shell_id: str) -> None:
        """End the command that runs in a shell with its scripted result."""
        command = self._shells[shell_id][-1]
        command.end(command.reply.returncode, command.reply.output)

    def running(self) -> list[str]:
        """Return the commands that run now."""
        return [each.text for shell in self._shells.values() for each in shell if each.returncode is None]

    def write_output(self, shell_id: str, text: str) -> None:
        """Let the command that runs in a shell write `text`."""
        self._shells[shell_id][-1].output += text
        self._notify()

    async def status(self) -> dict[str, PartStatus]:
        self._record("status")
        return dict(self.parts)

    async def restart_browser(self) -> None:
        self._record("restart_browser")
        self._require("browser")

    async def desktop(self) -> MemoryDesktop:
        self._record("desktop")
        self._require("desktop")
        self.desktops.append(MemoryDesktop())
        return self.desktops[-1]

    async def shell_exec(self, shell_id: str, exec_dir: str, command: str) -> ShellState:
        self._record("shell_exec", shell_id=shell_id, exec_dir=exec_dir, command=command)
        commands = self._shells.setdefault(shell_id, [])
        if commands and commands[-1].returncode is None:
            raise SandboxFailure(f"shell {shell_id} still runs `{commands[-1].text}`", status=409)
        started = _Command(command, self.replies.get(command, Reply()), self._notify)
        commands.append(started)
        self._notify()
        if started.reply.hangs:
            await started.ended.wait()
        elif not started.reply.runs:
            started.end(started.reply.returncode, started.reply.output)
        return self._state(shell_id, commands[-1:])

    async def shell_view(self, shell_id: str) -> ShellState:
        self._record("shell_view", shell_id=shell_id)
        self._current(shell_id)
        return self._state(shell_id, self._shells[shell_id])

    async def shell_watch(self, shell_id: str, *, version: str = "", seconds: float = 0) -> ShellState:
        self._record("shell_watch", shell_id=shell_id, version=version, seconds=seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._version(shell_id) in ("", version):
                    await self._changed.wait()
                    if self.failure is not None:
                        raise self.failure
        seen = self._current(shell_id).seen
        state = self._state(shell_id, self._shells[shell_id])
        self._current(shell_id).seen = seen
        return replace(state, version=self._version(shell_id))

    async def file_watch(self, file: str) -> FileText:
        self._record("file_watch", file=file)
        return FileText(file=_absolute(file), content=self._content(file))

    async def shell_wait(self, shell_id: str, seconds: int | None) -> ShellState:
        self._record("shell_wait", shell_id=shell_id, seconds=seconds)
        command = self._current(shell_id)
        try:
            async with asyncio.timeout(seconds):
                await command.ended.wait()
        except TimeoutError:
            pass
        return self._new_output(shell_id, command)

    async def shell_write(self, shell_id: str, text: str, *, press_enter: bool) -> ShellState:
        self._record("shell_write", shell_id=shell_id, text=text, press_enter=press_enter)
        command = self._current(shell_id)
        if command.returncode is None:
            command.output += text + ("\n" if press_enter else "")
            self._notify()
        return self._new_output(shell_id, command)

    async def shell_kill(self, shell_id: str) -> ShellState:
        self._record("shell_kill", shell_id=shell_id)
        command = self._current(shell_id)
        command.end(KILLED, "")
        console = (ConsoleRecord(ps1=PROMPT, command=command.text, output=command.output),)
        return ShellState(shell_id=shell_id, status="completed", returncode=command.returncode, console=console)

    async def kill_all(self) -> None:
        self._record("kill_all")
        for commands in self._shells.values():
            for command in commands:
                command.end(KILLED, "")

    async def file_read(
        self,
        file: str,
        *,
        start: int | None,
        end: int | None,
        sudo: bool,
        start_char: int | None = None,
        end_char: int | None = None,
        encoding: str | None = None,
    ) -> FileText:
        self._record("file_read", file=file, start=start, end=end, sudo=sudo)
        content = self._content(file)
        lines = re.findall(r"[^\n]*\n|[^\n]+", content)
        text = "".join(lines[start or 0 : end])[start_char:end_char]
        note = "" if text or not lines else f"the file has {len(lines)} line(s), counted from 0"
        return FileText(
            file=_absolute(file),
            content=text,
            line_count=len(lines),
            note=note,
            encoding=encoding or "utf-8",
            view=content,
        )

    async def file_write(
        self, file: str, content: str, *, append: bool, sudo: bool, encoding: str | None = None
    ) -> FileChange:
        self._record("file_write", file=file, content=content, append=append, sudo=sudo)
        path, encoding = _absolute(file), encoding or "utf-8"
        try:
            count = len(content.encode(encoding))
        except UnicodeEncodeError as error:
            raise SandboxFailure(f"nothing was written: {encoding} cannot hold the text: {file}") from error
        self.files[path] = (self.files.get(path, "") if append else "") + content
        return FileChange(file=path, count=count, encoding=encoding, view=self.files[path])

    async def file_replace(
        self, file: str, old: str, new: str, *, sudo: bool, encoding: str | None = None
    ) -> FileChange:
        self._record("file_replace", file=file, old=old, new=new, sudo=sudo)
        content = self._content(file)
        if not (found := content.count(old)):
            raise SandboxFailure(f"old_str does not occur in {file}", status=404)
        self.files[_absolute(file)] = changed = content.replace(old, new)
        return FileChange(file=_absolute(file), count=found, view=changed)

    async def file_search(self, file: str, regex: str, *, sudo: bool) -> FileMatches:
        self._record("file_search", file=file, regex=regex, sudo=sudo)
        try:
            pattern = re.compile(regex)
        except re.error as error:
            raise SandboxFailure(f"not a valid regex: {error}") from error
        found = [(n, line) for n, line in enumerate(self._content(file).splitlines()) if pattern.search(line)]
        return FileMatches(
            file=_absolute(file),
            matches=tuple(line for _, line in found),
            line_numbers=tuple(n for n, _ in found),
            view=self._content(file),
        )

    async def file_find(self, path: str, glob: str) -> FoundFiles:
        self._record("file_find", path=path, glob=glob)
        below = _absolute(path).rstrip("/") + "/"
        found = [name for name in sorted(self.files) if name.startswith(below)]
        return FoundFiles(
            path=_absolute(path),
            files=tuple(name for name in found if fnmatch.fnmatch(posixpath.basename(name), glob)),
        )

    async def file_list(self, path: str) -> FolderListing:
        self._record("file_list", path=path)
        folder = f"{_absolute(path)}/"
        inside = {each.removeprefix(folder): text for each, text in self.files.items() if each.startswith(folder)}
        entries = {
            name: FolderEntry(name=name, kind="directory" if rest else "file", size=len(text.encode()), modified=0)
            for name, rest, text in ((*each.partition("/")[::2], text) for each, text in inside.items())
        }
        return FolderListing(entries=tuple(self.listed.get(_absolute(path), entries.values())))

    async def file_download(self, file: str) -> AsyncGenerator[bytes, None]:
        self._record("file_download", file=file)
        yield self._content(file).encode()

    async def file_image(self, file: str, *, max_side: int) -> FileImage:
        self._record("file_image", file=file, max_side=max_side)
        if (found := self.images.get(_absolute(file))) is None:
            raise SandboxFailure(f"no such file: {file}", status=404)
        return found

    def _record(self, method: str, **args: object) -> None:
        self.calls.append(Call(method, args))
        if self.failure is not None:
            raise self.failure

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _version(self, shell_id: str) -> str:
        commands = self._shells.get(shell_id)
        if not commands:
            return ""
        return f"{self.instance_id}-{len(commands)}-{len(commands[-1].output)}-{commands[-1].returncode}"

    def _require(self, part: str) -> None:
        if not self.parts[part].ready:
            raise SandboxUnavailable(f"The sandbox's {part} cannot be used: {self.parts[part].reason}")

    def _current(self, shell_id: str) -> _Command:
        if shell_id not in self._shells:
            raise SandboxFailure(f"no such shell: {shell_id}; shell_exec makes one", status=404)
        return self._shells[shell_id][-1]

    def _content(self, file: str) -> str:
        try:
            return self.files[_absolute(file)]
        except KeyError:
            raise SandboxFailure(f"no such file: {file}", status=404) from None

    def _state(self, shell_id: str, commands: list[_Command]) -> ShellState:
        records = tuple(ConsoleRecord(ps1=PROMPT, command=each.text, output=each.output) for each in commands)
        newest = commands[-1]
        newest.seen = len(newest.output)
        whole = "".join(f"{each.ps1} {each.command}\n{each.output}" for each in records)
        return ShellState(
            shell_id=shell_id,
            status="running" if newest.returncode is None else "completed",
            returncode=newest.returncode,
            output=newest.output if len(records) == 1 else whole,
            console=records,
        )

    def _new_output(self, shell_id: str, command: _Command) -> ShellState:
        unseen, command.seen = command.output[command.seen :], len(command.output)
        status = "running" if command.returncode is None else "completed"
        return ShellState(
            shell_id=shell_id,
            status=status,
            returncode=command.returncode,
            output=unseen,
            console=(ConsoleRecord(ps1=PROMPT, command=command.text, output=command.output),),
        )


class MemorySandboxProvider:
    """`SandboxProvider` in memory. `sandboxes` holds those that were started."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, MemorySandbox] = {}
        self.prepared: dict[str, MemorySandbox] = {}
        self.warmed: list[str] = []
        self.destroyed: list[str] = []
        self.starts = 0
        self.refusal: SandboxUnavailable | None = None
        """The error that `acquire` raises; None for none."""
        self.may_start = asyncio.Event()
        """`acquire` waits until this is set."""
        self.may_start.set()
        self.closed = False

    def prepare(self, session_id: str) -> MemorySandbox:
        """Return the sandbox that the session will get, so that it can be scripted before its start."""
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

    async def peek(self, session_id: str) -> MemorySandbox | None:
        return self.sandboxes.get(session_id)

    async def destroy(self, session_id: str) -> None:
        self.destroyed.append(session_id)
        if sandbox := self.sandboxes.pop(session_id, None):
            await sandbox.kill_all()

    def counts(self):
        return {"running": 0}

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
