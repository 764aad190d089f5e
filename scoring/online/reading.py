"""Protocol and data types of online store readers."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from scoring.arrow.timestamps import TIMESTAMP, to_timestamps
from scoring.errors import EntityRowsError
from scoring.feast_plugins.join_keys import NO_ENTITY, Keys
from scoring.features.model_features import Feature

EntityRows = Mapping[str, Sequence[Any]]
"""Join keys and inputs from the request: column → n_rows values."""
MOST_DISTINCT = 0.5
"""Fraction of distinct entities in a request above which each row's entity is read."""
RUNNING_VIEW = "running the function of an on-demand feature view"


class Numbers(msgspec.Struct, frozen=True):
    """Features of one declared type that are known in all n entity rows."""

    names: tuple[str, ...]
    """`view:feature` of each."""
    dtype: pa.DataType
    values: np.ndarray
    """(n_features, n), of a type that holds the values of `dtype`."""

    def columns(self) -> dict[str, pa.Array]:
        """Return `view:feature` → its values (n,), of the declared type."""
        return {name: pa.array(values, self.dtype) for name, values in zip(self.names, self.values, strict=True)}


class StoreRead(msgspec.Struct, frozen=True, dict=True):
    """Stored features of n entity rows, before times to live are applied."""

    event_s: dict[str, np.ndarray]
    """View → event time of its row in seconds since 1970, float64 (n,); 0 if there is no row."""
    others: dict[str, pa.Array]
    """`view:feature` → its values (n,), of the declared type, for the features that are not in `numbers`."""
    numbers: tuple[Numbers, ...] = ()

    @property
    def rows(self) -> int:
        """Return n."""
        return len(next(iter(self.event_s.values())))

    @functools.cached_property
    def columns(self) -> dict[str, pa.Array]:
        """Return `view:feature` → its values (n,), of the declared type; null means unknown."""
        columns = dict(self.others)
        for numbers in self.numbers:
            columns |= numbers.columns()
        return columns

    def take(self, places: np.ndarray) -> "StoreRead":
        """Return the features of the rows at these places."""
        return StoreRead(
            {view: event_s[places] for view, event_s in self.event_s.items()},
            {name: column.take(pa.array(places)) for name, column in self.others.items()},
            tuple(msgspec.structs.replace(each, values=each.values[:, places]) for each in self.numbers),
        )

    def slice(self, start: int, rows: int) -> "StoreRead":
        """Return the features of consecutive rows."""
        end = start + rows
        return StoreRead(
            {view: event_s[start:end] for view, event_s in self.event_s.items()},
            {name: column.slice(start, rows) for name, column in self.others.items()},
            tuple(msgspec.structs.replace(each, values=each.values[:, start:end]) for each in self.numbers),
        )


def joined(parts: Sequence[StoreRead]) -> StoreRead:
    """Return the features of consecutive parts of the entity rows."""
    first = parts[0]
    if len(parts) == 1:
        return first
    event_s = {view: np.concatenate([part.event_s[view] for part in parts]) for view in first.event_s}
    if any([each.names for each in part.numbers] != [each.names for each in first.numbers] for part in parts):
        return StoreRead(event_s, {n: pa.concat_arrays([part.columns[n] for part in parts]) for n in first.columns})
    others = {name: pa.concat_arrays([part.others[name] for part in parts]) for name in first.others}
    alike = zip(*(part.numbers for part in parts), strict=True)
    numbers = [
        msgspec.structs.replace(group[0], values=np.concatenate([each.values for each in group], axis=1))
        for group in alike
    ]
    return StoreRead(event_s, others, tuple(numbers))


def merged(reads: Sequence[StoreRead]) -> StoreRead:
    """Return the features of the same entity rows from several views."""
    if len(reads) == 1:
        return reads[0]
    event_s: dict[str, np.ndarray] = {}
    others: dict[str, pa.Array] = {}
    for read in reads:
        event_s |= read.event_s
        others |= read.others
    return StoreRead(event_s, others, tuple(numbers for read in reads for numbers in read.numbers))


class StoreReader(Protocol):
    """Reads the features that one model version needs, for any number of entities. Threads may share it."""

    @property
    def store_errors(self) -> tuple[type[Exception], ...]:
        """Return the exceptions that `read` raises if the store fails. All others are caused by an entity's values."""

    def read(self, entity_rows: EntityRows) -> StoreRead:
        """Return the stored features of n entities.

        Args:
            entity_rows: column of the request, including the join keys → values (n,), of the declared types; n is at
                least 1.

        Raises:
            Exception: an exception of the store's client, which `read_rows` translates.
        """

    def send(self, entity_rows: EntityRows, /) -> "Sent | None":  # noqa: ARG002 - for readers that can
        """Request the features of a few entities without blocking; None if this reader can't, or not now."""
        return None


class Sent(Protocol):
    """A read whose request was sent, for an event loop that must not block."""

    @property
    def fileno(self) -> int:
        """Return the descriptor that becomes readable when an answer arrives."""

    def receive(self) -> StoreRead | None:
        """Return what was read, or None if a part is missing. Called when the descriptor is readable.

        Raises:
            Exception: the read failed. `give_up` must be called then.
        """

    def give_up(self) -> None:
        """End the read."""


class ViewColumns(msgspec.Struct, frozen=True):
    """The features to read from one feature view."""

    name: str
    """Name in the feature service."""
    view: Any
    """Feast's FeatureView."""
    keys: Keys
    features: tuple[Feature, ...]


def distinct_entities(keys: Keys, entity_rows: EntityRows) -> tuple[EntityRows, np.ndarray | None]:
    """Return the distinct entities of n entity rows, and the place of each row's entity among them, int (n,).

    The places are None if few entities repeat, as in most requests: reading those twice takes less time than finding
    their places.
    """
    names = [key.name for _, key in keys]
    if names == [NO_ENTITY]:
        return {NO_ENTITY: [""]}, np.zeros(len(next(iter(entity_rows.values()))), np.int64)
    single = len(names) == 1
    rows = entity_rows[names[0]] if single else list(zip(*map(entity_rows.__getitem__, names), strict=True))
    distinct = set(rows)
    if len(distinct) > MOST_DISTINCT * len(rows):
        return entity_rows, None
    columns = [list(distinct)] if single else zip(*distinct, strict=True)
    if len(distinct) == 1:
        return dict(zip(names, columns, strict=True)), np.zeros(len(rows), np.int64)
    places = dict(zip(distinct, range(len(distinct)), strict=True))
    return dict(zip(names, columns, strict=True)), np.fromiter(map(places.__getitem__, rows), np.int64, len(rows))


def request_column(name: str, entity_rows: EntityRows, dtype: pa.DataType) -> pa.Array:
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
