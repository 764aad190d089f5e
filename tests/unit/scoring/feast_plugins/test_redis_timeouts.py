"""Which timeouts a Redis client gets beyond what the connection string says."""

import pytest

from scoring.feast_plugins.redis_timeouts import with_timeouts


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("host:6379", "host:6379,socket_timeout=0.3,socket_connect_timeout=0.3,retry=null"),
        ("host:6379,db=1,socket_timeout=2", "host:6379,db=1,socket_timeout=2,socket_connect_timeout=0.3,retry=null"),
        ("a:1,b:2,ssl=true", "a:1,b:2,ssl=true,socket_timeout=0.3,socket_connect_timeout=0.3,retry=null"),
    ],
)
def test_what_the_connection_string_says_is_kept_and_the_rest_is_added(given: str, expected: str) -> None:
    assert with_timeouts(given, 0.3, disable_retries=True) == expected


def test_a_client_that_knows_no_retries_is_told_of_none() -> None:
    assert (
        with_timeouts("host:6379", 0.3, disable_retries=False)
        == "host:6379,socket_timeout=0.3,socket_connect_timeout=0.3"
    )


def test_redis_py_applies_the_timeouts_and_no_retries() -> None:
    from feast.infra.online_stores.redis import RedisOnlineStore
    from redis import Redis

    (node,), parameters = RedisOnlineStore._parse_connection_string(
        with_timeouts("host:6379", 0.25, disable_retries=True)
    )
    client = Redis(**node, **parameters)
    connection = client.connection_pool.make_connection()
    assert connection.socket_timeout == connection.socket_connect_timeout == 0.25
    assert connection.retry.get_retries() == 0
    client.close()
