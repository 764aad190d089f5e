"""Materialize 200,000 drivers from Feast's offline store into an empty online store: Redis and SQLite."""

import contextlib
import datetime as dt
import hashlib
import io
import os
import shutil
import sqlite3
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from benchmarks.batch.world import feature_rows
from benchmarks.paths import ROOT, VAR

if TYPE_CHECKING:
    from feast import FeatureStore
    from redis import Redis

REDIS_PORT = "BENCH_REDIS_PORT"
"""Environment variable with the port of the Redis to write to, on loopback."""
MATERIALIZE_UNTIL = "BENCH_MATERIALIZE_UNTIL"
"""Environment variable with the timestamp up to which all contenders materialize."""


class Materialization:
    """A repository whose registry and online store are reset to their state after `feast apply` before each run."""

    name: str
    others: ClassVar[dict[str, Any]]
    """Further sections of feature_store.yaml."""

    @property
    def online_store(self) -> dict[str, str]:
        """The section online_store of feature_store.yaml."""
        raise NotImplementedError

    def __init__(self, rows: int) -> None:
        self.drivers = rows
        self.folder = VAR / "materialization" / self.name
        self.repository = self.folder / "feature_repo"
        self.data = self.repository / "data"

    def prepare(self) -> None:
        """Create the repository, apply it, and materialize few drivers."""
        from scoring.features.feature_store import apply_definitions

        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(ROOT / "feature_repo", self.repository, ignore=shutil.ignore_patterns("data", "__pycache__"))
        self.data.mkdir()
        self._configure()
        apply_definitions(self.open())
        shutil.copytree(self.data, self.folder / "applied")
        self.until = dt.datetime.fromisoformat(os.environ[MATERIALIZE_UNTIL])
        for drivers in (1000, self.drivers):
            # Three rows per driver, of which only the latest is materialized.
            stats = feature_rows(self.until - dt.timedelta(minutes=1), drivers, 3)
            stats.to_parquet(self.data / "driver_stats.parquet", coerce_timestamps="us", index=False)
            if drivers < self.drivers:
                self.reset()
                self.run()

    def reset(self) -> None:
        """Restore the registry and the online store as of `feast apply`."""
        for file in (self.folder / "applied").iterdir():
            shutil.copy(file, self.data / file.name)
        self.empty()
        self.store = self.open()

    def run(self) -> None:
        """Materialize everything up to `self.until`."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.materialize(self.store)

    def outcome(self) -> dict[str, object]:
        """Return a hash of the online store's content, and whether Feast's watermarks match `self.until`."""
        self.store.refresh_registry()
        (view,) = self.store.list_batch_feature_views()
        ends = [end.isoformat() for _, end in view.materialization_intervals]
        return {"content": self.content(), "watermarks": [end == self.until.isoformat() for end in ends]}

    def open(self) -> "FeatureStore":
        """Open the repository's feature store."""
        from scoring.features.feature_store import open_feature_store
        from scoring.settings import Settings

        return open_feature_store(Settings(model_name="none", feature_repo=self.repository))

    def materialize(self, store: "FeatureStore") -> None:
        """Materialize everything up to `self.until`."""
        raise NotImplementedError

    def empty(self) -> None:
        """Empty the online store if it is not a file."""

    def content(self) -> str:
        """Return a hash of the online store's content."""
        raise NotImplementedError

    def _configure(self) -> None:
        file = self.repository / "feature_store.yaml"
        configuration: dict[str, Any] = yaml.safe_load(file.read_text())
        configuration |= {"online_store": self.online_store} | self.others
        file.write_text(yaml.safe_dump(configuration))


class ByFeast(Materialization):
    """The baseline: Feast's materialize-incremental with its file store and its local engine."""

    others: ClassVar[dict[str, Any]] = {"offline_store": {"type": "file"}, "batch_engine": {"type": "local"}}

    def materialize(self, store: "FeatureStore") -> None:
        from scoring.imports import inside

        with inside(self.repository):
            store.materialize_incremental(end_date=self.until)


class ByProduct(Materialization):
    """The work of the asset `online_store`, with the offline store and engine of this project."""

    others: ClassVar[dict[str, Any]] = {}

    def materialize(self, store: "FeatureStore") -> None:
        from scoring.features.materialize import materialize_online_store

        materialize_online_store(store, self.until)


class IntoSqlite(Materialization):
    """SQLite in the repository's folder."""

    @property
    def online_store(self) -> dict[str, str]:
        return {"type": "sqlite", "path": "data/online_store.db"}

    def content(self) -> str:
        with sqlite3.connect(self.data / "online_store.db") as connection:
            (table,) = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchone()
            columns = "entity_key, feature_name, value, event_ts"
            rows = connection.execute(f'SELECT {columns} FROM "{table}" ORDER BY 1, 2')
            digest = hashlib.sha256()
            for row in rows:
                digest.update(repr(row).encode())
            return digest.hexdigest()


class IntoRedis(Materialization):
    """A separate Redis, with one database per contender."""

    database: int

    @property
    def online_store(self) -> dict[str, str]:
        return {"type": "redis", "connection_string": f"127.0.0.1:{os.environ[REDIS_PORT]},db={self.database}"}

    def client(self) -> "Redis":
        """Return a client of the database."""
        import redis

        return redis.Redis(port=int(os.environ[REDIS_PORT]), db=self.database)

    def empty(self) -> None:
        self.client().flushdb()

    def content(self) -> str:
        client, digest = self.client(), hashlib.sha256()
        keys = sorted(client.scan_iter(count=10_000))
        for start in range(0, len(keys), 10_000):
            pipeline = client.pipeline(transaction=False)
            for key in keys[start : start + 10_000]:
                pipeline.hgetall(key)
            for key, fields in zip(keys[start : start + 10_000], pipeline.execute(), strict=True):
                digest.update(repr((key, sorted(fields.items()))).encode())
        return digest.hexdigest()


class FeastIntoRedis(ByFeast, IntoRedis):
    """Feast, into Redis."""

    name, database = "materialize-redis-feast", 1


class ProductIntoRedis(ByProduct, IntoRedis):
    """The product, into Redis."""

    name, database = "materialize-redis-product", 2


class FeastIntoSqlite(ByFeast, IntoSqlite):
    """Feast, into SQLite."""

    name = "materialize-sqlite-feast"


class ProductIntoSqlite(ByProduct, IntoSqlite):
    """The product, into SQLite."""

    name = "materialize-sqlite-product"


MATERIALIZATIONS = (ProductIntoRedis, FeastIntoRedis, ProductIntoSqlite, FeastIntoSqlite)
