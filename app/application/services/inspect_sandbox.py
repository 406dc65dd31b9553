"""Use cases: look at the shells and the files of a session's sandbox, once or live.

A look is no use of the sandbox: it neither starts one nor keeps one from ending, except that reading a file once starts
it. Without the sandbox, what the events of the session have shown is returned.
"""

import json
import posixpath
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from app.application.services.audit import AuditTrail
from app.application.services.live_views import Glance, LiveViews, PageViews
from app.domain.errors import NotFound, SandboxFailure, SandboxUnavailable
from app.domain.external.feed import Feed
from app.domain.external.sandbox import Sandbox, SandboxProvider
from app.domain.external.secrets import NoSecrets, SecretMask
from app.domain.models.sandbox import ConsoleRecord, FileText, ShellState
from app.domain.models.session import Session
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.sessions import SessionRepository

WAIT_SECONDS = 20.0
"""Time for which the sandbox waits for a change of a shell, in seconds."""

ABSENT_SECONDS = 5.0
"""Time between two looks for a sandbox that does not run, in seconds. Each may ask the engine."""

STARTING_SECONDS = 1.0
"""The same during a run, which may start the sandbox."""

FILE_SECONDS = 1.0
"""Time between two looks at a file after a change, in seconds. It doubles while the file does not change."""

MAX_FILE_SECONDS = 4.0
"""Maximum time between two looks at a file, in seconds."""

MISSING = 404

EVENT_PAGE = 200
"""Number of events in one read. An event of a tool may have 200 KB."""

MAX_EVENTS = 10_000
"""Maximum number of newest events to search."""

MAX_RECORDS = 100
"""Maximum number of records of a console, as in a sandbox."""

MAX_CHARACTERS = 256 * 1024
"""Number of characters of a console from which no older events are read."""

_RECORDS = TypeAdapter(list[ConsoleRecord])

T = TypeVar("T")


class SandboxInspector:
    """Read-only access to the sandbox of a session, for its owner."""

    def __init__(
        self,
        *,
        sessions: SessionRepository,
        event_log: EventLog,
        sandboxes: SandboxProvider,
        feed: Feed,
        audit: AuditTrail,
        mask: SecretMask | None = None,
    ) -> None:
        self.sessions = sessions
        self._audit = audit
        self._mask = mask or NoSecrets()
        self.last_known = LastKnown(event_log=event_log)
        self._sandboxes = sandboxes
        pages = PageViews()
        self._shells = LiveViews[ShellState](feed, pages)
        self._files = LiveViews[FileText](feed, pages)

    async def view_shell(self, session_id: str, shell_id: str, *, owner: str) -> ShellState:
        """Return the console of a shell; without it, the last one that the session's events have shown.

        Raises:
            NotFound: The session does not exist, or the shell never did.
            SandboxFailure: The sandbox refused the request.
            SandboxUnavailable: The sandbox does not respond.
        """
        session = await self.sessions.get(session_id, owner=owner)
        await self._audit.record_view("shell.view", shell_id, owner=owner, session_id=session_id)
        try:
            state = await self.look(session_id, lambda sandbox: sandbox.shell_watch(shell_id))
        except SandboxFailure as error:
            if error.status != MISSING:
                raise
            state, reason = None, str(error)
        else:
            reason = "no such shell: this session's sandbox is not running, and no event shows this shell"
        state = state or _state(shell_id, await self.last_known.console(session, shell_id))
        if state is None:
            raise NotFound(reason)
        return state

    async def read_file(self, session_id: str, path: str, *, owner: str) -> FileText:
        """Return a text file of the workspace. Start the sandbox if it does not run, because only it has the files.

        If it cannot be started, return the file as the session's events have shown it last.

        Raises:
            NotFound: The session does not exist.
            SandboxFailure: The file does not exist or cannot be read.
            SandboxUnavailable: There is no sandbox, and no event shows the file.
        """
        session = await self.sessions.get(session_id, owner=owner)
        await self._audit.record_view("file.read", path, owner=owner, session_id=session_id)
        try:
            sandbox = await self._sandboxes.acquire(session_id)
            return self._mask.mask(await sandbox.file_watch(path))
        except SandboxUnavailable:
            found = await self.last_known.file(session, path)
            if found is None:
                raise
            return found

    async def follow_shell(
        self, session_id: str, shell_id: str, *, owner: str, page: str | None = None
    ) -> AsyncGenerator[ShellState, None]:
        """Return a stream of the states of a shell. It waits for a shell that does not exist yet.

        Args:
            session_id: The session.
            shell_id: The shell.
            owner: The session's owner.
            page: Identifies the page in a browser that follows the shell; see `LiveViews.follow`.

        Raises:
            NotFound: The session does not exist.
            LimitReached: Too many views of the session are followed.
        """
        session = await self.sessions.get(session_id, owner=owner)
        await self._audit.record_view("shell.view", shell_id, owner=owner, session_id=session_id)
        return self._shells.follow(session, shell_id, _ShellLook(self, session_id, shell_id, owner), page=page)

    async def follow_file(
        self, session_id: str, path: str, *, owner: str, page: str | None = None
    ) -> AsyncGenerator[FileText, None]:
        """Return a stream of the states of a file. It waits for a file that does not exist yet; see `follow_shell`."""
        session = await self.sessions.get(session_id, owner=owner)
        await self._audit.record_view("file.read", path, owner=owner, session_id=session_id)
        return self._files.follow(session, path, _FileLook(self, session_id, path, owner), page=page)

    async def look(self, session_id: str, call: Callable[[Sandbox], Awaitable[T]]) -> T | None:
        """Make a call on the session's sandbox and mask its result. Return None if none runs."""
        sandbox = await self._sandboxes.peek(session_id)
        if sandbox is None:
            return None
        try:
            return self._mask.mask(await call(sandbox))
        except SandboxUnavailable:
            found = await self._sandboxes.find(session_id)
            if found is None:
                return None
            if found.instance_id == sandbox.instance_id:
                raise
            return self._mask.mask(await call(found))


