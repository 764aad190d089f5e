"""The metrics of drift: a window of an hour over the rows of the version that serves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from api.telemetry import drift
from api.telemetry.drift import SLOT_S, WINDOW_S, DriftMetrics
from scoring.files.location import Location
from scoring.monitoring.drift import Baseline, describe_all
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeScorer, features
from tests.support.servers import wait_until

HALF, FULL = np.linspace(0, 0.5, 200), np.linspace(0, 1, 200)


def served(baseline: Baseline | None, *, inputs: int = 1) -> Any:
    names = [f"x{number}" for number in range(inputs)]
    link = features(request_inputs=dict.fromkeys(names, pa.float64()))
    return SimpleNamespace(scorer=SimpleNamespace(features=link, baseline=baseline))


def rows(values: np.ndarray, *, inputs: int = 1) -> pa.Table:
    names = [f"x{number}" for number in range(inputs)]
    columns: dict[str, Any] = dict.fromkeys(names, values) | {"prediction": values}
    table = pa.table(columns | {"__problem": pa.nulls(len(values), pa.string())})
    listed = str(names).replace("'", '"')
    return table.replace_schema_metadata({b"serving:request_columns": listed.encode()})


def samples(metrics: DriftMetrics) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name.removeprefix(drift.PREFIX), sample.labels["kind"], sample.labels["column"]): sample.value
        for family in metrics.collect()
        for sample in family.samples
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    found = SimpleNamespace(now=1e6)
    monkeypatch.setattr(drift, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


@pytest.fixture
def version() -> Any:
    return served(describe_all(pa.table({"x0": FULL, "prediction": FULL})))


def test_rows_count_for_an_hour_and_in_slots(clock: SimpleNamespace, version: Any) -> None:
    metrics = DriftMetrics()
    metrics.add(version, rows(HALF))
    assert samples(metrics)["psi", "feature", "x0"] > 1
    assert samples(metrics)["psi", "output", "prediction"] > 1

    for _ in range(2 * int(WINDOW_S / SLOT_S) - 1):
        clock.now += SLOT_S / 2
        metrics.add(version, rows(FULL))
    assert 0 < samples(metrics)["psi", "feature", "x0"] < 0.1
    clock.now += SLOT_S
    metrics.add(version, rows(FULL))
    assert samples(metrics)["psi", "feature", "x0"] == 0
    assert len(metrics._slots) <= WINDOW_S / SLOT_S
    clock.now += WINDOW_S
    assert samples(metrics) == {}


def test_another_version_starts_anew_and_one_without_a_baseline_has_no_values(version: Any) -> None:
    metrics = DriftMetrics()
    metrics.add(version, rows(HALF))
    other = served(version.scorer.baseline)
    metrics.follow(other)
    assert samples(metrics) == {}
    metrics.add(other, rows(FULL))
    assert samples(metrics)["psi", "feature", "x0"] == 0

    metrics.add(served(None), rows(FULL))
    assert samples(metrics) == {}


def test_the_number_of_columns_is_bounded() -> None:
    metrics, many = DriftMetrics(), drift.MOST_COLUMNS + 5
    names = [f"x{number}" for number in range(many)]
    metrics.add(served(describe_all(pa.table(dict.fromkeys(names, FULL))), inputs=many), rows(FULL, inputs=many))

    assert len(samples(metrics)) == 2 * drift.MOST_COLUMNS


def test_a_baseline_that_cannot_be_compared_with_does_not_end_the_prediction_log(tmp_path: Path) -> None:
    scorer = FakeScorer()
    scorer.baseline = Baseline(1, {"prediction": "crafted"})  # type: ignore[dict-item]
    with api(scorer, prediction_log=Location(tmp_path), prediction_log_seconds=0.1) as client:
        when_ready(client)
        for written in (1, 2):
            client.post("/scores", json={"request_id": str(written), "driver_ids": [1]}).raise_for_status()
            line = f'rows_total{{result="written"}} {written:.1f}'
            wait_until(lambda line=line: line in client.get("/metrics").text, "the row is written")
