"""The comparison of a challenger's rows with the champion's, and the thresholds of its promotion."""

import datetime as dt
import itertools
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.batch.quality import SAMPLED_ROWS
from scoring.errors import PromotionRefused, StorageError
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.models.outputs import ONE_NUMBER, OutputColumn, Outputs
from scoring.models.registry import ModelVersion
from scoring.monitoring.challenger import Comparison, _Pairs, compare_log
from scoring.monitoring.challenger_report import (
    SCHEMA,
    Report,
    Side,
    check_promotion,
    failed_thresholds,
    read_report,
    write_report,
)
from scoring.settings import Settings

DAY = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
LABEL = Outputs((OutputColumn("label", "string"),))
Scored = tuple[str, int, float | None]
"""Request, entity, prediction."""


def version(number: int, outputs: Outputs = ONE_NUMBER, created: dt.datetime | None = None) -> Any:
    """Return what the comparison reads of a loaded version."""
    registered = ModelVersion("m", number, created_ms=0 if created is None else int(created.timestamp() * 1000))
    model = types.SimpleNamespace(version=registered, outputs=outputs)
    return types.SimpleNamespace(model=model, features=types.SimpleNamespace(request_columns={"id": pa.int64()}))


BOTH = version(1), version(2)


def write_log(
    log: Path,
    number: int,
    rows: Sequence[tuple[str, int, Any]],
    name: str = "",
    role: str | None = None,
    latency_ms: float = 1.0,
    problem: str | None = None,
) -> None:
    """Write rows as the API does; a row without a prediction has the reason `not_found`, or the problem."""
    folder = log / f"date={DAY.date()}"
    folder.mkdir(parents=True, exist_ok=True)
    predictions = pa.array([row[2] for row in rows])
    if predictions.type == pa.null():
        predictions = predictions.cast(pa.float64())
    columns = {
        "id": pa.array([row[1] for row in rows], pa.int64()),
        "prediction": predictions,
        "reason": pa.array([None if row[2] is not None or problem else "not_found" for row in rows], pa.string()),
        "model_name": pa.repeat("m", len(rows)),
        "model_version": pa.repeat(number, len(rows)),
        "feature_service": pa.repeat("s", len(rows)),
        "__policy": pa.repeat("{}", len(rows)),
        "__role": pa.repeat(role or ("champion" if number == 1 else "challenger"), len(rows)),
        "__request_id": pa.array([row[0] for row in rows]),
        "__log_timestamp": pa.repeat(pa.scalar(DAY, pa.timestamp("us", "UTC")), len(rows)),
        "__latency_ms": pa.repeat(latency_ms, len(rows)),
        "__problem": pa.repeat(pa.scalar(problem, pa.string()), len(rows)),
    }
    table = pa.table(columns, metadata={"serving:request_columns": '["id"]'})
    pq.write_table(table, folder / f"m-{number}-{name}.parquet")


def compared(log: Path, both: Any = BOTH) -> Comparison | None:
    return compare_log(Location(log), ["2026-11-29", "2026-11-30"], both, "champion")


def report_of(log: Path, both: Any = BOTH) -> Report:
    found = compared(log, both)
    assert found is not None
    return found[0]


def test_rows_are_matched_by_request_and_entity_and_only_those_of_both_versions_count(tmp_path: Path) -> None:
    write_log(tmp_path, 1, [("a", 1, 5.0), ("a", 2, 4.0), ("b", 1, 1.0), ("b", 2, 2.0), ("c", 1, 1.0)], latency_ms=2)
    write_log(tmp_path, 1, [("a", 1, 9.0)], "other", role="canary")
    write_log(tmp_path, 3, [("a", 1, 9.0)], role="challenger")
    # In another order, in two files; it has no answer to c.
    write_log(tmp_path, 2, [("b", 2, 1.0), ("b", 1, None)], "one", latency_ms=6)
    write_log(tmp_path, 2, [("a", 2, 5.5), ("a", 1, 5.0)], "two", latency_ms=4)

    found = compared(tmp_path)
    assert found is not None
    report, predictions = found
    assert (report.source, report.name, report.rows) == ("log", "2026-11-29 to 2026-11-30", 4)
    assert (report.decisions, report.changed_decisions, report.changed_share) == (2, 1, 0.5)
    assert (report.champion, report.challenger) == (
        Side("m/1", 0, {}, 2.0, 2.0),
        Side("m/2", 1, {"not_found": 1}, 5.0, pytest.approx(5.98)),
    )
    assert (report.error_increase, report.latency_ratio) == (0.25, 2.5)
    (output,) = report.outputs
    assert [output[key] for key in ("output", "rows_that_differ", "share", "largest_change")] == [
        "prediction",
        3,
        0.75,
        1.5,
    ]
    assert predictions.summary().startswith("3 of 4 rows differ from m/1: by 1 in the median")


