"""All services of docker-compose.yml except monitoring, on this machine, as `docker compose up` runs them."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tests.support import stand_ins
from tests.support.compose_services import Service
from tests.support.places import Places, service_of
from tests.support.servers import HOST


@dataclasses.dataclass
class Stack:
    """The processes by name; `ended` lists those that ended without being stopped."""

    places: Places
    processes: dict[str, Service]
    ended: list[str] = dataclasses.field(default_factory=list)

    def __getitem__(self, process: str) -> Service:
        return self.processes[process]

    @property
    def replicas(self) -> list[Service]:
        return [self[name] for name in self.places.replicas]

    @property
    def url(self) -> str:
        """The address for callers."""
        return f"http://{HOST}:{self['proxy'].port}"

    def address(self, process: str) -> str:
        return f"http://{HOST}:{self[process].port}"


@contextlib.contextmanager
def up(folder: Path, variables: dict[str, str]) -> Iterator[Stack]:
    """Start the stack until it is healthy. Processes that end are restarted, as by `restart: unless-stopped`."""
    places = Places(folder, variables)
    processes = {name: stand_ins.make(name, places) for name in places.ports}
    stack = Stack(places, processes)
    over = threading.Event()
    keepers = [threading.Thread(target=_keep_up, args=(stack, each, over)) for each in processes.values()]
    try:
        start_in_order(stack)
        for keeper in keepers:
            keeper.start()
        yield stack
    finally:
        over.set()
        for keeper in keepers:
            if keeper.is_alive():
                keeper.join()
        for process in processes.values():
            process.kill()


def start_in_order(stack: Stack) -> None:
    """Start each service when its dependencies are healthy."""
    started: dict[str, list[Future[None]]] = {}

    def start(process: Service) -> None:
        for needed in process.definition.get("depends_on", {}):
            for each in started[needed]:
                each.result()
        process.start()

    names = sorted(stack.processes, key=lambda name: list(stack.places.services).index(service_of(name)))
    with ThreadPoolExecutor(len(names)) as pool:
        for name in names:  # nothing depends on what comes later in the file
            started.setdefault(service_of(name), []).append(pool.submit(start, stack[name]))
    for futures in started.values():
        for each in futures:
            each.result()


def _keep_up(stack: Stack, process: Service, over: threading.Event) -> None:
    while not over.wait(0.1):
        with process.lock:
            if process.wanted and not process.running and not over.is_set():
                stack.ended.append(process.name)
                time.sleep(0.1)
                process.start()
