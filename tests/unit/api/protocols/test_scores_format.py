"""POST /scores answers the same in every format, and refuses every table that it can't read."""

import asyncio
import csv
import datetime as dt
import io
import json
import math
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from api.app import create_app
from api.protocols import bulk_scores
from api.protocols.response import CSV, negotiate
from api.protocols.scores_format import MEDIA_TYPES, NDJSON
from api.protocols.table_limits import MAX_PARTS
from api.protocols.tables import ARROW, PARQUET
from scoring.feast_plugins.join_keys import JoinKey
from scoring.models.outputs import OutputColumn, Outputs
from scoring.settings import Settings
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeLoader, FakeScorer, features

INPUTS = {"n": pa.int64(), "x": pa.float64(), "flag": pa.bool_(), "note": pa.string(), "at": pa.timestamp("us", "UTC")}
KEYS = {"id": pa.int64(), "name": pa.string()}
OUTPUTS = Outputs(
    (OutputColumn("label", "string"), OutputColumn("a", "double"), OutputColumn("count", "int64")), rank_by=1
)
JSON = b"application/json"


def repeated(entity_rows: Any) -> list[tuple[Any, str | None]]:
    """Outputs that depend on each input, or a reason."""
    scored: list[tuple[Any, str | None]] = []
    for key, name, n, x, flag, note, at in zip(*(entity_rows[name] for name in (*KEYS, *INPUTS)), strict=True):
        label = f'{name}\n"{x, flag, note, at and at.timestamp()}'
        scored.append((None, "not_found") if key < 0 else ((label, key / 7, n or 0), None))
    return scored


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient[Any]]:
    link = features(JoinKey("id", "int64"), JoinKey("name", "string"), request_inputs=INPUTS)
    scorer = FakeScorer(link=link, function=repeated, outputs=OUTPUTS)
    with api(scorer, max_bulk_entities=5000) as started:
        yield when_ready(started)


@pytest.fixture(scope="module")
def drivers() -> Iterator[TestClient[Any]]:
    with api(max_bulk_entities=5000, max_body_bytes=65536) as started:
        yield when_ready(started)


def arrow(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def encode(media: bytes, rows: list[dict[str, Any]]) -> bytes:
    """The rows as a request. Timestamps are in UTC."""
    if media == JSON:
        return msgspec.json.encode({"request_id": "r", "entity_rows": rows})
    if media in NDJSON:
        return msgspec.json.Encoder().encode_lines(rows)
    table = pa.Table.from_pylist(rows, pa.schema(KEYS | INPUTS))
    if media == ARROW:
        return arrow(table)
    if media == PARQUET:
        return parquet(table)
    sink = io.StringIO(newline="")
    writer = csv.writer(sink)
    writer.writerow(KEYS | INPUTS)
    for row in rows:
        values = [row[name] for name in KEYS | INPUTS]
        cells = (value.isoformat() if isinstance(value, dt.datetime) else value for value in values)
        writer.writerow(["" if cell is None else cell for cell in cells])
    return sink.getvalue().encode()


def decode(media: bytes, body: bytes) -> list[tuple[Any, ...]]:
    """The rows of a response."""
    if media in {JSON, *NDJSON}:
        rows = json.loads(body)["scores"] if media == JSON else [json.loads(line) for line in body.split(b"\n") if line]
        names = [column.name for column in OUTPUTS.columns]
        outputs = [row["outputs"] or dict.fromkeys(names) for row in rows]
        return [
            (row["id"], row["name"], *each.values(), row["reason"]) for row, each in zip(rows, outputs, strict=True)
        ]
    if media == CSV:
        _, *cells = csv.reader(io.StringIO(body.decode(), newline=""))
        kinds: tuple[Callable[[str], Any], ...] = (int, str, str, float, int, str)
        return [tuple(kind(cell) if cell else None for kind, cell in zip(kinds, row, strict=True)) for row in cells]
    table = pa.ipc.open_stream(body).read_all() if media == ARROW else pq.read_table(io.BytesIO(body))
    assert table.schema == pa.schema([*KEYS.items(), *OUTPUTS.schema, ("reason", pa.string())])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def post(client: TestClient[Any], media: bytes, body: bytes, accept: bytes | None = None, **headers: str) -> Any:
    known = {"Content-Type": media.decode()} | ({} if accept is None else {"Accept": accept.decode()})
    return client.post("/scores", content=body, headers=known | headers)


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
ROWS = st.fixed_dictionaries(
    {
        "id": st.integers(-(2**63), 2**63 - 1),
        "name": STRINGS,
        "n": st.none() | st.integers(-(2**63), 2**63 - 1),
        "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "flag": st.none() | st.booleans(),
        "note": st.none() | STRINGS,
        "at": st.none() | st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1), timezones=st.just(dt.UTC)),
    }
)


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(ROWS, min_size=1, max_size=4), own=st.sampled_from(MEDIA_TYPES))
def test_each_pair_of_formats_gives_the_answer_of_json(client: TestClient[Any], rows: list[Any], own: bytes) -> None:
    expected = decode(JSON, post(client, JSON, encode(JSON, rows)).content)
    for wanted in MEDIA_TYPES[:5]:
        response = post(client, own, encode(own, rows), wanted, **{"X-Request-Id": "r"})
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].partition(";")[0].encode() == wanted
        assert (response.headers["X-Request-Id"], response.headers["X-Model-Version"]) == ("r", "ranker/1")
        assert decode(wanted, response.content) == expected


