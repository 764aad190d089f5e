"""The Spark engine gives the local engine's result for a request: columns, order, values, manifest, checks.

Spark is real and runs in local mode; executors are processes of their own.
"""

import copy
import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow.fs import FileSelector

from scoring.batch.engine import LocalEngine
from scoring.batch.generations import read_parted_input
from scoring.batch.manifest import PARTED_INPUT_NAME, Manifest, output_parts, read_manifest
from scoring.batch.scores_table import ScoresTable
from scoring.errors import BatchRequestError, FeaturesRejected, FeatureStoreError, PredictionFailed, UnreadableSource
from scoring.files.location import Location
from scoring.predict import Policy
from tests.integration.scoring.spark.kinds import (
    DRIVERS,
    INCOMPLETE,
    KINDS,
    UNKNOWN,
    WITHOUT_RATE,
    Kind,
    Way,
    answered,
    bits,
    rows_of,
    written,
)
from tests.integration.scoring.spark.orders import ROWS, SPARK, START, World, table, tables
from tests.support.graph import Graph
from tests.support.results import result
from tests.support.s3 import make_bucket, put
from tests.support.servers import S3Server
from tests.support.worlds import DRIVER_INPUTS, build_driver_world

if TYPE_CHECKING:
    from scoring.spark.engine import SparkEngine

# Most of the time goes into starting Spark and importing everything in its workers.
pytestmark = pytest.mark.timeout(600)


def without_places(manifest: Manifest) -> dict[str, Any]:
    """What the manifests of both engines have in common."""
    origin, outcome = msgspec.to_builtins(manifest.origin), msgspec.to_builtins(manifest.outcome)
    return {"origin": origin, "outcome": {**outcome, "batch_input": None}}


@pytest.fixture(scope="module")
def engine(surroundings: None, s3_server: S3Server) -> Iterator["SparkEngine"]:
    make_bucket(s3_server, "spark")
    from scoring.spark.engine import SparkEngine

    engine = SparkEngine("local[1]", SPARK, rows_per_part=700)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def spark(world: World, engine: "SparkEngine") -> Location:
    """One with Spark's."""
    folder = Location("s3://spark/artifacts/day1")
    world.run(engine, folder)
    return folder


def test_spark_reads_the_current_files_of_the_scores_table(engine: "SparkEngine", tmp_path: Path) -> None:
    place = tmp_path / "scores"
    for request, value, parts in (("day1", 0.5, 0), ("day1", 1.5, 2), ("day2", 2.5, 0)):
        ScoresTable(Location(place)).write(request, result(tmp_path / request, 10, value, parts=parts))

    reader = engine._spark.read.option("basePath", str(place)).option("mergeSchema", "true")
    rows = reader.parquet(*DeltaTable(place).file_uris()).groupBy("batch_request", "prediction").count()

    assert sorted(tuple(row) for row in rows.collect()) == [("day1", 1.5, 10), ("day2", 2.5, 10)]


def test_a_file_system_that_spark_does_not_have_is_named(engine: "SparkEngine") -> None:
    from scoring.spark.engine import _translated

    with pytest.raises(FeatureStoreError) as caught, _translated("joining"):
        engine._spark.read.parquet("s3://bucket/features.parquet")
    assert str(caught.value) == (
        'The feature store failed while joining: UnsupportedFileSystemException: No FileSystem for scheme "s3"'
    )


def manifest(folder: Location) -> Manifest:
    return read_manifest(folder / "batch_output.parquet")


def objects(folder: Location) -> dict[str, int]:
    """Every file below a folder in S3, and when it was written."""
    filesystem, path = folder.filesystem()
    found = filesystem.get_file_info(FileSelector(path, recursive=True))
    return {each.path.removeprefix(f"{path}/"): each.mtime_ns for each in found if each.is_file}


def test_the_same_request_has_the_same_rows_to_the_last_bit(local: Location, spark: Location) -> None:
    expected, found = table(local), table(spark)

    assert found.schema.equals(expected.schema)
    assert found.schema.metadata[b"serving.origin"] == expected.schema.metadata[b"serving.origin"]
    for name in expected.column_names:
        assert found[name].equals(expected[name]), name
    bits = [each["prediction"].fill_null(0).to_numpy().tobytes() for each in (found, expected)]
    assert bits[0] == bits[1]
    # The request has every case.
    assert set(found["reason"].to_pylist()) == {None, "not_found", "null_feature", "model_failed"}
    assert len(set(found["orders"].to_pylist())) > 100
    assert 7 in found["orders"].to_pylist()


