"""The API as a separate process, with a real Redis."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.api_server import ApiServer
from tests.support.servers import RedisServer
from tests.support.worlds import build_driver_world


@contextlib.contextmanager
def serving(**environment: str) -> Iterator[ApiServer]:
    """Start the API with these settings on 20 drivers and an ElasticNet. It is ready in the block and stopped after."""
    with tempfile.TemporaryDirectory(prefix="serving-benchmark-") as name, contextlib.ExitStack() as stack:
        folders = [Path(name) / each for each in ("redis", "world", "api")]
        for folder in folders:
            folder.mkdir()
        redis = RedisServer(folders[0])
        redis.start()
        stack.callback(redis.stop)
        world = build_driver_world(folders[1], redis=f"{redis.host}:{redis.port}")
        server = ApiServer(folders[2], environment=world.environment | environment)
        server.start()
        stack.callback(server.stop)
        yield server


def percentile(values: list[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
