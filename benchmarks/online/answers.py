"""Before anything is timed: every server gives the same answer as ours, for known, unknown and mixed drivers."""

import math
import random
import time
from collections.abc import Iterable, Iterator

import httpx

from benchmarks.online.contestants import Choice, Constant, Contestant, Ours
from benchmarks.online.world import DRIVERS

TRIES = 10
UNKNOWN = range(DRIVERS.stop, DRIVERS.stop + 1000)


class AnswersDiffer(AssertionError):
    """A server does other work than ours, so its speed says nothing."""

    def __init__(self, name: str, ids: list[int], theirs: Choice, ours: Choice) -> None:
        super().__init__(f"{name} answered {theirs} for drivers {ids}, and we {ours}.")


def check_same_answers(contestants: Iterable[Contestant]) -> int:
    """Ask each the same questions; returns how many. The constant route is left out, for it does no work.

    Raises:
        AnswersDiffer: another driver, or a score that differs by more than the last bits. (A peer's last bit depends on
            how many rows it predicts at once, see docs/adr/003.)
    """
    asked = [each for each in contestants if not isinstance(each, Constant)]
    ours = next(each for each in asked if isinstance(each, Ours))
    questions = list(_questions())
    for ids in questions:
        expected = _ask(ours, ids)
        for contestant in asked:
            found = _ask(contestant, ids)
            if not _same(found, expected):
                raise AnswersDiffer(contestant.name, ids, found, expected)
    return len(questions)


def _questions() -> Iterator[list[int]]:
    draw = random.Random(7)  # noqa: S311 - makes data, not secrets
    for count in (1, 5, 5, 5, 100, 100):
        yield draw.sample(DRIVERS, count)
    yield draw.sample(UNKNOWN, 1) + draw.sample(DRIVERS, 4)
    yield draw.sample(DRIVERS, 50) + draw.sample(UNKNOWN, 50)
    yield draw.sample(UNKNOWN, 5)


def _ask(contestant: Contestant, ids: list[int]) -> Choice:
    headers = {"Content-Type": "application/json"}
    for _ in range(TRIES):
        answer = httpx.post(contestant.url, content=contestant.body(ids), headers=headers, timeout=30)
        if answer.status_code != 503:  # all servers have just started: ours has a deadline
            break
        time.sleep(0.5)
    return contestant.choice(answer.status_code, answer.content)


def _same(one: Choice, other: Choice) -> bool:
    if one is None or other is None:
        return one is other
    return one[0] == other[0] and math.isclose(one[1], other[1], rel_tol=1e-12)
