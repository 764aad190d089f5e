"""A batch request is read whole and in order, or refused with file, column and first bad row."""

import csv
import datetime as dt
import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.request import read_batch_request
from scoring.batch.text_request import CHUNK_BYTES
from scoring.errors import BatchRequestError
from scoring.feast_plugins.join_keys import JoinKey
from scoring.features.model_features import Feature, ModelFeatures, View

FEATURES = ModelFeatures(
    service="ranking",
    join_keys=(JoinKey("shop_id", "int64"),),
    features=(Feature("rate", "stats__rate", pa.float32(), ("stats",)),),
    views=(View("stats", ("stats__rate",), None),),
    request_inputs=("amount",),
    signature=Signature((ModelInput("amount", pa.float64()), ModelInput("rate", pa.float64()))),
)


def read_file(file: Path) -> pa.Table:
    return pa.concat_tables(read_batch_request(file, FEATURES))


def read(folder: Path, text: str, name: str = "r.csv") -> pa.Table:
    file = folder / name
    file.write_text(text)
    return read_file(file)


def refusal(folder: Path, text: str, name: str = "r.csv") -> BatchRequestError:
    with pytest.raises(BatchRequestError) as caught:
        read(folder, text, name)
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(("name", "comma"), [("r.csv", ","), ("r.tsv", "\t")])
def test_keys_moment_and_request_inputs_get_their_types_and_extras_stay(tmp_path: Path, name: str, comma: str) -> None:
    text = "note,shop_id,event_timestamp,amount\nx,7,2026-01-02T03:04:05Z,1.5\ny,8,2026-01-02T03:04:05+07:00,2\n"
    table = read(tmp_path, text.replace(",", comma), name)
    assert table.column_names == ["note", "shop_id", "event_timestamp", "amount"]
    assert table.schema.types == [pa.string(), pa.int64(), pa.timestamp("us", "UTC"), pa.float64()]
    assert [moment.isoformat() for moment in table["event_timestamp"].to_pylist()] == [
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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.datetimes(dt.datetime(1990, 1, 1), dt.datetime(2050, 1, 1), timezones=ZONES), WAYS), min_size=1
    )
)
def test_each_time_has_the_zone_that_it_names_itself_or_utc(rows: list[tuple[dt.datetime, Callable[..., str]]]) -> None:
    texts = [way(moment) for moment, way in rows]
    with tempfile.TemporaryDirectory() as folder:
        table = read(Path(folder), "shop_id,event_timestamp,amount\n" + "".join(f"7,{text},1\n" for text in texts))
    own = [dt.datetime.fromisoformat(text.strip()) for text in texts]
    expected = [each if each.tzinfo else each.replace(tzinfo=dt.UTC) for each in own]
    assert table["event_timestamp"].to_pylist() == expected


def test_a_time_without_a_zone_is_utc(tmp_path: Path) -> None:
    table = read(tmp_path, "shop_id,event_timestamp,amount\n7,2026-01-02 03:04:05,1\n7,2026-01-02,1\n")
    assert [str(moment) for moment in table["event_timestamp"].to_pylist()] == [
        "2026-01-02 03:04:05+00:00",
        "2026-01-02 00:00:00+00:00",
    ]


def test_parquet_keeps_its_own_types(tmp_path: Path) -> None:
    moments = [dt.datetime(2026, 1, 2, 3, 4, 5)] * 2
    table = pa.table({"shop_id": pa.array([1, 2], pa.int32()), "event_timestamp": pa.array(moments, pa.timestamp("ns")),
                      "amount": [1, 2], "tag": [["a"], []]})  # fmt: skip
    pq.write_table(table, tmp_path / "r.parquet")
    read_back = read_file(tmp_path / "r.parquet")
    assert read_back["shop_id"].type == pa.int64()
    assert read_back["amount"].type == pa.float64()
    assert read_back["tag"].to_pylist() == [["a"], []]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_rows_are_neither_dropped_nor_reordered(tmp_path_factory: pytest.TempPathFactory, keys: list[int]) -> None:
    lines = "".join(f"{key},2026-01-01,0\n" for key in keys)
    table = read(tmp_path_factory.mktemp("r"), "shop_id,event_timestamp,amount\n" + lines)
    assert table["shop_id"].to_pylist() == keys


