"""Runs the functions of on-demand views: one way for batch, Spark and online, so that they agree to the bit.

Feast runs a function in two ways. Offline it passes all columns, with the source's types; online it passes Python
objects and converts them back to doubles and 64-bit integers. Here a function always gets the same columns, as the
online store keeps them.
"""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from feast.field import Field
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.types import from_feast_to_pyarrow_type

from scoring.arrow.signature import as_stored
from scoring.errors import UnusableFeature, first_line
from scoring.features.model_features import ModelFeatures, feast_name
from scoring.imports import inside

# pyarrow's name for the row numbers of a frame that are not 0, 1, 2, .. (pyarrow 25).
PANDAS_INDEX = "__index_level_0__"


class FunctionFailed(Exception):
    """The function of an on-demand view can't be run. `__cause__` is what it raised."""

    def __init__(self, view: str, error: BaseException) -> None:
        super().__init__(f"the function of on-demand view {view!r} raised {type(error).__name__}: {first_line(error)}")
        self.view = view


class OnDemandViews:
    """Some on-demand views, and which of their features are needed. Can be pickled; threads may share it."""

    def __init__(
        self,
        views: Sequence[OnDemandFeatureView],
        references: Iterable[str],
        keys: Iterable[str],
        repository: Path | None = None,
    ) -> None:
        """Prepare the calls; nothing is computed yet.

        Args:
            views: with their projections.
            references: `view:feature` of all features that are needed, at least one of each view.
            keys: names of the join keys.
            repository: the feature repository, if the functions are to be called from inside it.
        """
        self.views = tuple(views)
        self.keys = frozenset(keys)
        self._repository = repository
        self._inputs = {view.name: _inputs(view) for view in views}
        self._declared = {name: kind for inputs in self._inputs.values() for name, kind in inputs.items()}
        sources = [source for view in views for source in sources_of(view)]
        self._features = {f"{source.name}:{name}" for source in sources for name in source.types}
        self._outputs = {}
        needed = set(references)
        for view in views:
            prefix, types = view.projection.name_to_use(), declared_types(view.features)
            self._outputs[view.name] = {name: kind for name, kind in types.items() if f"{prefix}:{name}" in needed}

    def declared(self, rows: pa.Table) -> pa.Table:
        """The rows, with what the functions read as the views declare it.

        Raises:
            UnusableFeature: a value has no counterpart in its declared type.
        """
        for place, (name, column) in enumerate(zip(rows.column_names, rows.columns, strict=True)):
            kind = self._declared.get(name)
            if kind is not None:
                try:
                    rows = rows.set_column(place, name, as_stored(column, kind))
                except pa.ArrowInvalid:
                    doing = f"converting {name!r} from {column.type} to {kind}, as its view declares it"
                    raise UnusableFeature(doing, "a value has no counterpart there") from None
                except pa.ArrowNotImplementedError:
                    continue  # the function may take it
        return rows

    def add(self, rows: pa.Table, views: Sequence[OnDemandFeatureView] | None = None) -> pa.Table:
        """The rows with the features of all views, or of these, `view:feature`.

        Args:
            rows: join keys, request-time inputs and features, `declared`; a function gets the keys and what its view
                names.
            views: some of the views.

        Returns:
            The rows' own columns, and one for each needed feature, of its declared type. Only one with a value that has
            no counterpart there has the type that pandas or Arrow gave it.

        Raises:
            ValueError: a function returned other rows than it got, or not the features that its view declares.
            FunctionFailed: a view's function raised.
        """
        with contextlib.nullcontext() if self._repository is None else inside(self._repository):
            for view in self.views if views is None else views:
                passed = self.keys | self._inputs[view.name].keys()
                try:
                    derived = self._run(view, rows.select([name for name in rows.column_names if name in passed]))
                except (Exception, SystemExit) as error:
                    raise FunctionFailed(view.name, error) from error
                _check_rows(view.name, derived, rows.num_rows)
                for name, kind in self._outputs[view.name].items():
                    rows = rows.append_column(_column(view, name), _output(view, derived, name, kind))
        return rows

    def _run(self, view: OnDemandFeatureView, rows: pa.Table) -> pa.Table:
        """What a view's function returns for rows that are `declared`."""
        names = [feast_name(name) if name in self._features else name for name in rows.column_names]
        if len(set(names)) < len(names):
            raise ValueError(f"on-demand view {view.name!r} reads two features of one name, view__feature: rename one")
        rows = rows.rename_columns(names)
        if not view.singleton:
            return view.transform_arrow(rows, full_feature_names=True)
        # It takes one row's values and returns one row's. Feast calls it with the first row alone (feast 0.67).
        found = [view.transform_dict({name: [value] for name, value in row.items()}) for row in rows.to_pylist()]
        outputs = self._outputs[view.name]
        return pa.table({feast_name(_column(view, name)): [each.get(name) for each in found] for name in outputs})


