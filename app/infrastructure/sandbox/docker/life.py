"""One container for as long as it lives: the connection to it, and how far it is to be trusted to answer."""

import time
from collections.abc import Callable
from types import TracebackType

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.client import responses
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.docker.facts import Container
from app.infrastructure.sandbox.docker.spec import PORT

FRESH_SECONDS = 2.0
"""A sandbox that answered so recently is taken to be there still."""

RENEW_SECONDS = 30.0
"""One that was idle for longer is told that it is in use before it is handed out."""

ANSWER_SECONDS = 5.0
CONNECT_SECONDS = 1.5
"""It is on this machine: its kernel answers at once, however busy it is. Nobody does for one that is gone."""

NO_SHELL = "/"
"""What no shell's id begins with: a request that does nothing, but counts as use."""


class Life:
    """A running container. Entered around every call on its sandbox, also by several at once.

    Its token is its own, and addresses are given again: whoever answers with this token is this container.
    """

    def __init__(
        self,
        container: Container,
        address: str,
        *,
        exec_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`address` is the container's IPv4."""
        self.container = container
        self.link = SandboxApiClient(f"http://{address}:{PORT}", container.token, connect_seconds=CONNECT_SECONDS)
        self.sandbox = HttpSandbox(self.link, instance_id=container.id, exec_seconds=exec_seconds, activity=self)
        self._clock = clock
        self._answered: float | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, SandboxUnavailable):
            self._answered = None
        elif error is None or isinstance(error, SandboxFailure):
            self._answered = self._clock()

    @property
    def fresh(self) -> bool:
        """Whether it answered just now, and nothing went wrong since."""
        return self._answered is not None and self._clock() - self._answered < FRESH_SECONDS

    @property
    def doubtful(self) -> bool:
        """Whether the last that was heard of it was that it does not answer, or nothing yet."""
        return self._answered is None

    async def idle_seconds(self) -> float | None:
        """For how long nobody has used it; 0 while somebody does, None when it does not tell.

        Raises:
            SandboxUnavailable: it does not answer, or another container does.
        """
        data = await self._status(ANSWER_SECONDS)
        return responses.parse_idle_seconds(data)

    async def is_up(self, seconds: float = ANSWER_SECONDS) -> bool:
        """Whether it answers within `seconds`, and its shells can be used. Does not count as use."""
        try:
            parts = responses.parse_parts(await self._status(seconds))
        except SandboxUnavailable:
            self._answered = None
            return False
        if "shell" not in parts or not parts["shell"].ready:
            return False
        self._answered = self._clock()
        return True

    async def take(self) -> bool:
        """Whether it answers; if it does, it counts as used now."""
        try:
            idle = await self.idle_seconds()
            if idle is None or idle > RENEW_SECONDS:
                await self.renew()
        except SandboxUnavailable:
            self._answered = None
            return False
        self._answered = self._clock()
        return True

    async def renew(self) -> None:
        """Count as used now.

        Raises:
            SandboxUnavailable: it does not answer.
        """
        try:
            await self.link.post("shell/kill_all", {"prefix": NO_SHELL}, seconds=ANSWER_SECONDS)
        except SandboxFailure:
            return  # it answered

    async def close(self) -> None:
        """Close the connection to it."""
        await self.link.aclose()

    async def _status(self, seconds: float) -> responses.JsonObject:
        try:
            return await self.link.get("status", seconds=seconds)
        except SandboxFailure as error:
            raise SandboxUnavailable("The sandbox does not tell its state.") from error
