"""The comparison of a challenger with the champion, and its promotion, on a real registry and real stores."""

import datetime as dt
import functools
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

import cli.versions
from cli.main import main
from scoring.files.location import Location
from scoring.models.registry import MlflowRegistry
from scoring.monitoring.challenger_report import read_report
from scoring.monitoring.prediction_log import LoggedBatch, LoggedRequest, LogSchema, feast_log_schema
from scoring.predict import Policy
from scoring.serving import load_serving_model
from serving_assets.assets import challenger
from serving_assets.assets.challenger import challenger_comparison
from serving_assets.resources import Serving
from tests.support.graph import Graph, driver_rows, failure, metadata
from tests.support.worlds import World, build_driver_world, register_driver_model

NAME = "driver_ranker"


@functools.cache
def clock() -> dt.datetime:
    """The time of all logged rows, after the versions were registered."""
    return dt.datetime.now(dt.UTC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Versions 1 (the champion) and 2."""
    world = build_driver_world(tmp_path_factory.mktemp("drivers"))
    register_driver_model(world, alpha=0.1, promote=False)
    return world


@pytest.fixture
def graph(world: World, tmp_path: Path, dagster_home: Path) -> Graph:
    """One scored request of 20 drivers and an unknown one, and version 2 as the challenger."""
    world.promote(1)
    world.client.set_registered_model_alias(NAME, "challenger", "2")
    graph = Graph(world, tmp_path)
    graph.environment |= {"SERVING_PREDICTION_LOG": str(tmp_path / "log"), "SERVING_PROMOTE_MIN_ROWS": "40"}
    graph.write_request(driver_rows(world, [*range(1001, 1021), 9999]))
    assert graph.run().success
    return graph


def compare(graph: Graph, requests: int = 1) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        [challenger_comparison],
        instance=graph.instance,
        resources={"serving": Serving(graph.environment)},
        run_config={"ops": {"challenger_comparison": {"config": {"requests": requests}}}},
        raise_on_error=False,
    )


def log_answers(graph: Graph, version: int, role: str, scores: list[float | None], latency_ms: float) -> None:
    """Log two requests of the first drivers with these scores."""
    settings = Serving(graph.environment).settings
    store, registry = graph.world.store(), MlflowRegistry.from_settings(settings)
    serving = load_serving_model(registry, store, registry.version(NAME, version), settings)
    schema = LogSchema(
        serving.model.version, serving.features, serving.model.outputs, feast_log_schema(store, serving.features),
        role=role, definitions="hash", policy=Policy.from_settings(settings),
    )  # fmt: skip
    drivers = [1001 + place for place in range(len(scores))]
    reasons = [None if score is not None else "not_found" for score in scores]
    requests = [
        LoggedRequest(each, {"driver_id": drivers}, len(drivers), [scores], reasons, latency_ms) for each in ("a", "b")
    ]
    folder = Path(graph.environment["SERVING_PREDICTION_LOG"]) / f"date={clock().date()}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(schema.table([LoggedBatch(requests, clock(), None)]), folder / f"{NAME}-{version}-{role}.parquet")


def test_the_report_compares_the_newest_request_and_the_log(graph: Graph, tmp_path: Path) -> None:
    log_answers(graph, 1, "champion", [0.5, 0.25, 0.0], 4)
    log_answers(graph, 2, "challenger", [0.5, 0.75, None], 6)
    result = compare(graph)

    log, batch = read_report(Location(graph.artifacts / "challenger_comparison.parquet"))
    assert (log.source, log.rows, log.decisions, log.changed_decisions) == ("log", 6, 2, 2)
    assert (log.champion.version, log.challenger.version) == ("driver_ranker/1", "driver_ranker/2")
    assert (log.challenger.reasons, log.latency_ratio) == ({"not_found": 2}, 1.5)
    assert (batch.source, batch.name, batch.rows, batch.decisions) == ("batch", "day1", 21, 20)
    assert batch.champion.reasons == batch.challenger.reasons == {"not_found": 1}
    assert batch.outputs[0]["rows_that_differ"] == 20
    scored = pq.read_table(graph.artifacts / "day1" / "comparison" / "challenger" / "batch_output.parquet")
    assert set(scored["model_version"].to_pylist()) == {2}
    assert graph.output()[0]["model_version"] == 1

    found = metadata(result, "challenger_comparison")
    assert found["compared_rows"] == 27
    assert found["changed_decisions"] == 1
    table = str(found["comparison"])
    assert "| log " in table
    assert "(best entity of a request with several) | driver_ranker/2 | 2 of 6 | not_found 2 | 6.0, 6.0 |" in table
    assert "(order of two consecutive rows) | driver_ranker/1 | 1 of 21 | not_found 1 |" in table
    assert "SERVING_PROMOTE_MIN_ROWS is 40" in str(found["promotion"])
    assert str(found["day1_changed_predictions"]).startswith("20 of 21 rows differ from driver_ranker/1")
    for plot in ("day1_plot", "log_plot"):
        assert str(found[plot]).startswith("![Change of the predictions](data:image/png;base64,")


def test_without_a_challenger_nothing_is_compared(graph: Graph) -> None:
    graph.world.client.delete_registered_model_alias(NAME, "challenger")
    results = [compare(graph)]
    graph.world.client.set_registered_model_alias(NAME, "challenger", "1")
    results.append(compare(graph))

    for result in results:
        assert result.success
        assert not result.asset_materializations_for_node("challenger_comparison")
        (event,) = [event for event in result.all_events if event.event_type_value == "ASSET_OBSERVATION"]
        observed = event.asset_observation_data.asset_observation.metadata["challenger"].value
        assert observed.startswith("The alias 'challenger' of driver_ranker is not set, or names")


def test_without_rows_the_report_is_empty_and_does_not_allow_a_promotion(world: World, tmp_path: Path) -> None:
    world.promote(1)
    world.client.set_registered_model_alias(NAME, "challenger", "2")
    graph = Graph(world, tmp_path)
    assert metadata(compare(graph), "challenger_comparison")["comparison"] == "no rows of both versions"
    assert "driver_ranker/2 is not promoted: " in failure(promote(graph))


def test_without_batch_requests_only_the_log_is_compared(graph: Graph) -> None:
    log_answers(graph, 1, "champion", [0.5, 0.25], 4)
    log_answers(graph, 2, "challenger", [0.5, 0.75], 6)
    graph.environment["SERVING_BATCH_REQUESTS"] = str(graph.requests / "missing")
    assert "there is no such folder" in failure(compare(graph))
    compare(graph, requests=0)

    (log,) = read_report(Location(graph.artifacts / "challenger_comparison.parquet"))
    assert (log.source, log.rows) == ("log", 4)


def champion(world: World) -> int:
    return int(world.client.get_model_version_by_alias(NAME, "champion").version)


def test_the_job_promotes_the_challenger_if_its_comparison_passes(graph: Graph) -> None:
    missing = failure(promote(graph))
    assert "challenger_comparison.parquet has no comparison with driver_ranker/1" in missing
    log_answers(graph, 1, "champion", [0.5, 0.25, 0.0] * 4, 4)
    log_answers(graph, 2, "challenger", [0.5, 0.25, 0.0] * 4, 6)
    compare(graph)
    for setting, limit, problem in (
        ("MIN_ROWS", "100", "only 45 rows were compared"),
        ("MAX_CHANGED_DECISIONS", "0.01", "the share of changed decisions is "),
        ("MAX_LATENCY_RATIO", "1.1", "the median latency is 1.5 times the champion's (log "),
    ):
        found = failure(promote(graph, {f"SERVING_PROMOTE_{setting}": limit}))
        assert problem in found
        assert f"and SERVING_PROMOTE_{setting} is {limit}." in found
    assert champion(graph.world) == 1

    assert promote(graph, {"SERVING_PROMOTE_MAX_CHANGED_DECISIONS": "1"}).success
    assert champion(graph.world) == 2


def test_a_promotion_that_ends_while_another_loads_is_not_overwritten(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compare(graph)
    limits = {"SERVING_PROMOTE_MIN_ROWS": "1", "SERVING_PROMOTE_MAX_CHANGED_DECISIONS": "1"}
    third = register_driver_model(graph.world, alpha=0.2, promote=False)
    load = challenger.load_serving_model

    def load_slowly(*arguments: Any) -> Any:
        graph.world.promote(third)
        return load(*arguments)

    monkeypatch.setattr(challenger, "load_serving_model", load_slowly)
    monkeypatch.setattr(cli.versions, "load_version", lambda *_: graph.world.promote(third))
    for name, value in (graph.environment | limits).items():
        monkeypatch.setenv(name, value)
    refused = f"challenger_comparison.parquet has no comparison with driver_ranker/{third} since "
    assert refused in failure(promote(graph, limits))
    graph.world.promote(1)
    assert main(["promote", "2"]) == 1
    assert refused in capfd.readouterr().err
    assert champion(graph.world) == third


def promote(graph: Graph, environment: dict[str, str] | None = None) -> dg.ExecuteInProcessResult:
    serving = Serving(graph.environment | (environment or {}))
    return graph.run("promote", tags={"by": "test"}, serving=serving)


def test_the_command_promotes_by_the_same_rules(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in graph.environment.items():
        monkeypatch.setenv(name, value)
    log_answers(graph, 1, "champion", [0.5, 0.25, 0.0] * 4, 4)
    log_answers(graph, 2, "challenger", [0.5, None, None] * 4, 4)
    compare(graph)
    assert main(["promote", "2"]) == 1
    assert "driver_ranker/2 is not promoted: the error rate increases by 0.6667 (log " in capfd.readouterr().err
    assert main(["promote", "2", "--unchecked", "--set", "promote_max_error_rate_increase=0.7"]) == 0
    graph.world.promote(1)
    assert main(["promote", "2", "--unchecked", "--force"]) == 0
    assert champion(graph.world) == 2
    # Not the challenger: as without one.
    graph.world.client.set_registered_model_alias(NAME, "challenger", "2")
    assert main(["promote", "1", "--unchecked"]) == 0
    assert champion(graph.world) == 1
