"""Port: screenshots that clients fetch by an address, such as the screenshots beside browser events."""

from typing import Protocol


class Screenshots(Protocol):
    """Keeps screenshots for as long as their session lives."""

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        """Store a JPEG; answers the address from which clients fetch it.

        Raises:
            NotFound: the session does not exist (any more).
            StoreUnavailable: it could not be stored.
        """
        ...
