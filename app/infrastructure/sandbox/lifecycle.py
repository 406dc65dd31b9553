"""The lifecycle of sandboxes: start once, share, check that it is alive, stop when idle, destroy.

`SessionSandboxProvider` is the base of providers that run a sandbox for each session. It keeps a `SessionSandbox` for
each session, and starts and ends sandbox instances through the `SandboxBackend` of its technology.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client import responses
from app.infrastructure.sandbox.client.api_client import JsonObject, SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HOME, HttpSandbox

log = logging.getLogger(__name__)

FRESH_SECONDS = 2.0
"""Time in seconds after a response during which the instance is taken to be alive without a check."""

RENEW_SECONDS = 30.0
"""Idle time in seconds after which an instance is told that it is in use before it is handed out."""

RESPONSE_SECONDS = 5.0
"""Time limit in seconds for an instance to report its status."""

FIND_SECONDS = 0.25
"""Time limit in seconds for `find` to wait for a start in progress."""

NO_SHELL = "/"
"""Prefix that no shell id has. Killing all shells with this prefix counts as use and has no other effect."""


class RunningSandbox:
    """A sandbox instance that runs, and the connection to it.

    `sandbox` enters it around every call, several at once: so it knows when this process last used the instance, and
    whether the instance responds.
    """

    def __init__(
        self,
        api: SandboxApiClient,
        *,
        instance_id: str,
        exec_seconds: float,
        home: str = HOME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over `api`; `close` closes it.

        Args:
            api: The client of the instance, whose token is the instance's own.
            instance_id: The name of the instance; no other instance ever gets the same.
            exec_seconds: The instance's own SANDBOX_EXEC_SECONDS.
            home: The path of the workspace in the instance.
            clock: Returns seconds that never decrease.
        """
        self.api = api
        self.sandbox = HttpSandbox(api, instance_id=instance_id, home=home, exec_seconds=exec_seconds, activity=self)
        self._clock = clock
        self._calls = 0
        self._last_use = clock()
        self._last_response: float | None = None

    def __enter__(self) -> None:
        self._calls += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._calls -= 1
        self._last_use = self._clock()
        if isinstance(error, SandboxUnavailable):
            self._last_response = None
        elif error is None or isinstance(error, SandboxFailure):
            self._last_response = self._clock()

    @property
    def instance_id(self) -> str:
        """The name of the instance."""
        return self.sandbox.instance_id

    @property
    def idle_seconds(self) -> float:
        """Seconds since this process last used the instance; 0 while a call is in progress."""
        return 0.0 if self._calls else self._clock() - self._last_use

    @property
    def is_fresh(self) -> bool:
        """Whether the instance responded less than `FRESH_SECONDS` ago, and no call failed since."""
        return self._last_response is not None and self._clock() - self._last_response < FRESH_SECONDS

    @property
    def is_unresponsive(self) -> bool:
        """Whether the last request failed, or none was made yet."""
        return self._last_response is None

    def touch(self) -> None:
        """Record that this process uses the instance now."""
        self._last_use = self._clock()

    async def is_ready(self, seconds: float = RESPONSE_SECONDS) -> bool:
        """Return whether the instance responds within `seconds` and its shells work. Does not count as use."""
        try:
            parts = responses.parse_parts(await self._status(seconds))
        except SandboxUnavailable:
            self._last_response = None
            return False
        if "shell" not in parts or not parts["shell"].ready:
            return False
        self._last_response = self._clock()
        return True

    async def fetch_idle_seconds(self, seconds: float = RESPONSE_SECONDS) -> float | None:
        """Return for how long nobody has used the instance, as it reports itself; None if it does not report it.

        Other processes, browser connections and viewers of the desktop count too.

        Raises:
            SandboxUnavailable: The instance does not respond within `seconds`, or another program has its address.
        """
        return responses.parse_idle_seconds(await self._status(seconds))

    async def renew(self) -> None:
        """Tell the instance that it is in use.

        Raises:
            SandboxUnavailable: The instance does not respond.
        """
        try:
            await self.api.post("shell/kill_all", {"prefix": NO_SHELL}, seconds=RESPONSE_SECONDS)
        except SandboxFailure:
            return  # a refusal is a response, too

    async def try_renew(self) -> bool:
        """Return whether the instance responds; if so, it counts as used now."""
        try:
            idle = await self.fetch_idle_seconds()
            if idle is None or idle > RENEW_SECONDS:
                await self.renew()
        except SandboxUnavailable:
            self._last_response = None
            return False
        self._last_response = self._clock()
        return True

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self.api.aclose()

    async def _status(self, seconds: float) -> JsonObject:
        try:
            return await self.api.get("status", seconds=seconds)
        except SandboxFailure as error:
            raise SandboxUnavailable("The sandbox does not report its status.") from error


