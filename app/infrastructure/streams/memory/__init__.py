"""The feed and the signals of a single process."""

from app.infrastructure.streams.memory.feed import MemoryFeed
from app.infrastructure.streams.memory.signals import LocalSignals

__all__ = ["LocalSignals", "MemoryFeed"]
