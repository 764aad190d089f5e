"""Following the alias: which versions are swapped in or refused, and what /ready and the log report."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from litestar.testing import TestClient

from api.app import create_app
from api.errors import NoModel
from api.http.readiness import readiness
from api.model.alias_follower import FIRST_RETRY_S, LONGEST_RETRY_S, AliasFollower
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from scoring.errors import AliasNotSet, FeatureStoreError, ModelNotRegistered, ModelRefused, NoRoom, RegistryUnreachable
from scoring.feast_plugins.join_keys import JoinKey
from scoring.settings import Settings
from tests.support.fakes import FakeLoader, FakeScorer, features

SETTINGS = Settings(model_name="ranker")
ADDRESS = "http://mlflow.inside:5000"
DETAILS = "Error 111 connecting as user ann"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Following:
    """An alias follower whose polls a test makes one by one."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.clock, self.loader, self.probe = Clock(), FakeLoader(), StoreProbe()
        self.slot = ModelSlot(self.clock)
        self.follower = AliasFollower(SETTINGS, self.loader, self.slot, self.probe)
        self.run = runner.run

    def poll(self) -> None:
        self.run(self.follower.poll())

    @property
    def version(self) -> int:
        return self.slot.current().scorer.version.version


@pytest.fixture
def following() -> Iterator[Following]:
    with asyncio.Runner() as runner:
        started = Following(runner)
        yield started
        started.follower.stop()
        started.probe.stop()


def test_another_version_is_loaded_once_and_swapped_in(following: Following) -> None:
    loader = following.loader
    for version in (1, 2, 1):
        loader.point_to(FakeScorer(version))
        following.poll()
        following.poll()
        assert following.version == version
    assert loader.loads == [1, 2, 1]


def test_a_version_withdrawn_while_it_loads_never_serves(following: Following) -> None:
    follower, slot, loader = following.follower, following.slot, following.loader

    async def scenario() -> None:
        old = FakeScorer(1)
        loader.point_to(old)
        await follower.poll()
        loader.point_to(FakeScorer(2))
        loader.may_load.clear()
        polling = asyncio.create_task(follower.poll())
        while loader.loads != [1, 2]:
            await asyncio.sleep(0.001)
        loader.point_to(old)
        loader.may_load.set()
        await polling
        assert following.version == slot.swaps == 1
        await follower.poll()
        assert loader.loads == [1, 2]

    following.run(scenario())


def test_a_refused_version_leaves_the_old_one_serving_and_is_retried_at_growing_intervals(following: Following) -> None:
    slot, loader, clock = following.slot, following.loader, following.clock
    following.poll()
    loader.point_to(FakeScorer(2))
    loader.load_error = ModelRefused("ranker/2", "no signature")
    waits = []
    for _ in range(8):
        following.poll()
        assert slot.refusal is not None
        waits.append(slot.refusal.retry_at - clock.now)
        clock.now = slot.refusal.retry_at - 0.1
        following.poll()
        clock.now += 0.2
    assert loader.loads == [1] + [2] * 8
    assert waits[:2] == [FIRST_RETRY_S, 2 * FIRST_RETRY_S]
    assert waits[-1] == LONGEST_RETRY_S
    assert following.version == 1
    assert "no signature" in slot.refusal.reason


def test_a_machine_without_room_is_reported_with_the_folder_and_refuses_no_version(following: Following) -> None:
    slot, loader, clock = following.slot, following.loader, following.clock
    following.poll()
    loader.point_to(FakeScorer(2))
    loader.load_error = NoRoom("/var/tmp", "No space left on device")
    with structlog.testing.capture_logs() as lines:
        following.poll()
        following.poll()
    assert [line["event"] for line in lines] == ["model_not_tried"]
    assert slot.refusals == 0
    assert loader.loads == [1, 2]
    refused = readiness(SETTINGS, slot, StoreProbe(), threading.Event())[0].refused
    assert refused is not None
    assert refused.fault_of == "this_machine"
    assert "/var/tmp failed: No space left on device" in refused.reason
    assert refused.next_attempt_in_s == FIRST_RETRY_S
    loader.load_error = None
    clock.now += FIRST_RETRY_S
    following.poll()
    assert following.version == 2
    assert slot.refusal is None


