"""Timeouts for Feast's Redis online store, which has none (feast 0.67, redis-py 7.4)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feast import RepoConfig

REDIS_TIMEOUT_S = 5.0
"""For a materialization: to connect, and for each reply, which takes milliseconds."""


def bound_redis(config: "RepoConfig", timeout_s: float) -> None:
    """Let no call of the Redis that `config` names wait longer than `timeout_s`; other online stores stay unchanged.

    A client that gave up waiting leaves a thread behind until the read ends, and redis-py retries three times with
    pauses of seconds. What the connection string sets is kept.
    """
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig

    store = config.online_store
    if isinstance(store, RedisOnlineStoreConfig):
        # A cluster's client, and GLIDE, take no `retry`: only the timeouts bound theirs.
        retries = store.redis_type != "redis_cluster" and store.client != "glide"
        store.connection_string = with_timeouts(store.connection_string, timeout_s, retries=retries)


def with_timeouts(connection_string: str, timeout_s: float, *, retries: bool) -> str:
    """Feast's `connection_string` (`host:port,name=value,..`) with the parameters that it lacks.

    `timeout_s` is for connecting and for each reply; `retries` adds that nothing is retried.
    """
    wanted = {"socket_timeout": f"{timeout_s:g}", "socket_connect_timeout": f"{timeout_s:g}"}
    if retries:
        wanted["retry"] = "null"
    named = {part.partition("=")[0] for part in connection_string.split(",")}
    return ",".join([connection_string, *(f"{name}={value}" for name, value in wanted.items() if name not in named)])
