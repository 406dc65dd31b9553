"""A running sandbox instance: the connection to it, when it was last used, and whether it responds."""

import time
from collections.abc import Callable
from types import TracebackType

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client import responses
from app.infrastructure.sandbox.client.api_client import JsonObject, SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HOME, HttpSandbox, SandboxInstance

FRESH_SECONDS = 2.0
"""Time in seconds after a response during which the instance is taken to be alive without a check."""

RENEW_SECONDS = 30.0
"""Idle time in seconds after which an instance is marked as in use before it is returned."""

RESPONSE_SECONDS = 5.0
"""Time limit in seconds for an instance to report its status."""

NO_SHELL = "/"
"""Prefix that no shell id has. Killing all shells with this prefix counts as use and has no other effect."""


SERVER_ERROR = 500
"""Status from which a `SandboxFailure` is a fault of the sandbox itself."""


class RunningSandbox:
    """A sandbox instance that runs, and the connection to it.

    Clients enter this context manager around every call, so that it records when this process last used the instance
    and whether the instance responds. Calls may overlap.
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
        self.instance = SandboxInstance(api=api, id=instance_id, home=home, exec_seconds=exec_seconds, activity=self)
        self.view = HttpSandbox(self.instance)
        """The sandbox for callers that must not start another one."""
        self.problem = ""
        """Why its shells do not work, according to the last `is_ready`; empty if they do, or if it did not respond."""
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
            # After a failure of its own, whether the instance works is checked before its next use.
            is_broken = isinstance(error, SandboxFailure) and error.status >= SERVER_ERROR
            self._last_response = None if is_broken else self._clock()

    @property
    def instance_id(self) -> str:
        """The name of the instance."""
        return self.instance.id

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
        self.problem = ""
        try:
            parts = responses.parse_parts(await self._status(seconds))
        except SandboxUnavailable:
            self._last_response = None
            return False
        if "shell" not in parts or not parts["shell"].ready:
            self.problem = parts["shell"].reason if "shell" in parts else "no shells"
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
