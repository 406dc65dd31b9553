"""The pictures over SQLite."""

import sqlite3

from app.domain.errors import NotFound
from app.infrastructure.persistence.sqlite.database import Database
from app.infrastructure.persistence.sqlite.ledger import Ledger
from app.infrastructure.persistence.sqlite.writer import Writer, Written

_GET = """
SELECT pictures.data FROM pictures JOIN sessions ON sessions.ordinal = pictures.session
WHERE sessions.id = ? AND pictures.id = ?
"""


class SqlitePictures:
    """A `PictureRepository` (see there)."""

    def __init__(self, reader: Database, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def put(self, session_id: str, picture_id: str, jpeg: bytes) -> None:
        """See `PictureRepository.put`."""

        def work(ledger: Ledger, connection: sqlite3.Connection) -> Written[None]:
            return Written(ledger.keep_picture(connection, session_id, picture_id, jpeg))

        await self._writer.write(work)

    async def get(self, session_id: str, picture_id: str) -> bytes:
        """See `PictureRepository.get`."""
        row = await self._reader.run(lambda connection: connection.execute(_GET, (session_id, picture_id)).fetchone())
        if row is None:
            raise NotFound("no such picture in this session")
        return bytes(row[0])
