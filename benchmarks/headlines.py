"""The figures that the page begins with: a table and a picture of some sections."""

import html
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from benchmarks.batch import sections as batch
from benchmarks.online import sections as online
from benchmarks.results import Result
from benchmarks.tables import number, table
from benchmarks.targets import LEAST

TITLES = {
    "online-5": "5 ids, ElasticNet",
    "online-100": "100 ids, ElasticNet",
    "online-5-forest": "5 ids, RandomForest(100)",
    "online-5-xgboost": "5 ids, XGBoost(200)",
    "online-5-onnx": "5 ids, RandomForest(100) in ONNX",
    "online-1000-candidates": "1,000 candidates of a user",
    "wide-25-100": "100 ids, 250 features in 25 views",
    "join-1m": "Join, 1,000,000 rows",
    "predict-10m": "Prediction, 10,000,000 rows",
    "materialize-redis": "Materialization, 200,000 drivers",
}
WIDTH, LABEL, LINE = 720, 250, 24


class Headline(NamedTuple):
    """The product beside the usual way, in one section."""

    what: str
    ours: str
    theirs: str
    ratio: float
    """How many times as fast the product is."""
    least: float | None
    """The target."""


def headlines_table(results: Mapping[str, Result]) -> str:
    """Return the Markdown table, with a row for each measured section of TITLES."""
    head = ("", "model-serving", "compared with", "times as fast", "target")
    return table(head, (_row(each) for each in _headlines(results)))


def headlines_picture(results: Mapping[str, Result]) -> str:
    """Return the same as bars in SVG, in colors for light and dark pages. A mark on a bar is its target."""
    found = list(_headlines(results))
    scale = (WIDTH - LABEL - 60) / max((max(each.ratio, each.least or 0) for each in found), default=1)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {LINE * len(found) + 8}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="13" fill="#768390">',
        "<title>How many times as fast model-serving is as the usual way; a mark is the target</title>",
    ]
    for place, each in enumerate(found):
        top, width, target = LINE * place + 4, each.ratio * scale, (each.least or 0) * scale
        lines += [
            f'<text x="{LABEL - 8}" y="{top + 14}" text-anchor="end">{html.escape(each.what)}</text>',
            f'<rect x="{LABEL}" y="{top + 2}" width="{width:.1f}" height="16" rx="2" fill="#388bfd"/>',
            f'<text x="{LABEL + max(width, target) + 8:.1f}" y="{top + 14}">{number(each.ratio)}x</text>',
        ]
        if each.least:
            lines.append(f'<path d="M{LABEL + target:.1f} {top - 1}v22" stroke="#d29922" stroke-width="3"/>')
    lines.append(f'<path d="M{LABEL + scale:.1f} 0V{LINE * len(found) + 8}" stroke="#768390" stroke-dasharray="3"/>')
    return "\n".join([*lines, "</svg>", ""])


def _row(headline: Headline) -> list[str]:
    what, ours, theirs, ratio, least = headline
    return [what, ours, theirs, f"**{number(ratio)}**", f"≥ {number(least)}" if least else ""]


def _headlines(results: Mapping[str, Result]) -> Iterator[Headline]:
    for section, what in TITLES.items():
        if section not in results:
            continue
        of = _online if section in online.WORKLOADS else _batch
        found = of(results[section])
        if found:
            yield Headline(what, *found, LEAST.get(section))


def _online(result: Result) -> tuple[str, str, float] | None:
    rounds = online.by_server(result.rows)
    if not {"ours", "bentoml"} <= rounds.keys():
        return None
    rates = [online.median(rounds[name], "requests_s") for name in ("ours", "bentoml")]
    tails = [online.median(rounds[name], "p99_ms") for name in ("ours", "bentoml")]
    ours, theirs = (f"{number(rate)} requests/s, p99 {number(p99)} ms" for rate, p99 in zip(rates, tails, strict=True))
    return ours, f"BentoML: {theirs}", rates[0] / rates[1]


def _batch(result: Result) -> tuple[str, str, float]:
    work, rounds = batch.WORKS[result.section], batch.by_contender(result)
    names = (work.contenders[0], work.base)
    seconds = [batch.median(rounds[name], "seconds") for name in names]
    ours, theirs = (
        f"{number(time)} s, {number(max(each.peak_mib for each in rounds[name]))} MiB"
        for time, name in zip(seconds, names, strict=True)
    )
    base = batch.CONTENDER_NAMES[work.base].removesuffix(" (baseline)")
    return ours, f"{base}: {theirs}", seconds[1] / seconds[0]
