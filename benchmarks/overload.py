"""`python -m benchmarks.overload`: latencies under ten times as many clients as the concurrency cap allows."""

import asyncio
import itertools
import time

import uvloop

from benchmarks.clients import Load, Response, apply_load, load
from benchmarks.online_world import percentile, serving
from tests.support.api_server import Connection

# (threads, waiting requests). With the first cap, an accepted request never waits for another one.
CAPS = ((1, 0), (2, 2))
SECONDS = 10.0
PAUSE_S = 0.2


async def probe(port: int) -> list[float]:
    """Request health and metrics periodically, and return each duration in seconds."""
    took_s = []
    until = time.monotonic() + SECONDS
    async with Connection(port) as connection:
        for path in itertools.cycle(("/live", "/ready", "/metrics")):
            took_s.append((await connection.ask("GET", path)).took_s)
            await asyncio.sleep(0.1)
            if time.monotonic() > until:
                return took_s
    return took_s


def print_percentiles(name: str, took_s: list[float]) -> None:
    """Print one line of percentiles in milliseconds."""
    p50, p95, p99, most = (percentile(took_s, share) * 1e3 for share in (0.5, 0.95, 0.99, 1.0))
    print(f"{name:34} n={len(took_s):6}  p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f}  max {most:6.1f} ms")


async def load_and_probe(port: int, clients: int) -> tuple[list[Response], list[float]]:
    """Apply the load and probe during it."""
    return await asyncio.gather(apply_load(port, Load(clients, SECONDS, pause_s=PAUSE_S)), probe(port))


def main() -> None:
    """Print a line each for one client, as many clients as the cap allows, and ten times as many."""
    for threads, waiting in CAPS:
        settings = {
            "SERVING_MAX_CONCURRENT_REQUESTS": str(threads),
            "SERVING_MAX_WAITING_REQUESTS": str(waiting),
            "SERVING_DEADLINE_S": "5",
        }
        allowed = threads + waiting
        with serving(**settings) as server:
            load(server.port, allowed, 3)
            alone = load(server.port, 1, SECONDS)
            at_cap = load(server.port, allowed, SECONDS)
            responses, probes = uvloop.run(load_and_probe(server.port, 10 * allowed))
        accepted = [took_s for status, took_s in responses if status == 200]
        refused = [took_s for status, took_s in responses if status == 503]
        others = len(responses) - len(accepted) - len(refused)
        print(f"{threads} running, {waiting} waiting")
        print_percentiles("1 client", [took_s for _, took_s in alone])
        at_cap_s = [took_s for status, took_s in at_cap if status == 200]
        print_percentiles(f"{allowed} clients, as the cap allows", at_cap_s)
        print_percentiles(f"{10 * allowed} clients, accepted", accepted)
        print_percentiles(f"{10 * allowed} clients, refused", refused)
        print_percentiles("/live /ready /metrics during load", probes)
        within = sum(each < 0.05 for each in refused) / len(refused)
        print(f"refused within 50 ms: {within:.2%}; other responses: {others}")


if __name__ == "__main__":
    main()
