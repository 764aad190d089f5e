"""Copies the prediction log to the destination that a feature service's LoggingConfig names.

There, `feast validate` and `feast monitor run --source-type log` read it.
"""

import zlib
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.errors import FeatureStoreError
from scoring.files.location import Location
from scoring.files.transfer import publishing
from scoring.monitoring.prediction_log import REQUEST_ID

if TYPE_CHECKING:
    from feast import FeatureStore

COPIED = "_feast.json"
"""The file beside those of a day that names the ones that were copied."""


def copy_to_feast(store: "FeatureStore", folder: Location) -> int:
    """Copy the rows of a day's new files, and return their number.

    A file is recorded once it is copied, so that a run that is killed in between copies one file twice.

    Raises:
        FeatureStoreError: the offline store failed.
        StorageError: a file can't be read or written.
    """
    record = folder / COPIED
    copied: list[str] = msgspec.json.decode(record.read_bytes()) if record.exists() else []
    rows = 0
    for entry in sorted(folder.files(), key=lambda entry: entry.name):
        if entry.name.endswith(".parquet") and entry.name not in copied:
            with (folder / entry.name).open() as opened:
                rows += _copy(store, pq.ParquetFile(opened).read())
            copied.append(entry.name)
            with publishing(record) as part:
                part.write_bytes(msgspec.json.encode(copied))
    return rows


def _copy(store: "FeatureStore", rows: pa.Table) -> int:
    from feast.errors import FeastObjectNotFoundException
    from feast.feature_logging import FeatureServiceLoggingSource

    try:
        service = store.get_feature_service(rows["feature_service"][0].as_py())
    except FeastObjectNotFoundException:
        return 0  # it was removed, or the model has none
    if service.logging_config is None:
        return 0
    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    bound = int(service.logging_config.sample_rate * 2**32)
    sampled = [zlib.crc32(each.encode("utf-8", "replace")) < bound for each in rows[REQUEST_ID].to_pylist()]
    # Features that were added to the service since then are null.
    missing = {
        field.name: pa.nulls(rows.num_rows, field.type) for field in schema if field.name not in rows.schema.names
    }
    columns = [missing[field.name] if field.name in missing else rows[field.name].cast(field.type) for field in schema]
    table = pa.table(columns, schema=schema).filter(pa.array(sampled, pa.bool_()))
    try:
        store.write_logged_features(table, service)
    except Exception as error:  # exception types differ between offline stores
        raise FeatureStoreError("writing its log of served features", error) from error
    return int(table.num_rows)
