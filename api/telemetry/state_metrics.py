"""The state of the model slot and of the feature store as metrics, read at each scrape."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.model.model_slot import ModelSlot
from api.model.store_health import Breaker
from api.telemetry.metrics import PREFIX


class ServingState(Collector):
    """What serves, how it came to, and whether the feature store answers."""

    def __init__(self, slot: ModelSlot, breaker: Breaker) -> None:
        self._slot = slot
        self._breaker = breaker

    def collect(self) -> Iterator[Metric]:
        """One sample each; those of a model that does not serve yet, or of a poll that never was, are left out."""
        slot, breaker = self._slot, self._breaker
        model = GaugeMetricFamily(
            PREFIX + "model_info", "The model version that serves: always 1.", labels=("name", "version")
        )
        if slot.served is not None:
            version = slot.served.scorer.version
            model.add_metric((version.name, str(version.version)), 1)
        yield model
        yield CounterMetricFamily(PREFIX + "model_swaps", "Model versions swapped in, the first too.", slot.swaps)
        yield CounterMetricFamily(PREFIX + "model_refusals", "Attempts to load that were refused.", slot.refusals)
        yield GaugeMetricFamily(
            PREFIX + "model_refused", "1 while the version that the alias names can't serve.", int(bool(slot.refusal))
        )
        age = GaugeMetricFamily(
            PREFIX + "registry_last_answer_age_seconds", "Since the registries last said what should serve."
        )
        if (age_s := slot.poll_age_s()) is not None:
            age.add_metric((), age_s)
        yield age
        yield GaugeMetricFamily(
            PREFIX + "breaker_open",
            "1 while requests are not let through to the feature store.",
            int(not breaker.state.usable),
        )
        yield CounterMetricFamily(PREFIX + "breaker_opened", "How often that began.", breaker.opened)
