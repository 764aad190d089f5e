"""Feature vectors as of a moment in the past: the point-in-time join, done by Feast's offline store."""

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from scoring.batch_request import EVENT_TIMESTAMP
from scoring.errors import FeatureStoreError
from scoring.feature_store import inside
from scoring.features import ModelFeatures

if TYPE_CHECKING:
    from feast import FeatureStore

ROW = "request_row__"


def point_in_time_vectors(store: "FeatureStore", features: ModelFeatures, request: pa.Table) -> pa.Table:
    """Feature vectors as they were known at each row's event_timestamp, within the views' times to live.

    Args:
        store: the Feast store; its offline store does the join.
        features: which features of which service make the model's vector.
        request: entity rows (`read_batch_request`): join keys, event_timestamp [us, UTC], request-time inputs.

    Returns:
        One column an input, in signature order and types; row i belongs to request row i; null = unknown then.

    Raises:
        FeatureStoreError: the offline store failed, or lost or doubled rows.
    """
    if request.num_rows == 0:
        return features.signature.schema.empty_table()
    names = [key.name for key in features.join_keys] + [EVENT_TIMESTAMP, *features.request_inputs]
    entity_rows = request.select(names).append_column(ROW, pa.array(range(request.num_rows), pa.int64()))
    try:
        with inside(Path(store.repo_path)):
            service = store.get_feature_service(features.service)
            joined = store.get_historical_features(
                entity_df=entity_rows.to_pandas(), features=service, full_feature_names=True
            ).to_arrow()
    except Exception as error:  # every offline store raises its own kinds
        raise FeatureStoreError(f"joining features of service {features.service!r}", error) from error
    joined = joined.take(pc.sort_indices(joined[ROW]))
    if joined.num_rows != request.num_rows or not joined[ROW].equals(entity_rows[ROW]):
        raise FeatureStoreError(
            f"joining features of service {features.service!r}",
            f"{request.num_rows} entity rows went in and {joined.num_rows} came out (offline_store "
            f"{store.config.offline_store.type}). Feast's file store drops rows of the same "
            "keys and timestamp: use duckdb.",
        )
    own = {name: request[name] for name in features.request_inputs}
    columns = {name: joined[name] for name in joined.column_names} | own
    return features.vectors(columns, unusable=features.absent_views(columns))
