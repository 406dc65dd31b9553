"""CDP sessions with time limits, and the errors of a browser as domain errors.

Playwright's exceptions are translated in this module and do not leave the package.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol, TypeVar, cast

from playwright.async_api import CDPSession
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import TimeoutError as PlaywrightTimeout

from app.domain.errors import BrowserFailure

COMMAND_SECONDS = 5.0
"""Time limit in seconds for a command that a healthy page answers at once."""
CLEANUP_SECONDS = 2.0
"""Time limit in seconds for a cleanup command."""
NOT_FOUND = 404
"""Status of a `BrowserFailure` about something that does not exist."""
CONFLICT = 409
"""Status of a `BrowserFailure` about a state that forbids the action."""

_NET_ERRORS: Mapping[str, str] = {
    "ERR_NAME_NOT_RESOLVED": "there is no host of that name",
    "ERR_NAME_RESOLUTION_FAILED": "the host's name could not be looked up",
    "ERR_CONNECTION_REFUSED": "nothing listens there",
    "ERR_CONNECTION_RESET": "the server broke off the connection",
    "ERR_CONNECTION_CLOSED": "the server closed the connection",
    "ERR_CONNECTION_TIMED_OUT": "the server did not answer",
    "ERR_TIMED_OUT": "the server did not answer",
    "ERR_ADDRESS_UNREACHABLE": "the host cannot be reached",
    "ERR_INTERNET_DISCONNECTED": "there is no network",
    "ERR_NETWORK_CHANGED": "the network changed meanwhile; try again",
    "ERR_EMPTY_RESPONSE": "the server sent nothing",
    "ERR_INVALID_RESPONSE": "the server's response is invalid",
    "ERR_INVALID_HTTP_RESPONSE": "the server does not speak HTTP",
    "ERR_TOO_MANY_REDIRECTS": "it redirects without end",
    "ERR_SSL_PROTOCOL_ERROR": "the server does not speak TLS there; http:// may work",
    "ERR_CERT_AUTHORITY_INVALID": "the browser does not trust the issuer of the certificate",
    "ERR_CERT_COMMON_NAME_INVALID": "the certificate is for another host",
    "ERR_CERT_DATE_INVALID": "the certificate has expired, or is not valid yet",
    "ERR_INVALID_AUTH_CREDENTIALS": "it wants a user name and a password, as in https://name:password@host/",
    "ERR_UNSAFE_PORT": "browsers refuse this port",
    "ERR_BLOCKED_BY_CLIENT": "the browser's settings block it",
    "ERR_BLOCKED_BY_ADMINISTRATOR": "the browser's settings block it",
    "ERR_FILE_NOT_FOUND": "there is no such file",
    "ERR_ACCESS_DENIED": "access to the file is denied",
    "ERR_INVALID_URL": "the URL is not valid",
    "ERR_UNKNOWN_URL_SCHEME": "browsers do not open such URLs",
    "ERR_HTTP_RESPONSE_CODE_FAILURE": "the server answered with an error and no page",
    "ERR_ABORTED": "there was nothing to show",
}
_NET_CODE = re.compile(r"ERR_[A-Z0-9_]+")
_UNRESPONSIVE_SIGNS = ("termination request in progress", "couldn't parse value object")
"""Parts of Chromium's messages about a script that was told to end and still runs."""
_DOCUMENT_GONE_SIGNS = (
    "context with specified id",
    "context was destroyed",
    "navigated",
    "no frame",
    "frame was detached",
    "not attached to an active page",
)
_CLOSED_SIGNS = ("closed", "detached")

Json = Mapping[str, object]
T = TypeVar("T")


class DocumentGone(BrowserFailure):
    """The document is no longer there: the page navigated to another one."""

    def __init__(self) -> None:
        super().__init__("The page navigated elsewhere meanwhile: view it again.", status=CONFLICT)


class TabGone(BrowserFailure):
    """The tab was closed or has crashed."""


class PageUnresponsive(BrowserFailure):
    """The page did not respond within the time limit: a script of its own keeps it busy."""

    def __init__(self) -> None:
        super().__init__(
            "The page does not respond: a script of its own keeps it busy. Navigate elsewhere, or restart the browser.",
            status=CONFLICT,
        )


def net_failure(error_text: str, url: str) -> BrowserFailure:
    """Return the error for a `url` that Chromium could not open, from Chromium's `net::ERR_…` text."""
    code = _NET_CODE.search(error_text)
    name = code.group() if code else error_text
    reason = _NET_ERRORS.get(name) or ("its certificate is not valid" if name.startswith("ERR_CERT") else "")
    return BrowserFailure(f"{url} cannot be opened{': ' if reason else ''}{reason} ({name}).")


def no_element(index: int) -> BrowserFailure:
    """Return the error for an element number that is unknown or stale."""
    return BrowserFailure(
        f"There is no element [{index}] on the page now: use browser_view for the current numbers.", status=NOT_FOUND
    )


