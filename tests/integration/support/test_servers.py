"""The servers that other tests rely on do real work, and come back after an outage."""

import urllib.parse
from pathlib import Path

import psycopg2
import pytest
import redis
from mlflow import MlflowClient
from pyarrow.fs import S3FileSystem
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.servers import RedisServer, ServerDidNotStart


def test_redis_gives_back_what_was_set(redis_server):
    with redis.Redis(redis_server.host, redis_server.port) as client:
        client.set("driver:1001", "0.5")
        assert client.get("driver:1001") == b"0.5"


def test_redis_is_gone_during_an_outage_and_back_after_it(redis_server):
    with redis.Redis(redis_server.host, redis_server.port, retry=Retry(NoBackoff(), 0)) as client:
        with redis_server.stopped(), pytest.raises(redis.ConnectionError):
            client.ping()
        assert client.ping()


def test_a_killed_redis_starts_again_on_the_same_port(tmp_path):
    server = RedisServer(tmp_path)
    port = server.port
    server.start()
    try:
        server.kill()
        assert not server.answers()
        server.start()
        assert server.answers()
        assert server.port == port
    finally:
        server.stop()


def test_a_server_that_cannot_start_says_why(redis_server, tmp_path):
    second = RedisServer(tmp_path, host="256.0.0.1")
    with pytest.raises(ServerDidNotStart, match=r"redis ended with status 1(?s:.*)256\.0\.0\.1"):
        second.start()


def test_mlflow_resolves_an_alias_and_serves_the_artifacts_of_that_version(mlflow_server, tmp_path):
    client = MlflowClient(mlflow_server.uri)
    run = client.create_run(client.create_experiment("server_round_trip")).info
    client.log_text(run.run_id, "acc_rate", "model/features.txt")
    client.create_registered_model("server_round_trip")
    registered = client.create_model_version("server_round_trip", f"{run.artifact_uri}/model", run.run_id)
    client.set_registered_model_alias("server_round_trip", "champion", registered.version)

    resolved = client.get_model_version_by_alias("server_round_trip", "champion")
    downloaded = client.download_artifacts(resolved.run_id, "model/features.txt", str(tmp_path))

    assert resolved.version == registered.version
    assert Path(downloaded).read_text() == "acc_rate"


def test_postgres_runs_sql_and_keeps_rows_over_a_restart(postgres_server):
    def run(sql: str) -> list[tuple[int]]:
        connection = psycopg2.connect(postgres_server.url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()
        finally:
            connection.close()

    assert run("create table server_round_trip as select 7 as n; select n from server_round_trip") == [(7,)]
    with postgres_server.stopped(), pytest.raises(psycopg2.OperationalError):
        run("select 1")
    assert run("select n from server_round_trip") == [(7,)]


def test_s3_gives_back_what_was_put(s3_server):
    store = S3FileSystem(
        access_key=s3_server.environment["AWS_ACCESS_KEY_ID"],
        secret_key=s3_server.environment["AWS_SECRET_ACCESS_KEY"],
        region=s3_server.environment["AWS_REGION"],
        endpoint_override=s3_server.endpoint_url,
        allow_bucket_creation=True,
    )
    store.create_dir("requests")
    with store.open_output_stream("requests/entity_rows.csv") as file:
        file.write(b"driver_id\n1001\n")
    with store.open_input_stream("requests/entity_rows.csv") as file:
        assert file.read() == b"driver_id\n1001\n"


def test_chromium_shows_a_page(chromium):
    page = chromium.new_page()
    page.goto("data:text/html," + urllib.parse.quote("<h1>/inference</h1>"))
    assert page.locator("h1").inner_text() == "/inference"
    page.close()
