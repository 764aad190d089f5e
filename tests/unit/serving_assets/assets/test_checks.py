import datetime as dt

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from scoring.batch.manifest import ScoringSummary
from scoring.batch.quality import SourceAge
from scoring.files.transfer import Content
from scoring.monitoring.drift import describe_all
from scoring.settings import Settings
from serving_assets.assets.checks import (
    BASELINE,
    DRIFT,
    FINITE,
    NULLS,
    ROWS,
    Finding,
    NotPublished,
    results,
    stop_if_blocked,
)
from serving_assets.assets.inspection import (
    columns_finding,
    drift_finding,
    finite_finding,
    fresh_finding,
    observe,
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


VALUES = np.random.default_rng(1).normal(0, 1, 500)


def found(earlier, now):
    baseline = describe_all(pa.table(earlier), "old/batch_output.parquet")
    return drift_finding(DRIFT, observe(baseline, pa.table(now)), features(), Settings(model_name="m"))[0]


def test_drift_is_reported_with_what_it_is_relative_to():
    shifted = found({"prediction": VALUES}, {"prediction": VALUES + 2})

    assert (shifted.check, shifted.passed) == (DRIFT, False)
    assert shifted.summary.startswith("prediction has PSI ")
    assert shifted.summary.endswith("(0.25 allowed); relative to: old/batch_output.parquet")
    assert not found({"prediction": ["a"] * 150 + ["b"] * 50}, {"prediction": ["a"] * 60 + ["b"] * 140}).passed


@pytest.mark.parametrize(
    ("now", "summary"),
    [
        (VALUES, "largest PSI 0.000 (prediction)"),
        (VALUES[:10], "too few values to measure PSI: 100 are needed"),
        (VALUES[:0], "there are no rows to compare"),
        (["gold"] * 500, "no column has the name and type of one in the baseline: nothing is compared"),
    ],
)
def test_a_passed_drift_check_describes_its_result(now, summary):
    same = found({"prediction": VALUES}, {"prediction": now})

    assert same.passed
    assert same.summary == f"{summary}; relative to: old/batch_output.parquet"


def test_columns_that_are_not_compared_are_named_unless_their_type_is_never_measured():
    times = pa.array([0] * 500, pa.timestamp("us"))
    same = found({"x": VALUES, "y": VALUES}, {"x": VALUES, "y": ["a"] * 500, "z": VALUES, "at": times})

    assert same.passed
    uncompared = "not in the baseline, or of another type: y, z"
    assert same.summary == f"largest PSI 0.000 (x); {uncompared}; relative to: old/batch_output.parquet"


@pytest.mark.parametrize(("check", "summary"), [(DRIFT, "no earlier output"), (BASELINE, "log one with the model")])
def test_without_a_baseline_the_check_passes_and_names_the_reason(check, summary):
    passed, _ = drift_finding(check, None, features(), Settings(model_name="m"))

    assert passed.passed
    assert summary in passed.summary


def test_features_and_outputs_have_their_own_thresholds():
    settings = Settings(model_name="m", max_feature_drift=100.0)
    baseline = describe_all(pa.table({"x": VALUES, "prediction": VALUES}))
    observed = observe(baseline, pa.table({"x": VALUES + 2, "prediction": VALUES + 2}))

    reported, _ = drift_finding(BASELINE, observed, features(request_inputs={"x": pa.float64()}), settings)

    assert "prediction has PSI" in reported.summary
    assert "x has PSI" not in reported.summary


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