def test_another_version_after_a_refused_one_is_loaded_at_once(following: Following) -> None:
    slot, loader = following.slot, following.loader
    loader.load_error = ModelRefused("ranker/1", "no signature")
    following.poll()
    with pytest.raises(NoModel, match="no signature"):
        slot.current()
    loader.load_error = None
    loader.point_to(FakeScorer(2))
    following.poll()
    assert following.version == 2
    assert slot.refusal is None


def test_an_alias_that_moves_back_clears_the_refusal(following: Following) -> None:
    slot, loader = following.slot, following.loader
    following.poll()
    loader.point_to(FakeScorer(2))
    loader.load_error = MemoryError()
    following.poll()
    assert slot.refusal is not None
    loader.point_to(FakeScorer(1))
    following.poll()
    assert slot.refusal is None
    assert following.version == 1


def test_an_outage_of_the_registry_leaves_the_old_version_serving_and_refuses_none(following: Following) -> None:
    slot, loader, clock = following.slot, following.loader, following.clock
    following.poll()
    loader.poll_error = RegistryUnreachable("http://mlflow", OSError("refused"))
    clock.now += 60
    following.poll()
    assert following.version == 1
    assert slot.poll_age_s() == 60
    assert slot.poll_problem is not None
    loader.poll_error = None
    loader.point_to(FakeScorer(2))
    loader.load_error = RegistryUnreachable("http://mlflow", OSError("refused"))
    following.poll()
    assert slot.refusal is None
    loader.load_error = None
    following.poll()
    assert following.version == 2
    assert slot.poll_problem is None


def test_a_join_key_named_like_a_member_of_the_answers_is_refused(following: Following) -> None:
    slot, loader = following.slot, following.loader
    loader.point_to(FakeScorer(link=features(JoinKey("reason", "int64"))))
    following.poll()
    assert slot.refusal is not None
    assert "'reason'" in slot.refusal.reason


def test_before_the_first_model_the_process_is_live_and_ready_gives_the_reason() -> None:
    loader = FakeLoader()
    loader.poll_error = AliasNotSet("ranker", "champion")
    with TestClient(create_app(Settings(model_name="ranker", poll_interval_s=0.1), loader)) as client:
        assert client.get("/live").json() == {"live": True}
        for method, path in (("POST", "/inference"), ("POST", "/scores"), ("GET", "/version"), ("GET", "/ready")):
            answer: Any = client.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 503
            assert int(answer.headers["Retry-After"]) >= 1
            assert "No model version serves yet" in answer.json()["detail"]
        assert client.get("/openapi.json").json()["paths"]["/inference"]["post"]["requestBody"]["required"] is True


def test_a_failed_store_makes_the_process_not_ready_but_live() -> None:
    scorer = FakeScorer()
    scorer.store_error = FeatureStoreError(
        "reading the online store", ConnectionRefusedError("10.0.0.7:6379, user ann")
    )
    with TestClient(create_app(Settings(model_name="ranker", poll_interval_s=0.1), FakeLoader(scorer))) as client:
        while client.get("/version").status_code != 200:
            pass
        answer = client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["feature_store"]["usable"] is False
        assert "it refused the connection" in answer.json()["detail"]
        assert "ann" not in answer.text
        assert "10.0.0.7" not in answer.text
        assert client.get("/live").status_code == 200


@pytest.mark.parametrize("of", ["poll", "load"])
@pytest.mark.parametrize(
    "error",
    [
        FeatureStoreError("reading its registry", OSError(DETAILS)),
        RegistryUnreachable(ADDRESS, OSError(DETAILS)),
        OSError(DETAILS),
        ModelNotRegistered("ranker", ADDRESS),
    ],
)
def test_only_the_log_has_the_message_of_another_server(error: Exception, of: str) -> None:
    loader = FakeLoader()
    setattr(loader, f"{of}_error", error)
    settings = Settings(model_name="ranker", poll_interval_s=0.05)
    with structlog.testing.capture_logs() as lines, TestClient(create_app(settings, loader)) as client:
        while "being loaded" in client.get("/ready").text:
            time.sleep(0.005)
        time.sleep(0.2)
        answer = client.get("/ready")
    assert answer.status_code == 503
    assert "ann" not in answer.text
    assert "mlflow.inside" not in answer.text
    (reason,) = [line["reason"] for line in lines if "reason" in line]
    assert "ann" in reason or "mlflow.inside" in reason
