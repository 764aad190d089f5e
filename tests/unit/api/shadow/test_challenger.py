"""The challenger of an API on fake models: what it scores and sheds, and that no answer depends on it."""

import gc
import threading
import time
import weakref
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from litestar.testing import TestClient

from api.app import create_app
from api.inference.batcher import MicroBatcher
from api.model.loading import Target
from api.shadow import challenger
from api.shadow.loading import ChallengerLoader
from api.shadow.process import ProcessEnded
from scoring.errors import AliasNotSet, ModelRefused, PredictionFailed
from scoring.feast_plugins.join_keys import JoinKey
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.models.registry import ModelVersion
from scoring.online.lookup import OnlineVectors
from scoring.online.reading import EntityRows, StoreRead
from scoring.settings import Settings
from tests.support.api_client import when_ready
from tests.support.fakes import FakeLoader, FakeScorer, features, id_as_score
from tests.support.servers import wait_until

IDS = [1, 2, -3]


class Champion(FakeScorer):
    """A scorer whose lookups read something."""

    def look_up(self, entity_rows: EntityRows, now: datetime) -> OnlineVectors:
        online = super().look_up(entity_rows, now)
        return OnlineVectors(online.vectors, online.reasons, online.oldest_s, StoreRead({}, {}))


class FakeChallenger(FakeScorer):
    """A challenger that adds 100 to each score, or does what `function` does."""

    def __init__(self, version: int = 2, **fields: Any) -> None:
        def add(entity_rows: EntityRows) -> list[Any]:
            return [(value and value + 100, reason) for value, reason in id_as_score(entity_rows)]

        super().__init__(version, **{"function": add, **fields})
        self.changed: set[int] = set()
        """Drivers of which a row of a view is newer than the champion's."""

    def share(self, other: ModelFeatures, columns: list[str]) -> "FakeChallenger":
        return self

    def vectors(self, reads: Sequence[StoreRead], entity_rows: EntityRows, now_s: Any) -> Any:
        reasons = pa.nulls(len(now_s), pa.string())
        changed = np.isin(entity_rows["driver_id"], list(self.changed))
        return OnlineVectors(pa.table({}), reasons, None, StoreRead({}, {})), changed


class Alias(FakeLoader):
    """The loader of challengers, whose alias may name none."""

    def poll(self) -> Target | None:
        return super().poll() if self.scorer is not None else None


@pytest.fixture(autouse=True)
def _score_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(challenger, "INTERVAL_S", 0.01)
    monkeypatch.setattr(challenger, "SHARE", 1.0)


def api(
    loader: FakeLoader, folder: Path | None = None, champions: FakeLoader | None = None, **fields: Any
) -> TestClient[Any]:
    log = {} if folder is None else {"prediction_log": Location(folder)}
    settings = Settings(model_name="ranker", poll_interval_s=0.05, deadline_s=5.0, **log, **fields)
    return TestClient(create_app(settings, champions or FakeLoader(Champion()), None, loader))


def metric(client: TestClient[Any], name: str) -> float:
    return float(client.get("/metrics").text.partition(f"\nserving_challenger_{name} ")[2].partition("\n")[0] or 0)


def rows(client: TestClient[Any], result: str) -> float:
    return metric(client, f'rows_total{{result="{result}"}}')


def until(client: TestClient[Any], result: str, count: int) -> None:
    wait_until(lambda: rows(client, result) >= count, lambda: client.get("/metrics").text, 10, every_s=0.01)


def ask(client: TestClient[Any], request_id: str = "a", ids: Sequence[int] = IDS) -> list[Any]:
    answer = client.post("/scores", json={"request_id": request_id, "driver_ids": list(ids)})
    assert answer.status_code == 200
    assert [each["score"] for each in answer.json()["scores"]] == [None if each < 0 else each for each in ids]
    return answer.json()["scores"]


def challenged(loader: FakeLoader, client: TestClient[Any]) -> None:
    """Wait until the challenger is loaded."""
    when_ready(client)
    wait_until(lambda: 'version="2"' in client.get("/metrics").text, "the challenger", 10, every_s=0.01)


def logged(folder: Path) -> pa.Table:
    table = ds.dataset(folder, partitioning="hive").to_table()
    return table.sort_by([("__role", "ascending"), ("__request_id", "ascending")])