@pytest.mark.parametrize(
    ("text", "column", "row", "says"),
    [
        (
            "event_timestamp,amount\n2026-01-01,1\n",
            "shop_id",
            None,
            "missing (the file has event_timestamp, amount)",
        ),
        ("shop_id,amount\n1,1\n", "event_timestamp", None, "missing"),
        ("shop_id,event_timestamp\n1,2026-01-01\n", "amount", None, "missing"),
        (
            "shop_id,event_timestamp,amount\n1,2026-01-01,1\nx1,2026-01-01,1\n",
            "shop_id",
            2,
            "'x1' is not int64",
        ),
        ("shop_id,event_timestamp,amount\n1.5,2026-01-01,1\n", "shop_id", 1, "'1.5' is not int64"),
        ("shop_id,event_timestamp,amount\n9223372036854775808,2026-01-01,1\n", "shop_id", 1, "is not int64"),
        (
            "shop_id,event_timestamp,amount\n1,2026-01-01,1\n1,2026-01-01,1\n1,soon,1\n",
            "event_timestamp",
            3,
            "'soon'",
        ),
        ("shop_id,event_timestamp,amount\n1,2026-13-01,1\n", "event_timestamp", 1, "ISO 8601"),
        ("shop_id,event_timestamp,amount\n1,,1\n", "event_timestamp", 1, "no value"),
        ("shop_id,event_timestamp,amount\n1,2026-01-01,1\n,2026-01-01,1\n", "shop_id", 2, "no value"),
        ("shop_id,event_timestamp,amount\n1,2026-01-01,much\n", "amount", 1, "'much' is not double"),
        ("shop_id,event_timestamp,amount,rate\n1,2026-01-01,1,0.5\n", "rate", None, "rename it"),
        ("shop_id,event_timestamp,amount,prediction\n1,2026-01-01,1,0.5\n", "prediction", None, "rename it"),
        ("shop_id,event_timestamp,amount,a,a\n1,2026-01-01,1,2,3\n", "a", None, "appears twice"),
        ("shop_id,event_timestamp,amount,a,A\n1,2026-01-01,1,2,3\n", "a", None, "appears twice"),
        ("shop_id,event_timestamp,amount,Rate\n1,2026-01-01,1,2\n", "Rate", None, "rename it"),
        ("shop_id,event_timestamp,amount,REQUEST_ROW__\n1,2026-01-01,1,2\n", "REQUEST_ROW__", None, "rename it"),
        ("shop_id,event_timestamp,amount,\n1,2026-01-01,1,2\n", None, None, "column number 4 has no name"),
        ("shop_id,event_timestamp,amount\n1,now,1\n", "event_timestamp", 1, "'now' is not an ISO 8601"),
        ("shop_id,event_timestamp,amount\n1,2024,1\n", "event_timestamp", 1, "'2024' is not an ISO 8601"),
        ("shop_id,event_timestamp,amount\n1,1500-01-01,1\n", "event_timestamp", 1, "years 1678 to 2261"),
        ("shop_id,event_timestamp,amount\n0x3E9,2026-01-01,1\n", "shop_id", 1, "'0x3E9' is not int64"),
    ],
)
def test_what_cannot_be_scored_is_named(
    tmp_path: Path, text: str, column: str | None, row: int | None, says: str
) -> None:
    error = refusal(tmp_path, text)
    assert (error.column, error.row) == (column, row)
    assert says in str(error)