def test_rows_of_a_deleted_version_of_the_same_name_do_not_count(tmp_path: Path) -> None:
    for number in (1, 2):
        write_log(tmp_path, number, [("a", 1, 5.0), ("a", 2, 4.0)])

    assert report_of(tmp_path, (version(1), version(2, created=DAY))).rows == 2
    for late in (0, 1):
        created = [DAY + dt.timedelta(seconds=1) if place == late else None for place in (0, 1)]
        assert compared(tmp_path, (version(1, created=created[0]), version(2, created=created[1]))) is None


def test_a_request_that_failed_counts_with_its_problem(tmp_path: Path) -> None:
    write_log(tmp_path, 1, [("a", 1, 5.0), ("a", 2, None)])
    write_log(tmp_path, 2, [("a", 1, None), ("a", 2, None)], problem="deadline-exceeded")

    report = report_of(tmp_path)
    assert report.champion.reasons == {"not_found": 1}
    assert report.challenger.reasons == {"deadline-exceeded": 2}
    assert report.changed_share == 1


def test_an_entity_may_be_in_a_request_twice_and_ties_go_to_the_first(tmp_path: Path) -> None:
    write_log(tmp_path, 1, [("a", 1, 1.0), ("a", 1, 2.0), ("a", 3, 2.0)])
    write_log(tmp_path, 2, [("a", 3, 2.0), ("a", 1, 1.0), ("a", 1, 2.0)])

    report = report_of(tmp_path)
    assert (report.rows, report.decisions, report.changed_decisions) == (3, 1, 0)


def test_a_request_with_one_entity_has_no_decision(tmp_path: Path) -> None:
    for number in (1, 2):
        write_log(tmp_path, number, [("a", 1, float(number)), ("b", 1, None)])

    report = report_of(tmp_path)
    assert (report.rows, report.decisions, report.changed_share) == (2, 0, 0)


def test_labels_are_decisions_of_their_rows(tmp_path: Path) -> None:
    both = version(1, LABEL), version(2, LABEL)
    write_log(tmp_path, 1, [("a", 1, "gold"), ("a", 2, "tin"), ("b", 1, None), ("b", 2, None)])
    write_log(tmp_path, 2, [("a", 1, "gold"), ("a", 2, "gold"), ("b", 1, "tin"), ("b", 2, None)])

    report = report_of(tmp_path, both)
    assert (report.decision, report.decisions, report.changed_decisions) == ("label of a row", 4, 2)
    assert "median_change" not in report.outputs[0]


def test_every_decision_changes_if_only_one_version_ranks_entities(tmp_path: Path) -> None:
    write_log(tmp_path, 1, [("a", 1, 1.0), ("a", 2, 2.0)])
    write_log(tmp_path, 2, [("a", 1, "gold"), ("a", 2, "tin")])

    found = compared(tmp_path, (version(1), version(2, LABEL)))
    assert found is not None
    assert found[0].changed_share == 1
    assert found[0].outputs == []
    assert found[1].summary() == (
        "the outputs can't be compared: only m/1 has prediction (double); only m/2 has prediction (string)"
    )


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ([("other", "string"), ("x", "double")], ["gold", 1.0]),  # a label with another name
        ([("label", "int64"), ("x", "double")], [1, 1.0]),  # and of another type
        ([("label", "string"), ("x", "string")], ["gold", "1"]),  # a number that became a label
        ([("label", "string"), ("x", "double"), ("y", "double")], ["gold", 1.0, 1.0]),
    ],
)
def test_every_decision_changes_if_only_one_version_has_an_output(
    tmp_path: Path, columns: list[Any], values: list[Any]
) -> None:
    sides = [("label", "string"), ("x", "double")], columns
    both = [Outputs(tuple(OutputColumn(*each) for each in side)) for side in sides]
    for outputs, row in zip(both, (["gold", 1.0], values), strict=True):
        columns_of_file = {name: [value] * 2 for name, value in zip(outputs.names, row, strict=True)}
        table = pa.table(columns_of_file | {"reason": pa.nulls(2, pa.string())})
        pq.write_table(table, tmp_path / f"{both.index(outputs)}.parquet")
    versions = version(1, both[0]), version(2, both[1])
    with _Pairs(versions, [[tmp_path / "0.parquet"], [tmp_path / "1.parquet"]], tmp_path, logged=False) as pairs:
        report, _ = pairs.compared("batch", "day1", (1.0, 2.0))
    assert (report.rows, report.decisions, report.changed_share) == (2, 2, 1)


