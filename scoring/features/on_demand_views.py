"""Runs the functions of on-demand views identically for batch, Spark and online, so that results agree to the bit.

Feast runs a function in two ways. Offline it passes all columns, with the source's types; online it passes Python
objects and converts them back to doubles and 64-bit integers. This module always passes the same columns, with the
values and types of the online store.
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
from scoring.errors import UnusableFeature
from scoring.features.model_features import ModelFeatures, feast_name
from scoring.foreign_errors import first_line
from scoring.imports import inside

# pyarrow's name for a frame's row numbers if they are not 0, 1, 2, .. (pyarrow 25).
PANDAS_INDEX = "__index_level_0__"


class FunctionFailed(Exception):
    """The function of an on-demand view raised an exception, which is the `__cause__`."""

    def __init__(self, view: str, error: BaseException) -> None:
        super().__init__(f"the function of on-demand view {view!r} raised {type(error).__name__}: {first_line(error)}")
        self.view = view


class OnDemandViews:
    """On-demand views and the features required from them. Can be pickled; threads may share it."""

    def __init__(
        self,
        views: Sequence[OnDemandFeatureView],
        references: Iterable[str],
        keys: Iterable[str],
        repository: Path | None = None,
    ) -> None:
        """Prepare the calls of the functions.

        Args:
            views: the views, with their projections.
            references: `view:feature` of all required features, at least one per view.
            keys: names of the join keys.
            repository: the feature repository, if the functions must be called from inside it.
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
        """Return the rows, with the functions' inputs converted to the types that the views declare.

        Raises:
            UnusableFeature: a value can't be represented in its declared type.
        """
        for place, (name, column) in enumerate(zip(rows.column_names, rows.columns, strict=True)):
            kind = self._declared.get(name)
            if kind is not None:
                try:
                    rows = rows.set_column(place, name, as_stored(column, kind))
                except pa.ArrowInvalid:
                    doing = f"converting {name!r} from {column.type} to {kind}, as its view declares it"
                    raise UnusableFeature(doing, "a value can't be represented in that type") from None
                except pa.ArrowNotImplementedError:
                    continue  # leave the value unconverted, because the function may accept it
        return rows

    def add(self, rows: pa.Table, views: Sequence[OnDemandFeatureView] | None = None) -> pa.Table:
        """Return the rows with the features of all views, or of `views`, as columns `view:feature`.

        Args:
            rows: join keys, request-time inputs and features, as returned by `declared`. A function gets the keys and
                the columns that its view names.
            views: the views to compute; by default, all.

        Returns:
            The rows' own columns, and one per required feature, of its declared type. A feature with a value that can't
            be represented in that type keeps the type from pandas or Arrow.

        Raises:
            ValueError: a function returned a different number or order of rows, or not all features of its view.
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
        """Call a view's function with rows that `declared` returned."""
        names = [feast_name(name) if name in self._features else name for name in rows.column_names]
        if len(set(names)) < len(names):
            raise ValueError(
                f"on-demand view {view.name!r} reads two features with the same name, view__feature: rename one"
            )
        rows = rows.rename_columns(names)
        if not view.singleton:
            return view.transform_arrow(rows, full_feature_names=True)
        # It takes and returns the values of one row. Feast calls it only with the first row (feast 0.67).
        found = [view.transform_dict({name: [value] for name, value in row.items()}) for row in rows.to_pylist()]
        outputs = self._outputs[view.name]
        return pa.table({feast_name(_column(view, name)): [each.get(name) for each in found] for name in outputs})


def on_demand_views(features: ModelFeatures, repository: Path | None = None) -> OnDemandViews | None:
    """Return the on-demand views of a model; None if it has none. See `OnDemandViews` for `repository`."""
    if not features.feast.on_demand_views:
        return None
    references = [feature.column for feature in features.features]
    keys = [key.name for key in features.join_keys]
    return OnDemandViews(features.feast.on_demand_views, references, keys, repository)


class Source(NamedTuple):
    """A feature view that an on-demand view reads."""

    name: str
    renamed: bool
    """Whether it is read under another name or with other join keys than its own."""
    types: dict[str, pa.DataType | None]
    """Feature → its declared type; None for a type without an Arrow type."""


def sources_of(view: OnDemandFeatureView) -> list[Source]:
    """Return the feature views that an on-demand view reads, with the features that it reads."""
    return [
        Source(each.name_to_use(), bool(each.name_alias or each.join_key_map), declared_types(each.features))
        for each in view.source_feature_view_projections.values()
    ]


def request_types_of(view: OnDemandFeatureView) -> dict[str, pa.DataType | None]:
    """Return request field of an on-demand view → its declared type; None for a type without an Arrow type."""
    return declared_types(field for source in view.source_request_sources.values() for field in source.schema)


def declared_types(fields: Iterable[Field]) -> dict[str, pa.DataType | None]:
    """Return feature → its declared type; None for a type without an Arrow type."""
    found: dict[str, pa.DataType | None] = {}
    for field in fields:
        found[field.name] = None
        with contextlib.suppress(ValueError):
            found[field.name] = from_feast_to_pyarrow_type(field.dtype)
    return found


def _inputs(view: OnDemandFeatureView) -> dict[str, pa.DataType | None]:
    """Return the columns that a view names: request fields, and features as `view:feature`."""
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
        raise ValueError(f"the function of on-demand view {view!r} returned its rows in a different order")


def _output(view: OnDemandFeatureView, derived: pa.Table, name: str, kind: pa.DataType | None) -> pa.ChunkedArray:
    column = feast_name(_column(view, name))
    if column not in derived.column_names:
        inputs = {each for source in sources_of(view) for each in source.types}
        why = " (Feast removes a column that has the name of an input)" if name in inputs else ""
        raise ValueError(f"the function of on-demand view {view.name!r} returned no {name!r}{why}")
    found = derived[column]
    if kind is not None:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return found.cast(kind)
    return found


def _is_reordered(derived: pa.Table) -> bool:
    """Return whether pandas' row numbers were returned in a different order. Feast ignores them."""
    if PANDAS_INDEX not in derived.column_names or not pa.types.is_integer(derived[PANDAS_INDEX].type):
        return False
    index = derived[PANDAS_INDEX].to_numpy()
    counted = np.arange(len(index))
    return not np.array_equal(index, counted) and np.array_equal(np.sort(index), counted)
