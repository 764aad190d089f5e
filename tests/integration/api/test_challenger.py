"""A challenger on real registries and stores: nothing that it does changes an answer."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from litestar.testing import TestClient
from sklearn.linear_model import ElasticNet
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from api.app import create_app
from api.model.loading import RegistryLoader
from api.shadow.loading import ChallengerLoader
from scoring.files.location import Location
from scoring.models.admission import validate
from scoring.models.registry import MlflowRegistry
from scoring.monitoring.challenger import compare_log
from scoring.monitoring.challenger_report import Report, find_challenger
from scoring.serving import load_serving_model
from tests.support.servers import wait_until
from tests.support.worlds import DRIVER_INPUTS, World, build_driver_world

DRIVERS = [1001, 1002, 9999]
GIB = 1 << 30


def behave(frame: Any, order: str) -> Any:
    """Pass the rows on, unless the file says otherwise."""
    match Path(order).read_text():
        case "raise":
            raise ValueError("no")
        case "hang":
            time.sleep(600)
        case "eat":
            return bytearray(64 * GIB)
        case "die":
            os.abort()
    return frame


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_driver_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def order(world: World, tmp_path: Path) -> Iterator[Path]:
    """The file that tells the challenger how to behave."""
    file = tmp_path / "order"
    file.write_text("")
    stats = pd.read_parquet(world.folder / "feature_repo" / "data" / "driver_stats.parquet")
    frame = stats[DRIVER_INPUTS].astype("float64").dropna().head(50)
    steps = FunctionTransformer(behave, kw_args={"order": str(file)}), ElasticNet(alpha=0.1)
    version = world.register(
        make_pipeline(*steps).fit(frame, frame["conv_rate"]),
        frame,
        tags={"feast.feature_service": "driver_ranking"},
        promote=False,
        input_example=frame.head(20),
        serialization_format="cloudpickle",
    )
    world.client.set_registered_model_alias(world.settings.model_name, "challenger", str(version))
    yield file
    world.client.delete_registered_model_alias(world.settings.model_name, "challenger")


class Api:
    """An API with a prediction log."""

    def __init__(self, world: World, log: Path) -> None:
        settings = world.settings_with(
            SERVING_DEADLINE_S="5",
            SERVING_BULK_DEADLINE_S="2",
            SERVING_POLL_INTERVAL_S="0.2",
            SERVING_PREDICTION_LOG=str(log),
            SERVING_MODEL_FORMATS="skops,cloudpickle",
        )
        registry = MlflowRegistry.from_settings(settings)
        self.settings, self.registry = settings, registry
        loader = RegistryLoader(settings, registry, lambda files, rows: validate(files, rows)[1])
        self.client = TestClient(create_app(settings, loader, challenger_loader=ChallengerLoader(settings, registry)))
        self.asked = 0

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"serving_{name} ")), 0.0)

    def rows(self, result: str) -> float:
        return self.metric(f'challenger_rows_total{{result="{result}"}}')

    def until(self, condition: Any) -> None:
        wait_until(condition, lambda: self.client.get("/ready").text + self.client.get("/metrics").text, 120)

    def ask(self) -> Any:
        self.asked += 1
        request = {"request_id": f"r{self.asked}", "driver_ids": DRIVERS}
        answer = self.client.post("/scores", json=request)
        assert answer.status_code == 200, answer.text
        return answer.json()["scores"]


def logged(folder: Path, role: str) -> pa.Table:
    tables = [ds.dataset(file).to_table() for file in sorted(folder.rglob("*.parquet"))]
    rows = pa.concat_tables(tables, promote_options="permissive").sort_by("__log_timestamp")
    return rows.filter(pc.equal(rows["__role"], role))


def compared(api: Api, world: World, log: Path) -> Report:
    """Return the comparison of the logged rows."""
    versions = find_challenger(api.registry, api.settings)
    assert versions is not None
    champion, challenger = (load_serving_model(api.registry, world.store(), each, api.settings) for each in versions)
    days = sorted(folder.name.removeprefix("date=") for folder in log.iterdir())
    found = compare_log(Location(log), days, (champion, challenger), "champion")
    assert found is not None
    return found[0]


def test_answers_do_not_depend_on_what_a_challenger_does(world: World, order: Path, tmp_path: Path) -> None:
    api, log = Api(world, tmp_path / "log"), tmp_path / "log"
    with api.client:
        api.until(lambda: api.client.get("/ready").json()["challenger"])
        expected = api.ask()
        assert [api.ask() for _ in range(4)] == [expected] * 4
        api.until(lambda: api.rows("scored") == 15)
        for number, what in enumerate(("raise", "eat"), 1):
            order.write_text(what)
            assert api.ask() == expected
            api.until(lambda: api.rows("failed") == 3 * number)  # noqa: B023 - called here
        order.write_text("hang")
        began = time.monotonic()
        assert api.ask() == expected
        assert time.monotonic() - began < 1.5
        api.until(lambda: api.rows("failed") == 9)
        ready = api.client.get("/ready")
        assert ready.status_code == 200
        assert "gave no answer within 2 seconds" in ready.json()["challenger"]["problem"]
        assert api.ask() == expected

    champion, challenger = logged(log, "champion"), logged(log, "challenger")
    same = ["__request_id", "driver_id", "__log_timestamp", *(n for n in champion.column_names if "driver_stats" in n)]
    assert challenger.select(same).equals(champion.select(same).slice(0, challenger.num_rows))
    assert challenger["reason"].to_pylist()[:15] == [None, None, "not_found"] * 5
    assert challenger["__problem"].to_pylist() == [None] * 15 + ["prediction-failed"] * 9
    order.write_text("")
    report = compared(api, world, log)
    assert (report.rows, report.decisions) == (24, 8)
    assert report.changed_decisions in {3, 8}  # both versions may prefer the same driver
    assert report.champion.reasons == {"not_found": 8}
    assert report.challenger.reasons == {"not_found": 5, "prediction-failed": 9}
    assert report.latency_ratio is not None
