import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_assets.records.decisions import Registered, RequestState, VersionCursor, adjacent_ranges, decide_rescoring

V1, V2 = Registered("ranker:1", 100), Registered("ranker:2", 200)
V1_AGAIN = Registered("ranker:1", 300)
MANY = 1000
DAY1 = RequestState("day1", scored_with=V1, has_run=True)
MAY_BE_REPLACED = msgspec.structs.replace(DAY1, may_be_replaced=True)
RUNNING = msgspec.structs.replace(DAY1, run_in_flight="run-7")
BY_V2 = RequestState("day2", scored_with=V2, has_run=True)
NEVER_SCORED = RequestState("day3", has_run=True)
DAY4 = RequestState("day4", scored_with=V1, has_run=True)


@pytest.mark.parametrize(
    ("handled", "version", "requests", "scored", "handled_then"),
    [
        pytest.param(V1, V2, [DAY1], ["day1"], V2, id="another version"),
        pytest.param(V1, V1, [DAY1], [], V1, id="the same version"),
        pytest.param(V1, V1_AGAIN, [DAY1], ["day1"], V1_AGAIN, id="the same number, registered again"),
        pytest.param(
            V2, V1, [MAY_BE_REPLACED, DAY1], ["day1"], V1, id="a failed run may have replaced an older output"
        ),
        pytest.param(
            V2, V1, [DAY1, MAY_BE_REPLACED], ["day1"], V1, id="a failed run may have replaced the newest output"
        ),
        pytest.param(None, V1, [], [], None, id="no request yet"),
        pytest.param(V1, V2, [RUNNING], [], V1, id="a run is in flight"),
        pytest.param(None, V1, [DAY1], [], V1, id="scored with this version before"),
        pytest.param(V1, V2, [DAY1, BY_V2, NEVER_SCORED, DAY4], ["day1", "day4"], V2, id="all outdated requests"),
    ],
)
def test_a_version_scores_the_requests_that_it_has_not_scored(handled, version, requests, scored, handled_then):
    cursor = VersionCursor(handled, sequence=3)

    decision = decide_rescoring(cursor, version, requests)

    assert decision.score == tuple(scored)
    assert decision.cursor == VersionCursor(handled_then, sequence=4 if scored else 3)


@pytest.mark.parametrize("handled", [None, V2])
@pytest.mark.parametrize("has_run", [True, False])
def test_a_request_without_an_output_is_left_to_the_other_sensors_for_one_tick_and_then_scored(handled, has_run):
    request = RequestState("day1", has_run=has_run)

    first = decide_rescoring(VersionCursor(handled), V1, [request])
    second = decide_rescoring(first.cursor, V1, [request])

    assert (first.score, second.score) == ((), ("day1",))


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
def test_neighbors_are_scored_by_one_run(keys, ranges):
    assert adjacent_ranges(keys, ["a", "b", "c", "d"], MANY) == ranges


@given(st.sets(st.integers(0, 30)), st.integers(1, 10))
def test_ranges_cover_exactly_the_wanted_requests_and_none_is_too_long(wanted, most):
    order = [f"r{i:02}" for i in range(31)]

    ranges = adjacent_ranges([order[i] for i in wanted], order, most)

    covered = [key for first, last in ranges for key in order[order.index(first) : order.index(last) + 1]]
    assert covered == [order[i] for i in sorted(wanted)]
    assert all(order.index(last) - order.index(first) < most for first, last in ranges)
