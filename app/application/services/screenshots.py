"""Screenshots: kept for a session by its tools, fetched by its owner."""

import secrets
from collections.abc import Callable

from app.domain.repositories.screenshots import ScreenshotRepository
from app.domain.repositories.sessions import SessionRepository

ID_BYTES = 16
"""Of randomness in a screenshot's id: nobody finds a screenshot by guessing."""


class ScreenshotService:
    """The use cases of a session's screenshots; also the port `Screenshots` of its tools."""

    def __init__(
        self, *, sessions: SessionRepository, screenshots: ScreenshotRepository, address: Callable[[str, str], str]
    ) -> None:
        """`address` makes what clients fetch a screenshot from, of a session's id and a screenshot's."""
        self._sessions = sessions
        self._screenshots = screenshots
        self._address = address

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        """See `Screenshots.keep`."""
        screenshot_id = secrets.token_urlsafe(ID_BYTES)
        await self._screenshots.put(session_id, screenshot_id, jpeg)
        return self._address(session_id, screenshot_id)

    async def fetch(self, session_id: str, screenshot_id: str, *, owner: str) -> bytes:
        """A screenshot of the owner's session, as a JPEG.

        Raises:
            NotFound: no such session, or no such screenshot in it.
        """
        await self._sessions.get(session_id, owner=owner)
        return await self._screenshots.get(session_id, screenshot_id)
