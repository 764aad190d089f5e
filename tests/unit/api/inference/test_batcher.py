"""Requests that wait at the same time are merged, and each gets the result that it would get alone."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from api.errors import Overloaded
from api.inference import batcher
from api.inference.batch_policy import MAX_ROWS, MIN_AGE_LIMIT_S
from api.inference.batcher import MicroBatcher
from api.inference.micro_batch import PendingRequest
from api.model.scorer import RowScores
from scoring.errors import FeaturesRejected, FeatureStoreError, PredictionFailed, UnusableFeature
from scoring.models.outputs import ONE_NUMBER
from scoring.online.lookup import OnlineVectors
from scoring.online.reading import EntityRows, StoreRead
from scoring.predict import Scores
from tests.support.fakes import FakeScorer, id_as_score

T = TypeVar("T")

POISON = 666
LONG_S = 60.0


class RecordingScorer(FakeScorer):
    """Records which ids are looked up together. A lookup waits until it is allowed."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lookups: list[list[int]] = []
        self.may_look_up = threading.Event()
        self.may_look_up.set()

    def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
        self.lookups.append(list(entity_rows["driver_id"]))
        self.may_look_up.wait(10)
        return super().look_up(entity_rows, now)

    async def looking_up(self) -> None:
        while not self.lookups:
            await asyncio.sleep(0.001)


def run(scenario: Callable[[MicroBatcher], Awaitable[T]], threads: int = 1, waiting: int = 100) -> T:
    async def with_batcher() -> T:
        batcher = MicroBatcher(threads, waiting, LONG_S)
        batcher.start()
        try:
            return await scenario(batcher)
        finally:
            batcher.stop()

    return asyncio.run(with_batcher())


def request(scorer: FakeScorer, *ids: int) -> PendingRequest:
    return PendingRequest(scorer, {"driver_id": list(ids)}, len(ids))


async def results(batcher: MicroBatcher, requests: Sequence[PendingRequest]) -> list[Any]:
    return await asyncio.gather(*(batcher.score(each) for each in requests), return_exceptions=True)


def results_of(*requests: PendingRequest) -> list[Any]:
    return run(lambda batcher: results(batcher, requests))


def test_requests_that_arrive_together_share_a_lookup_and_each_gets_its_own_scores() -> None:
    scorer = RecordingScorer()
    assert results_of(request(scorer, 1, -2), request(scorer, 3), request(scorer, 4, 5)) == [
        RowScores([[1.0, None]], [None, "not_found"]),
        RowScores([[3.0]], [None]),
        RowScores([[4.0, 5.0]], [None, None]),
    ]
    assert scorer.lookups == [[1, -2, 3, 4, 5]]


def test_a_version_whose_predictions_depend_on_other_rows_is_never_merged() -> None:
    scorer = RecordingScorer()
    scorer.mergeable = False
    results_of(request(scorer, 1), request(scorer, 2))
    assert scorer.lookups == [[1], [2]]


def test_two_versions_are_never_merged_and_a_large_request_runs_alone() -> None:
    old, new = RecordingScorer(version=1), RecordingScorer(version=2)
    large = list(range(MAX_ROWS))
    results_of(request(old, 1), request(new, 2), request(new, 3), request(new, *large), request(new, 4))
    assert old.lookups == [[1]]
    assert new.lookups == [[2, 3], large, [4]]


@pytest.mark.parametrize("where", ["lookup", "predict"])
def test_only_the_request_that_causes_a_failure_fails(where: str) -> None:
    class Poisoned(RecordingScorer):
        def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
            if where == "lookup" and POISON in entity_rows["driver_id"]:
                raise UnusableFeature("reading the online store", "a value")
            return super().look_up(entity_rows, now)

    def predict(entity_rows: EntityRows) -> list[tuple[float | None, str | None]]:
        if where == "predict" and POISON in entity_rows["driver_id"]:
            raise PredictionFailed("ranker/1", "ValueError on 1 rows")
        return id_as_score(entity_rows)

    scorer = Poisoned(function=predict)
    before, poisoned, after = results_of(request(scorer, 1), request(scorer, POISON), request(scorer, 3))
    assert before == RowScores([[1.0]], [None])
    assert isinstance(poisoned, UnusableFeature if where == "lookup" else PredictionFailed)
    assert after == RowScores([[3.0]], [None])


