"""`python -m benchmarks.overload`: what becomes of requests when ten times as many come as the cap allows."""

import asyncio
import itertools
import time

from benchmarks.online_world import load, percentile, serving
from tests.e2e.api_server import Answer, Connection

THREADS, WAITING = 2, 2
SECONDS = 10.0


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


def told(name: str, took_s: list[float]) -> str:
    """One line of milliseconds."""
    p50, p95, p99, most = (percentile(took_s, share) * 1e3 for share in (0.5, 0.95, 0.99, 1.0))
    return f"{name:34} n={len(took_s):6}  p50 {p50:6.1f}  p95 {p95:6.1f}  p99 {p99:6.1f}  max {most:6.1f} ms"


async def both(port: int) -> tuple[list[Answer], list[float]]:
    """Ten times the load, and the looks meanwhile."""
    allowed = THREADS + WAITING
    return await asyncio.gather(load(port, 10 * allowed, SECONDS, pause_s=0.2), look(port))


def main() -> None:
    """Print a line each for unloaded, at the cap, and ten times the cap."""
    settings = {
        "SERVING_MAX_CONCURRENT_REQUESTS": str(THREADS),
        "SERVING_MAX_WAITING_REQUESTS": str(WAITING),
        "SERVING_DEADLINE_S": "5",
    }
    with serving(**settings) as server:
        asyncio.run(load(server.port, 4, 3))
        alone = asyncio.run(load(server.port, 1, SECONDS))
        at_cap = asyncio.run(load(server.port, THREADS + WAITING, SECONDS))
        answers, looks = asyncio.run(both(server.port))
    accepted = [answer.took_s for answer in answers if answer.status == 200]
    refused = [answer.took_s for answer in answers if answer.status == 503]
    print(told("one client", [answer.took_s for answer in alone]))
    print(told(f"{THREADS + WAITING} clients, as the cap allows", [answer.took_s for answer in at_cap]))
    print(told(f"{10 * (THREADS + WAITING)} clients: accepted", accepted))
    print(told(f"{10 * (THREADS + WAITING)} clients: refused", refused))
    print(told("meanwhile /live /ready /metrics", looks))
    within = sum(each < 0.05 for each in refused) / len(refused)
    print(f"refused within 50 ms: {within:.2%}; other answers: {len(answers) - len(accepted) - len(refused)}")


if __name__ == "__main__":
    main()
