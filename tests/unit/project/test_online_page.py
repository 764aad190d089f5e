"""docs/online.md documents exactly the routes, metrics and problems that the code has."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from api.app import create_app, wire_formats
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from api.protocols.problems import PROBLEM_TYPES
from api.shadow.challenger import Challenger
from api.telemetry.metrics import PREFIX, Metrics, ServingState
from api.telemetry.prediction_log import PredictionLog
from scoring.files.location import Location
from scoring.secret import Secret
from scoring.settings import Settings
from tests.support.fakes import FakeLoader

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "online.md").read_text(encoding="utf-8")


def test_every_route_is_documented() -> None:
    settings = Settings(model_name="m", webhook_secret=Secret("0123456789abcdef"))
    app = create_app(settings, FakeLoader())
    paths = {*wire_formats(settings), *(route.path_format for route in app.routes)}
    documented = set(re.findall(r"`(?:GET|POST) (/[a-z0-9/{}]*)`|`(/openapi\.json)`", PAGE))
    assert {path for path in paths if not path.startswith("/static")} == {"".join(each) for each in documented}


def test_exactly_the_exported_metrics_are_documented() -> None:
    from prometheus_client import generate_latest

    metrics = Metrics()
    metrics.read_at_each_scrape(ServingState(ModelSlot(), StoreProbe().breaker))
    settings = Settings(model_name="m", prediction_log=Location(ROOT))
    metrics.read_at_each_scrape(PredictionLog(settings))
    metrics.read_at_each_scrape(Challenger(settings, FakeLoader(), ModelSlot(), bool, repr, None))
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in families
        if family.name.startswith(PREFIX)
    }
    documented = {
        name
        for row in PAGE.splitlines()
        if row.startswith("| `serving_")
        for name in re.findall(r"`(serving_\w+)`", row.split("|")[1])
    }
    assert documented == names


def test_every_problem_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}[\d, ]*) \| (`[^|]+`) \|", PAGE, re.MULTILINE)
    documented = {
        (name, int(statuses.split(",")[min(place, statuses.count(","))]))
        for statuses, names in rows
        for place, name in enumerate(re.findall(r"`([\w-]+)`", names))
    }
    assert documented == {(kind.name, kind.status) for kind in PROBLEM_TYPES}


def test_each_documented_log_event_is_logged() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "api").rglob("*.py"))
    events = re.findall(r"\blog `(\w+)`", PAGE)
    assert events
    assert [event for event in events if f'"{event}"' not in code] == []
