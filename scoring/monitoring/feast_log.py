"""Copies the prediction log to the destination that a feature service's LoggingConfig names.

There, `feast validate` and `feast monitor run --source-type log` read it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa

from scoring.errors import FeatureStoreError, StorageError
from scoring.files.location import Location
from scoring.files.transfer import publishing
from scoring.monitoring.log_files import LogFile
from scoring.monitoring.prediction_log import CHALLENGER, REQUEST_ID, ROLE, in_sample

if TYPE_CHECKING:
    from feast import FeatureStore

COPIED = "_feast.json"
"""The file beside those of a day that names the ones that were copied."""


def copy_to_feast(store: "FeatureStore", folder: Location, files: Sequence[LogFile]) -> int:
    """Copy the rows of a day's new files, and return their number. A challenger's are not copied: nothing served them.

    The LoggingConfig's `sample_rate` is a fraction of all requests, of which the log may already be a sample. A file is
    recorded once it is copied: after a run that was killed in between, the next run copies that file again.

    Args:
        store: the Feast store.
        folder: the day's folder, for the record of the copied files.
        files: the day's files.

    Raises:
        FeatureStoreError: the offline store failed.
        StorageError: a file or the record can't be read, or the record can't be written.
    """
    served = [file for file in files if file.constants[ROLE] != CHALLENGER]
    services = {name: _logged_service(store, name) for name in {file.constants["feature_service"] for file in served}}
    wanted = [file for file in served if services[file.constants["feature_service"]] is not None]
    copied = _copied(folder / COPIED) if wanted else []
    rows = 0
    for file in wanted:
        if file.copy.name not in copied:
            rows += _copy(store, services[file.constants["feature_service"]], pa.concat_tables(file.tables()))
            copied.append(file.copy.name)
            with publishing(folder / COPIED) as part:
                part.write_bytes(msgspec.json.encode(copied))
    return rows


def _copied(record: Location) -> list[str]:
    try:
        return msgspec.json.decode(record.read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (msgspec.MsgspecError, ValueError) as error:
        raise StorageError("reading", str(record), error) from None


def _logged_service(store: "FeatureStore", name: str) -> Any:
    """Return the feature service if it has a LoggingConfig; None otherwise, or if there is no such service."""
    from feast.errors import FeastObjectNotFoundException

    try:
        service = store.get_feature_service(name)
    except FeastObjectNotFoundException:
        return None
    return service if service.logging_config is not None else None


def _copy(store: "FeatureStore", service: Any, rows: pa.Table) -> int:
    from feast.feature_logging import FeatureServiceLoggingSource

    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    rate = service.logging_config.sample_rate
    sampled = [in_sample(each, rate) for each in rows[REQUEST_ID].to_pylist()]
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