@pytest.mark.parametrize(("row", "cells"), [("1,2026-01-01", 2), ('1,2026-01-01,2,"x\ny"', 4), ("1;2026-01-01;3", 1)])
def test_a_row_with_too_few_or_too_many_cells_is_named(tmp_path: Path, row: str, cells: int) -> None:
    good = "7,2026-01-01T00:00:00Z,1\n"
    error = refusal(tmp_path, f"shop_id,event_timestamp,amount\n{good}\n{good}{row}\n{good}")
    assert error.row == 3
    assert f"it has {cells} cells, and the header has 3" in str(error)
    assert "2026-01-01" not in str(error)


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Jakarta"])
def test_a_moment_before_1970_is_cut_to_the_microsecond_before_it(tmp_path: Path, zone: str | None) -> None:
    moments = pa.array([-1, -1_000, -1_001, 1_999], pa.timestamp("ns", zone))
    rows = pa.table({"shop_id": pa.array([7] * 4), "event_timestamp": moments, "amount": [1.0] * 4})
    pq.write_table(rows, tmp_path / "r.parquet")
    read = pa.concat_tables(read_batch_request(tmp_path / "r.parquet", FEATURES))
    assert read["event_timestamp"].cast(pa.int64()).to_pylist() == [-1, -1, -2, 1]


GOOD = "shop_id,event_timestamp,amount\n7,2026-01-01T00:00:00Z,1\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty: its first line must name the columns"),
        (b"\n \r\n", "it is empty"),
        (GOOD.encode("utf-16"), "it is not UTF-8 text. It may be UTF-16, as spreadsheets write it"),
        (GOOD.encode("utf-16-be"), "it is not UTF-8 text"),
        (GOOD.encode("utf-8") + b"7,2026-01-01,1\0\n", "line 3 has a zero byte"),
        (gzip.compress(GOOD.encode()), "it is compressed (gzip)"),
        (
            "shop_id,event_timestamp,größe\n7,2026-01-01,1\n".encode("latin-1"),
            "the name of its column number 3 is not UTF-8 (byte 0xf6 at position 3 of the name)",
        ),
        (GOOD.encode() + b"7,2026-01-01," + b"1" * 3_000_000 + b"\n", "a row that is longer than 1 MiB"),
        (b"1" * 3_000_000, "its first line does not end, or is longer than 1 MiB"),
        (b"shop_id,event_timestamp,amount", "its first line does not end"),
        (b"<html>404</html>\n", "column 'shop_id': this column is missing (the file has <html>404</html>)"),
    ],
    ids=[
        "empty",
        "blank",
        "utf-16",
        "utf-16 without a mark",
        "a zero byte",
        "gzip",
        "latin-1",
        "endless row",
        "endless",
        "a header alone",
        "html",
    ],
)
def test_files_of_another_kind_are_refused_in_words_that_name_it(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "r.csv").write_bytes(content)
    with pytest.raises(BatchRequestError) as caught:
        read_file(tmp_path / "r.csv")
    assert says in str(caught.value)


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
    (tmp_path / "r.csv").write_bytes(content)
    assert read_file(tmp_path / "r.csv")["shop_id"].to_pylist() == [7]


def test_a_damaged_parquet_is_refused(tmp_path: Path) -> None:
    assert "can't be read" in str(refusal(tmp_path, "PAR1 not really", "r.parquet"))


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"shop_id,event_timestamp,amount\n\xff,2026-01-01,1\n")
    with pytest.raises(BatchRequestError):
        read_file(tmp_path / "r.csv")


