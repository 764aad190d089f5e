"""A batch request is read whole and in order, or refused with file, column and first bad row."""

import csv
import datetime as dt
import gzip
import tempfile
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.request import copied_request, read_batch_request
from scoring.batch.text_request import CHUNK_BYTES
from scoring.errors import BatchRequestError
from scoring.feast_plugins.join_keys import JoinKey
from scoring.features.model_features import Feature, ModelFeatures, View
from scoring.files.location import Location

FEATURES = ModelFeatures(
    service="ranking",
    join_keys=(JoinKey("shop_id", "int64"),),
    features=(Feature("rate", "stats:rate", pa.float32(), ("stats",)),),
    views=(View("stats", ("stats:rate",), None),),
    request_inputs=("amount",),
    signature=Signature((ModelInput("amount", pa.float64()), ModelInput("rate", pa.float64()))),
)


TEXT_KEY = msgspec.structs.replace(FEATURES, join_keys=(JoinKey("shop", "string"),), request_inputs=())
HEADER = "shop_id,event_timestamp,amount\n"
GOOD = HEADER + "7,2026-01-01T00:00:00Z,1\n"


def read_file(file: Path, features: ModelFeatures = FEATURES) -> pa.Table:
    return pa.concat_tables(read_batch_request(file, features))


def read_parquet(folder: Path, shop_id: pa.Array, event_timestamp: pa.Array, amount: pa.Array) -> pa.Table:
    columns = {"shop_id": shop_id, "event_timestamp": event_timestamp, "amount": amount}
    pq.write_table(pa.table(columns), folder / "r.parquet")
    return read_file(folder / "r.parquet")


def read(folder: Path, content: str | bytes, name: str = "r.csv", features: ModelFeatures = FEATURES) -> pa.Table:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file(file, features)


def refusal(folder: Path, content: str | bytes, name: str = "r.csv") -> BatchRequestError:
    with pytest.raises(BatchRequestError) as caught:
        read(folder, content, name)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("name", "comma"), [("r.csv", ","), ("r.tsv", "\t")])
def test_keys_timestamps_and_request_inputs_get_their_types_and_extras_stay(
    tmp_path: Path, name: str, comma: str
) -> None:
    text = "note,shop_id,event_timestamp,amount\nx,7,2026-01-02T03:04:05Z,1.5\ny,8,2026-01-02T03:04:05+07:00,2\n"
    table = read(tmp_path, text.replace(",", comma), name)
    assert table.column_names == ["note", "shop_id", "event_timestamp", "amount"]
    assert table.schema.types == [pa.string(), pa.int64(), pa.timestamp("us", "UTC"), pa.float64()]
    assert [time.isoformat() for time in table["event_timestamp"].to_pylist()] == [
        "2026-01-02T03:04:05+00:00",
        "2026-01-01T20:04:05+00:00",
    ]


ZONES = st.none() | st.sampled_from([0, 7 * 60, -330, 60, 14 * 60]).map(
    lambda minutes: dt.timezone(dt.timedelta(minutes=minutes))
)
WAYS = st.sampled_from([
    lambda moment: moment.isoformat(),
    lambda moment: moment.isoformat(sep=" "),
    lambda moment: moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    lambda moment: moment.isoformat(timespec="minutes") + " ",
    lambda moment: moment.date().isoformat(),
])  # fmt: skip


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2050, 1, 1), timezones=ZONES), WAYS), min_size=1
    )
)
def test_each_time_has_the_zone_that_it_names_itself_or_utc(rows: list[tuple[dt.datetime, Callable[..., str]]]) -> None:
    texts = [way(moment) for moment, way in rows]
    with tempfile.TemporaryDirectory() as folder:
        table = read(Path(folder), HEADER + "".join(f"7,{text},1\n" for text in texts))
    own = [dt.datetime.fromisoformat(text.strip()) for text in texts]
    expected = [each if each.tzinfo else each.replace(tzinfo=dt.UTC) for each in own]
    assert table["event_timestamp"].to_pylist() == expected


