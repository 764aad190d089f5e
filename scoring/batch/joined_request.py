"""A batch request's rows, checked, beside their features: what batch_input.parquet holds."""

import itertools
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from scoring.batch.join import with_point_in_time_features
from scoring.batch.request import read_batch_request
from scoring.batch.typed_request import is_typed
from scoring.errors import FeatureStoreError, first_line
from scoring.features.model_features import ModelFeatures
from scoring.files.parquet import write_tables

if TYPE_CHECKING:
    from feast import FeatureStore

logger = logging.getLogger(__name__)


def write_joined(
    store: "FeatureStore", features: ModelFeatures, request: Path, shown: str, part: Path, metadata: dict[bytes, bytes]
) -> tuple[int, dict[str, int]]:
    """Check a request's rows and write them, joined with their features, into one parquet file.

    Args:
        store: the Feast store.
        features: which features make the model's vector.
        request: the request, in a folder where there is room for a copy of its rows.
        shown: where it comes from, for the errors.
        part: where to write: columns as `with_point_in_time_features` yields them, row by row.
        metadata: what the file says of itself, in its Arrow schema.

    Returns:
        How many rows the request has, and view → how many of them it was too old for, where the store tells.

    Raises:
        BatchRequestError: see `read_batch_request`.
        FeatureStoreError: see `with_point_in_time_features`.
    """
    stale: dict[str, int] = {}
    checked = read_batch_request(request, features, shown)
    first = next(checked)  # what is wrong with its columns shows before the join begins
    checked = itertools.chain([first], checked)
    if is_typed(request, features):
        # The join reads the request itself: a copy of ten million rows takes a sixth of its processor time.
        try:
            joined = with_point_in_time_features(store, features, request, stale, checked)
            return write_tables(joined, part, metadata), stale
        except FeatureStoreError as error:
            # It may be a file that this reader takes and DuckDB does not; if it is not, the same comes once more.
            logger.info("The request is copied, and joined once more: %s", first_line(error))
            checked = read_batch_request(request, features, shown)
            stale.clear()
    typed = request.with_suffix(".typed.parquet")
    rows = write_tables(checked, typed, {})
    write_tables(with_point_in_time_features(store, features, typed, stale), part, metadata)
    return rows, stale
