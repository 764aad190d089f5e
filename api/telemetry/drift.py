"""Metrics of drift: the rows that were logged in the last hour, compared with the baseline of the version that serves.

Measured by the thread that writes the prediction log, after it has written a file.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence

import pyarrow as pa
from prometheus_client.core import GaugeMetricFamily, Metric

from api.model.model_slot import Served
from scoring.monitoring.baseline import log_columns
from scoring.monitoring.drift import ColumnDrift, Observed, merged
from scoring.monitoring.log_files import answered

PREFIX = "serving_drift_"
# Rows of the same slot are counted together, so that memory does not depend on the number of files.
WINDOW_S, SLOT_S = 3600.0, 60.0
MOST_COLUMNS = 100
LABELS = ("column", "kind")


class DriftMetrics:
    """Drift in the last hour of one version's rows. `follow` and `add` are called by one thread."""

    def __init__(self) -> None:
        """Know no version yet."""
        self._served: Served | None = None
        self._slots: deque[tuple[float, Observed]] = deque()
        self._measured: tuple[float, Sequence[ColumnDrift]] = 0.0, ()

    def follow(self, served: Served) -> None:
        """Forget the rows of the version that served before this one."""
        if self._served is not served:
            self._served, self._measured = served, (0.0, ())
            self._slots.clear()

    def add(self, served: Served, rows: pa.Table) -> None:
        """Count logged rows of the version that serves."""
        self.follow(served)
        features, baseline = served.scorer.features, served.scorer.baseline
        if baseline is None:
            return
        now = time.monotonic()
        if not self._slots or now - self._slots[-1][0] >= SLOT_S:
            self._slots.append((now, Observed(baseline)))
        while now - self._slots[0][0] >= WINDOW_S:
            self._slots.popleft()
        columns = list(log_columns(features, rows.schema).items())[:MOST_COLUMNS]
        logged = answered(rows)
        if logged.num_rows:
            self._slots[-1][1].add(pa.table({name: logged[column] for name, column in columns}))
        self._measured = now, merged([slot for _, slot in self._slots]).drifts()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that were measured last, if that was in the last hour."""
        about = {
            "psi": "Population stability index of a column relative to its baseline.",
            "null_ratio": "Fraction of the rows in which a column is null.",
            "new_category_ratio": "Fraction of a column's values that its baseline does not have.",
        }
        families = {name: GaugeMetricFamily(PREFIX + name, text, labels=LABELS) for name, text in about.items()}
        (measured_at, drifts), served = self._measured, self._served
        inputs = served.scorer.features.signature.names if served else ()
        for each in drifts if time.monotonic() - measured_at < WINDOW_S else ():
            labels = each.column, "feature" if each.column in inputs else "output"
            values = {"psi": each.psi, "null_ratio": each.nulls, "new_category_ratio": each.new}
            for name, value in values.items():
                if value is not None:
                    families[name].add_metric(labels, value)
        yield from families.values()
