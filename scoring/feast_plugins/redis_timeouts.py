"""Timeouts for Feast's Redis online store, which has none (feast 0.67, redis-py 7.4)."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feast import RepoConfig

REDIS_TIMEOUT_S = 5.0
"""Limit for connecting, and for each reply, during a materialization. A reply normally takes milliseconds."""


def bound_redis(config: "RepoConfig", timeout_s: float) -> None:
    """Limit reads from the configured Redis to `timeout_s`, and disable retries. Do not change other online stores.

    When a caller gives up waiting, its thread continues until the read ends, and redis-py retries three times with
    pauses of seconds. Parameters that are set in the connection string are kept.
    """
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig

    store = config.online_store
    if isinstance(store, RedisOnlineStoreConfig):
        # The clients for clusters and GLIDE have no parameter `retry`: only the timeouts limit them.
        disable_retries = store.redis_type != "redis_cluster" and store.client != "glide"
        store.connection_string = with_timeouts(store.connection_string, timeout_s, disable_retries=disable_retries)


def with_timeouts(connection_string: str, timeout_s: float, *, disable_retries: bool) -> str:
    """Add missing parameters to Feast's `connection_string` (`host:port,name=value,..`).

    `timeout_s` limits connecting and each reply.
    """
    wanted = {"socket_timeout": f"{timeout_s:g}", "socket_connect_timeout": f"{timeout_s:g}"}
    if disable_retries:
        wanted["retry"] = "null"
    named = {part.partition("=")[0] for part in connection_string.split(",")}
    return ",".join([connection_string, *(f"{name}={value}" for name, value in wanted.items() if name not in named)])