def test_expired_rows_are_counted_alike(world: World, local: Location, spark: Location) -> None:
    expired = world.stale[LocalEngine.input_name]

    assert world.stale[PARTED_INPUT_NAME] == expired
    assert expired.keys() == {"habits", "market"}
    assert all(0 < rows < ROWS for rows in expired.values())


def test_spark_joins_delta_tables_folders_in_s3_and_its_own_tables_alike(
    world: World, engine: "SparkEngine", local: Location, s3_server: S3Server, tmp_path: Path
) -> None:
    from feast import FileSource
    from feast.data_format import DeltaFormat
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    data, features = world.folder / "feature_repo" / "data", world.serving.features
    habits = pq.read_table(data / "habits.parquet")
    write_deltalake(tmp_path / "habits", habits.slice(0, 300))
    write_deltalake(tmp_path / "habits", habits.slice(300), mode="append")
    views = {name: copy.copy(view) for name, view in features.feast.views.items()}
    mapping = views["habits"].batch_source.field_mapping
    views["habits"].batch_source = FileSource(
        path=str(tmp_path / "habits"),
        file_format=DeltaFormat(),
        timestamp_field="at",
        created_timestamp_column="created",
        field_mapping=mapping,
    )
    query = f"SELECT *, event_timestamp AS `when` FROM parquet.`{data / 'profile.parquet'}`"
    with pytest.warns(RuntimeWarning, match="experimental"):
        views["owner"].batch_source = SparkSource(name="profile", query=query, timestamp_field="when")
    market = pq.read_table(data / "market.parquet")
    for day, rows in enumerate((market.slice(0, 11), market.slice(11))):
        pq.write_table(rows, tmp_path / "market.parquet", row_group_size=7)
        put(tmp_path / "market.parquet", Location(f"s3://spark/market/day={day}/rows.parquet"))
    views["market"].batch_source = FileSource(
        path="s3://spark/market", s3_endpoint_override=s3_server.endpoint_url, timestamp_field="event_timestamp"
    )
    changed = msgspec.structs.replace(features, feast=msgspec.structs.replace(features.feast, views=views))

    world.join(engine, world.request, Location(tmp_path / "result"), changed)

    parts = [
        Location(tmp_path / "result") / part.name for part in read_parted_input(Location(tmp_path / "result")).parts
    ]
    found = pa.concat_tables(tables(parts)).combine_chunks()
    assert found.equals(pa.concat_tables(tables([local / "batch_input.parquet"])).combine_chunks())


def test_a_value_that_an_executor_can_not_read_is_named(world: World, engine: "SparkEngine", tmp_path: Path) -> None:
    from feast import FileSource

    features = world.serving.features
    pq.write_table(
        pa.table({"event_timestamp": pa.array([START], pa.timestamp("us", "UTC")), "index": ["many"]}),
        tmp_path / "market.parquet",
    )
    views = {name: copy.copy(view) for name, view in features.feast.views.items()}
    views["market"].batch_source = FileSource(path=str(tmp_path / "market.parquet"), timestamp_field="event_timestamp")
    changed = msgspec.structs.replace(features, feast=msgspec.structs.replace(features.feast, views=views))

    with pytest.raises(
        UnreadableSource, match=r"column 'index' of .*market\.parquet holds string values that can't be"
    ):
        world.join(engine, world.request, Location(tmp_path / "result"), changed)


def test_the_manifest_says_the_same_and_names_the_parts(local: Location, spark: Location) -> None:
    assert without_places(manifest(spark)) == without_places(manifest(local))
    parts = manifest(spark).parts
    assert [part.name.rpartition("/")[2] for part in parts] == [f"part-{i:05d}.parquet" for i in range(4)]
    rows = [sum(each.num_rows for each in tables([spark / part.name])) for part in parts]
    assert rows == [700, 700, 700, 500]
    joined = [part.name for part in read_parted_input(spark).parts]
    assert sorted(objects(spark)) == sorted(
        [*joined, *(part.name for part in parts), "batch_input.json", "manifest.json"]
    )


