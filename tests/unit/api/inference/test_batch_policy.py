"""When a micro-batch starts and what it takes, without threads, event loop or clock."""

from collections import deque

import pytest

from api.inference.batch_policy import (
    MAX_AGE_LIMIT_S,
    MAX_GATHER_S,
    MAX_ROWS,
    MIN_AGE_LIMIT_S,
    MIN_REQUESTS_TO_GATHER,
    TURNS_WITHOUT_MORE,
    BatchPolicy,
)
from api.inference.micro_batch import PendingRequest
from tests.support.fakes import FakeScorer

NOW = 100.0


def request(scorer: FakeScorer, rows: int) -> PendingRequest:
    return PendingRequest(scorer, {"driver_id": [1] * rows}, rows)


def started(threads: int) -> BatchPolicy:
    policy = BatchPolicy(threads)
    policy.take(deque([request(FakeScorer(), 1)]), NOW)
    return policy


def gathering(requests: int = 3, waiting: int = 2) -> BatchPolicy:
    policy = started(threads=2)
    policy.finished(requests, 0.001, waiting, NOW)
    assert policy.gathering
    return policy


def test_the_first_micro_batch_starts_at_once_and_the_next_when_it_has_ended_or_is_old() -> None:
    policy = started(threads=2)
    assert not policy.may_start(NOW + 0.9 * MIN_AGE_LIMIT_S, running=1)
    assert policy.may_start(NOW + 0.9 * MIN_AGE_LIMIT_S, running=0)
    assert policy.may_start(NOW + 1.1 * MIN_AGE_LIMIT_S, running=1)
    assert not policy.may_start(NOW + 1.1 * MIN_AGE_LIMIT_S, running=2), "no thread is free"


def test_the_age_limit_follows_the_usual_duration_up_to_a_maximum() -> None:
    policy = started(threads=2)
    for took_s, expected_s in ((0.02, 0.03), (1.0, MAX_AGE_LIMIT_S), (0.001, MIN_AGE_LIMIT_S)):
        for _ in range(100):
            policy.finished(1, took_s, 0, NOW)
        assert policy.max_age_s == pytest.approx(expected_s, rel=1e-3)


def test_the_next_lookup_overlaps_only_if_the_requests_could_not_be_one_micro_batch() -> None:
    policy = BatchPolicy(threads=2)
    assert policy.may_overlap(MAX_ROWS - 1, waiting_rows=2, running=1)
    assert not policy.may_overlap(MAX_ROWS - 2, waiting_rows=2, running=1)
    assert not policy.may_overlap(MAX_ROWS + 1, waiting_rows=0, running=1)
    assert not policy.may_overlap(MAX_ROWS, waiting_rows=1, running=2)


@pytest.mark.parametrize("waiting", [[MAX_ROWS - 1, 1, 1], [1, MAX_ROWS], [MAX_ROWS + 1, 1]])
def test_a_micro_batch_takes_requests_in_order_up_to_its_limit_and_a_larger_one_alone(waiting: list[int]) -> None:
    scorer, policy = FakeScorer(), BatchPolicy(threads=1)
    queue = deque(request(scorer, rows) for rows in waiting)
    expected = {3: [MAX_ROWS - 1, 1], 2: [waiting[0]]}[len(waiting)]
    assert [each.rows for each in policy.take(queue, NOW)] == expected
    assert [each.rows for each in queue] == waiting[len(expected) :]


def test_it_waits_for_clients_that_got_their_responses_together() -> None:
    policy = gathering(requests=3, waiting=2)
    assert not policy.may_start(NOW, running=0)
    policy.turn(4, NOW)
    assert policy.gathering
    policy.turn(5, NOW)
    assert not policy.gathering
    assert policy.may_start(NOW, running=0)


def test_it_stops_waiting_when_turns_bring_no_more_requests_or_the_time_is_up() -> None:
    policy = gathering()
    policy.turn(3, NOW)  # one client has returned
    for _ in range(TURNS_WITHOUT_MORE):
        policy.turn(3, NOW)
        assert policy.gathering
    policy.turn(3, NOW)
    assert not policy.gathering
    policy = gathering()
    policy.turn(3, NOW + MAX_GATHER_S)
    assert not policy.gathering


@pytest.mark.parametrize(("requests", "waiting"), [(1, MIN_REQUESTS_TO_GATHER), (2, MIN_REQUESTS_TO_GATHER - 3)])
def test_after_a_single_request_or_with_few_clients_it_does_not_wait(requests: int, waiting: int) -> None:
    policy = started(threads=1)
    policy.finished(requests, 0.001, waiting, NOW)
    assert not policy.gathering


def test_a_micro_batch_that_ends_during_the_wait_prolongs_it() -> None:
    policy = gathering()
    policy.finished(4, 0.001, 3, NOW + MAX_GATHER_S / 2)
    policy.turn(4, NOW + MAX_GATHER_S)
    assert policy.gathering
