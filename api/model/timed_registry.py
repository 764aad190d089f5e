"""A time limit for the calls of a model registry: one that sends byte by byte would block its caller forever."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from scoring.errors import RegistryTooSlow
from scoring.models.registry import ModelVersion, Registry

T = TypeVar("T")

# A download may take longer than other calls, by its size. MLflow's own timeouts apply to each read (3.17).
SLOWEST_BYTES_PER_S = 1_000_000


class TimedRegistry:
    """A `Registry` whose calls have a time limit. Called from one thread at a time.

    A call that exceeds it continues in its thread, which can't be interrupted. Until then, further calls fail at once.
    """

    def __init__(self, registry: Registry, limit_s: float) -> None:
        """Limit each call of `registry` to `limit_s` seconds."""
        self._registry = registry
        self._limit_s = limit_s
        self._executor = ThreadPoolExecutor(1, "registry")
        self._running: Future[Any] | None = None
        self._bytes = 0

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """See `Registry.resolve`."""
        return self._call(lambda: self._registry.resolve(name, alias), self._limit_s)

    def version(self, name: str, version: int) -> ModelVersion:
        """See `Registry.version`."""
        return self._call(lambda: self._registry.version(name, version), self._limit_s)

    def size(self, model: ModelVersion) -> int:
        """See `Registry.size`."""
        self._bytes = self._call(lambda: self._registry.size(model), self._limit_s)
        return self._bytes

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        """See `Registry.download`. The limit is longer by the last returned size."""
        limit_s = self._limit_s + self._bytes / SLOWEST_BYTES_PER_S
        return self._call(lambda: self._registry.download(model, destination, file), limit_s)

    def _call(self, function: Callable[[], T], limit_s: float) -> T:
        if self._running is not None and not self._running.done():
            raise RegistryTooSlow(self._limit_s)
        running: Future[T] = self._executor.submit(function)
        self._running = running
        if not wait([running], limit_s).done:
            raise RegistryTooSlow(self._limit_s)
        return running.result()
