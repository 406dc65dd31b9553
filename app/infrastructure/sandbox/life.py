"""One life of a local sandbox that this process has made: the child process with what was opened for it."""

import asyncio
import os
import secrets
import time
from collections.abc import Mapping

from app.domain.errors import SandboxFailure, SandboxUnavailable
from app.infrastructure.sandbox.activity import Activity
from app.infrastructure.sandbox.claims import Claim, Record
from app.infrastructure.sandbox.client import responses
from app.infrastructure.sandbox.client.api_client import SandboxApiClient
from app.infrastructure.sandbox.client.http_sandbox import HttpSandbox
from app.infrastructure.sandbox.ledger import Identity
from app.infrastructure.sandbox.process import SandboxProcess
from app.infrastructure.sandbox.workspace import Place

START_SECONDS = 30.0
"""How long a process may take from its start to its first answer, on a machine that starts several."""

ASK_SECONDS = 2.0
"""How long an idle sandbox may take to tell when it was last used."""


class Life:
    """A sandbox that runs, or has ended by itself; `close` ends it."""

    def __init__(
        self, process: SandboxProcess, link: SandboxApiClient, sandbox: HttpSandbox, activity: Activity
    ) -> None:
        """Owns `process` and `link` from here on; `activity` counts the calls on `sandbox`."""
        self.process = process
        self.sandbox = sandbox
        self.activity = activity
        self._link = link

    @classmethod
    async def begin(
        cls,
        place: Place,
        claim: Claim,
        *,
        session_id: str,
        mark: str,
        environment: Mapping[str, str],
        exec_seconds: float,
    ) -> "Life":
        """Start one for `place`, tell the other processes of it, and wait until it answers.

        Raises:
            SandboxUnavailable: it does not start.
        """
        try:
            await asyncio.to_thread(place.make)
        except OSError as error:
            raise SandboxUnavailable(f"No folder for the sandbox could be made: {error.strerror}.") from error
        process = await SandboxProcess.spawn(place, mark=mark, source=environment, exec_seconds=exec_seconds)
        link = SandboxApiClient(process.address, process.token)

        try:
            record = await asyncio.to_thread(_published, claim, session_id, process, place)
            await link.get("status", seconds=START_SECONDS)
        except OSError as error:
            await _close(process, link)
            raise SandboxUnavailable(f"The sandbox could not be made known: {error.strerror}.") from error
        except (SandboxUnavailable, SandboxFailure) as error:
            raise await _stillborn(process, link, error) from error
        except asyncio.CancelledError:
            await _close(process, link)
            raise
        activity = Activity(time.monotonic)
        sandbox = HttpSandbox(
            link, instance_id=record.computer, home=record.home, exec_seconds=exec_seconds, activity=activity
        )
        return cls(process, link, sandbox, activity)

    async def idle_seconds(self, *, least: float) -> float:
        """For how long nobody has used it, of this process or another; it is not asked when we did within `least`.

        One that does not answer counts as used by us only.
        """
        ours = self.activity.idle_seconds
        if ours < least:
            return ours
        try:
            theirs = responses.parse_idle_seconds(await self._link.get("status", seconds=ASK_SECONDS))
        except (SandboxUnavailable, SandboxFailure):
            theirs = None
        # Asked again: somebody may have come meanwhile.
        ours = self.activity.idle_seconds
        return ours if theirs is None else min(ours, theirs)

    async def close(self) -> None:
        """End the process and what it started, and the connection."""
        await _close(self.process, self._link)


def _published(claim: Claim, session_id: str, process: SandboxProcess, place: Place) -> Record:
    record = Record(
        session_id=session_id,
        computer=f"{process.pid}-{secrets.token_hex(4)}",  # the number alone may be given again
        address=process.address,
        token=process.token,
        home=os.path.realpath(place.workspace),
        child=Identity.of(process.pid),
        maker=Identity.of(os.getpid()),
    )
    claim.publish(record)
    return record


async def _stillborn(process: SandboxProcess, link: SandboxApiClient, error: Exception) -> SandboxUnavailable:
    """The reason for whoever asked; what the process itself said is a note, for the log: it may name paths."""
    status = await _close(process, link)
    reason = SandboxUnavailable("The session's sandbox did not start; the service's log says why.")
    reason.add_note(f"{error} Exit status {status}; it wrote:\n{await process.last_words()}")
    return reason


async def _close(process: SandboxProcess, link: SandboxApiClient) -> int:
    try:
        return await process.stop()
    finally:
        await link.aclose()
