"""The Spark engine gives the local engine's result for a request: columns, order, values, manifest, checks.

Spark is real and runs in local mode; executors are processes of their own.
"""

import datetime as dt
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from pyarrow.fs import FileSelector

from scoring.batch.engine import LocalEngine
from scoring.batch.generations import read_parted_input
from scoring.batch.manifest import Manifest, Origin, output_parts, read_manifest
from scoring.batch.request import copied_request
from scoring.batch.scores_table import ScoresTable
from scoring.engine import Engine
from scoring.errors import BatchRequestError, FeaturesRejected, FeatureStoreError, PredictionFailed, UnreadableSource
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.predict import Policy
from scoring.serving import ServingModel
from scoring.settings import Settings
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
from tests.support.graph import Graph
from tests.support.java import java_home
from tests.support.results import result
from tests.support.s3 import make_bucket
from tests.support.servers import S3Server
from tests.support.worlds import DRIVER_INPUTS, build_driver_world

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.spark.engine import SparkEngine

# Most of the time goes into starting Spark and importing everything in its workers.
pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).resolve().parents[4] / "tests" / "feature_repos" / "orders"
START = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
# As strings, one after the other, some pairs are alike: c and 11, c1 and 1.
CUSTOMERS, MERCHANTS = ["c", "c1", "b", "d"], [1, 11, 2]
INPUTS = ["mean_amount", "orders", "trusted", "age", "tier", "ratio", "amount"]
ROWS = 2500
SPARK = {
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.memory": "1g",
    # For small data: most of the time would go into compiling what runs once.
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "333",
}


def write_features(folder: Path) -> None:
    random = np.random.default_rng(4)
    pairs = [(customer, merchant) for customer in CUSTOMERS for merchant in MERCHANTS][:-1]
    seen = [START + dt.timedelta(hours=3 * hour) for hour in range(40)]
    rows = pd.DataFrame(
        [(*pair, time) for pair in pairs for time in seen], columns=["customer_id", "merchant_id", "seen"]
    )
    rows["created"] = rows["seen"] + pd.to_timedelta(random.integers(0, 600, len(rows)), "s")
    rows["amount_mean"] = random.normal(50, 20, len(rows)).astype("float32")
    rows["orders"] = pd.array(random.integers(0, 1 << 20, len(rows)), "Int32")
    rows["trusted"] = pd.array(random.random(len(rows)) > 0.5, "boolean")
    for column, share in [("amount_mean", 0.03), ("orders", 0.03), ("trusted", 0.03)]:
        rows.loc[random.random(len(rows)) < share, column] = np.nan if column == "amount_mean" else pd.NA
    # Later versions of a quarter of the rows. Some have no created timestamp, which counts as older than any other.
    again = rows.sample(frac=0.25, random_state=1).assign(orders=7)
    again["created"] = (again["created"] + pd.to_timedelta(1, "h")).where(random.random(len(again)) < 0.5)
    alone = rows.tail(40).assign(seen=START + dt.timedelta(hours=200), created=pd.NaT)
    rows = pd.concat([rows, again, alone.drop_duplicates(["customer_id", "merchant_id"]), rows.head(100)])
    # pandas' own default: nanoseconds, here without a zone.
    rows["seen"] = rows["seen"].dt.tz_localize(None).astype("datetime64[ns]")
    rows.sample(frac=1, random_state=2).to_parquet(folder / "habits.parquet", index=False)
    pd.DataFrame(
        {
            "customer_id": CUSTOMERS,
            "event_timestamp": pd.Series([START + dt.timedelta(hours=20)] * 4, dtype="datetime64[us, UTC]"),
            "age": pd.array([2**53 - 1, 31, None, 47], "Int64"),
            "tier": ["gold", "bronze", "gold", None],
        }
    ).to_parquet(folder / "profile.parquet", index=False)


def write_request(file: Path) -> Location:
    """Known and unknown keys, times before, between and after the features, repeated rows, types of all kinds."""
    random = np.random.default_rng(5)
    times = START.timestamp() * 1e6 + random.integers(-(3600 * 10**6), 260 * 3600 * 10**6, ROWS)
    times[::7] = START.timestamp() * 1e6 + 3 * 3600 * 10**6 * (np.arange(len(times[::7])) % 40)
    table = pa.table(
        {
            "note": pa.array([f"ünï {i}" if i % 5 else None for i in range(ROWS)]).dictionary_encode(),
            "merchant_id": pa.array(random.choice([*MERCHANTS, 999], ROWS), pa.int16()),
            "customer_id": pa.array(random.choice([*CUSTOMERS, "nobody"], ROWS)),
            "event_timestamp": pa.array(times.astype("int64"), pa.timestamp("us", "Asia/Bangkok")),
            "amount": pa.array(random.normal(50, 20, ROWS), mask=random.random(ROWS) < 0.02),
            "big": pa.array(np.arange(ROWS, dtype="uint64") + (1 << 63)),
            "price": pa.array([Decimal(i) / 100 for i in range(ROWS)], pa.decimal128(9, 2)),
            "at": pa.array(np.arange(ROWS), pa.timestamp("ns")),
            "tags": pa.array([["a"] * (i % 3) for i in range(ROWS)]),
        }
    )
    pq.write_table(pa.concat_tables([table, table.slice(100, 50), table.slice(100, 50)]), file)
    return Location(file)