def test_what_fails_leaves_the_older_result_and_no_litter(
    world: World, engine: "SparkEngine", spark: Location, local: Location, tmp_path: Path
) -> None:
    before = objects(spark)

    def refuse(*_: object) -> None:
        raise BatchRequestError("day1", "a blocking check failed")

    with pytest.raises(BatchRequestError, match="blocking"):
        engine.write_output(spark, world.serving, Policy(), refuse)
    with pytest.raises(FeaturesRejected) as rejected:
        engine.write_output(spark, world.serving, Policy("reject"))
    (tmp_path / "model").mkdir()
    shutil.copy(world.serving.files.folder / "MLmodel", tmp_path / "model")
    broken = msgspec.structs.replace(world.serving.files, folder=tmp_path / "model")
    with pytest.raises(PredictionFailed, match=r"orders/1 failed to predict: its model file 'model\.skops' is missing"):
        engine.write_output(spark, msgspec.structs.replace(world.serving, files=broken), Policy())

    assert objects(spark) == before
    with pytest.raises(FeaturesRejected) as expected:
        LocalEngine().write_output(local, world.serving, Policy("reject"))
    assert str(rejected.value) == str(expected.value)


def test_with_imputed_values_it_is_the_same_and_the_replaced_parts_stay_for_their_readers(
    world: World, engine: "SparkEngine", local: Location, spark: Location, tmp_path: Path
) -> None:
    shutil.copytree(local.local, tmp_path / "local")
    policy = Policy("impute", {"orders": 3, "trusted": True, "age": None, "mean_amount": None, "tier": "gold"})
    before = manifest(spark)

    LocalEngine().write_output(Location(tmp_path / "local"), world.serving, policy)
    engine.write_output(spark, world.serving, policy)

    assert without_places(manifest(spark)) == without_places(manifest(Location(tmp_path / "local")))
    assert manifest(spark).outcome.reasons["imputed_null_feature"] > 0
    assert table(spark).equals(table(Location(tmp_path / "local")))
    assert {part.name for part in before.parts} < objects(spark).keys()


def test_labels_and_probabilities_are_the_same(
    world: World, engine: "SparkEngine", local: Location, spark: Location, tmp_path: Path
) -> None:
    kinds: list[tuple[list[Any], str, list[str]]] = [
        (["gold", "ünï", ""], "predict,predict_proba", ["string", "double", "double", "double"]),
        ([2**53 + 1, 2**53 + 2, -(2**63)], "predict", ["int64"]),
        ([True, False], "predict", ["bool"]),
    ]
    for labels, functions, types in kinds:
        shutil.copytree(local.local, tmp_path / types[0])
        serving = world._model(labels, functions)

        LocalEngine().write_output(Location(tmp_path / types[0]), serving, Policy())
        engine.write_output(spark, serving, Policy())

        found, expected = table(spark), table(Location(tmp_path / types[0]))
        assert found.schema.equals(expected.schema)
        assert found.equals(expected)
        assert without_places(manifest(spark)) == without_places(manifest(Location(tmp_path / types[0])))
        outputs = manifest(spark).outcome.outputs
        several = [f"prediction_{name}" for name in ("label", *sorted(labels))]
        assert list(outputs) == (["prediction"] if len(types) == 1 else several)
        assert [str(found.schema.field(name).type) for name in outputs] == types == list(outputs.values())
        for name, dtype in outputs.items():
            if dtype == "double":
                bits = [each[name].fill_null(0).to_numpy().tobytes() for each in (found, expected)]
                assert bits[0] == bits[1]
            assert found[name].is_valid().equals(found["reason"].is_null())
        label = found[next(iter(outputs))]
        assert set(label.drop_null().to_pylist()) <= set(labels)
        assert len(label.unique()) > 2  # two labels and null
        assert set(found["reason"].to_pylist()) == {None, "not_found", "null_feature", "model_failed"}


def test_a_request_without_rows_has_a_result_without_rows(world: World, engine: "SparkEngine", tmp_path: Path) -> None:
    pq.write_table(pq.read_table(world.request.local).slice(0, 0), tmp_path / "none.parquet")
    for name, each in [("local", LocalEngine()), ("spark", engine)]:
        folder = Location(tmp_path / name)
        world.join(each, Location(tmp_path / "none.parquet"), folder)
        assert each.write_output(folder, world.serving, Policy()).outcome.rows == 0
    assert table(Location(tmp_path / "spark")).equals(table(Location(tmp_path / "local")))


