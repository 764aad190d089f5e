"""Compares the challenger's answers with the champion's.

There are two sources of rows that both versions scored: the prediction log, to which the API writes the challenger's
answers under its own role, and batch requests. DuckDB joins the rows of both versions and counts; it spills to disk.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pyarrow as pa

from scoring.batch.manifest import output_parts
from scoring.batch.quality import sampled_rows
from scoring.batch.request import RequestCopy
from scoring.engine import Engine, score_request
from scoring.errors import StorageError
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles
from scoring.monitoring.challenger_report import Report, Side
from scoring.monitoring.comparison import VersionComparison, common_outputs
from scoring.monitoring.log_files import day_folder, fetch_log
from scoring.monitoring.prediction_log import CHALLENGER, LATENCY_MS, LOG_TIMESTAMP, PROBLEM, REQUEST_ID, ROLE
from scoring.predict import Policy
from scoring.serving import ServingModel

if TYPE_CHECKING:
    from feast import FeatureStore

MEMORY = "1GB"
AT_ONCE = 2**18
NO_REASON = "unknown"

Both = tuple[ServingModel, ServingModel]
"""The champion and the challenger."""
Comparison = tuple[Report, VersionComparison]
"""The report of one source, and the predictions of its rows, or of a sample of them."""


def compare_request(
    key: str, request: RequestCopy, both: Both, store: "FeatureStore", engine: Engine, policy: Policy, folder: Location
) -> Comparison:
    """Score a batch request with both versions, into `champion` and `challenger` of a folder, and compare the outputs.

    Raises as the methods of `engine`.
    """
    files, seconds = [], []
    with scratch_folder() as scratch:
        for role, serving in zip(("champion", CHALLENGER), both, strict=True):
            started = time.monotonic()
            score_request(engine, serving, request, store, policy, folder / role)
            seconds.append(round(time.monotonic() - started, 3))
            files.append(output_parts(folder / role))
        with _Pairs(both, files, scratch, logged=False) as pairs:
            return pairs.compared("batch", key, seconds)


def compare_log(log: Location, days: Sequence[str], both: Both, role: str) -> Comparison | None:
    """Compare the rows of some days of the prediction log that the champion, under `role`, and the challenger have.

    Return None if there are none.

    Raises:
        StorageError: a file can't be read.
    """
    files: dict[tuple[str, str], list[Path]] = {}
    places: dict[Path | Location, Location] = {}
    with scratch_folder() as scratch:
        for day in days:
            (scratch / day).mkdir()
            for file in fetch_log(day_folder(log, day), scratch / day):
                row, places[file.copy] = file.constants, file.place
                files.setdefault((f"{row['model_name']}/{row['model_version']}", row[ROLE]), []).append(file.copy)
        scored = zip(both, (role, CHALLENGER), strict=True)
        found = [files.get((str(serving.model.version), each), []) for serving, each in scored]
        if not all(found):
            return None
        with _Pairs(both, found, scratch, places, logged=True) as pairs:
            name = " to ".join(dict.fromkeys((days[0], days[-1])))
            return pairs.compared("log", name, (None, None)) if pairs.rows else None


def _pieces(
    files: Sequence[Path | Location], columns: Mapping[str, str], places: Mapping[Path | Location, Location]
) -> Iterator[pa.Table]:
    """Yield columns of all rows under other names, and `place`, which counts the rows."""
    rows = 0
    for file in files:
        try:
            with ParquetFiles([file]) as opened:
                for piece in opened.between(0, opened.rows, list(columns.values())):
                    named = piece.select(list(columns.values())).rename_columns(list(columns))
                    place = pa.arange(rows, rows := rows + piece.num_rows)
                    if piece.num_rows:
                        yield named.append_column("place", place)
        except (OSError, LookupError, ValueError) as error:
            raise StorageError("reading", str(places.get(file, file)), error) from None


class _Pairs:
    """The rows that both versions have, as the table `pairs`. Columns of the champion begin with `a_`, others `b_`."""

    def __init__(
        self,
        both: Both,
        files: Sequence[Sequence[Path | Location]],
        scratch: Path,
        places: Mapping[Path | Location, Location] | None = None,
        *,
        logged: bool,
    ) -> None:
        """Join the versions' rows: logged ones by request and entity, others by their places in the files.

        An error names a file as in `places`.

        Raises:
            StorageError: a file can't be read.
        """
        import duckdb

        self._both = both
        self._logged = logged
        nth = "row_number() OVER (PARTITION BY entity ORDER BY place)" if logged else "place"  # it may be there twice
        kept, sides = ["a.place", "a.request"], []
        self._connection = duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(scratch / "spill")})
        try:
            for side, serving, of_side in zip("ab", both, files, strict=True):
                names = self._read(side, serving, of_side, places or {})
                kept += [f"{side}.{name} AS {side}_{name}" for name in names]
                sides.append(f"(SELECT *, {nth} AS nth FROM {side}) AS {side}")
            joined = f"{' JOIN '.join(sides)} ON a.entity = b.entity AND a.nth = b.nth"
            self._connection.execute(f"CREATE TABLE pairs AS SELECT {', '.join(kept)} FROM {joined}")
            self._connection.execute("DROP TABLE a; DROP TABLE b")
        except duckdb.Error as error:
            self._connection.close()
            raise StorageError("comparing rows in", str(scratch), error) from None
        self.rows: int = self._row("SELECT count(*) FROM pairs")[0]

    def _read(
        self,
        side: str,
        serving: ServingModel,
        files: Sequence[Path | Location],
        places: Mapping[Path | Location, Location],
    ) -> list[str]:
        """Copy the rows of one version to a table. Return its columns that `pairs` has, too."""
        outputs, version = serving.model.outputs, serving.model.version
        # In the table, columns have names of their own: no input or output has one of them.
        columns = {"reason": "reason"} | {f"o{place}": name for place, name in enumerate(outputs.names)}
        types = {"reason": "string", "ms": "double"} | {f"o{place}": c.type for place, c in enumerate(outputs.columns)}
        values = {name: name for name in types} | {"ms": "NULL", "request": "0", "entity": "0", "place": "place"}
        if self._logged:
            first, second = (serving.features.request_columns for serving in self._both)
            names = (REQUEST_ID, LOG_TIMESTAMP, *(name for name in first if name in second))
            key = {f"k{place}": name for place, name in enumerate(names)}
            columns |= {"problem": PROBLEM, "ms": LATENCY_MS} | key
            values |= {"reason": "coalesce(problem, reason)", "ms": "ms"}
            values |= {"request": "hash(k0, k1)", "entity": f"hash({', '.join(key)})"}
        declared = types | {"request": "uint64", "entity": "uint64", "place": "int64"}
        self._connection.execute(f"CREATE TABLE {side} ({', '.join(map(' '.join, declared.items()))})")
        insert = f"INSERT INTO {side} SELECT {', '.join(values[name] for name in declared)} FROM piece"
        if self._logged:  # a model that was deleted and registered again has versions of the same names
            insert += f" WHERE k1 >= to_timestamp({version.created_ms / 1000})"
        # Many files are small, and a statement takes milliseconds.
        pieces = _pieces(files, columns, places)
        for _, alike in itertools.groupby(pieces, lambda each: (each.schema, each["place"][0].as_py() // AT_ONCE)):
            self._connection.register("piece", pa.concat_tables(alike)).execute(insert)
        return list(types)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def _row(self, query: str) -> Any:
        (row,) = self._connection.sql(query).fetchall()
        return row

    def compared(self, source: Literal["log", "batch"], name: str, seconds: Sequence[float | None]) -> Comparison:
        """Compare the rows. `seconds` are the times in which both versions scored a batch request."""
        predictions = self._predictions()
        decision, counted = self._decisions()
        different = "count(*) FILTER (before IS DISTINCT FROM after)"
        decisions, changed = self._row(f"SELECT count(*), {different} FROM ({counted})") if counted else (0, 0)
        champion, challenger = (self._side(*each) for each in zip("ab", self._both, seconds, strict=True))
        now = datetime.now(UTC)
        report = Report(
            source, name, now, self.rows, decision, decisions, changed, champion, challenger, predictions.outputs()
        )
        return report, predictions

    def _side(self, side: str, serving: ServingModel, seconds: float | None) -> Side:
        query = f"SELECT {side}_reason, count(*) FROM pairs WHERE {side}_o0 IS NULL GROUP BY ALL ORDER BY ALL"
        reasons = {reason or NO_REASON: rows for reason, rows in self._connection.sql(query).fetchall()}
        latencies = None, None
        if self._logged:
            requests = f"SELECT any_value({side}_ms) AS ms FROM pairs GROUP BY request"
            latencies = self._row(f"SELECT quantile_cont(ms, 0.5), quantile_cont(ms, 0.99) FROM ({requests})")
        return Side(str(serving.model.version), sum(reasons.values()), reasons, *latencies, seconds)

    def _decisions(self) -> tuple[str, str | None]:
        """Return what counts as a decision, and a query for the decisions of both: `before` and `after`."""
        outputs = [serving.model.outputs for serving in self._both]
        ranks = [each.rank_by for each in outputs]
        labels = [
            (f"a_o{place}", f"b_o{outputs[1].names.index(name)}")
            for place, name in enumerate(outputs[0].names)
            if outputs[0].columns[place].type != "double" and name in outputs[1].names
        ]
        if None not in ranks:
            values = f"a_o{ranks[0]}", f"b_o{ranks[1]}"
            if self._logged:  # as in an answer, ties go to the first entity
                decision, rest = "best entity of a request with several", "GROUP BY request HAVING count(*) > 1"
                sql = "arg_max(place, {{'value': {0}, 'first': -place}}) FILTER ({0} IS NOT NULL)"
            else:
                decision, rest = "order of two consecutive rows", "QUALIFY lag(place) OVER (ORDER BY place) IS NOT NULL"
                sql = "({0} > lag({0}) OVER (ORDER BY place), {0} < lag({0}) OVER (ORDER BY place))"
            before, after = map(sql.format, values)
        elif ranks != [None, None] or set(outputs[0].schema) != set(outputs[1].schema):
            decision = "every row: only one version ranks entities or has an output"
            before, after, rest = "0", "1", ""
        elif labels:
            decision, rest = "label of a row", ""
            before, after = (f"row({', '.join(each)})" for each in zip(*labels, strict=True))
        else:
            return "none: no output is a label or ranks entities", None
        return decision, f"SELECT {before} AS before, {after} AS after FROM pairs {rest}"

    def _predictions(self) -> VersionComparison:
        """Return the outputs that both versions have, of all rows or a sample of them."""
        (champion, before), (challenger, after) = outputs = [
            (str(serving.model.version), serving.model.outputs.schema) for serving in self._both
        ]
        names, unlike = common_outputs(*outputs)
        most = sampled_rows(len(names))
        sampled = f"USING SAMPLE reservoir({most} ROWS) REPEATABLE (1)" if self.rows > most else "ORDER BY place"
        columns = [f"a_o{before.names.index(name)}" for name in names]
        columns += [f"b_o{after.names.index(name)}" for name in names]
        rows = self._connection.sql(f"SELECT {', '.join(columns or ['place'])} FROM pairs {sampled}").to_arrow_table()
        earlier, current = (
            rows.select(range(start, start + len(names))).rename_columns(names) for start in (0, len(names))
        )
        return VersionComparison(champion, challenger, earlier, current, self.rows, unlike)