def test_several_numbers_without_a_ranking_have_no_decision(tmp_path: Path) -> None:
    outputs = Outputs((OutputColumn("x", "double"), OutputColumn("y", "double")))
    table = pa.table({"prediction_x": [1.0, 2.0], "prediction_y": [1.0, None], "reason": pa.nulls(2, pa.string())})
    pq.write_table(table, tmp_path / "one.parquet")
    files = [[tmp_path / "one.parquet"]] * 2
    with _Pairs((version(1, outputs), version(2, outputs)), files, tmp_path, logged=False) as pairs:
        report, _ = pairs.compared("batch", "day1", (1.0, 2.0))
    assert (report.rows, report.decisions, report.decision) == (2, 0, "none: no output is a label or ranks entities")
    assert [output["share"] for output in report.outputs] == [0, 0]
    assert (report.champion.seconds, report.challenger.seconds, report.latency_ratio) == (1.0, 2.0, None)


def test_without_rows_of_both_versions_there_is_no_report(tmp_path: Path) -> None:
    assert compared(tmp_path) is None
    write_log(tmp_path, 1, [("a", 1, 1.0)])
    assert compared(tmp_path) is None
    write_log(tmp_path, 2, [("b", 1, 1.0)])
    assert compared(tmp_path) is None


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_log(tmp_path, 1, [("a", 1, 1.0)])
    write_log(tmp_path, 2, [("a", 1, 1.0)])
    file = next(tmp_path.rglob("m-2-.parquet"))
    pages = file.read_bytes()
    start = pq.read_metadata(file).row_group(0).column(1).data_page_offset  # the predictions
    file.write_bytes(pages[:start] + b"\xff" * 20 + pages[start + 20 :])
    with pytest.raises(StorageError, match=f"^Reading {file} failed: "):
        compared(tmp_path)
    write_log(tmp_path, 2, [("a", 1, 1.0)], "other")
    pq.write_table(pq.read_table(file.with_name("m-2-other.parquet")).drop(["__problem"]), file)
    with pytest.raises(StorageError, match=f"^Reading {file} failed: .*__problem"):
        compared(tmp_path)


@pytest.mark.parametrize("key", ["entity", "filename", "file_row_number", "place", "k0", "O0", "Ms", 'a"b'])
def test_a_join_key_may_have_any_name(tmp_path: Path, key: str) -> None:
    both = version(1), version(2)
    for number, serving in enumerate(both, 1):
        serving.features.request_columns = {key: pa.int64()}
        rows = [("a", 7, 1.0), ("b", 7, 2.0), ("b", 8, 3.0)]
        write_log(tmp_path, number, rows if number == 1 else [("b", 8, 3.0), ("b", 7, 2.5)])
        file = next(tmp_path.rglob(f"m-{number}-.parquet"))
        table = pq.read_table(file)
        renamed = table.rename_columns([key, *table.column_names[1:]])
        metadata = {b"serving:request_columns": msgspec.json.encode([key])}
        pq.write_table(renamed.replace_schema_metadata(metadata), file)
    report = report_of(tmp_path, both)
    assert (report.rows, report.outputs[0]["rows_that_differ"]) == (2, 1)


def test_a_path_is_not_a_pattern(tmp_path: Path) -> None:
    for name in ("a*b", "aXb"):
        (tmp_path / name).mkdir()
        table = pa.table({"prediction": [1.0, 2.0], "reason": pa.nulls(2, pa.string())})
        pq.write_table(table, tmp_path / name / "one.parquet")
    files = [[tmp_path / "a*b" / "one.parquet"]] * 2
    with _Pairs(BOTH, files, tmp_path, logged=False) as pairs:
        assert pairs.rows == 2


