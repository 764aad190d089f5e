"""Write docs/benchmarks.md from the stored results."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.batch import sections as batch
from benchmarks.headlines import headlines_picture, headlines_table
from benchmarks.online import sections as online
from benchmarks.online import start
from benchmarks.results import Result, read
from benchmarks.tables import table
from benchmarks.targets import targets

TEMPLATE = Path(__file__).with_name("page.md").read_text()
"""The page's prose, with a placeholder comment for each generated part."""
WIDE = tuple(itertools.chain(*online.WIDE.values()))
SECTIONS = (*online.WORKLOADS, start.SECTION, *batch.WORKS)


def write_page(folder: Path, page: Path) -> None:
    """Write the page from the results in a folder. A section without a result reads "Not measured."."""
    results = {name: result for name in SECTIONS if (result := read(folder, name)) is not None}
    parts = {
        "HEADLINES": headlines_table(results),
        "TARGETS": _targets(results),
        "ONLINE": "\n\n".join(_sections(results, tuple(name for name in online.WORKLOADS if name not in WIDE))),
        "WIDE": "\n\n".join(_wide(results)),
        "START": "\n\n".join(_sections(results, (start.SECTION,))),
        "BATCH": "\n\n".join(_sections(results, tuple(batch.WORKS))),
        "RUN": _run(results),
        "VERSIONS": _versions(results),
    }
    text = TEMPLATE
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    picture = page.parent / "images" / "benchmarks.svg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(headlines_picture(results))
    page.write_text(text)


def title_of(section: str) -> str:
    """The heading of a section."""
    if section == start.SECTION:
        return start.TITLE
    return online.title(section) if section in online.WORKLOADS else batch.title(section)


def table_of(result: Result) -> str:
    """A section's figures as a Markdown table."""
    if result.section == start.SECTION:
        return start.as_table(result)
    return online.as_table(result) if result.section in online.WORKLOADS else batch.as_table(result)


def _sections(results: Mapping[str, Result], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        content = table_of(results[name]) if name in results else "Not measured."
        yield f"### {title_of(name)}\n\n`{name}`\n\n{content}"


def _wide(results: Mapping[str, Result]) -> Iterator[str]:
    for store, names in online.WIDE.items():
        measured = [results[name] for name in names if name in results]
        content = online.as_wide_table(measured) if measured else "Not measured."
        yield f"### {online.STORE_NAMES[store]}\n\n{', '.join(f'`{name}`' for name in names)}\n\n{content}"


def _targets(results: Mapping[str, Result]) -> str:
    rows = ((each.what, each.wanted, each.measured, "met" if each.met else "**missed**") for each in targets(results))
    return table(("", "target", "measured", ""), rows)


def _run(results: Mapping[str, Result]) -> str:
    lines = []
    for machine in {result.machine.processor: result.machine for result in results.values()}.values():
        lines.append(
            f"{machine.processor}, {machine.cores} cores, {machine.memory_gib:g} GiB, {machine.system}, "
            f"Python {machine.python}."
        )
    for code in dict.fromkeys(result.code for result in results.values()):
        of_code = [result for result in results.values() if result.code == code]
        began, ended = min(each.began for each in of_code), max(each.began for each in of_code)
        busiest = max(each.machine.load_before for each in of_code)
        lines.append(
            f"Commit {code}: {len(of_code)} sections, {began[:16]} to {ended[:16]} UTC, "
            f"load before each up to {busiest:g}."
        )
    return "\n".join(f"- {line}" for line in lines)


def _versions(results: Mapping[str, Result]) -> str:
    versions: dict[str, dict[str, str]] = {}
    for result in results.values():
        versions |= result.versions
    packages = list(dict.fromkeys(package for found in versions.values() for package in found))
    rows = ([package, *(found.get(package, "") for found in versions.values())] for package in packages)
    return table(("", *versions), rows)
