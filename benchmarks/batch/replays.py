"""The replay of a prediction log beside scoring a batch request with the same rows."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.batch.graph import Parts
from scoring.files.location import Location

if TYPE_CHECKING:
    from scoring.features.model_features import ModelFeatures
    from scoring.monitoring.prediction_log import LoggedBatch

ROWS_PER_FILE = 100_000
"""The default of SERVING_PREDICTION_LOG_ROWS."""


class ScoreRequest(Parts):
    """Joins and scores the rows as a batch request."""

    name = "replay-request"


class Replay(Parts):
    """Replays the rows as a prediction log, which has what batch computes."""

    name = "replay-product"

    def prepare(self) -> None:
        super().prepare()
        self.score_request("all")
        for key in ("few", "all"):
            self._write_log(key)
        self.score("few")

    def score_request(self, key: str) -> None:
        """Score one of the requests in batch."""
        super().score(key)

    def score(self, key: str) -> None:
        from scoring.models.registry import MlflowRegistry
        from scoring.monitoring.replay import replay

        if not (self.folder / "log" / key).is_dir():  # while preparing
            self.score_request(key)
            return
        settings = self.world.settings
        registry, report = MlflowRegistry.from_settings(settings), Location(self.folder / "report.parquet")
        self.report = replay(Location(self.folder / "log" / key), settings, registry, self.world.store(), report)

    def outcome(self) -> dict[str, object]:
        """Return the rows, and how many of them differ."""
        return {"rows": self.report.rows, "differing": f"{self.report.different} rows"}

    def _write_log(self, key: str) -> None:
        from scoring.features.feature_store import read_definitions
        from scoring.models.registry import MlflowRegistry
        from scoring.monitoring.prediction_log import LOG_TIMESTAMP, LogSchema, feast_log_schema
        from scoring.predict import Policy
        from scoring.serving import load_serving_model, resolve_version

        settings, store = self.world.settings, self.world.store()
        registry = MlflowRegistry.from_settings(settings)
        version = resolve_version(registry, settings)
        serving = load_serving_model(registry, store, version, settings)
        schema = LogSchema(
            version,
            serving.features,
            serving.model.outputs,
            feast_log_schema(store, serving.features),
            role="champion",
            definitions=read_definitions(store).hash,
            policy=Policy.from_settings(settings),
        )
        folder = self.folder / "log" / key
        folder.mkdir(parents=True)
        with pq.ParquetFile(self.artifacts / key / "batch_output.parquet") as scored:
            for number, batch in enumerate(scored.iter_batches(ROWS_PER_FILE)):
                rows = pa.Table.from_batches([batch])
                logged = schema.table([_as_served(rows, serving.features)])
                place = logged.schema.get_field_index(LOG_TIMESTAMP)
                times = rows["event_timestamp"].cast(logged.schema.field(place).type)
                pq.write_table(logged.set_column(place, LOG_TIMESTAMP, times), folder / f"{number}.parquet")


def _as_served(rows: pa.Table, features: "ModelFeatures") -> "LoggedBatch":
    """Return the rows of a batch output as those of one request."""
    from scoring.monitoring.prediction_log import LoggedBatch, LoggedRequest
    from scoring.online.reading import StoreRead

    columns = {each.column: rows[each.input].combine_chunks().cast(each.dtype) for each in features.features}
    read = StoreRead({view.name: np.ones(rows.num_rows) for view in features.views}, columns)
    outputs, reasons = [rows["prediction"].to_pylist()], rows["reason"].to_pylist()
    keys = {key.name: rows[key.name].to_pylist() for key in features.join_keys}
    return LoggedBatch([LoggedRequest("r", keys, rows.num_rows, outputs, reasons, 1.0)], datetime.now(UTC), read)


REPLAYS = (ScoreRequest, Replay)
