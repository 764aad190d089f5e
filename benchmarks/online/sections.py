"""The online sections: their workloads and their tables."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from benchmarks.online import world
from benchmarks.online.contestants import (
    ALL,
    BESIDE_FEAST,
    COMPARED,
    BentoMl,
    BentoMlRanking,
    Constant,
    Ours,
    OursRanking,
)
from benchmarks.online.fleet import fleet
from benchmarks.online.rounds import Round, Workload, measure
from benchmarks.results import Result, code_version, now, this_machine
from benchmarks.scale import Scale
from benchmarks.stopwatch import Stopwatch
from benchmarks.tables import number, spread, table

WORKLOADS = {
    "online-5": Workload(5, 16),
    "online-100": Workload(100, 16),
    "online-5-alone": Workload(5, 1),
    "online-5-crowd": Workload(5, 64),
    "online-100-crowd": Workload(100, 64),
    "online-5-forest": Workload(5, 16, model="forest"),
    "online-5-boosting": Workload(5, 16, model="boosting"),
    "online-5-xgboost": Workload(5, 16, model="xgboost"),
    "online-5-lightgbm": Workload(5, 16, model="lightgbm"),
    "online-5-onnx": Workload(5, 16, model="onnx"),
    "online-5-classes": Workload(5, 16, model="classes"),
    "online-5-sqlite": Workload(5, 16, store="sqlite"),
    "online-5-bulk": Workload(5, 16, bulk=True),
    "online-5-mlflow": Workload(5, 16, compared="MLflow's protocol"),
    "online-1000-candidates": Workload(1000, 1, store="ranking"),
    "online-5-v2": Workload(5, 16, compared="Open Inference Protocol V2"),
    "online-5-log": Workload(5, 16, compared="with a prediction log"),
    "online-100-log": Workload(100, 16, compared="with a prediction log"),
    "online-5-challenger": Workload(5, 16, compared="with a challenger"),
    "online-100-challenger": Workload(100, 16, compared="with a challenger"),
    **{
        f"{store}-{ids}": Workload(ids, 16, store=store, rounds=3, longest_queue_s=0.2)
        for store in world.WIDE
        for ids in (5, 100, 500)
    },
}
WIDE = {store: [name for name, each in WORKLOADS.items() if each.store == store] for store in world.WIDE}
"""Store → its sections, which share a table."""
FIRST = ("redis", "elasticnet")
# Models of which only BentoML is measured beside the product.
WITH_BENTOML = ("xgboost", "lightgbm", "onnx", "classes")
MODEL_NAMES = {
    "elasticnet": "ElasticNet",
    "forest": "RandomForest(100)",
    "boosting": "HistGradientBoosting",
    "xgboost": "XGBoost(200)",
    "lightgbm": "LightGBM(200)",
    "onnx": "RandomForest(100) in ONNX",
    "classes": "probabilities of RandomForest(100), 3 classes",
}
STORE_NAMES = {
    "redis": "Redis",
    "sqlite": "SQLite",
    "ranking": "a view of the user and one of the items in Redis",
    **{
        store: f"{10 * count} features in {count} view{'s' * (count > 1)} in Redis"
        for store, count in world.WIDE.items()
    },
}
SERVER_NAMES = {
    "ours": "**model-serving**",
    "ours-bulk": "**model-serving**, beside a client that sends 100,000 ids at a time",
    "ours-log": "**model-serving**, prediction log",
    "ours-challenger": "**model-serving**, prediction log and challenger",
    "bentoml": "BentoML",
    "bentoml-batching": "BentoML, adaptive batching",
    "mlserver": "MLServer",
    "fastapi": "FastAPI",
    "mlflow-serve": "MLflow's server",
    "feast": "Feast's server",
    "feast-precomputed": "Feast's server, precompute_online",
    "constant": "constant route (floor)",
}
# The peer that rates are compared with, if it was measured.
BASES = ("bentoml", "mlflow-serve", "mlserver", "ours", "ours-log")
HEAD = ("server", "requests/s", "x {base}", "p50 ms", "p99 ms", "CPU µs/request", "Redis CPU µs/request", "MiB")


def run(sections: Sequence[str], scale: Scale, servers: Sequence[str] = ()) -> Iterator[Result]:
    """Run these sections with all or only the named servers. Servers keep running until store or model changes."""
    chosen = [(name, WORKLOADS[name]) for name in WORKLOADS if name in sections]
    same_servers = itertools.groupby(
        chosen, lambda each: (each[1].store, each[1].model, each[1].compared, each[1].bulk)
    )
    for (store, model, compared, bulk), group in same_servers:
        machine = this_machine()
        # The constant route uses neither model nor store, so it runs only with the first ones.
        possible = [kind for kind in ALL if kind is not Constant or (store, model) == FIRST]
        if bulk:
            possible = [Ours]
        if model in WITH_BENTOML:
            possible = [Ours, BentoMl]
        if compared is not None:
            possible = list(COMPARED[compared])
        if store == "ranking":
            possible = [OursRanking, BentoMlRanking]
        if store in world.WIDE:
            possible = list(BESIDE_FEAST)
        kinds = [kind for kind in possible if not servers or kind.name in servers]
        with fleet(store, model, kinds) as started:
            for name, workload in group:
                watch, began = Stopwatch(), now()
                rows = list(measure(started, workload, scale.rounds, scale.seconds))
                yield Result(
                    section=name,
                    code=code_version(),
                    began=began,
                    took_s=watch.elapsed_s,
                    machine=machine,
                    versions=started.versions,
                    rows=[msgspec.to_builtins(row) for row in rows],
                )


def title(section: str) -> str:
    """The heading of a section."""
    load = WORKLOADS[section]
    connections = "1 connection" if load.connections == 1 else f"{load.connections} connections"
    compared = f", {load.compared}" if load.compared else ", beside large tables" if load.bulk else ""
    return f"{load.ids} ids, {connections}, {MODEL_NAMES[load.model]}, {STORE_NAMES[load.store]}{compared}"


def as_table(result: Result) -> str:
    """Return one table row per server: medians over the rounds, with the spread of the figures that vary most."""
    rounds = by_server(result.rows)
    name = next((name for name in BASES if name in rounds), BASES[0])
    base = median(rounds[name], "requests_s") if name in rounds else None
    head = [each.format(base=SERVER_NAMES[name]) for each in HEAD]
    return table(head, (_row(server, each, base) for server, each in rounds.items())) + _failures(rounds)


def as_wide_table(results: Sequence[Result]) -> str:
    """Return one table row per server and number of ids."""
    head = ("ids", "server", "connections", *(each.format(base="BentoML") for each in HEAD[1:]))
    rows, failures = [], ""
    for result in results:
        rounds = by_server(result.rows)
        base = median(rounds["bentoml"], "requests_s") if "bentoml" in rounds else None
        for server, each in rounds.items():
            name, *figures = _row(server, each, base)
            rows.append([str(WORKLOADS[result.section].ids), name, str(each[0].connections), *figures])
        failures += _failures(rounds)
    return table(head, rows) + failures


def by_server(rows: Iterable[dict[str, Any]]) -> dict[str, list[Round]]:
    """Return server → its rounds, in the order of SERVER_NAMES."""
    rounds = [msgspec.convert(row, Round) for row in rows]
    grouped = {name: [each for each in rounds if each.server == name] for name in SERVER_NAMES}
    return {name: each for name, each in grouped.items() if each}


def median(rounds: Sequence[Round], figure: str) -> float:
    """Return the median over the rounds of one of Round's figures."""
    return float(statistics.median(getattr(each, figure) for each in rounds))


def _row(server: str, rounds: Sequence[Round], base: float | None) -> list[str]:
    def values(figure: str) -> list[float]:
        return [getattr(each, figure) for each in rounds]

    rate = median(rounds, "requests_s")
    return [
        SERVER_NAMES[server],
        spread(values("requests_s")),
        number(rate / base) if base else "",
        spread(values("p50_ms")),
        spread(values("p99_ms")),
        spread(values("cpu_us")),
        number(median(rounds, "redis_cpu_us")),
        number(median(rounds, "memory_mib")),
    ]


def _failures(rounds: dict[str, list[Round]]) -> str:
    failed = {server: sum(each.failed for each in every) for server, every in rounds.items()}
    counts = [f"{SERVER_NAMES[server]} {count}" for server, count in failed.items() if count]
    return f"\n\nFailed requests: {', '.join(counts)}." if counts else ""
