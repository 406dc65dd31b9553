"""Metrics of one process, as `/metrics` reports them to Prometheus."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from app.domain.external.llm import FailureKind
from app.domain.models.event import EventRecord
from app.domain.models.message import Usage
from app.domain.models.model_profile import ModelProfile

if TYPE_CHECKING:
    from prometheus_client import Metric

Gauges = Mapping[str, Callable[[], int]]
"""Functions that return the present value of a gauge, by its name without the prefix `anker_`."""

FIRST_TOKEN_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Upper bounds of the histogram of times to the first token, in seconds."""


class ModelMetrics:
    """A `ModelObserver`: the counters of one model."""

    def __init__(self, profile: ModelProfile) -> None:
        self._profile = profile
        self.usage = Usage()
        """Sum over all replies."""
        self.failures: Counter[FailureKind] = Counter()
        """Number of failed attempts by kind."""
        self.first_tokens: Counter[float] = Counter()
        """Number of replies by the bound of `FIRST_TOKEN_SECONDS` that their first token came within."""
        self.first_token_seconds = 0.0
        """Sum of the times to the first token."""

    def failed(self, kind: FailureKind) -> None:
        """Implement `ModelObserver.failed`."""
        self.failures[kind] += 1

    def first_token(self, seconds: float) -> None:
        """Implement `ModelObserver.first_token`."""
        self.first_tokens[next((bound for bound in FIRST_TOKEN_SECONDS if seconds <= bound), math.inf)] += 1
        self.first_token_seconds += seconds

    def replied(self, usage: Usage) -> None:
        """Implement `ModelObserver.replied`."""
        self.usage += self._profile.priced(usage)

    def buckets(self) -> Iterator[tuple[str, float]]:
        """Yield the bounds of the histogram with the number of replies up to each."""
        count = 0
        for bound in (*FIRST_TOKEN_SECONDS, math.inf):
            count += self.first_tokens[bound]
            yield ("+Inf" if bound == math.inf else str(bound)), count


class Metrics:
    """Counters of one process. They are plain additions; the first scrape loads the client library."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """Number of requests by method, route and status. A route has parameter names, so there are few of them."""
        self.milliseconds: Counter[str] = Counter()
        """Total time of the requests in milliseconds, streams included, by route."""
        self.refusals: Counter[str] = Counter()
        """Number of requests that were refused because of a limit, by its name."""
        self.events: Counter[str] = Counter()
        """Number of stored events by type."""
        self.models: dict[str, ModelMetrics] = {}
        """Counters of each model, by the name of its profile."""

    def observe_model(self, profile: ModelProfile) -> ModelMetrics:
        """Return the counters of a model."""
        return self.models.setdefault(profile.name, ModelMetrics(profile))

    def count_request(self, method: str, route: str, status: int, milliseconds: float) -> None:
        """Count a request that ended."""
        self.requests[method, route, status] += 1
        self.milliseconds[route] += round(milliseconds)

    def count_refusal(self, limit: str) -> None:
        """Count a request that was refused because of a limit."""
        self.refusals[limit] += 1

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
        refusals = CounterMetricFamily("anker_limit_refusals", "Requests refused with 429.", labels=["limit"])
        for limit, count in self.refusals.items():
            refusals.add_metric([limit], count)
        yield refusals
        events = CounterMetricFamily("anker_events", "Events that were stored.", labels=["type"])
        for kind, count in self.events.items():
            events.add_metric([kind], count)
        yield events
        yield from _model_families(self.models)
        for name, read in gauges.items():
            yield GaugeMetricFamily(f"anker_{name}", f"{name.replace('_', ' ').capitalize()} now.", value=read())


def _model_families(models: Mapping[str, ModelMetrics]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

    calls = CounterMetricFamily("anker_model_calls", "Replies of models.", labels=["profile"])
    tokens = CounterMetricFamily("anker_model_tokens", "Tokens of models.", labels=["profile", "kind"])
    cost = CounterMetricFamily("anker_model_cost", "Cost in the currency of the prices.", labels=["profile"])
    failures = CounterMetricFamily("anker_model_errors", "Failed attempts at model calls.", labels=["profile", "kind"])
    first = HistogramMetricFamily("anker_model_first_token_seconds", "Time to the first token.", labels=["profile"])
    for name, model in models.items():
        usage = model.usage
        calls.add_metric([name], usage.calls)
        for kind, count in (
            ("prompt", usage.prompt_tokens),
            ("cached", usage.cached_tokens),
            ("completion", usage.completion_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            tokens.add_metric([name, kind], count)
        if usage.cost is not None:
            cost.add_metric([name], usage.cost)
        for kind, count in model.failures.items():
            failures.add_metric([name, kind], count)
        first.add_metric([name], buckets=list(model.buckets()), sum_value=model.first_token_seconds)
    yield from (calls, tokens, cost, failures, first)


class _MetricCollector:
    """A collector in the form that the client library expects."""

    def __init__(self, families: Iterable["Metric"]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable["Metric"]:
        """Return the metric families."""
        return self._families
