"""Computes on-demand features of streamed rows, block by block.

Feast calls these transformations row-level, and online they run on the rows of one request. But a function may use
other rows of its input, and pandas turns integers into floats if one of them is null. Therefore the first block is used
to test whether blocks give the same features as all rows at once (`_Trial.dependence`).
"""

import functools
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from feast.on_demand_feature_view import OnDemandFeatureView

from scoring.features.on_demand_views import OnDemandViews
from scoring.files.parquet import RowsInTurn

logger = logging.getLogger(__name__)

# Small blocks add the overhead of Feast and pandas per call. Large blocks need memory, above all in Python mode, which
# creates an object for each value. For two features, a batch run over 400,000 rows in blocks of 4096, 32,768 and
# 131,072 took 1.6, 1.4 and 1.1 s in pandas mode, and 2.7, 3.1 and 4.4 s in Python mode (445, 457 and 487 MiB).
ROWS_PER_BLOCK = 32_768
# Number of rows of the first block used to test the effect of other rows, and of a null in each column.
ROWS_TRIED, ROWS_WITH_NULLS = 8192, 1024
# Number of them that are consecutive rows of the request.
NEIGHBORS = 512
# Number of rows of each block that are computed again with the next block and must get the same values.
CARRIED = 512


class NotRowWise(ValueError):
    """After the first block, a view's function returned a different value for a row depending on other rows."""

    def __init__(self, views: Sequence[str]) -> None:
        super().__init__(
            f"the function of on-demand view {' or '.join(map(repr, views))} returns different values for the same "
            "row, depending on the other rows of a call, although the first rows of the request showed no difference: "
            "make it compute each row independently"
        )


def with_on_demand_features(
    views: OnDemandViews,
    batches: Iterator[pa.RecordBatch],
    marks: Sequence[str] = (),
    rows_per_block: int = ROWS_PER_BLOCK,
) -> Iterator[pa.Table]:
    """Yield joined rows with their views' on-demand features, in blocks of one size (`OnDemandViews.add`).

    If a view's function does not compute each row independently, all rows form one block, and a warning names the view.

    Args:
        views: the views to compute.
        batches: the rows, in batches of any size.
        marks: columns that are not passed to the views and are placed after the features.
        rows_per_block: number of rows of each block except the last.

    Yields:
        Tables of one schema. On-demand features have the types that their views declare, except that a feature with a
        value that can't be represented in its declared type keeps Feast's type.

    Raises:
        NotRowWise: only a later block revealed that a function does not compute each row independently.
        Exception: as `OnDemandViews.add`.
    """
    trial = _Trial(views, marks)
    blocks = _blocks(batches, rows_per_block)
    first = list(itertools.islice(blocks, 2))
    if len(first) == 1:
        yield trial.add(first[0])
    elif first and (why := trial.dependence(first[0])):
        logger.warning("%s: this request is loaded into memory as a whole", why)
        yield trial.add(pa.concat_tables([*first, *blocks]))
    elif first:
        carried, expected = first[0].slice(0, 0), None
        for place, block in enumerate(itertools.chain(first, blocks)):
            found = trial.add(pa.concat_tables([block, carried]))
            if expected is not None and not _same(found.slice(block.num_rows), expected):
                raise NotRowWise([view.name for view in views.views])
            own = found.slice(0, block.num_rows)
            yield own
            carried, expected = _spread(block, CARRIED, place), _spread(own, CARRIED, place)


