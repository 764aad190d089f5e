"""A server that can't start is an error that says why."""

from pathlib import Path

import pytest

from tests.support.servers import RedisServer, ServerDidNotStart


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerDidNotStart, match=r"redis ended with status 1(?s:.*)256\.0\.0\.1"):
        RedisServer(tmp_path, host="256.0.0.1").start()