class _ShellLook:
    """Looks at a shell, and waits in the sandbox for its changes."""

    def __init__(self, inspector: SandboxInspector, session_id: str, shell_id: str, owner: str) -> None:
        self._inspector = inspector
        self._session_id, self._shell_id, self._owner = session_id, shell_id, owner
        self._known_at = -1
        """Number of the newest event when the events were searched for the shell."""

    async def __call__(self, latest: ShellState | None) -> Glance[ShellState]:
        version = "" if latest is None else latest.version
        # Before anything is shown, the first look does not wait: the events may have a console to show.
        seconds = 0.0 if latest is None and self._known_at < 0 else WAIT_SECONDS
        try:
            state = await self._inspector.look(
                self._session_id, lambda sandbox: sandbox.shell_watch(self._shell_id, version=version, seconds=seconds)
            )
        except SandboxFailure as error:
            if error.status != MISSING:
                raise
            return await self._last_known(latest, is_absent=False)
        if state is None:
            return await self._last_known(latest, is_absent=True)
        if not state.console or state.version == version:
            return Glance()
        return Glance(view=state, size=sum(len(record.output) for record in state.console))

    async def _last_known(self, latest: ShellState | None, *, is_absent: bool) -> Glance[ShellState]:
        """Return the console that the events show, unless there is something to see already."""
        session = await self._inspector.sessions.get(self._session_id, owner=self._owner)
        pause = _absent_pause(session) if is_absent else 0.0
        if latest is not None or session.last_event_number == self._known_at:
            return Glance(pause=pause)
        self._known_at = session.last_event_number
        console = await self._inspector.last_known.console(session, self._shell_id)
        return Glance(view=_state(self._shell_id, console), pause=pause)


