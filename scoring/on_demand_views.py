"""What on-demand views add to rows: one way for batch, Spark and online, so that they agree to the bit.

Feast runs a view's function in two ways. Offline it gets columns of the types that the source has, online Python's
objects, of which doubles and 64-bit integers are made again. Here it always gets what the feature views declare, as the
online store keeps it.
"""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast.field import Field
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.types import from_feast_to_pyarrow_type

from scoring.errors import UnusableFeature
from scoring.feature_store import inside
from scoring.signature import as_kept

# What pyarrow calls the row numbers of a frame, where they are more than a count (pyarrow 25).
PANDAS_INDEX = "__index_level_0__"


class OnDemandViews:
    """Some on-demand views, and which of their features are asked for. It can be pickled, and threads may share it."""

    def __init__(
        self,
        views: Sequence[OnDemandFeatureView],
        references: Collection[str],
        full_names: bool = True,
        repository: Path | None = None,
    ) -> None:
        """Remember them; nothing is computed yet.

        Args:
            views: with their projections.
            references: `view:feature` of all features asked for, those of other views, too.
            full_names: whether columns are named `view__feature`.
            repository: the feature repository, if the functions are to be called from inside of it.
        """
        self.views = tuple(views)
        self._full_names = full_names
        self._repository = repository
        asked_for: dict[str, set[str]] = {}
        for reference in references:
            of_view, _, feature = reference.partition(":")
            asked_for.setdefault(of_view, set()).add(feature)
        projections = [each for view in views for each in view.source_feature_view_projections.values()]
        self._declared: dict[str, pa.DataType | None] = {}
        for view in views:
            for source in view.source_request_sources.values():
                self._declared |= declared_types(source.schema)
        for projection in projections:
            for name, kind in declared_types(projection.features).items():
                self._declared[self._column(projection.name_to_use(), name)] = kind
        self._outputs = {view.name: self._outputs_of(view, asked_for) for view in views}
        of_views = {(each.name_to_use(), field.name) for each in projections for field in each.features}
        of_views |= {(name, feature) for name, features in asked_for.items() for feature in features}
        self._hidden = {view.name: self._undeclared(view, of_views) for view in views}

    def declared(self, rows: pa.Table) -> pa.Table:
        """The rows, with what the functions read as the feature views declare it.

        Raises:
            UnusableFeature: a value has no counterpart in its declared type.
        """
        for place, (name, column) in enumerate(zip(rows.column_names, rows.columns, strict=True)):
            kind = self._declared.get(name)
            if kind is not None:
                try:
                    rows = rows.set_column(place, name, as_kept(column, kind))
                except pa.ArrowInvalid:
                    doing = f"converting {name!r} from {column.type} to {kind}, as its view declares it"
                    raise UnusableFeature(doing, "a value has no counterpart there") from None
                except pa.ArrowNotImplementedError:
                    continue  # the function may know what to do with it
        return rows

    def add(self, rows: pa.Table, views: Sequence[OnDemandFeatureView] | None = None) -> pa.Table:
        """The rows with the features of all views, or of these.

        Args:
            rows: join keys, request-time inputs and features, `declared`.
            views: some of the views.

        Returns:
            The rows' own columns, and one for each feature asked for, of its declared type. Only one that holds a value
            without a counterpart there has the type that pandas or Arrow give it.

        Raises:
            ValueError: a function returned other rows than it got, or not the features that its view declares.
            Exception: whatever a view's function raises.
        """
        with contextlib.nullcontext() if self._repository is None else inside(self._repository):
            for view in self.views if views is None else views:
                derived = self._run(view, rows.drop_columns(_those_in(self._hidden[view.name], rows)))
                for column, kind in self._outputs[view.name].values():
                    rows = rows.append_column(column, _output(view.name, derived, column, kind, rows.num_rows))
        return rows

    def _run(self, view: OnDemandFeatureView, rows: pa.Table) -> pa.Table:
        """What a view's function returns of rows that are `declared`."""
        if not view.singleton:
            return view.transform_arrow(rows, self._full_names)
        # It takes one row's values and returns one row's. Feast calls it with the first row alone (feast 0.67).
        found = [view.transform_dict({name: [value] for name, value in row.items()}) for row in rows.to_pylist()]
        names = {name: column for name, (column, _) in self._outputs[view.name].items()}
        return pa.table({column: [each.get(name) for each in found] for name, column in names.items()})

    def _outputs_of(
        self, view: OnDemandFeatureView, asked_for: Mapping[str, set[str]]
    ) -> dict[str, tuple[str, pa.DataType | None]]:
        shown = view.projection.name_to_use()
        names = asked_for.get(view.name, set()) | asked_for.get(shown, set())
        types = declared_types(view.features)
        return {name: (self._column(shown, name), kind) for name, kind in types.items() if name in names or not names}

    def _undeclared(self, view: OnDemandFeatureView, of_views: Collection[tuple[str, str]]) -> set[str]:
        """Columns of other views: of the age of their rows nothing would be known where this one read them."""
        projections = view.source_feature_view_projections.values()
        own = {each.name_to_use() for each in projections}
        names = {self._column(each.name_to_use(), field.name) for each in projections for field in each.features}
        return {self._column(shown, name) for shown, name in of_views if shown not in own} - names

    def _column(self, view: str, feature: str) -> str:
        return f"{view}__{feature}" if self._full_names else feature


def declared_types(fields: Iterable[Field]) -> dict[str, pa.DataType | None]:
    """Feature → its declared type; None for one that Arrow has not."""
    found: dict[str, pa.DataType | None] = {}
    for field in fields:
        try:
            found[field.name] = from_feast_to_pyarrow_type(field.dtype)
        except ValueError:
            found[field.name] = None
    return found


def _those_in(names: Collection[str], rows: pa.Table) -> list[str]:
    return [name for name in rows.column_names if name in names]


def _output(view: str, derived: pa.Table, column: str, kind: pa.DataType | None, rows: int) -> pa.ChunkedArray:
    if column not in derived.column_names:
        raise ValueError(f"the function of on-demand view {view!r} returned no {column.rpartition('__')[2]!r}")
    if derived.num_rows != rows:
        raise ValueError(f"the function of on-demand view {view!r} returned {derived.num_rows} rows for {rows}")
    if _is_reordered(derived):
        raise ValueError(f"the function of on-demand view {view!r} returned its rows in another order")
    found = derived[column]
    if kind is not None:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return found.cast(kind)
    return found


def _is_reordered(derived: pa.Table) -> bool:
    """Whether pandas' own row numbers came back in another order. Feast takes the first row for the first in any."""
    if PANDAS_INDEX not in derived.column_names or not pa.types.is_integer(derived[PANDAS_INDEX].type):
        return False
    index = derived[PANDAS_INDEX].to_numpy()
    counted = np.arange(len(index))
    return not np.array_equal(index, counted) and np.array_equal(np.sort(index), counted)
