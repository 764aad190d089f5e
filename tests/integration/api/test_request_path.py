"""How many modules a reader opens to follow POST /inference, and whether docs/architecture.md names them."""

import dataclasses
import json
import os
import re
import signal
import sys
from pathlib import Path

from tests.support.api_server import ROOT, ApiServer
from tests.support.servers import RedisServer, wait_until
from tests.support.worlds import build_driver_world

MOST_MODULES = 15


@dataclasses.dataclass
class TracedApi(ApiServer):
    """The API with a trace of the calls between its modules."""

    warm = False

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {"TRACE_FILE": str(self.trace)}

    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / "tests" / "support" / "traced_api.py")]

    @property
    def trace(self) -> Path:
        return self.directory / "trace.json"

    def path_of_a_request(self) -> set[str]:
        """Ask for three drivers. Return the modules that call another module of the project in the event loop."""
        self.trace.unlink(missing_ok=True)
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGUSR1)
        self.ask().raise_for_status()
        os.kill(self.process.pid, signal.SIGUSR1)
        wait_until(self.trace.exists, "the trace")
        callers = {caller for callers in json.loads(self.trace.read_text()).values() for caller in callers}
        return callers - {"api/__main__.py"}  # which runs the event loop


def test_a_reader_follows_a_request_through_few_modules(tmp_path: Path, redis_server: RedisServer) -> None:
    world = build_driver_world(tmp_path / "world", f"{redis_server.connection_string},db=14")
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## The path of an online request")[2]
    steps = section.partition("\n## ")[0]
    with TracedApi(tmp_path, environment=world.environment) as api:
        # A request whose lookup takes longer than 10 ms is answered by a thread.
        paths = [path for _ in range(10) if "scoring/models/model.py" in (path := api.path_of_a_request())]
    path = min(paths, key=len)
    assert len(path) <= MOST_MODULES, sorted(path)
    assert [module for module in sorted(path) if not re.search(rf"[`/]{Path(module).name}`", steps)] == []