class _FileLook:
    """Looks at a file, less often while it does not change."""

    def __init__(self, inspector: SandboxInspector, session_id: str, path: str, owner: str) -> None:
        self._inspector = inspector
        self._session_id, self._path, self._owner = session_id, path, owner
        self._pause = FILE_SECONDS

    async def __call__(self, latest: FileText | None) -> Glance[FileText]:
        text = await self._inspector.look(self._session_id, lambda sandbox: sandbox.file_watch(self._path))
        if text is None:
            session = await self._inspector.sessions.get(self._session_id, owner=self._owner)
            known = await self._inspector.last_known.file(session, self._path) if latest is None else None
            return Glance(view=known, pause=_absent_pause(session))
        changed = latest is None or text.content != latest.content
        self._pause = FILE_SECONDS if changed else min(2 * self._pause, MAX_FILE_SECONDS)
        return Glance(view=text if changed else None, size=len(text.content), pause=self._pause)


def _absent_pause(session: Session) -> float:
    return STARTING_SECONDS if session.status == "running" else ABSENT_SECONDS


def _state(shell_id: str, console: Sequence[ConsoleRecord]) -> ShellState | None:
    """Return the state of a shell whose sandbox has ended; None without a console."""
    if not console:
        return None
    output = "".join(f"{record.ps1} {record.command}\n{record.output}" for record in console)
    return ShellState(shell_id=shell_id, status="completed", output=output, console=tuple(console))


@dataclass(frozen=True, slots=True, kw_only=True)
class LastKnown:
    """Reads the newest tool events of a session, backwards from its end."""

    event_log: EventLog

    async def console(self, session: Session, shell_id: str) -> Sequence[ConsoleRecord]:
        """Return the console of a shell, as far as the shell's tool calls have shown it; empty if there were none."""
        found: list[tuple[str, list[ConsoleRecord]]] = []
        size = 0
        async for data in self._calls(session, "shell"):
            if data["args"].get("id") != shell_id or not (records := _records(data["content"])):
                continue
            found.append((data["function"], records))
            size += sum(len(record.output) for record in records)
            if data["function"] == "shell_view" or len(found) >= MAX_RECORDS or size > MAX_CHARACTERS:
                break
        console: list[ConsoleRecord] = []
        for function, records in reversed(found):
            _add(console, function, records)
        return console[-MAX_RECORDS:]

    async def file(self, session: Session, path: str) -> FileText | None:
        """Return a file as the newest call on it has shown it; None if there was none."""
        async for data in self._calls(session, "file"):
            match data["content"]:
                # More keys: it is a picture.
                case {"content": str(content), "file": str(file), **rest} if not rest:
                    if _plain(path) in (_plain(file), _plain(str(data["args"].get("file")))):
                        return FileText(file=file, content=content)
                case _:
                    continue
        return None

    async def _calls(self, session: Session, toolkit: str) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the `called` events of a toolkit, newest first."""
        end = session.last_event_number
        oldest = max(end - MAX_EVENTS, 0)
        marks = (f'"name":"{toolkit}"'.encode(), b'"status":"called"')
        while end > oldest:
            start = max(end - EVENT_PAGE, oldest)
            for record in reversed(await self.event_log.read(session.id, after=start, limit=end - start)):
                if record.type == "tool" and all(mark in record.data for mark in marks):
                    data = json.loads(record.data)
                    if data["name"] == toolkit:
                        yield data
            end = start


def _plain(path: str) -> str:
    """Return a path without what may precede a path relative to the workspace."""
    return posixpath.normpath(path).removeprefix("/home/ubuntu/").removeprefix("~/")


def _records(content: object) -> list[ConsoleRecord]:
    """Return the records of a `content`; none if it has another shape, as older versions stored it."""
    try:
        return _RECORDS.validate_python(content["console"] if isinstance(content, dict) else [])
    except (KeyError, ValidationError):
        return []


def _add(console: list[ConsoleRecord], function: str, records: Sequence[ConsoleRecord]) -> None:
    """Add what a call has shown: a whole console, a new record, or the newest state of a record."""
    if function == "shell_view":
        console[:] = records
        return
    newest = records[-1]
    if function != "shell_exec":
        for position in range(len(console) - 1, -1, -1):
            if (console[position].ps1, console[position].command) == (newest.ps1, newest.command):
                console[position] = newest
                return
    console.append(newest)
