"""`make compose-test`: docker-compose.yml by Docker itself, with the commands of docs/deploy.md.

Needs a Docker engine with Compose 2.24 or later and the images that the file names: those of others are pulled, or
built from `stand_ins` where no registry can be reached (its README says how), ours are built by `docker compose build`.
It runs beside no other project of the file: the daemon's container has a name of its own.

Not collected by `make test`.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import compose
from tests.support.dagster_servers import wait_until
from tests.support.load import Load
from tests.support.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
KEY = compose.EXAMPLE_VALUES["SERVING_API_KEYS"]
TAG = os.environ.get("IMAGE_TAG", "0.1.0")
NEXT_TAG = f"{TAG}-next"
# Kills every process whose command line contains the argument. PID 1 is `init`, which restarts nothing.
KILL = """
import os, pathlib, signal, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if int(process.name) not in {1, os.getpid()} and sys.argv[1].encode() in (process / "cmdline").read_bytes():
        os.kill(int(process.name), signal.SIGKILL)
"""

pytestmark = pytest.mark.timeout(900)


class Stack:
    """The services of docker-compose.yml as a separate Compose project."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.variables = folder / ".env"
        ports = {"API_PORT": self.port, "DAGIT_PORT": free_port()}
        self.write(compose.EXAMPLE_VALUES | {name: str(port) for name, port in ports.items()} | {"IMAGE_TAG": TAG})

    def write(self, values: dict[str, str]) -> None:
        self.values = values
        self.variables.write_text("".join(f"{name}={value}\n" for name, value in values.items()))

    def shell(self, script: str) -> str:
        """Run a script of docs/deploy.md on this project and return its output."""
        inherited = {name: value for name, value in os.environ.items() if name not in self.values}
        ours = {"COMPOSE_PROJECT_NAME": "model-serving-test", "COMPOSE_ENV_FILES": str(self.variables)}
        command = ["bash", "-e", "-o", "pipefail", "-c", script]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=inherited | ours,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}"
        return done.stdout

    def answer(self) -> httpx.Response:
        request = {"request_id": "uuid-1", "driver_ids": [1001, 1002, 9999]}
        url = f"http://127.0.0.1:{self.port}/inference"
        return httpx.post(url, json=request, headers={"Authorization": f"Bearer {KEY}"}, timeout=10)

    def answers(self) -> bool:
        try:
            return self.answer().status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All services up and healthy, with the example loaded."""
    started = Stack(tmp_path_factory.mktemp("compose"))
    try:
        started.shell("docker compose up -d --wait")
        print(started.shell("docker compose run --rm code-location python -m demo.stack"))
        wait_until(started.answers, "a replica to answer", 60)
        yield started
    finally:
        print(started.shell("docker compose logs --tail 5; docker compose down --volumes --timeout 20"))


def test_the_sensor_scores_the_request_and_the_proxy_answers(stack: Stack) -> None:
    answer = stack.answer().json()
    assert answer["prediction"] in {1001, 1002}
    assert answer["excluded"] == [{"driver_id": 9999, "reason": "not_found"}]
    file = "/data/serving/artifacts/rides_today/batch_output.parquet"
    found = f"docker compose exec -T s3 sh -c 'test -s {file} && echo there || echo missing'"
    wait_until(lambda: stack.shell(found).strip() == "there", f"the sensor's run to write {file}", 180)


@pytest.mark.parametrize(
    ("service", "program"), [("api", "python"), ("mlflow", "mlflow"), ("code-location", "dagster")]
)
def test_a_killed_service_restarts_without_a_failed_request(stack: Stack, service: str, program: str) -> None:
    with Load(stack.port) as load:
        stack.shell(f"docker compose exec -T {service} python -c '{KILL}' {program} || true")
        time.sleep(3)  # so that its health is not what it was before
        wait_until(lambda: healthy(stack), f"{service} to be healthy again", 90)
    assert load.answers > 20
    assert not load.failures, refused(stack)


def test_the_documented_upgrade_fails_no_request(stack: Stack) -> None:
    for image in ("api", "batch"):
        stack.shell(f"docker tag model-serving-{image}:{TAG} model-serving-{image}:{NEXT_TAG}")
    stack.write(stack.values | {"IMAGE_TAG": NEXT_TAG})
    with Load(stack.port) as load:
        stack.shell(documented("**Upgrade**").replace("docker compose build\n", ""))
        stack.shell("docker compose up -d --wait")
    assert load.answers > 50
    assert not load.failures, refused(stack)
    images = stack.shell("docker compose ps --format '{{.Image}}'").split()
    assert {image.partition(":")[2] for image in images if image.startswith("model-serving")} == {NEXT_TAG}


def test_the_data_survives_down_and_up(stack: Stack) -> None:
    before = stack.answer().json()
    stack.shell("docker compose down")
    stack.shell("docker compose up -d --wait")
    wait_until(stack.answers, "a replica to answer", 60)
    assert stack.answer().json() == before


def refused(stack: Stack) -> str:
    """The proxy's log of requests that no replica answered."""
    return stack.shell("docker compose logs --no-log-prefix proxy | grep -E '\"status\":5|\\[(warn|error)\\]' || true")


def healthy(stack: Stack) -> bool:
    """Whether every container is healthy."""
    lines = stack.shell("docker compose ps --format json").splitlines()
    return all(json.loads(line)["Health"] == "healthy" for line in lines)


def documented(heading: str) -> str:
    """The first shell block after this heading in docs/deploy.md."""
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    match = re.search(r"```sh\n(.*?)```", text[text.index(heading) :], re.DOTALL)
    assert match, heading
    return match.group(1)
