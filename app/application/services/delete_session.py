"""Use case: delete a session."""

from dataclasses import dataclass

from app.domain.errors import StoreUnavailable
from app.domain.external.browser import Browsers
from app.domain.external.feed import Feed
from app.domain.external.run_queue import RunQueue
from app.domain.external.sandbox import SandboxProvider
from app.domain.repositories.sessions import SessionRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteSession:
    """Delete a session with everything that belongs to it."""

    sessions: SessionRepository
    queue: RunQueue
    feed: Feed
    browsers: Browsers
    sandboxes: SandboxProvider

    async def __call__(self, session_id: str, *, owner: str) -> None:
        """Cancel the run, delete what is stored, close the streams, and destroy the sandbox.

        Raises:
            NotFound: The session does not exist (any more).
            StoreUnavailable: The session is not deleted, and its run continues.
        """
        session = await self.sessions.get(session_id, owner=owner)
        await self.queue.cancel_run(session_id)
        try:
            await self.sessions.delete(session_id, owner=owner)
        except StoreUnavailable:
            await self.queue.wake(session_id, up_to=session.last_event_number)
            raise
        # A message stored between the two steps above may have started the run again. From now on none can.
        await self.queue.cancel_run(session_id)
        self.feed.close_session(session_id)
        self.feed.notify_list_changed()
        await self.browsers.release(session_id)
        await self.sandboxes.destroy(session_id)
