"""Requests that wait together are worked on together, and none of them can tell."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest

from api.errors import Overloaded
from api.inference.batcher import MicroBatcher
from api.inference.micro_batch import PendingRequest
from api.inference.policy import MAX_BATCH_AGE_S, MAX_ROWS
from api.model.scorer import EntityRows, RowScores
from scoring.errors import FeaturesRejected, FeatureStoreError, PredictionFailed, UnusableFeature
from scoring.online.lookup import OnlineVectors
from scoring.predict import Scores
from tests.support.fakes import FakeScorer, id_as_score

POISON = 666
LONG_S = 60.0


class CountingScorer(FakeScorer):
    """Remembers which ids were looked up together; can be held up."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lookups: list[list[int]] = []
        self.may_look_up = threading.Event()
        self.may_look_up.set()

    def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
        self.lookups.append(list(entity_rows["driver_id"]))
        self.may_look_up.wait(10)
        return super().look_up(entity_rows, now)


@asynccontextmanager
async def merger(threads: int = 1, waiting: int = 100) -> AsyncIterator[MicroBatcher]:
    started = MicroBatcher(threads, waiting)
    started.start()
    try:
        yield started
    finally:
        started.stop()


def asked(scorer: FakeScorer, *ids: int) -> PendingRequest:
    return PendingRequest(scorer, {"driver_id": list(ids)}, len(ids))


async def outcomes(merger: MicroBatcher, requests: Sequence[PendingRequest]) -> list[Any]:
    return await asyncio.gather(*(merger.score(each, LONG_S) for each in requests), return_exceptions=True)


def test_requests_that_arrive_together_are_one_lookup_and_each_gets_its_own_scores() -> None:
    scorer = CountingScorer()

    async def scenario() -> list[Any]:
        async with merger() as merging:
            return await outcomes(merging, [asked(scorer, 1, -2), asked(scorer, 3), asked(scorer, 4, 5)])

    assert asyncio.run(scenario()) == [
        RowScores([1.0, None], [None, "not_found"]),
        RowScores([3.0], [None]),
        RowScores([4.0, 5.0], [None, None]),
    ]
    assert scorer.lookups == [[1, -2, 3, 4, 5]]


def test_a_version_whose_predictions_depend_on_their_company_is_never_merged() -> None:
    scorer = CountingScorer()
    scorer.mergeable = False

    async def scenario() -> None:
        async with merger() as merging:
            await outcomes(merging, [asked(scorer, 1), asked(scorer, 2)])

    asyncio.run(scenario())
    assert scorer.lookups == [[1], [2]]


def test_two_versions_are_never_mixed_and_a_large_request_goes_alone() -> None:
    old, new = CountingScorer(version=1), CountingScorer(version=2)
    large = list(range(MAX_ROWS))

    async def scenario() -> None:
        async with merger() as merging:
            await outcomes(merging, [asked(old, 1), asked(new, 2), asked(new, 3), asked(new, *large), asked(new, 4)])

    asyncio.run(scenario())
    assert old.lookups == [[1]]
    assert new.lookups == [[2, 3], large, [4]]


@pytest.mark.parametrize("where", ["lookup", "predict"])
def test_a_poisoned_request_fails_alone(where: str) -> None:
    class Poisoned(CountingScorer):
        def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
            if where == "lookup" and POISON in entity_rows["driver_id"]:
                raise UnusableFeature("reading the online store", "a value")
            return super().look_up(entity_rows, now)

    def predict(entity_rows: EntityRows) -> list[tuple[float | None, str | None]]:
        if where == "predict" and POISON in entity_rows["driver_id"]:
            raise PredictionFailed("ranker/1", "ValueError on 1 rows")
        return id_as_score(entity_rows)

    async def scenario() -> list[Any]:
        async with merger() as merging:
            scorer = Poisoned(function=predict)
            return await outcomes(merging, [asked(scorer, 1), asked(scorer, POISON), asked(scorer, 3)])

    before, poisoned, after = asyncio.run(scenario())
    assert before == RowScores([1.0], [None])
    assert isinstance(poisoned, UnusableFeature if where == "lookup" else PredictionFailed)
    assert after == RowScores([3.0], [None])


