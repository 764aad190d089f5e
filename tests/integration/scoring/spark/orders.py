"""A world with everything that a join can be asked for, and a model of it: the repository `orders`."""

import datetime as dt
import shutil
import warnings
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.batch.manifest import Manifest, Origin, output_parts
from scoring.batch.request import copied_request
from scoring.engine import Engine
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.predict import Policy
from scoring.serving import ServingModel
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

REPOSITORY = Path(__file__).resolve().parents[4] / "tests" / "feature_repos" / "orders"
START = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
# As strings, one after the other, some pairs are alike: c and 11, c1 and 1.
CUSTOMERS, MERCHANTS = ["c", "c1", "b", "d"], [1, 11, 2]
INPUTS = ["mean_amount", "orders", "trusted", "age", "tier", "ratio", "amount", "visits", "index"]
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
            "visits": [3, 1, 4, 1],
        }
    ).to_parquet(folder / "profile.parquet", index=False)
    times = pd.Series([START + dt.timedelta(hours=6 * number) for number in range(40)], dtype="datetime64[us, UTC]")
    index = random.normal(50, 20, len(times))
    pd.DataFrame({"event_timestamp": times, "index": index}).to_parquet(folder / "market.parquet", index=False)


def write_request(file: Path) -> Location:
    """Known and unknown keys, times before, between and after the features, repeated rows, types of all kinds."""
    random = np.random.default_rng(5)
    times = START.timestamp() * 1e6 + random.integers(-(3600 * 10**6), 260 * 3600 * 10**6, ROWS)
    times[::7] = START.timestamp() * 1e6 + 3 * 3600 * 10**6 * (np.arange(len(times[::7])) % 40)
    # The last microsecond of a row's time to live, and the first one after it.
    times[1::7] = START.timestamp() * 1e6 + 5 * 3600 * 10**6 + 500_000 + np.arange(len(times[1::7])) % 2
    table = pa.table(
        {
            "note": pa.array([f"ünï {i}" if i % 5 else None for i in range(ROWS)]).dictionary_encode(),
            "merchant_id": pa.array(random.choice([*MERCHANTS, 999], ROWS), pa.int16()),
            "customer_id": pa.array(random.choice([*CUSTOMERS, "nobody"], ROWS)),
            "referrer_id": pa.array(random.choice(CUSTOMERS, ROWS)),
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
        self.stale: dict[str, dict[str, int]] = {}
        """What the first join of each engine reported, by the name of its input."""
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
        frame = pd.DataFrame(random.normal(50, 20, (200, 9)), columns=INPUTS).assign(
            orders=random.integers(0, 1 << 20, 200), trusted=random.random(200) > 0.5, age=random.integers(18, 90, 200)
        )
        frame["visits"] = random.integers(0, 9, 200)
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

    def join(self, engine: Engine, request: Location, folder: Location, features: ModelFeatures | None = None) -> None:
        with copied_request(request) as copy:
            origin = Origin(copy.content, "orders/1", self.serving.features.service, "definitions")

            def inspect(_table: ParquetFiles, _rows: int, stale: Mapping[str, int]) -> None:
                self.stale.setdefault(engine.input_name, dict(stale))

            engine.write_input(copy, origin, self.store, features or self.serving.features, folder, inspect)

    def run(self, engine: Engine, folder: Location, policy: Policy | None = None) -> Manifest:
        self.join(engine, self.request, folder)
        return engine.write_output(folder, self.serving, policy or Policy())


def tables(places: list[Location]) -> list[pa.Table]:
    with ParquetFiles(places) as files:
        return [files.schema.empty_table(), *files.between(0, files.rows)]


def table(folder: Location) -> pa.Table:
    return pa.concat_tables(tables(output_parts(folder))).combine_chunks()
