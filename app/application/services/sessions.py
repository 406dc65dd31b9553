"""Use cases: create, read, list, watch, change, stop and delete sessions."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from app.application.services.audit import AuditTrail
from app.application.services.limits import LimitService
from app.application.services.streams import RETRY_SECONDS, EventStreams
from app.domain.clock import unix_now
from app.domain.errors import InvalidInput, NotFound, StoreUnavailable
from app.domain.external.authenticator import is_usable_name
from app.domain.external.browser import Browsers
from app.domain.external.feed import Feed
from app.domain.external.llm import ModelCatalog
from app.domain.external.run_queue import RunQueue
from app.domain.external.sandbox import SandboxProvider
from app.domain.external.secrets import NoSecrets, SecretMask
from app.domain.models.event import EventRecord
from app.domain.models.session import Session, SessionPage
from app.domain.repositories.event_log import EventLog
from app.domain.repositories.sessions import SessionRepository

MAX_GIVEN_TITLE = 200
"""Maximum length of a title that a user gives a session, in characters."""

MAX_STOPS = 20
"""Maximum number of runs that an administrator stops at the same time."""

MAX_PAGE = 500
"""Maximum number of sessions in one page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A session and the requested part of its events. The pages are read one at a time, while they are sent."""

    session: Session
    pages: AsyncIterator[Sequence[EventRecord]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionService:
    """Create, read, list, watch, change, stop and delete the sessions of an owner."""

    sessions: SessionRepository
    event_log: EventLog
    streams: EventStreams
    feed: Feed
    queue: RunQueue
    browsers: Browsers
    sandboxes: SandboxProvider
    models: ModelCatalog
    limits: LimitService
    audit: AuditTrail
    mask: SecretMask = field(default_factory=NoSecrets)
    now: Callable[[], int] = unix_now

    async def create(self, *, owner: str, model: str = "", title: str = "") -> str:
        """Create a session and return its ID. Its sandbox is not started yet.

        Args:
            owner: The owner of the session.
            model: Name of the model profile to use; empty for the default, whichever it is when a run starts.
            title: Its title; empty if the agent names it.

        Raises:
            InvalidInput: There is no such model profile.
            LimitReached: The owner has too many sessions.
        """
        if model:
            self.models.check(model)
        session_id = uuid4().hex
        title = self.mask.mask(title)
        recording = self.audit.recording("session.create", owner=owner, session_id=session_id, model=model)
        async with self.limits.new_session(owner), recording:
            await self.sessions.create(session_id, owner=owner, at=self.now(), model=model, title=title)
        self.feed.notify_list_changed()
        return session_id

    async def rename(self, session_id: str, title: str, *, owner: str) -> str:
        """Give the session a title, which its streams show. Return it as it is stored.

        Raises:
            NotFound: The session does not exist.
            InvalidInput: The title has no characters to show.
        """
        title = self.mask.mask(" ".join(title.split()))
        if not title:
            raise InvalidInput("title: must not be blank")
        await self.sessions.get(session_id, owner=owner)
        async with self.audit.recording("session.rename", owner=owner, session_id=session_id, length=len(title)):
            await self.event_log.rename_session(session_id, title, at=self.now())
        return title

    async def pin(self, session_id: str, *, owner: str, is_pinned: bool) -> None:
        """Pin the session, or unpin it.

        Raises:
            NotFound: The session does not exist.
        """
        session = await self.sessions.get(session_id, owner=owner)
        if session.is_pinned == is_pinned:
            return
        async with self.audit.recording("session.pin", owner=owner, session_id=session_id, is_pinned=is_pinned):
            await self.sessions.set_pinned(session_id, owner=owner, is_pinned=is_pinned)
        self.feed.notify_list_changed()

    async def mark_read(self, session_id: str, *, owner: str) -> None:
        """Count all messages of the session as delivered.

        Raises:
            NotFound: The session does not exist.
        """
        session = await self.sessions.get(session_id, owner=owner)
        if await self.sessions.mark_delivered(session_id, number=session.last_event_number):
            self.feed.notify_list_changed()

    async def history(
        self, session_id: str, *, owner: str, after: int | None, limit: int | None, tail: int | None
    ) -> History:
        """Return the session with its events.

        Args:
            session_id: The session.
            owner: The owner of the session.
            after: Return only events with a larger number.
            limit: Return at most this many events, the oldest first.
            tail: Consider only this many of the newest events.

        Raises:
            NotFound: The session does not exist.
            InvalidInput: The session has no event number `after`.
        """
        session = await self.sessions.get(session_id, owner=owner)
        check_position(session, after)
        start = after or 0
        if tail is not None:
            start = max(start, session.last_event_number - tail)
        up_to = session.last_event_number if limit is None else min(session.last_event_number, start + limit)
        return History(session=session, pages=self.streams.replay(session_id, after=start, up_to=up_to))

    async def page(self, *, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """Return one page of the owner's sessions, the latest first.

        Raises:
            InvalidInput: `cursor` was not returned with an earlier page.
        """
        return await self.sessions.page(owner=owner, limit=limit, cursor=cursor)

    async def watch(self, *, owner: str, limit: int) -> AsyncGenerator[SessionPage, None]:
        """Yield the first page of the owner's sessions now and after every change.

        Changes that arrive faster than the reader takes them become one page. While the store is unavailable, the
        stream waits for it.

        Raises:
            StoreUnavailable: The first page cannot be read.
        """
        version: int | None = 0
        shown: SessionPage | None = None
        while version is not None:
            try:
                page = await self.sessions.page(owner=owner, limit=limit, cursor=None)
            except StoreUnavailable:
                if shown is None:
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                if await self.feed.sessions_changed(0) is None:
                    return
                continue
            if page != shown:
                shown = page
                yield page
            version = await self.feed.sessions_changed(version)

    async def stop(self, session_id: str, *, owner: str) -> None:
        """Stop the session's run, in whichever process it is. Once this returns, the run's `done` event is stored.

        A message that the user sends meanwhile is not stopped: the run continues with it.

        Raises:
            NotFound: The session does not exist.
            StoreUnavailable: The run could not be stopped and continues.
        """
        session = await self.sessions.get(session_id, owner=owner)
        if session.status in ("running", "waiting"):
            async with self.audit.recording("session.stop", owner=owner, session_id=session_id):
                await self.queue.stop_run(session_id, up_to=session.last_event_number)

    async def delete(self, session_id: str, *, owner: str) -> None:
        """Delete a session: cancel the run, delete what is stored, close the streams, and destroy the sandbox.

        Raises:
            NotFound: The session does not exist (any more).
            StoreUnavailable: The session is not deleted, and its run continues.
        """
        session = await self.sessions.get(session_id, owner=owner)
        async with self.audit.recording("session.delete", owner=owner, session_id=session_id):
            await self.queue.cancel_run(session_id)
            try:
                await self.sessions.delete(session_id, owner=owner)
            except StoreUnavailable:
                await self.queue.wake(session_id, up_to=session.last_event_number, owner=owner)
                raise
        # A message stored between the two steps above may have started the run again. From now on none can.
        await self.queue.cancel_run(session_id)
        self.feed.close_session(session_id)
        self.feed.notify_list_changed()
        await self.browsers.release(session_id)
        await self.sandboxes.destroy(session_id)


def check_position(session: Session, after: int | None) -> None:
    """Refuse a position that the session has not reached.

    Raises:
        InvalidInput: The session has no event number `after`.
    """
    if after is not None and after > session.last_event_number:
        raise InvalidInput("event_id: this session never issued it")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminService:
    """List and stop the sessions of all owners, for administrators, who read none of them."""

    service: SessionService

    async def page(self, *, limit: int, cursor: str | None) -> SessionPage:
        """Return one page of all sessions, the newest first.

        Raises:
            InvalidInput: `cursor` was not returned with an earlier page.
        """
        return await self.service.sessions.page_all(limit=limit, cursor=cursor)

    async def stop(self, session_id: str) -> None:
        """Stop the session's run; see `SessionService.stop`.

        Raises:
            NotFound: The session does not exist.
        """
        session = await self.service.sessions.get_any(session_id)
        await self.service.stop(session_id, owner=session.owner)

    async def stop_all(self) -> int:
        """Stop every run that is going, and return how many there were.

        Raises:
            StoreUnavailable: Some runs could not be stopped and continue.
        """
        running = list(await self.service.sessions.list_active())
        places = asyncio.Semaphore(MAX_STOPS)

        async def stop(session_id: str) -> None:
            async with places:
                with suppress(NotFound):  # deleted meanwhile
                    await self.stop(session_id)

        results = await asyncio.gather(*map(stop, running), return_exceptions=True)
        for failure in filter(None, results):
            raise failure
        return len(running)

    async def assign_unowned(self, owner: str) -> int:
        """Give the sessions from a time without a login to `owner`, and return how many there were.

        Raises:
            InvalidInput: Nobody can have this name.
        """
        if not is_usable_name(owner):
            raise InvalidInput("owner: nobody can have this name")
        async with self.service.audit.recording("session.assign", owner=owner):
            count = await self.service.sessions.assign_unowned(owner)
        self.service.feed.notify_list_changed()
        return count
