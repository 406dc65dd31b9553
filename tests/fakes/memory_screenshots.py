"""Screenshots in memory, for tests of the tools that take them."""

from app.domain.errors import StoreUnavailable


class MemoryScreenshotKeeper:
    """Implements the port `Screenshots`. `kept` holds every screenshot by its address."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.trouble: str | None = None
        """Why the store is unavailable; None while it is available."""

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)
        address = f"/pictures/{session_id}/{len(self.kept) + 1}"
        self.kept[address] = jpeg
        return address
