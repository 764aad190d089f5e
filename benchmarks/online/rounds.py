"""Rounds of load that alternate between servers, so that other load on the machine affects all of them alike."""

from collections.abc import Iterator

import msgspec

from benchmarks.online.bulk import bulk_client
from benchmarks.online.contestants import Contestant
from benchmarks.online.fleet import Fleet
from benchmarks.online.world import DRIVERS
from benchmarks.online.wrk import Load, run_wrk
from benchmarks.processes import cpu_s, memory_mib
from tests.support.servers import Server

WARM_UP_S = 1.0


class Workload(msgspec.Struct, frozen=True):
    """The load of a section, and the model and store behind the servers."""

    ids: int
    connections: int
    model: str = "elasticnet"
    store: str = "redis"
    compared: str | None = None
    """A key of COMPARED; None if each server has its own protocol."""
    bulk: bool = False
    """Whether each round is repeated beside a client that sends large tables."""


class Round(msgspec.Struct, frozen=True):
    """One server's measurements in one round."""

    server: str
    requests_s: float
    """Answered requests per second."""
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """CPU of all the server's processes, per request."""
    redis_cpu_us: float
    """CPU of Redis, per request; 0 with an embedded store."""
    memory_mib: float
    failed: int
    """Requests without a response, or with a status other than 200."""


def measure(fleet: Fleet, workload: Workload, rounds: int, seconds: float) -> Iterator[Round]:
    """Load each server once per round, in an order that rotates from round to round."""
    for contestant in fleet.contestants:
        _load(contestant, workload, WARM_UP_S, seed=0)
    for number in range(rounds):
        turn = number % len(fleet.contestants)
        for contestant in fleet.contestants[turn:] + fleet.contestants[:turn]:
            yield _one(fleet, contestant, workload, seconds, seed=number + 1)
            if workload.bulk:
                with bulk_client(contestant, DRIVERS):
                    beside = _one(fleet, contestant, workload, seconds, seed=number + 1)
                yield msgspec.structs.replace(beside, server=f"{contestant.name}-bulk")


def _one(fleet: Fleet, contestant: Contestant, workload: Workload, seconds: float, seed: int) -> Round:
    cpu, redis_cpu = _cpu_s(contestant), _cpu_s(fleet.redis)
    load = _load(contestant, workload, seconds, seed)
    cpu, redis_cpu = _cpu_s(contestant) - cpu, _cpu_s(fleet.redis) - redis_cpu
    answered = load.requests - load.refused
    return Round(
        server=contestant.name,
        requests_s=answered / load.seconds,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        cpu_us=cpu * 1e6 / max(1, load.requests),
        redis_cpu_us=redis_cpu * 1e6 / max(1, load.requests),
        memory_mib=memory_mib(_process(contestant)),
        failed=load.refused + load.broken,
    )


def _load(contestant: Contestant, workload: Workload, seconds: float, seed: int) -> Load:
    template = contestant.template.replace("COUNT", str(workload.ids))
    return run_wrk(contestant.url, template, workload.ids, DRIVERS, workload.connections, seconds, seed)


def _cpu_s(server: Server | None) -> float:
    return 0.0 if server is None else cpu_s(_process(server))


def _process(server: Server) -> int:
    if server.process is None:
        raise RuntimeError(f"{server.name} has exited; its log is {server.log}")
    return server.process.pid
