"""Signals between processes over one channel of Redis."""

import struct
from collections.abc import Callable, Mapping
from typing import Literal

from app.domain.external.signals import Signal
from app.infrastructure.streams.redis.bus import RedisBus

_CHANNEL = "signals"

_Kind = Literal["wake", "stop", "cancel", "settled"]
_KINDS: Mapping[_Kind, int] = {"wake": 1, "stop": 2, "cancel": 3, "settled": 4}
_NAMES: Mapping[int, _Kind] = {code: kind for kind, code in _KINDS.items()}

_HEAD = struct.Struct("!BQ")
"""Before the session's id: the kind and `up_to`."""


class RedisSignals:
    """`Signals` (see there). What cannot be sent while Redis is away is lost."""

    def __init__(self, bus: RedisBus) -> None:
        self._bus = bus

    def send(self, signal: Signal) -> None:
        """See `Signals.send`."""
        self._bus.publish(_CHANNEL, _HEAD.pack(_KINDS[signal.kind], signal.up_to) + signal.session_id.encode())

    def listen(self, hear: Callable[[Signal], None]) -> None:
        """See `Signals.listen`."""

        def heard(payload: bytes, _sender: bytes) -> None:
            if (signal := _decode(payload)) is not None:
                hear(signal)

        self._bus.subscribe(_CHANNEL, heard=heard, confirmed=lambda: None)


def _decode(payload: bytes) -> Signal | None:
    """None for what is no signal, as the note that some were lost."""
    try:
        code, up_to = _HEAD.unpack_from(payload)
        session_id = payload[_HEAD.size :].decode()
    except (struct.error, UnicodeDecodeError):
        return None
    kind = _NAMES.get(code)
    return None if kind is None else Signal(kind=kind, session_id=session_id, up_to=up_to)
