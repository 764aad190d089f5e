"""Batch and online know the same of an entity whichever types a source's files have, with Feast's engine and ours."""

import contextlib
import datetime as dt
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.join import PointInTimeJoin
from scoring.errors import FeatureStoreError, UnreadableSource
from scoring.feast_plugins.source_files import source_files
from scoring.features.feature_service import link_features
from scoring.features.model_features import reasons_from_nulls
from scoring.files.location import delta_server
from scoring.imports import inside
from scoring.online.lookup import fastest_lookup, read_online_vectors
from tests.support.feature_repository import open_repository, write_definitions
from tests.support.s3 import make_bucket
from tests.support.servers import S3Server

if TYPE_CHECKING:
    from feast import FeatureStore

ENGINE = "scoring.feast_plugins.materialization.StreamingComputeEngine"
NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
DEFINITIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

e = Entity(name="e", join_keys=["id"], value_type=ValueType.{KEY})
def view(name, features, entities=[e]):
    keys = [Field(name="id", dtype={key})] if entities else []
    return FeatureView(name=name, entities=entities, ttl=timedelta(days=999),
        schema=[*keys, *[Field(name=feature, dtype={x}) for feature in features]],
        source=FileSource(name=name, path=f"data/{{name}}", timestamp_field="event_timestamp"))
"""
ONE_VIEW = 'v = view("v", ["x"])\ns = FeatureService(name="s", features=[v])\n'
GLOBAL = 'v = view("v", ["x"])\ng = view("g", ["rate"], [])\ns = FeatureService(name="s", features=[v, g])\n'
ALIKE = (
    'a = view("stats", ["day__count"])\nb = view("stats__day", ["count"])\n'
    's = FeatureService(name="s", features=[a, b])\n'
)
TYPES = {"Int64": pa.int64(), "String": pa.string(), "Float64": pa.float64()}


class World:
    """One repository whose views all have keys and features of one type."""

    def __init__(
        self, folder: Path, views: str = ONE_VIEW, key: str = "Int64", x: str = "Float64", **store: Any
    ) -> None:
        self.folder, self.key, self.x = folder, TYPES[key], TYPES[x]
        write_definitions(folder, DEFINITIONS.format(KEY=key.upper(), key=key, x=x) + views)
        self._store = store

    def write(self, name: str, hour: int = 0, **columns: Any) -> None:
        rows = len(next(iter(columns.values())))
        times = pa.array([NOON + hour * HOUR] * rows, pa.timestamp("us", "UTC"))
        file = self.folder / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"event_timestamp": times, **columns}), file)

    def open(self) -> "FeatureStore":
        return open_repository(self.folder, **self._store)

    def known(self, asked: list[Any], *inputs: str) -> tuple[list[Any], list[Any]]:
        """What batch and online know of these entities: (the inputs' values, reason) of each."""
        store = self.open()
        with inside(self.folder), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            store.materialize(NOON - 99 * HOUR, NOON + 99 * HOUR)
        signature = Signature(tuple(ModelInput(name, self.x) for name in inputs or ("x",)))
        features = link_features(store, "m/1", "s", signature, ())
        request = self.folder / "request.parquet"
        times = pa.array([NOON + 99 * HOUR] * len(asked), pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"id": pa.array(asked, self.key), "event_timestamp": times}), request)
        online = read_online_vectors(fastest_lookup(store, features), features, {"id": asked}, NOON + 99 * HOUR)
        joined = pa.concat_tables(PointInTimeJoin(store, features, request).tables()).select(list(signature.names))
        return _rows(joined, reasons_from_nulls(features, joined)), _rows(online.vectors, online.reasons)


def _rows(vectors: pa.Table, reasons: Any) -> list[Any]:
    return [(*row.values(), reason) for row, reason in zip(vectors.to_pylist(), reasons.to_pylist(), strict=True)]