@pytest.mark.parametrize(
    ("accept", "own", "chosen"),
    [
        (None, CSV, CSV),
        ("*/*", CSV, CSV),
        ("", CSV, CSV),
        ("text/csv", JSON, CSV),
        ("TEXT/CSV; charset=utf-8", JSON, CSV),
        ("application/json, text/csv", CSV, CSV),
        ("application/json;q=0.5, text/csv;q=0.4", CSV, JSON),
        ("text/csv;q=0, */*", CSV, JSON),
        ("text/*, application/json;q=0.1", JSON, CSV),
        ("application/*", PARQUET, PARQUET),
        ("application/jsonl", JSON, b"application/jsonl"),
        ("text/html, */*;q=0.1", ARROW, ARROW),
        ("text/html", JSON, None),
        ("text/csv;q=0", CSV, None),
        (", ;q=x,,", CSV, None),
    ],
)
def test_the_answer_has_the_accepted_media_type_of_the_highest_quality(
    accept: str | None, own: bytes, chosen: bytes | None
) -> None:
    assert negotiate(None if accept is None else accept.encode(), own, MEDIA_TYPES) == chosen


def test_a_media_type_that_is_not_known_or_not_accepted_is_refused(drivers: TestClient[Any]) -> None:
    response = post(drivers, b"text/plain", b"")
    assert (response.status_code, response.json()["type"]) == (415, "urn:model-serving:problem:unsupported-media-type")
    assert all(media.decode() in response.json()["detail"] for media in MEDIA_TYPES)
    response = post(drivers, JSON, b"", b"text/html")
    assert (response.status_code, response.json()["type"]) == (406, "urn:model-serving:problem:not-acceptable")
    assert post(drivers, CSV, b"no", b"text/csv").headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3, 1, 2], pa.int8()),
        pa.array([3, 1, 2], pa.uint64()),
        pa.array([3, 1, 2], pa.decimal128(38, 0)),
        pa.array([3, 1, 2], pa.decimal32(5, 0)),
    ],
)
@pytest.mark.parametrize("media", [ARROW, PARQUET])
def test_integers_of_any_width_are_keys(drivers: TestClient[Any], media: bytes, column: pa.Array) -> None:
    body = {ARROW: arrow, PARQUET: parquet}[media](pa.table({"driver_id": column}))
    assert [row["driver_id"] for row in post(drivers, media, body, JSON).json()["scores"]] == [3, 1, 2]


@pytest.mark.parametrize("media", [ARROW, PARQUET])
def test_the_index_of_a_pandas_frame_is_not_a_column(drivers: TestClient[Any], media: bytes) -> None:
    frame = pd.DataFrame({"driver_id": [3, 1, 2]})
    body = {ARROW: arrow, PARQUET: parquet}[media](pa.Table.from_pandas(frame[frame["driver_id"] != 1]))
    assert [row["driver_id"] for row in post(drivers, media, body, JSON).json()["scores"]] == [3, 2]


