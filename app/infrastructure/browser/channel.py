"""A CDP session with a page, a frame or the browser: bounded in time, failing in our words."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol, TypeVar, cast

from playwright.async_api import CDPSession
from playwright.async_api import Error as PlaywrightError

from app.infrastructure.browser.failures import CONFLICT, Hung, TabGone, translated

CALL_SECONDS = 5.0
"""Within which a healthy page answers anything that is asked of it."""
FAREWELL_SECONDS = 2.0

Json = Mapping[str, object]
T = TypeVar("T")


class _Session(Protocol):
    """What Playwright's own types leave open."""

    async def send(self, method: str, params: dict[str, object] | None = None) -> Json: ...
    async def detach(self) -> None: ...
    def on(self, event: str, f: Callable[[Json | None], None]) -> None: ...


class Ending:
    """Tells whoever waits for a page that it will not answer any more."""

    def __init__(self) -> None:
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def reason(self) -> str:
        """Why it is over; empty while it is not."""
        return self._over.result() if self._over.done() else ""

    def end(self, reason: str) -> None:
        """It is over. Only the first reason counts."""
        if not self._over.done():
            self._over.set_result(reason)

    async def within(self, work: Coroutine[object, object, T], *, seconds: float) -> T:
        """The result of `work`, unless the end or the time limit comes first; it is cancelled then.

        Raises:
            TabGone: it is over.
            Hung: there was no answer in time.
            BrowserFailure: Playwright refused.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(_seen)
        try:
            await asyncio.wait({task, self._over}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                with translated():
                    return task.result()
        finally:
            if not task.done():
                task.cancel()
        if self._over.done():
            raise TabGone(self.reason, status=CONFLICT)
        raise Hung


def _seen(task: asyncio.Future[T]) -> None:
    """A failure that came after nobody waited any more is nobody's."""
    if not task.cancelled():
        task.exception()


class Channel:
    """Commands to one target, and its events. `ending` is shared by all channels of a tab."""

    def __init__(self, session: CDPSession, ending: Ending) -> None:
        self._session = cast("_Session", session)
        self.ending = ending

    async def send(self, method: str, params: Json | None = None, *, seconds: float | None = None) -> Json:
        """What the command answers, within `CALL_SECONDS` unless told otherwise.

        Raises:
            ContextGone, TabGone, Hung: see there.
            BrowserFailure: the browser refused it.
        """
        asked = self._session.send(method, dict(params) if params else None)
        return await self.ending.within(asked, seconds=CALL_SECONDS if seconds is None else seconds)

    async def try_send(self, method: str, params: Json | None = None) -> None:
        """Send a command whose failure changes nothing, such as tidying up."""
        with contextlib.suppress(TabGone, Hung, PlaywrightError):
            await self.send(method, params, seconds=FAREWELL_SECONDS)

    def on(self, event: str, handler: Callable[[Json], None]) -> None:
        """Call `handler` with the parameters of every `event` of a domain that is enabled."""

        def run(params: Json | None) -> None:
            handler(params or {})

        self._session.on(event, run)

    async def detach(self) -> None:
        """End the session; the target goes on."""
        with contextlib.suppress(PlaywrightError, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._session.detach()


def text(source: Json, *names: str) -> str:
    """The text at the end of a path of names; empty when there is none."""
    found = _at(source, names)
    return found if isinstance(found, str) else ""


def number(source: Json, *names: str) -> float:
    """The number at the end of a path of names; 0 when there is none."""
    found = _at(source, names)
    return float(found) if isinstance(found, int | float) else 0.0


def item(source: Json, *names: str) -> Json:
    """The object at the end of a path of names; empty when there is none."""
    found = _at(source, names)
    return cast("Json", found) if isinstance(found, dict) else {}


def items(source: Json, *names: str) -> list[Json]:
    """The objects of the list at the end of a path of names."""
    found = _at(source, names)
    if not isinstance(found, list):
        return []
    return [cast("Json", each) for each in cast("list[object]", found) if isinstance(each, dict)]


def _at(source: Json, names: tuple[str, ...]) -> object:
    found: object = source
    for name in names:
        if not isinstance(found, dict):
            return None
        found = cast("Json", found).get(name)
    return found
