"""All servers on one store and one model, running at the same time, so that rounds can alternate between them."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from benchmarks.environments import OURS, build, check_versions
from benchmarks.online.answers import check_same_answers
from benchmarks.online.contestants import Contestant, Peer
from benchmarks.online.world import OnlineWorld, open_world
from benchmarks.paths import VAR
from tests.support.servers import RedisServer


class Fleet(NamedTuple):
    """Running servers that give the same answers."""

    contestants: list[Contestant]
    redis: RedisServer | None
    drivers: range
    """The ids to ask for."""
    versions: dict[str, dict[str, str]]
    """Peer → package → version."""


@contextlib.contextmanager
def fleet(store: str, model: str, kinds: Sequence[type[Contestant]]) -> Iterator[Fleet]:
    """Start servers of these kinds on one of the world's stores and models. All are stopped after the block."""
    versions = prepare(kinds)
    with open_world(store) as (world, redis), contextlib.ExitStack() as stack:
        contestants = [make(kind, world, model) for kind in kinds]
        for contestant in contestants:
            stack.callback(contestant.stop)
        with ThreadPoolExecutor(len(contestants)) as pool:
            list(pool.map(lambda each: each.start(), contestants))
        check_same_answers(contestants, world.drivers)
        yield Fleet(contestants, redis, world.drivers, versions)


def prepare(kinds: Sequence[type[Contestant]]) -> dict[str, dict[str, str]]:
    """Build our environment and those of the peers among these kinds, and check the peers' versions.

    Returns peer → package → version.
    """
    peers = dict.fromkeys(kind.peer for kind in kinds if issubclass(kind, Peer))
    for peer in dict.fromkeys((OURS, *peers)):
        build(peer)
    return {peer: check_versions(peer) for peer in peers}


def make(kind: type[Contestant], world: OnlineWorld, model: str) -> Contestant:
    """Create a server of this kind with an empty folder, without starting it."""
    folder = VAR / "servers" / kind.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return kind(folder, environment=world.peers(model) if issubclass(kind, Peer) else world.ours(model))
