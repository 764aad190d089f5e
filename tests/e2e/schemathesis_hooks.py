"""Bodies that schemathesis can't make from a schema: tables and binary tensors of entities."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import schemathesis
from hypothesis import strategies as st

IDS = st.lists(st.one_of(st.integers(990, 1060), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=12)
TABLES = IDS.map(lambda ids: pa.table({"driver_id": pa.array(ids, pa.int64())}))


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


def _tensor(table: pa.Table) -> bytes:
    ids = table["driver_id"].to_numpy().tobytes()
    return TENSOR % (table.num_rows, len(ids)) + ids


TENSOR = b'{"inputs":[{"name":"driver_id","shape":[%d],"datatype":"INT64","parameters":{"binary_data_size":%d}}]}'
ENCODERS = {
    "application/octet-stream": _tensor,
    "application/vnd.apache.arrow.stream": _arrow,
    "application/vnd.apache.parquet": _parquet,
    "text/csv": _csv,
    **dict.fromkeys(("application/x-ndjson", "application/ndjson", "application/jsonl"), _lines),
}
for name, encode in ENCODERS.items():
    schemathesis.openapi.media_type(name, TABLES.map(encode))


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Set the header for binary tensors."""
    if isinstance(case.body, bytes) and case.body.startswith(TENSOR[:10]):
        case.headers["Inference-Header-Content-Length"] = str(case.body.index(b"}}]}") + 4)
