"""Measures the quality of a batch input or output: column samples, prediction drift, and the age of feature sources."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa

from scoring.errors import FeatureStoreError
from scoring.features.model_features import ModelFeatures
from scoring.files.parquet import ParquetFiles

if TYPE_CHECKING:
    from feast import FeatureStore

SAMPLED_ROWS = 500_000
DRIFT_BINS = 10
# With fewer rows, random variation exceeds useful warning thresholds (10 bins: 0.18 for 100 rows against 100).
MIN_ROWS_FOR_DRIFT = 100
# An empty bin counts as this share, to avoid log(0).
EMPTY_SHARE = 1e-4


class SourceAge(msgspec.Struct, frozen=True):
    """The age of one feature view's source."""

    feature_view: str
    newest: datetime | None
    """Its newest event timestamp; None if unknown (no parquet files, or no rows)."""
    ttl_s: float | None


def sample(table: ParquetFiles, column: str) -> pa.Array:
    """Return the non-null values of a column: all, or those of about SAMPLED_ROWS rows spread over the files."""
    groups = table.row_groups
    wanted = max(1, min(groups, groups * SAMPLED_ROWS // max(table.rows, 1)))
    chosen = sorted(set(np.linspace(0, groups - 1, wanted, dtype=int).tolist())) if groups else []
    return table.values(column, chosen)


def drift(reference: np.ndarray, current: np.ndarray) -> float | None:
    """Return the population stability index of predictions relative to earlier ones.

    The bins are the reference's deciles. 0 means the same distribution; above 0.25 is commonly considered a shift. None
    if either array has fewer than MIN_ROWS_FOR_DRIFT values.

    Args:
        reference: float64 (n,), finite.
        current: float64 (m,), finite.
    """
    if min(len(reference), len(current)) < MIN_ROWS_FOR_DRIFT:
        return None
    # Repeated reference values give repeated edges, and such bins are merged.
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, DRIFT_BINS + 1)[1:-1]))
    shares = [
        np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) / len(values)
        for values in (reference, current)
    ]
    before, now = (np.maximum(share, EMPTY_SHARE) for share in shares)
    return float(np.sum((now - before) * np.log(now / before)))


def predictions(table: ParquetFiles) -> np.ndarray:
    """Return the non-null predictions of an output, or a sample of them, float64 (n,)."""
    return np.asarray(sample(table, "prediction").to_numpy(zero_copy_only=False))


def source_ages(store: "FeatureStore", features: ModelFeatures) -> list[SourceAge]:
    """Return the age of each source of a model's features, one entry per feature view.

    Raises:
        FeatureStoreError: a source can't be read.
    """
    from feast.infra.offline_stores.file_source import FileSource

    from scoring.feast_plugins.offline_query import newest_event

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
