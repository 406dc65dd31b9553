"""What `/metrics` tells: plain counts, made into Prometheus' words only when somebody asks."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from app.domain.models.event import EventRecord

if TYPE_CHECKING:
    from prometheus_client import Metric

Gauges = Mapping[str, Callable[[], int]]
"""The names of gauges, without the `anker_`, and how to read them now."""


class Metrics:
    """The counts of one process. Counting is an addition; the client library is loaded by the first scrape."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """By method, route (with its parameters' names, so that their number is bounded) and status."""
        self.seconds: Counter[str] = Counter()
        """Whole milliseconds that requests took, streams included, by route."""
        self.events: Counter[str] = Counter()
        """Stored events by type."""

    def request(self, method: str, route: str, status: int, milliseconds: float) -> None:
        """A request ended."""
        self.requests[method, route, status] += 1
        self.seconds[route] += round(milliseconds)

    def stored(self, records: Sequence[EventRecord]) -> None:
        """Events were stored."""
        for record in records:
            self.events[record.type] += 1

    def render(self, gauges: Gauges) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, and that format's content type."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_Collected(self._families(gauges)))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _families(self, gauges: Gauges) -> Iterator["Metric"]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["method", "route", "status"]
        requests = CounterMetricFamily("anker_http_requests", "HTTP requests that ended.", labels=labels)
        for (method, route, status), count in self.requests.items():
            requests.add_metric([method, route, str(status)], count)
        yield requests
        seconds = CounterMetricFamily("anker_http_request_seconds", "Time they took.", labels=["route"])
        for route, milliseconds in self.seconds.items():
            seconds.add_metric([route], milliseconds / 1000)
        yield seconds
        events = CounterMetricFamily("anker_events", "Events that were stored.", labels=["type"])
        for kind, count in self.events.items():
            events.add_metric([kind], count)
        yield events
        for name, read in gauges.items():
            yield GaugeMetricFamily(f"anker_{name}", f"{name.replace('_', ' ').capitalize()} now.", value=read())


class _Collected:
    """A collector, as the client library wants one."""

    def __init__(self, families: Iterable["Metric"]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable["Metric"]:
        """What was collected."""
        return self._families
