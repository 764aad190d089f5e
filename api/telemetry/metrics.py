"""What Prometheus is told: counted here as requests end, the rest read from the parts that know it at each scrape."""

import collections
import functools

import prometheus_client.values
from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, PlatformCollector
from prometheus_client import ProcessCollector as ProcessFacts
from prometheus_client.registry import Collector

from api.inference.micro_batch import PendingRequest
from api.model.scorer import RowScores
from api.telemetry.tallies import Distribution, Tally
from scoring.predict import IMPUTED

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
        self._answered = Tally(PREFIX + "requests", "Requests answered.", ("route", "method", "status"))
        self._took = Distribution(
            PREFIX + "request_duration_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            SECONDS,
        )
        self._stages = Distribution(
            PREFIX + "stage_duration_seconds",
            "How long a request waited to be worked on (queue); how long each lookup in the feature store and each "
            "prediction took, for the requests merged in it.",
            ("stage",),
            SECONDS,
        )
        for counted in (self._answered, self._took, self._stages):
            self.registry.register(counted)
        self.in_flight = 0
        """Requests being answered."""
        gauge = Gauge(PREFIX + "requests_in_flight", "Requests being answered.", registry=self.registry)
        gauge.set_function(lambda: self.in_flight)
        self._merged = Histogram(
            PREFIX + "merged_requests",
            "Requests that were looked up and predicted together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self.registry,
        )
        features = Counter(
            PREFIX + "feature_vectors",
            "Entities looked up, by what the feature store had: complete, not_found, stale, null_feature.",
            ("status",),
            registry=self.registry,
        )
        # Finding a labelled metric costs as much as counting with it. Statuses are few.
        self._feature_status = functools.cache(features.labels)
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
        """Also export what `collector` collects."""
        self.registry.register(collector)

    def answered(self, route: str, method: str, status: int, duration_s: float) -> None:
        """A request ended."""
        self._answered.add(route, method, str(status))
        self._took.add(duration_s, route)

    def worked_on(self, pending: PendingRequest, now_s: float) -> None:
        """A scoring request ended, well or not; `now_s` is the time in seconds since 1970."""
        batch = pending.batch
        if batch is None:
            return
        self._stages.add(batch.started_at - pending.queued_at, "queue")
        if batch.counted or batch.looked_up_at is None or batch.online is None:
            return
        batch.counted = True
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

    def scored(self, scores: RowScores) -> None:
        """Entities got their scores, or none."""
        if None not in scores.values:
            return
        for reason, count in collections.Counter(scores.reasons).items():
            if reason is not None and not reason.startswith(IMPUTED):
                self._excluded.labels(reason).inc(count)
