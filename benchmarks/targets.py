"""The project's performance targets, compared with the measured results."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from benchmarks.batch import sections as batch
from benchmarks.batch.contest import BatchRound
from benchmarks.batch.world import MODELS
from benchmarks.online import sections as online
from benchmarks.online import start
from benchmarks.online.rounds import Round
from benchmarks.results import Result
from benchmarks.tables import number

PEERS = ("bentoml", "bentoml-batching", "mlserver", "fastapi")
OURS = ("ours", "ours-bulk", "ours-log", "ours-challenger")
LEAST: dict[str, float] = {
    "online-5": 20,
    "online-100": 20,
    "online-1000-candidates": 20,
    "online-5-forest": 10,
    "online-5-sqlite": 5,
    **dict.fromkeys(map("online-5-{}".format, online.WITH_BENTOML), 15),
    **dict.fromkeys(itertools.chain(*online.WIDE.values()), 15),
    "predict-10m": 2,
    "materialize-redis": 3,
    "materialize-sqlite": 3,
}
"""Section → the least speed, relative to BentoML or to the baseline."""
ADDITIONS = (("log", "ours", 0.95), ("challenger", "ours-log", 0.9))
"""What is added, the server without it, and the least requests/s relative to that."""
MEMORY_LIMIT_MIB = 10**9 / 2**20
"""The offline store's memory_limit in feature_repo/feature_store.yaml: 1 GB."""


class Target(NamedTuple):
    """A target and its result."""

    what: str
    wanted: str
    measured: str
    met: bool


def targets(results: Mapping[str, Result]) -> Iterator[Target]:
    """The targets whose sections were measured."""
    yield from _online({name: online.by_server(results[name].rows) for name in online.WORKLOADS if name in results})
    if start.SECTION in results:
        yield from _start(start.by_server(results[start.SECTION]))
    yield from _batch({name: batch.by_contender(results[name]) for name in batch.WORKS if name in results})


def _online(sections: Mapping[str, dict[str, list[Round]]]) -> Iterator[Target]:
    yield from _beside_peers(sections)
    if "online-5" in sections:
        ours, floor = (_median(sections["online-5"], server, "cpu_us") for server in ("ours", "constant"))
        yield _at_most(f"{online.title('online-5')}: CPU per request, x constant route", 2, ours / floor)
    if {"online-5", "online-5-crowd"} <= sections.keys():
        many, few = (_median(sections[section], "ours", "p99_ms") for section in ("online-5-crowd", "online-5"))
        yield _at_most("5 ids: p99 at 64 connections, x p99 at 16", 5, many / few)
    if sections:
        failed = sum(each.failed for servers in sections.values() for name in OURS for each in servers.get(name, ()))
        yield Target("Online: requests without a 200 response, all sections", "0", str(failed), failed == 0)
    if "online-5-bulk" in sections:
        beside, without = (_median(sections["online-5-bulk"], server, "p99_ms") for server in ("ours-bulk", "ours"))
        yield _at_most("p99 beside a client that sends 100,000 ids at a time, x without it", 2, beside / without)
    for what, base, least in ADDITIONS:
        for section in (f"online-5-{what}", f"online-100-{what}"):
            if section in sections:
                yield from _addition(section, sections[section], f"ours-{what}", base, least)
    if "online-1000-candidates" in sections:
        name, servers = online.title("online-1000-candidates"), sections["online-1000-candidates"]
        yield _at_most(f"{name}: p99, ms", 15, _median(servers, "ours", "p99_ms"))


def _beside_peers(sections: Mapping[str, dict[str, list[Round]]]) -> Iterator[Target]:
    for section, least in LEAST.items():
        if section in sections and section not in itertools.chain(*online.WIDE.values()):
            ours, bentoml = (_median(sections[section], server, "requests_s") for server in ("ours", "bentoml"))
            yield _at_least(f"{online.title(section)}: requests/s, x BentoML", least, ours / bentoml)
    for store, cells in online.WIDE.items():
        measured = [sections[cell] for cell in cells if cell in sections]
        for figure, peer, least in (
            ("requests_s", "bentoml", 15),
            ("requests_s", "feast-precomputed", 1),
            ("p50_ms", "feast-precomputed", 1),
        ):
            yield from _wide(store, measured, figure, peer, least)
    for section, peer in (("online-5-mlflow", "mlflow-serve"), ("online-5-v2", "mlserver")):
        if section in sections:
            ours, theirs = (_median(sections[section], server, "requests_s") for server in ("ours", peer))
            name = online.SERVER_NAMES[peer]
            yield _at_least(f"{online.title(section)}: requests/s, x {name}", 15, ours / theirs)
    for section in ("online-5", "online-100"):
        if section in sections:
            yield _below_peers(f"{online.title(section)}: p99", sections[section], "p99_ms")
    if "online-5-alone" in sections:
        yield _below_peers(f"{online.title('online-5-alone')}: p50", sections["online-5-alone"], "p50_ms")


def _wide(store: str, cells: list[dict[str, list[Round]]], figure: str, peer: str, least: float) -> Iterator[Target]:
    pairs = [(_median(each, "ours", figure), _median(each, peer, figure)) for each in cells if peer in each]
    if pairs:
        ratios = [ours / theirs if figure == "requests_s" else theirs / ours for ours, theirs in pairs]
        name = "requests/s" if figure == "requests_s" else "p50, times as fast"
        what = f"{online.STORE_NAMES[store]}, 5, 100 and 500 ids: {name}, x {online.SERVER_NAMES[peer]}"
        yield Target(what, f"at least {number(least)} each", ", ".join(map(number, ratios)), min(ratios) >= least)


