"""Counts of every request, for Prometheus: kept on the event loop, so without the locks of its client's own metrics.

Those take as long for each request as decoding it (prometheus_client 0.22: a lock for each bucket, sum and count).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]


class Tally(Collector):
    """A counter with labels."""

    def __init__(self, name: str, description: str, labels: Labels) -> None:
        """Args: as a Counter of prometheus_client has them."""
        self._about = name, description
        self._labels = labels
        self._counts: defaultdict[Labels, int] = defaultdict(int)

    def add(self, *values: str) -> None:
        """One more with these values of the labels."""
        self._counts[values] += 1

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric(values, count)
        yield family


class Distribution(Collector):
    """A histogram with labels."""

    def __init__(self, name: str, description: str, labels: Labels, bounds: Sequence[float]) -> None:
        """Args: as a Histogram of prometheus_client has them; `bounds` in ascending order, without infinity."""
        self._about = name, description
        self._labels = labels
        self._bounds = bounds
        self._counts: defaultdict[Labels, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self._sums: defaultdict[Labels, float] = defaultdict(float)

    def add(self, value: float, *values: str) -> None:
        """One observation with these values of the labels."""
        self._counts[values][bisect_left(self._bounds, value)] += 1
        self._sums[values] += value

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        ends = [floatToGoString(each) for each in (*self._bounds, float("inf"))]  # type: ignore[no-untyped-call]
        for values, counts in self._counts.items():
            family.add_metric(values, list(zip(ends, accumulate(counts), strict=True)), self._sums[values])
        yield family