def translate(error: PlaywrightError) -> BrowserFailure:
    """Return the domain error for an error of Playwright."""
    message = error.message.lower()
    if isinstance(error, PlaywrightTimeout) or _contains(message, _UNRESPONSIVE_SIGNS):
        return PageUnresponsive()
    if _contains(message, _DOCUMENT_GONE_SIGNS):
        return DocumentGone()
    if "crash" in message:
        return TabGone("The tab crashed.", status=CONFLICT)
    if _contains(message, _CLOSED_SIGNS):
        return TabGone("The tab was closed.", status=CONFLICT)
    first_line = re.sub(r"^[\w.]+: ", "", error.message.strip().partition("\n")[0])
    return BrowserFailure(f"The browser refused: {re.sub(r'^Protocol error [(][^)]*[)]: ', '', first_line)[:300]}")


def _contains(message: str, signs: tuple[str, ...]) -> bool:
    return any(each in message for each in signs)


class ChangeSignal:
    """Lets coroutines wait until a condition becomes true; whoever changes the state calls `notify`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Make every waiter check its condition again."""
        self._event.set()

    async def wait_until(self, condition: Callable[[], bool], *, seconds: float) -> bool:
        """Wait until `condition()` is true. Return False if it is still false after `seconds`."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                while not condition():
                    self._event.clear()
                    await self._event.wait()
        except TimeoutError:
            return False
        return True


class BackgroundTasks:
    """Keeps references to tasks that nobody waits for, so that they are not garbage collected."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Run `work` in a task of its own."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class TargetLifetime:
    """The time for which a CDP target (a tab, or the browser) exists. Calls in flight fail when it ends."""

    def __init__(self) -> None:
        self.changes = ChangeSignal()
        """Notified when the target ends, and by those who observe other changes of it."""
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def end_reason(self) -> str:
        """Why the target is gone; empty while it exists."""
        return self._end.result() if self._end.done() else ""

    def end(self, reason: str) -> None:
        """Record that the target is gone. Only the first reason is kept."""
        if not self._end.done():
            self._end.set_result(reason)
            self.changes.notify()

    async def run(self, work: Coroutine[object, object, T], *, seconds: float | None = None) -> T:
        """Return the result of `work`. Cancel it when the target ends or the time limit passes.

        Args:
            work: A call on the target.
            seconds: The time limit; `COMMAND_SECONDS` if None.

        Raises:
            TabGone: The target is gone.
            PageUnresponsive: The time limit passed.
            BrowserFailure: Playwright refused the call.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(_ignore_late_error)
        limit = COMMAND_SECONDS if seconds is None else seconds
        try:
            await asyncio.wait({task, self._end}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        except PlaywrightError as error:
            raise translate(error) from error
        finally:
            task.cancel()
        if self._end.done():
            raise TabGone(self.end_reason, status=CONFLICT)
        raise PageUnresponsive


def _ignore_late_error(task: asyncio.Future[T]) -> None:
    """Retrieve the exception of a call that nobody waits for, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


class _TypedSession(Protocol):
    """The methods of Playwright's CDP session with complete types."""

    async def send(self, method: str, params: dict[str, object] | None = None) -> Json: ...
    def on(self, event: str, f: Callable[[Json | None], None]) -> None: ...


class Channel:
    """Sends commands to one CDP target and receives its events. All channels of a tab share one `lifetime`."""

    def __init__(self, session: CDPSession, lifetime: TargetLifetime) -> None:
        self._session = cast("_TypedSession", session)
        self.lifetime = lifetime

    async def send(self, method: str, params: Json | None = None, *, seconds: float | None = None) -> Json:
        """Send a command and return its result; raise as `TargetLifetime.run`."""
        return await self.lifetime.run(self._session.send(method, dict(params) if params else None), seconds=seconds)

    async def try_send(self, method: str, params: Json | None = None) -> None:
        """Send a command whose failure has no consequence, such as cleanup."""
        with contextlib.suppress(BrowserFailure):
            await self.send(method, params, seconds=CLEANUP_SECONDS)

    def on(self, event: str, handler: Callable[[Json], None]) -> None:
        """Call `handler` with the parameters of every `event`. Its CDP domain must be enabled."""
        self._session.on(event, lambda params: handler(params or {}))


def text(source: Json, *path: str) -> str:
    """Return the string at `path`, or an empty one."""
    found = _value_at(source, path)
    return found if isinstance(found, str) else ""


def number(source: Json, *path: str) -> float:
    """Return the number at `path`, or 0."""
    found = _value_at(source, path)
    return float(found) if isinstance(found, int | float) else 0.0


def item(source: Json, *path: str) -> Json:
    """Return the object at `path`, or an empty one."""
    found = _value_at(source, path)
    return cast("Json", found) if isinstance(found, dict) else {}


def items(source: Json, *path: str) -> list[Json]:
    """Return the objects of the list at `path`, or an empty list."""
    found = _value_at(source, path)
    if not isinstance(found, list):
        return []
    return [cast("Json", each) for each in cast("list[object]", found) if isinstance(each, dict)]


def _value_at(source: Json, path: tuple[str, ...]) -> object:
    found: object = source
    for name in path:
        if not isinstance(found, dict):
            return None
        found = cast("Json", found).get(name)
    return found