def test_a_request_fails_only_if_the_model_fails_on_all_its_rows_whatever_it_is_merged_with() -> None:
    class Failing(CountingScorer):
        def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:
            reasons = ["model_failed" if key == POISON else None for key in entity_rows["driver_id"]]
            values = [None if reason else 1.0 for reason in reasons]
            failure = PredictionFailed("ranker/1", "ValueError on every row") if any(reasons) else None
            return Scores(pa.array(values, pa.float64()), pa.array(reasons, pa.string()), failure)

    async def scenario() -> list[Any]:
        async with merger() as merging:
            scorer = Failing()
            return await outcomes(merging, [asked(scorer, 1), asked(scorer, POISON), asked(scorer, 2, POISON)])

    good, failed, partly = asyncio.run(scenario())
    assert good == RowScores([1.0], [None])
    assert isinstance(failed, PredictionFailed)
    assert partly == RowScores([1.0, None], [None, "model_failed"])


def test_a_store_that_fails_is_asked_once_for_all_of_them() -> None:
    scorer = CountingScorer()
    scorer.lookup_error = FeatureStoreError("reading the online store", "refused")

    async def scenario() -> list[Any]:
        async with merger() as merging:
            requests = [asked(scorer, 1), asked(scorer, 2)]
            found = await outcomes(merging, requests)
            assert requests[0].batch is requests[1].batch
            return found

    assert asyncio.run(scenario()) == [scorer.lookup_error] * 2
    assert len(scorer.lookups) == 1


def test_clients_that_ask_again_at_once_are_merged_with_those_that_waited_meanwhile() -> None:
    scorer = CountingScorer()
    scorer.may_look_up.clear()

    async def client(merging: MicroBatcher, ids: Sequence[int]) -> None:
        for each in ids:
            await merging.score(asked(scorer, each), LONG_S)

    async def scenario() -> None:
        async with merger() as merging:
            first = [asyncio.create_task(client(merging, [each, each + 10])) for each in (1, 2, 3)]
            while not scorer.lookups:
                await asyncio.sleep(0.001)
            second = [asyncio.create_task(client(merging, [each])) for each in (4, 5)]
            await asyncio.sleep(0.01)
            scorer.may_look_up.set()
            await asyncio.gather(*first, *second)

    asyncio.run(scenario())
    assert scorer.lookups == [[1, 2, 3], [4, 5, 11, 12, 13]]


def test_while_one_run_is_stuck_another_thread_takes_what_comes() -> None:
    stuck, quick = CountingScorer(version=1), CountingScorer(version=2)
    stuck.may_look_up.clear()

    async def scenario() -> float:
        async with merger(threads=2) as merging:
            first = asyncio.create_task(merging.score(asked(stuck, 1), LONG_S))
            while not stuck.lookups:
                await asyncio.sleep(0.001)
            began = time.perf_counter()
            assert await merging.score(asked(quick, 2), LONG_S) == RowScores([2.0], [None])
            took_s = time.perf_counter() - began
            stuck.may_look_up.set()
            await first
            return took_s

    assert asyncio.run(scenario()) >= MAX_BATCH_AGE_S / 2


def test_what_comes_during_a_run_of_a_model_that_is_always_slow_waits_for_its_end_and_is_merged() -> None:
    class SlowScorer(CountingScorer):
        def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
            time.sleep(3 * MAX_BATCH_AGE_S)
            return super().look_up(entity_rows, now)

    scorer = SlowScorer()

    async def later(merging: MicroBatcher, after_s: float, entity: int) -> None:
        await asyncio.sleep(after_s)
        await merging.score(asked(scorer, entity), LONG_S)

    async def scenario() -> None:
        async with merger(threads=2) as merging:
            for entity in range(20):
                await merging.score(asked(scorer, entity), LONG_S)
            await asyncio.gather(*(later(merging, place * MAX_BATCH_AGE_S * 0.7, 100 + place) for place in range(4)))

    asyncio.run(scenario())
    assert scorer.lookups[20:] == [[100], [101, 102, 103]]


