"""`python -m benchmarks.overload`: what becomes of requests when ten times as many clients come as the cap allows."""

import asyncio
import itertools
import time

import uvloop

from benchmarks.clients import Load, Taken, load, put_on
from benchmarks.online_world import percentile, serving
from tests.support.api_server import Connection

# Threads, and requests that may wait beside as many: at the first cap, what is accepted waits for no other request.
CAPS = ((1, 0), (2, 2))
SECONDS = 10.0
PAUSE_S = 0.2


async def look(port: int) -> list[float]:
    """Seconds that each look at health and metrics took meanwhile."""
    took_s = []
    until = time.monotonic() + SECONDS
    async with Connection(port) as connection:
        for path in itertools.cycle(("/live", "/ready", "/metrics")):
            took_s.append((await connection.ask("GET", path)).took_s)
            await asyncio.sleep(0.1)
            if time.monotonic() > until:
                return took_s
    return took_s


def tell(name: str, took_s: list[float]) -> None:
    """Print one line of milliseconds."""
    p50, p95, p99, most = (percentile(took_s, share) * 1e3 for share in (0.5, 0.95, 0.99, 1.0))
    print(f"{name:34} n={len(took_s):6}  p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f}  max {most:6.1f} ms")


async def both(port: int, clients: int) -> tuple[list[Taken], list[float]]:
    """The load, and the looks meanwhile."""
    return await asyncio.gather(put_on(port, Load(clients, SECONDS, pause_s=PAUSE_S)), look(port))


def main() -> None:
    """Print a line each for one client, as many as the cap allows, and ten times as many."""
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
            answers, looks = uvloop.run(both(server.port, 10 * allowed))
        accepted = [took_s for status, took_s in answers if status == 200]
        refused = [took_s for status, took_s in answers if status == 503]
        print(f"{threads} at once, {waiting} waiting")
        tell("one client", [took_s for _, took_s in alone])
        tell(f"{allowed} clients, as the cap allows", [took_s for status, took_s in at_cap if status == 200])
        tell(f"{10 * allowed} clients: accepted", accepted)
        tell(f"{10 * allowed} clients: refused", refused)
        tell("meanwhile /live /ready /metrics", looks)
        within = sum(each < 0.05 for each in refused) / len(refused)
        print(f"refused within 50 ms: {within:.2%}; other answers: {len(answers) - len(accepted) - len(refused)}")


if __name__ == "__main__":
    main()
