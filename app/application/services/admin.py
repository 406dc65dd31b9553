"""Use cases of administrators, who list and stop the sessions of all owners, and read none."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from app.application.services.sessions import SessionService
from app.domain.errors import InvalidInput, NotFound
from app.domain.external.authenticator import is_usable_name
from app.domain.models.session import SessionPage

MAX_STOPS = 20
"""Maximum number of runs that are stopped at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminService:
    """List and stop sessions whoever owns them."""

    service: SessionService

    async def page(self, *, limit: int, cursor: str | None) -> SessionPage:
        """Return one page of all sessions, the newest first.

        Raises:
            InvalidInput: `cursor` was not returned with an earlier page.
        """
        return await self.service.sessions.page_all(limit=limit, cursor=cursor)

    async def stop(self, session_id: str) -> None:
        """Stop the session's run; see `SessionService.stop`.

        Raises:
            NotFound: The session does not exist.
        """
        session = await self.service.sessions.get_any(session_id)
        await self.service.stop(session_id, owner=session.owner)

    async def stop_all(self) -> int:
        """Stop every run that is going, and return how many there were.

        Raises:
            StoreUnavailable: Some runs could not be stopped and continue.
        """
        running = list(await self.service.sessions.list_active())
        places = asyncio.Semaphore(MAX_STOPS)

        async def stop(session_id: str) -> None:
            async with places:
                with suppress(NotFound):  # deleted meanwhile
                    await self.stop(session_id)

        results = await asyncio.gather(*map(stop, running), return_exceptions=True)
        for failure in filter(None, results):
            raise failure
        return len(running)

    async def assign_unowned(self, owner: str) -> int:
        """Give the sessions from a time without a login to `owner`, and return how many there were.

        Raises:
            InvalidInput: Nobody can have this name.
        """
        if not is_usable_name(owner):
            raise InvalidInput("owner: nobody can have this name")
        count = await self.service.sessions.assign_unowned(owner)
        self.service.feed.notify_list_changed()
        return count