@pytest.mark.parametrize("media", [ARROW, PARQUET])
def test_columns_are_converted_without_loss_and_nan_is_null(client: TestClient[Any], media: bytes) -> None:
    expected = post(client, JSON, encode(JSON, [
        {"id": 1, "name": "a", "n": 2, "x": 0.5, "flag": None, "note": "b", "at": "2026-01-01T00:00:00Z"},
        {"id": 2, "name": "a", "n": None, "x": None, "flag": True, "note": None, "at": None},
    ])).json()["scores"]  # fmt: skip
    at = [dt.datetime(2026, 1, 1), None]
    for strings, times in (
        (pa.large_string(), pa.timestamp("ns")),
        (pa.dictionary(pa.int8(), pa.string()), pa.timestamp("s", "Europe/Berlin")),
        (pa.string_view() if media == ARROW else pa.binary(), pa.date32()),
    ):
        zoned = [time and time.replace(tzinfo=dt.UTC) for time in at] if getattr(times, "tz", None) else at
        table = pa.table({
            "at": pa.array(zoned, times), "note": pa.array(["b", None]).cast(strings), "flag": [None, True],
            "x": pa.array([0.5, math.nan], pa.float32()), "n": [2.0, None], "name": pa.array(["a", "a"]).cast(strings),
            "id": [1, 2],
        })  # fmt: skip
        response = post(client, media, {ARROW: arrow, PARQUET: parquet}[media](table), JSON)
        assert response.status_code == 200, response.text
        assert response.json()["scores"] == expected


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"driver_id": [1], "other": [1]}, "Unknown column 'other'"),
        ({"other": [1]}, "Unknown column 'other'"),
        ({"driver_id": [1, None]}, "Column 'driver_id', row 1: Expected `integer`, got `null`"),
        ({"driver_id": [1.0]}, "Column 'driver_id', row 0: Expected `integer`, got `number`"),
        ({"driver_id": ["1"]}, "Column 'driver_id', row 0: Expected `integer`, got `string`"),
        ({"driver_id": pa.array([2**63], pa.uint64())}, "Column 'driver_id', row 0: Expected `integer` <="),
        ({"driver_id": pa.array([10**30], pa.decimal128(38, 0))}, "Column 'driver_id': 64-bit integers are needed"),
        ({"driver_id": pa.array([math.inf])}, "Column 'driver_id', row 0: Expected `integer`, got `number`"),
        ({"driver_id": [[1]]}, "Column 'driver_id' has the unsupported type list"),
        ({"driver_id": [{"a": 1}]}, "Column 'driver_id' has the unsupported type struct"),
        ({"driver_id": pa.array([1], pa.decimal128(5, 2))}, "Column 'driver_id' has the unsupported type decimal"),
        ({"driver_id": pa.array([b"a" * 16], pa.uuid())}, "Column 'driver_id' has the unsupported type"),
        ({"driver_id": pa.array([b"ab"], pa.binary(2))}, "Column 'driver_id' has the unsupported type fixed_size"),
        ({"driver_id": pa.array([], pa.int64())}, "Expected 1 to 5000 rows, got 0"),
        ({"driver_id": range(5001)}, "Expected 1 to 5000 rows, got more than 5000"),
        ({"driver_id": [*range(4000), None]}, "Column 'driver_id', row 4000: Expected `integer`, got `null`"),
    ],
)
@pytest.mark.parametrize("media", [ARROW, PARQUET])
def test_a_table_that_does_not_fit_is_refused(
    drivers: TestClient[Any], media: bytes, columns: dict[str, Any], problem: str
) -> None:
    response = post(drivers, media, {ARROW: arrow, PARQUET: parquet}[media](pa.table(columns)))
    assert response.status_code == 422, response.text
    assert response.json()["detail"].startswith(problem)
    assert response.json()["detail"].endswith("Expected columns: `driver_id`.")


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (b'{"driver_id":1}\n{"driver_id":"2"}', 422, "Line 2: Expected `integer`, got `string`"),
        (b'{"driver_id":1}\n\n{"driver_id":1,"driver_id":2}', 422, "Line 3: Duplicate JSON member 'driver_id'"),
        (b'{"driver_id":1,"x":2}', 422, "Line 1: Object contains unknown field `x`"),
        (b"[1]", 422, "Line 1: Expected `object`, got `array`"),
        (b"", 422, "Expected 1 to 1000 rows, got 0"),
        (b'{"driver_id":1}\n' * 1001, 422, "Expected 1 to 1000 rows, got more"),
        (b'{"driver_id":1}{"driver_id":2}', 400, "The body is not valid JSON: line 1: trailing"),
        (b'{"driver_id":1}\n{"driver_id":', 400, "The body is not valid JSON: line 2: "),
        (b'{"driver_id":1}\n\xff', 400, "The body is not valid JSON: line 2: byte 0 is not UTF-8"),
    ],
)
def test_an_error_in_ndjson_names_the_line(drivers: TestClient[Any], body: bytes, status: int, problem: str) -> None:
    response = post(drivers, NDJSON[0], body)
    assert (response.status_code, response.json()["detail"][: len(problem)]) == (status, problem)