SCORES = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0]), st.floats(-1e6, 1e6))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(SCORES, SCORES, st.booleans()), min_size=1, max_size=4), min_size=1, max_size=6))
def test_the_report_counts_what_a_loop_over_the_requests_counts(
    requests: list[list[tuple[float | None, float | None, bool]]],
) -> None:
    champion = [(str(request), row, each[0]) for request, rows in enumerate(requests) for row, each in enumerate(rows)]
    challenger = [
        (str(request), row, each[1])
        for request, rows in enumerate(requests)
        for row, each in enumerate(rows)
        if each[2]
    ]
    pairs = [[(a, b) for a, b, scored in rows if scored] for rows in requests]
    flat = [pair for rows in pairs for pair in rows]
    with scratch_folder() as log:
        write_log(log, 1, champion)
        write_log(log, 2, challenger or [("other", 0, 1.0)])
        found = compared(log)
        if not flat:
            assert found is None
            return
        assert found is not None
        report, batch = found[0], batch_report(log, flat)

    several = [rows for rows in pairs if len(rows) > 1]
    assert (report.decisions, report.changed_decisions) == (
        len(several),
        sum(best([a for a, _ in rows]) != best([b for _, b in rows]) for rows in several),
    )
    orders = [[compare(before[side], after[side]) for side in (0, 1)] for before, after in itertools.pairwise(flat)]
    assert (batch.decisions, batch.changed_decisions) == (len(orders), sum(a != b for a, b in orders))
    for each in (report, batch):
        assert each.rows == len(flat)
        assert each.champion.unscored == sum(a is None for a, _ in flat)
        assert each.challenger.unscored == sum(b is None for _, b in flat)
        (output,) = each.outputs
        assert output["rows_that_differ"] == sum(a != b for a, b in flat)
        sizes = [abs(b - a) for a, b in flat if a is not None and b is not None]
        if sizes:
            assert output["largest_change"] == max(sizes)
            assert output["p95_change"] == np.quantile(sizes, 0.95)


def batch_report(folder: Path, pairs: list[tuple[float | None, float | None]]) -> Report:
    for side in (0, 1):
        values = pa.array([pair[side] for pair in pairs], pa.float64())
        reasons = pa.array([None if pair[side] is not None else "not_found" for pair in pairs], pa.string())
        pq.write_table(
            pa.table({"prediction": values, "reason": reasons}), folder / f"{side}.parquet", row_group_size=2
        )
    with _Pairs(BOTH, [[folder / "0.parquet"], [folder / "1.parquet"]], folder, logged=False) as compared:
        return compared.compared("batch", "day1", (1.0, 1.0))[0]


def best(scores: list[float | None]) -> int | None:
    known = [score for score in scores if score is not None]
    return scores.index(max(known)) if known else None


def compare(before: float | None, after: float | None) -> int | None:
    return None if before is None or after is None else (after > before) - (after < before)


def test_predictions_of_a_large_log_are_a_sample_and_decisions_are_of_all_rows(tmp_path: Path) -> None:
    rows = 2 * SAMPLED_ROWS
    for side in (0, 1):
        values = pa.array(np.random.default_rng(side).random(rows))
        pq.write_table(
            pa.table({"prediction": values, "reason": pa.nulls(rows, pa.string())}), tmp_path / f"{side}.parquet"
        )
    files = [[tmp_path / "0.parquet"], [tmp_path / "1.parquet"]]
    with _Pairs(BOTH, files, tmp_path, logged=False) as pairs:
        report, predictions = pairs.compared("batch", "day1", (1.0, 1.0))
    assert (report.rows, report.decisions, predictions.current.num_rows) == (rows, rows - 1, SAMPLED_ROWS)
    assert report.changed_share == pytest.approx(0.5, abs=0.01)
    assert predictions.summary().endswith(f"(sampled from {rows} rows)")


def settings_with(**changes: Any) -> Settings:
    return Settings(model_name="m", **{"promote_min_rows": 10, "promote_max_latency_ratio": 1.5} | changes)


