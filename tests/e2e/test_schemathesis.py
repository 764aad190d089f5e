"""The OpenAPI document kept to its word: by requests made from it, and by a person's browser."""

import json
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
pytestmark = pytest.mark.timeout(400)

LEAST_EXAMPLES = 1000
CONFIGURATION = Path(__file__).parent / "schemathesis.toml"
# A busy machine may take long; what is asked here is what the answers are.
SETTINGS = {"SERVING_DEADLINE_S": "20", "SERVING_MAX_ENTITIES": "10"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    world = build_driver_world(tmp_path_factory.mktemp("drivers"))
    server = ApiServer(tmp_path_factory.mktemp("api"), environment=world.environment | SETTINGS)
    server.start()
    yield server
    server.stop()


def test_a_thousand_requests_made_from_the_document_get_only_what_it_promises(api: ApiServer, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "schemathesis.cli",
                "--config-file",
                str(Path(__file__).parent / "schemathesis.toml"),
            ),
            *("run", f"{api.url}/openapi.json", "--checks", "all", "--max-examples", "600"),
            *("--report", "json", "--report-json-path", str(report), "--continue-on-failure"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads(report.read_text())
    assert told["test_cases"]["generated"] >= LEAST_EXAMPLES
    assert told["failures"] == told["errors"] == []
    assert [line for line in api.log_lines() if line.get("status", 0) >= 500] == []


def test_the_page_works_without_the_internet_and_try_it_out_gets_an_answer(
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
        # "Try it out" is open from the start.
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
