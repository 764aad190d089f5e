"""Rounds of load that alternate between servers, so that other load on the machine affects all of them alike."""

import math
import random
from collections.abc import Iterator

import msgspec

from benchmarks.online.bulk import bulk_client
from benchmarks.online.contestants import Contestant
from benchmarks.online.fleet import Fleet
from benchmarks.online.wrk import Load, run_wrk
from benchmarks.processes import cpu_s, memory_mib
from benchmarks.stopwatch import Stopwatch
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
    rounds: int = 5
    """The largest number of rounds."""
    longest_queue_s: float = math.inf
    """A server that takes longer for one request of each connection gets requests over one connection."""


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
    connections: int = 16


def measure(fleet: Fleet, workload: Workload, rounds: int, seconds: float) -> Iterator[Round]:
    """Load each server once per round, in an order that rotates from round to round."""
    loads = {each.name: _bearable(fleet, each, workload, seconds) for each in fleet.contestants}
    for number in range(min(rounds, workload.rounds)):
        turn = number % len(fleet.contestants)
        for contestant in fleet.contestants[turn:] + fleet.contestants[:turn]:
            load = loads[contestant.name]
            yield _one(fleet, contestant, *load, seed=number + 1)
            if workload.bulk:
                with bulk_client(contestant, fleet.drivers):
                    beside = _one(fleet, contestant, *load, seed=number + 1)
                yield msgspec.structs.replace(beside, server=f"{contestant.name}-bulk")


def _bearable(fleet: Fleet, contestant: Contestant, workload: Workload, seconds: float) -> tuple[Workload, float]:
    """Warm a server up. Return the load of each round, and its seconds.

    Over one connection, the load lasts as long as three answers take.
    """
    watch, times = Stopwatch(), list[float]()
    while len(times) < 10 and (len(times) < 2 or watch.elapsed_s < seconds):
        one = Stopwatch()
        contestant.ask(random.sample(fleet.drivers, workload.ids))
        times.append(one.elapsed_s)
    if min(times) * workload.connections > workload.longest_queue_s:
        return msgspec.structs.replace(workload, connections=1), max(seconds, math.ceil(3.3 * min(times)))
    _load(fleet, contestant, workload, WARM_UP_S, seed=0)
    return workload, seconds


def _one(fleet: Fleet, contestant: Contestant, workload: Workload, seconds: float, seed: int) -> Round:
    cpu, redis_cpu = _cpu_s(contestant), _cpu_s(fleet.redis)
    load = _load(fleet, contestant, workload, seconds, seed)
    cpu, redis_cpu = _cpu_s(contestant) - cpu, _cpu_s(fleet.redis) - redis_cpu
    answered = load.requests - load.refused
    return Round(
        server=contestant.name,
        requests_s=answered / load.seconds,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        cpu_us=cpu * 1e6 / max(1, load.requests),
        redis_cpu_us=redis_cpu * 1e6 / max(1, load.requests),
        memory_mib=memory_mib(process_of(contestant)),
        failed=load.refused + load.broken,
        connections=workload.connections,
    )


def _load(fleet: Fleet, contestant: Contestant, workload: Workload, seconds: float, seed: int) -> Load:
    template = contestant.template.replace("COUNT", str(workload.ids))
    return run_wrk(contestant.url, template, workload.ids, fleet.drivers, workload.connections, seconds, seed)


def _cpu_s(server: Server | None) -> float:
    return 0.0 if server is None else cpu_s(process_of(server))


def process_of(server: Server) -> int:
    """Return the process id of a running server."""
    if server.process is None:
        raise RuntimeError(f"{server.name} has exited; its log is {server.log}")
    return server.process.pid
