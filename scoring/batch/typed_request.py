"""Which types a batch request's columns get, and whether a file has them already."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scoring.arrow.timestamps import MOMENT
from scoring.features.model_features import ModelFeatures

EVENT_TIMESTAMP = "event_timestamp"
# A reader takes a row group at a time: larger ones would take memory that grows with the request (pyarrow's default).
ROWS_PER_GROUP = 1 << 20


def entity_columns(features: ModelFeatures) -> list[str]:
    """The columns of a request that the join needs: keys, moment, request-time inputs."""
    return [*(key.name for key in features.join_keys), EVENT_TIMESTAMP, *features.request_inputs]


def request_types(features: ModelFeatures) -> dict[str, pa.DataType]:
    """Column → type, of those that the join needs and of request-time inputs of the model."""
    inputs = {
        column.name: column.dtype for column in features.signature.inputs if column.name in features.request_inputs
    }
    keys = {key.name: key.arrow_type for key in features.join_keys}
    return features.request_types | keys | inputs | {EVENT_TIMESTAMP: MOMENT}


def is_typed(file: Path, features: ModelFeatures) -> bool:
    """Whether a request is a parquet file whose columns have these types, so that reading it changes no value.

    A file that can't be read is none; `read_batch_request` says why.
    """
    if file.suffix != ".parquet":
        return False
    try:
        with pq.ParquetFile(file) as source:
            schema, metadata = source.schema_arrow, source.metadata
            types = request_types(features)
            places = {name: schema.get_all_field_indices(name) for name in entity_columns(features)}
            small = all(metadata.row_group(each).num_rows <= ROWS_PER_GROUP for each in range(metadata.num_row_groups))
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return False
    return small and all(
        len(found) == 1 and schema.field(found[0]).type == types.get(name) for name, found in places.items()
    )