def test_its_outputs_are_logged_beside_the_champions(tmp_path: Path) -> None:
    loader = Alias(FakeChallenger())
    with api(loader, tmp_path) as client:
        challenged(loader, client)
        for name in "ab":
            ask(client, name)
        until(client, "scored", 6)

    table = logged(tmp_path)
    assert table["__role"].to_pylist() == ["challenger"] * 6 + ["champion"] * 6
    assert table["prediction"].to_pylist() == [101.0, 102.0, None] * 2 + [1.0, 2.0, None] * 2
    assert table["model_version"].to_pylist() == [2] * 6 + [1] * 6
    for column in ("__request_id", "driver_id", "reason", "__log_timestamp"):
        assert table[column].to_pylist()[:6] == table[column].to_pylist()[6:]
    assert min(table["__latency_ms"].to_pylist()) > 0
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_requests_whose_missing_features_are_newer_than_the_answer_are_shed(tmp_path: Path) -> None:
    scorer = FakeChallenger()
    scorer.changed = {2}
    loader = Alias(scorer)
    with api(loader, tmp_path) as client:
        challenged(loader, client)
        for name, ids in (("a", IDS), ("b", [1, 3]), ("c", [2])):
            ask(client, name, ids)
        until(client, "scored", 2)
        until(client, "shed", 4)

    table = logged(tmp_path)
    assert table["__request_id"].to_pylist()[:2] == ["b", "b"]
    assert table["__role"].to_pylist().count("challenger") == 2


def test_a_problem_ends_with_its_cause_without_further_requests() -> None:
    loader = Alias(FakeChallenger(link=features(JoinKey("customer_id", "int64"))))
    with api(loader) as client:
        challenged(loader, client)
        ask(client)
        until(client, "shed", 3)
        assert metric(client, "refused") == 1
        loader.scorer = FakeChallenger(3)
        wait_until(lambda: 'version="3"' in client.get("/metrics").text, "the swap", 10, every_s=0.01)
        assert metric(client, "refused") == 0
        assert client.get("/ready").json()["challenger"] == {"model": "ranker/3", "problem": None}
        loader.scorer = None
        wait_until(lambda: client.get("/ready").json()["challenger"] is None, "the end", 10, every_s=0.01)
        assert metric(client, "refused") == 0


def test_a_replaced_champion_does_not_stay_in_memory() -> None:
    loader = Alias(FakeChallenger())
    champions = FakeLoader(Champion())
    replaced = weakref.ref(champions.scorer)
    with api(loader, champions=champions) as client:
        challenged(loader, client)
        ask(client)
        until(client, "scored", 3)
        loader.scorer = None
        champions.point_to(Champion(3))

        def freed() -> bool:
            ask(client)
            gc.collect()
            return replaced() is None

        wait_until(freed, "the end of the champion", 10, every_s=0.05)


def test_without_the_alias_nothing_is_scored_and_a_removed_one_ends_its_challenger() -> None:
    scorer = FakeChallenger()
    loader = Alias(scorer)
    with api(loader) as client:
        challenged(loader, client)
        loader.scorer = None
        wait_until(lambda: scorer.closed, "the end", 10, every_s=0.01)
        assert 'version="2"' not in client.get("/metrics").text
        ask(client)
        time.sleep(0.1)
        assert rows(client, "scored") == rows(client, "shed") == 0


def test_a_swap_ends_the_challenger_before() -> None:
    first = FakeChallenger()
    loader = Alias(first)
    with api(loader) as client:
        challenged(loader, client)
        loader.scorer = FakeChallenger(3)
        wait_until(lambda: 'version="3"' in client.get("/metrics").text, "the swap", 10, every_s=0.01)
        wait_until(lambda: first.closed, "the end", 10, every_s=0.01)
        ask(client)
        until(client, "scored", 3)
    assert loader.scorer.closed


def test_one_that_raises_is_logged_with_its_problem(tmp_path: Path) -> None:
    def fail(_: EntityRows) -> Any:
        raise PredictionFailed("ranker/2", "ValueError")

    loader = Alias(FakeChallenger(function=fail))
    with api(loader, tmp_path) as client:
        challenged(loader, client)
        ask(client)
        until(client, "failed", 3)

    table = logged(tmp_path)
    assert table["__problem"].to_pylist() == ["prediction-failed"] * 3 + [None] * 3
    assert table["prediction"].to_pylist() == [None] * 3 + [1.0, 2.0, None]


def test_while_it_hangs_requests_are_answered_and_the_rows_beyond_the_bound_are_shed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(challenger, "MAX_WAITING_ROWS", 6)
    goes_on = threading.Event()

    def hang(entity_rows: EntityRows) -> Any:
        goes_on.wait(20)
        return id_as_score(entity_rows)

    loader = Alias(FakeChallenger(function=hang))
    with api(loader) as client:
        challenged(loader, client)
        ask(client)
        time.sleep(0.1)
        for _ in range(3):
            ask(client)
        assert rows(client, "shed") == 3
        goes_on.set()
        until(client, "scored", 9)


