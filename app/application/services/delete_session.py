"""Use case: delete a session."""

from app.domain.errors import StoreUnavailable
from app.domain.external.browser import Browsers
from app.domain.external.feed import Feed
from app.domain.external.run_queue import RunQueue
from app.domain.external.sandbox import SandboxProvider
from app.domain.repositories.sessions import SessionRepository


class DeleteSession:
    """Delete a session with everything that belongs to it."""

    def __init__(
        self,
        *,
        sessions: SessionRepository,
        queue: RunQueue,
        feed: Feed,
        browsers: Browsers,
        sandboxes: SandboxProvider,
    ) -> None:
        self._sessions = sessions
        self._queue = queue
        self._feed = feed
        self._browsers = browsers
        self._sandboxes = sandboxes

    async def __call__(self, session_id: str, *, owner: str) -> None:
        """Cancel the run, delete what is stored, close the streams, and destroy the sandbox.

        Raises:
            NotFound: The session does not exist (any more).
            StoreUnavailable: The session is not deleted, and its run continues.
        """
        session = await self._sessions.get(session_id, owner=owner)
        await self._queue.cancel_run(session_id)
        try:
            await self._sessions.delete(session_id, owner=owner)
        except StoreUnavailable:
            await self._queue.wake(session_id, up_to=session.last_event_number)
            raise
        # A message stored between the two steps above may have started the run again. From now on none can.
        await self._queue.cancel_run(session_id)
        self._feed.close_session(session_id)
        self._feed.notify_list_changed()
        await self._browsers.release(session_id)
        await self._sandboxes.destroy(session_id)
