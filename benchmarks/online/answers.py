"""Check before timing that every server answers as the API does, for known, unknown and mixed drivers."""

import math
import random
import time
from collections.abc import Iterable, Iterator

from benchmarks.online.contestants import Choice, Constant, Contestant, FeastServe, Ours
from benchmarks.online.world import DRIVERS

TRIES = 10
UNKNOWN = range(DRIVERS.stop, DRIVERS.stop + 1000)


class AnswersDiffer(AssertionError):
    """A server's answers differ from ours, so its speed can't be compared."""

    def __init__(self, name: str, ids: list[int], theirs: Choice, ours: Choice) -> None:
        super().__init__(f"{name} answered {theirs} for drivers {ids}; model-serving answered {ours}.")


def check_same_answers(contestants: Iterable[Contestant], drivers: range) -> int:
    """Send the same requests to each server that answers with predictions. Return the number of requests.

    Raises:
        AnswersDiffer: another driver, or a score that differs by more than the last bits. (A peer's last bit depends on
            how many rows it predicts at once, see docs/adr/003.)
    """
    compared = [each for each in contestants if not isinstance(each, (Constant, FeastServe))]
    ours = next(each for each in compared if isinstance(each, Ours))
    requests = list(_requests(drivers))
    for ids in requests:
        expected = _choose(ours, ids)
        for contestant in compared:
            found = _choose(contestant, ids)
            if not _same(found, expected):
                raise AnswersDiffer(contestant.name, ids, found, expected)
    return len(requests)


def _requests(drivers: range) -> Iterator[list[int]]:
    draw = random.Random(7)  # noqa: S311 - generates data, not secrets
    for count in (1, 5, 5, 5, 100, 100):
        yield draw.sample(drivers, count)
    yield draw.sample(UNKNOWN, 1) + draw.sample(drivers, 4)
    yield draw.sample(drivers, 50) + draw.sample(UNKNOWN, 50)
    yield draw.sample(UNKNOWN, 5)


def _choose(contestant: Contestant, ids: list[int]) -> Choice:
    for _ in range(TRIES):
        answer = contestant.ask(ids)
        if answer.status_code != 503:  # all servers have just started, and ours has a deadline
            break
        time.sleep(0.5)
    return contestant.choice(answer.status_code, answer.content)


def _same(one: Choice, other: Choice) -> bool:
    if one is None or other is None:
        return one is other
    return one[0] == other[0] and math.isclose(one[1], other[1], rel_tol=1e-12)
