"""The prediction log of an API on a fake model: which rows are written, and what happens when they can't be."""

import datetime as dt
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from litestar.testing import TestClient

from api.inference import micro_batch
from api.telemetry import prediction_log
from scoring.errors import FeatureStoreError
from scoring.files.location import Location
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeScorer, features
from tests.support.servers import wait_until


@pytest.fixture(autouse=True)
def _convert_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "CONVERT_EVERY_S", 0.01)


def logged(folder: Path) -> pa.Table:
    return ds.dataset(folder, partitioning="hive").to_table().sort_by([("__request_id", "ascending")])


def ask(client: TestClient[Any], request_id: str, *drivers: int) -> Any:
    return client.post("/scores", json={"request_id": request_id, "driver_ids": drivers})


def metrics(client: TestClient[Any], result: str) -> float:
    line = f'serving_prediction_log_rows_total{{result="{result}"}} '
    return float(client.get("/metrics").text.partition(line)[2].partition("\n")[0])


def test_each_entity_of_a_request_is_a_row(tmp_path: Path) -> None:
    with api(prediction_log=Location(tmp_path)) as client:
        ask(when_ready(client), "a", 1, 2)
        ask(client, "b", 3)

    rows = logged(tmp_path)
    assert rows["__request_id"].to_pylist() == ["a", "a", "b"]
    assert rows["driver_id"].to_pylist() == [1, 2, 3]
    assert rows["prediction"].to_pylist() == [1.0, 2.0, 3.0]
    assert rows["model_name"].to_pylist() == ["ranker"] * 3
    assert rows["model_version"].to_pylist() == [1] * 3
    assert rows["__role"].to_pylist() == ["champion"] * 3
    assert set(rows["__problem"].to_pylist()) == {None}
    assert all(latency > 0 for latency in rows["__latency_ms"].to_pylist())
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"date={rows['__log_date'][0]}"


def test_a_request_that_fails_is_logged_with_its_problem(tmp_path: Path) -> None:
    scorer = FakeScorer()
    with api(scorer, prediction_log=Location(tmp_path)) as client:
        when_ready(client)
        scorer.lookup_error = FeatureStoreError("reading", "gone")
        assert ask(client, "a", 1, 2).status_code == 503

    rows = logged(tmp_path)
    assert rows["__problem"].to_pylist() == ["feature-store-failed"] * 2
    assert rows["prediction"].null_count == 2


def test_a_file_is_written_after_so_many_rows_or_seconds(tmp_path: Path) -> None:
    with api(prediction_log=Location(tmp_path), prediction_log_rows=3, prediction_log_seconds=1.0) as client:
        when_ready(client)
        ask(client, "a", 1, 2, 3)
        wait_until(lambda: list(tmp_path.rglob("*.parquet")), "a file", 0.9)
        ask(client, "b", 1)
        wait_until(lambda: len(list(tmp_path.rglob("*.parquet"))) == 2, "another file", 10)
        wait_until(lambda: metrics(client, "written") == 4, "the metric", 5)


def test_only_the_sampled_requests_are_logged(tmp_path: Path) -> None:
    names = [f"request-{number}" for number in range(400)]
    for _ in range(2):
        with api(prediction_log=Location(tmp_path), prediction_log_sample=0.5) as client:
            when_ready(client)
            for name in names:
                ask(client, name, 1)

    rows = logged(tmp_path)["__request_id"].to_pylist()
    assert 150 < len(set(rows)) < 250
    assert len(rows) == 2 * len(set(rows))  # the same requests in each process


def test_a_folder_that_takes_no_files_fails_no_request_and_what_is_dropped_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "LONGEST_PAUSE_S", 0.05)
    (tmp_path / "file").touch()
    fields = {"prediction_log": Location(tmp_path / "file" / "x"), "prediction_log_rows": 2}
    with api(**fields, prediction_log_seconds=0.1) as client:
        when_ready(client)
        for number in range(8):
            assert ask(client, str(number), 1, 2).status_code == 200
            time.sleep(0.02)
        wait_until(lambda: metrics(client, "dropped") >= 10, lambda: client.get("/metrics").text, 10)
        (tmp_path / "file").unlink()
        wait_until(lambda: metrics(client, "written") > 0, "recovery", 10)
        dropped = metrics(client, "dropped")

    rows = logged(tmp_path / "file" / "x")
    assert rows.num_rows == 16 - dropped
    assert rows["__request_id"].to_pylist()[-1] == "7"  # the oldest are dropped


def test_records_beyond_the_bound_are_dropped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_log, "CONVERT_EVERY_S", 30)
    monkeypatch.setattr(prediction_log, "MAX_RECORDED_ROWS", 4)
    with api(prediction_log=Location(tmp_path)) as client:
        when_ready(client)
        for number in range(5):
            ask(client, str(number), 1, 2)
        assert metrics(client, "dropped") == 4

    assert logged(tmp_path).num_rows == 6


def test_a_request_that_arrow_has_no_value_for_does_not_affect_others(tmp_path: Path) -> None:
    link = features(request_inputs={"at": pa.timestamp("ns")})
    with api(FakeScorer(link=link), prediction_log=Location(tmp_path), prediction_log_seconds=0.1) as client:
        when_ready(client)
        for number, year in enumerate([2026, 9999, 2027, 9998, 2028]):
            body = {"request_id": str(number), "driver_ids": [1], "at": f"{year}-01-01T00:00:00Z"}
            assert client.post("/scores", json=body).status_code == 200
        wait_until(lambda: metrics(client, "dropped") == 2, lambda: client.get("/metrics").text, 5)

    assert logged(tmp_path)["__request_id"].to_pylist() == ["0", "2", "4"]


def test_a_day_that_is_written_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = [dt.datetime(2026, 11, day, tzinfo=dt.UTC) for day in (29, 30)]
    monkeypatch.setattr(micro_batch, "datetime", Mock(now=lambda _: days[0]))
    monkeypatch.setattr(prediction_log, "LONGEST_PAUSE_S", 0.05)
    (tmp_path / "date=2026-11-30").touch()
    with api(prediction_log=Location(tmp_path), prediction_log_seconds=0.1) as client:
        ask(when_ready(client), "a", 1)
        days.pop(0)
        ask(client, "b", 1)
        wait_until(lambda: metrics(client, "written") == 1, lambda: client.get("/metrics").text, 5)
        (tmp_path / "date=2026-11-30").unlink()

    assert logged(tmp_path)["__request_id"].to_pylist() == ["a", "b"]
