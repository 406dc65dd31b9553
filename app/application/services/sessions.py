"""Sessions: create, look at, list, watch, delete; and looking into a session's sandbox."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from uuid import uuid4

from app.application.services.chat import check_position
from app.application.services.streams import RETRY_SECONDS, EventStreams
from app.domain.errors import NotFound, StoreUnavailable
from app.domain.external.browser import Browsers
from app.domain.external.feed import Feed
from app.domain.external.run_queue import RunQueue
from app.domain.external.sandbox import SandboxProvider
from app.domain.models.event import EventRecord
from app.domain.models.sandbox import FileText, ShellState
from app.domain.models.session import Session, SessionPage
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.sessions import SessionRepository
from app.domain.services.agents.book import unix_now

MAX_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A session and the part of its events that was asked for, read a page at a time while it is sent."""

    session: Session
    pages: AsyncIterator[Sequence[EventRecord]]


class SessionService:
    """The use cases of a session as a whole."""

    def __init__(
        self,
        *,
        sessions: SessionRepository,
        event_log: EventLog,
        streams: EventStreams,
        feed: Feed,
        queue: RunQueue,
        sandboxes: SandboxProvider,
        browsers: Browsers,
        now: Callable[[], int] = unix_now,
    ) -> None:
        self._sessions = sessions
        self._event_log = event_log
        self._streams = streams
        self._feed = feed
        self._queue = queue
        self._sandboxes = sandboxes
        self._browsers = browsers
        self._now = now

    async def create(self, *, owner: str) -> str:
        """A new session; answers its id. No sandbox is started for it yet."""
        session_id = uuid4().hex
        await self._sessions.create(session_id, owner=owner, at=self._now())
        self._feed.notify_list_changed()
        return session_id

    async def history(
        self, session_id: str, *, owner: str, after: int | None, limit: int | None, tail: int | None
    ) -> History:
        """The session with all its events after number `after`, the first `limit` of them, or the newest `tail`.

        Raises:
            NotFound: no such session.
            InvalidInput: `after` was never issued.
        """
        session = await self._sessions.get(session_id, owner=owner)
        check_position(session, after)
        start = after or 0
        if tail is not None:
            start = max(start, session.last_event_number - tail)
        up_to = session.last_event_number if limit is None else min(session.last_event_number, start + limit)
        return History(session=session, pages=self._streams.replay(session_id, after=start, up_to=up_to))

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """One page of the owner's sessions, latest first.

        Raises:
            InvalidInput: `cursor` is none of ours.
        """
        return await self._sessions.page(owner=owner, limit=limit, cursor=cursor)

    async def watch(self, *, owner: str, limit: int) -> AsyncGenerator[SessionPage, None]:
        """The first page at once and again at every change; changes that come faster than a reader takes them join."""
        version: int | None = 0
        shown: SessionPage | None = None
        while version is not None:
            try:
                page = await self._sessions.page(owner=owner, limit=limit, cursor=None)
            except StoreUnavailable:
                if shown is None:
                    raise
                await asyncio.sleep(RETRY_SECONDS)  # the list goes on when the store is back
                if await self._feed.sessions_changed(0) is None:
                    return
                continue
            if page != shown:
                shown = page
                yield page
            version = await self._feed.sessions_changed(version)

    async def delete(self, session_id: str, *, owner: str) -> None:
        """Stop the run, destroy the sandbox, forget everything.

        Raises:
            NotFound: no such session (any more).
        """
        session = await self._sessions.get(session_id, owner=owner)
        await self._queue.cancel(session_id)
        try:
            await self._sessions.delete(session_id, owner=owner)
        except StoreUnavailable:
            # Not deleted, and the caller is told so: its run goes on.
            await self._queue.wake(session_id, up_to=session.last_event_number)
            raise
        # A message that was stored in between may have woken the run again; now none can come any more.
        await self._queue.cancel(session_id)
        self._feed.close_session(session_id)
        self._feed.notify_list_changed()
        await self._browsers.release(session_id)
        await self._sandboxes.destroy(session_id)

    async def shell(self, session_id: str, shell: str, *, owner: str) -> ShellState:
        """The console of one of the session's shells.

        Raises:
            NotFound: no such session, or nothing runs in it.
            SandboxFailure: no such shell.
        """
        await self._sessions.get(session_id, owner=owner)
        sandbox = await self._sandboxes.find(session_id)
        if sandbox is None:
            raise NotFound("no such shell: this session's sandbox is not running")
        return await sandbox.shell_view(shell)

    async def file(self, session_id: str, path: str, *, owner: str) -> FileText:
        """A text file of the session's workspace; the sandbox is started again when it rests.

        Raises:
            NotFound: no such session.
            SandboxFailure: no such file, or none that may be read.
        """
        await self._sessions.get(session_id, owner=owner)
        sandbox = await self._sandboxes.acquire(session_id)
        return await sandbox.file_read(path, start=None, end=None, sudo=False)
