import gc
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from scoring.imports import collector_paused, import_feast, import_model_libraries
from tests.support.servers import MlflowServer, PostgresServer, RedisServer, S3Server, machines_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# These name a developer's own stores, servers and accounts: no test may depend on them or write to them.
DEVELOPERS_OWN = ("AWS_", "DAGSTER_", "FEAST_", "FEATURE_STORE_", "MLFLOW_", "PROMETHEUS_", "SERVING_")

FOR_EVERY_TEST = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Threads that fight over two cores: gradient boosting on 1000 rows took 131-581 ms instead of 6.
    "OMP_NUM_THREADS": "1",
    # A proxy cannot reach our loopback.
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def pytest_configure() -> None:
    """Set the environment before any test module is imported: MLflow and OpenMP read it at import."""
    for name in [name for name in os.environ if name.startswith(DEVELOPERS_OWN)]:
        del os.environ[name]
    os.environ.update(FOR_EVERY_TEST)
    # No test measures time: a busy machine would fail it.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Import the test modules and their libraries in little time: the libraries as the product does, and first.

    In the process that only distributes the tests, nothing is imported.
    """
    if hasattr(session.config, "workerinput") or session.config.getoption("numprocesses", None) in {None, 0}:
        import prometheus_client  # noqa: F401  # before Feast 0.67, which would make it keep its values in files

        import_model_libraries()
        import_feast()
    with collector_paused():
        result = yield
    gc.freeze()
    return result


def pytest_unconfigure() -> None:
    """Let the collector search all objects at exit, because ONNX's library reports those that are left as leaks."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """An empty Redis at the session's start; tests share it."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server; tests share it, so each registers models under a name of its own."""
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 without buckets at the session's start; tests share it."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL with one empty database at the session's start; tests share it."""
    # Not in pytest's directory: that one is closed to other users, and under root PostgreSQL runs as another.
    with (
        tempfile.TemporaryDirectory(prefix="serving-tests-postgres-") as directory,
        PostgresServer(Path(directory)) as server,
    ):
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """Debian's chromium, headless.

    Once per module, not per session: while playwright's synchronous interface is open, its event loop is this
    thread's running one, and an `asyncio.run` in a test of another module would be refused.
    """
    from playwright.sync_api import sync_playwright

    program = machines_program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME of this test's own, telemetry off: Dagster 1.13 has no environment variable for it."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return home
