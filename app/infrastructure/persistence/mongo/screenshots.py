"""The screenshots over MongoDB."""

from app.domain.errors import NotFound
from app.infrastructure.persistence.listing import well_formed
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.ledger import Ledger


class MongoScreenshots:
    """A `ScreenshotRepository` (see there)."""

    def __init__(self, gate: Gate, ledger: Ledger) -> None:
        self._gate = gate
        self._ledger = ledger

    async def put(self, session_id: str, screenshot_id: str, jpeg: bytes) -> None:
        """See `ScreenshotRepository.put`. What comes behind a deletion is cleared away with the rest."""
        ordinal = await self._ledger.ordinal(session_id)
        if ordinal is None:
            raise NotFound("no such session")
        screenshot: Document = {"_id": {"s": ordinal, "k": well_formed(screenshot_id)}, "data": jpeg}
        await self._gate.write(lambda: self._ledger.tables.screenshots.insert_one(screenshot))

    async def get(self, session_id: str, screenshot_id: str) -> bytes:
        """See `ScreenshotRepository.get`."""
        ordinal = await self._ledger.ordinal(session_id)
        query: Document = {"_id": {"s": ordinal, "k": well_formed(screenshot_id)}}
        found = await self._gate.read(lambda: self._ledger.tables.screenshots.find_one(query))
        if ordinal is None or found is None:
            raise NotFound("no such screenshot in this session")
        return bytes(found["data"])
