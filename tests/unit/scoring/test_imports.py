"""Imports of libraries: garbage collection is paused, and MLflow is configured."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scoring.imports import collector_paused

ROOT = Path(__file__).resolve().parents[3]


def run(program: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a new interpreter without MLflow's variables. It must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, *options, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def test_the_collector_works_again_after_the_last_block() -> None:
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_the_collector_works_again_after_an_error() -> None:
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_mlflows_client_fetches_files_from_the_server_alone_and_not_where_it_points_to() -> None:
    # In a process of its own: what other tests have set is none of the test's business.
    program = (
        "from scoring.imports import import_mlflow; import_mlflow()\n"
        "from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository as Files\n"
        "Files._fetch_server_capabilities = lambda self: {'multipart_downloads_enabled': True}\n"
        "files = Files('mlflow-artifacts://127.0.0.1:1/model', tracking_uri='http://127.0.0.1:1')\n"
        "print(files._is_multipart_download_enabled())"
    )
    assert run(program).stdout.strip() == "False"


def test_mlflows_client_imports_no_optional_library_which_can_be_imported_afterwards() -> None:
    program = (
        "import sys\n"
        "from scoring.imports import import_mlflow\n"
        "import_mlflow()\n"
        "print([name for name in ('polars', 'pyspark') if name in sys.modules])\n"
        "import pyspark.sql\n"
        "print(pyspark.sql.SparkSession.__name__)"
    )
    assert run(program).stdout.splitlines() == ["[]", "SparkSession"]


def test_the_collector_never_searches_an_imported_library_and_what_exists_later_as_before() -> None:
    program = (
        "import gc\n"
        "from scoring.imports import importing\n"
        "with importing('decimal'):\n"
        "    import decimal\n"
        "print(gc.get_freeze_count() > 1000)\n"
        "gc.unfreeze()\n"
        "with importing('decimal'):\n"
        "    import decimal\n"
        "print(gc.get_freeze_count(), gc.isenabled())"
    )
    assert run(program).stdout.split() == ["True", "0", "True"]


@pytest.mark.parametrize("extension", ["duckdb", "onnx"])
def test_no_library_reports_leaks_at_exit(extension: str) -> None:
    program = (
        f"import {extension}\nfrom scoring.imports import importing\nwith importing('colorsys'):\n    import colorsys"
    )
    assert run(program).stderr == ""


def test_modules_that_are_replaced_while_a_library_is_imported_are_the_real_ones_afterwards() -> None:
    program = (
        "from scoring.imports import import_feast, import_for_serving\n"
        "import_for_serving(), import_feast()\n"
        "import sys\n"
        "large = 'scipy.stats', 'fastapi', 'sqlalchemy', 'jinja2', 'dill', 'mlflow', 'sklearn.datasets'\n"
        "print([name for name in large if name in sys.modules])\n"
        "import feast.errors, feast.feature_store, sklearn.metrics\n"
        "print(feast.errors.FeastObjectNotFoundException().http_status_code())\n"
        "print(feast.feature_store.SqlRegistry.__name__, feast.feature_store.feature_server.start_server.__name__)\n"
        "print(round(sklearn.metrics.label_ranking_average_precision_score([[1, 0]], [[0.75, 0.5]]), 3))\n"
        "import fastapi, scipy.stats, feast.infra.offline_stores.offline_utils as templates\n"
        "print(fastapi.FastAPI.__name__, scipy.stats.rankdata([3, 1]).tolist())\n"
        "print(templates.Environment(loader=templates.BaseLoader()).from_string('{{ 1 + 1 }}').render())\n"
        "from sklearn.preprocessing import SplineTransformer\n"
        "print(SplineTransformer(n_knots=2, degree=1).fit_transform([[0.0], [1.0]]).tolist())"
    )
    assert run(program, "-W", "ignore").stdout.splitlines() == [
        "[]",
        "404",
        "SqlRegistry start_server",
        "1.0",
        "FastAPI [2.0, 1.0]",
        "2",
        "[[1.0, 0.0], [0.0, 1.0]]",
    ]


def test_skops_lists_the_functions_that_it_trusts_without_a_search_through_all_modules() -> None:
    listed = "import skops.io._trusted_types as t; print(t.SCIPY_UFUNC_TYPE_NAMES, t.NUMPY_UFUNC_TYPE_NAMES)"
    watched = (
        "import sys, types\n"
        "searched_for = []\n"
        "class Module(types.ModuleType):\n"
        "    def __getattr__(self, name):\n"
        "        searched_for.append(name)\n"
        "        raise AttributeError(name)\n"
        "sys.modules['another'] = Module('another')\n"
        "from scoring.imports import import_for_serving\n"
        "import_for_serving()\n"
        "print(sorted({'airy', 'sqrt'} & {*searched_for}))\n"
    )
    alone, ours = (run(program, "-W", "ignore").stdout for program in (listed, watched + listed))
    assert "scipy.special._special_ufuncs.airy" in alone
    assert ours == f"[]\n{alone}"
