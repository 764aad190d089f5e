"""Models of every library and with every kind of output, and one world in which they are served one after the other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from litestar.testing import TestClient

from api.app import create_app
from api.model.loading import RegistryLoader
from scoring.batch.generations import publish_input
from scoring.batch.manifest import output_parts, read_origin
from scoring.engine import Engine
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.files.transfer import content_of
from scoring.models.admission import ValidationReport, validate
from scoring.models.model_files import ModelFiles
from scoring.models.registry import MlflowRegistry
from scoring.predict import Policy
from scoring.serving import load_serving_model
from scoring.settings import LIBRARY_TYPES, SKLEARN_TYPES
from tests.support.graph import Graph, driver_rows, failure
from tests.support.servers import wait_until
from tests.support.worlds import DRIVER_INPUTS, build_driver_world

# The acc_rate of 1019 is null, which the policy leaves to the model; 1020 lacks another feature, and 9999 is unknown.
WITHOUT_RATE, INCOMPLETE, UNKNOWN = 1019, 1020, 9999
KNOWN = [*range(1001, 1020)]
# 32 rows with a prediction, because a linear model's own last bits depend on how many rows it gets (docs/adr/003).
DRIVERS = [1003, 1001, UNKNOWN, *KNOWN, 1003, INCOMPLETE, *range(1008, 1018)]
Outputs = dict[str, Any]
TIERS = ("bronze", "gold", "silver")


class Kind(msgspec.Struct, frozen=True):
    """A kind of model."""

    fit: Callable[[pd.DataFrame], Any]
    own: Callable[[Any, pd.DataFrame], Outputs]
    """What the library returns for rows: output → values. A single output is called `prediction`."""
    flavor: str = "sklearn"
    rank_by: str | None = "prediction"
    """The output that /inference ranks by."""
    tags: dict[str, str] = {}
    declared: bool = False
    """Whether the signature has the names of the outputs."""


def tier(rows: pd.DataFrame) -> np.ndarray:
    return np.asarray(TIERS)[pd.qcut(rows["conv_rate"], 3, labels=False)]


def target(rows: pd.DataFrame) -> np.ndarray:
    noise = np.random.default_rng(5).normal(0, 0.1, len(rows))
    return (rows["conv_rate"] + 0.001 * rows["avg_daily_trips"]).to_numpy("float64") + noise


def classifier(rows: pd.DataFrame) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(rows, tier(rows))


def label_and_probabilities(model: Any, rows: pd.DataFrame) -> Outputs:
    by_class = dict(zip(model.classes_, model.predict_proba(rows).T, strict=True))
    return {"label": np.ravel(model.predict(rows)), **by_class}


def two_targets(rows: pd.DataFrame) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    targets = np.column_stack([target(rows), rows["avg_daily_trips"]])
    return RandomForestRegressor(20, max_depth=6, random_state=7).fit(rows, targets)


def one_for_each_quantile(rows: pd.DataFrame) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor, VotingRegressor

    quantiles = [
        (name, HistGradientBoostingRegressor(loss="quantile", quantile=share, max_iter=20))
        for name, share in (("q10", 0.1), ("q50", 0.5), ("q90", 0.9))
    ]
    return VotingRegressor(quantiles).fit(rows, target(rows))


def columns(function: str, *names: str) -> Callable[[Any, pd.DataFrame], Outputs]:
    """Return a function that names the columns of what the model's function returns."""

    def own(model: Any, rows: pd.DataFrame) -> Outputs:
        values = np.asarray(getattr(model, function)(rows))
        return dict(zip(names, values.reshape(len(rows), -1).T, strict=True))

    return own


def xgboost(rows: pd.DataFrame) -> Any:
    import xgboost

    return xgboost.XGBRegressor(n_estimators=20, random_state=7).fit(rows, target(rows))


def xgboost_quantiles(rows: pd.DataFrame) -> Any:
    import xgboost

    model = xgboost.XGBRegressor(n_estimators=20, objective="reg:quantileerror", quantile_alpha=[0.1, 0.5, 0.9])
    return model.fit(rows, target(rows))