@pytest.fixture(params=["local", ENGINE], ids=["feast", "ours"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


GONE = (None, "not_found")
NULL = (None, "null_feature")


@pytest.mark.parametrize(
    ("key", "ids", "asked", "right"),
    [
        ("String", [1, 2], ["1", "0001", "abc", "2"], [(1.0, None), GONE, GONE, (2.0, None)]),
        ("Int64", ["1", "0002", "abc"], [1, 2], [(1.0, None), GONE]),
        ("Int64", [1.0, None, 2.5], [1, 2], [(1.0, None), GONE]),
    ],
)
def test_keys_are_compared_as_their_declared_type(
    tmp_path: Path, engine: str, key: str, ids: list[Any], asked: list[Any], right: list[Any]
) -> None:
    world = World(tmp_path, key=key, engine=engine)
    world.write("v/a.parquet", id=ids, x=[float(place + 1) for place in range(len(ids))])
    assert world.known(asked) == (right, right)


@pytest.mark.parametrize(
    ("x", "old", "new", "right"),
    [
        ("Float64", [10, 12], [10.5, None], [(10.0, None), (12.0, None), (10.5, None), NULL]),
        ("Int64", [3.0, float("nan")], [2.5, 4.0], [(3, None), NULL, NULL, (4, None)]),
        ("String", [1, None], ["b", "c"], [("1", None), NULL, ("b", None), ("c", None)]),
    ],
)
def test_features_are_read_as_their_declared_type(
    tmp_path: Path, engine: str, x: str, old: list[Any], new: list[Any], right: list[Any]
) -> None:
    world = World(tmp_path, x=x, engine=engine)
    world.write("v/2026-05.parquet", id=[1, 2], x=old)
    world.write("v/2026-06.parquet", id=[3, 4], x=new)
    world.write("v/_temporary/2026-07.parquet", hour=5, id=[1], x=["unfinished"])
    batch, online = world.known([1, 2, 3, 4])
    assert online == right
    assert batch == [GONE if row == NULL else row for row in right]  # a point-in-time join can't tell them apart


def test_a_view_without_entities_has_one_row_for_all(tmp_path: Path, engine: str) -> None:
    world = World(tmp_path, GLOBAL, engine=engine)
    world.write("v/a.parquet", id=[1, 4], x=[1.0, 4.0])
    world.write("g/a.parquet", hour=2, rate=[7.0])
    world.write("g/b.parquet", hour=1, rate=[5.0])
    right = [(1.0, 7.0, None), (None, 7.0, "not_found"), (4.0, 7.0, None)]
    assert world.known([1, 2, 4], "x", "rate") == (right, right)


def test_a_view_without_entities_is_read_by_feasts_code_too(tmp_path: Path) -> None:
    world = World(tmp_path, GLOBAL, bulk=False)
    world.write("v/a.parquet", id=[1, 4], x=[1.0, 4.0])
    world.write("g/a.parquet", rate=[7.0])
    right = [(1.0, 7.0, None), (4.0, 7.0, None)]
    assert world.known([1, 4], "x", "rate") == (right, right)


def test_features_whose_joined_names_are_alike_are_two_features(tmp_path: Path, engine: str) -> None:
    world = World(tmp_path, ALIKE, engine=engine)
    world.write("stats/a.parquet", id=[1], day__count=[1.0])
    world.write("stats__day/a.parquet", id=[1], count=[100.0])
    assert world.known([1], "day__count", "count") == ([(1.0, 100.0, None)], [(1.0, 100.0, None)])


def test_features_that_feast_would_answer_under_one_name_are_named(tmp_path: Path) -> None:
    world = World(tmp_path, ALIKE, bulk=False)
    world.write("stats/a.parquet", id=[1], day__count=[1.0])
    world.write("stats__day/a.parquet", id=[1], count=[100.0])
    with pytest.raises(
        FeatureStoreError, match="returns both stats:day__count and stats__day:count as stats__day__count: "
    ):
        world.known([1], "day__count", "count")


@pytest.mark.parametrize("in_s3", [False, True])
def test_a_delta_table_is_joined_and_materialized(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, in_s3: bool
) -> None:
    path, override = "data/v", ""
    if in_s3:
        for name, value in s3_server.environment.items():
            monkeypatch.setenv(name, value)
        make_bucket(s3_server, "tables")
        path, override = "s3://tables/v", f's3_endpoint_override="{s3_server.endpoint_url}", '
    world = World(tmp_path, engine=ENGINE)
    definitions = tmp_path / "definitions.py"
    source = f'path=f"{path}", {override}file_format=DeltaFormat()'
    text = definitions.read_text().replace('path=f"data/{name}"', source)
    definitions.write_text(f"from feast.data_format import DeltaFormat\n{text}")
    place = path if in_s3 else str(tmp_path / path)
    options = delta_server(s3_server.endpoint_url) if in_s3 else None
    for ids, x in (([1, 2], [1.0, 2.0]), ([2, 3], [2.5, 3.5])):
        table = pa.table({"id": ids, "event_timestamp": pa.array([NOON - HOUR] * 2, pa.timestamp("us", "UTC")), "x": x})
        write_deltalake(place, table, mode="overwrite", storage_options=options)

    batch, online = world.known([1, 2, 3])

    assert batch == online == [GONE, (2.5, None), (3.5, None)]


def test_objects_in_s3_are_read_as_files_are(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast import FileSource
    from pyarrow.fs import S3FileSystem

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    make_bucket(s3_server, "sources")
    s3 = S3FileSystem(endpoint_override=s3_server.endpoint_url)
    source = f'path=f"s3://sources/x=99/{{name}}", s3_endpoint_override="{s3_server.endpoint_url}"'
    world = World(tmp_path, engine=ENGINE)
    definitions = tmp_path / "definitions.py"
    definitions.write_text(definitions.read_text().replace('path=f"data/{name}"', source))
    tables = {
        "a.parquet": ([1, 2], [10, 12]), "day [1]/b.parquet": ([3], [10.5]), "_day=2/c": ([4], [3.7]),
        "_temporary/0/d.parquet": ([5], [0.0]), "e.parquet": ([6], None), "README.md": ([7], [0.0]),
    }  # fmt: skip
    for name, (ids, x) in tables.items():
        world.write("object", id=ids, **({} if x is None else {"x": x}))
        with s3.open_output_stream(f"sources/x=99/v/{name}") as file:
            file.write((tmp_path / "data" / "object").read_bytes())
    right = [(10.0, None), (12.0, None), (10.5, None), (3.7, None), GONE]
    batch, online = world.known([1, 2, 3, 4, 5])
    assert (batch, online) == (right, right)
    pattern = FileSource(path="s3://sources/**/[ab].parquet", s3_endpoint_override=s3_server.endpoint_url)
    assert [file.path.rpartition("/")[2] for file in source_files(pattern, None)] == ["a.parquet", "b.parquet"]
    with pytest.raises(UnreadableSource, match="there is no Parquet file at s3://sources/none"):
        source_files(FileSource(path="s3://sources/none", s3_endpoint_override=s3_server.endpoint_url), None)
