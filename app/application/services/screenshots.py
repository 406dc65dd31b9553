"""Use cases: keep a screenshot for a session, and fetch it."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from app.domain.external.screenshots import ScreenshotRepository
from app.domain.repositories.sessions import SessionRepository

ID_BYTES = 16
"""Number of random bytes in a screenshot's ID. The ID cannot be guessed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenshotService:
    """Keep and fetch screenshots. Implements the port `Screenshots` of the tools."""

    sessions: SessionRepository
    screenshots: ScreenshotRepository
    address: Callable[[str, str], str]
    """Returns the URL path of a screenshot for a session ID and a screenshot ID."""

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        """Implement `Screenshots.keep`."""
        screenshot_id = secrets.token_urlsafe(ID_BYTES)
        await self.screenshots.put(session_id, screenshot_id, jpeg)
        return self.address(session_id, screenshot_id)

    async def fetch(self, session_id: str, screenshot_id: str, *, owner: str) -> bytes:
        """Return a screenshot of the owner's session as a JPEG.

        Raises:
            NotFound: The session or the screenshot does not exist.
        """
        await self.sessions.get(session_id, owner=owner)
        return await self.screenshots.get(session_id, screenshot_id)
