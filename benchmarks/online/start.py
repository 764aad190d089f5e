"""Cost of starting the API and a BentoML service, from the command to the first positive readiness response."""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterator

import msgspec

from benchmarks.online.contestants import BentoMl, BentoMlRegistry, Contestant, Ours
from benchmarks.online.fleet import make, prepare
from benchmarks.online.world import OnlineWorld, open_world
from benchmarks.processes import cpu_s, memory_mib
from benchmarks.results import Result, code_version, now, this_machine
from benchmarks.scale import Scale
from benchmarks.stopwatch import Stopwatch
from benchmarks.tables import spread, table
from tests.support.servers import MlflowServer


class OursSqlite(Ours):
    """The product, which reads the registry from its SQLite file."""

    name = "ours-sqlite"


SECTION = "start"
TITLE = "Startup until ready"
COMPARED: tuple[type[Contestant], ...] = (Ours, OursSqlite, BentoMlRegistry, BentoMl)
SERVER_NAMES = {
    "ours": "**model-serving**",
    "ours-sqlite": "**model-serving**, registry in a SQLite file",
    "bentoml-registry": "BentoML, model from the MLflow registry",
    "bentoml": "BentoML, model from a file",
}


class Start(msgspec.Struct, frozen=True):
    """One server's measurements in one start."""

    server: str
    seconds: float
    cpu_s: float
    """CPU of all its processes, including those that have exited."""
    memory_mib: float
    """Resident memory once it is ready. A page shared by n processes counts as 1/n of a page in each."""


def run(scale: Scale) -> Iterator[Result]:
    """Start each in turn, `scale.rounds` times."""
    versions = prepare(COMPARED)
    machine, began, watch = this_machine(), now(), Stopwatch()
    with open_world("redis") as (world, _), _registry_server(world) as served:
        starts = [
            _start(make(kind, world if kind is OursSqlite else served, "elasticnet"))
            for number in range(scale.rounds)
            for kind in (COMPARED if number % 2 == 0 else reversed(COMPARED))
        ]
    rows = [msgspec.to_builtins(each) for each in starts]
    yield Result(SECTION, code_version(), began, watch.elapsed_s, machine, versions, rows)


def as_table(result: Result) -> str:
    """Return one table row per server: medians over its starts."""
    grouped = by_server(result)
    rows = (
        [
            SERVER_NAMES[name],
            spread([each.seconds for each in starts]),
            spread([each.cpu_s for each in starts]),
            spread([each.memory_mib for each in starts]),
        ]
        for name, starts in grouped.items()
    )
    return table(("server", "s", "CPU s", "MiB"), rows)


def by_server(result: Result) -> dict[str, list[Start]]:
    """Return server → its starts."""
    starts = [msgspec.convert(row, Start) for row in result.rows]
    return {kind.name: [each for each in starts if each.server == kind.name] for kind in COMPARED}


def median(starts: list[Start], figure: str) -> float:
    """Return the median over the starts of one of Start's figures."""
    return float(statistics.median(getattr(each, figure) for each in starts))


@contextlib.contextmanager
def _registry_server(world: OnlineWorld) -> Iterator[OnlineWorld]:
    """Return the same world, with an MLflow server for its registry."""
    folder = world.folder / "mlflow"
    folder.mkdir(exist_ok=True)
    with _SqliteRegistry(folder, database=world.world.environment["MLFLOW_TRACKING_URI"]) as server:
        environment = world.world.environment | {"MLFLOW_TRACKING_URI": server.uri}
        yield dataclasses.replace(world, world=dataclasses.replace(world.world, environment=environment))


@dataclasses.dataclass
class _SqliteRegistry(MlflowServer):
    """An MLflow server over an existing database."""

    database: str = ""

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {"_MLFLOW_SERVER_FILE_STORE": self.database}


def _start(contestant: Contestant) -> Start:
    watch = Stopwatch()
    try:
        contestant.start()
        if contestant.process is None:
            raise RuntimeError(f"{contestant.name} has exited; its log is {contestant.log}")
        process = contestant.process.pid
        return Start(contestant.name, watch.elapsed_s, cpu_s(process), memory_mib(process))
    finally:
        contestant.stop()
