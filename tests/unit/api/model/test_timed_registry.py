"""A registry that sends byte by byte is given up on, and asked again when it has ended."""

import threading
import time
from pathlib import Path

import pytest

from api.model.timed_registry import SLOWEST_BYTES_PER_S, TimedRegistry
from scoring.errors import AliasNotSet, RegistryTooSlow
from scoring.models.registry import ModelVersion

VERSION = ModelVersion("ranker", 1)


class Dribbling:
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


def test_files_that_do_not_arrive_are_given_up_on_and_not_fetched_twice_at_once(tmp_path: Path) -> None:
    server = Dribbling()
    registry = TimedRegistry(server, limit_s=0.2)
    assert registry.size(VERSION) == 0
    began = time.monotonic()
    told = set()
    for _ in range(5):  # the first waits, the others are told at once, and the same: it is logged once
        with pytest.raises(RegistryTooSlow) as caught:
            registry.download(VERSION, tmp_path)
        told.add(str(caught.value))
    assert len(told) == 1
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


def test_large_files_may_take_longer_by_their_size(tmp_path: Path) -> None:
    server = Dribbling(size=5 * SLOWEST_BYTES_PER_S)
    registry = TimedRegistry(server, limit_s=0.05)
    registry.size(VERSION)
    threading.Timer(0.4, server.arrived.set).start()
    assert registry.download(VERSION, tmp_path) == tmp_path


def test_what_the_registry_says_and_raises_is_passed_on() -> None:
    registry = TimedRegistry(Dribbling(), limit_s=5)
    assert registry.resolve("ranker", "champion") == registry.version("ranker", 1) == VERSION
    with pytest.raises(AliasNotSet):
        registry.resolve("ranker", "nobody")
