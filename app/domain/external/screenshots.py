"""Ports: keep the screenshots of a session, and store them. They are deleted with their session."""

from collections.abc import Sequence
from typing import Protocol


class Screenshots(Protocol):
    """Keeps the screenshots that tools take, for clients that show them beside browser events."""

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        """Store a JPEG and return the URL path from which clients fetch it.

        Raises:
            NotFound: The session does not exist, or does not exist any more.
            StoreUnavailable: The screenshot could not be stored.
        """
        ...


class ScreenshotRepository(Protocol):
    """JPEG images by session and ID. A screenshot never changes.

    Every method raises:
        NotFound: The session does not exist, or does not exist any more.
        StoreUnavailable: The store cannot be reached or is full; nothing was written.
    """

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """Store a screenshot under an ID that is new in its session."""
        ...

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """Return the JPEG of a screenshot.

        Raises:
            NotFound: The session has no screenshot of this ID.
        """
        ...

    async def list_ids(self, session_id: str) -> Sequence[str]:
        """Return the IDs of the session's screenshots."""
        ...