def test_a_request_fails_only_if_the_model_fails_on_all_of_its_rows() -> None:
    class Failing(RecordingScorer):
        def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:
            reasons = ["model_failed" if key == POISON else None for key in entity_rows["driver_id"]]
            values = [None if reason else 1.0 for reason in reasons]
            failure = PredictionFailed("ranker/1", "ValueError on every row") if any(reasons) else None
            return Scores(pa.table([values], ONE_NUMBER.schema), pa.array(reasons, pa.string()), failure)

    scorer = Failing()
    good, failed, partly = results_of(request(scorer, 1), request(scorer, POISON), request(scorer, 2, POISON))
    assert good == RowScores([[1.0]], [None])
    assert isinstance(failed, PredictionFailed)
    assert partly == RowScores([[1.0, None]], [None, "model_failed"])


def test_a_failed_store_is_not_called_again_for_each_request() -> None:
    scorer = RecordingScorer()
    scorer.lookup_error = FeatureStoreError("reading the online store", "refused")
    requests = [request(scorer, 1), request(scorer, 2)]
    assert results_of(*requests) == [scorer.lookup_error] * 2
    assert requests[0].batch is requests[1].batch
    assert len(scorer.lookups) == 1


def test_clients_that_send_their_next_requests_are_merged_with_those_that_waited() -> None:
    scorer = RecordingScorer()
    scorer.may_look_up.clear()

    async def scenario(batcher: MicroBatcher) -> None:
        async def client(*ids: int) -> None:
            for each in ids:
                await batcher.score(request(scorer, each))

        first = [asyncio.create_task(client(each, each + 10)) for each in (1, 2, 3)]
        await scorer.looking_up()
        second = [asyncio.create_task(client(each)) for each in (4, 5)]
        await asyncio.sleep(0.01)
        scorer.may_look_up.set()
        await asyncio.gather(*first, *second)

    run(scenario)
    assert scorer.lookups == [[1, 2, 3], [4, 5, 11, 12, 13]]


def test_while_one_micro_batch_is_stuck_another_thread_takes_the_next() -> None:
    stuck, quick = RecordingScorer(version=1), RecordingScorer(version=2)
    stuck.may_look_up.clear()

    async def scenario(batcher: MicroBatcher) -> float:
        first = asyncio.create_task(batcher.score(request(stuck, 1)))
        await stuck.looking_up()
        started_at = time.perf_counter()
        assert await batcher.score(request(quick, 2)) == RowScores([[2.0]], [None])
        took_s = time.perf_counter() - started_at
        stuck.may_look_up.set()
        await first
        return took_s

    assert run(scenario, threads=2) >= MIN_AGE_LIMIT_S / 2


def test_requests_during_a_micro_batch_of_a_slow_model_wait_for_its_end_and_are_merged() -> None:
    class SlowScorer(RecordingScorer):
        def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
            time.sleep(3 * MIN_AGE_LIMIT_S)
            return super().look_up(entity_rows, now)

    scorer = SlowScorer()

    async def scenario(batcher: MicroBatcher) -> None:
        async def later(after_s: float, entity: int) -> None:
            await asyncio.sleep(after_s)
            await batcher.score(request(scorer, entity))

        for entity in range(20):
            await batcher.score(request(scorer, entity))
        await asyncio.gather(*(later(place * MIN_AGE_LIMIT_S * 0.7, 100 + place) for place in range(4)))

    run(scenario, threads=2)
    assert scorer.lookups[20:] == [[100], [101, 102, 103]]