def test_a_line_that_is_no_utf8_and_a_zero_byte_are_found_wherever_they_are(tmp_path: Path) -> None:
    rows = "7,2026-01-02T03:04:05Z,1.5,a note\n" * 3
    header = "shop_id,event_timestamp,amount,note\n"
    file = tmp_path / "r.csv"
    file.write_bytes((header + rows).encode() + b"7,2026-01-02T03:04:05Z,1.5,caf\xe9\n")
    with pytest.raises(BatchRequestError, match="line 5 is not UTF-8 text: save the file as UTF-8"):
        read_file(file)
    many = (CHUNK_BYTES // len(rows) + 10) * 3
    file.write_bytes((header + rows * (many // 3)).encode() + b"7,2026-01-02T03:04:05Z,1.5,\0\n")
    with pytest.raises(BatchRequestError, match=f"line {many + 2} has a zero byte"):
        read_file(file)


def test_another_separator_than_the_files_name_says_is_told(tmp_path: Path) -> None:
    text = "shop_id;event_timestamp;amount\n7;2026-01-02T03:04:05Z;1,5\n"
    assert "header has 1. Commas must separate the columns of a .csv file" in str(refusal(tmp_path, text))


def test_a_number_is_rounded_to_a_float_as_a_json_text_is(tmp_path: Path) -> None:
    number = "1.00000017881393432617187499"
    features = msgspec.structs.replace(FEATURES, request_types={"amount": pa.float32()}, signature=Signature(()))
    file = tmp_path / "r.csv"
    file.write_text(f"shop_id,event_timestamp,amount\n7,2026-01-02T03:04:05Z,{number}\n")
    table = pa.concat_tables(read_batch_request(file, features))
    assert table["amount"].to_pylist() == pa.array([float(number)], pa.float32()).to_pylist()


def test_a_text_key_of_a_parquet_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    keys = pa.array([b"a", b"b\xff", b"c"], pa.binary())
    moments = pa.array([dt.datetime(2026, 1, 2, tzinfo=dt.UTC)] * 3, pa.timestamp("us", "UTC"))
    file = tmp_path / "r.parquet"
    damaged = pa.Array.from_buffers(pa.string(), 3, keys.buffers())
    pq.write_table(pa.table({"shop": damaged, "event_timestamp": moments}), file)
    features = msgspec.structs.replace(FEATURES, join_keys=(JoinKey("shop", "string"),), request_inputs=())
    with pytest.raises(BatchRequestError, match=r"'shop', row 2: 'b\ufffd' is not string"):
        list(read_batch_request(file, features))


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(BatchRequestError, match="no such file"):
        read_file(tmp_path / "none.csv")
    assert ".csv, .tsv, .parquet" in str(refusal(tmp_path, "{}", "r.json"))


def test_a_number_of_milliseconds_is_no_timestamp(tmp_path: Path) -> None:
    table = pa.table({"shop_id": [1], "event_timestamp": [1767225600000], "amount": [1.0]})
    pq.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(BatchRequestError, match="'event_timestamp', row 1: '1767225600000' is not an ISO 8601"):
        read_file(tmp_path / "r.parquet")


def test_a_request_without_rows_is_read_as_such(tmp_path: Path) -> None:
    assert read(tmp_path, "shop_id,event_timestamp,amount\n").num_rows == 0


def test_the_bad_row_is_counted_over_the_whole_file(tmp_path: Path) -> None:
    lines = ["shop_id,event_timestamp,amount", *["7,2026-01-01T00:00:00Z,1"] * 150_000, "seven,2026-01-01T00:00:00Z,1"]
    error = refusal(tmp_path, "\n".join(lines) + "\n")
    assert (error.column, error.row) == ("shop_id", 150_001)


cells = st.text(st.sampled_from('ab",\n\r\t é'), max_size=6)


@given(st.lists(cells, min_size=1, max_size=20))
def test_what_a_csv_writer_quotes_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, notes: list[str]
) -> None:
    file = tmp_path_factory.mktemp("quoted") / "r.csv"
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, quoting=csv.QUOTE_ALL)
        writer.writerow(["shop_id", "event_timestamp", "amount", "note"])
        writer.writerows([i, "2026-01-01", 1, note] for i, note in enumerate(notes))
    table = read_file(file)
    assert table["note"].to_pylist() == [note or None for note in notes]


@given(st.lists(cells, min_size=2, max_size=8), st.data())
def test_a_quotation_mark_too_few_never_loses_a_row(
    tmp_path_factory: pytest.TempPathFactory, notes: list[str], data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("quoted") / "r.csv"
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, quoting=csv.QUOTE_ALL)
        writer.writerow(["shop_id", "event_timestamp", "amount", "note"])
        writer.writerows([i, "2026-01-01", 1, note] for i, note in enumerate(notes))
    content = file.read_bytes()
    places = [i for i, byte in enumerate(content) if byte == ord('"')]
    place = data.draw(st.sampled_from(places))
    file.write_bytes(content[:place] + content[place + 1 :])
    with pytest.raises(BatchRequestError, match=r"line \d+ has an unclosed or misplaced quotation mark"):
        read_file(file)


@settings(max_examples=12, deadline=None)
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


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([True]),
        pa.array([1], pa.duration("s")),
        pa.array([1], pa.timestamp("s")),
        pa.array([1.5]),
    ],
    ids=lambda keys: str(keys.type),
)
def test_only_numbers_and_texts_are_keys(tmp_path: Path, keys: pa.Array) -> None:
    moment = pa.array([dt.datetime(2026, 1, 1)], pa.timestamp("us"))
    pq.write_table(pa.table({"shop_id": keys, "event_timestamp": moment, "amount": [1.0]}), tmp_path / "r.parquet")
    with pytest.raises(BatchRequestError, match="'shop_id', row 1"):
        read_file(tmp_path / "r.parquet")


