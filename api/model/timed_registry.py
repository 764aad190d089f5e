"""A model registry that is given up on in time: one that sends byte by byte would hold whoever asks for ever."""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from scoring.errors import RegistryTooSlow
from scoring.models.registry import ModelVersion, Registry

T = TypeVar("T")

# What a fetch may take beyond the limit for everything else; MLflow's own time-outs are for each read (3.17).
SLOWEST_BYTES_A_S = 1_000_000


class TimedRegistry:
    """A `Registry` that gives up in time. Called from one thread at a time.

    A question that was given up on goes on in its thread, which nobody can end: until it does, no other is asked.
    """

    def __init__(self, registry: Registry, limit_s: float) -> None:
        """Args: the registry, and how many seconds an answer may take."""
        self._registry = registry
        self._limit_s = limit_s
        self._asking: threading.Thread | None = None
        self._bytes = 0

    def resolve(self, name: str, alias: str) -> ModelVersion:
        """See `Registry.resolve`."""
        return self._ask(lambda: self._registry.resolve(name, alias), self._limit_s)

    def version(self, name: str, version: int) -> ModelVersion:
        """See `Registry.version`."""
        return self._ask(lambda: self._registry.version(name, version), self._limit_s)

    def size(self, model: ModelVersion) -> int:
        """See `Registry.size`."""
        self._bytes = self._ask(lambda: self._registry.size(model), self._limit_s)
        return self._bytes

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        """See `Registry.download`. May take longer by what the files take whose size was asked for before."""
        limit_s = self._limit_s + self._bytes / SLOWEST_BYTES_A_S
        return self._ask(lambda: self._registry.download(model, destination, file), limit_s)

    def _ask(self, question: Callable[[], T], limit_s: float) -> T:
        if self._asking is not None and self._asking.is_alive():
            raise RegistryTooSlow(self._limit_s)
        answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((question(), None))
            except BaseException as error:  # it belongs to whoever asked
                answers.put((None, error))

        self._asking = threading.Thread(target=ask, name="registry", daemon=True)
        self._asking.start()
        try:
            answer, error = answers.get(timeout=limit_s)
        except queue.Empty:
            raise RegistryTooSlow(self._limit_s) from None
        self._asking = None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # there is one where there is no error
