"""The batch sections: their contenders and row counts, and their tables."""

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.batch.contest import BatchRound, contest
from benchmarks.batch.materialization import MATERIALIZE_UNTIL, REDIS_PORT
from benchmarks.batch.world import MODELS
from benchmarks.online.sections import MODEL_NAMES
from benchmarks.paths import ROOT
from benchmarks.results import Result, code_version, now, this_machine
from benchmarks.scale import Scale
from benchmarks.stopwatch import Stopwatch
from benchmarks.tables import number, spread, table
from tests.support.servers import RedisServer, environment_for_servers


class Work(msgspec.Struct, frozen=True):
    """One section: its contenders, the product first, and its number of rows."""

    contenders: tuple[str, ...]
    rows: int
    base: str
    """The contender that ratios are relative to."""
    model: str = ""
    """The alias of the model; empty for the ElasticNet."""


_JOIN = ("join-product", "join-store")
_PREDICT = ("predict-product", "predict-baseline", "predict-floor")
WORKS = {
    # Feast's file store takes 50 CPU seconds for ten times as many rows.
    "join-100k": Work((*_JOIN, "join-feast-duckdb", "join-feast-file", "join-floor"), 100_000, "join-feast-file"),
    # Feast's duckdb store needs more than 23 GiB for ten times as many rows.
    "join-1m": Work((*_JOIN, "join-feast-duckdb", "join-floor"), 1_000_000, "join-feast-duckdb"),
    "join-10m": Work((*_JOIN, "join-floor"), 10_000_000, "join-floor"),
    "predict-100k": Work(_PREDICT, 100_000, "predict-baseline"),
    "predict-1m": Work(_PREDICT, 1_000_000, "predict-baseline"),
    "predict-10m": Work(_PREDICT, 10_000_000, "predict-baseline"),
    **{
        f"predict-10m-{model}": Work(
            (f"predict-product-{model}", f"predict-baseline-{model}"), 10_000_000, f"predict-baseline-{model}", model
        )
        for model in MODELS
    },
    "graph-10m": Work(("graph-dagster", "graph-checked", "graph-parts"), 10_000_000, "graph-checked"),
    "replay-1m": Work(("replay-product", "replay-request"), 1_000_000, "replay-request"),
    "materialize-redis": Work(
        ("materialize-redis-product", "materialize-redis-feast"), 200_000, "materialize-redis-feast"
    ),
    "materialize-sqlite": Work(
        ("materialize-sqlite-product", "materialize-sqlite-feast"), 200_000, "materialize-sqlite-feast"
    ),
}
CONTENDER_NAMES = {
    "join-product": "**batch_input of model-serving**",
    "join-store": "its offline store alone, through Feast",
    "join-feast-duckdb": "Feast's duckdb store",
    "join-feast-file": "Feast's file store (baseline)",
    "join-floor": "bare DuckDB, ordered ASOF + COPY (floor)",
    "predict-product": "**batch_output of model-serving**",
    "predict-baseline": "pandas, pyfunc, to_parquet (baseline)",
    "predict-floor": "decode + encode alone (floor)",
    **{f"predict-product-{model}": "**batch_output of model-serving**" for model in MODELS},
    **{f"predict-baseline-{model}": "pandas, pyfunc, to_parquet (baseline)" for model in MODELS},
    "graph-dagster": "**job score_batch through Dagster**",
    "graph-checked": "its parts in sequence (the functions and checks of the assets)",
    "graph-parts": "its parts without the checks",
    "replay-product": "**replay of model-serving**",
    "replay-request": "scoring a batch request with the same rows",
    "materialize-redis-product": "**asset online_store of model-serving**",
    "materialize-redis-feast": "feast materialize-incremental (baseline)",
    "materialize-sqlite-product": "**asset online_store of model-serving**",
    "materialize-sqlite-feast": "feast materialize-incremental (baseline)",
}
TITLES = {
    "join": "Point-in-time join of {rows:,} rows with 10,000 drivers x 30 hours",
    "predict": "Prediction of {rows:,} rows, {model}",
    "graph": "The whole graph for {rows:,} rows",
    "replay": "Replay of a prediction log of {rows:,} rows",
    "materialize": "Materialization of {rows:,} drivers into {store}",
}


