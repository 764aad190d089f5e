"""Where `model-serving up` listens, over both versions of IP."""

import socket

import pytest

from cli.processes import CannotStart, check_port_free
from cli.serve import _local_host
from scoring.settings import Settings


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_is_busy_while_a_server_listens_on_it(family: socket.AddressFamily, host: str) -> None:
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        with pytest.raises(CannotStart, match=f"API can't listen on port {port} of {host} .*: stop it"):
            check_port_free(host, port, "API", "stop it")
    check_port_free(host, port, "API", "stop it")


@pytest.mark.parametrize(
    ("host", "reached_at"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("fe80::1", "[fe80::1]")],  # noqa: S104
)
def test_the_api_is_reached_at_the_address_it_listens_on(host: str, reached_at: str) -> None:
    assert _local_host(Settings.from_environment({"SERVING_MODEL_NAME": "m", "SERVING_HOST": host})) == reached_at
