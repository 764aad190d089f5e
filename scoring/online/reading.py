"""What a reader of an online store gets and gives: the protocol that each of them follows."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from scoring.arrow.timestamps import MOMENT, to_moment
from scoring.errors import EntityRowsError
from scoring.feast_plugins.join_keys import Keys
from scoring.features.model_features import Feature, ModelFeatures

if TYPE_CHECKING:
    from feast import FeatureStore

RUNNING_VIEW = "running the function of an on-demand feature view"


NO_VALUE = "the bytes of an entity are not what Feast writes"


class StoreReader(Protocol):
    """Reads what one model version needs of any number of entities. Threads may share it."""

    store_errors: tuple[type[Exception], ...]
    """What its client raises if the store fails."""

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> "StoreRead":
        """What the store holds of n entities.

        Args:
            entity_rows: request's join keys, and its other columns → values (n,), of the declared types; n is at
                least 1.

        Raises:
            Exception: one of `store_errors`, or what the bytes of an entity lead to; `read_rows` translates both.
            FeatureStoreError: only the reader can tell that the store failed.
        """


class StoreRead(msgspec.Struct, frozen=True):
    """What an online store holds of n entity rows, before anything is judged."""

    written_s: dict[str, np.ndarray]
    """View → event time in seconds since 1970, float64 (n,); 0 where there is no row."""
    columns: dict[str, pa.Array]
    """`view__feature` → its values (n,), of the declared type; null = unknown."""


class ViewColumns(msgspec.Struct, frozen=True):
    """What to read of one feature view."""

    name: str
    """As the feature service names it."""
    view: Any
    """Feast's feature view."""
    keys: Keys
    features: tuple[Feature, ...]


def request_column(name: str, entity_rows: Mapping[str, Sequence[Any]], dtype: pa.DataType) -> pa.Array:
    """A request's column as an array (n,) of the declared type.

    Raises:
        EntityRowsError: a value does not fit, or is a moment that a batch request could not have.
    """
    try:
        column = pa.array(entity_rows[name], dtype)
        return to_moment(column) if dtype == MOMENT else column
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise EntityRowsError(name, None, f"{dtype} is needed ({error}).") from None


BulkReader = Callable[["FeatureStore", ModelFeatures], StoreReader | None]
"""Makes a reader of what some features need, faster than Feast's own; None where Feast's must serve."""