PASSING = Report(
    "log", "2026-11-30", DAY, 100, "label of a row", 100, 10,
    Side("m/1", 1, {}, 2.0, 3.0), Side("m/2", 2, {"not_found": 2}, 3.0, 4.0, None), [],
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, None),
        ({"rows": 9}, "only 9 rows were compared, and SERVING_PROMOTE_MIN_ROWS is 10"),
        (
            {"changed_decisions": 51},
            "the share of changed decisions is 0.51 (log 2026-11-30), and SERVING_PROMOTE_MAX_CHANGED_DECISIONS is 0.5",
        ),
        (
            {"challenger": Side("m/2", 3, {}, 2.0, 2.0)},
            "the error rate increases by 0.02 (log 2026-11-30), and SERVING_PROMOTE_MAX_ERROR_RATE_INCREASE is 0.01",
        ),
        (
            {"challenger": Side("m/2", 1, {}, 4.0, 4.0)},
            "the median latency is 2 times the champion's (log 2026-11-30), and SERVING_PROMOTE_MAX_LATENCY_RATIO is "
            "1.5",
        ),
    ],
)
def test_a_failed_threshold_is_named_with_value_and_limit(changes: dict[str, Any], failed: str | None) -> None:
    report = msgspec.structs.replace(PASSING, **changes)
    found = failed_thresholds([report], settings_with())
    assert [each for each in found if "rows were" in each or report.rows == 100] == ([failed] if failed else [])


def test_each_source_must_pass_and_their_rows_count_together() -> None:
    other = msgspec.structs.replace(PASSING, source="batch", name="day1", changed_decisions=60)
    assert failed_thresholds([PASSING, other], settings_with(promote_min_rows=200)) == [
        "the share of changed decisions is 0.6 (batch day1), and SERVING_PROMOTE_MAX_CHANGED_DECISIONS is 0.5"
    ]
    slower = msgspec.structs.replace(PASSING, challenger=Side("m/2", 1, {}, 400.0, 400.0))
    assert failed_thresholds([slower], settings_with(promote_max_latency_ratio=None)) == []


@pytest.mark.parametrize(
    "changes",
    [{"source": "batch", "champion": Side("m/1", 1, {}, None, None, 1.0)}, {"champion": Side("m/1", 1, {}, 0.0, 0.0)}],
)
def test_a_threshold_without_a_value_fails(changes: dict[str, Any]) -> None:
    report = msgspec.structs.replace(PASSING, **changes)
    found = "no median latency can be compared, and SERVING_PROMOTE_MAX_LATENCY_RATIO is 1.5"
    assert failed_thresholds([report], settings_with()) == [found]
    assert failed_thresholds([report, PASSING], settings_with()) == []


class Registered:
    """A registry with two versions of one age, the second of which is the challenger."""

    def __init__(self, created: dt.datetime) -> None:
        self._created_ms = int(created.timestamp() * 1000)

    def resolve(self, name: str, alias: str) -> ModelVersion:
        return ModelVersion(name, 2 if alias == "challenger" else 1, created_ms=self._created_ms)


def test_the_report_of_deleted_versions_of_the_same_names_allows_no_promotion(tmp_path: Path) -> None:
    settings = Settings(model_name="m", artifacts=Location(tmp_path), promote_min_rows=10)
    write_report([PASSING], Location(tmp_path / "challenger_comparison.parquet"))
    registered: Any = Registered(DAY)
    check_promotion(registered, settings, 2)
    registered_again: Any = Registered(DAY + dt.timedelta(seconds=1))
    with pytest.raises(PromotionRefused, match="has no comparison with m/1 since both were registered: materialize"):
        check_promotion(registered_again, settings, 2)


def test_the_report_is_a_file_of_one_schema_that_is_read_again(tmp_path: Path) -> None:
    place = Location(tmp_path / "report.parquet")
    assert read_report(place) == []
    write_report([PASSING], place)
    assert read_report(place) == [PASSING]
    assert pq.read_schema(tmp_path / "report.parquet").equals(SCHEMA)
    write_report([], place)
    assert read_report(place) == []
    assert pq.read_schema(tmp_path / "report.parquet").equals(SCHEMA)
    (tmp_path / "report.parquet").write_bytes(b"not parquet")
    with pytest.raises(StorageError, match=r"^Reading .*report.parquet failed: "):
        read_report(place)
    for table in (pa.table({"a": [1]}), pa.Table.from_pylist([{"source": "other"}], SCHEMA)):
        pq.write_table(table, tmp_path / "report.parquet")
        with pytest.raises(StorageError, match=r"^Reading .*report.parquet failed: .*: materialize .* again"):
            read_report(place)