@pytest.mark.parametrize(
    ("media", "body"), [(CSV, b"driver_id\n" + b"1\n" * 1001), (NDJSON[0], b'{"driver_id":1}\n' * 1001)]
)
def test_a_text_with_too_many_rows_is_refused_with_the_formats_that_may_have_more(
    drivers: TestClient[Any], media: bytes, body: bytes
) -> None:
    detail = post(drivers, media, body).json()["detail"]
    assert detail.startswith("Expected 1 to 1000 rows, got more (an Arrow stream or a Parquet file may have 5000).")
    with api(max_bulk_entities=1000) as started:
        detail = post(when_ready(started), media, body).json()["detail"]
        assert detail.startswith("Expected 1 to 1000 rows, got more. Expected columns: ")


IDS = pa.table({"driver_id": range(1, 2001)})
STREAM = arrow(IDS)


def with_deltas() -> bytes:
    sink, schema = pa.BufferOutputStream(), pa.schema({"driver_id": pa.dictionary(pa.int32(), pa.string())})
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)) as stream:
        for values in (["a"], ["a", "b"]):
            column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array(values))
            stream.write_batch(pa.record_batch([column], schema))
    return sink.getvalue().to_pybytes()


def in_a_file() -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, IDS.schema) as file:
        file.write_table(IDS)
    return sink.getvalue().to_pybytes()


def zeros_in_parquet(rows: int) -> bytes:
    """A page of many megabytes of zeros, in some kilobytes."""
    strings = pa.table({"driver_id": [f"{row:08}" + "\0" * 100_000 for row in range(rows)]})
    return parquet(strings, compression="zstd", use_dictionary=False, write_statistics=False)


def more_values_than_rows() -> bytes:
    """A column of two million equal values in some kilobytes, in a row group that has one row by its footer."""
    body = parquet(pa.table({"driver_id": pa.repeat(7, 2_000_000)}), write_statistics=False, row_group_size=2_000_000)
    two_million, one = b"\x80\x92\xf4\x01", b"\x82\x80\x80\x00"  # in Thrift's compact protocol
    of_file = body.index(two_million, len(body) - 8 - int.from_bytes(body[-8:-4], "little"))
    of_group = body.rindex(two_million)
    return body[:of_file] + one + body[of_file + 4 : of_group] + one + body[of_group + 4 :]


