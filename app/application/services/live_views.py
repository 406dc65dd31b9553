"""Views that people follow live: each is looked at once for all its viewers, and a slow viewer skips states."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from app.domain.errors import LimitReached, NotFound, SandboxFailure, SandboxUnavailable, StoreUnavailable
from app.domain.external.feed import Feed, Subscription
from app.domain.models.session import Session

log = logging.getLogger(__name__)

MAX_VIEWS = 64
"""Maximum number of shells and files of one session that are followed at the same time."""

MAX_PAGE_VIEWS = 3
"""Maximum number of views that one page in a browser follows at the same time; one more ends the oldest.

A browser opens six connections to a server, and a page with an open session needs two for its other streams. A
published frontend never closes the view of a shell or file when it opens the next one.
"""

MIN_PAUSE = 0.2
"""Minimum time between two looks, in seconds. A program that writes without pause is seen five times a second."""

CHARACTERS_PER_SECOND = 2_000_000
"""Number of characters that are sent to a viewer per second: after a larger view, the next look waits longer."""

RETRY_SECONDS = 2.0
"""Time until the next look after a failure, in seconds."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance(Generic[T]):
    """The result of a look: the view, or None if there is none or it has not changed."""

    view: T | None = None
    size: int = 0
    """Number of characters of the view."""
    pause: float = 0.0
    """Seconds until the next look, unless the agent does something with a tool before."""


class Look(Protocol[T]):
    """Looks at a shell or a file once."""

    async def __call__(self, latest: T | None) -> Glance[T]:
        """Return what there is to see. May wait for a change of `latest`.

        Raises:
            NotFound: The session does not exist any more.
            SandboxFailure: There is nothing to see now.
            SandboxUnavailable: The sandbox does not respond.
            StoreUnavailable: The store cannot be reached.
        """
        ...


@dataclass(slots=True, eq=False)
class _Watch(Generic[T]):
    """A view with viewers. `latest` is the only state that is kept for them."""

    latest: T | None = None
    number: int = 0
    """Number of states so far."""
    ended: bool = False
    viewers: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    hint: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a look may find something new."""
    task: "asyncio.Task[None] | None" = None

    def publish(self, view: T) -> None:
        """Show a new state to the viewers."""
        self.latest, self.number = view, self.number + 1
        self.wake()

    def end(self) -> None:
        """End the streams of the viewers."""
        self.ended = True
        self.wake()

    def wake(self) -> None:
        """Let the viewers see what has changed."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


@dataclass(slots=True, eq=False)
class _Viewer(Generic[T]):
    """Somebody who follows a view."""

    watch: _Watch[T]
    ended: bool = False

    def end(self) -> None:
        """End the viewer's stream."""
        self.ended = True
        self.watch.wake()


class PageViews:
    """The viewers of each page in a browser, of views of every kind."""

    def __init__(self) -> None:
        self._viewers: dict[str, list[_Viewer[Any]]] = {}

    @contextmanager
    def hold(self, page: str, viewer: _Viewer[Any]) -> Generator[None]:
        """Count the viewer as one of the page's, and end the oldest one if there are too many."""
        viewers = self._viewers.setdefault(page, [])
        viewers.append(viewer)
        for oldest in viewers[:-MAX_PAGE_VIEWS]:
            oldest.end()
        try:
            yield
        finally:
            viewers.remove(viewer)
            if not viewers:
                self._viewers.pop(page, None)


class LiveViews(Generic[T]):
    """The views of one kind that are followed in this process."""

    def __init__(self, feed: Feed, pages: PageViews) -> None:
        self._feed = feed
        self._pages = pages
        self._watches: dict[tuple[str, str], _Watch[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, session: Session, name: str, look: Look[T], *, page: str | None = None) -> AsyncGenerator[T, None]:
        """Yield the newest state at once and after each change, until the session is deleted.

        Args:
            session: The session.
            name: Which of its shells or files. Viewers of the same name share one look.
            look: Looks at it. Only that of the first viewer is used.
            page: Identifies the page in a browser that follows the view. It follows at most `MAX_PAGE_VIEWS`.

        Raises:
            LimitReached: Too many views of the session are followed.
        """
        key = (session.id, name)
        if key not in self._watches and sum(other == session.id for other, _ in self._watches) >= MAX_VIEWS:
            raise LimitReached(
                f"this session has {MAX_VIEWS} live views, the most there may be: close one", limit="views"
            )
        return self._states(key, session, look, page)

    async def _states(
        self, key: tuple[str, str], session: Session, look: Look[T], page: str | None
    ) -> AsyncGenerator[T, None]:
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch()
            watch.task = asyncio.create_task(self._run(watch, session, look), name=f"live view of {session.id}")
            self._tasks.add(watch.task)
            watch.task.add_done_callback(self._tasks.discard)
        watch.viewers += 1
        viewer = _Viewer(watch)
        seen = 0
        try:
            with self._pages.hold(page, viewer) if page is not None else nullcontext():
                while not viewer.ended:
                    changed = watch.changed
                    if watch.latest is not None and watch.number != seen:
                        seen = watch.number
                        yield watch.latest
                    elif watch.ended:
                        return
                    else:
                        await changed.wait()
        finally:
            watch.viewers -= 1
            if not watch.viewers:
                if self._watches.get(key) is watch:
                    del self._watches[key]
                if watch.task is not None:
                    watch.task.cancel()

    async def _run(self, watch: _Watch[T], session: Session, look: Look[T]) -> None:
        try:
            async with self._feed.subscribe(session.id) as subscription, asyncio.TaskGroup() as tasks:
                looking = tasks.create_task(_look_forever(watch, look))
                await _pass_hints(subscription, watch, after=session.last_event_number)
                looking.cancel()
        except* NotFound:
            log.info("live view ended: its session was deleted")
        except* Exception:
            log.exception("live view ended: unexpected error")
        finally:
            watch.end()


async def _look_forever(watch: _Watch[T], look: Look[T]) -> None:
    while True:
        watch.hint.clear()
        glance: Glance[T] = Glance(pause=RETRY_SECONDS)
        try:
            glance = await look(watch.latest)
        except (SandboxFailure, SandboxUnavailable, StoreUnavailable) as error:
            log.debug("live view: nothing to see now", extra={"error": str(error)})
        if glance.view is not None and glance.view != watch.latest:
            watch.publish(glance.view)
        await asyncio.sleep(MIN_PAUSE + glance.size / CHARACTERS_PER_SECOND)
        if glance.pause:
            await _wait(watch.hint, glance.pause)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _pass_hints(subscription: Subscription, watch: _Watch[T], *, after: int) -> None:
    """Set the hint whenever the agent may have used a tool. Return when the subscription has ended."""
    position = after
    while await subscription.wait_for_change():
        records = subscription.records_after(position)
        if records is None or any(record.type == "tool" for record in records):
            watch.hint.set()
        if records:
            position = records[-1].number
