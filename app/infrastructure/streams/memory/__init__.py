"""The feed of a single process."""

from app.infrastructure.streams.memory.feed import MemoryFeed

__all__ = ["MemoryFeed"]
