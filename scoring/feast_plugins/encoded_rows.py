"""Types of the rows that a writer stores: encoded for it, and the same rows as Feast's own classes take them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import numpy as np


class EncodedRows(msgspec.Struct, frozen=True):
    """Rows of one feature view, encoded as stored; each column has one entry per row."""

    keys: list[bytes]
    """Serialized entity keys."""
    event_us: np.ndarray
    """Event times, int64, microseconds since 1970."""
    created_us: np.ndarray | None
    """Creation times, likewise; NaT for null. None if the source has no such column."""
    values: Mapping[str, list[bytes]]
    """Feature → serialized Values."""
    texts: Callable[[], Mapping[str, list[str | None]]]
    """Feature → the text that SQL stores keep with each Value."""


FeastRows = Sequence[tuple[Any, dict[str, Any], datetime, datetime | None]]
