"""Use case: stop the run of a session."""

from dataclasses import dataclass

from app.domain.external.run_queue import RunQueue
from app.domain.repositories.sessions import SessionRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRun:
    """Stop the run of a session, in whichever process it is."""

    sessions: SessionRepository
    queue: RunQueue

    async def __call__(self, session_id: str, *, owner: str) -> None:
        """Stop the run if there is one. Once this returns, the run's `done` event is stored.

        A message that the user sends meanwhile is not stopped: the run continues with it.

        Raises:
            NotFound: The session does not exist.
            StoreUnavailable: The run could not be stopped and continues.
        """
        session = await self.sessions.get(session_id, owner=owner)
        if session.status in ("active", "waiting"):
            await self.queue.stop_run(session_id, up_to=session.last_event_number)
