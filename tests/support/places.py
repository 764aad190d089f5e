"""Where the parts of docker-compose.yml are on this machine: the only list of what the full stack replaces.

It lists hosts, ports, paths, and the interval of run monitoring. Everything else is used as the file has it. Each
container's root is a folder here.
"""

import contextlib
import dataclasses
import os
import random
import re
import socket
import sys
from pathlib import Path

from tests.support import compose
from tests.support.servers import HOST

PORTS = {
    "postgres": 5432, "redis": 6379, "s3": 7070, "mlflow": 5000, "code-location": 4000,
    "webserver": 3000, "daemon": 0, "api": 8172, "proxy": 8080,
}  # fmt: skip
"""The port of each service in its container."""

# Keys of a service that apply to a process, and those that apply only to a container.
TAKEN = {
    "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "profiles", "restart",
    "stop_grace_period", "stop_signal", "tmpfs", "volumes",
}  # fmt: skip
OF_CONTAINERS = {
    "build", "cap_drop", "container_name", "image", "init", "logging", "networks", "ports", "read_only", "security_opt",
    "shm_size", "user",
}  # fmt: skip

# The variables of each service. If a new one contains an address or a path of a new form, extend `moved`.
OF_S3 = {
    "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_EC2_METADATA_DISABLED",
}  # fmt: skip
OF_SERVING = {
    "SERVING_MODEL_NAME", "SERVING_MODEL_ALIAS", "SERVING_MODEL_FORMATS", "SERVING_MISSING_FEATURES",
    "SERVING_IMPUTE_VALUES", "SERVING_FEATURE_REPO", "SERVING_FEATURE_STORE_YAML", "SERVING_MAX_MODEL_BYTES",
    "MLFLOW_TRACKING_URI", "FEAST_REGISTRY", "FEAST_REDIS", "OMP_NUM_THREADS", "OTEL_EXPORTER_OTLP_ENDPOINT",
    "SERVING_PREDICTION_LOG",
}  # fmt: skip
OF_DAGSTER = {"DAGSTER_HOME", "DAGSTER_PG_HOST", "DAGSTER_PG_PORT", "DAGSTER_PG_PASSWORD"}
VARIABLES: dict[str, set[str]] = {
    "postgres": {
        "POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS", "MLFLOW_DB_PASSWORD", "DAGSTER_DB_PASSWORD", "FEAST_DB_PASSWORD",
    },
    "redis": {"REDIS_PASSWORD"},
    "s3": {
        "VGW_BACKEND", "VGW_BACKEND_ARG", "VGW_PORT", "VGW_REGION", "VGW_HEALTH", "ROOT_ACCESS_KEY", "ROOT_SECRET_KEY",
    },
    "mlflow": OF_S3 | {
        "MLFLOW_BACKEND_STORE_URI", "PGPASSWORD", "MLFLOW_ARTIFACTS_DESTINATION", "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE",
        "MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "MLFLOW_DISABLE_TELEMETRY",
    },
    "code-location": OF_S3 | OF_SERVING | OF_DAGSTER | {
        "SERVING_BATCH_REQUESTS", "SERVING_ARTIFACTS", "SERVING_RESCORE", "SERVING_BATCH_ENGINE",
        "SERVING_SPARK_MASTER", "SERVING_SPARK_CONF", "FEATURE_DATA", "TMPDIR",
    },
    "webserver": OF_DAGSTER,
    "daemon": OF_DAGSTER,
    "api": OF_S3 | OF_SERVING | {
        "SERVING_HOST", "SERVING_PORT", "SERVING_API_KEYS", "SERVING_WEBHOOK_SECRET", "SERVING_DEADLINE_S",
        "SERVING_MAX_ENTITIES", "SERVING_MAX_BODY_BYTES", "SERVING_POLL_INTERVAL_S", "SERVING_DRAIN_S",
        "SERVING_LOG_LEVEL", "SERVING_MAX_BULK_ENTITIES", "SERVING_BULK_DEADLINE_S",
    },
    "proxy": set(),
}  # fmt: skip

# Whole values of variables.
HOSTS = {"DAGSTER_PG_HOST", "SERVING_HOST"}
OWN_PORT = {"SERVING_PORT"}
POSTGRES_PORT = {"DAGSTER_PG_PORT"}

# In the files of deploy/: a string that must occur once → the string with the ports of this machine.
FILES = {
    "deploy/redis.conf": {"bind * -::*": f"bind {HOST}", "port 6379": "port {redis}"},
    "deploy/workspace.yaml": {"host: code-location": f"host: {HOST}", "port: 4000": "port: {code-location}"},
    # 30 s would take too much of the suite's time.
    "deploy/dagster.yaml": {"poll_interval_seconds: 30": "poll_interval_seconds: 2"},
    "deploy/nginx/nginx.conf": {"listen 8080;": f"listen {HOST}:{{proxy}};"},
    # Docker's DNS returns one address per replica, and Debian's nginx is too old for `resolve`.
    "deploy/nginx/upstream.conf": {
        "resolver 127.0.0.11 valid=2s ipv6=off;": "",
        "server api:8172 resolve max_fails=0;": "{replicas}",
    },
    "deploy/postgres/databases.sh": {},
}
REPLICA = f"server {HOST}:{{port}} max_fails=0;"
# The only file of our images that names a host.
IN_IMAGE = {"/app/deploy/workspace.yaml": "deploy/workspace.yaml"}