def test_dictionaries_and_whole_floats_are_read_as_what_they_hold(tmp_path: Path) -> None:
    table = pa.table(
        {
            "shop_id": pa.array([7.0, 8.0]),
            "event_timestamp": pa.array(["2026-01-01", "2026-01-02"]).dictionary_encode(),
            "amount": pa.array(["1", "2"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "r.parquet")
    read_back = read_file(tmp_path / "r.parquet")
    assert read_back["shop_id"].to_pylist() == [7, 8]
    assert read_back["amount"].to_pylist() == [1.0, 2.0]


@pytest.mark.parametrize("seconds", [2**50, -(2**50), 2**40])
def test_a_moment_out_of_range_is_no_other_moment(tmp_path: Path, seconds: int) -> None:
    moment = pa.array([seconds], pa.timestamp("s"))
    pq.write_table(pa.table({"shop_id": [1], "event_timestamp": moment, "amount": [1.0]}), tmp_path / "r.parquet")
    with pytest.raises(BatchRequestError, match="'event_timestamp', row 1"):
        read_file(tmp_path / "r.parquet")


@pytest.mark.parametrize("empty", ["shop_id", "event_timestamp"])
def test_a_column_of_nulls_alone_lacks_its_first_value(tmp_path: Path, empty: str) -> None:
    columns = {"shop_id": pa.array([1]), "event_timestamp": pa.array(["2026-01-01"]), "amount": pa.nulls(1)}
    pq.write_table(pa.table(columns | {empty: pa.nulls(1)}), tmp_path / "r.parquet")
    with pytest.raises(BatchRequestError, match=f"'{empty}', row 1: this row has no value"):
        read_file(tmp_path / "r.parquet")


def test_a_moment_out_of_range_in_a_zone_that_nobody_knows_is_named(tmp_path: Path) -> None:
    moment = pa.array([250_000_000_000_000_000], pa.timestamp("us", "Mars/Phobos"))
    pq.write_table(pa.table({"shop_id": [1], "event_timestamp": moment, "amount": [1.0]}), tmp_path / "r.parquet")
    with pytest.raises(BatchRequestError, match=r"'event_timestamp', row 1: '9892-.* is not an ISO 8601"):
        read_file(tmp_path / "r.parquet")
