"""Measures the quality of a batch input or output: column samples, and the age of feature sources."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import FeatureStoreError
from scoring.features.model_features import ModelFeatures
from scoring.files.parquet import ParquetFiles

if TYPE_CHECKING:
    from feast import FeatureStore

SAMPLED_ROWS = 500_000
# With more outputs, fewer rows are sampled, so that memory does not grow with the number of outputs.
FULLY_SAMPLED_OUTPUTS = 4
# An integer output with more values is a number, with fewer a label.
MOST_INTEGER_LABELS = 50


class SourceAge(msgspec.Struct, frozen=True):
    """The age of one feature view's source."""

    feature_view: str
    newest: datetime | None
    """Its newest event timestamp; None if unknown (no parquet files, or no rows)."""
    ttl_s: float | None


def sample(table: ParquetFiles, column: str, rows: int = SAMPLED_ROWS) -> pa.Array:
    """Return the non-null values of a column: all, or those of about `rows` rows spread over the files."""
    groups = table.row_groups
    wanted = max(1, min(groups, groups * rows // max(table.rows, 1)))
    chosen = sorted(set(np.linspace(0, groups - 1, wanted, dtype=int).tolist())) if groups else []
    return table.values(column, chosen)


def sampled_rows(outputs: int) -> int:
    """Return how many rows to sample from an output file with this number of output columns."""
    return SAMPLED_ROWS * FULLY_SAMPLED_OUTPUTS // max(outputs, FULLY_SAMPLED_OUTPUTS)


def are_labels(values: pa.Array | pa.ChunkedArray) -> bool:
    """Return whether an output is a label: a string, a boolean, or an integer with few different values."""
    if pa.types.is_integer(values.type):
        return bool(pc.count_distinct(values, mode="only_valid").as_py() <= MOST_INTEGER_LABELS)
    return not pa.types.is_floating(values.type)


def source_ages(store: "FeatureStore", features: ModelFeatures) -> list[SourceAge]:
    """Return the age of each source of a model's features, one entry per feature view.

    Raises:
        FeatureStoreError: a source can't be read.
    """
    from feast.infra.offline_stores.file_source import FileSource

    from scoring.feast_plugins.source_query import newest_event

    ttl_s = {view.name: view.ttl_s for view in features.views}
    ages = []
    for name, view in features.feast.views.items():
        if name not in ttl_s:
            continue
        try:
            source = view.batch_source
            newest = newest_event(source, store.repo_path) if isinstance(source, FileSource) else None
        except Exception as error:  # exception types differ between file systems
            raise FeatureStoreError(f"reading the newest event of feature view {name!r}", error) from error
        ages.append(SourceAge(name, newest.astimezone(UTC) if newest else None, ttl_s[name]))
    return ages