@pytest.mark.parametrize(
    ("media", "body", "problem"),
    [
        (ARROW, in_a_file(), "Arrow IPC: it is an Arrow file"),
        (ARROW, STREAM + STREAM, "Arrow IPC: bytes follow the end"),
        (ARROW, arrow(IDS, compression="zstd"), "Arrow IPC: its buffers are compressed"),
        (ARROW, arrow(IDS, compression="lz4"), "Arrow IPC: its buffers are compressed"),
        (ARROW, with_deltas(), "Arrow IPC: it has delta dictionaries"),
        (ARROW, b"".join([STREAM[:-8], *[STREAM[-8:]]]).replace(b"driver_id", b"driver\xffid"), "Arrow IPC: "),
        (ARROW, STREAM[:-5000], "Arrow IPC: it can't be decoded"),
        (ARROW, b"", "Arrow IPC: it can't be decoded"),
        (ARROW, b"\xff" * 64, "Arrow IPC: it can't be decoded"),
        (ARROW, struct.pack("<II", 0xFFFFFFFF, 0x7FFFFFFF), "Arrow IPC: it can't be decoded"),
        (PARQUET, STREAM, "Parquet: it does not begin and end with PAR1"),
        (PARQUET, parquet(IDS)[:-100], "Parquet: it does not begin and end with PAR1"),
        (PARQUET, b"PAR1" + b"\0" * 100 + struct.pack("<I", 2**31) + b"PAR1", "Parquet: its footer has more than"),
        (PARQUET, b"PAR1" + b"\0" * 100 + struct.pack("<I", 90) + b"PAR1", "Parquet: it can't be decoded"),
        *(
            (PARQUET, parquet(pa.table({"driver_id": ["a", "ab"]}), use_dictionary=False, data_page_version=version,
                              column_encoding={"driver_id": encoding}),
             f"Parquet: it has the unsupported encoding {encoding}")
            for encoding in ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")
            for version in ("1.0", "2.0")
        ),
        (PARQUET, more_values_than_rows(), "Parquet: a column does not have one value per row"),
        # Statistics for another schema: pyarrow's own metadata of columns would end the process.
        (PARQUET, parquet(IDS).replace(b"\x25\x02\x18\x09driver_id", b"\x25\x00\x18\x09driver_id"),
         "Parquet: it can't be decoded"),
    ],
)  # fmt: skip
def test_a_body_that_is_not_such_a_table_is_malformed(
    drivers: TestClient[Any], media: bytes, body: bytes, problem: str
) -> None:
    response = post(drivers, media, body)
    assert response.status_code == 400, response.text
    assert response.json()["detail"].startswith(f"The body is not valid {problem}")


def test_a_stream_has_at_most_some_batches(drivers: TestClient[Any]) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, IDS.schema) as stream:
        for _ in range(MAX_PARTS):
            stream.write_table(IDS[:1])
    assert post(drivers, ARROW, sink.getvalue().to_pybytes()).status_code == 400


def test_a_small_body_that_would_be_large_in_memory_is_refused(drivers: TestClient[Any]) -> None:
    response = post(drivers, PARQUET, zeros_in_parquet(40))
    assert (response.status_code, response.json()["type"]) == (413, "urn:model-serving:problem:body-too-large")
    assert "decompressed" in response.json()["detail"]
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["x" * 60_000]))
    view, same = struct.pack("<i4sii", 50_000, b"xxxx", 0, 0), pa.py_buffer(b"x" * 50_000)
    views = pa.Array.from_buffers(pa.string_view(), 500, [None, pa.py_buffer(view * 500), same])
    for media, body in (
        (ARROW, arrow(pa.table({"driver_id": long}))),
        (ARROW, arrow(pa.table({"driver_id": views}))),
        (PARQUET, parquet(pa.table({"driver_id": long}))),
    ):
        response = post(drivers, media, body)
        assert response.status_code == 422
        assert response.json()["detail"].startswith("Column 'driver_id' has a string of more than 16384 bytes")


def test_a_dictionary_that_many_batches_share_counts_for_each_of_them(drivers: TestClient[Any]) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 900, pa.int32()), pa.array(map(str, range(4000))))
    batches = pa.table({"driver_id": values}).to_batches(max_chunksize=1)
    response = post(drivers, ARROW, arrow(pa.Table.from_batches(batches)))
    assert response.status_code == 413
    assert response.json()["detail"].endswith("with the dictionaries of each batch.")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([(ARROW, arrow(IDS[:50])), (PARQUET, parquet(IDS[:50]))]), st.data())
def test_a_damaged_table_is_an_error_of_the_client(
    drivers: TestClient[Any], table: tuple[bytes, bytes], data: Any
) -> None:
    media, body = table
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert post(drivers, media, bytes(damaged)).status_code in {200, 400, 413, 422}


