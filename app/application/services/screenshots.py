"""Use cases: keep a screenshot for a session, and fetch it."""

import secrets
from collections.abc import Callable

from app.domain.repositories.screenshots import ScreenshotRepository
from app.domain.repositories.sessions import SessionRepository

ID_BYTES = 16
"""Number of random bytes in a screenshot's ID. The ID cannot be guessed."""


class ScreenshotService:
    """Keep and fetch screenshots. Implements the port `Screenshots` of the tools."""

    def __init__(
        self, *, sessions: SessionRepository, screenshots: ScreenshotRepository, address: Callable[[str, str], str]
    ) -> None:
        """Create the service.

        Args:
            sessions: The store of sessions.
            screenshots: The store of screenshots.
            address: Returns the URL path of a screenshot for a session ID and a screenshot ID.
        """
        self._sessions = sessions
        self._screenshots = screenshots
        self._address = address

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        """Implement `Screenshots.keep`."""
        screenshot_id = secrets.token_urlsafe(ID_BYTES)
        await self._screenshots.put(session_id, screenshot_id, jpeg)
        return self._address(session_id, screenshot_id)

    async def fetch(self, session_id: str, screenshot_id: str, *, owner: str) -> bytes:
        """Return a screenshot of the owner's session as a JPEG.

        Raises:
            NotFound: The session or the screenshot does not exist.
        """
        await self._sessions.get(session_id, owner=owner)
        return await self._screenshots.get(session_id, screenshot_id)
