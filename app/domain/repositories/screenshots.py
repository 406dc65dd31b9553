"""Storage port: the screenshots of a session. They are deleted with their session."""

from typing import Protocol


class ScreenshotRepository(Protocol):
    """JPEG images by session and id. A screenshot never changes.

    Every method raises:
        NotFound: The session does not exist, or does not exist any more.
        StoreUnavailable: The store cannot be reached or is full; nothing was written.
    """

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """Store a screenshot under an id that is new in its session."""
        ...

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """Return the JPEG of a screenshot.

        Raises:
            NotFound: The session has no screenshot of this id.
        """
        ...