def test_parquet_keeps_its_own_types(tmp_path: Path) -> None:
    times = pa.array([dt.datetime(2026, 1, 2, 3, 4, 5)] * 2, pa.timestamp("ns"))
    table = read_parquet(tmp_path, pa.array([1, 2], pa.int32()), times, pa.array([1, 2]))
    assert table.schema.types == [pa.int64(), pa.timestamp("us", "UTC"), pa.float64()]
    tagged = table.append_column("tag", pa.array([["a"], []]))
    pq.write_table(tagged, tmp_path / "r.parquet")
    assert read_file(tmp_path / "r.parquet").equals(tagged)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_rows_are_neither_dropped_nor_reordered(tmp_path_factory: pytest.TempPathFactory, keys: list[int]) -> None:
    table = read(tmp_path_factory.mktemp("r"), HEADER + "".join(f"{key},2026-01-01,0\n" for key in keys))
    assert table["shop_id"].to_pylist() == keys


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("event_timestamp,amount", "column 'shop_id': this column is missing (the file has event_timestamp, amount)"),
        ("shop_id,amount,x", "column 'event_timestamp': this column is missing"),
        ("shop_id,event_timestamp", "column 'amount': this column is missing"),
        ("shop_id,event_timestamp,amount,rate", "column 'rate': scoring adds a column of this name: rename it"),
        ("shop_id,event_timestamp,amount,prediction", "column 'prediction': scoring adds"),
        ("shop_id,event_timestamp,amount,Rate", "column 'Rate': scoring adds"),
        ("shop_id,event_timestamp,amount,REQUEST_ROW__", "column 'REQUEST_ROW__': scoring adds"),
        ("shop_id,event_timestamp,amount,a,a", "column 'a': this column appears twice"),
        ("shop_id,event_timestamp,amount,a,A", "column 'a': this column appears twice"),
        ("shop_id,event_timestamp,amount,", "its column number 4 has no name"),
        (",shop_id,event_timestamp,amount", "column number 1 has no name. It is probably a pandas index: save the"),
        ("shop_id ,event_timestamp,amount", "the file has 'shop_id ', event_timestamp, amount"),
        ("shop_id;event_timestamp;amount", "amount). Semicolons probably separate its columns"),
        ("shop_id\tevent_timestamp\tamount", "Tabs probably separate its columns"),
    ],
)
def test_columns_that_cannot_be_scored_are_named(tmp_path: Path, header: str, says: str) -> None:
    assert says in str(refusal(tmp_path, f"{header}\n{',1' * header.count(',')}\n"))


