"""News between processes over Redis: `RedisBus`, and on it the feed and the signals.

Redis carries hints and nothing else: whatever is lost there is found in the store. The vendor's package is loaded when
a bus is opened.
"""

from app.infrastructure.streams.redis.bus import RedisBus
from app.infrastructure.streams.redis.feed import RedisFeed
from app.infrastructure.streams.redis.signals import RedisSignals

__all__ = ["RedisBus", "RedisFeed", "RedisSignals"]
