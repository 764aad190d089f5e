"""Predict the rows of a parquet file into another."""

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.batch.task import output_file
from benchmarks.batch.world import FEW, MODELS, joined_rows, open_batch_world
from scoring.files.location import Location


class Prediction:
    """Base class: the joined rows, which the product has written, and the output file."""

    name = "predict"
    alias = ""
    """One of MODELS; empty for the ElasticNet."""

    def __init__(self, rows: int) -> None:
        self.world = open_batch_world(self.alias)
        self.rows = rows
        self.output = output_file(self.name)

    def prepare(self) -> None:
        """Predict few rows."""
        self.predict(joined_rows(self.world, FEW))
        self.input = joined_rows(self.world, self.rows)

    def reset(self) -> None:
        """Do nothing: each run replaces the output."""

    def run(self) -> None:
        """Predict all rows."""
        self.predict(self.input)

    def predict(self, source: Path) -> None:
        """Predict one file's rows into `self.output`."""
        raise NotImplementedError

    def outcome(self) -> dict[str, object]:
        """Return the number of rows and a hash of the predictions to nine digits: the baseline's last bits differ."""
        column = pq.read_table(self.output, columns=["prediction"])["prediction"].cast("double").to_numpy()
        return {"rows": len(column), "predictions": hashlib.sha256(np.round(column, 9).tobytes()).hexdigest()}


class BatchOutput(Prediction):
    """The product: the asset's function, from checking the input to the published, synced and hashed file."""

    name = "predict-product"

    def prepare(self) -> None:
        from scoring.models.registry import MlflowRegistry
        from scoring.predict import Policy
        from scoring.serving import load_serving_model, resolve_version

        settings = self.world.settings
        registry = MlflowRegistry.from_settings(settings)
        version = resolve_version(registry, settings)
        self.serving = load_serving_model(registry, self.world.store(), version, settings)
        self.policy = Policy.from_settings(settings)
        self.output = self.output.with_name("batch_output.parquet")
        super().prepare()

    def predict(self, source: Path) -> None:
        from scoring.batch.engine import LocalEngine

        joined = self.output.with_name("batch_input.parquet")
        joined.unlink(missing_ok=True)
        joined.hardlink_to(source)
        LocalEngine().write_output(Location(joined.parent), self.serving, self.policy)


class Baseline(Prediction):
    """The usual way: pandas, the model as MLflow's pyfunc, pandas again."""

    name = "predict-baseline"

    def prepare(self) -> None:
        import mlflow

        settings = self.world.settings
        mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
        self.model = mlflow.pyfunc.load_model(f"models:/{settings.model_name}@{settings.model_alias}")
        self.inputs = self.model.metadata.get_input_schema().input_names()
        super().prepare()

    def predict(self, source: Path) -> None:
        import pandas as pd

        frame = pd.read_parquet(source)
        frame["prediction"] = self.model.predict(frame[self.inputs])
        frame.to_parquet(self.output)


class DecodeEncode(Prediction):
    """The floor: read the same file and write the product's columns, without predicting."""

    name = "predict-floor"

    def predict(self, source: Path) -> None:
        from scoring.batch.scored_rows import CONSTANTS
        from scoring.files.encodings import encodings
        from scoring.files.parquet import ROWS_PER_BATCH

        with pq.ParquetFile(source, pre_buffer=False) as opened, contextlib.ExitStack() as stack:
            constants = _constants(ROWS_PER_BATCH)
            schema = _scored_schema(opened.schema_arrow, [each.type for each in constants])
            writer: pq.ParquetWriter | None = None
            for batch in opened.iter_batches(batch_size=ROWS_PER_BATCH):
                columns = [*batch.columns, *(each.slice(0, batch.num_rows) for each in constants)]
                rows = pa.Table.from_arrays(columns, schema=schema)
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(self.output, schema, **encodings(rows, CONSTANTS)))
                writer.write_table(rows)


def _scored_schema(joined: pa.Schema, types: list[pa.DataType]) -> pa.Schema:
    names = ("prediction", "reason", "model_name", "model_version", "feature_service")
    for name, kind in zip(names, types, strict=True):
        joined = joined.append(pa.field(name, kind))
    return joined


def _constants(rows: int) -> list[pa.Array]:
    from scoring.files.encodings import constant

    random = np.random.default_rng(3)
    return [
        pa.array(random.random(rows)),
        pa.nulls(rows, pa.string()),
        constant("driver_ranker", rows),
        pa.repeat(pa.scalar(1, pa.int64()), rows),
        constant("driver_ranking", rows),
    ]


PREDICTIONS: tuple[type[Prediction], ...] = (
    *(BatchOutput, Baseline, DecodeEncode),
    *(
        type(kind.__name__, (kind,), {"name": f"{kind.name}-{model}", "alias": model})
        for model in MODELS
        for kind in (BatchOutput, Baseline)
    ),
)
