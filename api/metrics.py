"""What Prometheus is told: counted here as requests end, the rest read from the parts that know it at each scrape."""

from collections import Counter as Tally

import prometheus_client.values
import pyarrow as pa
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, PlatformCollector
from prometheus_client import ProcessCollector as ProcessFacts
from prometheus_client.registry import Collector

from api.stages import Stages
from scoring.predict import IMPUTED, Scores

PREFIX = "serving_"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
AGES = (MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY)


class Metrics:
    """The metrics of one application, in a registry of its own. Called on the event loop.

    Litestar's own Prometheus middleware runs behind its router, so that it never sees a 404 or 405 (2.25).
    """

    def __init__(self) -> None:
        # Importing Feast 0.67 sets PROMETHEUS_MULTIPROC_DIR, and a process started by one that did inherits it:
        # prometheus_client then keeps its values in files there. One process serves here, with its values in memory.
        prometheus_client.values.ValueClass = prometheus_client.values.MutexValue
        # Else every sample has a time stamp beside it, which nobody reads.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        for collect in (ProcessFacts, PlatformCollector, GCCollector):
            collect(registry=self.registry)
        labels = ("route", "method", "status")
        self._requests = Counter(PREFIX + "requests", "Requests answered.", labels, registry=self.registry)
        self._durations = Histogram(
            PREFIX + "request_duration_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(PREFIX + "requests_in_flight", "Requests being answered.", registry=self.registry)
        self._stages = Histogram(
            PREFIX + "stage_duration_seconds",
            "Of a scoring request: waiting for a thread (queue), the feature store (lookup), the model (predict).",
            ("stage",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._features = Counter(
            PREFIX + "feature_vectors",
            "Entities looked up, by what the feature store had: complete, not_found, stale, null_feature.",
            ("status",),
            registry=self.registry,
        )
        self._excluded = Counter(
            PREFIX + "entities_excluded", "Entities without a score, by reason.", ("reason",), registry=self.registry
        )
        self._age = Histogram(
            PREFIX + "feature_age_seconds",
            "Since the event time of the oldest row that a request used.",
            buckets=AGES,
            registry=self.registry,
        )

    def read_at_each_scrape(self, collector: Collector) -> None:
        """Also tell what `collector` collects."""
        self.registry.register(collector)

    def answered(self, route: str, method: str, status: int, duration_s: float) -> None:
        """A request ended."""
        self._requests.labels(route, method, status).inc()
        self._durations.labels(route).observe(duration_s)

    def looked_up(self, stages: Stages, now_s: float) -> None:
        """A scoring request ended, well or not; `now_s` is the time in seconds since 1970."""
        for name, began, ended in stages.finished():
            self._stages.labels(name).observe(ended - began)
        if stages.online is None:
            return
        for status, count in _tally(stages.online.reasons).items():
            self._features.labels(status or "complete").inc(count)
        if stages.online.oldest_s is not None:
            self._age.observe(now_s - stages.online.oldest_s)

    def scored(self, scores: Scores) -> None:
        """Entities got their scores, or none."""
        if scores.predictions.null_count == 0:
            return
        for reason, count in _tally(scores.reasons).items():
            if reason is not None and not reason.startswith(IMPUTED):
                self._excluded.labels(reason).inc(count)


def _tally(reasons: pa.Array) -> dict[str | None, int]:
    if reasons.null_count == len(reasons):  # nearly always, and a hundred times faster
        return {None: len(reasons)}
    return Tally(reasons.to_pylist())
