"""`make soak`: half the capacity for MINUTES. Fails if memory grows by over 5 %, or on a status other than 200 or 503.

503 responses are counted and reported: on a machine that also does other work, some requests reach their deadline.
"""

import asyncio
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.clients import Load, Response, apply_load, load
from benchmarks.online_world import percentile, serving
from tests.support.api_server import ApiServer

CLIENTS = 8
MEASURED_S = 10.0
GROWTH_ALLOWED = 0.05


def resident_bytes(server: ApiServer) -> int:
    """Return the resident memory of the serving process."""
    if server.process is None:
        raise RuntimeError("the server has exited")
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


async def soak(server: ApiServer, rate: float, seconds: float) -> tuple[list[Response], list[int]]:
    """Return the responses, and the memory measured once per second."""
    memory: list[int] = []

    async def watch() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            memory.append(resident_bytes(server))
            await asyncio.sleep(1)

    responses, _ = await asyncio.gather(apply_load(server.port, Load(CLIENTS, seconds, rate=rate)), watch())
    return responses, memory


def main(minutes: float) -> int:
    """Print the measurements. Return 1 if the soak test fails."""
    with serving() as server:
        load(server.port, CLIENTS, MEASURED_S)  # warm-up
        capacity = len(load(server.port, CLIENTS, MEASURED_S)) / MEASURED_S
        print(
            f"capacity {capacity:.0f} requests/s with {CLIENTS} clients; {minutes:g} minutes at half of it", flush=True
        )
        responses, memory = asyncio.run(soak(server, capacity / 2, minutes * 60))
    tenth = max(1, len(memory) // 10)
    first, last = statistics.median(memory[:tenth]), statistics.median(memory[-tenth:])
    growth = last / first - 1
    took_s = [response.took_s for response in responses]
    print(f"{len(responses)} requests, {len(responses) / (minutes * 60):.0f}/s")
    for status, count in sorted(Counter(response.status for response in responses).items()):
        print(f"status {status}: {count}")
    print(f"p50 {percentile(took_s, 0.5) * 1e3:.1f} ms, p99 {percentile(took_s, 0.99) * 1e3:.1f} ms")
    print(f"memory {first / 2**20:.0f} MiB in the first tenth, {last / 2**20:.0f} MiB in the last: {growth:+.1%}")
    failed = any(response.status not in {200, 503} for response in responses)
    return int(failed or growth > GROWTH_ALLOWED)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
