"""The light look at the alias: over REST at a server that answers as MLflow does, and at an SQLite file's times."""

import base64
import os
import time

import pytest

from scoring.errors import AliasNotSet, ModelNotRegistered, RegistryUnreachable
from scoring.models.alias_watch import AliasTarget, resolve_alias, unchanged
from scoring.settings import Settings
from tests.support.rest_registry import Client, Server
from tests.support.servers import free_port


@pytest.fixture
def server():
    started = Server()
    yield started
    started.stop()


def settings(uri, model="ranker"):
    return Settings(model_name=model, mlflow_tracking_uri=uri)


def test_a_server_is_asked_once_and_the_client_not_at_all(server):
    client = Client()

    assert resolve_alias(client, settings(server.uri, "my ranker"), {}) == AliasTarget(7, 1_700_000_000_000)
    assert server.paths == ["/api/2.0/mlflow/registered-models/alias?name=my+ranker&alias=champion"]
    assert client.asked == 0


@pytest.mark.parametrize(
    ("environment", "header"),
    [
        ({}, None),
        ({"MLFLOW_TRACKING_TOKEN": "secret"}, "Bearer secret"),
        (
            {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "pw", "MLFLOW_TRACKING_TOKEN": "secret"},
            "Basic " + base64.b64encode(b"ann:pw").decode(),
        ),
    ],
)
def test_credentials_go_as_the_client_would_send_them(server, environment, header):
    resolve_alias(Client(), settings(server.uri), environment)

    assert server.headers.get("Authorization") == header


def test_credentials_in_the_address_become_a_header(server):
    resolve_alias(Client(), settings(server.uri.replace("//", "//ann:p%40w@")), {})

    assert server.headers["Authorization"] == "Basic " + base64.b64encode(b"ann:p@w").decode()


def test_an_alias_that_is_not_set_is_told(server):
    server.status, server.body = 400, {"error_code": "INVALID_PARAMETER_VALUE"}

    with pytest.raises(AliasNotSet):
        resolve_alias(Client(), settings(server.uri), {})


def test_a_missing_model_is_told_by_the_client(server):
    server.status, server.body = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}

    with pytest.raises(ModelNotRegistered):
        resolve_alias(Client(ModelNotRegistered("ranker", server.uri)), settings(server.uri), {})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, {}),
        (200, b"<html>"),
        (200, {}),
        (200, b"[1]"),
        (200, b'{"model_version": [1]}'),
        (401, b""),
        (502, b"\xff"),
    ],
)
def test_any_other_answer_is_no_answer(server, status, body):
    server.status, server.body = status, body

    with pytest.raises(RegistryUnreachable, match="gave no answer"):
        resolve_alias(Client(), settings(server.uri), {})


def test_a_server_that_is_down_is_told_at_once():
    started = time.monotonic()

    with pytest.raises(RegistryUnreachable):
        resolve_alias(Client(), settings(f"http://127.0.0.1:{free_port()}"), {})
    assert time.monotonic() - started < 5


def test_where_requests_must_be_signed_the_client_is_asked(server):
    client = Client()

    assert resolve_alias(client, settings(server.uri), {"MLFLOW_TRACKING_AWS_SIGV4": "true"}) == AliasTarget(
        3, 1_600_000_000_000
    )
    assert (client.asked, server.paths) == (1, [])


@pytest.fixture
def database(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_text("x")
    os.utime(file, (1_700_000_000,) * 2)
    return file


def test_an_untouched_database_is_unchanged_and_a_written_one_not(database):
    asked = settings(f"sqlite:///{database}")
    first = resolve_alias(Client(), asked, {}).state

    assert first is not None
    assert unchanged(asked) == first
    os.utime(database, (1_700_000_001,) * 2)
    assert unchanged(asked) != first


def test_a_write_ahead_log_counts(database):
    asked = settings(f"sqlite:///{database}")
    first = unchanged(asked)
    log = database.with_name("mlflow.db-wal")
    log.write_text("x")
    os.utime(log, (1_700_000_000,) * 2)

    assert unchanged(asked) not in {None, first}


def test_a_database_written_a_moment_ago_is_asked_again_at_the_next_look(database):
    os.utime(database)

    assert resolve_alias(Client(), settings(f"sqlite:///{database}"), {}).state is None


def test_another_alias_is_another_state(database):
    one = settings(f"sqlite:///{database}")
    other = Settings(model_name="ranker", model_alias="challenger", mlflow_tracking_uri=f"sqlite:///{database}")

    assert unchanged(one) != unchanged(other)


@pytest.mark.parametrize("uri", ["postgresql://registry", "sqlite:///", "file:///mlruns", "databricks"])
def test_other_registries_are_asked_every_time(uri):
    client = Client()

    assert resolve_alias(client, settings(uri), {}).state is None
    assert client.asked == 1
