"""What a tab is loading, as its events tell."""

import asyncio
from collections.abc import Callable

from app.infrastructure.browser.channel import Channel, Json, item, text

_IGNORED = frozenset({"WebSocket", "EventSource", "Ping", "Media", "CSPViolationReport", "Preflight", "Prefetch"})
"""Kinds of requests that tell nothing about whether the page is ready."""
_SAME_DOCUMENT = frozenset({"sameDocument", "historySameDocument"})


class Traffic:
    """Follows one tab's navigations always, and its requests while they are counted."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._requests: set[str] = set()
        self._changed = asyncio.Event()
        self.main_id = ""
        """The outermost frame; set before the events matter."""
        self.navigating = False
        """On the way to another document that is not there yet."""
        self.loading = False
        self.ready = False
        """The present document's text is complete, whatever else still loads."""
        self.commits = 0
        """Documents so far."""
        for event, handler in {
            "Page.frameRequestedNavigation": self._requested,
            "Page.frameStartedNavigating": self._started,
            "Page.frameNavigated": self._navigated,
            "Page.frameStartedLoading": self._loading,
            "Page.frameStoppedLoading": self._stopped,
            "Page.domContentEventFired": self._ready,
            "Network.requestWillBeSent": self._sent,
            "Network.loadingFinished": self._done,
            "Network.loadingFailed": self._done,
        }.items():
            channel.on(event, handler)

    @property
    def requests(self) -> int:
        """Requests under way that began since they are counted."""
        return len(self._requests)

    async def count(self) -> None:
        """Count requests from now on."""
        self._requests.clear()
        # Nothing of the answers is kept for us in the browser.
        await self._channel.send("Network.enable", {"maxTotalBufferSize": 0, "maxResourceBufferSize": 0})

    async def rest(self) -> None:
        """Count no more: between actions nobody asks, and a busy page's events would cost for nothing."""
        self._requests.clear()
        if not self._channel.ending.reason:
            await self._channel.try_send("Network.disable")

    async def until(self, true: Callable[[], bool], *, seconds: float) -> bool:
        """Wait until something that the events change is `true`; whether it became so in time, or the tab ended."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                while not true() and not self._channel.ending.reason:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def stir(self) -> None:
        """Something that is waited for may have changed."""
        self._changed.set()

    def _requested(self, event: Json) -> None:
        if text(event, "frameId") == self.main_id and text(event, "disposition") == "currentTab":
            self._set(navigating=True)

    def _started(self, event: Json) -> None:
        if text(event, "frameId") == self.main_id and text(event, "navigationType") not in _SAME_DOCUMENT:
            self._set(navigating=True)

    def _navigated(self, event: Json) -> None:
        if not text(event, "frame", "parentId"):
            self.main_id = text(event, "frame", "id")
            self.commits += 1
            self.ready = False
            self._set(navigating=False)

    def _loading(self, event: Json) -> None:
        if text(event, "frameId") == self.main_id:
            self.loading = True
            self._changed.set()

    def _stopped(self, event: Json) -> None:
        if text(event, "frameId") == self.main_id:
            self.loading = False
            self._set(navigating=False)

    def _ready(self, _: Json) -> None:
        self.ready = True
        self._changed.set()

    def _sent(self, event: Json) -> None:
        if text(event, "type") not in _IGNORED and not text(item(event, "request"), "url").startswith("data:"):
            self._requests.add(text(event, "requestId"))

    def _done(self, event: Json) -> None:
        self._requests.discard(text(event, "requestId"))
        self._changed.set()

    def _set(self, *, navigating: bool) -> None:
        self.navigating = navigating
        self._changed.set()
