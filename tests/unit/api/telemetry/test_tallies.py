"""What is counted without prometheus_client's locks reads as what it would have counted."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.registry import Collector

from api.telemetry.metrics import Distribution, Tally

BOUNDS = (0.001, 0.0025, 0.5, 1.0)
ROUTES = st.sampled_from(["/inference", "/scores", 'a "b"\\c'])
SECONDS = st.floats(0, 10) | st.sampled_from(BOUNDS)


def told(register: Any) -> list[str]:
    """What a scrape reads, without the sums, which differ in their last bits."""
    registry = CollectorRegistry()
    register(registry)
    return sorted(line for line in generate_latest(registry).decode().splitlines() if "_sum" not in line)


def registered(collector: Collector) -> Any:
    return lambda registry: registry.register(collector)


@given(st.lists(st.tuples(ROUTES, SECONDS)))
def test_a_distribution_reads_as_a_histogram_of_the_client(observed: list[tuple[str, float]]) -> None:
    disable_created_metrics()
    ours = Distribution("took_seconds", "How long.", "route", BOUNDS)
    for route, seconds in observed:
        ours.add(seconds, route)

    def theirs(registry: CollectorRegistry) -> None:
        histogram = Histogram("took_seconds", "How long.", ("route",), buckets=BOUNDS, registry=registry)
        for route, seconds in observed:
            histogram.labels(route).observe(seconds)

    assert told(registered(ours)) == told(theirs)


@given(st.lists(st.tuples(ROUTES, st.sampled_from(["200", "503"]))))
def test_a_tally_reads_as_a_counter_of_the_client(counted: list[tuple[str, str]]) -> None:
    disable_created_metrics()
    ours = Tally("requests", "Answered.", ("route", "status"))
    for labels in counted:
        ours.add(*labels)

    def theirs(registry: CollectorRegistry) -> None:
        counter = Counter("requests", "Answered.", ("route", "status"), registry=registry)
        for labels in counted:
            counter.labels(*labels).inc()

    assert told(registered(ours)) == told(theirs)


def test_the_sum_of_a_distribution_is_that_of_its_observations() -> None:
    ours = Distribution("took_seconds", "How long.", "route", BOUNDS)
    for seconds in (0.25, 0.5, 4.0):
        ours.add(seconds, "/scores")

    def sums() -> Iterator[float]:
        for family in ours.collect():
            yield from (sample.value for sample in family.samples if sample.name.endswith("_sum"))

    assert list(sums()) == [4.75]
