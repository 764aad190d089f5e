"""A client that openapi-python-client generates from the OpenAPI document."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.api_client import api, when_ready


def test_a_client_generated_from_the_document_gets_scores_and_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api() as started:
        document = when_ready(started).get("/openapi.json").json()
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        (tmp_path / "config.json").write_text(json.dumps({"post_hooks": []}))
        command = [
            *(sys.executable, "-m", "openapi_python_client", "generate", "--path", "openapi.json", "--meta", "none"),
            *("--output-path", "generated_client", "--config", "config.json", "--fail-on-warning"),
        ]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        monkeypatch.syspath_prepend(tmp_path)
        scores = importlib.import_module("generated_client.api.scoring.scores")
        client = importlib.import_module("generated_client").Client(base_url="http://testserver")
        client.set_httpx_client(started)
        body = document["paths"]["/scores"]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert len(scores.sync(client=client, body=body).scores) == 2
        problem = scores.sync(client=client, body={})
        assert problem.status == 422
        assert problem.example == body
