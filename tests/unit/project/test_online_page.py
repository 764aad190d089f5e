"""docs/online.md tells an operator every route, metric and problem that the code has, and no other."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app
from api.http.problems import KINDS
from api.model.model_slot import ModelSlot
from api.model.store_probe import StoreProbe
from api.telemetry.metrics import PREFIX, Metrics
from api.telemetry.state_metrics import ServingState
from scoring.settings import Settings
from tests.support.fakes import FakeLoader

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "online.md").read_text(encoding="utf-8")


def test_every_route_is_told() -> None:
    app = create_app(Settings(model_name="m"), FakeLoader())
    paths = {route.path for route in app.routes}
    told = set(re.findall(r"`(?:GET|POST) (/[a-z]*)`|`(/openapi\.json)`", PAGE))
    assert {path for path in paths if not path.startswith("/static")} == {"".join(each) for each in told}


def test_every_metric_is_told_and_no_other() -> None:
    from prometheus_client import generate_latest

    metrics = Metrics()
    metrics.read_at_each_scrape(ServingState(ModelSlot(), StoreProbe().breaker))
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
        if family.name.startswith(PREFIX)
    }
    told = {
        name
        for row in PAGE.splitlines()
        if row.startswith("| `serving_")
        for name in re.findall(r"`(serving_\w+)`", row.split("|")[1])
    }
    assert told == names


def test_every_kind_of_problem_is_told_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}[\d, ]*) \| (`[^|]+`) \|", PAGE, re.MULTILINE)
    told = {
        (name, int(statuses.split(",")[min(place, statuses.count(","))]))
        for statuses, names in rows
        for place, name in enumerate(re.findall(r"`([\w-]+)`", names))
    }
    assert told == {(kind.name, kind.status) for kind in KINDS}