class World:
    """The orders repository, applied, and a model of it in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        repository = folder / "feature_repo"
        shutil.copytree(REPOSITORY, repository, ignore=shutil.ignore_patterns("__pycache__"))
        (repository / "data").mkdir()
        write_features(repository / "data")
        self.store: FeatureStore = open_feature_store(Settings(model_name="orders", feature_repo=repository))
        apply_definitions(self.store)
        self.request = write_request(folder / "day1.parquet")
        self.serving = self._model()

    def _model(self, labels: Sequence[Any] | None = None, functions: str = "predict") -> ServingModel:
        """Return a linear regressor, or else a classifier with these labels, which are repeated."""
        import mlflow.sklearn
        from mlflow.models import infer_signature
        from sklearn.compose import make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LinearRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder
        from sklearn.tree import DecisionTreeClassifier

        from scoring.features.feature_service import link_features
        from scoring.models.admission import validate
        from scoring.models.loading_rules import LoadingRules
        from scoring.models.model_files import read_model_files
        from scoring.models.registry import ModelVersion

        random = np.random.default_rng(6)
        frame = pd.DataFrame(random.normal(50, 20, (200, 7)), columns=INPUTS).assign(
            orders=random.integers(0, 1 << 20, 200), trusted=random.random(200) > 0.5, age=random.integers(18, 90, 200)
        )
        frame["tier"] = random.choice(["gold", "silver"], 200)
        numbers = [name for name in INPUTS if name != "tier"]
        model = make_pipeline(
            make_column_transformer((SimpleImputer(), numbers), (OneHotEncoder(sparse_output=False), ["tier"])),
            LinearRegression() if labels is None else DecisionTreeClassifier(max_depth=5, random_state=0),
        ).fit(frame, random.random(200) if labels is None else np.resize(np.array(labels), 200))
        folder = self.folder / f"model_{0 if labels is None else type(labels[0]).__name__}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of integer inputs without a way to say "missing", which are meant
            mlflow.sklearn.save_model(
                model,
                folder,
                signature=infer_signature(frame, model.predict(frame)),
                input_example=frame.head(),
                pip_requirements=["scikit-learn"],
                skops_trusted_types=["numpy.dtype", "sklearn.tree._tree.Tree"],
            )
        rules = LoadingRules.from_settings(Settings(model_name="orders"))
        files = read_model_files(ModelVersion("orders", 1, {"serving.outputs": functions}), folder, rules)
        features = link_features(self.store, "orders/1", "orders", files.signature, ["amount"])
        return ServingModel(validate(files)[0], features, files)

    def join(self, engine: Engine, request: Location, folder: Location) -> None:
        with copied_request(request) as copy:
            origin = Origin(copy.content, "orders/1", self.serving.features.service, "definitions")
            engine.write_input(copy, origin, self.store, self.serving.features, folder)

    def run(self, engine: Engine, folder: Location, policy: Policy | None = None) -> Manifest:
        self.join(engine, self.request, folder)
        return engine.write_output(folder, self.serving, policy or Policy())


def tables(places: list[Location]) -> list[pa.Table]:
    with ParquetFiles(places) as files:
        return [files.schema.empty_table(), *files.between(0, files.rows)]


def table(folder: Location) -> pa.Table:
    return pa.concat_tables(tables(output_parts(folder))).combine_chunks()


def without_places(manifest: Manifest) -> dict[str, Any]:
    """What the manifests of both engines have in common."""
    origin, outcome = msgspec.to_builtins(manifest.origin), msgspec.to_builtins(manifest.outcome)
    return {"origin": origin, "outcome": {**outcome, "batch_input": None}}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator["SparkEngine"]:
    """Spark in a time zone far from UTC, beside an S3 of the tests' own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("JAVA_HOME", str(java_home(tmp_path_factory.mktemp("java"))))
        environment.setenv("TZ", "America/New_York")
        time.tzset()
        for name, value in s3_server.environment.items():
            environment.setenv(name, value)  # workers inherit it
        make_bucket(s3_server, "spark")
        from scoring.spark.engine import SparkEngine

        engine = SparkEngine("local[1]", SPARK, rows_per_part=700)
        yield engine
        engine.stop()
    time.tzset()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("orders"))


@pytest.fixture(scope="module")
def local(world: World) -> Location:
    """A folder with the local engine's result."""
    folder = Location(world.folder / "local")
    world.run(LocalEngine(), folder)
    return folder


@pytest.fixture(scope="module")
def spark(world: World, engine: "SparkEngine") -> Location:
    """One with Spark's."""
    folder = Location("s3://spark/artifacts/day1")
    world.run(engine, folder)
    return folder


def test_spark_reads_the_current_files_of_the_scores_table(engine: "SparkEngine", tmp_path: Path) -> None:
    from feast import FileSource

    from scoring.spark.store import _read

    place = tmp_path / "scores"
    for request, value, parts in (("day1", 0.5, 0), ("day1", 1.5, 2), ("day2", 2.5, 0)):
        ScoresTable(Location(place)).write(request, result(tmp_path / request, 10, value, parts=parts))

    reader = engine._spark.read.option("basePath", str(place)).option("mergeSchema", "true")
    rows = reader.parquet(*DeltaTable(place).file_uris()).groupBy("batch_request", "prediction").count()

    assert sorted(tuple(row) for row in rows.collect()) == [("day1", 1.5, 10), ("day2", 2.5, 10)]
    with pytest.raises(UnreadableSource, match="it is a Delta table, which the Spark engine does not read"):
        _read(engine._spark, FileSource(path=str(place), timestamp_field="t"), SimpleNamespace(repo_path=None))


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