def _blocks(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Yield the rows in blocks of one size, except the last. DuckDB's batches have any size."""
    first = next(batches, None)
    if first is None:
        return
    tables = (pa.Table.from_batches([batch]) for batch in itertools.chain([first], batches))
    rows = RowsInTurn(tables, first.schema)
    while (block := rows.take(size)).num_rows:
        yield block


class _Trial:
    """Tests whether the functions of some views compute each row independently."""

    def __init__(self, views: OnDemandViews, marks: Sequence[str]) -> None:
        self._views = views
        self._marks = list(marks)

    def add(self, rows: pa.Table) -> pa.Table:
        """Return the rows with all views' features, then the marks."""
        joined = self._views.add(self._views.declared(rows.drop_columns(self._marks)))
        for mark in self._marks:
            joined = joined.append_column(mark, rows[mark])
        return joined

    def dependence(self, rows: pa.Table) -> str | None:
        """Return how a view's function depends on other rows, tested with these rows; None if none does."""
        rows = rows.drop_columns(self._marks)
        rows = self._views.declared(pa.concat_tables([rows.slice(0, NEIGHBORS), _spread(rows, ROWS_TRIED)]))
        for view in self._views.views:
            named = f"the function of on-demand view {view.name!r}"
            try:
                # It may warn about made-up values that never occur otherwise.
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if self._compares_rows(view, rows):
                        return f"{named} returns different values for the same row, depending on the other rows"
            except Exception as error:  # it may raise for some rows but not for all together
                return f"{named} raises {type(error.__cause__ or error).__name__} for some of the rows alone"
            rows = self._views.add(rows, [view])
        return None

    def _compares_rows(self, view: OnDemandFeatureView, rows: pa.Table) -> bool:
        width = rows.num_columns

        def computed(rows: pa.Table) -> pa.Table:
            derived = self._views.add(rows, [view])
            return derived.select(range(width, derived.num_columns))

        def differs(rows: pa.Table, alone: pa.Table, others: pa.Table) -> bool:
            between = computed(pa.concat_tables([others, rows, others])).slice(rows.num_rows, rows.num_rows)
            return not _same(alone, between) or not _same(alone, _in_pieces(computed, rows))

        kept = self._kept(rows)
        filled = _filled(rows)
        for some in (rows, filled):
            if differs(some, computed(some), _exchanged(some, kept)):
                return True
        filled = _spread(filled, ROWS_WITH_NULLS)
        known, others = computed(filled), _exchanged(filled, kept)
        # Some nulls are at the cuts of `_in_pieces`, which reveals a function that fills gaps.
        lacking = pa.array([row % 4 in {0, 3} for row in range(filled.num_rows)])
        has = pc.invert(lacking)
        inputs = [name for name in filled.column_names if name not in kept]
        for lost in [*([name] for name in inputs), inputs]:
            some = functools.reduce(lambda rows, name: _lacks(rows, name, lacking), lost, filled)
            try:
                found = computed(some)
            except Exception:  # noqa: S112 - a null in this column would end the request in any block
                continue
            if not _same(found.filter(has), known.filter(has)) or differs(some, found, others):
                return True
        return False

    def _kept(self, rows: pa.Table) -> frozenset[str]:
        """Return the columns that identify a row: keys and timestamps."""
        return self._views.keys | {field.name for field in rows.schema if pt.is_timestamp(field.type)}


def _spread(rows: pa.Table, number: int, seed: int = 0) -> pa.Table:
    """Return `number` rows from all over the table, in their order; all rows if there are fewer.

    They are chosen at random with a fixed seed, because evenly spaced rows could miss alternating patterns.
    """
    if rows.num_rows <= number:
        return rows
    return rows.take(pa.array(np.sort(np.random.default_rng(seed).choice(rows.num_rows, number, replace=False))))


def _same(one: pa.Table, other: pa.Table) -> bool:
    """Return whether two tables are identical to the last bit, treating NaN as equal."""
    # repr distinguishes -0.0 from 0.0 and null from NaN, also inside lists; Arrow's equality does not.
    return one.schema.equals(other.schema) and repr(one.to_pydict()) == repr(other.to_pydict())


def _in_pieces(computed: Callable[[pa.Table], pa.Table], rows: pa.Table) -> pa.Table:
    """Compute pieces separately: the first row alone, as online, two more rows, a third of the others, and the rest."""
    bounds = [min(bound, rows.num_rows) for bound in (0, 1, 3, 3 + rows.num_rows // 3, rows.num_rows)]
    pieces = [rows.slice(start, stop - start) for start, stop in itertools.pairwise(bounds) if start < stop]
    return pa.concat_tables(map(computed, pieces))


def _exchanged(rows: pa.Table, kept: frozenset[str]) -> pa.Table:
    """Return the same keys and timestamps, each with the values of another row."""
    backwards = pa.array(range(rows.num_rows - 1, -1, -1), pa.int64())
    named = zip(rows.column_names, rows.columns, strict=True)
    columns = [column if name in kept else column.take(backwards) for name, column in named]
    return pa.table(columns, schema=rows.schema)


def _filled(rows: pa.Table) -> pa.Table:
    """Return the rows with each null number or boolean replaced by a value of another row, or by a made-up one."""
    numbers = np.arange(rows.num_rows)
    for place, column in enumerate(rows.columns):
        kind = column.type
        if column.null_count and (pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind)):
            known = column.drop_null()
            if len(known) == 0:
                known = pa.array([True, False]) if pt.is_boolean(kind) else pa.array(range(1, 101)).cast(kind)
            others = known.take(pa.array(numbers % len(known)))
            rows = rows.set_column(place, rows.schema.field(place), pc.coalesce(column, others))
    return rows


def _lacks(rows: pa.Table, name: str, lacking: pa.Array) -> pa.Table:
    place = rows.column_names.index(name)
    column = pc.if_else(lacking, pa.scalar(None, rows[name].type), rows[name])
    return rows.set_column(place, rows.schema.field(place), column)