@pytest.mark.parametrize(
    ("rows", "column", "row", "says"),
    [
        ("1,2026-01-01,1\nx1,2026-01-01,1\n", "shop_id", 2, "'x1' is not a 64-bit integer"),
        ("1.5,2026-01-01,1\n", "shop_id", 1, "'1.5' is not a 64-bit integer"),
        ("9223372036854775808,2026-01-01,1\n", "shop_id", 1, "is not a 64-bit integer"),
        ("0x3E9,2026-01-01,1\n", "shop_id", 1, "'0x3E9' is not a 64-bit integer"),
        ("1.23E+02,2026-01-01,1\n", "shop_id", 1, "integer. A spreadsheet probably shortened it"),
        ("1.0,2026-01-01,1\n", "shop_id", 1, "as pandas does if one is missing: convert it to integers"),
        ("+2,2026-01-01,1\n", "shop_id", 1, "'+2' is not a 64-bit integer. Remove the plus sign"),
        ('"1,234",2026-01-01,1\n', "shop_id", 1, "A spreadsheet probably separated its thousands"),
        ("1,2026-01-01,1\n,2026-01-01,1\n", "shop_id", 2, "no value"),
        ("1,,1\n", "event_timestamp", 1, "no value"),
        ("1,2026-01-01,1\n1,2026-01-01,1\n1,soon,1\n", "event_timestamp", 3, "'soon'"),
        ("1,2026-13-01,1\n", "event_timestamp", 1, "ISO 8601"),
        ("1,now,1\n", "event_timestamp", 1, "'now' is not an ISO 8601"),
        ("1,2024,1\n", "event_timestamp", 1, "'2024' is not an ISO 8601"),
        ("1,1500-01-01,1\n", "event_timestamp", 1, "between 1678 and 2261"),
        ("NULL,2026-01-01,1\n", "shop_id", 1, "'NULL' is not a 64-bit integer. Leave the cell empty if there is no"),
        ("1,2026-01-01,much\n", "amount", 1, "'much' is not a finite number that a double can represent."),
        ("1,2026-01-01,-inf\n", "amount", 1, "'-inf' is not a finite number"),
        ("1,2026-01-01,1e400\n", "amount", 1, "'1e400' is not a finite number"),
        ("1,2026-01-01,N/A\n", "amount", 1, "Leave the cell empty"),
        ('1,2026-01-01,"1,5"\n', "amount", 1, "Decimals need a point"),
        ('1,2026-01-01,"1.234,5"\n', "amount", 1, "without separators of thousands"),
        ("7,2026-01-01T00:00:00Z,1\n" * 150_000 + "seven,2026-01-01,1\n", "shop_id", 150_001, "'seven'"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_the_first_bad_row_of_the_file_is_named(tmp_path: Path, rows: str, column: str, row: int, says: str) -> None:
    error = str(refusal(tmp_path, HEADER + rows))
    assert f", column {column!r}, row {row}: " in error
    assert says in error


@pytest.mark.parametrize(("row", "cells"), [("1,2026-01-01", 2), ('1,2026-01-01,2,"x\ny"', 4), ("1;2026-01-01;3", 1)])
def test_a_row_with_too_few_or_too_many_cells_is_named(tmp_path: Path, row: str, cells: int) -> None:
    good = "7,2026-01-01T00:00:00Z,1\n"
    error = str(refusal(tmp_path, f"{HEADER}{good}\n{good}{row}\n{good}"))
    assert f", row 3: it has {cells} cells, and the header has 3" in error
    assert "2026-01-01" not in error


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Jakarta"])
def test_a_timestamp_before_1970_is_cut_to_the_microsecond_before_it(tmp_path: Path, zone: str | None) -> None:
    times = pa.array([-1, -1_000, -1_001, 1_999], pa.timestamp("ns", zone))
    table = read_parquet(tmp_path, pa.array([7] * 4), times, pa.array([1.0] * 4))
    assert table["event_timestamp"].cast(pa.int64()).to_pylist() == [-1, -1, -2, 1]


NOT_TEXT = {
    "empty": (b"", "it is empty: its first line must name the columns"),
    "blank": (b"\n \r\n", "it is empty"),
    "utf-16": (GOOD.encode("utf-16"), "it is not UTF-8 text. It may be UTF-16, as spreadsheets write it"),
    "utf-16 without a mark": (GOOD.encode("utf-16-be"), "it is not UTF-8 text"),
    "a zero byte": (GOOD.encode() + b"7,2026-01-01,1\0\n", "line 3 has a zero byte"),
    "gzip": (gzip.compress(GOOD.encode()), "it is compressed (gzip)"),
    "latin-1": ("shop_id,größe\n7,1\n".encode("latin-1"), "column number 2 is not UTF-8 (byte 0xf6 at position 3 of"),
    "endless row": (GOOD.encode() + b"7,2026-01-01," + b"1" * 3_000_000 + b"\n", "a row that is longer than 1 MiB"),
    "endless": (b"1" * 3_000_000, "its first line does not end, or is longer than 1 MiB"),
    "a header alone": (b"shop_id,event_timestamp,amount", "its first line does not end"),
    "html": (b"<html>404</html>\n", "column 'shop_id': this column is missing (the file has <html>404</html>)"),
}


@pytest.mark.parametrize(("content", "says"), NOT_TEXT.values(), ids=NOT_TEXT)
def test_the_error_names_the_kind_of_a_file_that_is_not_text(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in str(refusal(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.replace("shop_id", '"shop_id"').encode(),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
        f"{GOOD}\n\n".encode(),
        GOOD.rstrip("\n").encode(),
    ],
    ids=["byte order mark", "mark and quote", "windows", "old mac", "blank lines at the end", "no last line break"],
)
def test_what_spreadsheets_and_editors_write_is_read(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content)["shop_id"].to_pylist() == [7]


def test_a_line_that_is_not_utf8_and_a_zero_byte_are_found_anywhere(tmp_path: Path) -> None:
    row = "7,2026-01-02T03:04:05Z,1.5,a note\n"
    content = ("shop_id,event_timestamp,amount,note\n" + row * 3).encode()
    assert "line 5 is not UTF-8 text: save the file as UTF-8" in str(refusal(tmp_path, content + b"7,2026,1,caf\xe9\n"))
    more = CHUNK_BYTES // len(row) + 10
    assert f"line {more + 5} has a zero byte" in str(refusal(tmp_path, content + (row * more).encode() + b"7,1,1,\0\n"))


SEMICOLONS = "Semicolons probably separate its columns, as in some spreadsheets' CSV files: save it with commas."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shop_id;amount\n7;1,5\n", f"it has 2 cells, and the header has 1. {SEMICOLONS}"),
        ("shop_id#amount\n7#1,5\n", "the header has 1. Commas must separate the columns of a .csv file."),
        ('shop_id;amount\n"7";1.5\n', f"must be doubled. {SEMICOLONS}"),
    ],
)
def test_rows_of_a_file_with_another_separator_are_explained(tmp_path: Path, text: str, says: str) -> None:
    assert says in str(refusal(tmp_path, text))


def test_a_number_is_rounded_to_a_float_as_one_in_json_is(tmp_path: Path) -> None:
    number = "1.00000017881393432617187499"
    features = msgspec.structs.replace(FEATURES, request_types={"amount": pa.float32()}, signature=Signature(()))
    table = read(tmp_path, f"{HEADER}7,2026-01-02T03:04:05Z,{number}\n", features=features)
    assert table["amount"].to_pylist() == pa.array([float(number)], pa.float32()).to_pylist()


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(BatchRequestError, match="no such file"):
        read_file(tmp_path / "none.csv")
    assert ".csv, .tsv, .parquet" in str(refusal(tmp_path, "{}", "r.json"))


def test_a_request_without_rows_is_read_as_such(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER).num_rows == 0


cells = st.text(st.sampled_from('ab",\n\r\t é'), max_size=6)


def write_quoted(file: Path, notes: list[str]) -> None:
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, quoting=csv.QUOTE_ALL)
        writer.writerow(["shop_id", "event_timestamp", "amount", "note"])
        writer.writerows([i, "2026-01-01", 1, note] for i, note in enumerate(notes))


@given(st.lists(cells, min_size=1, max_size=20))
def test_what_a_csv_writer_quotes_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, notes: list[str]
) -> None:
    file = tmp_path_factory.mktemp("quoted") / "r.csv"
    write_quoted(file, notes)
    assert read_file(file)["note"].to_pylist() == [note or None for note in notes]


