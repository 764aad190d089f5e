"""`make soak`: half the capacity for MINUTES. Fails if memory grows by over 5 %, or on what is neither 200 nor 503.

A 503 is counted and told: on a machine that does other work too, some requests meet their deadline.
"""

import asyncio
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.clients import Load, Taken, load, put_on
from benchmarks.online_world import percentile, serving
from tests.support.api_server import ApiServer

CLIENTS = 8
MEASURED_S = 10.0
GROWTH_ALLOWED = 0.05


def resident_bytes(server: ApiServer) -> int:
    """Memory of the process that serves."""
    if server.process is None:
        raise RuntimeError("the server is gone")
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


async def soak(server: ApiServer, rate: float, seconds: float) -> tuple[list[Taken], list[int]]:
    """The answers, and the memory once a second."""
    memory: list[int] = []

    async def watch() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            memory.append(resident_bytes(server))
            await asyncio.sleep(1)

    answers, _ = await asyncio.gather(put_on(server.port, Load(CLIENTS, seconds, rate=rate)), watch())
    return answers, memory


def main(minutes: float) -> int:
    """Print what was measured. Returns 1 where it is not as it should be."""
    with serving() as server:
        load(server.port, CLIENTS, MEASURED_S)  # warm
        capacity = len(load(server.port, CLIENTS, MEASURED_S)) / MEASURED_S
        print(
            f"capacity {capacity:.0f} requests/s with {CLIENTS} clients; {minutes:g} minutes at half of it", flush=True
        )
        answers, memory = asyncio.run(soak(server, capacity / 2, minutes * 60))
    tenth = max(1, len(memory) // 10)
    first, last = statistics.median(memory[:tenth]), statistics.median(memory[-tenth:])
    growth = last / first - 1
    took_s = [answer.took_s for answer in answers]
    print(f"{len(answers)} requests, {len(answers) / (minutes * 60):.0f}/s")
    for status, count in sorted(Counter(answer.status for answer in answers).items()):
        print(f"status {status}: {count}")
    print(f"p50 {percentile(took_s, 0.5) * 1e3:.1f} ms, p99 {percentile(took_s, 0.99) * 1e3:.1f} ms")
    print(f"memory {first / 2**20:.0f} MiB in the first tenth, {last / 2**20:.0f} MiB in the last: {growth:+.1%}")
    failed = any(answer.status not in {200, 503} for answer in answers)
    return int(failed or growth > GROWTH_ALLOWED)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
