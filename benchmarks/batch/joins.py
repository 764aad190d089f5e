"""Join a request with its features point-in-time, from parquet file to parquet file."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.batch.task import output_file
from benchmarks.batch.world import FEATURES, FEW, SERVICE, open_batch_world, request_of, store_configuration
from scoring.files.location import Location


class Join:
    """Base class: the request, the output file and its inspection."""

    name = "join"

    def __init__(self, rows: int) -> None:
        self.world = open_batch_world()
        self.rows = rows
        self.repository = Path(self.world.environment["SERVING_FEATURE_REPO"])
        self.output = output_file(self.name)

    def prepare(self) -> None:
        """Join few rows."""
        self.join(request_of(self.world, FEW))
        self.request = request_of(self.world, self.rows)

    def reset(self) -> None:
        """Do nothing: each run replaces the output."""

    def run(self) -> None:
        """Join all rows."""
        self.join(self.request)

    def join(self, request: Path) -> None:
        """Join a request into `self.output`."""
        raise NotImplementedError

    def outcome(self) -> dict[str, object]:
        """Return the number of rows, whether they are in order, and a hash of the features in the request's order."""
        # Feast's stores put the view before a feature's name, and ours does so with a colon until Feast renames it.
        found = {name.replace(":", "__").rpartition("__")[2]: name for name in pq.read_schema(self.output).names}
        columns = [found[each] for each in FEATURES]
        table = pq.read_table(self.output, columns=["ride", *columns])
        ordered = table.take(pc.sort_indices(table["ride"]))
        digest = hashlib.sha256()
        for column in columns:
            digest.update(ordered[column].cast("float64").to_numpy().tobytes())
        return {
            "rows": table.num_rows,
            "in_order": ordered["ride"].equals(table["ride"]),
            "features": digest.hexdigest(),
        }


class BatchInput(Join):
    """The product: the asset's function, from checking the request to the published, synced and hashed file."""

    name = "join-product"

    def prepare(self) -> None:
        from scoring.models.registry import MlflowRegistry
        from scoring.serving import link_registered_version, resolve_version

        settings = self.world.settings
        registry = MlflowRegistry.from_settings(settings)
        version = resolve_version(registry, settings)
        self.model = str(version)
        self.store = self.world.store()
        self.features = link_registered_version(registry, self.store, version, settings)
        self.output = self.output.with_name("batch_input.parquet")
        super().prepare()

    def join(self, request: Path) -> None:
        from scoring.batch.engine import LocalEngine
        from scoring.batch.manifest import Origin
        from scoring.batch.request import copied_request
        from scoring.features.feature_store import read_definitions

        with copied_request(Location(request)) as copy:
            origin = Origin(copy.content, self.model, self.features.service, read_definitions(self.store).hash)
            LocalEngine().write_input(copy, origin, self.store, self.features, Location(self.output.parent))


class OurStore(Join):
    """Our offline store through Feast's get_historical_features, streamed to a file."""

    name = "join-store"

    def prepare(self) -> None:
        self.store = self.world.store()
        super().prepare()

    def join(self, request: Path) -> None:
        import pyarrow as pa

        from scoring.imports import inside

        with inside(self.repository):
            service = self.store.get_feature_service(SERVICE)
            job: Any = self.store.get_historical_features(f"SELECT * FROM read_parquet('{request}')", service)
            batches = iter(job.to_batches())
            first = next(batches)
            with pq.ParquetWriter(self.output, first.schema, use_dictionary=False) as writer:
                writer.write_batch(first)
                for batch in batches:
                    writer.write_table(pa.Table.from_batches([batch]))


class FeastStore(Join):
    """One of Feast's own stores, used as documented: a frame in, a frame out."""

    offline_store: str

    def prepare(self) -> None:
        from feast import FeatureStore

        self.store = FeatureStore(
            str(self.repository), fs_yaml_file=self.repository / store_configuration(self.offline_store)
        )
        super().prepare()

    def join(self, request: Path) -> None:
        import pandas as pd

        from scoring.imports import inside

        with inside(self.repository):
            entity_rows = pd.read_parquet(request)
            service = self.store.get_feature_service(SERVICE)
            self.store.get_historical_features(entity_rows, service).to_df().to_parquet(self.output)


class FeastFileStore(FeastStore):
    """The baseline: Feast's store over dask."""

    name, offline_store = "join-feast-file", "file"


class FeastDuckdbStore(FeastStore):
    """Feast's store over DuckDB and ibis."""

    name, offline_store = "join-feast-duckdb", "duckdb"


class BareAsof(Join):
    """The floor: one DuckDB statement, without Feast's times to live and without ties by created timestamp."""

    name = "join-floor"

    def join(self, request: Path) -> None:
        import duckdb

        source = self.repository / "data" / "driver_stats.parquet"
        features = ", ".join(f"f.{each}" for each in FEATURES)
        with duckdb.connect(config={"threads": 2}) as connection:
            connection.execute("SET TimeZone='UTC'")
            connection.execute(
                f"COPY (SELECT e.* EXCLUDE position, {features} FROM"
                f" (SELECT *, row_number() OVER () AS position FROM read_parquet('{request}')) e"
                f" ASOF LEFT JOIN read_parquet('{source}') f"
                " ON e.driver_id = f.driver_id AND e.event_timestamp >= f.event_timestamp"
                f" ORDER BY position) TO '{self.output}' (FORMAT parquet)"
            )


JOINS = (BatchInput, OurStore, FeastDuckdbStore, FeastFileStore, BareAsof)
