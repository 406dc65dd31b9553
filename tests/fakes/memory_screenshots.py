"""A place for screenshots in memory, for tests of the tools that make some."""

from app.domain.errors import StoreUnavailable


class MemoryScreenshotKeeper:
    """The port `Screenshots`: `kept` has every screenshot by its address."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.trouble: str | None = None
        """When set, nothing can be stored."""

    async def keep(self, session_id: str, jpeg: bytes) -> str:
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)
        address = f"/pictures/{session_id}/{len(self.kept) + 1}"
        self.kept[address] = jpeg
        return address
