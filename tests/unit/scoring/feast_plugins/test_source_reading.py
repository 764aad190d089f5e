"""Files that other tools write are read by name, as the types that the view declares."""

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FileSource
from feast.data_format import DeltaFormat
from feast.types import Array, Bool, Bytes, Float32, Float64, Int32, Int64, String, UnixTimestamp, Uuid

from scoring.errors import UnreadableSource
from scoring.feast_plugins.source_columns import read_columns
from scoring.feast_plugins.source_reading import SourceRelation, translate

EVENT = "event_timestamp"
NOON = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)
MICROSECONDS = pa.timestamp("us", "UTC")


def rows(ids: Any, x: Any = None, **more: Any) -> pa.Table:
    columns = {"id": ids, EVENT: pa.array([NOON] * len(ids), MICROSECONDS)} | ({} if x is None else {"x": x}) | more
    return pa.table(columns)


def read(
    folder: Path,
    files: dict[str, pa.Table | bytes],
    path: str = "v",
    *,
    key: Any = Int64,
    x: Any = Float64,
    names: tuple[str, ...] = ("id", "x"),
) -> list[tuple[Any, ...]]:
    """Keys and features of a source in `folder`, in order of the keys."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            pq.write_table(content, file)
    with duckdb.connect() as connection:
        columns = read_columns(["id"], names[1:], EVENT, None, {"id": key, "x": x})
        source = FileSource(path=path, timestamp_field=EVENT)
        relation = SourceRelation(connection, "source", source, folder, columns)
        selected = ", ".join(f'"{name}"' for name in names)
        try:
            return connection.execute(f"SELECT {selected} FROM source ORDER BY ALL").fetchall()
        except duckdb.Error as error:
            raise translate(error, [relation], "1GB") from error


@pytest.mark.parametrize("names", [("a", "z"), ("z", "a")])
def test_the_first_file_does_not_decide_the_types(tmp_path: Path, names: tuple[str, str]) -> None:
    integers, doubles = (f"v/{name}.parquet" for name in names)
    found = read(tmp_path, {integers: rows([1, 2], [10, None]), doubles: rows([3, 4], [10.5, 3.7])})
    assert found == [(1, 10.0), (2, None), (3, 10.5), (4, 3.7)]


HIDDEN = [
    "_temporary/0/part-0.parquet", ".ipynb_checkpoints/a-checkpoint.parquet", "_part-0.inprogress.parquet",
    ".a.parquet.crc", "deep/_staging/a.parquet", ".hidden=1/a.parquet",
]  # fmt: skip


@pytest.mark.parametrize("hidden", HIDDEN)
def test_unfinished_files_and_logs_of_other_tools_are_not_data(tmp_path: Path, hidden: str) -> None:
    files = {"v/a.parquet": rows([1], [1.0]), f"v/{hidden}": rows([9], [9.0]), "v/_SUCCESS": b"", "v/notes.txt": b"x"}
    assert read(tmp_path, files) == [(1, 1.0)]


@pytest.mark.parametrize(
    "name", ["part-0", "A.PARQUET", "a.parq", "sub/folder/a.pq", "_day=1/a.parquet", "it's.parquet"]
)
def test_data_files_may_have_these_names(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, {f"v/{name}": rows([1], [1.0]), "v/README": b"no data"}) == [(1, 1.0)]


@pytest.mark.parametrize("above", ["x=99", "id=7/x=8", "features [v2]", "a*b", "what?", "[x]", "_private", ".home"])
@pytest.mark.parametrize("path", ["v", "v/a.parquet", "v/*.parquet"])
def test_folders_above_the_source_mean_nothing(tmp_path: Path, above: str, path: str) -> None:
    assert read(tmp_path / above, {"v/a.parquet": rows([1], [1.0])}, path) == [(1, 1.0)]


def test_a_name_with_brackets_is_a_name_where_it_exists_and_else_a_pattern(tmp_path: Path) -> None:
    files = {"v[1]/a[0].parquet": rows([1], [1.0]), "v1/a0.parquet": rows([2], [2.0]), "v2/b.parquet": rows([3], [3.0])}
    assert read(tmp_path, files, "v[1]") == [(1, 1.0)]
    assert read(tmp_path, {}, "v[12]/*.parquet") == [(2, 2.0), (3, 3.0)]
    assert read(tmp_path, {}, "**/[ab]*.parquet") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert read(tmp_path, {}, str(tmp_path / "v?" / "**")) == [(2, 2.0), (3, 3.0)]


def test_partition_folders_below_the_source_are_columns_unless_the_file_has_them(tmp_path: Path) -> None:
    files = {
        "month=06/v/x=05/a.parquet": rows([1]),
        "month=06/v/x=__HIVE_DEFAULT_PARTITION__/a.parquet": rows([2]),
        "month=06/v/x=7/a.parquet": rows([3], [0.5]),
    }
    assert read(tmp_path, files, "month=06/v") == [(1, 5.0), (2, None), (3, 0.5)]
    assert read(tmp_path, {}, "month=06/v", x=String) == [(1, "05"), (2, None), (3, "0.5")]
    assert read(tmp_path, {"w/x=a%20b/_id=1/f.parquet": rows([4])}, "w", x=String) == [(4, "a b")]
    with pytest.raises(UnreadableSource, match="it has no column 'month'"):
        read(tmp_path, {}, "month=06/v", names=("id", "month"))


def test_files_of_different_partitions_are_one_relation(tmp_path: Path) -> None:
    # DuckDB takes 70 s for a union of 1500.
    for value in ("1", "2", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"v/x={value}").mkdir(parents=True)
        pq.write_table(rows([1]), tmp_path / f"v/x={value}/a.parquet")
    with duckdb.connect() as connection:
        columns = read_columns(["id"], ["x"], EVENT, None, {"id": Int64, "x": Float64})
        SourceRelation(connection, "source", FileSource(path="v", timestamp_field=EVENT), tmp_path, columns)
        ((view,),) = connection.execute("SELECT sql FROM duckdb_views() WHERE view_name = 'source'").fetchall()
        assert "UNION" not in view
        assert connection.execute("SELECT x FROM source ORDER BY x").fetchall() == [(1.0,), (2.0,), (None,)]


def test_a_column_that_a_file_lacks_is_null_there_and_one_that_none_has_is_named(tmp_path: Path) -> None:
    files = {"v/a.parquet": rows([1]), "v/b.parquet": rows([2], [2.0]), "v/c.parquet": rows([3], pa.nulls(1))}
    assert read(tmp_path, files) == [(1, None), (2, 2.0), (3, None)]
    with pytest.raises(UnreadableSource, match=r"source 'v': it has no column 'z'; it has id, event_timestamp, x\. "):
        read(tmp_path, {}, names=("id", "z"))
    with pytest.raises(UnreadableSource, match=r"d\.parquet has no column 'id', and a row can't be joined without it"):
        read(tmp_path, {"v/d.parquet": rows([4], [1.0]).drop_columns(["id"])})


@pytest.mark.parametrize("name", ["v/b.parquet", "v/X=3/b.parquet"])
def test_a_column_whose_name_has_another_case_in_a_file_is_named(tmp_path: Path, name: str) -> None:
    other = rows([2]) if "X" in name else rows([2], X=[2.0])
    with pytest.raises(
        UnreadableSource, match=r"b\.parquet has column 'X', and other files have 'x'\. Names are case-"
    ):
        read(tmp_path, {"v/a.parquet": rows([1], [1.0]), name: other})


def test_an_error_in_a_later_batch_is_named_too(tmp_path: Path) -> None:
    files = {"v/x=1.5/a.parquet": rows([1]), "v/x=abc/b.parquet": rows([2])}
    with pytest.raises(
        UnreadableSource, match=r"column 'x' of .*b\.parquet holds 'abc' in its path that can't be read"
    ):
        read(tmp_path, files)


def test_a_file_without_rows_may_have_any_types(tmp_path: Path) -> None:
    nothing = pa.table({"id": pa.array([], pa.bool_()), EVENT: pa.array([], pa.int64())})
    assert read(tmp_path, {"v/a.parquet": nothing, "v/b.parquet": rows([1], [1.0])}) == [(1, 1.0)]


nan, infinity = float("nan"), float("inf")
FEATURES = [
    (Int64, [3.0, nan, 2.5, infinity, -0.0, 1e300], [3, None, None, None, 0, None]),
    (Int64, pa.array([3.0, 2.5], pa.float32()), [3, None]),
    (Int64, pa.array([3, 200], pa.uint8()), [3, 200]),
    (Int64, pa.array([2**63, 1], pa.uint64()), [None, 1]),
    (Int64, [decimal.Decimal("3.00"), decimal.Decimal("2.50")], [3, None]),
    (Int64, ["12", " -7 ", "012", None], [12, -7, 12, None]),
    (Int64, [True, False], [1, 0]),
    (Int32, [2**31, -(2**31)], [None, -(2**31)]),
    (Float64, [1, 2**53 + 1], [1.0, 2.0**53]),
    (Float64, pa.array([0.5, None], pa.float32()), [0.5, None]),
    (Float64, ["10.5", "1e3", None], [10.5, 1000.0, None]),
    (Float64, [decimal.Decimal("0.10")], [0.1]),
    (Float32, [1e300, 0.5], [1e300, 0.5]),  # rounded later, to infinity, as Feast does
    (Bool, [0, 1, 2, None], [False, True, None, None]),
    (Bool, [0.0, 1.0, nan], [False, True, None]),
    (Bool, ["true", "False"], [True, False]),
    (String, [1, None], ["1", None]),
    (String, pa.array(["é", "b"], pa.large_string()).dictionary_encode(), ["é", "b"]),
    (String, pa.array(["é".encode(), None]), ["é", None]),
    (String, pa.array([0.5, nan], pa.float32()), ["0.5", None]),
    (Float64, pa.array([0.5, None], pa.float16()), [0.5, None]),
    (Float64, pa.array([decimal.Decimal("0.5")], pa.decimal256(20, 1)), [0.5]),
    (UnixTimestamp, [NOON.date(), None], [NOON.replace(hour=0), None]),
    (UnixTimestamp, [NOON.isoformat()], [NOON]),
    (Array(Float32), [[0.5], None], [[0.5], None]),
    (Array(Float64), [[1, None], None, []], [[1.0, None], None, []]),
    (Array(Float64), pa.array([[0.5, 2.0]], pa.list_(pa.float32(), 2)), [[0.5, 2.0]]),
    (Array(Float32), [[1], [2]], [[1.0], [2.0]]),
    (Bytes, ["é", None], ["é".encode(), None]),
    (Array(Int64), pa.array([[1], None], pa.large_list(pa.uint8())), [[1], None]),
]


@pytest.mark.parametrize(("declared", "values", "right"), FEATURES)
def test_features_are_read_as_declared_or_null(tmp_path: Path, declared: Any, values: Any, right: list[Any]) -> None:
    found = read(tmp_path, {"v/a.parquet": rows(list(range(len(right))), values)}, x=declared)
    assert [value for _, value in found] == right
    assert [type(value) for _, value in found] == [type(value) for value in right]


@pytest.mark.parametrize(
    ("declared", "values", "found"),
    [
        (Float64, ["1.5", "abc"], "string"),
        (Int64, ["1", "1.5"], "string"),
        (Bool, ["yes"], "string"),
        (Float64, [NOON], "timestamp"),
        (Int64, [[1]], "list"),
        (String, [{"a": 1}], "struct"),
        (String, [b"\xff"], "binary"),
        (String, pa.array([1], pa.duration("us")), "duration"),
        (Float64, pa.array([decimal.Decimal("0.5")], pa.decimal256(39, 1)), "decimal256"),
        (UnixTimestamp, [1_780_000_000], "int64"),
        (UnixTimestamp, ["soon"], "string"),
    ],
)
def test_what_has_no_conversion_is_named_with_file_column_and_types(
    tmp_path: Path, declared: Any, values: Any, found: str
) -> None:
    files = {"v/a.parquet": rows([0], [None]), "v/b.parquet": rows(list(range(len(values))), values)}
    expected = rf"source 'v': column 'x' of .*v/b\.parquet holds {found}.* that can't be read as {declared}, "
    with pytest.raises(UnreadableSource, match=expected) as caught:
        read(tmp_path, files, x=declared)
    assert "abc" not in str(caught.value)


KEYS = [
    (String, [1, 2], ["1", "2"]),
    (String, [1001.0, -0.0, 2.5, nan], ["0", "1001", None, None]),
    (String, [b"ab", b"\xff"], ["ab", None]),
    (Uuid, [b"ab", b"\xff"], ["ab", None]),
    (Int64, ["1", "0001", "-2", "abc", "1.0", "", "+3", "99999999999999999999"], [-2, 1, *[None] * 6]),
    (Int64, [1001.0, 1001.5, nan], [1001, None, None]),
    (Int32, [1, 2**40], [1, None]),
]


@pytest.mark.parametrize(("declared", "values", "right"), KEYS)
def test_a_key_that_is_not_of_the_declared_type_matches_nothing(
    tmp_path: Path, declared: Any, values: list[Any], right: list[Any]
) -> None:
    found = read(tmp_path, {"v/a.parquet": rows(values, [0.0] * len(values))}, key=declared)
    assert [key for key, _ in found] == right


def test_a_key_of_a_type_that_is_no_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource, match=r"'id' of .*a\.parquet holds bool values that can't be read as Int64"):
        read(tmp_path, {"v/a.parquet": rows([True], [1.0])})


def test_timestamps_are_read_from_all_types_that_hold_them(tmp_path: Path) -> None:
    naive = [NOON.replace(tzinfo=None)]
    far = [dt.datetime(9999, 12, 31)]
    files = {}
    for number, column in enumerate(
        (pa.array(naive, pa.timestamp("ns")), pa.array([NOON], pa.timestamp("ms", "Europe/Rome")),
         pa.array([NOON.isoformat()]), pa.array([NOON.date()]), pa.array(["2026-06-01 12:00:00"]))
    ):  # fmt: skip
        files[f"v/{number}.parquet"] = pa.table({"id": [number], EVENT: column})
    (tmp_path / "v").mkdir()
    table = pa.table({"id": [9], EVENT: pa.array(far, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "v" / "int96.parquet", use_deprecated_int96_timestamps=True)
    found = dict(read(tmp_path, files, names=("id", EVENT)))
    assert {number: time.astimezone(dt.UTC) for number, time in found.items()} == {
        **dict.fromkeys((0, 1, 2, 4), NOON), 3: NOON.replace(hour=0), 9: far[0].replace(tzinfo=dt.UTC),
    }  # fmt: skip


@pytest.mark.parametrize(("column", "found"), [([1, 2], "int64"), (["today", None], "string")])
def test_an_event_timestamp_that_is_none_is_named(tmp_path: Path, column: list[Any], found: str) -> None:
    table = pa.table({"id": [1, 2], EVENT: column})
    expected = rf"'event_timestamp' of .*a\.parquet holds {found} values that can't be read as a timestamp"
    with pytest.raises(UnreadableSource, match=expected):
        read(tmp_path, {"v/a.parquet": table}, names=("id", EVENT))


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource, match=r"source 'v': there is no Parquet file at .*/v\. .*check the path"):
        read(tmp_path, {})
    with pytest.raises(UnreadableSource, match="there is no Parquet file"):
        read(tmp_path, {"v/_a.parquet": rows([1], [1.0])})
    with pytest.raises(
        UnreadableSource, match=r"v/b\.parquet is not a Parquet file that can be read .* Write it again"
    ):
        read(tmp_path, {"v/a.parquet": rows([1], [1.0]), "v/b.parquet": b"half a fi"})


def test_a_file_with_a_damaged_page_is_named(tmp_path: Path) -> None:
    read(tmp_path, {"v/a.parquet": rows([1], [1.0]), "v/b.parquet": rows(list(range(9999)), [0.5] * 9999)})
    file = tmp_path / "v" / "b.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * 64 + content[68:])
    with pytest.raises(UnreadableSource, match=r"column 'id' of .*v/b\.parquet can't be read: the file is damaged"):
        read(tmp_path, {})


def test_lists_of_different_types_are_read_as_a_common_one_or_named(tmp_path: Path) -> None:
    files = {"v/a.parquet": rows([1], [[1]]), "v/b.parquet": rows([2], [[0.5]])}
    assert read(tmp_path, files, x=Array(Float64)) == [(1, [1.0]), (2, [0.5])]
    with pytest.raises(
        UnreadableSource, match=r"'x' holds list.* in .*\.parquet and string values in .*c\.parquet: write"
    ):
        read(tmp_path, {"v/c.parquet": rows([3], ["a"])}, x=Array(Float64))


def read_delta(folder: Path, path: str = "t", names: tuple[str, ...] = ("id", "x"), x: Any = Float64) -> list[Any]:
    with duckdb.connect() as connection:
        columns = read_columns(["id"], names[1:], EVENT, None, {"id": Int64, "x": x})
        source = FileSource(path=path, timestamp_field=EVENT, file_format=DeltaFormat())
        SourceRelation(connection, "source", source, folder, columns)
        return connection.execute("SELECT id, x FROM source ORDER BY ALL").fetchall()


def test_a_delta_table_is_read_as_its_latest_version(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    write_deltalake(table, rows([1, 2]))
    write_deltalake(table, rows([2, 3], [2.5, 3.5]), mode="overwrite", predicate="id >= 2", schema_mode="merge")
    write_deltalake(table, rows([4], [4.5]), mode="append")
    DeltaTable(table).delete("id = 4")

    assert read_delta(tmp_path) == [(1, None), (2, 2.5), (3, 3.5)]
    for path in ("t", "t/*.parquet", "**/part-*.parquet"):
        with pytest.raises(
            UnreadableSource, match=r"is in a Delta table: name its folder, and declare file_format=Delta"
        ):
            read(tmp_path, {}, path)
    assert read(tmp_path, {"other.parquet": rows([9], [9.5])}, "*.parquet") == [(9, 9.5)]


@pytest.mark.parametrize(
    ("column", "x", "expected"),
    [
        (pa.array([7, None]), Float64, [7.0, None]),
        (pa.array(["a b/%2F=ä", ""]), String, ["a b/%2F=ä", None]),
        (pa.array([NOON.date(), None]), UnixTimestamp, [dt.datetime(2026, 6, 1, tzinfo=dt.UTC), None]),
    ],
)
def test_partition_values_of_a_delta_table_come_from_its_log(
    tmp_path: Path, column: Any, x: Any, expected: Any
) -> None:
    write_deltalake(str(tmp_path / "t"), rows([1, 2], column), partition_by=["x"])

    assert read_delta(tmp_path, x=x) == list(zip([1, 2], expected, strict=True))


def test_what_is_no_delta_table_or_has_unknown_features_is_refused(tmp_path: Path) -> None:
    pq.write_table(rows([1]), tmp_path / "a.parquet")
    for path in ("none", "a.parquet"):
        with pytest.raises(UnreadableSource, match=rf"the Delta table .*{path} can't be read: ") as caught:
            read_delta(tmp_path, path)
        assert "\n" not in str(caught.value)
    write_deltalake(str(tmp_path / "t"), rows([1]), configuration={"delta.enableDeletionVectors": "true"})
    with pytest.raises(UnreadableSource, match="has features that this project does not read: deletionVectors"):
        read_delta(tmp_path)
