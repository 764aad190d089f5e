"""`python -m demo.stack` without a registry."""

from pathlib import Path

import pytest

from demo import stack
from tests.support.servers import HOST, free_port


def test_an_unreachable_registry_is_one_line_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    environment = {
        "MLFLOW_TRACKING_URI": f"http://user:s3cret@{HOST}:{port}",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
        "SERVING_MODEL_NAME": "driver_ranker",
        "FEATURE_DATA": str(tmp_path),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert stack.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"demo: MLflow at http://{HOST}:{port} can't be used")
    assert "s3cret" not in line
    assert list(tmp_path.iterdir()) == []
