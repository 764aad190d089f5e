"""Imports large libraries as late as possible, and with the garbage collector off.

During imports, the collector traverses all objects many times and finds no garbage, which takes a quarter of the CPU
time of importing Feast, MLflow, scikit-learn and pandas (3.4 instead of 4.4 s, Python 3.11). Memory use is the same.
"""

import atexit
import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

# MLflow reads these at each call. With its own defaults, it waits 273 s for a server that is down (mlflow 3.17).
CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Model files are downloaded through the server. With this on, it redirects to its object store, and a client that
    # can't reach that waits for minutes and reports a failure of the server (mlflow 3.17).
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
}


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Turn off automatic garbage collection within the block, for all threads. Blocks may overlap."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def importing(library: str) -> Iterator[None]:
    """Import a large library within the block. The collector never searches its objects.

    Searching them takes 0.3 s of CPU time each time, and 2 s at exit, as long as importing scikit-learn (Python 3.11).
    At exit, it searches them only if a library would otherwise report its objects as leaks.
    """
    is_new = library not in sys.modules
    with collector_paused():
        yield
    if is_new:
        gc.freeze()


@atexit.register
def _let_collector_end() -> None:
    # Extensions made with nanobind print a warning at exit if an object of theirs is left (duckdb 2.0, onnx 1.23).
    if {"duckdb", "onnx"} & sys.modules.keys():
        gc.unfreeze()


def import_mlflow() -> None:
    """Import MLflow's client, with short timeouts and without telemetry."""
    for variable, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    # MLflow imports its tools for language models, and polars if it is installed, which take 0.5 s of CPU time each.
    # It imports pyspark, 8 MiB, only to find out whether it is installed.
    with importing("mlflow"), _without("polars"), _without("pyspark"), _at_first_use("mlflow.genai", "mlflow.gateway"):
        from mlflow import MlflowClient
    del MlflowClient


def import_pyfunc() -> None:
    """Import what MLflow needs to load a scikit-learn model and to predict with it."""
    import_mlflow()
    with importing("mlflow.sklearn"):
        import mlflow.pyfunc
        import mlflow.sklearn
    del mlflow


def import_model_libraries() -> None:
    """Import the libraries that load models and predict, for a process in which code of others may use them, too."""
    # skops imports all modules of scikit-learn, and one of those imports dask, which takes 0.3 s of CPU time.
    with importing("skops.io"), _without("dask"), _quick_search():
        import skops.io
    import_pyfunc()
    del skops


def import_first() -> None:
    """Import what takes less CPU time and memory before the rest."""
    with collector_paused(), _without("rich"):  # structlog imports it to print local variables, which are never logged
        import structlog
    del structlog


def import_for_serving() -> None:
    """Import the libraries that load models and predict, except MLflow, with half the usual memory and CPU time.

    skops would import all modules of scikit-learn, only to list the types that it trusts. Instead, types are looked up
    one by one (scoring/models/flavors/sklearn.py). Few models need the parts of SciPy that are imported at first use.
    """
    rare = "scipy.integrate", "scipy.interpolate", "scipy.stats"
    # scikit-learn's progress bars of training use rich, 7 MiB.
    with importing("skops.io"), _without("dask"), _without("rich"), _at_first_use(*rare), _quick_search():
        import sklearn.utils

        list_estimators = sklearn.utils.all_estimators
        sklearn.utils.all_estimators = list
        try:
            import skops.io
        finally:
            sklearn.utils.all_estimators = list_estimators
    with importing("pandas"):
        import pandas
    del pandas, sklearn, skops


def import_feast() -> None:
    """Import Feast without typeguard's instrumentation, its servers, its SQL registry and other parts for few uses.

    They take two thirds of its memory and CPU time (feast 0.67). A registry in a database imports what it needs.
    """
    if "feast" in sys.modules:
        return
    own = "feast.feature_server", "feast.ui_server", "feast.infra.registry.sql"
    rare = *own, "dill", "fastapi", "fastapi.concurrency", "jinja2"
    with importing("feast"), _without_instrumentation(), _at_first_use(*rare):
        import feast  # noqa: F401


