"""The lifecycle of sandboxes: start once, share, check that it is alive, stop when idle, destroy.

`SessionSandboxProvider` is the base of providers that run a sandbox for each session. It keeps a `SessionSandbox` for
each session, and starts and ends sandbox instances through the `SandboxBackend` of its technology.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, Protocol, Self, TypeVar

from app.domain.errors import SandboxUnavailable
from app.domain.external.telemetry import NO_SANDBOX_OBSERVER, SandboxObserver
from app.infrastructure.sandbox.client.api_client import SandboxUnreachable
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox, SandboxInstance
from app.infrastructure.sandbox.client.running_sandbox import RunningSandbox

log = logging.getLogger(__name__)

FIND_SECONDS = 0.25
"""Time limit in seconds for `find` to wait for a start in progress."""

R = TypeVar("R", bound=RunningSandbox)


class SandboxBackend(Protocol[R]):
    """Starts, finds and ends sandbox instances with one technology.

    Except for `is_alive`, no two calls for one session overlap. `known` is the instance that this process used last; it
    may have ended since. The caller closes it when another instance, or None, is returned.
    """

    async def is_alive(self, known: R) -> bool:
        """Return whether `known` still runs. Called for every use of a sandbox, so it must be fast."""
        ...

    async def find_end(self, known: R) -> str | None:
        """Return how `known` ended, as in "ran out of memory"; None if it runs, or if that is unknown.

        Called after a call on `known` got no response.
        """
        ...

    async def find(self, session_id: str, known: R | None) -> R | None:
        """Return the session's instance if one runs; never start one.

        Raises:
            SandboxUnavailable: It cannot be determined whether one runs.
        """
        ...

    async def start(self, session_id: str, known: R | None) -> R:
        """Return the session's instance, ready for use; start one if none runs.

        On cancellation, stop everything that was started here.

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

    def __init__(
        self,
        session_id: str,
        backend: SandboxBackend[R],
        observer: SandboxObserver,
        on_token: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Manage the sandbox of a session. `on_token` learns the token of each of its instances."""
        self.session_id = session_id
        self._observer = observer
        self.running: R | None = None
        """The instance that was last known to run; it may have ended since."""
        self._backend = backend
        self._on_token = on_token
        self._is_over = False
        self._start: asyncio.Task[R] | None = None
        # Held while an instance is looked up, started or ended: one at a time.
        self._lock = asyncio.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether no instance is known and nothing is in progress: then this object may be dropped."""
        return self.running is None and not self._lock.locked() and not self.is_starting

    def start(self) -> asyncio.Task[R]:
        """Return the task of the start in progress, or of a new one. Callers share it and must not cancel it."""
        if self._start is None or self._start.done():
            start = self._observer.start_sandbox(self.session_id, self._start_instance)
            self._start = asyncio.create_task(start, name=f"sandbox start {self.session_id}")
            self._start.add_done_callback(self._log_failure)
        return self._start

    async def acquire(self) -> HttpSandbox:
        """Return the sandbox, ready for use; start it first if none runs.

        Raises:
            SandboxUnavailable: No sandbox can be started, or it was ended meanwhile.
        """
        running = self.running
        if running is not None and await self._backend.is_alive(running):
            running.touch()
            return self._sandbox_of(running)
        start = self.start()
        await asyncio.wait({start})
        if start.cancelled():
            raise SandboxUnavailable("The session's sandbox was ended while it started.")
        return self._sandbox_of(start.result())

    async def find(self) -> HttpSandbox | None:
        """Return the sandbox if one runs. One that is still starting does not run yet. Its calls start no other one.

        Raises:
            SandboxUnavailable: It cannot be determined whether one runs.
        """
        running = self.running
        if running is not None and await self._backend.is_alive(running):
            return running.view
        if (start := self._start) is not None and not start.done():
            # The start may only have to look up an instance that runs already.
            await asyncio.wait({start}, timeout=FIND_SECONDS)
            return self.running.view if start.done() and self.running is not None else None
        async with self._lock:
            found = await self._backend.find(self.session_id, self.running)
            await self._replace(found)
            return found.view if found else None

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
        self._is_over = True
        await self._cancel_start()
        async with self._lock:
            await self._replace(None)

    async def destroy(self) -> None:
        """End everything that the session runs, a start in progress included, and delete the workspace.

        Raises:
            SandboxUnavailable: It cannot be done now.
        """
        self._is_over = True
        await self._cancel_start()
        async with self._lock:
            await self._replace(None)
            await self._backend.destroy(self.session_id)

    @property
    def is_starting(self) -> bool:
        """Whether a start is in progress."""
        return self._start is not None and not self._start.done()

    async def _start_instance(self) -> R:
        async with self._lock:
            running = await self._backend.start(self.session_id, self.running)
            await self._replace(running)
            return running

    async def _cancel_start(self) -> None:
        if self._start is not None and self.is_starting:
            self._start.cancel()
            await asyncio.wait({self._start})

    async def _forget(self, instance_id: str) -> None:
        if self.running is not None and self.running.instance_id == instance_id:
            await self._replace(None)

    async def _replace(self, running: R | None) -> None:
        known, self.running = self.running, running
        if running is not None and running is not known:
            self._on_token(running.api.token)
        if known is not None and known is not running:
            await known.close()

    def _sandbox_of(self, running: R) -> HttpSandbox:
        return HttpSandbox(running.instance, find_successor=self._find_successor)

    async def _find_successor(
        self, failed: SandboxInstance, error: SandboxUnavailable, repeatable: bool
    ) -> SandboxInstance:
        """Implement `FindSuccessor`: a call that `failed` cannot have carried out is made again; other calls fail."""
        running = self.running
        is_current = running is not None and running.instance_id == failed.id
        end = await self._backend.find_end(running) if running is not None and is_current else "ended"
        is_unreached = isinstance(error, SandboxUnreachable)
        if self._is_over or (end is None and not is_unreached):
            raise error
        if not is_unreached and not repeatable:
            raise SandboxUnavailable(
                f"The sandbox {end} during this call, which may have taken effect. The next call uses a new sandbox: "
                "the files in ~ are unchanged, but all shells and processes are gone."
            ) from error
        log.warning("session %s: its sandbox %s; repeating the call", self.session_id, end or "was unreachable")
        await self.acquire()
        if self.running is None:
            raise error  # destroyed meanwhile
        return self.running.instance

    def _log_failure(self, start: asyncio.Task[R]) -> None:
        """Log why a start failed: it may run in the background, without a caller to tell."""
        if not start.cancelled() and (error := start.exception()) is not None:
            unexpected = None if isinstance(error, SandboxUnavailable) else error
            log.error("no sandbox for session %s: %s", self.session_id, error, exc_info=unexpected)


class SessionSandboxProvider(ABC, Generic[R]):
    """Base of a `SandboxProvider` that runs one sandbox for each session."""

    def __init__(
        self,
        backend: SandboxBackend[R],
        *,
        key: Callable[[str], str] = str,
        observer: SandboxObserver = NO_SANDBOX_OBSERVER,
    ) -> None:
        """Initialize without any sandbox.

        Args:
            backend: Starts and ends the instances.
            key: Returns the key of a session id in `sessions`.
            observer: Is told of starts.
        """
        self._observer = observer
        self.sessions: dict[str, SessionSandbox[R]] = {}
        self.is_closed = False
        self.on_token: Callable[[str], None] = lambda _: None
        """Learns the token of each sandbox, to mask it. Set it before the first use."""
        self._backend = backend
        self._key = key
        self._removals: set[asyncio.Task[None]] = set()
        self._reaper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @abstractmethod
    async def start(self) -> None:
        """Clean up after earlier processes, and start the background work of the provider."""

    @abstractmethod
    async def reap(self) -> None:
        """Stop idle sandboxes, and clean up after those that have ended.

        Raises:
            SandboxUnavailable: Not everything could be checked; the next call does.
        """

    def start_reaper(self, interval_seconds: float) -> None:
        """Call `reap` now and every `interval_seconds`, in the background, until `close`."""
        self._reaper = asyncio.create_task(self._reap_forever(interval_seconds), name="sandbox reaper")

    def counts(self) -> Mapping[str, int]:
        """Implement `SandboxProvider.counts`."""
        sessions = self.sessions.values()
        return {
            "running": sum(session.running is not None for session in sessions),
            "starting": sum(session.is_starting for session in sessions),
        }

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

    async def peek(self, session_id: str) -> HttpSandbox | None:
        """Return the sandbox that this process used last, which may have ended since; without one, as `find` does."""
        known = self.sessions.get(self._key(session_id))
        if known is not None and known.running is not None:
            return known.running.view
        return await self.find(session_id)

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
            session = SessionSandbox(session_id, self._backend, self._observer, self.on_token)
            self.sessions[key] = session
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