ADDRESS = re.compile(r"\b(?P<service>" + "|".join(PORTS) + r"):(?P<port>\d+)\b")
OWN_ADDRESS = re.compile(r"\b(?P<host>127\.0\.0\.1|localhost):(?P<port>\d+)\b")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:opt/venv|app|etc|var|tmp|data)(?![\w-])(?:/[\w.-]+)*")


@dataclasses.dataclass
class Places:
    """Addresses and folders of the stack's processes. A replica is named `api-1`, others like their service."""

    folder: Path
    variables: dict[str, str]
    """The contents of .env."""
    ports: dict[str, int] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.services = compose.services(self.variables)
        self.replicas = [f"api-{number}" for number in range(1, 1 + int(self.services["api"]["deploy"]["replicas"]))]
        names = [*(name for name in PORTS if name != "api"), *self.replicas]
        self.ports = dict(zip(names, lasting_ports(len(names)), strict=True))

    def environment(self, process: str) -> dict[str, str]:
        """Return the process's section of docker-compose.yml."""
        return self.moved_environment(process, self.services[service_of(process)].get("environment", {}))

    def moved_environment(self, process: str, given: dict[str, str]) -> dict[str, str]:
        """Return these variables with the addresses and folders of this machine."""
        here = {
            **dict.fromkeys(HOSTS, HOST),
            **dict.fromkeys(OWN_PORT, str(self.ports[process])),
            **dict.fromkeys(POSTGRES_PORT, str(self.ports["postgres"])),
        }
        return {name: here.get(name) or self.moved(process, value) for name, value in given.items()}

    def moved(self, process: str, text: str) -> str:
        """Return a string of this process's container with the addresses and folders of this machine."""
        own = PORTS[service_of(process)]

        def address(match: re.Match[str]) -> str:
            service, port = match["service"], int(match["port"])
            assert port == PORTS[service], f"{process}: {match[0]} is not where {service} listens"
            return f"{HOST}:{self.ports[self.replicas[0] if service == 'api' else service]}"

        def own_address(match: re.Match[str]) -> str:
            return f"{match['host']}:{self.ports[process]}" if int(match["port"]) == own else match[0]

        # Its own variables first, because the result of the other replacement has that form.
        text = ADDRESS.sub(address, OWN_ADDRESS.sub(own_address, text))
        text = text.replace("--host=0.0.0.0", f"--host={HOST}").replace(
            f"--port={own}", f"--port={self.ports[process]}"
        )
        text = ABSOLUTE_PATH.sub(lambda match: str(self.path(process, match[0])), text)
        assert "0.0.0.0" not in text, f"{process}: {text}"  # noqa: S104 - so that nothing listens there
        return text

    def path(self, process: str, path: str) -> Path:
        """Return the location of a path of the process's container."""
        mounted = {
            target: here for target, here in self._mounts(process).items() if f"{path}/".startswith(f"{target}/")
        }
        if mounted:
            target = max(mounted, key=len)
            return mounted[target] / path[len(target) :].lstrip("/")
        return self.root(process) / path.lstrip("/")

    def root(self, process: str) -> Path:
        """Return the folder that replaces the root of the process's container."""
        return self.folder / process

    def prepare(self, process: str) -> None:
        """Create its folders, and write the files that it reads."""
        service = self.services[service_of(process)]
        for place in ("/tmp", *(each.partition(":")[0] for each in service.get("tmpfs", []))):
            self.path(process, place).mkdir(parents=True, exist_ok=True)
        for source, target in self._volumes(process):
            if not source.startswith("."):
                self.path(process, target).mkdir(parents=True, exist_ok=True)
        for target, source in self._files(process).items():
            file = self.path(process, target)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self._moved_file(process, source))

    def _moved_file(self, process: str, source: str) -> str:
        text = (compose.ROOT / source).read_text("utf-8")
        replicas = "\n    ".join(REPLICA.format(port=self.ports[each]) for each in self.replicas)
        for old, new in FILES[source].items():
            assert text.count(old) == 1, f"{source} no longer says {old!r}: change tests/support/places.py with it"
            text = text.replace(old, new.format(replicas=replicas, **self.ports))
        return self.moved(process, text)

    def _mounts(self, process: str) -> dict[str, Path]:
        """Return folder or file of the container → its location, for those outside the process's root."""
        found = {"/opt/venv": Path(sys.prefix), "/app": compose.ROOT}
        for source, target in self._volumes(process):
            if not source.startswith("."):
                found[target] = self.folder / "volumes" / source
            elif (compose.ROOT / source).is_dir():
                found[target] = compose.ROOT / source
        return found | {target: self.root(process) / target.lstrip("/") for target in self._files(process)}

    def _files(self, process: str) -> dict[str, str]:
        """Return file of the container → file in the repository that it is made from, with other addresses."""
        mounted = {target: os.path.normpath(source) for source, target in self._volumes(process)}
        files = {target: source for target, source in mounted.items() if (compose.ROOT / source).is_file()}
        return files | (IN_IMAGE if "build" in self.services[service_of(process)] else {})

    def _volumes(self, process: str) -> list[tuple[str, str]]:
        volumes = self.services[service_of(process)].get("volumes", [])
        return [(source, target) for source, target, *_ in (volume.split(":") for volume in volumes)]


def lasting_ports(count: int) -> list[int]:
    """Return free ports below the ephemeral range, so that no client gets the port of a server that is stopped."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((HOST, port))
            found.add(port)
    return list(found)


def service_of(process: str) -> str:
    """Return the service that a process belongs to."""
    return "api" if process.startswith("api-") else process
