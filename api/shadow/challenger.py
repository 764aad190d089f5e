"""Scores answered requests with the challenger, in a thread that drops requests rather than delay answers.

A request adds one small record once its answer has gone out. The thread takes several of them at a time while no
request waits, makes their vectors from what was read for the champion, and sends them to the challenger's process. It
uses at most a fixed share of one processor's time, because it competes with requests for the interpreter's lock. What
exceeds that waits, up to a bound, and is then dropped and counted.
"""

import asyncio
import contextlib
import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import msgspec
import numpy as np
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.inference.batch_policy import MAX_ROWS
from api.inference.micro_batch import MicroBatch, PendingRequest, RequestResult, merged_rows, split
from api.model.alias_follower import AliasFollower
from api.model.loading import Loader
from api.model.model_slot import ModelSlot, Served
from api.model.scorer import RowScores
from api.shadow.loading import ChallengerScorer
from api.shadow.process import ProcessEnded
from api.telemetry.prediction_log import PredictionLog
from scoring.errors import ServingError
from scoring.foreign_errors import first_line
from scoring.monitoring.prediction_log import CHALLENGER, LoggedBatch, LoggedRequest, LogSchema, in_sample
from scoring.online.reading import StoreRead
from scoring.online.shared_lookup import SharedLookup
from scoring.predict import MODEL_FAILED
from scoring.settings import Settings

log = structlog.get_logger(__name__)

PREFIX = "serving_challenger_"
# The thread competes with requests for the interpreter's lock. Therefore it scores several requests at a time, at these
# intervals, and uses at most this share of one processor's time.
INTERVAL_S = 0.5
SHARE = 0.01
LONGEST_PAUSE_S = 5.0
MAX_WAITING_ROWS = 10_000
STOP_S = 1.0


class Answered(msgspec.Struct, frozen=True, gc=False):
    """A request that the champion has scored."""

    served: Served
    request_id: str
    pending: PendingRequest
    batch: MicroBatch


class Pair(msgspec.Struct, frozen=True):
    """A challenger, and the champion whose requests it scores."""

    served: Served
    champion: Served
    lookup: SharedLookup | None
    """Makes the challenger's vectors; None if it can't score these requests."""
    problem: str | None
    """Why it can't; None while both are linked to different definitions."""
    schema: LogSchema | None
    """The columns of its rows in the log; None without a log."""