class _Utilities(SourceFileLoader):
    """Loads the module in which skops looks up the modules of functions."""

    NAME = "skops.io._utils"

    def exec_module(self, module: ModuleType) -> None:
        """See `importlib.abc.Loader`."""
        import scipy.special  # noqa: F401 - so that it is among the modules

        super().exec_module(module)
        search, modules = module.whichmodule, sys.modules.copy()
        first = [(each, modules[each]) for each in modules if each.startswith(("numpy.", "scipy.special."))]

        def whichmodule(function: Any, name: str) -> str:
            if getattr(function, "__module__", None) is None:
                for place, found in first:
                    if getattr(found, name, None) is function:
                        return place
            return str(search(function, name))

        module.whichmodule = whichmodule  # type: ignore[attr-defined]

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, _target: object = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        found = PathFinder.find_spec(name, path) if name == cls.NAME else None
        return spec_from_loader(name, cls(name, str(found.origin))) if found else None


@contextlib.contextmanager
def _quick_search() -> Iterator[None]:
    """Within the block, import skops so that it looks for functions of NumPy and SciPy in their own modules first.

    It lists 800 of them when it is imported, and searches all modules for each (skops 0.16): a quarter of the CPU time
    of a run of Dagster, which has imported 4,000.
    """
    sys.meta_path.insert(0, _Utilities)
    try:
        yield
    finally:
        sys.meta_path.remove(_Utilities)


@contextlib.contextmanager
def _at_first_use(*modules: str) -> Iterator[None]:
    """Within the block, import these modules as placeholders. The real ones are imported when one of them is used."""
    replaced = [name for name in modules if name not in sys.modules]
    for name in replaced:
        sys.modules[name] = _Placeholder(name)
    try:
        yield
    finally:
        for name in replaced:
            if isinstance(sys.modules.get(name), _Placeholder):
                del sys.modules[name]


class _Placeholder(ModuleType):
    """A module that becomes the real one when an attribute is read, after the block that imports it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            return _PlaceholderAttribute(self.__name__, name)
        return getattr(importlib.import_module(self.__name__), name)


class _PlaceholderAttribute:
    """An attribute that was imported from a placeholder. Its module is imported when it is called or read."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def _real(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._real()(*arguments, **named)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, self._real())

    def __mro_entries__(self, _bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Make an optional package of another one look as if it were not installed."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.modules.pop(package, None)


@contextlib.contextmanager
def _without_instrumentation() -> Iterator[None]:
    # Feast 0.67 decorates its classes with typeguard.typechecked (4.5), which checks argument types at run time. Only
    # python -O disables it, together with the asserts of every package. mypy already checks this project's calls.
    import typeguard

    original = typeguard.typechecked
    typeguard.typechecked = _unchanged  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = original


def _unchanged(target: Any = None, **_: Any) -> Any | Callable[[Any], Any]:
    return (lambda each: each) if target is None else target


@contextlib.contextmanager
def inside(repository: Path) -> Iterator[None]:
    """Make the Feast repository the working directory and importable within the block."""
    # Feast imports definitions relative to the working directory, and its duckdb store reads relative source paths from
    # there (feast 0.67). Imported modules are removed again, so that a second apply in this process sees changed files.
    before = set(sys.modules)
    old_path, old_folder, old_bytecode = list(sys.path), Path.cwd(), sys.dont_write_bytecode
    sys.path.insert(0, str(repository))
    os.chdir(repository)
    try:
        yield
    finally:
        os.chdir(old_folder)
        sys.path[:] = old_path
        sys.dont_write_bytecode = old_bytecode
        for name in set(sys.modules) - before:
            origin = getattr(sys.modules[name], "__file__", None)
            if origin and Path(origin).is_relative_to(repository):
                del sys.modules[name]
