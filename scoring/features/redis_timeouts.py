"""Timeouts for Feast's Redis online store, which waits for ever without (feast 0.67, redis-py 7.4)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feast import RepoConfig


def bound_redis_reads(config: "RepoConfig", timeout_s: float) -> None:
    """Let no read of the Redis that `config` names wait longer than `timeout_s`; another online store stays as it is.

    A client that gave up waiting leaves a thread behind until the read ends, and redis-py retries three times with
    pauses of seconds. What the connection string says itself is kept.
    """
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig

    store = config.online_store
    if isinstance(store, RedisOnlineStoreConfig):
        # A cluster's client, and GLIDE, take no `retry`: theirs are bounded by the timeouts alone.
        retries = store.redis_type != "redis_cluster" and store.client != "glide"
        store.connection_string = with_timeouts(store.connection_string, timeout_s, retries=retries)


def with_timeouts(connection_string: str, timeout_s: float, *, retries: bool) -> str:
    """`connection_string` (`host:port,name=value,..`) with the parameters that it lacks.

    Args:
        connection_string: Feast's; each value is read as JSON where it is JSON.
        timeout_s: for connecting and for each reply.
        retries: also say that nothing is tried again.
    """
    wanted = {"socket_timeout": f"{timeout_s:g}", "socket_connect_timeout": f"{timeout_s:g}"}
    if retries:
        wanted["retry"] = "null"
    named = {part.partition("=")[0] for part in connection_string.split(",")}
    return ",".join([connection_string, *(f"{name}={value}" for name, value in wanted.items() if name not in named)])
