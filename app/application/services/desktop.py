"""Watching a session's desktop: a viewer on one side, the sandbox's desktop on the other, and bytes in between."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from enum import Enum
from typing import Any, Protocol, TypeVar

from app.domain.errors import NotFound, SandboxUnavailable, TooLarge
from app.domain.external.feed import Feed, Subscription
from app.domain.external.sandbox import Desktop, SandboxProvider
from app.domain.repositories.sessions import SessionRepository

log = logging.getLogger(__name__)

T = TypeVar("T")

HELD_BYTES = 64 * 1024
"""What a viewer may say before there is a desktop that hears it. In the protocol (RFB) the desktop speaks first."""


class Viewer(Protocol):
    """Whoever looks at the desktop.

    Raises (both methods):
        InvalidInput: it sent something that is no part of the protocol.
    """

    async def receive(self) -> bytes | None:
        """What the viewer says next; None when it has left. Safe to cancel."""
        ...

    async def send(self, data: bytes) -> bool:
        """Show the viewer `data`; waits for as long as it takes no more. False: it has left."""
        ...


class Ending(Enum):
    """Why a viewer sees nothing more."""

    LEFT = "the viewer left"
    ENDED = "the desktop ended the connection"
    GONE = "the sandbox is gone"
    DELETED = "the session was deleted"
    STOPPING = "the service is shutting down"


class DesktopService:
    """The use case. Each viewer has a connection of its own to the desktop: viewers do not wait for one another."""

    def __init__(self, *, sessions: SessionRepository, sandboxes: SandboxProvider, feed: Feed) -> None:
        self._sessions = sessions
        self._sandboxes = sandboxes
        self._feed = feed
        self._viewers = 0

    @property
    def viewers(self) -> int:
        """How many watch now, those that wait for a sandbox among them."""
        return self._viewers

    async def watch(self, session_id: str, viewer: Viewer, *, owner: str) -> Ending:
        """Show the session's desktop to `viewer` for as long as both are there; its sandbox is started when it rests.

        Raises:
            NotFound: no such session.
            SandboxUnavailable: no sandbox can be had, or it shows no desktop.
            SandboxFailure: this sandbox has none.
            InvalidInput: the viewer sent something that is no part of the protocol.
            TooLarge: it said too much before there was a desktop.
        """
        self._viewers += 1
        try:
            # Followed before the session is looked for, so that its deletion cannot fall between the two.
            async with self._feed.subscribe(session_id) as news, AsyncExitStack() as stack:
                await self._sessions.get(session_id, owner=owner)
                over = self._over(session_id, news, owner=owner)
                return await _first(over, self._show(session_id, viewer, stack))
        finally:
            self._viewers -= 1

    async def _over(self, session_id: str, news: Subscription, *, owner: str) -> Ending:
        """Waits for the end of the session, or of the service."""
        while await news.wait_for_change():
            pass
        try:
            await self._sessions.get(session_id, owner=owner)
        except NotFound:
            return Ending.DELETED
        return Ending.STOPPING

    async def _show(self, session_id: str, viewer: Viewer, stack: AsyncExitStack) -> Ending:
        held: list[bytes] = []
        desktop = await _first(self._open(session_id, stack), _hold(viewer, held))
        if desktop is None:
            return Ending.LEFT
        try:
            return await _first(_steer(viewer, desktop, held), _paint(desktop, viewer))
        except SandboxUnavailable as error:
            log.info("a viewer lost its desktop: %s", error)
            return Ending.GONE

    async def _open(self, session_id: str, stack: AsyncExitStack) -> Desktop:
        """`stack` closes the desktop, even if nobody takes it because its viewer left in the same moment."""
        sandbox = await self._sandboxes.acquire(session_id)
        try:
            desktop = await sandbox.desktop()
        except SandboxUnavailable as error:
            # It may have died so recently that its provider did not know yet, as it does now.
            log.info("no desktop, and one more try: %s", error)
            sandbox = await self._sandboxes.acquire(session_id)
            desktop = await sandbox.desktop()
        stack.push_async_callback(desktop.close)
        return desktop


async def _hold(viewer: Viewer, held: list[bytes]) -> None:
    """Keep what the viewer says; ends when it leaves."""
    size = 0
    while (data := await viewer.receive()) is not None:
        held.append(data)
        size += len(data)
        if size > HELD_BYTES:
            raise TooLarge(f"more than {HELD_BYTES} bytes before the desktop was there")


async def _steer(viewer: Viewer, desktop: Desktop, held: list[bytes]) -> Ending:
    """From the viewer to the desktop."""
    for data in held:
        await desktop.send(data)
    held.clear()
    while (data := await viewer.receive()) is not None:
        await desktop.send(data)
    return Ending.LEFT


async def _paint(desktop: Desktop, viewer: Viewer) -> Ending:
    """From the desktop to the viewer."""
    while data := await desktop.receive():
        if not await viewer.send(data):
            return Ending.LEFT
    return Ending.ENDED


async def _first(*ways: Coroutine[Any, Any, T]) -> T:
    """What that of `ways` which ends first answers, or raises; the others are cancelled, and over when this returns."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = next(task for task in tasks if task.done())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ended.result()