def on_demand_views(features: ModelFeatures, repository: Path | None = None) -> OnDemandViews | None:
    """What computes a model's on-demand features; None where it has none. `repository`: see `OnDemandViews`."""
    if not features.feast.on_demand_views:
        return None
    references = [feature.column for feature in features.features]
    keys = [key.name for key in features.join_keys]
    return OnDemandViews(features.feast.on_demand_views, references, keys, repository)


class Source(NamedTuple):
    """A feature view that an on-demand view reads."""

    name: str
    renamed: bool
    """Whether it is read by another name or by other join keys than its own."""
    types: dict[str, pa.DataType | None]
    """Feature → its declared type; None for one that Arrow lacks."""


def sources_of(view: OnDemandFeatureView) -> list[Source]:
    """The feature views that an on-demand view reads, and what it reads from them."""
    return [
        Source(each.name_to_use(), bool(each.name_alias or each.join_key_map), declared_types(each.features))
        for each in view.source_feature_view_projections.values()
    ]


def request_types_of(view: OnDemandFeatureView) -> dict[str, pa.DataType | None]:
    """What an on-demand view takes from a request → its declared type; None for one that Arrow lacks."""
    return declared_types(field for source in view.source_request_sources.values() for field in source.schema)


def declared_types(fields: Iterable[Field]) -> dict[str, pa.DataType | None]:
    """Feature → its declared type; None for one that Arrow lacks."""
    found: dict[str, pa.DataType | None] = {}
    for field in fields:
        found[field.name] = None
        with contextlib.suppress(ValueError):
            found[field.name] = from_feast_to_pyarrow_type(field.dtype)
    return found


def _inputs(view: OnDemandFeatureView) -> dict[str, pa.DataType | None]:
    """The columns that a view names: those of a request, and `view:feature`."""
    found = request_types_of(view)
    for source in sources_of(view):
        found |= {f"{source.name}:{name}": kind for name, kind in source.types.items()}
    return found


def _column(view: OnDemandFeatureView, feature: str) -> str:
    return f"{view.projection.name_to_use()}:{feature}"


def _check_rows(view: str, derived: pa.Table, rows: int) -> None:
    if derived.num_rows != rows:
        raise ValueError(f"the function of on-demand view {view!r} returned {derived.num_rows} rows for {rows}")
    if _is_reordered(derived):
        raise ValueError(f"the function of on-demand view {view!r} returned its rows in another order")


def _output(view: OnDemandFeatureView, derived: pa.Table, name: str, kind: pa.DataType | None) -> pa.ChunkedArray:
    column = feast_name(_column(view, name))
    if column not in derived.column_names:
        inputs = {each for source in sources_of(view) for each in source.types}
        why = " (Feast removes a column that is named as an input)" if name in inputs else ""
        raise ValueError(f"the function of on-demand view {view.name!r} returned no {name!r}{why}")
    found = derived[column]
    if kind is not None:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return found.cast(kind)
    return found


def _is_reordered(derived: pa.Table) -> bool:
    """Whether pandas' row numbers came back in another order. Feast ignores them."""
    if PANDAS_INDEX not in derived.column_names or not pa.types.is_integer(derived[PANDAS_INDEX].type):
        return False
    index = derived[PANDAS_INDEX].to_numpy()
    counted = np.arange(len(index))
    return not np.array_equal(index, counted) and np.array_equal(np.sort(index), counted)
