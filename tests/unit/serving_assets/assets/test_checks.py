import datetime as dt

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from scoring.batch.manifest import ScoringSummary
from scoring.batch.quality import SourceAge
from scoring.files.transfer import Content
from serving_assets.assets.checks import DRIFT, FINITE, NULLS, ROWS, Finding, NotPublished, results, stop_if_blocked
from serving_assets.assets.inspection import (
    EarlierPredictions,
    columns_finding,
    drift_finding,
    finite_finding,
    fresh_finding,
    rates_finding,
    rows_finding,
)
from tests.support.fakes import features

NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
INPUTS = features(request_inputs={"speed": pa.float64(), "age": pa.int32()})


def outcome(reasons):
    return ScoringSummary(Content("batch_input.parquet", 1, "0"), "exclude", {}, 10, 8, reasons, {})


def test_a_lost_row_is_found():
    assert not rows_finding(10, 9).passed
    assert rows_finding(10, 9).summary == "10 rows in the request, 9 in the file"


def test_missing_and_mistyped_inputs_are_named():
    found = columns_finding(pa.schema([("age", pa.int64())]), INPUTS)

    assert not found.passed
    assert found.summary == "speed is missing; age is int64, not int32"
    assert columns_finding(INPUTS.signature.schema, INPUTS).passed


def test_predictions_that_are_nan_fail_the_check_and_rows_without_one_do_not():
    assert finite_finding(outcome({"not_found": 2})).passed
    assert finite_finding(outcome({"not_finite": 2})).summary == "2 of 10 predictions are NaN, infinite or null"
    assert not finite_finding(outcome({"not_finite": 2})).passed
    failed = finite_finding(outcome({"model_failed": 3}))
    assert failed.passed
    assert failed.summary.endswith("are NaN, infinite or null; the model failed on 3 more rows")


def test_features_over_the_limit_are_named_with_their_share():
    found = rates_finding(NULLS, {"speed": 30, "age": 5}, 100, 0.1, "missing")

    assert not found.passed
    assert found.summary == "missing: speed 30.0% of 100 rows (10.0% allowed)"
    assert rates_finding(NULLS, {"speed": 10}, 100, 0.1, "missing").passed
    assert rates_finding(NULLS, {"speed": 0}, 0, 0.1, "missing").passed


def test_a_source_older_than_its_time_to_live_is_found_and_the_setting_takes_precedence():
    ages = [SourceAge("stats", NOW - dt.timedelta(hours=30), ttl_s=86400.0)]

    assert not fresh_finding(ages, None, NOW).passed
    summary = "stats: newest event 2026-11-21T06:00:00+00:00, 30.0 h old (24.0 h allowed)"
    assert fresh_finding(ages, None, NOW).summary == summary
    assert fresh_finding(ages, 40 * 3600, NOW).passed
    assert fresh_finding([SourceAge("stats", None, 1.0)], None, NOW).passed


def test_drift_is_reported_with_the_output_that_it_is_relative_to():
    values = np.random.default_rng(1).normal(0, 1, 500)

    def found(earlier, now):
        before = EarlierPredictions("old/batch_output.parquet", {"prediction": pa.array(earlier)})
        return drift_finding(before, {"prediction": pa.array(now)}, 0.25)

    assert drift_finding(None, {"prediction": pa.array(values)}, 0.25).passed
    assert "too few" in found(values[:10], values).summary
    shifted = found(values, values + 2)
    assert (shifted.check, shifted.passed) == (DRIFT, False)
    assert shifted.summary.startswith("population stability index ")
    assert f"relative to old/batch_output.parquet; mean {np.mean(values + 2):.4g} (before: " in shifted.summary
    labels = found(["gold"] * 150 + ["silver"] * 50, ["gold"] * 60 + ["silver"] * 140)
    assert (labels.passed, labels.summary.rpartition("; ")[2]) == (False, "share of 'gold' 30.0% (before: 75.0%)")
    assert "share of False 50.0% (before: 100.0%)" in found([False] * 100, [False] * 50 + [True] * 50).summary
    unlike = found(values, ["gold"] * 500)
    assert unlike.passed
    assert "no output has the name and type of one in old/batch_output.parquet" in unlike.summary


def test_the_largest_drift_of_several_outputs_is_reported_and_named():
    values = np.random.default_rng(1).normal(0, 1, 500)
    before = {name: pa.array(values) for name in ("prediction_a", "prediction_b", "prediction_gone")}
    now = {"prediction_a": pa.array(values), "prediction_b": pa.array(values + 2), "prediction_new": pa.array(values)}

    found = drift_finding(EarlierPredictions("old", before), now, 0.25)

    assert not found.passed
    assert " of prediction_b, the largest of 2 outputs (0.25 allowed) relative to old; mean " in found.summary


def test_only_blocking_checks_prevent_publication():
    stop_if_blocked("day1", [Finding(ROWS, True, "same"), Finding(NULLS, False, "many")])

    with pytest.raises(
        NotPublished, match=r"day1 was not published because a blocking check failed.*finite: 2 are NaN"
    ):
        stop_if_blocked("day1", [Finding(FINITE, False, "2 are NaN"), Finding(NULLS, False, "many")])


def test_a_result_over_several_requests_names_those_that_failed_first():
    found = {
        "day1": [Finding(NULLS, True, "few")],
        "day2": [Finding(NULLS, False, "many"), Finding(ROWS, True, "same")],
        "day3": [Finding(NULLS, False, "all")],
    }

    rows, nulls = results("batch_input", (ROWS, NULLS, FINITE), found)

    assert (nulls.passed, nulls.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert nulls.description == "failed in 2, passed in 1 of 3 requests. day2: many; day3: all"
    table = ["| day2 | failed | many |", "| day3 | failed | all |", "| day1 | passed | few |"]
    assert nulls.metadata["found"].value.splitlines()[2:] == table
    assert (rows.passed, rows.severity, rows.description) == (True, dg.AssetCheckSeverity.ERROR, "same")


def test_a_result_over_a_whole_run_lists_every_request_and_names_a_few_in_its_description():
    (nulls,) = results("batch_input", (NULLS,), {f"r{i:03}": [Finding(NULLS, True, "few")] for i in range(250)})

    assert nulls.description.startswith("passed in 250 of 250 requests. r000: few; r001: few")
    assert nulls.description.endswith("; and 245 more")
    assert len(nulls.metadata["found"].value.splitlines()) == 252
