"""No import circle: neither at module level nor by an import inside a function or under TYPE_CHECKING."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def import_graph(root: Path, package: str) -> dict[str, set[str]]:
    """Module → the modules of the package that it imports anywhere in its text."""
    files = {".".join(file.relative_to(root).with_suffix("").parts): file for file in (root / package).rglob("*.py")}
    names = {name.removesuffix(".__init__") for name in files}
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        imported = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        graph[name.removesuffix(".__init__")] = imported & names
    return graph


@pytest.mark.parametrize("package", ["cli", "scoring", "api", "serving_assets", "demo", "benchmarks", "tests"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    try:
        TopologicalSorter(import_graph(ROOT, package)).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_a_circle_through_a_deferred_import_is_found(tmp_path: Path) -> None:
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "__init__.py").write_text("")
    (tmp_path / "rooms" / "hall.py").write_text("from rooms import kitchen\n")
    (tmp_path / "rooms" / "kitchen.py").write_text("def cook():\n    from rooms.hall import door\n")

    with pytest.raises(CycleError):
        TopologicalSorter(import_graph(tmp_path, "rooms")).prepare()


def test_no_test_module_imports_another() -> None:
    importing = {
        name: sorted(each for each in imported if each.rpartition(".")[2].startswith("test_"))
        for name, imported in import_graph(ROOT, "tests").items()
    }
    assert {name: found for name, found in importing.items() if found} == {}
