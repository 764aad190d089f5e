"""Protocol and data types of online store readers."""

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
    """Stored features of n entity rows, before times to live are applied."""

    event_s: dict[str, np.ndarray]
    """View → event time of its row in seconds since 1970, float64 (n,); 0 if there is no row."""
    columns: dict[str, pa.Array]
    """`view:feature` → its values (n,), of the declared type; null means unknown."""


class StoreReader(Protocol):
    """Reads the features that one model version needs, for any number of entities. Threads may share it."""

    @property
    def store_errors(self) -> tuple[type[Exception], ...]:
        """Return the exceptions that `read` raises if the store fails. All others are caused by an entity's values."""

    def read(self, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
        """Return the stored features of n entities.

        Args:
            entity_rows: column of the request, including the join keys → values (n,), of the declared types; n is at
                least 1.

        Raises:
            Exception: an exception of the store's client, which `read_rows` translates.
        """


class ViewColumns(msgspec.Struct, frozen=True):
    """The features to read from one feature view."""

    name: str
    """Name in the feature service."""
    view: Any
    """Feast's FeatureView."""
    keys: Keys
    features: tuple[Feature, ...]


def request_column(name: str, entity_rows: Mapping[str, Sequence[Any]], dtype: pa.DataType) -> pa.Array:
    """Return a request's column as an array (n,) of the declared type.

    Raises:
        EntityRowsError: a value does not fit, or is a timestamp that batch requests do not support.
    """
    try:
        column = pa.array(entity_rows[name], dtype)
        return to_timestamps(column) if dtype == TIMESTAMP else column
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        needed = "dates and times between 1678 and 2261 are" if pa.types.is_timestamp(dtype) else f"{dtype} is"
        raise EntityRowsError(name, f"{needed} needed.") from None