class SlowToPredict(RecordingScorer):
    """Looks up at once. A prediction waits until it is allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.may_predict = threading.Event()

    def score(self, entity_rows: EntityRows, online: OnlineVectors) -> Scores:
        self.may_predict.wait(10)
        return super().score(entity_rows, online)


@pytest.mark.parametrize(("rows", "started"), [(MAX_ROWS // 2, 2), (MAX_ROWS // 4, 1)])
def test_the_next_lookup_overlaps_the_prediction_unless_the_requests_could_be_merged(rows: int, started: int) -> None:
    scorer = SlowToPredict()
    scorer.may_look_up.clear()

    async def scenario(batcher: MicroBatcher) -> int:
        batcher._policy.max_age_s = LONG_S  # a long duration is another reason to start the next one
        first = asyncio.create_task(batcher.score(request(scorer, *range(rows))))
        await scorer.looking_up()
        second = asyncio.create_task(batcher.score(request(scorer, *range(rows + 1))))
        await asyncio.sleep(0)
        scorer.may_look_up.set()
        await asyncio.sleep(0.05)
        looked_up = len(scorer.lookups)
        scorer.may_predict.set()
        await asyncio.gather(first, second)
        return looked_up

    assert run(scenario, threads=2) == started
    assert [len(each) for each in scorer.lookups] == [rows, rows + 1]


def test_a_request_whose_caller_gives_up_before_it_starts_is_dropped() -> None:
    scorer = RecordingScorer()
    scorer.may_look_up.clear()

    async def scenario(batcher: MicroBatcher) -> None:
        first = asyncio.create_task(batcher.score(request(scorer, 1)))
        await scorer.looking_up()
        second = asyncio.create_task(batcher.score(request(scorer, 2)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        scorer.may_look_up.set()
        await first
        await batcher.score(request(scorer, 3))

    run(scenario)
    assert scorer.lookups == [[1], [3]]


def test_each_request_has_its_own_deadline() -> None:
    scorer = RecordingScorer()
    scorer.may_look_up.clear()

    async def ended_after(batcher: MicroBatcher, entity: int) -> float:
        started_at = time.perf_counter()
        with pytest.raises(TimeoutError):
            await batcher.score(request(scorer, entity))
        return time.perf_counter() - started_at

    async def scenario(batcher: MicroBatcher) -> list[float]:
        batcher.deadline_s = 0.1
        running = []
        for entity in range(4):
            running.append(asyncio.create_task(ended_after(batcher, entity)))
            await asyncio.sleep(0.03)
        ended = await asyncio.gather(*running)
        assert not batcher._by_deadline
        assert not batcher._timer_set
        scorer.may_look_up.set()
        return ended

    for took_s in run(scenario):
        assert 0.095 < took_s < 0.5


def test_finished_requests_are_not_kept_until_their_deadline() -> None:
    async def scenario(batcher: MicroBatcher) -> None:
        for entity in range(10):
            await batcher.score(request(RecordingScorer(), entity))
        assert len(batcher._by_deadline) <= 1

    run(scenario)


def test_the_number_of_unfinished_requests_is_limited() -> None:
    scorer = RecordingScorer()
    scorer.may_look_up.clear()

    async def scenario(batcher: MicroBatcher) -> None:
        running = [asyncio.create_task(batcher.score(request(scorer, each))) for each in (1, 2)]
        await asyncio.sleep(0)
        assert batcher.full
        with pytest.raises(Overloaded):
            await batcher.score(request(scorer, 3))
        scorer.may_look_up.set()
        await asyncio.gather(*running)
        assert not batcher.full

    run(scenario, threads=1, waiting=1)


def test_abandoned_requests_of_a_stuck_micro_batch_count_as_one_until_it_ends() -> None:
    scorer = RecordingScorer()
    scorer.may_look_up.clear()

    async def scenario(batcher: MicroBatcher) -> None:
        batcher.deadline_s = 0.05
        abandoned = await results(batcher, [request(scorer, each) for each in range(6)])
        batcher.deadline_s = LONG_S
        assert [type(each) for each in abandoned] == [TimeoutError] * 6
        stuck = scorer.may_look_up
        scorer.may_look_up = threading.Event()  # for later requests
        others = [request(scorer, each) for each in range(10, 15)]
        waiting = [asyncio.create_task(batcher.score(each)) for each in others]
        await asyncio.sleep(0)
        assert batcher.full
        waiting[-1].cancel()
        await asyncio.sleep(0.02)
        assert not batcher.full
        scorer.may_look_up.set()
        await asyncio.gather(*waiting[:-1])
        stuck.set()
        while batcher._running:
            await asyncio.sleep(0.001)
        scores = await results(batcher, [request(scorer, each) for each in range(6)])
        assert scores == [RowScores([[float(each)]], [None]) for each in range(6)]

    run(scenario, threads=2, waiting=4)
    assert scorer.lookups[0] == [0, 1, 2, 3, 4, 5]


class FakeSent:
    """A read whose answer arrives when `answer` is called."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.fileno = self.ours.fileno()
        self.given_up = False

    def answer(self, content: bytes) -> None:
        self.theirs.send(content)

    def receive(self) -> StoreRead | None:
        received = self.ours.recv(10)
        if received == b"broken":
            raise ConnectionResetError
        return StoreRead({}, {}) if received == b"all" else None

    def give_up(self) -> None:
        self.given_up = True
        self.close()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class SendingScorer(RecordingScorer):
    """A scorer whose store can be asked without a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[FakeSent] = []
        self.unusable = False

    def send(self, entity_rows: EntityRows) -> FakeSent:
        self.sent.append(FakeSent())
        return self.sent[-1]

    def vectors(self, entity_rows: EntityRows, read: StoreRead, now: datetime) -> OnlineVectors:
        if self.unusable:
            raise UnusableFeature("reading", "a value")
        return FakeScorer.look_up(self, entity_rows, now)


def send_one(scorer: SendingScorer, *answers: bytes) -> None:
    async def scenario(batcher: MicroBatcher) -> None:
        scoring = asyncio.create_task(batcher.score(request(scorer, 1)))
        while not scorer.sent:
            await asyncio.sleep(0)
        for answer in answers:
            scorer.sent[0].answer(answer)
            await asyncio.sleep(0.002)
        assert await scoring == RowScores([[1.0]], [None])
        assert not batcher._running

    run(scenario)
    for each in scorer.sent:
        each.close()


def test_a_small_micro_batch_needs_no_thread_if_the_store_answers_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "HAND_OVER_S", LONG_S)
    scorer = SendingScorer()
    send_one(scorer, b"a part", b"all")
    assert scorer.lookups == []
    assert not scorer.sent[0].given_up


@pytest.mark.parametrize("answers", [[], [b"a part"], [b"broken"]])
def test_a_thread_looks_up_what_the_store_does_not_answer_soon(answers: list[bytes]) -> None:
    scorer = SendingScorer()
    send_one(scorer, *answers)
    assert scorer.lookups == [[1]]
    assert scorer.sent[0].given_up


def test_a_thread_looks_up_again_if_what_was_read_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "HAND_OVER_S", LONG_S)
    scorer = SendingScorer()
    scorer.unusable = True
    send_one(scorer, b"all")
    assert scorer.lookups == [[1]]
    assert not scorer.sent[0].given_up


def test_while_a_micro_batch_waits_for_the_store_without_a_thread_its_deadline_passes_and_a_thread_takes_the_next() -> (
    None
):
    scorer = SendingScorer()

    async def scenario(batcher: MicroBatcher) -> None:
        with pytest.raises(TimeoutError):
            await batcher.score(request(scorer, 1), 0.001)
        assert await batcher.score(request(scorer, 2)) == RowScores([[2.0]], [None])
        while batcher._running:
            await asyncio.sleep(0.001)

    run(scenario, threads=2)
    assert scorer.lookups == [[2]]


def test_the_callers_get_any_error_of_a_thread_which_survives_it() -> None:
    scorer = RecordingScorer()

    async def scenario(batcher: MicroBatcher) -> None:
        requests = [request(scorer, 1), request(scorer, 2)]
        requests[1].entity_rows = {}  # simulates a defect
        assert [type(each) for each in await results(batcher, requests)] == [KeyError, KeyError]
        assert await batcher.score(request(scorer, 3)) == RowScores([[3.0]], [None])

    run(scenario)


def test_under_reject_complete_requests_are_predicted_together_after_one_lookup() -> None:
    predicted = []

    class Rejecting(RecordingScorer):
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
    first, rejected, last = results_of(request(scorer, 1), request(scorer, -2, 5), request(scorer, 3, 4))
    assert (first, last) == (RowScores([[1.0]], [None]), RowScores([[3.0, 4.0]], [None, None]))
    assert isinstance(rejected, FeaturesRejected)
    assert len(scorer.lookups) == 1
    assert predicted == [[1, 3, 4]]
