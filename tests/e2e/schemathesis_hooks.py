"""Bodies that schemathesis can't make from a schema: tables of entities."""

import io

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import schemathesis
from hypothesis import strategies as st

IDS = st.lists(st.one_of(st.integers(990, 1060), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=12)


def _arrow(table: pa.Table) -> bytes:
    body = pa.BufferOutputStream()
    with pa.ipc.new_stream(body, table.schema) as stream:
        stream.write_table(table)
    return body.getvalue().to_pybytes()


def _parquet(table: pa.Table) -> bytes:
    body = io.BytesIO()
    pa.parquet.write_table(table, body)
    return body.getvalue()


def _csv(table: pa.Table) -> bytes:
    body = io.BytesIO()
    pa.csv.write_csv(table, body)
    return body.getvalue()


def _lines(table: pa.Table) -> bytes:
    return b"".join(b'{"driver_id":%d}\n' % each for each in table["driver_id"].to_pylist())


ENCODERS = {
    "application/vnd.apache.arrow.stream": _arrow,
    "application/vnd.apache.parquet": _parquet,
    "text/csv": _csv,
    **dict.fromkeys(("application/x-ndjson", "application/ndjson", "application/jsonl"), _lines),
}
for name, encode in ENCODERS.items():
    schemathesis.openapi.media_type(name, IDS.map(lambda ids, encode=encode: encode(pa.table({"driver_id": ids}))))