class SlowToPredict(CountingScorer):
    """Looks up at once, and predicts when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_predict = threading.Event()

    def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:
        self.may_predict.wait(10)
        return super().score(entity_rows, online)


@pytest.mark.parametrize(("rows", "begun"), [(MAX_ROWS // 2, 2), (MAX_ROWS // 4, 1)])
def test_the_store_is_asked_for_the_next_run_while_one_is_predicted_unless_they_may_become_one(
    rows: int, begun: int
) -> None:
    scorer = SlowToPredict()
    scorer.may_look_up.clear()

    async def scenario() -> int:
        async with merger(threads=2) as merging:
            merging._policy.max_age_s = LONG_S  # a run that takes long is another reason to begin
            first = asyncio.create_task(merging.score(asked(scorer, *range(rows)), LONG_S))
            while not scorer.lookups:
                await asyncio.sleep(0)
            second = asyncio.create_task(merging.score(asked(scorer, *range(rows + 1)), LONG_S))
            await asyncio.sleep(0)
            scorer.may_look_up.set()
            await asyncio.sleep(0.05)
            looked_up = len(scorer.lookups)
            scorer.may_predict.set()
            await asyncio.gather(first, second)
            return looked_up

    assert asyncio.run(scenario()) == begun
    assert [len(each) for each in scorer.lookups] == [rows, rows + 1]


def test_a_request_whose_caller_gave_up_before_its_turn_is_dropped() -> None:
    scorer = CountingScorer()
    scorer.may_look_up.clear()

    async def scenario() -> None:
        async with merger() as merging:
            first = asyncio.create_task(merging.score(asked(scorer, 1), LONG_S))
            while not scorer.lookups:
                await asyncio.sleep(0.001)
            with pytest.raises(TimeoutError):
                await merging.score(asked(scorer, 2), 0.05)
            scorer.may_look_up.set()
            await first
            await merging.score(asked(scorer, 3), LONG_S)

    asyncio.run(scenario())
    assert scorer.lookups == [[1], [3]]


def test_no_more_wait_than_may_wait_and_room_comes_back() -> None:
    scorer = CountingScorer()
    scorer.may_look_up.clear()

    async def scenario() -> None:
        async with merger(threads=1, waiting=1) as merging:
            running = [asyncio.create_task(merging.score(asked(scorer, each), LONG_S)) for each in (1, 2)]
            await asyncio.sleep(0)
            assert merging.full
            with pytest.raises(Overloaded):
                await merging.score(asked(scorer, 3), LONG_S)
            scorer.may_look_up.set()
            await asyncio.gather(*running)
            assert not merging.full

    asyncio.run(scenario())


def test_those_who_gave_up_on_a_stuck_run_take_one_place_together_until_it_ends() -> None:
    scorer = CountingScorer()
    scorer.may_look_up.clear()

    async def scenario() -> None:
        async with merger(threads=2, waiting=4) as merging:
            burst = [merging.score(asked(scorer, each), 0.05) for each in range(6)]
            found = await asyncio.gather(*burst, return_exceptions=True)
            assert [type(each) for each in found] == [TimeoutError] * 6
            stuck = scorer.may_look_up
            scorer.may_look_up = threading.Event()  # of whoever comes now
            others = [asked(scorer, each) for each in range(10, 15)]
            waiting = [asyncio.create_task(merging.score(each, LONG_S)) for each in others]
            await asyncio.sleep(0)
            assert merging.full
            waiting[-1].cancel()
            await asyncio.sleep(0.02)
            assert not merging.full
            scorer.may_look_up.set()
            await asyncio.gather(*waiting[:-1])
            stuck.set()
            while len(merging._running):
                await asyncio.sleep(0.001)
            whole = [asyncio.create_task(merging.score(asked(scorer, each), LONG_S)) for each in range(6)]
            assert await asyncio.gather(*whole) == [RowScores([float(each)], [None]) for each in range(6)]

    asyncio.run(scenario())
    assert scorer.lookups[0] == [0, 1, 2, 3, 4, 5]


def test_whatever_goes_wrong_in_a_thread_belongs_to_the_callers_and_the_thread_lives_on() -> None:
    scorer = CountingScorer()

    async def scenario() -> None:
        async with merger() as merging:
            requests = [asked(scorer, 1), asked(scorer, 2)]
            requests[1].entity_rows = {}  # a defect of ours
            found = await outcomes(merging, requests)
            assert [type(each) for each in found] == [KeyError, KeyError]
            assert await merging.score(asked(scorer, 3), LONG_S) == RowScores([3.0], [None])

    asyncio.run(scenario())


def test_under_reject_the_complete_requests_are_predicted_together_and_looked_up_once() -> None:
    predicted = []

    class Rejecting(CountingScorer):
        def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
            online = super().look_up(entity_rows, now)
            reasons = ["not_found" if key < 0 else None for key in entity_rows["driver_id"]]
            return OnlineVectors(online.vectors, pa.array(reasons, pa.string()))

        def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:
            if online.reasons.null_count < len(online.reasons):
                raise FeaturesRejected([("driver_id -2", "not_found")], 1)
            predicted.append(list(entity_rows["driver_id"]))
            return super().score(entity_rows, online)

    scorer = Rejecting()

    async def scenario() -> list[Any]:
        async with merger() as merging:
            return await outcomes(merging, [asked(scorer, 1), asked(scorer, -2, 5), asked(scorer, 3, 4)])

    first, rejected, last = asyncio.run(scenario())
    assert (first, last) == (RowScores([1.0], [None]), RowScores([3.0, 4.0], [None, None]))
    assert isinstance(rejected, FeaturesRejected)
    assert len(scorer.lookups) == 1
    assert predicted == [[1, 3, 4]]
