"""The documentation matches the code: settings with their defaults and docstrings, make targets, links."""

import ast
import itertools
import re
from pathlib import Path

import msgspec
import pytest

import scoring.settings
from scoring.settings import Settings, variable_names

ROOT = Path(__file__).resolve().parents[3]
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def documented_settings() -> dict[str, str]:
    """Variable → the default that docs/settings.md gives it."""
    return dict(re.findall(r"^### `(\w+)`\n\nDefault: (.+)$", SETTINGS_PAGE, re.MULTILINE))


def default_as_documented(field: str) -> str:
    found = next(each for each in msgspec.structs.fields(Settings) if each.name == field)
    if found.required:
        return "none, it is required"
    value = found.default if found.default_factory is msgspec.NODEFAULT else found.default_factory()
    if value in (None, (), {}):
        return "not set"
    if isinstance(value, tuple):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


def docstrings() -> dict[str, str]:
    """Field → its docstring in the code, on one line."""
    tree = ast.parse(Path(scoring.settings.__file__).read_text(encoding="utf-8"))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings").body
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def test_the_settings_are_documented_and_no_others() -> None:
    assert set(documented_settings()) == set(variable_names().values())


@pytest.mark.parametrize(("field", "variable"), variable_names().items())
def test_each_setting_has_its_default_and_its_docstring(field: str, variable: str) -> None:
    assert documented_settings()[variable] == default_as_documented(field)
    section = SETTINGS_PAGE.split(f"### `{variable}`\n")[1].split("\n### ")[0]
    assert docstrings()[field] in " ".join(section.split())


def test_the_development_page_lists_every_make_target_and_no_other() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `make ([a-z-]+)` \|", page, re.MULTILINE)) == sorted(targets)


def anchors(page: Path) -> set[str]:
    """The names under which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8"))
    broken = []
    for file, anchor in links:
        target = page.parent / file if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(f"{file}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    folders = "cli|scoring|api|serving_assets|feature_repo|demo|deploy|benchmarks|tests|requirements|docs"
    named = re.findall(
        rf"(?<![\w/.-])((?:{folders})/[\w/.-]+\.(?:py|yaml|yml|toml|txt|sh|md|conf))\b", page.read_text()
    )
    assert [file for file in named if not (ROOT / file).exists()] == []
