"""Metrics of one process, as `/metrics` reports them to Prometheus."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from app.domain.models.event import EventRecord

if TYPE_CHECKING:
    from prometheus_client import Metric

Gauges = Mapping[str, Callable[[], int]]
"""Functions that return the present value of a gauge, by its name without the prefix `anker_`."""


class Metrics:
    """Counters of one process. They are plain additions; the first scrape loads the client library."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """Number of requests by method, route and status. A route has parameter names, so there are few of them."""
        self.milliseconds: Counter[str] = Counter()
        """Total time of the requests in milliseconds, streams included, by route."""
        self.events: Counter[str] = Counter()
        """Number of stored events by type."""

    def count_request(self, method: str, route: str, status: int, milliseconds: float) -> None:
        """Count a request that ended."""
        self.requests[method, route, status] += 1
        self.milliseconds[route] += round(milliseconds)

    def count_events(self, records: Sequence[EventRecord]) -> None:
        """Count stored events."""
        for record in records:
            self.events[record.type] += 1

    def render(self, gauges: Gauges) -> tuple[bytes, str]:
        """Return all metrics in Prometheus' text format, and the content type of that format."""
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_MetricCollector(self._families(gauges)))
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _families(self, gauges: Gauges) -> Iterator["Metric"]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["method", "route", "status"]
        requests = CounterMetricFamily("anker_http_requests", "HTTP requests that ended.", labels=labels)
        for (method, route, status), count in self.requests.items():
            requests.add_metric([method, route, str(status)], count)
        yield requests
        seconds = CounterMetricFamily("anker_http_request_seconds", "Time they took.", labels=["route"])
        for route, milliseconds in self.milliseconds.items():
            seconds.add_metric([route], milliseconds / 1000)
        yield seconds
        events = CounterMetricFamily("anker_events", "Events that were stored.", labels=["type"])
        for kind, count in self.events.items():
            events.add_metric([kind], count)
        yield events
        for name, read in gauges.items():
            yield GaugeMetricFamily(f"anker_{name}", f"{name.replace('_', ' ').capitalize()} now.", value=read())


class _MetricCollector:
    """A collector in the form that the client library expects."""

    def __init__(self, families: Iterable["Metric"]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable["Metric"]:
        """Return the metric families."""
        return self._families
