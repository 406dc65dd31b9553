"""Pictures: kept for a session by its tools, fetched by its owner."""

import secrets
from collections.abc import Callable

from app.domain.repositories.pictures import PictureRepository
from app.domain.repositories.sessions import SessionRepository

ID_BYTES = 16
"""Of randomness in a picture's id: nobody finds a picture by guessing."""


class PictureService:
    """The use cases of a session's pictures; also the port `Pictures` of its tools."""

    def __init__(
        self, *, sessions: SessionRepository, pictures: PictureRepository, address: Callable[[str, str], str]
    ) -> None:
        """`address` makes what clients fetch a picture from, of a session's id and a picture's."""
        self._sessions = sessions
        self._pictures = pictures
        self._address = address

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        """See `Pictures.keep`."""
        picture_id = secrets.token_urlsafe(ID_BYTES)
        await self._pictures.put(session_id, picture_id, jpeg)
        return self._address(session_id, picture_id)

    async def fetch(self, session_id: str, picture_id: str, *, owner: str) -> bytes:
        """A picture of the owner's session, as a JPEG.

        Raises:
            NotFound: no such session, or no such picture in it.
        """
        await self._sessions.get(session_id, owner=owner)
        return await self._pictures.get(session_id, picture_id)