@given(st.lists(cells, min_size=2, max_size=8), st.data())
def test_a_quotation_mark_too_few_never_loses_a_row(
    tmp_path_factory: pytest.TempPathFactory, notes: list[str], data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("quoted") / "r.csv"
    write_quoted(file, notes)
    content = file.read_bytes()
    place = data.draw(st.sampled_from([i for i, byte in enumerate(content) if byte == ord('"')]))
    file.write_bytes(content[:place] + content[place + 1 :])
    with pytest.raises(BatchRequestError, match=r"line \d+ has an unclosed or misplaced quotation mark"):
        read_file(file)


@settings(max_examples=12)
@given(st.integers(0, 40))
def test_quotes_are_followed_through_a_file_of_many_chunks(
    tmp_path_factory: pytest.TempPathFactory, offset: int
) -> None:
    file = tmp_path_factory.mktemp("long") / "r.csv"
    row = '"7","2026-01-01","1","a ""b"", c"\n'
    rows = 2 * CHUNK_BYTES // len(row)
    file.write_text(f'"shop_id","event_timestamp","amount","{"n" * (1 + offset)}"\n{row * rows}')
    assert read_file(file).num_rows == rows
    with file.open("a") as more:
        more.write(row.replace("""c\"""", "c"))
    with pytest.raises(BatchRequestError, match=f"line {rows + 2} has an unclosed or misplaced quotation mark"):
        read_file(file)


@pytest.mark.parametrize("key", [pa.decimal128(38, 0), pa.decimal32(5, 0), pa.decimal256(70, 2), pa.float64()])
def test_integers_are_read_from_numbers_of_every_type(tmp_path: Path, key: pa.DataType) -> None:
    column = pa.array([Decimal(7)]).cast(key)
    table = read_parquet(tmp_path, column, pa.array(["2026-01-01"]), column)
    assert (table["shop_id"].to_pylist(), table["amount"].to_pylist()) == ([7], [7.0])


@pytest.mark.parametrize(
    "dtype", [pa.float64(), pa.null(), pa.bool_(), pa.duration("s"), pa.uuid(), pa.list_(pa.int64()), pa.binary(3)]
)
def test_a_parquet_file_without_rows_is_read_whatever_its_types_are(tmp_path: Path, dtype: pa.DataType) -> None:
    empty = pa.table([pa.chunked_array([], dtype)] * 3, ["shop_id", "event_timestamp", "amount"])
    pq.write_table(empty, tmp_path / "r.parquet")
    table = read_file(tmp_path / "r.parquet")
    assert (table.num_rows, table.schema.types) == (0, [pa.int64(), pa.timestamp("us", "UTC"), pa.float64()])


@pytest.mark.parametrize(
    ("last", "unit"), [(dt.datetime(2262, 4, 11), "ns"), (dt.datetime(9999, 12, 31), "us"), (None, "ns")]
)
def test_int96_timestamps_are_kept_in_the_finest_unit_that_holds_them(
    tmp_path: Path, last: dt.datetime | None, unit: str
) -> None:
    times = pa.array([dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.datetime(1, 1, 1) if unit == "us" else None, last])
    table = pa.table({"shop_id": [1, 2, 3], "event_timestamp": ["2026-01-01"] * 3, "amount": [1.0] * 3, "until": times})
    table = table.append_column("nested", pa.array([[each] for each in times.to_pylist()]))
    pq.write_table(table, tmp_path / "r.parquet", use_deprecated_int96_timestamps=True, store_schema=False)
    found = read_file(tmp_path / "r.parquet")
    assert found["until"].cast(pa.timestamp("us")).to_pylist() == times.to_pylist()
    pq.write_table(table.drop_columns(["nested"]), tmp_path / "r.parquet", use_deprecated_int96_timestamps=True)
    assert read_file(tmp_path / "r.parquet").schema.field("until").type == pa.timestamp(unit)


def test_an_int96_event_timestamp_beyond_nanoseconds_is_refused_by_name(tmp_path: Path) -> None:
    times = pa.array([dt.datetime(2026, 1, 1), dt.datetime(9999, 12, 31)], pa.timestamp("us"))
    table = pa.table({"shop_id": [1, 2], "event_timestamp": times, "amount": [1.0, 1.0]})
    pq.write_table(table, tmp_path / "r.parquet", use_deprecated_int96_timestamps=True)
    with pytest.raises(BatchRequestError, match=r"'event_timestamp', row 2: '9999-12-31 .* between 1678 and 2261"):
        read_file(tmp_path / "r.parquet")


@pytest.mark.parametrize("name", ["R.CSV", "r.Tsv"])
def test_the_extension_may_be_in_upper_case(tmp_path: Path, name: str) -> None:
    text = GOOD.replace(",", "\t") if name == "r.Tsv" else GOOD
    (tmp_path / name).write_text(text)
    with copied_request(Location(tmp_path / name)) as copy:
        assert read_file(copy.file)["shop_id"].to_pylist() == [7]


BYTES = pa.array([b"a", b"b\xff", b"c"], pa.binary())
ONE, nan, at = uuid.UUID(int=1), float("nan"), pa.timestamp("s")
COLUMNS = [  # column, type of the model's input, the file's values, and how they are read or what is said of them
    ("shop", None, pa.array([7], pa.int32()), ["7"]),
    ("shop", None, pa.array([Decimal(10**30)], pa.decimal128(38, 0)), [f"{10**30}"]),
    ("shop", None, pa.array([Decimal(-7)], pa.decimal32(5, 0)), ["-7"]),
    ("shop", None, pa.array([ONE.bytes], pa.uuid()), [str(ONE)]),
    ("shop", None, pa.array([b"caf\xc3\xa9"]), ["café"]),
    ("shop", None, pa.array([b"a"]).dictionary_encode(), ["a"]),
    ("shop", None, pa.array([1001.0]), ["1001"]),
    ("shop", None, pa.array([-0.0], pa.float32()), ["0"]),
    ("shop", None, pa.array([2.5]), "row 1: '2.5' (double) is not a string"),
    ("shop", None, pa.array([float("inf")]), "row 1: 'inf' (double) is not a string"),
    ("shop", None, pa.array([Decimal("7.00")]), "row 1: '7.00' (decimal128(3, 2)) is not a string"),
    ("shop", None, pa.array([ONE.bytes], pa.binary(16)), "(fixed_size_binary[16]) is not a string"),
    ("shop", None, pa.array([dt.date(2026, 1, 2)]), "row 1: '2026-01-02' (date32[day]) is not a string"),
    ("shop", None, BYTES, " (binary) is not a string"),
    ("shop", None, pa.Array.from_buffers(pa.string(), 3, BYTES.buffers()), "row 2: 'b\ufffd' is not a string"),
    ("amount", pa.bool_(), pa.array([1.0, 0.0, nan]), [True, False, None]),
    ("amount", pa.bool_(), pa.array([1, 2]), "row 2: '2' (int64) is not a boolean"),
    ("amount", pa.bool_(), pa.array([0.5]), "row 1: '0.5' (double) is not a boolean"),
    ("amount", pa.int64(), pa.array([7.0, nan, None]), [7, None, None]),
    ("amount", pa.int64(), pa.array([" 7 "]), [7]),
    ("amount", pa.float64(), pa.array([" 0.5\t", "-7"]), [0.5, -7.0]),
    ("amount", pa.float64(), pa.array(["1", "2"]).dictionary_encode(), [1.0, 2.0]),
    ("amount", pa.float64(), pa.array([Decimal("10.06443828"), Decimal("25.38753387")]), [10.06443828, 25.38753387]),
    ("amount", pa.float32(), pa.array([Decimal("0.10")]), pa.array([0.1], pa.float32()).to_pylist()),
    (
        "amount",
        pa.float32(),
        pa.array([1.0, 1e300]),
        "row 2: '1e+300' (double) is not a finite number that a float",
    ),
    (
        "amount",
        pa.float32(),
        pa.array([2**24 + 1]),
        "row 1: '16777217' (int64) is not a finite number that a float",
    ),
    ("shop_id", None, pa.array([7.0, 8.0]), [7, 8]),
    ("shop_id", None, pa.array([True]), "row 1: 'True' (bool) is not a 64-bit integer"),
    ("shop_id", None, pa.array([1], pa.duration("s")), "row 1: '0:00:01' (duration[s]) is not a 64-bit integer"),
    ("shop_id", None, pa.array([1], at), "row 1: '1970-01-01 00:00:01' (timestamp[ms]) is not a 64-bit integer"),
    ("shop_id", None, pa.array([1.5]), "row 1: '1.5' (double) is not a 64-bit integer"),
    ("shop_id", None, pa.array([Decimal("1.5")]), "row 1: '1.5' (decimal128(2, 1)) is not a 64-bit integer"),
    ("shop_id", None, pa.array([Decimal(10**20)]), "0000' (decimal128(21, 0)) is not a 64-bit integer"),
    ("shop_id", None, pa.array([ONE.bytes], pa.uuid()), "0001' (extension<arrow.uuid>) is not a 64-bit integer"),
    ("shop_id", None, pa.nulls(1), "row 1: this row has no value"),
    ("event_timestamp", None, pa.array(["2026-01-01"]).dictionary_encode(), [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]),
    ("event_timestamp", None, pa.nulls(1), "row 1: this row has no value"),
    ("event_timestamp", None, pa.array([1767225600000]), "row 1: '1767225600000' (int64) is not an ISO 8601"),
    ("event_timestamp", None, pa.array([2**50], at), "row 1: "),
    ("event_timestamp", None, pa.array([-(2**50)], at), "row 1: "),
    ("event_timestamp", None, pa.array([2**40], at), "row 1: "),
    ("event_timestamp", None, pa.array([25 * 10**16], pa.timestamp("us", "Mars/Phobos")), "row 1: '9892-"),
]


@pytest.mark.parametrize(("column", "dtype", "values", "read_as"), COLUMNS)
def test_the_values_of_a_parquet_file_are_read_exactly_or_refused_by_name_and_type(
    tmp_path: Path, column: str, dtype: pa.DataType | None, values: pa.Array, read_as: list[Any] | str
) -> None:
    features = TEXT_KEY if column == "shop" else FEATURES
    if dtype is not None:
        features = msgspec.structs.replace(FEATURES, signature=Signature((ModelInput("amount", dtype),)))
    good = {"shop_id": 1, "shop": "a", "event_timestamp": "2026-01-01", "amount": 1.0}
    table = pa.table({name: [value] * len(values) for name, value in good.items()} | {column: values})
    pq.write_table(table, tmp_path / "r.parquet")
    if isinstance(read_as, list):
        assert read_file(tmp_path / "r.parquet", features)[column].to_pylist() == read_as
        return
    with pytest.raises(BatchRequestError) as caught:
        read_file(tmp_path / "r.parquet", features)
    assert f"column '{column}', row " in str(caught.value)
    assert read_as in str(caught.value)
    assert "this row has no value" in read_as or " is not " in str(caught.value)
