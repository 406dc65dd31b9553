"""The pictures over MongoDB."""

from app.domain.errors import NotFound
from app.infrastructure.persistence.listing import well_formed
from app.infrastructure.persistence.mongo.collection import Document
from app.infrastructure.persistence.mongo.gate import Gate
from app.infrastructure.persistence.mongo.ledger import Ledger


class MongoPictures:
    """A `PictureRepository` (see there)."""

    def __init__(self, gate: Gate, ledger: Ledger) -> None:
        self._gate = gate
        self._ledger = ledger

    async def put(self, session_id: str, picture_id: str, jpeg: bytes) -> None:
        """See `PictureRepository.put`. What comes behind a deletion is cleared away with the rest."""
        ordinal = await self._ledger.ordinal(session_id)
        if ordinal is None:
            raise NotFound("no such session")
        picture: Document = {"_id": {"s": ordinal, "k": well_formed(picture_id)}, "data": jpeg}
        await self._gate.write(lambda: self._ledger.tables.pictures.insert_one(picture))

    async def get(self, session_id: str, picture_id: str) -> bytes:
        """See `PictureRepository.get`."""
        ordinal = await self._ledger.ordinal(session_id)
        query: Document = {"_id": {"s": ordinal, "k": well_formed(picture_id)}}
        found = await self._gate.read(lambda: self._ledger.tables.pictures.find_one(query))
        if ordinal is None or found is None:
            raise NotFound("no such picture in this session")
        return bytes(found["data"])
