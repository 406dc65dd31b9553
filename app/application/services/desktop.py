"""Use case: watch the desktop of a session's sandbox."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from enum import Enum
from typing import Any, Protocol, TypeVar

from app.application.services.audit import AuditTrail
from app.domain.errors import NotFound, SandboxUnavailable, StoreUnavailable, TooLarge
from app.domain.external.feed import Feed, Subscription
from app.domain.external.sandbox import Desktop, SandboxProvider
from app.domain.repositories.sessions import SessionRepository

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_EARLY_BYTES = 64 * 1024
"""Maximum number of bytes that a viewer may send before the desktop is connected. In RFB the desktop sends first."""


class Viewer(Protocol):
    """The connection to a person who watches a desktop.

    Raises (both methods):
        InvalidInput: The viewer violated the protocol.
    """

    async def receive(self) -> bytes | None:
        """Return the next bytes from the viewer; None if it has disconnected. Safe to cancel."""
        ...

    async def send(self, data: bytes) -> bool:
        """Send `data`, waiting while the viewer accepts no more. Return False if it has disconnected."""
        ...


class ViewingEnd(Enum):
    """Why a viewer's connection ends."""

    LEFT = "the viewer left"
    ENDED = "the desktop ended the connection"
    GONE = "the sandbox is gone"
    DELETED = "the session was deleted"
    STOPPING = "the service is shutting down"


class DesktopService:
    """Connect viewers to desktops. Each viewer has its own connection, so that viewers do not wait for each other."""

    def __init__(
        self, *, sessions: SessionRepository, sandboxes: SandboxProvider, feed: Feed, audit: AuditTrail
    ) -> None:
        self._sessions = sessions
        self._sandboxes = sandboxes
        self._feed = feed
        self._audit = audit
        self._viewers = 0

    @property
    def viewers(self) -> int:
        """Number of connected viewers, including those that wait for a sandbox."""
        return self._viewers

    async def watch(self, session_id: str, viewer: Viewer, *, owner: str, view_only: bool = False) -> ViewingEnd:
        """Relay between the viewer and the session's desktop until one of them ends. Start the sandbox if needed.

        Args:
            session_id: The session.
            viewer: The viewer, which drops its own input if it is `view_only`.
            owner: The owner of the session.
            view_only: Whether the viewer cannot use the desktop.

        Raises:
            NotFound: The session does not exist.
            SandboxUnavailable: The sandbox cannot be started, or its desktop does not respond.
            SandboxFailure: The sandbox has no desktop.
            InvalidInput: The viewer violated the protocol.
            TooLarge: The viewer sent too much before the desktop was connected.
        """
        self._viewers += 1
        try:
            # Subscribe before reading the session, so that a deletion in between is noticed.
            async with self._feed.subscribe(session_id) as subscription, AsyncExitStack() as stack:
                await self._sessions.get(session_id, owner=owner)
                opening = self._audit.recording("desktop.open", owner=owner, session_id=session_id, view_only=view_only)
                async with opening:
                    session_end = self._wait_for_session_end(session_id, subscription, owner=owner)
                    ending = await _first_of(session_end, self._relay(session_id, viewer, stack))
                with suppress(StoreUnavailable):
                    await self._audit.record("desktop.close", owner=owner, session_id=session_id, reason=ending.value)
                return ending
        finally:
            self._viewers -= 1

    async def _wait_for_session_end(self, session_id: str, subscription: Subscription, *, owner: str) -> ViewingEnd:
        while await subscription.wait_for_change():
            pass
        try:
            await self._sessions.get(session_id, owner=owner)
        except NotFound:
            return ViewingEnd.DELETED
        return ViewingEnd.STOPPING

    async def _relay(self, session_id: str, viewer: Viewer, stack: AsyncExitStack) -> ViewingEnd:
        early: list[bytes] = []
        desktop = await _first_of(self._connect(session_id, stack), _collect_early(viewer, early))
        if desktop is None:
            return ViewingEnd.LEFT
        try:
            return await _first_of(_viewer_to_desktop(viewer, desktop, early), _desktop_to_viewer(desktop, viewer))
        except SandboxUnavailable as error:
            log.info("connection to a desktop lost: %s", error)
            return ViewingEnd.GONE

    async def _connect(self, session_id: str, stack: AsyncExitStack) -> Desktop:
        """Connect to the desktop. `stack` closes it, even if the viewer leaves at the same moment."""
        sandbox = await self._sandboxes.acquire(session_id)
        desktop = await sandbox.desktop()
        stack.push_async_callback(desktop.close)
        return desktop


async def _collect_early(viewer: Viewer, early: list[bytes]) -> None:
    """Collect what the viewer sends until it disconnects."""
    size = 0
    while (data := await viewer.receive()) is not None:
        early.append(data)
        size += len(data)
        if size > MAX_EARLY_BYTES:
            raise TooLarge(f"more than {MAX_EARLY_BYTES} bytes before the desktop was there")


async def _viewer_to_desktop(viewer: Viewer, desktop: Desktop, early: list[bytes]) -> ViewingEnd:
    for data in early:
        await desktop.send(data)
    early.clear()
    while (data := await viewer.receive()) is not None:
        await desktop.send(data)
    return ViewingEnd.LEFT


async def _desktop_to_viewer(desktop: Desktop, viewer: Viewer) -> ViewingEnd:
    while data := await desktop.receive():
        if not await viewer.send(data):
            return ViewingEnd.LEFT
    return ViewingEnd.ENDED


async def _first_of(*coroutines: Coroutine[Any, Any, T]) -> T:
    """Return the result of the coroutine that ends first, or raise its error. Cancel the others and wait for them."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ended.result()