def run(sections: Sequence[str], scale: Scale) -> Iterator[Result]:
    """Run these sections."""
    for name in sections:
        work = WORKS[name]
        machine, watch, began = this_machine(), Stopwatch(), now()
        rows_of_each = min(work.rows, scale.largest_rows)
        _write_files(name, rows_of_each)
        with _redis(name) as environment:
            given = environment | {MATERIALIZE_UNTIL: began}
            rows = contest(work.contenders, rows_of_each, scale.rounds, given)
        yield Result(
            section=name,
            code=code_version(),
            began=began,
            took_s=watch.elapsed_s,
            machine=machine,
            versions={},
            rows=[msgspec.to_builtins(row) for row in rows],
        )


def _write_files(section: str, rows: int) -> None:
    """Write the contenders' input files before they start, in a process that is not their parent."""
    if not section.startswith("materialize"):
        kind, model = section.partition("-")[0], WORKS[section].model
        command = [sys.executable, "-m", "benchmarks.batch.files", kind, model, str(rows)]
        subprocess.run(command, cwd=ROOT, check=True, env=environment_for_servers())


def title(section: str) -> str:
    """The heading of a section."""
    kind, _, store = section.partition("-")
    work = WORKS[section]
    model = MODEL_NAMES[work.model or "elasticnet"]
    return TITLES[kind].format(rows=work.rows, store={"redis": "Redis", "sqlite": "SQLite"}.get(store), model=model)


def as_table(result: Result) -> str:
    """Return one table row per contender, with medians over the rounds."""
    rounds = by_contender(result)
    work = WORKS[result.section]
    head = ("", "s", f"x {_plain(work.base)}", "CPU s", "peak MiB", "MiB before", "result")
    base = median(rounds[work.base], "seconds")
    return table(head, (_row(name, each, base) for name, each in rounds.items()))


def by_contender(result: Result) -> dict[str, list[BatchRound]]:
    """Return contender → its rounds, in the section's order."""
    rounds = [msgspec.convert(row, BatchRound) for row in result.rows]
    grouped = {name: [each for each in rounds if each.contender == name] for name in WORKS[result.section].contenders}
    return {name: each for name, each in grouped.items() if each}


def median(rounds: Sequence[BatchRound], figure: str) -> float:
    """Return the median over the rounds of one of BatchRound's figures."""
    return float(statistics.median(getattr(each, figure) for each in rounds))


def _row(name: str, rounds: Sequence[BatchRound], base: float) -> list[str]:
    return [
        CONTENDER_NAMES[name],
        spread([each.seconds for each in rounds]),
        number(base / median(rounds, "seconds")),
        number(median(rounds, "cpu_s")),
        number(max(each.peak_mib for each in rounds)),
        number(rounds[0].before_mib),
        _described(rounds[0].outcome),
    ]


def _described(outcome: dict[str, Any]) -> str:
    words = []
    for key, value in outcome.items():
        if key == "rows":
            words.append(f"{value:,} rows")
        elif key == "in_order":
            words.append("in order" if value else "in another order")
        elif isinstance(value, str):
            words.append(f"{key} {value[:6]}")
    return ", ".join(words)


def _plain(name: str) -> str:
    return CONTENDER_NAMES[name].partition(" (")[0].strip("*")


@contextlib.contextmanager
def _redis(section: str) -> Iterator[dict[str, str]]:
    if section != "materialize-redis":
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="materialize-") as folder:
        redis = RedisServer(Path(folder))
        redis.start()
        try:
            yield {REDIS_PORT: str(redis.port)}
        finally:
            redis.stop()