R = TypeVar("R", bound=RunningSandbox)


class SandboxBackend(Protocol[R]):
    """What a technology provides: one session's sandbox instance, started, found and ended.

    Except `is_alive`, no two calls for one session overlap. `known` is the instance that this process used last; it may
    have ended since. The caller closes it when another instance, or None, is returned.
    """

    async def is_alive(self, known: R) -> bool:
        """Return whether `known` still runs. Called for every use of a sandbox, so it must be fast."""
        ...

    async def find(self, session_id: str, known: R | None) -> R | None:
        """Return the session's instance if one runs; never start one.

        Raises:
            SandboxUnavailable: It cannot be determined whether one runs.
        """
        ...

    async def start(self, session_id: str, known: R | None) -> R:
        """Return the session's instance, ready for use; start one if none runs.

        When cancelled, leave nothing behind that was started here.

        Raises:
            SandboxUnavailable: No instance can be started.
        """
        ...

    async def stop(self, session_id: str, instance_id: str) -> None:
        """End an instance and keep the workspace."""
        ...

    async def destroy(self, session_id: str) -> None:
        """End everything that the session runs and delete its workspace. Idempotent.

        Raises:
            SandboxUnavailable: It cannot be done now.
        """
        ...


class SessionSandbox(Generic[R]):
    """One session's sandbox in this process, through all its instances."""

    def __init__(self, session_id: str, backend: SandboxBackend[R]) -> None:
        self.session_id = session_id
        self._backend = backend
        self._running: R | None = None
        self._start: asyncio.Task[HttpSandbox] | None = None
        # Held while an instance is looked up, started or ended: one at a time.
        self._lock = asyncio.Lock()

    @property
    def running(self) -> R | None:
        """The instance that was last known to run; it may have ended since."""
        return self._running

    @property
    def is_empty(self) -> bool:
        """Whether no instance is known and nothing is in progress: then this object may be dropped."""
        return self._running is None and not self._lock.locked() and not self._is_starting

    def start(self) -> asyncio.Task[HttpSandbox]:
        """Return the task of the start in progress, or of a new one. Callers share it and must not cancel it."""
        if self._start is None or self._start.done():
            self._start = asyncio.create_task(self._start_instance(), name=f"sandbox start {self.session_id}")
            self._start.add_done_callback(self._log_failure)
        return self._start

    async def acquire(self) -> HttpSandbox:
        """Return the sandbox, ready for use; start it first if none runs.

        Raises:
            SandboxUnavailable: No sandbox can be started, or it was ended meanwhile.
        """
        running = self._running
        if running is not None and await self._backend.is_alive(running):
            running.touch()
            return running.sandbox
        start = self.start()
        await asyncio.wait({start})
        if start.cancelled():
            raise SandboxUnavailable("The session's sandbox was ended while it started.")
        return start.result()

    async def find(self) -> HttpSandbox | None:
        """Return the sandbox if one runs. One that is still starting does not run yet.

        Raises:
            SandboxUnavailable: It cannot be determined whether one runs.
        """
        running = self._running
        if running is not None and await self._backend.is_alive(running):
            return running.sandbox
        if (start := self._start) is not None and not start.done():
            # The start may only have to look up an instance that runs already.
            await asyncio.wait({start}, timeout=FIND_SECONDS)
            succeeded = start.done() and not start.cancelled() and start.exception() is None
            return start.result() if succeeded else None
        async with self._lock:
            found = await self._backend.find(self.session_id, self._running)
            await self._replace(found)
            return found.sandbox if found else None

    async def stop_if_idle(self, instance_id: str, is_idle: Callable[[], Awaitable[bool]]) -> bool:
        """Stop the instance if it is still idle once the lock is held; keep the workspace.

        Returns:
            Whether the instance was stopped.
        """
        async with self._lock:
            if not await is_idle():
                return False
            await self._forget(instance_id)
            await self._backend.stop(self.session_id, instance_id)
            return True

    async def forget(self, instance_id: str) -> None:
        """Close the connection to an instance that has ended."""
        async with self._lock:
            await self._forget(instance_id)

    async def close(self) -> None:
        """Cancel a start in progress and close the instance."""
        await self._cancel_start()
        async with self._lock:
            await self._replace(None)

    async def destroy(self) -> None:
        """End everything that the session runs, a start in progress included, and delete the workspace.

        Raises:
            SandboxUnavailable: It cannot be done now.
        """
        await self._cancel_start()
        async with self._lock:
            await self._replace(None)
            await self._backend.destroy(self.session_id)

    @property
    def _is_starting(self) -> bool:
        return self._start is not None and not self._start.done()

    async def _start_instance(self) -> HttpSandbox:
        async with self._lock:
            running = await self._backend.start(self.session_id, self._running)
            await self._replace(running)
            return running.sandbox

    async def _cancel_start(self) -> None:
        if self._start is not None and self._is_starting:
            self._start.cancel()
            await asyncio.wait({self._start})

    async def _forget(self, instance_id: str) -> None:
        if self._running is not None and self._running.instance_id == instance_id:
            await self._replace(None)

    async def _replace(self, running: R | None) -> None:
        known, self._running = self._running, running
        if known is not None and known is not running:
            await known.close()

    def _log_failure(self, start: asyncio.Task[HttpSandbox]) -> None:
        """Log why a start failed: it may run in the background, without a caller to tell."""
        if not start.cancelled() and (error := start.exception()) is not None:
            unexpected = None if isinstance(error, SandboxUnavailable) else error
            log.error("no sandbox for session %s: %s", self.session_id, error, exc_info=unexpected)


