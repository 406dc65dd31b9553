"""A local sandbox that another process of the service has made: used here, owned there."""

import asyncio
import time
from types import TracebackType

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.activity import Activity
from app.infrastructure.sandbox.claims import Claims, Record
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox

RENEW_SECONDS = 30.0
"""One that was not used from here for longer is told that it is in use before it is handed out."""

TAKE_SECONDS = 30.0
"""How long one may take to answer whose start is under way, on a machine that starts several."""

LOOK_SECONDS = 2.0

NO_SHELL = "/"
"""What no shell's id begins with: a request that does nothing, but counts as use."""


class Borrower:
    """One session's sandbox, for as long as another process has it."""

    def __init__(self, name: str, claims: Claims, *, exec_seconds: float) -> None:
        """`name` is the session's in `claims`; `exec_seconds` as for `HttpSandbox`."""
        self._name = name
        self._claims = claims
        self._exec_seconds = exec_seconds
        self._loan: _Loan | None = None

    @property
    def sandbox(self) -> HttpSandbox | None:
        """The one that was last borrowed and not let go of since."""
        return self._loan.sandbox if self._loan else None

    @property
    def idle_seconds(self) -> float:
        """Seconds since it was last used from here; 0 when there is none."""
        return self._loan.use.idle_seconds if self._loan else 0.0

    async def take(self) -> HttpSandbox | None:
        """The sandbox, which counts as used now; None when no other process has one that answers."""
        loan = await self._borrowed()
        if loan is not None and (loan.settled or await loan.take()):
            return loan.sandbox
        await self.let_go()
        return None

    async def find(self) -> HttpSandbox | None:
        """As `take`, but does not count as use."""
        loan = await self._borrowed()
        if loan is not None and (loan.use.answered or await loan.answers()):
            return loan.sandbox
        await self.let_go()
        return None

    async def let_go(self) -> None:
        """Close the connection to it."""
        loan, self._loan = self._loan, None
        if loan is not None:
            await loan.link.aclose()

    async def _borrowed(self) -> "_Loan | None":
        record = await asyncio.to_thread(self._claims.living, self._name)
        if self._loan is not None and (record is None or record.computer != self._loan.sandbox.instance_id):
            await self.let_go()
        if record is not None and self._loan is None:
            self._loan = _Loan(record, exec_seconds=self._exec_seconds)
        return self._loan


class _Loan:
    """One life of it, with the connection to it."""

    def __init__(self, record: Record, *, exec_seconds: float) -> None:
        self.use = _Use()
        self.link = SandboxApiClient(record.address, record.token)
        self.sandbox = HttpSandbox(
            self.link, instance_id=record.computer, home=record.home, exec_seconds=exec_seconds, activity=self.use
        )

    @property
    def settled(self) -> bool:
        """Whether it was used from here lately, and answered."""
        return self.use.answered and self.use.idle_seconds < RENEW_SECONDS

    async def answers(self) -> bool:
        """Whether it is there. Does not count as use."""
        try:
            await self.link.get("status", seconds=LOOK_SECONDS)
        except (SandboxUnavailable, SandboxFailure):
            return False
        return True

    async def take(self) -> bool:
        """Whether it is there; if it is, it counts as used now, for its maker too."""
        try:
            with self.use:
                await self.link.post("shell/kill_all", {"prefix": NO_SHELL}, seconds=TAKE_SECONDS)
        except (SandboxUnavailable, SandboxFailure):
            return False
        return True


class _Use(Activity):
    """Remembers whether the last call was answered too."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.answered = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if error is None or isinstance(error, SandboxFailure):
            self.answered = True
        elif isinstance(error, SandboxUnavailable):
            self.answered = False
