"""Metrics of one process, as `/metrics` reports them to Prometheus."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from app.application.process_monitor import ProcessMetrics
from app.application.run_monitor import Histogram, RunMetrics
from app.domain.external.llm import FailureKind
from app.domain.models.event import EventRecord
from app.domain.models.message import Usage
from app.domain.models.model_profile import ModelProfile

if TYPE_CHECKING:
    from prometheus_client import Metric

Gauges = Mapping[str, Callable[[], float | Mapping[str, int]]]
"""Functions that return the value of a gauge, or its values by state, by its name without the prefix `anker_`."""

FIRST_TOKEN_SECONDS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Upper bounds of the histogram of times to the first token, in seconds."""


class ModelMetrics:
    """A `ModelObserver`: the counters of one model."""

    def __init__(self, profile: ModelProfile) -> None:
        self._profile = profile
        self.usage = Usage()
        """Sum over all replies."""
        self.failures: Counter[FailureKind] = Counter(dict.fromkeys(get_args(FailureKind), 0))
        """Number of failed attempts by kind. All are reported from the start: the first failure must raise an alert."""
        self.first_tokens = Histogram(FIRST_TOKEN_SECONDS)
        """Times to the first token of each reply, in seconds."""

    def failed(self, kind: FailureKind) -> None:
        """Implement `ModelObserver.failed`."""
        self.failures[kind] += 1

    def first_token(self, seconds: float) -> None:
        """Implement `ModelObserver.first_token`."""
        self.first_tokens.observe(seconds)

    def replied(self, usage: Usage) -> None:
        """Implement `ModelObserver.replied`."""
        self.usage += self._profile.priced(usage)


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
        self.runs = RunMetrics()
        self.process = ProcessMetrics()
        self.build: Mapping[str, str] = {}
        """What runs here: labels of `anker_build_info`."""

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
        yield from _run_families(self.runs)
        yield from _process_families(self.process)
        build = GaugeMetricFamily("anker_build_info", "What runs in this process.", labels=list(self.build))
        build.add_metric(list(self.build.values()), 1)
        yield build
        for name, read in gauges.items():
            value, text = read(), f"{name.replace('_', ' ').capitalize()} now."
            by_state = isinstance(value, Mapping)
            gauge = GaugeMetricFamily(f"anker_{name}", text, labels=["state"] if by_state else [])
            for state, number in value.items() if by_state else [("", value)]:
                gauge.add_metric([state] if by_state else [], number)
            yield gauge


def _model_families(models: Mapping[str, ModelMetrics]) -> Iterator["Metric"]:
    from prometheus_client.core import CounterMetricFamily

    calls = CounterMetricFamily("anker_model_calls", "Replies of models.", labels=["profile"])
    tokens = CounterMetricFamily("anker_model_tokens", "Tokens of models.", labels=["profile", "kind"])
    cost = CounterMetricFamily("anker_model_cost", "Cost in the currency of the prices.", labels=["profile"])
    failures = CounterMetricFamily("anker_model_errors", "Failed attempts at model calls.", labels=["profile", "kind"])
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
    yield from (calls, tokens, cost, failures)
    first = {name: model.first_tokens for name, model in models.items()}
    yield _histograms("anker_model_first_token_seconds", "Time to the first token.", "profile", first)


def _run_families(runs: RunMetrics) -> Iterator["Metric"]:
    yield _counters("anker_runs", "Attempts at runs that ended, by how.", ["outcome"], runs.runs.items())
    for name, text, histogram in (
        ("queue_wait", "Time from storing a message until a run reads it.", runs.queue_wait),
        ("first_event", "Time from a message until its stream sends the first event.", runs.first_event),
        ("first_text", "Time from a message until its stream sends the first text.", runs.first_text),
        ("store_commit", "Time until a commit of a run is stored, retries included.", runs.commits),
        ("sandbox_start", "Time until a sandbox is ready.", runs.sandbox_starts),
    ):
        yield _histograms(f"anker_{name}_seconds", text, "", {"": histogram})
    text = "Time of model calls, retries included."
    yield _histograms("anker_model_call_seconds", text, "profile", runs.model_calls)
    text = "Tool calls that ended, by how."
    yield _counters("anker_tool_calls", text, ["function", "outcome"], runs.tool_calls.items())
    yield _histograms("anker_tool_call_seconds", "Time of tool calls.", "toolkit", runs.tool_times)
    text = "Sandboxes that could not be started."
    yield _counters("anker_sandbox_start_failures", text, [], [((), runs.failed_starts)])
    yield _counters(
        "anker_sandboxes_reaped", "Sandboxes removed because nobody needs them.", ["reason"], runs.reaped.items()
    )


def _process_families(process: ProcessMetrics) -> Iterator["Metric"]:
    from prometheus_client.core import GaugeMetricFamily

    text = "Time by which the event loop was late."
    yield _histograms("anker_event_loop_lag_seconds", text, "", {"": process.lag})
    text = "Whether a dependency could be used at its last check."
    up = GaugeMetricFamily("anker_dependency_up", text, labels=["dependency"])
    for name, is_up in process.is_up.items():
        up.add_metric([name], is_up)
    yield up


def _counters(
    name: str, text: str, labels: Sequence[str], counts: Iterable[tuple[str | tuple[str, ...], int]]
) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts:
        family.add_metric([values] if isinstance(values, str) else values, count)
    return family


def _histograms(name: str, text: str, label: str, histograms: Mapping[str, Histogram]) -> "Metric":
    """Return a histogram, or with a `label` the histograms by its values."""
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for value, histogram in histograms.items():
        bounds = [*map(str, histogram.bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(histogram.counts)), strict=True))
        family.add_metric([value] if label else [], buckets=buckets, sum_value=histogram.sum)
    return family


class _MetricCollector:
    """A collector in the form that the client library expects."""

    def __init__(self, families: Iterable["Metric"]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable["Metric"]:
        """Return the metric families."""
        return self._families