def test_an_engine_that_takes_over_leaves_no_older_result_to_be_taken_for_its_own(
    world: World, engine: "SparkEngine", spark: Location, tmp_path: Path
) -> None:
    world.run(LocalEngine(), spark)

    assert [place.name for place in output_parts(spark)] == ["batch_output.parquet"]
    with pytest.raises(BatchRequestError, match=r"batch_input\.json: there is no such file: materialize batch_input"):
        engine.read_input_model(spark)


def test_dagster_shows_the_same_checks_and_metadata(engine: "SparkEngine", tmp_path: Path) -> None:
    drivers = build_driver_world(tmp_path)
    times = [drivers.now - dt.timedelta(minutes=17 * i) for i in range(150)]
    rows = pa.table({"driver_id": [1001 + i % 22 for i in range(150)], "event_timestamp": times})
    spark_engine = {"SERVING_BATCH_ENGINE": "spark", "SERVING_SPARK_MASTER": "local[1]"}
    found: list[dict[str, Any]] = []
    for name, settings in [("local", {}), ("spark", spark_engine | {"SERVING_SPARK_ROWS_A_PART": "100"})]:
        (tmp_path / name).mkdir()
        graph = Graph(drivers, tmp_path / name)
        graph.environment |= settings
        graph.instance.add_dynamic_partitions("batch_requests", ["now"])
        pq.write_table(rows, graph.requests / "now.parquet")
        run = graph.run(key="now")
        assert run.success
        found.append(
            {
                event.asset_key.to_user_string(): event.materialization.metadata
                for event in run.get_asset_materialization_events()
                if event.asset_key is not None
            }
            | {"checks": sorted((each.check_name, each.passed) for each in run.get_asset_check_evaluations())}
        )
    local, spark = found
    ours, theirs = (Location(tmp_path / name / "artifacts" / "now") for name in ("spark", "local"))
    assert table(ours).equals(table(theirs))
    assert spark["checks"] == local["checks"]
    assert len(local["checks"]) == 11
    for asset in ("batch_input", "batch_output"):
        assert spark[asset].keys() == local[asset].keys()
        for key in ("dagster/row_count", "dagster/column_schema", "preview", "model_version", "feature_service"):
            assert spark[asset][key] == local[asset][key]
    for key in ("reasons", "rows_scored", "rows_not_scored", "distributions"):
        assert spark["batch_output"][key] == local["batch_output"][key]
    assert str(spark["batch_output"]["dagster/uri"].value).endswith("now/manifest.json")
    names = sorted(file.name for file in ours.local.iterdir())
    assert names == ["batch_input", "batch_input.json", "batch_output", "manifest.json"]


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    way = Way(tmp_path_factory.mktemp("way"))
    with way.client:
        yield way


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_batch_online_and_spark_give_the_bits_of_the_library_itself(
    way: Way, engine: "SparkEngine", kind: Kind, tmp_path: Path
) -> None:
    model, version = way.train(kind)

    local = way.batch()
    assert local["driver_id"].to_pylist() == DRIVERS
    why = {WITHOUT_RATE: "imputed_null_feature", INCOMPLETE: "null_feature", UNKNOWN: "not_found"}
    assert local["reason"].to_pylist() == [why.get(driver) for driver in DRIVERS]
    scored = [driver not in {INCOMPLETE, UNKNOWN} for driver in DRIVERS]
    own = kind.own(model, local.filter(scored).select(DRIVER_INPUTS).to_pandas())
    of_scored = iter(rows_of(own))
    expected = [{name: bits(value) for name, value in next(of_scored).items()} if has else None for has in scored]
    assert len({str(row) for row in expected}) > 10
    assert written(local, list(own)) == expected

    distributed = way.spark(engine, version, tmp_path)
    assert distributed.equals(local)
    assert written(distributed, list(own)) == expected

    way.serves(version)
    together = way.scores(DRIVERS)
    assert [answered(entity) for entity in together] == expected
    assert [way.scores([driver])[0] for driver in DRIVERS] == together
    assert way.reports[f"{way.world.settings.model_name}/{version}"].same_in_any_batch

    answer = way.client.post("/inference", json={"request_id": "1", "driver_ids": DRIVERS})
    if kind.rank_by is None:
        assert answer.status_code == 422
        assert "serving.rank_by" in answer.json()["detail"]
        return
    best = bits(max(row[kind.rank_by] for row in rows_of(own)))
    place = next(place for place, row in enumerate(expected) if row is not None and row[kind.rank_by] == best)
    assert (answer.json()["prediction"], bits(answer.json()["score"])) == (DRIVERS[place], best)