class SessionSandboxProvider(ABC, Generic[R]):
    """Base of a `SandboxProvider` that runs one sandbox for each session."""

    def __init__(self, backend: SandboxBackend[R], *, key: Callable[[str], str] = str) -> None:
        """Initialize without any sandbox.

        Args:
            backend: Starts and ends the instances.
            key: Returns the key of a session id in `sessions`.
        """
        self.sessions: dict[str, SessionSandbox[R]] = {}
        self.is_closed = False
        self._backend = backend
        self._key = key
        self._removals: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.Task[None] | None = None

    @abstractmethod
    async def reap(self) -> None:
        """Stop idle sandboxes, and clean up after those that have ended.

        Raises:
            SandboxUnavailable: Not everything could be checked; the next call does.
        """

    def start_reaper(self, interval_seconds: float) -> None:
        """Call `reap` now and every `interval_seconds`, in the background, until `close`."""
        self._reaper = asyncio.create_task(self._reap_forever(interval_seconds), name="sandbox reaper")

    def warm(self, session_id: str) -> None:
        """Start the session's sandbox in the background; a failure is logged and raised by `acquire`."""
        if not self.is_closed:
            self.session(session_id).start()

    async def acquire(self, session_id: str) -> HttpSandbox:
        """Return the session's sandbox, ready for use; the same one to all callers.

        Raises:
            SandboxUnavailable: No sandbox can be started, it was destroyed meanwhile, or this provider is closed.
        """
        if self.is_closed:
            raise SandboxUnavailable("The service is shutting down.")
        return await self.session(session_id).acquire()

    async def find(self, session_id: str) -> HttpSandbox | None:
        """Return the session's sandbox if one runs; never start one.

        Raises:
            SandboxUnavailable: It cannot be determined whether one runs.
        """
        if self.is_closed:
            return None
        session = self.session(session_id)
        found = await session.find()
        self._drop_if_empty(session)
        return found

    async def destroy(self, session_id: str) -> None:
        """End the session's sandbox and delete its files; complete this even when the caller is cancelled."""
        removal = asyncio.create_task(self._destroy(session_id), name=f"sandbox removal {session_id}")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        await asyncio.shield(removal)

    async def close(self) -> None:
        """Stop the reaper, complete removals, cancel starts, and close all sandboxes. Idempotent."""
        self.is_closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.wait({self._reaper})
            self._reaper = None
        await asyncio.gather(*(session.close() for session in self.sessions.values()), *self._removals)
        self.sessions.clear()

    def session(self, session_id: str) -> SessionSandbox[R]:
        """Return the session's entry of `sessions`; add one if there is none."""
        key = self._key(session_id)
        session = self.sessions.get(key)
        if session is None:
            session = self.sessions[key] = SessionSandbox(session_id, self._backend)
        return session

    def drop_empty_sessions(self) -> None:
        """Remove the sessions without a sandbox from `sessions`."""
        for session in list(self.sessions.values()):
            self._drop_if_empty(session)

    def _drop_if_empty(self, session: SessionSandbox[R]) -> None:
        key = self._key(session.session_id)
        if session.is_empty and self.sessions.get(key) is session:
            del self.sessions[key]

    async def _destroy(self, session_id: str) -> None:
        session = self.session(session_id)
        try:
            await session.destroy()
        except SandboxUnavailable as error:
            log.warning("the sandbox of session %s will be removed later: %s", session_id, error)
        self._drop_if_empty(session)

    async def _reap_forever(self, interval_seconds: float) -> None:
        while True:
            try:
                await self.reap()
            except SandboxUnavailable as error:
                log.warning("idle sandboxes are not stopped now: %s", error)
            except Exception:
                log.exception("the sandbox reaper failed; it tries again in %g s", interval_seconds)
            await asyncio.sleep(interval_seconds)
