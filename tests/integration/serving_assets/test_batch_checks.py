"""The asset checks of real runs: blocking ones keep the old file, the others warn; runs over several requests."""

import datetime as dt
import hashlib
import re

import dagster as dg
import msgspec
import pandas as pd
import pytest

from scoring.files.location import Location
from scoring.monitoring.baseline import log_baseline
from serving_assets.definitions import definitions
from serving_assets.records.observations import last_seen, seen_event
from serving_assets.records.requests import list_requests
from serving_assets.resources import Serving
from tests.support.graph import Graph, driver_rows, failure, metadata
from tests.support.worlds import DRIVER_INPUTS, World, build_driver_world, register_driver_model


def register_infinite_model(world: World) -> int:
    """A version that answers infinity for each row; a made-up golden row does not refuse it for that."""
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import LinearRegression

    stats = pd.read_parquet(world.folder / "feature_repo" / "data" / "driver_stats.parquet")
    frame = stats[DRIVER_INPUTS].astype("float64")
    model = LinearRegression().fit(frame, frame["conv_rate"])
    model.intercept_ = np.inf
    return world.register(model, frame, tags={"feast.feature_service": "driver_ranking"}, promote=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_driver_world(tmp_path_factory.mktemp("drivers"))
    register_driver_model(built, alpha=0.1, promote=False)
    return built


@pytest.fixture
def graph(world, tmp_path):
    world.promote(1)
    made = Graph(world, tmp_path)
    made.write_request(driver_rows(world, [1001 + i % 20 for i in range(150)]))
    return made


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    found = [
        event.event_specific_data for event in result.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"
    ]
    return {f"{check.asset_key.to_user_string()}:{check.check_name}": check for check in found}


def test_all_checks_of_a_good_run_pass_and_report_their_findings(graph):
    found = checks(graph.run())

    assert set(found) == {
        "batch_input:rows_equal_request",
        "batch_input:columns_match_signature",
        "batch_input:null_features",
        "batch_input:stale_features",
        "batch_input:feature_source_fresh",
        "batch_input:drift_from_baseline",
        "batch_output:rows_equal_request",
        "batch_output:columns_match_signature",
        "batch_output:predictions_finite",
        "batch_output:prediction_drift",
        "batch_output:drift_from_baseline",
    }
    assert all(check.passed for check in found.values()), found
    assert found["batch_output:rows_equal_request"].description == "150 rows in the request, 150 in the file"
    assert "driver_stats: newest event" in found["batch_input:feature_source_fresh"].description


def test_infinite_predictions_are_not_published_and_the_check_reports_them(graph):
    graph.run()
    before = graph.file("batch_output.parquet").read_bytes()
    version = register_infinite_model(graph.world)

    result = graph.run(version=version)

    assert "was not published because a blocking check failed; the old file is unchanged" in failure(result)
    assert "predictions_finite: 150 of 150 predictions are NaN, infinite or null" in failure(result)
    check = checks(result)["batch_output:predictions_finite"]
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    assert graph.file("batch_output.parquet").read_bytes() == before
    assert result.asset_materializations_for_node("batch_output") == []


def test_missing_and_stale_features_warn_each_by_name_and_the_output_is_published(graph):
    world = graph.world
    late = (world.now + dt.timedelta(days=3)).isoformat()
    rows = [f"{1001 + i},{late},order-{i}" for i in range(4)] + [f"9999,{world.now.isoformat()},order-9"]
    graph.write_request(
        "\n".join(["driver_id,event_timestamp,order", *rows, driver_rows(world, [1001]).splitlines()[1]]) + "\n"
    )

    result = graph.run()

    assert result.success
    found = checks(result)
    assert found["batch_input:null_features"].severity is dg.AssetCheckSeverity.WARN
    assert "conv_rate 83.3%" in found["batch_input:null_features"].description
    assert "conv_rate 66.7%" in found["batch_input:stale_features"].description
    assert not found["batch_input:stale_features"].passed
    assert len(graph.output()) == 6


def test_thresholds_are_settings(graph):
    graph.environment |= {"SERVING_MAX_NULL_RATE": "1", "SERVING_MAX_SOURCE_AGE_S": "0.001"}
    graph.write_request(driver_rows(graph.world, [9999, 9998]))

    found = checks(graph.run())

    assert found["batch_input:null_features"].passed
    assert not found["batch_input:feature_source_fresh"].passed


def test_predictions_distributed_differently_from_the_replaced_or_else_the_latest_output_warn(graph):
    graph.run(version=1)

    same = checks(graph.run(version=1))["batch_output:prediction_drift"]
    other = checks(graph.run(version=2))["batch_output:prediction_drift"]

    assert same.passed
    assert same.description.startswith("largest PSI 0.000 (prediction)")
    assert not other.passed
    assert other.severity is dg.AssetCheckSeverity.WARN

    graph.run(version=1)
    graph.write_request(driver_rows(graph.world, [1001 + i % 20 for i in range(150)]), "day2")
    first = checks(graph.run(key="day2"))["batch_output:prediction_drift"]
    assert first.passed
    assert "artifacts/day1/batch_output.parquet" in first.description


def test_features_and_predictions_distributed_differently_from_training_warn(graph):
    version = register_driver_model(graph.world, alpha=0.03, promote=False)
    source = graph.world.client.get_model_version("driver_ranker", str(version)).source
    model_id = source.removeprefix("models:/")
    graph.run(version=version)
    trained = pd.read_parquet(graph.file("batch_output.parquet"))

    log_baseline(model_id, trained[DRIVER_INPUTS], trained["prediction"])
    same = graph.run(version=version)
    log_baseline(model_id, trained[DRIVER_INPUTS].assign(conv_rate=-1.0), trained["prediction"] + 1)
    moved = graph.run(version=version)

    for asset in ("batch_input", "batch_output"):
        found = checks(same)[f"{asset}:drift_from_baseline"]
        assert found.passed
        assert found.description.startswith("largest PSI 0.000 (")
        assert not checks(moved)[f"{asset}:drift_from_baseline"].passed
    found = checks(moved)["batch_input:drift_from_baseline"]
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert re.fullmatch(r"conv_rate has PSI \d+\.\d{3} \(0.25 allowed\); relative to: training", found.description)
    assert "prediction has PSI " in checks(moved)["batch_output:drift_from_baseline"].description
    assert "| conv_rate | " in metadata(moved, "batch_input")["drift"]


def test_the_run_has_a_plot_of_the_predictions_and_the_features_and_a_manifest(graph):
    found = metadata(graph.run(), "batch_output")

    assert found["distributions"].startswith("![Distributions](data:image/png;base64,iVBOR")
    assert len(found["distributions"]) < 60_000
    assert found["rows_per_second"] > 0
    assert found["feature_service"] == "driver_ranking"
    manifest = msgspec.json.decode(graph.file("manifest.json").read_bytes())
    assert list(manifest["outcome"]) == [  # no outputs, because it returns one number
        "batch_input", "missing_features", "impute_values", "rows", "scored", "reasons", "software",
    ]  # fmt: skip


def test_the_results_of_a_changed_request_file_are_stale_until_it_is_scored(graph):
    graph.run()
    assert not graph.stale("batch_input", "day1")
    (file,) = list_requests(Location(graph.requests))

    graph.instance.report_runless_asset_event(seen_event(file, "0" * 64))
    assert graph.stale("batch_input", "day1")
    assert graph.run().success

    assert not graph.stale("batch_input", "day1")
    assert not graph.stale("batch_output", "day1")


class ChangesAfterItWasRead(Location):
    """A request folder in which the file gets other content as soon as a run has copied it."""

    def __truediv__(self, name: str) -> Location:
        return Rewritten(self.local / name)


class Rewritten(Location):
    looks = 0

    def stamp(self) -> str:
        found = super().stamp()
        self.looks += 1
        if self.looks == 2:
            self.local.write_text(f"{self.local.read_text()}\n")
        return found


def test_a_file_that_changes_while_it_is_scored_is_recorded_as_it_was_read(graph):
    content = (graph.requests / "day1.csv").read_bytes()
    serving = Serving(graph.environment)
    folder = ChangesAfterItWasRead(graph.requests)
    serving.settings = msgspec.structs.replace(serving.settings, batch_requests=folder)

    assert graph.run(serving=serving).success

    assert (graph.requests / "day1.csv").read_bytes() != content
    assert last_seen(graph.instance)["day1"].sha256 == hashlib.sha256(content).hexdigest()


def test_every_check_has_a_description():
    for key in definitions.resolve_asset_graph().asset_check_keys:
        assert definitions.resolve_asset_graph().get(key).description, key


def register_classifier(world: World, labels: list[str], seed: int) -> int:
    import numpy as np
    import pandas as pd
    from sklearn.linear_model import LogisticRegression

    stats = pd.read_parquet(world.folder / "feature_repo" / "data" / "driver_stats.parquet")
    frame = stats[DRIVER_INPUTS].astype("float64")
    edges = frame["conv_rate"] + np.random.default_rng(seed).normal(0, 0.1, len(frame))
    cut = np.digitize(edges, np.quantile(edges, np.linspace(0, 1, len(labels) + 1)[1:-1]))
    model = LogisticRegression(max_iter=1000).fit(frame, np.array(labels)[cut])
    tags = {"feast.feature_service": "driver_ranking", "serving.outputs": "predict,predict_proba"}
    return world.register(model, frame, tags=tags, promote=False, input_example=frame.head(20))


def test_the_labels_and_probabilities_of_a_classifier_are_checked_drawn_and_compared(graph):
    graph.run(version=1)
    first, second = (register_classifier(graph.world, ["bronze", "gold", "silver"], seed) for seed in (1, 2))

    result = graph.run(version=first)

    assert result.success
    columns = ["prediction_label", "prediction_bronze", "prediction_gold", "prediction_silver"]
    row = graph.output()[0]
    assert list(row)[-8:] == [*columns, "reason", "model_name", "model_version", "feature_service"]
    assert row["prediction_label"] == max(("bronze", "gold", "silver"), key=lambda name: row[f"prediction_{name}"])
    manifest = msgspec.json.decode(graph.file("manifest.json").read_bytes())
    assert manifest["outcome"]["outputs"] == dict(zip(columns, ["string", *["double"] * 3], strict=True))
    drift = checks(result)["batch_output:prediction_drift"]
    assert drift.passed
    assert (
        "no column has the name and type of one in the baseline: nothing is compared; relative to: "
        in drift.description
    )
    found = metadata(result, "batch_output")
    assert str(found["changed_predictions"]).startswith(
        "the outputs can't be compared: only driver_ranker/1 has prediction (double); only driver_ranker/"
    )
    assert str(found["distributions"]).startswith("![Distributions](data:image/png;base64,")

    result = graph.run(version=second)

    assert "PSI " in checks(result)["batch_output:prediction_drift"].description
    found = metadata(result, "batch_output")
    assert " of 150 rows differ from driver_ranker/" in str(found["changed_predictions"])
    assert "prediction_gold in 150 by " in str(found["changed_predictions"])
    assert str(found["version_comparison"]).count("\n") == 1 + len(columns)
    assert str(found["changes"]).startswith("![Change of the predictions](data:image/png;base64,")

    published = graph.file("batch_output.parquet").read_bytes()
    rows = graph.requests.joinpath("day1.csv").read_text()
    graph.write_request(rows.replace("order", "Prediction_Gold", 1))
    result = graph.run(version=second)
    assert "batch_input.parquet, column 'Prediction_Gold'" in failure(result)
    assert "has an output of this name: rename the column in the request or leave it out" in failure(result)
    assert graph.file("batch_output.parquet").read_bytes() == published