class Challenger(Collector):
    """The challenger of one process. `add` is called on the event loop; it is also a collector of its metrics."""

    def __init__(
        self,
        settings: Settings,
        loader: Loader,
        champion: ModelSlot,
        busy: Callable[[], bool],
        problem_of: Callable[[Exception], str],
        prediction_log: PredictionLog | None,
    ) -> None:
        """Score nothing yet.

        Args:
            settings: the settings of the application.
            loader: loads challengers.
            champion: holds the version that answers requests.
            busy: whether requests wait. Called in the thread.
            problem_of: returns the name of an error's type of problem.
            prediction_log: gets the scores.
        """
        self.slot = ModelSlot()
        self._follower = AliasFollower(settings, loader, self.slot, None, CHALLENGER)
        self._sample = settings.challenger_sample
        if prediction_log is not None:
            self._sample = min(self._sample, settings.prediction_log_sample)
        self._champion, self._busy, self._problem_of = champion, busy, problem_of
        self._log = prediction_log
        self._waiting: deque[Answered] = deque()
        self._rows: Counter[str] = Counter()
        """Result → rows. This and the next are used by the event loop only."""
        self._added = 0
        self._taken = 0
        """Rows that the thread took from those that were added. This and all below is written by the thread only."""
        self._pair: Pair | None = None
        self._reported: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="challenger", daemon=True)

    def wake(self) -> None:
        """Poll the alias now."""
        self._follower.wake()

    async def run(self) -> None:
        """Follow the alias until cancelled, once there is a champion."""
        self._loop = asyncio.get_running_loop()
        while self._champion.served is None:
            await asyncio.sleep(INTERVAL_S)
        self._thread.start()
        await self._follower.run()

    async def stop(self) -> None:
        """End the challenger's process and the thread."""
        self._stop.set()
        self._follower.stop()
        served, self.slot.served = self.slot.served, None
        if served is not None:
            await asyncio.to_thread(served.scorer.close)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, STOP_S)

    def add(self, served: Served, request_id: str, pending: PendingRequest) -> None:
        """Score a request that has ended, soon after its answer, if its features were read and it is in the sample."""
        batch = pending.batch
        if batch is None or batch.online is None or batch.online.read is None:
            return
        if not in_sample(request_id, self._sample):
            return
        if self._added - self._taken + pending.rows > MAX_WAITING_ROWS:
            self._rows["shed"] += pending.rows
            return
        self._added += pending.rows
        # The event loop calls this after it has sent the answer.
        self._loop.call_soon(self._waiting.append, Answered(served, request_id, pending, batch))

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        rows = CounterMetricFamily(PREFIX + "rows", "Entities scored by the challenger, by result.", labels=("result",))
        for result in ("scored", "failed", "shed"):
            rows.add_metric((result,), self._rows[result])
        yield rows
        info = GaugeMetricFamily(
            PREFIX + "info", "The challenger that is loaded: always 1.", labels=("name", "version")
        )
        if self.slot.served is not None:
            version = self.slot.served.target.version
            info.add_metric((version.name, str(version.version)), 1)
        yield info
        refused = int(self.state is not None and self.state[1] is not None)
        yield GaugeMetricFamily(PREFIX + "refused", "1 while the alias challenger's version can't score.", refused)

    @property
    def state(self) -> tuple[str, str | None] | None:
        """The version that the alias names, and why it can't score requests if it can't; None without the alias."""
        if self.slot.refusal is not None:
            return str(self.slot.refusal.target.version), self.slot.refusal.public
        pair = self._pair
        problem = pair.problem if pair is not None and self._is_current(pair) else None
        return None if self.slot.served is None else (str(self.slot.served.target.version), problem)

    def _is_current(self, pair: Pair) -> bool:
        return pair.served is self.slot.served and pair.champion is self._champion.served

    def _run(self) -> None:
        pause_s = INTERVAL_S
        while not self._stop.wait(pause_s):
            began = time.thread_time()
            try:
                if self._pair is not None and not self._is_current(self._pair):
                    self._pair = None  # otherwise a model that was replaced would stay in memory
                if self._waiting and not self._busy():
                    self._score_next()
            except Exception as error:  # the thread must survive any error, whose message may quote a value
                log.error("challenger_failed", reason=type(error).__name__)
            pause_s = min(max(INTERVAL_S, (time.thread_time() - began) / SHARE), LONGEST_PAUSE_S)

    def _score_next(self) -> None:
        taken = self._take()
        served, champion = self.slot.served, taken[0].served
        pair = self._pair
        if served is not None and (pair is None or pair.served is not served or pair.champion is not champion):
            pair = self._pair = self._paired(served, champion, _reads(taken[:1])[0])
        if served is None or pair is None or pair.lookup is None:
            self._shed(taken)
            return
        for group in [taken] if served.scorer.mergeable else [[each] for each in taken]:
            self._score(pair, pair.lookup, group)

    def _shed(self, requests: Sequence[Answered]) -> None:
        self._on_loop(self._rows.update, {"shed": sum(each.pending.rows for each in requests)})

    def _take(self) -> list[Answered]:
        """Return waiting requests that may be scored together."""
        taken = [self._waiting.popleft()]
        rows = taken[0].pending.rows
        while self._waiting and self._waiting[0].served is taken[0].served:
            if rows + self._waiting[0].pending.rows > MAX_ROWS:
                break
            taken.append(self._waiting.popleft())
            rows += taken[-1].pending.rows
        self._taken += rows
        return taken

    def _paired(self, served: Served, champion: Served, read: StoreRead) -> Pair:
        lookup = problem = schema = None
        scorer, other = served.scorer, champion.scorer.features
        needed, given = scorer.features.request_columns, other.request_columns
        if served.target.definitions != champion.target.definitions:
            pass  # both will soon have the same
        elif needed != given or set(scorer.features.overridable) != set(other.overridable):
            columns = [", ".join((*each.request_columns, *each.overridable)) for each in (scorer.features, other)]
            problem = f"It needs other columns of a request ({columns[0]}) than the champion ({columns[1]})."
        else:
            try:
                lookup = cast(ChallengerScorer, scorer).share(other, list(read.columns))
                schema = None if self._log is None else self._log.schema(served, CHALLENGER)
            except ServingError as error:
                problem = str(error)
        if problem is not None:
            log.error("challenger_not_comparable", model=str(scorer.version), reason=problem)
        return Pair(served, champion, lookup, problem, schema)

    def _score(self, pair: Pair, lookup: SharedLookup, group: Sequence[Answered]) -> None:
        started_at = time.perf_counter()
        requests = [each.pending for each in group]
        as_of = np.array([each.batch.as_of.replace(tzinfo=None) for each in group], "datetime64[us]")
        as_of = np.repeat(as_of, [request.rows for request in requests])
        read: StoreRead | None = None
        results: Sequence[RequestResult] = []
        late: list[bool] = []
        try:
            entity_rows = merged_rows(requests)
            online, changed = lookup.vectors(_reads(group), entity_rows, as_of.astype(np.int64) / 1e6)
            parts = np.split(changed, np.cumsum([request.rows for request in requests])[:-1])
            late = [bool(part.any()) for part in parts]
            if not any(late):
                read = online.read
                results = split(pair.served.scorer.score(entity_rows, online), requests)
        except Exception as error:
            results = [error] * len(group)
        if any(late):
            self._shed([each for each, is_late in zip(group, late, strict=True) if is_late])
            if rest := [each for each, is_late in zip(group, late, strict=True) if not is_late]:
                self._score(pair, lookup, rest)
            return
        self._report(pair.served, next((each for each in results if isinstance(each, Exception)), None))
        latency_ms = (time.perf_counter() - started_at) * 1e3
        logged = [self._logged(each, result, latency_ms) for each, result in zip(group, results, strict=True)]
        failed = sum(each.rows if each.reasons is None else each.reasons.count(MODEL_FAILED) for each in logged)
        self._on_loop(self._rows.update, {"failed": failed, "scored": len(as_of) - failed})
        if self._log is not None and pair.schema is not None:
            self._log.add_rows(pair.schema, pair.schema.table([LoggedBatch(logged, as_of, read)]))

    def _logged(self, answered: Answered, result: RequestResult, latency_ms: float) -> LoggedRequest:
        outputs = reasons = problem = None
        if isinstance(result, RowScores):
            outputs, reasons = result.outputs, result.reasons
        elif isinstance(result, Exception):
            problem = self._problem_of(result)
        request = answered.pending
        return LoggedRequest(
            answered.request_id, request.entity_rows, request.rows, outputs, reasons, latency_ms, problem
        )

    def _report(self, served: Served, failure: Exception | None) -> None:
        """Log a failure unless it is the last one again, and withdraw a challenger whose process ended."""
        reason = None if failure is None else first_line(failure)
        if isinstance(failure, ProcessEnded):
            self._on_loop(self._follower.withdraw, served, failure)
        elif reason is not None and reason != self._reported:
            log.warning("challenger_failed", model=str(served.scorer.version), reason=reason)
        self._reported = reason

    def _on_loop(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is ending
            self._loop.call_soon_threadsafe(function, *arguments)


def _reads(group: Sequence[Answered]) -> list[StoreRead]:
    """Return what was read for these requests, in their order, in as few parts as possible."""
    reads = []
    for batch, parts in itertools.groupby(group, lambda each: each.batch):
        requests, online = [part.pending for part in parts], batch.online
        if online is None or online.read is None:
            continue  # `add` takes no such request
        whole = requests == list(batch.requests)
        reads += [online.read] if whole else [online.read.slice(each.start, each.rows) for each in requests]
    return reads
