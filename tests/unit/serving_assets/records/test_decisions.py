import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_assets.records.decisions import Registered, RequestState, VersionCursor, adjacent_ranges, decide_rescoring

V1, V2 = Registered("ranker:1", 100), Registered("ranker:2", 200)
MANY = 1000
SCORED_BY_V1 = RequestState("day1", scored_with=V1, asked_before=True)


def test_another_version_scores_the_newest_request_again():
    decision = decide_rescoring(VersionCursor(handled=V1), V2, [SCORED_BY_V1])

    assert decision.score == ("day1",)
    assert decision.cursor == VersionCursor(handled=V2, sequence=1)


def test_the_same_version_again_asks_for_nothing():
    cursor = VersionCursor(handled=V1, sequence=3)

    decision = decide_rescoring(cursor, V1, [SCORED_BY_V1])

    assert decision.score == ()
    assert decision.cursor == cursor


def test_a_rollback_asks_again_under_a_new_sequence():
    forward = decide_rescoring(VersionCursor(handled=V1), V2, [SCORED_BY_V1])
    back = decide_rescoring(forward.cursor, V1, [RequestState("day1", scored_with=V2, asked_before=True)])

    assert (forward.score, back.score) == (("day1",), ("day1",))
    assert back.cursor.sequence == forward.cursor.sequence + 1


def test_a_version_registered_anew_under_the_same_number_is_another_one():
    anew = Registered("ranker:1", 300)

    decision = decide_rescoring(VersionCursor(handled=V1), anew, [SCORED_BY_V1])

    assert decision.score == ("day1",)
    assert decision.cursor.handled == anew


def test_a_rollback_scores_what_a_failed_run_may_have_replaced():
    unsure = RequestState("day1", scored_with=V1, unsure=True, asked_before=True)
    assert decide_rescoring(VersionCursor(handled=V2), V1, [unsure, SCORED_BY_V1]).score == ("day1",)
    assert decide_rescoring(VersionCursor(handled=V2), V1, [SCORED_BY_V1, unsure]).score == ("day1",)


def test_without_a_request_nothing_is_remembered_that_would_lose_the_later_run():
    decision = decide_rescoring(VersionCursor(), V1, [])

    assert decision.score == ()
    assert decision.cursor == VersionCursor()


def test_a_run_in_flight_is_waited_for():
    running = RequestState("day1", scored_with=V1, run_in_flight="run-7", asked_before=True)

    decision = decide_rescoring(VersionCursor(handled=V1), V2, [running])

    assert decision.score == ()
    assert decision.cursor == VersionCursor(handled=V1)


def test_a_request_that_this_version_already_scored_is_not_scored_again():
    decision = decide_rescoring(VersionCursor(), V1, [SCORED_BY_V1])

    assert decision.score == ()
    assert decision.cursor == VersionCursor(handled=V1)


def test_a_request_nobody_asked_for_is_left_to_new_batch_request_for_one_tick_and_then_scored():
    fresh = RequestState("day1")

    first = decide_rescoring(VersionCursor(), V1, [fresh])
    second = decide_rescoring(first.cursor, V1, [fresh])

    assert first.score == ()
    assert second.score == ("day1",)


def test_a_request_whose_only_run_failed_is_scored_by_the_next_version():
    failed = RequestState("day1", asked_before=True)

    left = decide_rescoring(VersionCursor(handled=V1), V2, [failed])
    assert left.score == ()  # score_the_others may be about to ask for it
    assert decide_rescoring(left.cursor, V2, [failed]).score == ("day1",)


@pytest.mark.parametrize(
    ("keys", "ranges"),
    [
        ([], []),
        (["b"], [("b", "b")]),
        (["b", "c"], [("b", "c")]),
        (["a", "c", "d"], [("a", "a"), ("c", "d")]),
        (["d", "c", "b", "a"], [("a", "d")]),
    ],
)
def test_neighbours_are_scored_by_one_run(keys, ranges):
    assert adjacent_ranges(keys, ["a", "b", "c", "d"], MANY) == ranges


@given(st.sets(st.integers(0, 30)), st.integers(1, 10))
def test_ranges_cover_exactly_the_wanted_requests_and_none_is_too_long(wanted, most):
    order = [f"r{i:02}" for i in range(31)]

    ranges = adjacent_ranges([order[i] for i in wanted], order, most)

    covered = [key for first, last in ranges for key in order[order.index(first) : order.index(last) + 1]]
    assert covered == [order[i] for i in sorted(wanted)]
    assert all(order.index(last) - order.index(first) < most for first, last in ranges)


def test_all_outdated_requests_are_scored_again_and_the_others_not():
    requests = [
        RequestState("day1", scored_with=V1, asked_before=True),
        RequestState("day2", scored_with=V2, asked_before=True),
        RequestState("day3", asked_before=True),  # never scored: a new version is no reason to try
        RequestState("day4", scored_with=V1, asked_before=True),
    ]

    assert decide_rescoring(VersionCursor(handled=V1), V2, requests).score == ("day1", "day4")