def lightgbm(rows: pd.DataFrame) -> Any:
    import lightgbm

    return lightgbm.LGBMClassifier(n_estimators=20, random_state=7, verbose=-1).fit(rows, tier(rows))


def catboost(rows: pd.DataFrame) -> Any:
    from catboost import CatBoostClassifier

    model = CatBoostClassifier(iterations=20, random_seed=7, verbose=False, allow_writing_files=False)
    return model.fit(rows, tier(rows))


def onnx(rows: pd.DataFrame) -> Any:
    """Return a classifier as a graph with two outputs: the label, and a map of probabilities for each row."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    return to_onnx(classifier(rows), initial_types=[("inputs", FloatTensorType([None, len(DRIVER_INPUTS)]))])


def columns_of_graph(model: Any, rows: pd.DataFrame) -> Outputs:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString())
    labels, probabilities = session.run(None, {"inputs": rows.to_numpy("float32")})
    by_class = {f"output_probability_{name}": [row[name] for row in probabilities] for name in TIERS}
    return {"output_label": labels, **by_class}


KINDS = {
    "sklearn-classifier": Kind(
        classifier,
        label_and_probabilities,
        tags={"serving.outputs": "predict,predict_proba", "serving.rank_by": "gold"},
        rank_by="gold",
    ),
    "sklearn-targets": Kind(two_targets, columns("predict", "0", "1"), rank_by=None),
    "sklearn-quantiles": Kind(
        one_for_each_quantile,
        columns("transform", "q10", "q50", "q90"),
        declared=True,
        tags={"serving.outputs": "transform", "serving.rank_by": "q90"},
        rank_by="q90",
    ),
    "xgboost": Kind(xgboost, columns("predict", "prediction"), flavor="xgboost"),
    "xgboost-quantiles": Kind(
        xgboost_quantiles,
        columns("predict", "q10", "q50", "q90"),
        flavor="xgboost",
        declared=True,
        tags={"serving.rank_by": "prediction_q50"},
        rank_by="q50",
    ),
    "lightgbm": Kind(
        lightgbm,
        label_and_probabilities,
        flavor="lightgbm",
        tags={"serving.outputs": "predict,predict_proba", "serving.rank_by": "silver"},
        rank_by="silver",
    ),
    "catboost": Kind(
        catboost,
        label_and_probabilities,
        flavor="catboost",
        tags={"serving.outputs": "predict,predict_proba", "serving.rank_by": "gold"},
        rank_by="gold",
    ),
    "onnx": Kind(onnx, columns_of_graph, flavor="onnx", declared=True, rank_by=None),
}


class Way:
    """The whole way of a model: a world, its Dagster graph, and an API that follows the alias."""

    def __init__(self, folder: Path) -> None:
        self.world = build_driver_world(folder, stats=self._stats())
        self.world.environment |= {
            "SERVING_MISSING_FEATURES": "impute",
            "SERVING_IMPUTE_VALUES": '{"acc_rate": null}',
            "SERVING_POLL_INTERVAL_S": "1",
            "SERVING_DEADLINE_S": "30",
        }
        stats = pd.read_parquet(folder / "feature_repo" / "data" / "driver_stats.parquet")
        self.rows = stats[DRIVER_INPUTS].dropna().astype({"avg_daily_trips": "int64"})
        self.graph = Graph(self.world, folder)
        self.graph.write_request(driver_rows(self.world, DRIVERS))
        self.registry = MlflowRegistry.from_settings(self.world.settings)
        self.reports: dict[str, ValidationReport] = {}
        loader = RegistryLoader(self.world.settings, self.registry, self._validate)
        self.client = TestClient(create_app(self.world.settings, loader))

    def _stats(self) -> pd.DataFrame:
        from feast.driver_test_data import create_driver_hourly_stats_df

        now = pd.Timestamp.now("UTC").floor("h")
        stats = create_driver_hourly_stats_df([*KNOWN, INCOMPLETE], now - pd.Timedelta("2d"), now)
        stats["avg_daily_trips"] = stats["avg_daily_trips"].astype("Int64")
        stats.loc[stats["driver_id"] == WITHOUT_RATE, "acc_rate"] = np.nan
        stats.loc[stats["driver_id"] == INCOMPLETE, "avg_daily_trips"] = pd.NA
        return stats

    def _validate(self, files: ModelFiles, known_rows: pa.Table | None) -> ValidationReport:
        """Validate in this process: other tests run the trial process, whose imports take seconds."""
        self.reports[str(files.version)] = validate(files, known_rows)[1]
        return self.reports[str(files.version)]

    def train(self, kind: Kind) -> tuple[Any, int]:
        """Fit and register a model of this kind. Return it and its version, which the alias names."""
        model = kind.fit(self.rows)
        arguments: dict[str, Any] = {"flavor": kind.flavor, "input_example": self.rows.head(40)}
        if kind.flavor in {"sklearn", "lightgbm"}:
            arguments["skops_trusted_types"] = [*SKLEARN_TYPES, *LIBRARY_TYPES]
        if kind.declared:
            arguments["outputs"] = pd.DataFrame(kind.own(model, self.rows))
        tags = {"feast.feature_service": "driver_ranking", **kind.tags}
        return model, self.world.register(model, self.rows, tags=tags, **arguments)

    def batch(self) -> pa.Table:
        """Return what the graph writes for DRIVERS."""
        run = self.graph.run()
        assert run.success, failure(run)
        return pq.read_table(self.graph.file("batch_output.parquet"))

    def spark(self, engine: Engine, version: int, folder: Path) -> pa.Table:
        """Return what Spark makes of the rows that the graph has joined, with its files below an empty folder."""
        part = folder / "batch_input" / "one" / "part.parquet"
        part.parent.mkdir(parents=True)
        shutil.copy(self.graph.file("batch_input.parquet"), part)
        origin, place = read_origin(pq.read_schema(part), ""), Location(folder)
        publish_input(place, origin, len(DRIVERS), [content_of(part, str(part.relative_to(folder)))])
        settings = self.world.settings
        resolved = self.registry.version(settings.model_name, version)
        serving = load_serving_model(self.registry, self.world.store(), resolved, settings, folder / "model")
        engine.write_output(place, serving, Policy.from_settings(settings))
        with ParquetFiles(output_parts(place)) as files:
            return pa.concat_tables(files.between(0, files.rows))

    def serves(self, version: int) -> None:
        """Wait until the API serves the version."""

        def ready() -> dict[str, Any]:
            answer: dict[str, Any] = self.client.get("/ready").json()
            return answer

        wait_until(lambda: ready().get("model", {}).get("version") == version, lambda: str(ready()))

    def scores(self, drivers: list[int]) -> list[dict[str, Any]]:
        """Return the entities in the answer of POST /scores."""
        answer = self.client.post("/scores", json={"request_id": "1", "driver_ids": drivers})
        assert answer.status_code == 200, answer.text
        scores: list[dict[str, Any]] = answer.json()["scores"]
        return scores


def bits(value: Any) -> Any:
    """Return a value that is equal for equal bits and types only."""
    value = value.item() if isinstance(value, np.generic) else value
    return value.hex() if isinstance(value, float) else (type(value), value)


def rows_of(outputs: Outputs) -> list[dict[str, Any]]:
    """Return the outputs of each row."""
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]


def bits_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the bits of a row's outputs; None if it has none of them."""
    if all(value is None for value in row.values()):
        return None
    return {name: bits(value) for name, value in row.items()}


def written(table: pa.Table, names: list[str]) -> list[dict[str, Any] | None]:
    """Return the bits of each row's outputs in a file."""
    columns = {name: table[name if name == "prediction" else f"prediction_{name}"].to_pylist() for name in names}
    return [bits_of(row) for row in rows_of(columns)]


def answered(entity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the bits of an entity's outputs in an answer."""
    outputs = entity["outputs"] if "outputs" in entity else {"prediction": entity["score"]}
    return bits_of(outputs or {})