def _addition(section: str, servers: dict[str, list[Round]], name: str, without: str, least: float) -> Iterator[Target]:
    rate = _median(servers, name, "requests_s") / _median(servers, without, "requests_s")
    yield _at_least(f"{online.title(section)}: requests/s, x without it", least, rate)
    p99 = _median(servers, name, "p99_ms") / _median(servers, without, "p99_ms")
    yield _at_most(f"{online.title(section)}: p99, x without it", 1.1, p99)


def _start(servers: dict[str, list[start.Start]]) -> Iterator[Target]:
    for figure, name in (("cpu_s", "CPU"), ("memory_mib", "memory")):
        share = start.median(servers["ours"], figure) / start.median(servers["bentoml-registry"], figure)
        yield _at_most(f"{start.TITLE}: {name}, x BentoML with a model from the registry", 0.5, share)
    yield _at_most(f"{start.TITLE}: MiB", 200, start.median(servers["ours"], "memory_mib"))


def _batch(sections: Mapping[str, dict[str, list[BatchRound]]]) -> Iterator[Target]:
    def faster(section: str, base: str, ours: str) -> float:
        return batch.median(sections[section][base], "seconds") / batch.median(sections[section][ours], "seconds")

    def peak(section: str, name: str) -> float:
        return max(each.peak_mib for each in sections[section][name])

    if "join-100k" in sections:
        ratio = faster("join-100k", "join-feast-file", "join-product")
        yield _at_least("Join of 100,000 rows: speed, x Feast's file store", 50, ratio)
    if "join-10m" in sections:
        ratio = faster("join-10m", "join-floor", "join-product")
        yield _at_most("Join of 10,000,000 rows: time, x bare ASOF + COPY", 1.5, 1 / ratio)
        limit = MEMORY_LIMIT_MIB + 400
        yield _at_most("Join of 10,000,000 rows: peak MiB", limit, peak("join-10m", "join-product"))
        yield _rows("Join of 10,000,000 rows: every row, in order", sections["join-10m"]["join-product"])
    if "predict-10m" in sections:
        ours = "predict-product"
        ratio = faster("predict-10m", "predict-baseline", ours)
        yield _at_least("Prediction of 10,000,000 rows: speed, x the baseline", LEAST["predict-10m"], ratio)
        ratio = faster("predict-10m", "predict-floor", ours)
        yield _at_most("Prediction of 10,000,000 rows: time, x decode + encode", 1.15, 1 / ratio)
        yield _at_most("Prediction of 10,000,000 rows: peak MiB", 450, peak("predict-10m", ours))
        if "predict-1m" in sections:
            growth = peak("predict-10m", ours) / peak("predict-1m", ours)
            yield _at_most("Prediction: peak memory at 10,000,000 rows, x that at 1,000,000", 1.1, growth)
    for model in MODELS:
        if (section := f"predict-10m-{model}") in sections:
            ours = f"predict-product-{model}"
            ratio = faster(section, f"predict-baseline-{model}", ours)
            yield _at_least(f"{batch.title(section)}: speed, x the baseline", 1.2, ratio)
            yield _at_most(f"{batch.title(section)}: peak MiB", 600, peak(section, ours))
    if "graph-10m" in sections:
        ratio = faster("graph-10m", "graph-checked", "graph-dagster")
        yield _at_most("The whole graph for 10,000,000 rows through Dagster: time, x its parts", 1.1, 1 / ratio)
    if "replay-1m" in sections:
        ratio = faster("replay-1m", "replay-request", "replay-product")
        yield _at_most("Replay of 1,000,000 rows: time, x scoring a request of that size", 3, 1 / ratio)
    for store in ("redis", "sqlite"):
        section = f"materialize-{store}"
        if section in sections:
            ours, feast = f"{section}-product", f"{section}-feast"
            yield _at_least(f"{batch.title(section)}: speed, x Feast's", LEAST[section], faster(section, feast, ours))
            share = peak(section, ours) / peak(section, feast)
            yield _at_most(f"{batch.title(section)}: peak memory, x Feast's", 0.5, share)
            same = sections[section][ours][0].outcome == sections[section][feast][0].outcome
            yield Target(f"{batch.title(section)}: content and watermark", "the same", _yes(same), same)


def _median(servers: dict[str, list[Round]], server: str, figure: str) -> float:
    return online.median(servers[server], figure)


def _below_peers(what: str, servers: dict[str, list[Round]], figure: str) -> Target:
    ours = _median(servers, "ours", figure)
    best = min(_median(servers, peer, figure) for peer in PEERS if peer in servers)
    return Target(f"{what}, ms", f"below every peer's ({number(best)})", number(ours), ours < best)


def _at_least(what: str, least: float, found: float) -> Target:
    return Target(what, f"at least {number(least)}", number(found), found >= least)


def _at_most(what: str, most: float, found: float) -> Target:
    return Target(what, f"at most {number(most)}", number(found), found <= most)


def _rows(what: str, rounds: list[BatchRound]) -> Target:
    outcome = rounds[0].outcome
    kept = outcome["rows"] == 10_000_000 and bool(outcome["in_order"])
    return Target(what, "all", _yes(kept), kept)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
