"""A client that sends large tables, beside the load of small requests."""

import contextlib
import threading
from collections.abc import Iterator

import httpx
import pyarrow as pa

from benchmarks.online.contestants import Contestant, UnexpectedAnswer

ARROW = "application/vnd.apache.arrow.stream"


@contextlib.contextmanager
def bulk_client(contestant: Contestant, drivers: range) -> Iterator[None]:
    """Send these drivers to /scores in one Arrow stream, again after each answer, until the block ends."""
    table, sink = pa.table({"driver_id": drivers}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    body, stopping, unexpected = bytes(sink.getvalue()), threading.Event(), []

    def send() -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not stopping.is_set():
                url = f"http://{contestant.host}:{contestant.port}/scores"
                answer = client.post(url, content=body, headers={"Content-Type": ARROW})
                if answer.status_code != 200:
                    unexpected.append(UnexpectedAnswer(contestant.name, answer.status_code, answer.content))
                    return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    if unexpected:
        raise unexpected[0]
