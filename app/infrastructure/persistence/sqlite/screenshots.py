"""The screenshots over SQLite."""

import sqlite3

from app.domain.errors import NotFound
from app.infrastructure.persistence.sqlite.database import Database
from app.infrastructure.persistence.sqlite.ledger import Ledger
from app.infrastructure.persistence.sqlite.writer import Writer, Written

_GET = """
SELECT pictures.data FROM pictures JOIN sessions ON sessions.ordinal = pictures.session
WHERE sessions.id = ? AND pictures.id = ?
"""


class SqliteScreenshots:
    """A `ScreenshotRepository` (see there)."""

    def __init__(self, reader: Database, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """See `ScreenshotRepository.put`."""

        def work(ledger: Ledger, connection: sqlite3.Connection) -> Written[None]:
            return Written(ledger.store_screenshot(connection, session_id, screenshot_id, jpeg))

        await self._writer.write(work)

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """See `ScreenshotRepository.get`."""
        row = await self._reader.run(
            lambda connection: connection.execute(_GET, (session_id, screenshot_id)).fetchone()
        )
        if row is None:
            raise NotFound("no such screenshot in this session")
        return bytes(row[0])
