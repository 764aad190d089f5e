"""The command `model-serving`, mostly in this process: a process of its own imports Feast and MLflow for seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from cli.main import main
from tests.support.compose import ROOT
from tests.support.worlds import World, build_driver_world, register_driver_model

REFUSED = 3


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Drivers 1001 to 1020; versions 1 (the champion) and 2, and version 3, which is refused."""
    world = build_driver_world(tmp_path_factory.mktemp("world"))
    register_driver_model(world, alpha=0.1, promote=False)
    register_driver_model(world, inputs=["a", "b", "c"], promote=False)
    (world.folder / "artifacts").mkdir()
    return world


@pytest.fixture
def world(shared_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """That world, from a folder with serving.toml and day1.csv, whose last row is an unknown driver."""
    monkeypatch.chdir(tmp_path)
    names = {name.removeprefix("SERVING_").lower(): value for name, value in shared_world.environment.items()}
    (tmp_path / "serving.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in names.items()))
    rows = pd.DataFrame(
        {"driver_id": [1001, 1002, 1003, 9999], "event_timestamp": shared_world.now, "note": list("abcd")}
    )
    rows.to_csv(tmp_path / "day1.csv", index=False)
    return shared_world


def in_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "cli", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=120, check=False, **options)


@pytest.mark.usefixtures("world")
def test_a_file_is_scored_without_dagster(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "day1.csv"]) == 0
    printed = capfd.readouterr()
    assert printed.out.startswith("day1.scored.parquet: 3 of 4 rows scored with driver_ranker/1, 1 not_found (")
    assert printed.err == ""
    table = pq.read_table(tmp_path / "day1.scored.parquet")
    assert table["note"].to_pylist() == list("abcd")
    assert table["reason"].to_pylist() == [None, None, None, "not_found"]


@pytest.mark.usefixtures("world")
def test_another_version_gives_other_predictions_and_a_csv_file_has_the_same_rows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "day1.csv", "-o", "two.csv", "--version", "2", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["model"] == {"name": "driver_ranker", "version": 2}
    assert (summary["rows"], summary["scored"], summary["reasons"]) == (4, 3, {"not_found": 1})
    written = pd.read_csv("two.csv")
    assert main(["score", "day1.csv", "-o", "two.parquet", "--version", "2"]) == 0
    expected = pq.read_table("two.parquet").to_pandas()
    assert list(written.columns) == list(expected.columns)
    assert written["prediction"].tolist()[:3] == expected["prediction"].tolist()[:3]
    assert main(["score", "day1.csv", "-o", "one.parquet"]) == 0
    assert pq.read_table("one.parquet")["prediction"][0].as_py() != expected["prediction"][0]


@pytest.mark.usefixtures("world")
def test_strict_scoring_has_an_exit_code_for_rows_without_a_prediction(tmp_path: Path) -> None:
    assert main(["score", "day1.csv", "--strict"]) == 3
    assert (tmp_path / "day1.scored.parquet").exists()


def test_versions_have_their_aliases_and_the_reason_why_one_is_refused(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["versions", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["versions"]
    assert [(each["version"], each["aliases"], each["serving"]) for each in found] == [
        (3, [], False),
        (2, [], False),
        (1, ["champion"], True),
    ]
    assert "does not serve its inputs a, b, c" in found[0]["refused"]
    assert [each["refused"] for each in found[1:]] == [None, None]
    assert main(["versions"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].split() == ["1", "champion", *lines[-1].split()[2:4], "yes"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["score", "nothing.csv"], "There is no file nothing.csv: see `model-serving score --help`."),
        (["score", "day1.csv", "-o", "out.txt"], "OUT must end in .parquet or .csv, and is out.txt"),
        (["score", "day1.csv", "-o", "./day1.csv"], "OUT would replace ./day1.csv: name another file"),
        (["score", "day1.csv", "--prot", "1"], "No such option"),
        (["score", "day1.csv", "--set", "prot=1"], "--set prot is not a setting: did you mean port?"),
        (["score", "day1.csv", "--set", "port=x"], "--set port is 'x': it must be an integer"),
        (["frobnicate"], "No such command 'frobnicate'"),
    ],
)
@pytest.mark.usefixtures("world")
def test_a_wrong_argument_is_refused_in_one_line(
    arguments: list[str], problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("model-serving: ")
    assert problem in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.usefixtures("world")
def test_options_precede_variables_and_variables_precede_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "serving.toml").open("a") as file:
        file.write('port = "a"\nbatch_owners = ["team:x", "team:y"]\n')
    assert main(["versions"]) == 2
    assert "serving.toml: port is 'a': it must be" in capfd.readouterr().err
    monkeypatch.setenv("SERVING_PORT", "b")
    assert main(["versions"]) == 2
    assert "SERVING_PORT is 'b'" in capfd.readouterr().err
    assert main(["versions", "--set", "port=c"]) == 2
    assert "--set port is 'c'" in capfd.readouterr().err
    assert main(["versions", "--set", "port=1", "--model", "nobody"]) == 1
    assert "No model named 'nobody' is registered" in capfd.readouterr().err


def test_help_and_a_missing_model_are_answered_without_imports(tmp_path: Path) -> None:
    with_help = in_process("score", "--help", cwd=tmp_path)
    assert (with_help.returncode, with_help.stderr) == (0, "")
    assert "cat day1.csv | model-serving score -" in with_help.stdout
    missing = in_process("versions", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == (
        "model-serving: No model is named: use --model, or write serving.toml with `model-serving init`.\n"
    )