def test_a_large_request_is_scored_in_blocks_with_one_version() -> None:
    may_score, sizes = threading.Event(), []

    def slow(entity_rows: Any) -> list[tuple[Any, str | None]]:
        sizes.append(len(entity_rows["driver_id"]))
        may_score.wait(5)
        return [(float(key), None) for key in entity_rows["driver_id"]]

    loader = FakeLoader(FakeScorer(1, function=slow))
    with api(loader=loader) as client:
        when_ready(client)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(post(client, ARROW, STREAM)))
        asking.start()
        while not sizes:
            time.sleep(0.01)
        loader.point_to(FakeScorer(2))
        while client.get("/version").json()["model"]["version"] == 1:
            time.sleep(0.01)
        may_score.set()
        asking.join()
    table = pa.ipc.open_stream(answers[0].content).read_all()
    assert answers[0].headers["X-Model-Version"] == "ranker/1"
    assert table["prediction"].to_pylist() == [float(key) for key in range(1, 2001)]
    assert sizes == [bulk_scores.BLOCK_ROWS] * (2000 // bulk_scores.BLOCK_ROWS)


def test_only_few_large_requests_are_unfinished_at_once() -> None:
    may_score, scored = threading.Event(), threading.Semaphore(0)

    def slow(entity_rows: Any) -> list[tuple[Any, str | None]]:
        scored.release()
        may_score.wait(5)
        return [(0.0, None)] * len(entity_rows["driver_id"])

    with api(FakeScorer(function=slow), max_body_bytes=4096) as client:
        when_ready(client)
        asking = [threading.Thread(target=post, args=(client, ARROW, STREAM)) for _ in range(2)]
        for each in asking:
            each.start()
        scored.acquire()
        time.sleep(0.2)
        response = post(client, ARROW, STREAM)
        small = post(client, ARROW, arrow(IDS[:0]))
        may_score.set()
        for each in asking:
            each.join()
        assert (response.status_code, response.json()["type"]) == (503, "urn:model-serving:problem:overloaded")
        assert response.headers["Retry-After"] == "1"
        assert small.status_code == 422
        assert post(client, ARROW, STREAM).status_code == 200


def test_a_large_request_ends_at_its_deadline() -> None:
    def slow(entity_rows: Any) -> list[tuple[Any, str | None]]:
        time.sleep(0.1)
        return [(0.0, None)] * len(entity_rows["driver_id"])

    with api(FakeScorer(function=slow), bulk_deadline_s=0.2) as client:
        response = post(when_ready(client), ARROW, STREAM)
    assert (response.status_code, response.json()["detail"]) == (503, "The request was not completed within 0.2 s.")


def test_a_slow_block_of_a_large_request_has_the_time_of_the_whole_request() -> None:
    blocks: list[int] = []

    def slow_once(entity_rows: Any) -> list[tuple[Any, str | None]]:
        blocks.append(1)
        time.sleep(0.5 if len(blocks) == 2 else 0)
        return [(0.0, None)] * len(entity_rows["driver_id"])

    with api(FakeScorer(function=slow_once), deadline_s=0.2) as client:
        assert post(when_ready(client), ARROW, STREAM).status_code == 200
    assert len(blocks) > 2


def test_a_client_that_leaves_stops_its_request() -> None:
    blocks: list[int] = []

    def counted(entity_rows: Any) -> list[tuple[Any, str | None]]:
        blocks.append(1)
        return [(0.0, None)] * len(entity_rows["driver_id"])

    async def leave() -> int:
        app = create_app(Settings(model_name="ranker", deadline_s=5.0), FakeLoader(FakeScorer(function=counted)))
        messages: list[Any] = []

        async def send(message: Any) -> None:
            messages.append(message)

        async def post_and_leave() -> int:
            received = iter([{"type": "http.request", "body": STREAM}, {"type": "http.disconnect"}])

            async def receive() -> Any:
                return next(received)

            headers = [(b"content-type", ARROW)]
            scope = {"type": "http", "method": "POST", "path": "/scores", "headers": headers, "state": {}}
            await app.asgi_handler(scope, receive, send)  # type: ignore[arg-type]
            return int(messages[-2]["status"])

        async with app.lifespan():
            while (status := await post_and_leave()) == 503:
                await asyncio.sleep(0.02)
        return status

    assert asyncio.run(leave()) == 400
    assert len(blocks) <= 1
