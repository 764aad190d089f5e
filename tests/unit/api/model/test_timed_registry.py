"""Calls of a registry that sends byte by byte end at a time limit, and are made again once the first has ended."""

import threading
import time
from pathlib import Path

import pytest

from api.model.timed_registry import SLOWEST_BYTES_PER_S, TimedRegistry
from scoring.errors import AliasNotSet, RegistryTooSlow
from scoring.models.registry import ModelVersion

VERSION = ModelVersion("ranker", 1)


class SlowRegistry:
    """A `Registry` whose files arrive when `arrived` is set."""

    def __init__(self, size: int = 0) -> None:
        self.arrived = threading.Event()
        self.fetches = 0
        self._size = size

    def resolve(self, name: str, alias: str) -> ModelVersion:
        if alias != "champion":
            raise AliasNotSet(name, alias)
        return VERSION

    def version(self, name: str, version: int) -> ModelVersion:
        return ModelVersion(name, version)

    def size(self, model: ModelVersion) -> int:
        return self._size

    def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
        self.fetches += 1
        self.arrived.wait(10)
        return destination


def test_a_slow_download_ends_at_the_limit_and_is_not_repeated_while_it_runs(tmp_path: Path) -> None:
    server = SlowRegistry()
    registry = TimedRegistry(server, limit_s=0.2)
    assert registry.size(VERSION) == 0
    began = time.monotonic()
    messages = set()
    for _ in range(5):  # the first waits and the others fail at once, with one message, which is logged once
        with pytest.raises(RegistryTooSlow) as caught:
            registry.download(VERSION, tmp_path)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert time.monotonic() - began < 0.2 * 3
    assert server.fetches == 1
    server.arrived.set()
    until = time.monotonic() + 5
    while True:
        try:
            assert registry.download(VERSION, tmp_path) == tmp_path
            break
        except RegistryTooSlow:
            assert time.monotonic() < until
    assert server.fetches == 2


def test_the_limit_of_a_download_grows_with_its_size(tmp_path: Path) -> None:
    server = SlowRegistry(size=5 * SLOWEST_BYTES_PER_S)
    registry = TimedRegistry(server, limit_s=0.05)
    registry.size(VERSION)
    threading.Timer(0.4, server.arrived.set).start()
    assert registry.download(VERSION, tmp_path) == tmp_path


def test_results_and_errors_of_the_registry_are_passed_on() -> None:
    registry = TimedRegistry(SlowRegistry(), limit_s=5)
    assert registry.resolve("ranker", "champion") == registry.version("ranker", 1) == VERSION
    with pytest.raises(AliasNotSet):
        registry.resolve("ranker", "nobody")
