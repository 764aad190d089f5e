"""The API process follows the alias of a real MLflow server, with a real Redis, under load."""

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
import skops.io
import yaml
from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
from mlflow.models import infer_signature
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import ElasticNet, LogisticRegression
from sklearn.tree._tree import Tree

from tests.support.api_server import ApiServer
from tests.support.servers import MlflowServer, RedisServer, wait_until
from tests.support.worlds import DRIVER_INPUTS, World, build_driver_world, register_driver_model

# Maximum duration of a swap to a version that served before, which needs no trial. One of twenty may take longer on a
# busy machine.
SWAP_S = 4
SECRET = "a secret of more than 16 characters"
SETTINGS = {
    "SERVING_POLL_INTERVAL_S": "0.5",
    "SERVING_DEADLINE_S": "5",
    "SERVING_DRAIN_S": "0",
    "SERVING_WEBHOOK_SECRET": SECRET,
    "SERVING_MAX_MODEL_BYTES": "300000",
}
TAGS = {"feast.feature_service": "driver_ranking"}
DRIVERS = list(range(1001, 1006))


@dataclasses.dataclass
class RegistryWithWebhooks(MlflowServer):
    """An MLflow server that may call a loopback address."""

    def own_environment(self) -> dict[str, str]:
        return super().own_environment() | {
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        }


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server for this module, because a test stops it."""
    with RegistryWithWebhooks(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, registry: MlflowServer, redis_server: RedisServer) -> World:
    folder = tmp_path_factory.mktemp("drivers")
    return build_driver_world(folder, redis=f"{redis_server.connection_string},db=15", registry=registry.uri)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[ApiServer]:
    server = ApiServer(tmp_path_factory.mktemp("api"), environment=world.environment | SETTINGS)
    with server:
        yield server


def served_version(api: ApiServer) -> int:
    return int(api.get("/version").json()["model"]["version"])


def promote(world: World, api: ApiServer, version: int) -> float:
    """Move the alias. Return the seconds until the API responds with that version."""
    world.promote(version)
    return wait_until(lambda: served_version(api) == version, lambda: f"version {version}: {api.get('/ready').text}")


class Load:
    """Clients that send requests with a pause after each response, and record the responses."""

    def __init__(self, api: ApiServer, clients: int = 3, pause_s: float = 0.05) -> None:
        self.answers: list[tuple[int, dict[str, Any], str | None]] = []
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._api = api
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        body = {"request_id": "r", "driver_ids": DRIVERS}
        with httpx.Client(base_url=self._api.url, timeout=30, verify=False) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post("/scores", json=body)
                    self.answers.append((answer.status_code, answer.json(), answer.headers.get("X-Model-Version")))
                except Exception as error:  # no response is a failed request, too
                    self.answers.append((0, {"error": repr(error)}, None))
                time.sleep(self._pause_s)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[Any]:
        return [answer for answer in self.answers if answer[0] != 200]


def scores_of(body: dict[str, Any]) -> tuple[float, ...]:
    return tuple(row["score"] for row in body["scores"])


@pytest.mark.timeout(400)
def test_twenty_swaps_under_load_fail_no_request_and_each_response_is_from_one_version(
    world: World, api: ApiServer
) -> None:
    versions = [register_driver_model(world, alpha=alpha, promote=False) for alpha in (0.002, 0.005, 0.02)]
    expected = {}
    for version in versions:
        promote(world, api, version)
        answer = api.ask(json.dumps({"request_id": "r", "driver_ids": DRIVERS}).encode(), "/scores").json()
        expected[version] = scores_of(answer)
    assert len(set(expected.values())) == len(versions)
    with Load(api, pause_s=0.02) as load:
        took_s = [promote(world, api, versions[number % len(versions)]) for number in range(20)]
    assert not load.failed
    seen = set()
    for _, body, header in load.answers:
        version = body["model"]["version"]
        assert header == f"driver_ranker/{version}"
        assert scores_of(body) == expected[version]
        seen.add(version)
    assert seen == set(versions)
    assert sorted(took_s)[-2] < SWAP_S
    assert max(took_s) < SWAP_S + 3
    metrics = api.get("/metrics").text
    assert f'version="{served_version(api)}"' in metrics


def estimator_and_frame(world: World) -> tuple[ElasticNet, pd.DataFrame]:
    stats = pd.read_parquet(world.folder / "feature_repo" / "data" / "driver_stats.parquet")
    frame = stats[DRIVER_INPUTS].astype("float64")
    return ElasticNet().fit(frame, frame["conv_rate"]), frame


def saved(folder: Path, model: Any, frame: pd.DataFrame, **save: Any) -> Path:
    predict = getattr(model, save.get("pyfunc_predict_fn", "predict"))
    options = {
        "signature": infer_signature(frame, predict(frame)),
        "input_example": frame.head(5),
        "pip_requirements": ["scikit-learn"],
    }
    mlflow.sklearn.save_model(model, folder, **options | save)
    return folder


def truncated(folder: Path, world: World) -> None:
    file = saved(folder, *estimator_and_frame(world)) / "model.skops"
    file.write_bytes(file.read_bytes()[:-500])


def flipped(folder: Path, world: World) -> None:
    file = saved(folder, *estimator_and_frame(world)) / "model.skops"
    content = bytearray(file.read_bytes())
    content[60] ^= 0xFF
    file.write_bytes(content)


def pickled(folder: Path, world: World) -> None:
    saved(folder, *estimator_and_frame(world), serialization_format="cloudpickle")


def crafted(folder: Path, world: World) -> None:
    estimator, frame = estimator_and_frame(world)
    saved(folder, estimator, frame)
    estimator.callback = __import__("os").system
    skops.io.dump(estimator, folder / "model.skops")
    description = yaml.safe_load((folder / "MLmodel").read_text())
    description["flavors"]["sklearn"]["skops_trusted_types"] = ["posix.system"]
    (folder / "MLmodel").write_text(yaml.safe_dump(description))


def crashing(folder: Path, world: World) -> None:
    """A boosted tree that refers to more inputs than it gets, so that scikit-learn reads beyond the end of the row."""
    _, frame = estimator_and_frame(world)
    boosted = GradientBoostingRegressor(n_estimators=2).fit(frame, frame["conv_rate"])
    saved(folder, boosted, frame, skops_trusted_types=["sklearn.tree._tree.Tree"])
    tree, inputs = boosted.estimators_[1, 0], 2 * 10**9
    state = tree.tree_.__getstate__()
    state["nodes"]["feature"][0] = inputs - 1
    tree.tree_, tree.n_features_in_ = Tree(inputs, np.array([1]), 1), inputs
    tree.tree_.__setstate__(state)
    skops.io.dump(boosted, folder / "model.skops")


def wrong_signature(folder: Path, world: World) -> None:
    estimator, frame = estimator_and_frame(world)
    other = frame[DRIVER_INPUTS[:2]]
    saved(folder, estimator, frame, signature=infer_signature(other, np.array([0.5])), input_example=other.head(3))


def not_finite(folder: Path, world: World) -> None:
    estimator, frame = estimator_and_frame(world)
    saved(folder, estimator, frame)
    estimator.coef_ = np.full(3, np.nan)
    skops.io.dump(estimator, folder / "model.skops")


def wrong_shape(folder: Path, world: World) -> None:
    _, frame = estimator_and_frame(world)
    model = LogisticRegression().fit(frame, frame["conv_rate"] > frame["conv_rate"].median())
    saved(folder, model, frame, pyfunc_predict_fn="predict_proba")


def too_large(folder: Path, world: World) -> None:
    saved(folder, *estimator_and_frame(world))
    (folder / "ballast").write_bytes(bytes(400_000))


SPOILT: dict[Callable[[Path, World], None], str] = {
    truncated: "can't be read as skops",
    flipped: "refused",
    pickled: "its format cloudpickle is not allowed",
    crafted: "types that are not allowed: posix.system",
    crashing: "it crashed during its trial (SIGSEGV)",
    wrong_signature: "the columns that it was fitted on (it lacks avg_daily_trips)",
    not_finite: "no finite number for 5 of 5 golden rows",
    wrong_shape: "its output has 2 columns and column 2 (counted from 0) is chosen by the version's tag",
    too_large: "SERVING_MAX_MODEL_BYTES allows 300000",
}


@pytest.mark.timeout(600)
def test_unusable_versions_are_refused_and_no_request_fails(world: World, api: ApiServer, tmp_path: Path) -> None:
    versions = {}
    for spoil in SPOILT:
        spoil(tmp_path / spoil.__name__, world)
        tags = TAGS | ({"serving.output_column": "2"} if spoil is wrong_shape else {})
        versions[spoil] = world.register_files(tmp_path / spoil.__name__, tags=tags)
    before = served_version(api)

    def refused() -> dict[str, Any]:
        return api.get("/ready").json()["refused"] or {}

    reasons, waits_s = {}, []
    with Load(api) as load:
        for spoil, version in versions.items():
            world.promote(version)
            name = f"driver_ranker/{version}"
            wait_until(lambda name=name: refused().get("model") == name, spoil.__name__)  # type: ignore[misc]
            reasons[spoil] = refused()["reason"]
            waits_s.append(refused()["next_attempt_in_s"])
            assert api.get("/ready").status_code == 200
        world.promote(before)
        wait_until(lambda: not refused(), "the refusal is gone when the alias is back")
    assert not load.failed
    assert {body["model"]["version"] for _, body, _ in load.answers} == {before}
    for spoil, reason in SPOILT.items():
        assert reason in reasons[spoil], spoil.__name__
    assert min(waits_s) > 10, "none is tried again in a tight loop"
    logged = [line["model"] for line in api.log_lines() if line["event"] == "model_refused"]
    assert logged == [f"driver_ranker/{version}" for version in versions.values()]


def test_during_an_outage_of_the_registry_the_version_keeps_serving_and_the_poll_age_grows(
    world: World, api: ApiServer, registry: MlflowServer
) -> None:
    def silent_s() -> float:
        return float(api.get("/ready").json()["registry"]["last_answer_age_s"])

    before = served_version(api)
    with Load(api, clients=1) as load:
        with registry.stopped():
            wait_until(lambda: silent_s() > 3, "its age grows")
            assert api.get("/ready").json()["registry"]["problem"]
        wait_until(lambda: silent_s() < 2, "it is asked again")
    assert not load.failed
    assert served_version(api) == before


@contextlib.contextmanager
def webhook_to(api: ApiServer, world: World) -> Iterator[None]:
    created = world.client.create_webhook(
        name="serving",
        url=f"{api.url}/webhooks/mlflow",
        events=[WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)],
        secret=SECRET,
    )
    try:
        yield
    finally:
        world.client.delete_webhook(created.webhook_id)


def test_a_killed_process_recovers_by_itself_and_a_webhook_triggers_a_poll(world: World, api: ApiServer) -> None:
    before = served_version(api)
    api.kill()
    api.environment["SERVING_POLL_INTERVAL_S"] = "600"
    api.start()
    assert served_version(api) == before
    assert api.ask().status_code == 200
    another = register_driver_model(world, alpha=0.3, promote=False)
    with webhook_to(api, world):
        promote(world, api, another)
        assert promote(world, api, before) < 10
    unsigned = api.ask(b"{}", "/webhooks/mlflow")
    assert unsigned.status_code == 401
    assert unsigned.headers["Content-Type"] == "application/problem+json"