def test_while_requests_wait_it_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MicroBatcher, "waiting", True)
    loader = Alias(FakeChallenger())
    with api(loader) as client:
        challenged(loader, client)
        ask(client)
        time.sleep(0.1)
        assert rows(client, "scored") == 0
        monkeypatch.setattr(MicroBatcher, "waiting", False)
        until(client, "scored", 3)


def test_one_whose_process_ended_is_withdrawn_and_neither_readiness_nor_answers_change(tmp_path: Path) -> None:
    def end(_: EntityRows) -> Any:
        raise ProcessEnded("ranker/2", "its process ended (SIGKILL)")

    loader = Alias(FakeChallenger(function=end))
    with api(loader, tmp_path) as client:
        challenged(loader, client)
        ask(client)
        wait_until(lambda: metric(client, "refused") == 1, "the end", 10, every_s=0.01)
        assert client.get("/ready").json()["challenger"] == {
            "model": "ranker/2",
            "problem": "Model version ranker/2 failed to predict: its process ended (SIGKILL)",
        }
        assert client.get("/ready").status_code == 200
        ask(client)
        assert rows(client, "failed") == 3


def test_a_refused_one_is_reported_and_the_champion_stays_ready() -> None:
    loader = Alias(FakeChallenger())
    loader.load_error = ModelRefused("ranker/2", "it is broken.")
    with api(loader) as client:
        when_ready(client)
        wait_until(lambda: metric(client, "refused") == 1, "the refusal", 10, every_s=0.01)
        ready = client.get("/ready")
        assert ready.status_code == 200
        assert "it is broken" in ready.json()["challenger"]["problem"]
        assert ready.json()["refused"] is None
        assert "\nserving_model_refused 0" in client.get("/metrics").text


def test_the_process_of_one_that_is_refused_after_it_was_loaded_ends() -> None:
    scorer = FakeChallenger(link=features(JoinKey("reason", "int64")))
    with api(Alias(scorer)) as client:
        when_ready(client)
        wait_until(lambda: metric(client, "refused") == 1, "the refusal", 10, every_s=0.01)
        assert "its join key 'reason'" in client.get("/ready").json()["challenger"]["problem"]
        wait_until(lambda: scorer.closed, "the end of its process", 10, every_s=0.01)


@pytest.mark.parametrize(
    "link",
    [
        features(JoinKey("customer_id", "int64")),
        features(request_inputs={"price": pa.float64()}),
        features(overridable={"price": pa.float64()}),
    ],
    ids=["keys", "input", "overridable"],
)
def test_one_that_needs_other_columns_of_a_request_is_reported_once(link: ModelFeatures) -> None:
    loader = Alias(FakeChallenger(link=link))
    with api(loader) as client:
        challenged(loader, client)
        ask(client)
        until(client, "shed", 3)
        ask(client)
        until(client, "shed", 6)
        assert metric(client, "refused") == 1
        assert "It needs other columns of a request" in client.get("/ready").json()["challenger"]["problem"]
        loader.scorer = FakeChallenger(3)
        wait_until(lambda: 'version="3"' in client.get("/metrics").text, "the swap", 10, every_s=0.01)
        ask(client)
        until(client, "scored", 3)
        assert metric(client, "refused") == 0


def test_only_the_sampled_requests_are_scored() -> None:
    loader = Alias(FakeChallenger())
    with api(loader, challenger_sample=0.5) as client:
        challenged(loader, client)
        for number in range(100):
            ask(client, f"request-{number}", [1])
        wait_until(lambda: rows(client, "scored") > 30, lambda: client.get("/metrics").text, 10)
        assert rows(client, "scored") < 70
    with api(loader, challenger_sample=0.0) as client:
        assert when_ready(client).get("/ready").json()["challenger"] is None


class Aliases:
    """A registry with these aliases."""

    def __init__(self, **aliases: int) -> None:
        self.aliases = aliases

    def resolve(self, name: str, alias: str) -> ModelVersion:
        if alias not in self.aliases:
            raise AliasNotSet(name, alias)
        return ModelVersion(name, self.aliases[alias])


def test_the_alias_names_a_challenger_unless_it_is_missing_or_on_the_champion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChallengerLoader, "_definitions", lambda _: "definitions")
    registry: Any = Aliases(champion=1)
    loader = ChallengerLoader(Settings(model_name="ranker"), registry)
    assert loader.poll() is None
    registry.aliases["challenger"] = 1
    assert loader.poll() is None
    registry.aliases["challenger"] = 2
    assert loader.poll() == Target(ModelVersion("ranker", 2), "definitions")
