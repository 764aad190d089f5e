"""What a reader of an online store is given and returns: the protocol that each of them follows."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from scoring.arrow.timestamps import TIMESTAMP, to_timestamps
from scoring.errors import EntityRowsError
from scoring.feast_plugins.join_keys import Keys
from scoring.features.model_features import Feature

RUNNING_VIEW = "running the function of an on-demand feature view"


class StoreRead(msgspec.Struct, frozen=True):
    """What an online store holds for n entity rows, before times to live are applied."""

    event_s: dict[str, np.ndarray]
    """View → event time of its row in seconds since 1970, float64 (n,); 0 where there is no row."""
    columns: dict[str, pa.Array]
    """`view:feature` → its values (n,), of the declared type; null = unknown."""


class StoreReader(Protocol):
    """Reads what one model version needs for any number of entities. Threads may share it."""

    @property
    def store_errors(self) -> tuple[type[Exception], ...]:
        """What `read` raises where the store failed. All else comes from what the store holds for an entity."""

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """What the store holds for n entities.

        Args:
            entity_rows: request's join keys, and its other columns → values (n,), of the declared types; n is at
                least 1.

        Raises:
            Exception: whatever the store's client raises; `read_rows` translates it.
        """


class ViewColumns(msgspec.Struct, frozen=True):
    """What to read from one feature view."""

    name: str
    """As the feature service names it."""
    view: Any
    """Feast's FeatureView."""
    keys: Keys
    features: tuple[Feature, ...]


def request_column(name: str, entity_rows: Mapping[str, Sequence[Any]], dtype: pa.DataType) -> pa.Array:
    """A request's column as an array (n,) of the declared type.

    Raises:
        EntityRowsError: a value does not fit, or is a timestamp that a batch request could not hold.
    """
    try:
        column = pa.array(entity_rows[name], dtype)
        return to_timestamps(column) if dtype == TIMESTAMP else column
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise EntityRowsError(name, None, f"{dtype} is needed ({error}).") from None
