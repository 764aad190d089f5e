"""An alias is resolved to an exact version, and failures of the registry are explained."""

import base64
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient

from scoring.errors import AliasNotSet, ModelNotRegistered, ModelRefused, NoRoom, RegistryUnreachable, VersionNotFound
from scoring.models.model_files import version_folder
from scoring.models.registry import MlflowRegistry, ModelVersion
from tests.support.fakes import files_of_at_most
from tests.support.servers import MlflowServer, free_port


@pytest.fixture(params=["database", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "database":
        return f"sqlite:///{tmp_path / 'mlflow.db'}"
    server: MlflowServer = request.getfixturevalue("mlflow_server")
    return server.uri


@pytest.fixture
def model(uri: str) -> str:
    """A registered model with two versions, named for this test alone."""
    name = f"model-{time.monotonic_ns()}"
    client = MlflowClient(uri)
    client.create_registered_model(name)
    run = client.create_run("0", tags={"feast.feature_service": "from_the_run"})
    for _ in range(2):
        client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    return name


def test_an_alias_means_one_exact_version(uri: str, model: str) -> None:
    registry = MlflowRegistry(uri, uri)
    client = MlflowClient(uri)
    client.set_registered_model_alias(model, "champion", "2")
    assert str(registry.resolve(model, "champion")) == f"{model}/2"
    client.set_registered_model_alias(model, "champion", "1")
    assert registry.resolve(model, "champion").version == 1
    assert registry.version(model, 2).data_version == f"{model}:2"


def test_the_service_is_the_versions_tag_else_its_training_runs(uri: str, model: str) -> None:
    registry = MlflowRegistry(uri, uri)
    assert registry.version(model, 1).tags["feast.feature_service"] == "from_the_run"
    MlflowClient(uri).set_model_version_tag(model, "1", "feast.feature_service", "from_the_version")
    assert registry.version(model, 1).tags["feast.feature_service"] == "from_the_version"


def test_a_missing_alias_model_or_version_is_named(uri: str, model: str) -> None:
    registry = MlflowRegistry(uri, uri)
    with pytest.raises(AliasNotSet, match=f"'{model}' has no alias 'champion': set it on a version"):
        registry.resolve(model, "champion")
    with pytest.raises(ModelNotRegistered, match="No model named 'unknown' is registered in"):
        registry.resolve("unknown", "champion")
    with pytest.raises(VersionNotFound, match="has no version 7"):
        registry.version(model, 7)
    with pytest.raises(ModelNotRegistered):
        registry.version("unknown", 1)


def test_a_server_that_is_down_is_told_within_ten_seconds() -> None:
    uri = f"http://user:secret@127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(RegistryUnreachable, match="check MLFLOW_TRACKING_URI and that the server is up") as caught:
        MlflowRegistry(uri, uri).resolve("model", "champion")
    assert time.monotonic() - start < 10
    assert "secret" not in str(caught.value)


class ForeignServer(ThreadingHTTPServer):
    """A server at the registry's address that is not MLflow, or a proxy in front of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.status, self.body = 200, b""
        self.credentials: list[str | None] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: ForeignServer

    def do_GET(self) -> None:
        self.server.credentials.append(self.headers["Authorization"])
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def foreign() -> Iterator[ForeignServer]:
    with ForeignServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html>"),
        (200, b"{}"),
        (200, b"[1]"),
        (200, b'{"model_version": [1]}'),
        (200, b'{"model_version": {"name": "model", "version": "latest"}}'),
        (401, b""),
        (404, b"<html>"),
        (502, b"\xff"),
    ],
)
def test_a_server_that_is_not_mlflow_is_unreachable(foreign: ForeignServer, status: int, body: bytes) -> None:
    foreign.status, foreign.body = status, body
    uri = f"http://{foreign.address}"
    for ask in (lambda registry: registry.resolve("model", "champion"), lambda registry: registry.version("model", 1)):
        with pytest.raises(RegistryUnreachable, match="check MLFLOW_TRACKING_URI and that the server is up") as caught:
            ask(MlflowRegistry(uri, uri))
        assert "\n" not in str(caught.value)


BASIC = "Basic " + base64.b64encode(b"ann:p@w").decode()


@pytest.mark.parametrize(
    ("user", "variables", "sent"),
    [
        ("", {}, None),
        ("", {"TOKEN": "secret"}, "Bearer secret"),
        ("", {"USERNAME": "ann", "PASSWORD": "p@w", "TOKEN": "secret"}, BASIC),
        ("ann:p%40w@", {}, BASIC),
    ],
)
def test_credentials_are_sent_to_the_registry_and_not_quoted(
    foreign: ForeignServer, monkeypatch: pytest.MonkeyPatch, user: str, variables: dict[str, str], sent: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    uri = f"http://{user}{foreign.address}"
    with pytest.raises(RegistryUnreachable) as caught:
        MlflowRegistry(uri, uri).resolve("model", "champion")
    assert set(foreign.credentials) == {sent}
    assert not [each for each in ("secret", "p@w", "p%40w") if each in str(caught.value)]


def test_a_database_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uri = f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"
    with pytest.raises(RegistryUnreachable, match="did not respond"):
        MlflowRegistry(uri, uri).resolve("model", "champion")


def test_a_version_whose_files_were_deleted_is_refused(uri: str, model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match=f"{model}/1 .*no longer in the artifact store"):
        MlflowRegistry(uri, uri).download(ModelVersion(model, 1), tmp_path)


def test_a_file_that_was_added_to_a_logged_model_is_one_of_its_version(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    client, name = MlflowClient(mlflow_server.uri), f"model-{time.monotonic_ns()}"
    logged = client.create_logged_model("0")
    (tmp_path / "baseline").write_bytes(b"{}")
    client.log_model_artifact(logged.model_id, str(tmp_path / "baseline"))
    client.create_registered_model(name)
    client.create_model_version(name, f"models:/{logged.model_id}", model_id=logged.model_id)

    assert MlflowRegistry(mlflow_server.uri, mlflow_server.uri).read(ModelVersion(name, 1), "baseline") == b"{}"


def test_the_size_of_a_version_is_known_without_fetching_it(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    client, name = MlflowClient(mlflow_server.uri), f"model-{time.monotonic_ns()}"
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "MLmodel").write_bytes(bytes(100))
    (tmp_path / "model" / "inner" / "data").write_bytes(bytes(2000))
    run = client.create_run("0")
    client.log_artifacts(run.info.run_id, str(tmp_path / "model"), "model")
    client.create_registered_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    registry = MlflowRegistry(mlflow_server.uri, mlflow_server.uri)
    assert registry.size(ModelVersion(name, 1)) == 2100
    assert registry.read(ModelVersion(name, 1), "MLmodel") == bytes(100)
    assert registry.read(ModelVersion(name, 1), "data") is None  # it is in a folder below
    # Nor is it the registry's fault, or the version's, where this machine has no room for its files.
    with pytest.raises(NoRoom, match=f"{tempfile.gettempdir()} failed: .*TMPDIR"), version_folder() as folder:  # noqa: SIM117
        with files_of_at_most(1000):
            registry.download(ModelVersion(name, 1), folder)
