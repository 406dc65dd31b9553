"""The signals of a single process: there is nobody else to tell."""

from collections.abc import Callable

from app.domain.external.signals import Signal


class LocalSignals:
    """`Signals` (see there) where there is one process."""

    def send(self, signal: Signal) -> None:
        """See `Signals.send`."""

    def listen(self, hear: Callable[[Signal], None]) -> None:
        """See `Signals.listen`."""
