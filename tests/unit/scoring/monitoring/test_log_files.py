"""Files of the prediction log: damaged ones are named, and failed requests are not measured."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.errors import FeastObjectNotFoundException

from scoring.errors import StorageError
from scoring.files.location import Location
from scoring.monitoring import baseline
from scoring.monitoring.baseline import measure_log
from scoring.monitoring.feast_log import COPIED, copy_to_feast
from scoring.monitoring.log_files import fetch_log
from tests.support.fakes import features

ROWS = 150
LINK = features(request_inputs={"x": pa.float64()})


def logged(*, problem: str | None = None, rows: int = ROWS) -> pa.Table:
    constants = {"model_name": "m", "model_version": 1, "feature_service": "s", "__role": "champion", "__policy": "{}"}
    columns = {name: [value] * rows for name, value in constants.items()}
    columns |= {name: [0.5] * rows for name in ("x", "prediction", "__log_timestamp", "__request_id", "__latency_ms")}
    table = pa.table(columns | {"__problem": pa.array([problem] * rows, pa.string())})
    return table.replace_schema_metadata({b"serving:request_columns": b'["x"]'})


@pytest.fixture
def day(tmp_path: Path) -> Path:
    folder = tmp_path / "day"
    folder.mkdir()
    pq.write_table(logged(), folder / "a.parquet")
    return folder


def measured(day: Path) -> baseline.Baseline:
    scratch = day.parent / "scratch"
    scratch.mkdir()
    return measure_log(fetch_log(Location(day), scratch), LINK, "day")


def damage_pages(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 3000 + content[3004:])


def damage_end(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def rewrite(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda file: pq.write_table(change(pq.read_table(file)), file)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_pages, ""),
        (damage_end, ""),
        (lambda file: file.write_bytes(b""), ""),
        (rewrite(lambda rows: rows.replace_schema_metadata(None)), "it lacks serving:request_columns$"),
        (rewrite(lambda rows: rows.replace_schema_metadata({b"serving:request_columns": b"x"})), "JSON is malformed"),
        (rewrite(lambda rows: rows.drop_columns("x")), "it lacks x$"),
        (rewrite(lambda rows: rows.drop_columns("__problem")), "it lacks __problem$"),
        (rewrite(lambda rows: rows.select(["x"])), "it lacks __latency_ms, "),
        (rewrite(lambda rows: rows.slice(0, 0)), "it has no rows$"),
    ],
    ids=["pages", "end", "no bytes", "no metadata", "bad metadata", "no key", "no column", "foreign", "no rows"],
)
def test_a_damaged_file_is_named(day: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(day / "a.parquet")

    with pytest.raises(StorageError, match=f"^Reading {day}/a.parquet failed: {reason}"):
        measured(day)


def test_a_first_day_with_a_file_of_failed_requests_is_measured_without_them(day: Path) -> None:
    pq.write_table(logged(problem="deadline-exceeded"), day / "b.parquet")

    found = measured(day)

    assert (found.rows, found.columns["x"].values, found.columns["prediction"].nulls) == (ROWS, ROWS, 0)


@pytest.mark.parametrize(
    "values",
    [pa.array([1] * ROWS), pa.array([1.0] * ROWS, pa.float32()), pa.array([True] * ROWS)],
    ids=["integers", "32-bit floats", "booleans"],
)
def test_a_first_day_on_which_the_type_of_a_feature_changed_is_measured(day: Path, values: pa.Array) -> None:
    rows = logged()
    pq.write_table(rows.set_column(rows.column_names.index("x"), "x", values), day / "b.parquet")

    found = measured(day)

    assert (found.rows, found.columns["x"].values) == (2 * ROWS, 2 * ROWS)
    assert found.columns["x"].edges is not None
    assert 0.5 in found.columns["x"].edges
    assert found.columns["prediction"].values == 2 * ROWS


def test_a_first_day_of_failed_requests_has_no_rows(day: Path) -> None:
    pq.write_table(logged(problem="deadline-exceeded"), day / "a.parquet")

    assert measured(day).rows == 0


class Store:
    """A feature store with one feature service, or none."""

    def __init__(self, service: Any) -> None:
        self._service = service

    def get_feature_service(self, name: str) -> Any:
        if self._service is None:
            raise FeastObjectNotFoundException(name)
        return self._service


@pytest.mark.parametrize("record", [b"", b"{", b"null", b'{"a": 1}', b'["\xff"]'])
def test_a_damaged_record_of_what_feast_has_is_named_and_read_only_with_a_logging_config(
    day: Path, tmp_path: Path, record: bytes
) -> None:
    (day / COPIED).write_bytes(record)
    files = fetch_log(Location(day), tmp_path)

    for service in (None, SimpleNamespace(logging_config=None)):
        assert copy_to_feast(Store(service), Location(day), files) == 0  # type: ignore[arg-type]
    store = Store(SimpleNamespace(logging_config=SimpleNamespace(sample_rate=1.0)))
    with pytest.raises(StorageError, match=f"^Reading {day}/{COPIED} failed: "):
        copy_to_feast(store, Location(day), files)  # type: ignore[arg-type]
