"""The API conforms to its OpenAPI document: with generated requests, and in a browser."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.api_server import ApiServer
from tests.support.worlds import build_driver_world

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

# A process that imports Feast, MLflow and scikit-learn takes a minute to start on a busy machine.
pytestmark = pytest.mark.timeout(600)

LEAST_EXAMPLES = 1000
CONFIGURATION = Path(__file__).parent / "schemathesis.toml"
HOOKS = {"SCHEMATHESIS_HOOKS": "tests.e2e.schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parents[2])}
# A busy machine may be slow; this test checks the content of responses.
SETTINGS = {"SERVING_DEADLINE_S": "20", "SERVING_MAX_ENTITIES": "10"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    world = build_driver_world(tmp_path_factory.mktemp("drivers"))
    with ApiServer(tmp_path_factory.mktemp("api"), environment=world.environment | SETTINGS) as server:
        yield server


def test_a_thousand_generated_requests_get_documented_responses(api: ApiServer, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)),
            *("run", f"{api.url}/openapi.json", "--checks", "all", "--max-examples", "50"),
            *("--report", "json", "--report-json-path", str(report), "--continue-on-failure"),
        ],
        cwd=tmp_path,
        env=os.environ | HOOKS,
        capture_output=True,
        text=True,
        timeout=400,  # generating the requests takes a minute of CPU time
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads(report.read_text())
    assert summary["test_cases"]["generated"] >= LEAST_EXAMPLES
    assert summary["failures"] == summary["errors"] == []
    assert [line for line in api.log_lines() if line.get("status", 0) >= 500] == []


def test_swagger_ui_works_offline_and_its_try_it_out_gets_a_response(
    api: ApiServer, chromium: "Browser", tmp_path: Path
) -> None:
    elsewhere: list[str] = []

    def only_here(route: "Route") -> None:
        if route.request.url.startswith((api.url, "data:")):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    context = chromium.new_context(viewport={"width": 1280, "height": 1400})
    try:
        page = context.new_page()
        page.route("**/*", only_here)
        page.goto(api.url)
        page.locator("#operations-scoring-inference .opblock-summary").click()
        # "Try it out" is expanded initially.
        sent = {"request_id": "uuid-1", "driver_ids": [1001, 1002, 9999]}
        page.locator("#operations-scoring-inference textarea").fill(json.dumps(sent))
        page.get_by_role("button", name="Execute", exact=True).click()
        answer = page.locator(".live-responses-table .response")
        answer.wait_for()
        assert answer.locator(".response-col_status").inner_text().startswith("200")
        assert '"prediction"' in answer.inner_text()
        page.screenshot(path=tmp_path / "swagger.png", full_page=False)
        assert (tmp_path / "swagger.png").stat().st_size > 20_000
    finally:
        context.close()
    assert elsewhere == []
