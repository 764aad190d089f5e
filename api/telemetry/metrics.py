"""The metrics for Prometheus: counted as requests end, or collected at each scrape from their owners.

The three metrics of every request are `Tally` and `Distribution`, which need no locks because only the event loop uses
them: 1.8 µs per request, and 5.2 µs with prometheus_client's own, which lock each bucket, sum and count (0.22, Python
3.11), 3 % of the processor time of a request of five entities. All others are prometheus_client's own.
"""

import collections
import functools
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, PlatformCollector
from prometheus_client import ProcessCollector as ProcessFacts
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from api.inference.micro_batch import PendingRequest
from api.model.model_slot import ModelSlot
from api.model.scorer import RowScores
from api.model.store_health import Breaker
from scoring.predict import IMPUTED

PREFIX = "serving_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
AGES = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY)

LabelNames = tuple[str, ...]
LabelValues = tuple[str | int, ...]


class Tally(Collector):
    """A counter with labels."""

    def __init__(self, name: str, description: str, labels: LabelNames) -> None:
        self._about = name, description
        self._labels = labels
        self._counts: defaultdict[LabelValues, int] = defaultdict(int)

    def add(self, *values: str | int) -> None:
        """Count one event with these label values."""
        self._counts[values] += 1

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric([str(value) for value in values], count)
        yield family


class Distribution(Collector):
    """A histogram with one label."""

    def __init__(self, name: str, description: str, label: str, bounds: Sequence[float]) -> None:
        """Define it; `bounds` are the upper bounds of its buckets, ascending, without infinity."""
        self._about = name, description
        self._label = label
        self._bounds = bounds
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self._sums: defaultdict[str, float] = defaultdict(float)

    def add(self, value: float, label: str) -> None:
        """Record one observation with this label value."""
        self._counts[label][bisect_left(self._bounds, value)] += 1
        self._sums[label] += value

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        family = HistogramMetricFamily(*self._about, labels=(self._label,))
        ends = [floatToGoString(each) for each in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]
        for label, counts in self._counts.items():
            family.add_metric((label,), list(zip(ends, accumulate(counts), strict=True)), self._sums[label])
        yield family


class Metrics:
    """The metrics of one application, in a separate registry. Called on the event loop.

    Litestar's Prometheus middleware runs behind its router, so it never sees a 404 or 405 (2.25).
    """

    def __init__(self) -> None:
        # Importing Feast 0.67 sets PROMETHEUS_MULTIPROC_DIR, which child processes inherit. prometheus_client would
        # then keep its values in files there. One process serves here, with its values in memory.
        prometheus_client.values.ValueClass = prometheus_client.values.MutexValue
        # Otherwise every sample gets a second one with the time at which it was created.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        for collect in (ProcessFacts, PlatformCollector, GCCollector):
            collect(registry=self.registry)
        self._answered = Tally(PREFIX + "requests", "Requests answered.", ("route", "method", "status"))
        self._took = Distribution(
            PREFIX + "request_duration_seconds",
            "From a request's headers to the end of its response.",
            "route",
            SECONDS,
        )
        self._stages = Distribution(
            PREFIX + "stage_duration_seconds",
            "Time that a request waited to start (queue); time of each lookup in the feature store and of each "
            "prediction, for the requests merged in it.",
            "stage",
            SECONDS,
        )
        for counted in (self._answered, self._took, self._stages):
            self.registry.register(counted)
        self.in_flight = 0
        """Requests being processed."""
        gauge = Gauge(PREFIX + "requests_in_flight", "Requests being processed.", registry=self.registry)
        gauge.set_function(lambda: self.in_flight)
        self._merged = Histogram(
            PREFIX + "merged_requests",
            "Requests that were looked up and predicted together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        features = Counter(
            PREFIX + "feature_vectors",
            "Entities looked up, by the state of their features: complete, not_found, stale, null_feature.",
            ("status",),
            registry=self.registry,
        )
        # Finding a labelled metric takes as long as counting with it. There are few statuses.
        self._feature_status = functools.cache(features.labels)
        self._excluded = Counter(
            PREFIX + "entities_excluded", "Entities without a score, by reason.", ("reason",), registry=self.registry
        )
        self._age = Histogram(
            PREFIX + "feature_age_seconds",
            "Age of the oldest row that a request used, by its event time.",
            buckets=AGES,
            registry=self.registry,
        )

    def read_at_each_scrape(self, collector: Collector) -> None:
        """Also export the metrics of `collector`."""
        self.registry.register(collector)

    def count_request(self, route: str, method: str, status: int, duration_s: float) -> None:
        """Count a request that has ended."""
        self._answered.add(route, method, status)
        self._took.add(duration_s, route)

    def count_scoring(self, pending: PendingRequest, now_s: float) -> None:
        """Count a scoring request that has ended, successfully or not; `now_s` is the time in seconds since 1970."""
        batch = pending.batch
        if batch is None:
            return
        self._stages.add(batch.started_at - pending.queued_at, "queue")
        if batch.metrics_recorded or batch.looked_up_at is None or batch.online is None:
            return
        batch.metrics_recorded = True
        self._stages.add(batch.looked_up_at - batch.started_at, "lookup")
        if batch.predicted_at is not None:
            self._stages.add(batch.predicted_at - batch.looked_up_at, "predict")
        self._merged.observe(len(batch.requests))
        reasons = batch.online.reasons
        self._feature_status("complete").inc(reasons.null_count)
        if reasons.null_count < len(reasons):
            for status, count in collections.Counter(reasons.drop_null().to_pylist()).items():
                self._feature_status(status).inc(count)
        if batch.online.oldest_s is not None:
            self._age.observe(now_s - batch.online.oldest_s)

    def count_excluded(self, scores: RowScores) -> None:
        """Count the entities of a request that have no score."""
        if scores.complete:
            return
        for reason, count in collections.Counter(scores.reasons).items():
            if reason is not None and not reason.startswith(IMPUTED):
                self._excluded.labels(reason).inc(count)


class ServingState(Collector):
    """The state of the model slot and of the feature store, read at each scrape."""

    def __init__(self, slot: ModelSlot, breaker: Breaker) -> None:
        self._slot = slot
        self._breaker = breaker

    def collect(self) -> Iterator[Metric]:
        """Yield one sample per metric; none for a model that is not loaded yet, or before the first poll."""
        slot, breaker = self._slot, self._breaker
        model = GaugeMetricFamily(
            PREFIX + "model_info", "The model version that serves: always 1.", labels=("name", "version")
        )
        if slot.served is not None:
            version = slot.served.scorer.version
            model.add_metric((version.name, str(version.version)), 1)
        yield model
        yield CounterMetricFamily(PREFIX + "model_swaps", "Model versions swapped in, including the first.", slot.swaps)
        yield CounterMetricFamily(PREFIX + "model_refusals", "Refused attempts to load a version.", slot.refusals)
        yield GaugeMetricFamily(
            PREFIX + "model_refused", "1 while the version that the alias names can't serve.", int(bool(slot.refusal))
        )
        age = GaugeMetricFamily(
            PREFIX + "registry_last_answer_age_seconds", "Time since the registries last reported what should serve."
        )
        if (age_s := slot.poll_age_s()) is not None:
            age.add_metric((), age_s)
        yield age
        yield GaugeMetricFamily(
            PREFIX + "breaker_open",
            "1 while the feature store gets no requests.",
            int(not breaker.state.usable),
        )
        yield CounterMetricFamily(PREFIX + "breaker_opened", "Times that the circuit breaker opened.", breaker.opened)
