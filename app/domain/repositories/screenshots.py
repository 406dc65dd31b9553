"""Port of storage: screenshots that belong to a session, such as screenshots. They go when it goes."""

from typing import Protocol


class ScreenshotRepository(Protocol):
    """JPEGs by their session and an id. A screenshot never changes.

    Raises (every method):
        NotFound: the session does not exist (any more).
        StoreUnavailable: the store cannot be reached or is full; nothing was written.
    """

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """Store a screenshot under an id that is new in its session."""
        ...

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """The screenshot.

        Raises:
            NotFound: the session has none of this id.
        """
        ...
