"""The command `model-serving`, mostly in this process: a process of its own imports Feast and MLflow for seconds."""

import datetime as dt
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tomllib
from pathlib import Path

import httpx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LinearRegression

from cli.display import progress
from cli.main import commands, main
from cli.serve import _absolute
from scoring.errors import StorageError
from scoring.settings import Settings, variable_names
from tests.support import warm
from tests.support.compose import ROOT
from tests.support.forks import FORKS
from tests.support.logged_answers import answer_and_log
from tests.support.servers import answers_http, free_port, new_mlflow_database, wait_until
from tests.support.worlds import World, build_driver_world, register_driver_model

COMMAND = Path(sys.executable).with_name("model-serving")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true"}
DOCUMENTED = [
    line
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "cli.md").read_text("utf-8"), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("model-serving ") and line.split()[1] not in {"serve", "up"}
]


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Drivers 1001 to 1020; versions 1 (the champion) and 2, and version 3, which is refused."""
    world = build_driver_world(tmp_path_factory.mktemp("world"))
    register_driver_model(world, alpha=0.1, promote=False)
    register_driver_model(world, inputs=["a", "b", "c"], promote=False)
    (world.folder / "artifacts").mkdir()
    return world


def feast(folder: Path, *arguments: str) -> None:
    """Run Feast's installed command."""
    command = ["-c", COMMAND.with_name("feast").read_text(), *arguments]
    ended = warm.run(command, ENVIRONMENT, folder)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def initial_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """The repository that `feast init` makes, with this project's offline store, and a model of two of its features.

    Its prediction is a driver's rate, plus a number of the request.
    """
    folder = tmp_path / "initial"
    folder.mkdir()
    feast(folder, "init", "drivers")
    repository = folder / "drivers" / "feature_repo"
    with (repository / "feature_store.yaml").open("a") as file:
        file.write("offline_store:\n  type: scoring.feast_plugins.offline_store.AsofOfflineStore\n")
    feast(repository, "apply")
    environment = {
        "SERVING_MODEL_NAME": "drivers",
        "SERVING_FEATURE_REPO": str(repository),
        "MLFLOW_TRACKING_URI": new_mlflow_database(folder / "mlflow.db"),
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it when a version is registered
    world = World(folder, environment, dt.datetime.now(dt.UTC).replace(microsecond=0))
    frame = pd.DataFrame({"conv_rate": [0.0, 0.5, 1.0], "conv_rate_plus_val1": [0.0, 2.5, 2.0]})
    model = LinearRegression().fit(frame, frame["conv_rate_plus_val1"])
    world.register(model, frame, tags={"feast.feature_service": "driver_activity_v1"}, input_example=frame)
    return world


def newest_rate(world: World, driver: int) -> float:
    stats = pd.read_parquet(Path(world.environment["SERVING_FEATURE_REPO"]) / "data" / "driver_stats.parquet")
    found = stats[stats["driver_id"] == driver].sort_values("event_timestamp")
    return float(found["conv_rate"].iloc[-1])


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
    return subprocess.run(
        [COMMAND, *arguments], env=ENVIRONMENT, text=True, capture_output=True, timeout=120, check=False, **options
    )


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
    assert main(["score", "day1.csv", "-o", "two.CSV", "--version", "2", "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert summary["model"] == {"name": "driver_ranker", "version": 2}
    assert (summary["rows"], summary["scored"], summary["reasons"]) == (4, 3, {"not_found": 1})
    written = pd.read_csv("two.CSV", float_precision="round_trip")
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
    assert main(["versions", "--json", "--set", "model_formats=pickle"]) == 0
    found = json.loads(capfd.readouterr().out)["versions"]
    assert "its format skops is not allowed" in found[1]["refused"]
    assert main(["versions"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].split() == ["1", "champion", *lines[-1].split()[2:4], "yes"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["score", "nothing.csv"], "There is no file nothing.csv: see `model-serving score --help`."),
        (["score", "day1.csv", "-o", "out.txt"], "OUT must end in .parquet or .csv, and is out.txt"),
        (["score", "day1.csv", "-o", "./day1.csv"], "OUT must be a file other than ./day1.csv"),
        (["score", "day1.csv", "-o", "fifo.csv"], "OUT must be a file other than fifo.csv"),
        (["score", "s3://a/b.csv", "-o", "s3://a/b.csv"], "OUT must be a file other than s3://a/b.csv"),
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
    os.mkfifo("fifo.csv")
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


@pytest.mark.parametrize("name", commands.commands)
def test_the_help_of_each_subcommand_has_an_example(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"  model-serving {name}" in capfd.readouterr().out.partition("Example")[2]


@pytest.mark.usefixtures("world")
def test_a_terminal_of_80_columns_sees_rows_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress() as shown:
            report = shown.rows("Scoring")
            report(65_536, 100_000_000)
            time.sleep(0.2)  # two refreshes
            report(50_000_000, 100_000_000)
            time.sleep(0.2)
        bar = os.read(ours, 100_000).decode()
        assert main(["versions"]) == 0
        stages = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "Scoring: 65,536 of 100,000,000 rows " in bar
    assert re.search(r"Scoring: 50,000,000 of 100,000,000 rows, [\d,]+/s, 0 s left ", bar)
    assert "Reading version 1" in stages
    assert "Reading version" not in capfd.readouterr().out


def test_help_and_a_missing_model_are_answered_without_imports(tmp_path: Path) -> None:
    with_help = in_process("score", "--help", cwd=tmp_path)
    assert (with_help.returncode, with_help.stderr) == (0, "")
    assert "cat day1.csv | model-serving score -" in with_help.stdout
    missing = in_process("versions", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == (
        "model-serving: No model is set: use --model, or write serving.toml with `model-serving init`.\n"
    )


def test_standard_input_is_scored_to_standard_output(world: World, tmp_path: Path) -> None:
    with (tmp_path / "day1.csv").open() as request:
        piped = in_process("score", "-", cwd=tmp_path, stdin=request)
    assert piped.returncode == 0
    assert piped.stderr.startswith("3 of 4 rows scored with driver_ranker/1, 1 not_found (")
    lines = piped.stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith('"driver_id","event_timestamp","note","acc_rate"')
    assert '"d",,,,,"not_found"' in lines[-1]


def score_standard_input(fifo: Path, folder: Path) -> None:
    os.chdir(folder)
    tempfile.tempdir = str(folder / "tmp")
    sys.stdin = fifo.open()
    sys.exit(main(["score", "-", "-o", "out.csv"]))


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_half_written(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out.csv").write_text("old")
    os.mkfifo(tmp_path / "fifo")
    process = FORKS.Process(target=score_standard_input, args=(tmp_path / "fifo", tmp_path))
    process.start()
    with os.fdopen(os.open(tmp_path / "fifo", os.O_RDWR), "w") as written:
        written.write("driver_id,event_timestamp\n" * 10_000)
        written.flush()
        while not list((tmp_path / "tmp").glob("*/scratch-*/request")):
            assert process.is_alive()
            time.sleep(0.05)
        for _ in range(5):  # Python ignores an exception of a signal handler that runs within a destructor
            if process.is_alive():
                os.kill(process.pid, number)
                process.join(10)
    assert process.exitcode == 128 + number
    assert list((tmp_path / "tmp").glob("*/*")) == []
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["day1.csv", "fifo", "out.csv", "serving.toml", "tmp"]


@pytest.mark.usefixtures("world", "capfd")
@pytest.mark.parametrize("code", [128 + signal.SIGTERM, 128 + signal.SIGPIPE])
def test_a_signal_within_a_library_and_a_closed_pipe_have_their_exit_codes(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_stores(_: object) -> None:
        if code == 128 + signal.SIGPIPE:
            raise BrokenPipeError(errno.EPIPE, "nobody reads")
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:  # as DuckDB does
            raise StorageError("joining", "x", "Query interrupted") from None

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # click replaces them
    monkeypatch.setattr("cli.versions.open_stores", open_stores)
    assert main(["versions"]) == code


@pytest.mark.usefixtures("world")
def test_two_versions_are_compared_row_by_row(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "1", "2", "day1.csv"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("3 of 4 rows differ from driver_ranker/1: by ")
    assert lines[1].split() == ["driver_ranker/1", "driver_ranker/2"]
    assert lines[2].split() == ["predictions", "3", "3"]
    assert main(["compare", "2", "2", "day1.csv", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["summary"].startswith("0 of 4 rows differ from driver_ranker/2")
    (output,) = found["outputs"]
    assert (output["rows_that_differ"], output["share"], output["largest_change"]) == (0, 0.0, 0.0)
    assert found["statistics"][0] == {"statistic": "predictions", "earlier": 3, "current": 3}


def test_the_alias_moves_to_an_admitted_version_and_back(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "3"]) == 1
    assert "driver_ranker/3 was refused" in capfd.readouterr().err
    assert main(["rollback"]) == 1
    assert "its earlier versions are not recorded" in capfd.readouterr().err
    assert main(["promote", "2"]) == 0
    assert capfd.readouterr().out == "driver_ranker@champion names version 2, before: 1.\n"
    assert main(["promote", "2", "--unchecked"]) == 0
    assert capfd.readouterr().out == "driver_ranker@champion already names version 2.\n"
    assert main(["rollback", "--json"]) == 0
    moved = json.loads(capfd.readouterr().out)
    assert moved == {"model": "driver_ranker", "alias": "champion", "before": 2, "now": 1}
    assert main(["promote", "2", "--unchecked"]) == 0
    world.promote(1)
    capfd.readouterr()
    assert main(["rollback"]) == 1
    assert "it was moved by other means since it was set on version 2" in capfd.readouterr().err
    assert world.client.get_model_version_by_alias("driver_ranker", "champion").version == 1
    assert main(["promote", "9", "--unchecked"]) == 1
    assert "has no version 9" in capfd.readouterr().err


def test_logged_answers_are_replayed(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["replay"]) == 2
    assert "SERVING_PREDICTION_LOG is not set: give the API and this command the same folder." in capfd.readouterr().err
    here = ["replay", "--set", f"prediction_log={tmp_path / 'log'}"]
    assert main([*here, "2026-01-31"]) == 1
    assert "log/date=2026-01-31 failed: it has no files: the API has logged no answers" in capfd.readouterr().err
    assert not (tmp_path / "log").exists()

    answer_and_log(world, tmp_path / "log", [1001, 1002, 9999])
    capfd.readouterr()
    day = next((tmp_path / "log").iterdir()).name.removeprefix("date=")
    assert main([*here, day]) == 0
    assert capfd.readouterr().out == f"{day}: 6 of 6 answers are equal to the bit (driver_ranker/1: 6)\n"

    refused = tmp_path / "log" / "date=2026-01-31"
    refused.mkdir()
    (file,) = (tmp_path / "log" / f"date={day}").iterdir()
    rows = pq.read_table(file)
    failed = pa.array(["deadline-exceeded"] * rows.num_rows, rows.schema.field("__problem").type)
    place = rows.schema.get_field_index("__problem")
    pq.write_table(rows.set_column(place, rows.schema.field(place), failed), refused / file.name)
    assert main([*here, "2026-01-31"]) == 1
    assert "none of its 6 rows was answered with scores" in capfd.readouterr().err

    source = world.folder / "feature_repo" / "data" / "driver_stats.parquet"
    original = source.read_bytes()
    stats = pd.read_parquet(source)
    stats.loc[stats["driver_id"] == 1002, "conv_rate"] = 0.25
    try:
        stats.to_parquet(source)
        assert main([*here, day, "--json"]) == 1
        found = json.loads(capfd.readouterr().out)
        assert (found["rows"], found["equal"], found["causes"]["unexplained"]) == (6, 4, 2)
        assert pq.read_table(found["report"])["entity"].to_pylist() == ["1002", "1002"]
        assert main([*here, day]) == 1
        lines = capfd.readouterr().out.splitlines()
        assert lines[2].split() == ["unexplained", "2", "none", "of", "these"]
        assert lines[3] == f"Rows whose answer differs: {found['report']}"
    finally:
        source.write_bytes(original)


@pytest.mark.usefixtures("world")
def test_everything_that_serves_is_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ["registry", "feature store", "model", "offline store", "online store", "requests", "results"]
    assert main(["check", "--json", "--set", f"batch_requests={tmp_path}"]) == 0
    assert [(each["check"], each["status"]) for each in json.loads(capfd.readouterr().out)] == [
        (name, "ok") for name in names
    ]
    assert main(["check", "--version", "3", "--set", f"scores_table={Path(__file__).parent}"]) == 1
    lines = capfd.readouterr().out.splitlines()
    statuses = ["ok", "ok", "failed", "skipped", "skipped", "warning", "ok", "failed"]
    assert [line.split()[0] for line in lines] == statuses
    assert "is not a Delta table: name a new folder" in lines[-1]
    assert "does not serve its inputs a, b, c" in lines[2]
    assert main(["check", "--features", "nowhere", "--set", "artifacts=day1.csv/folder"]) == 1
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "failed", "skipped", "skipped", "skipped", "warning", "failed"]


def test_the_settings_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it when a world is built
    assert main(["init"]) == 2
    assert "Give the registered model with --model" in capfd.readouterr().err
    assert main(["init", "--model", 'a "quoted" name', "--set", "port=70000"]) == 2
    assert not (tmp_path / "serving.toml").exists()
    capfd.readouterr()
    assert main(["init", "--model", 'a "quoted" name', "--features", "f", "--set", "port=7000"]) == 0
    others = shlex.join([str(COMMAND), "init", "--force", "--model", "🚕", "--set", "dagster_home=home"])
    assert subprocess.run(f"{others} >&-", shell=True, env=ENVIRONMENT, check=False).returncode == 0  # noqa: S602
    assert tomllib.loads(Path("serving.toml").read_text("utf-8")) == {"model_name": "🚕", "dagster_home": "home"}
    assert Path("serving.toml").stat().st_mode & 0o077 == 0
    assert main(["init", "--model", "another"]) == 2
    assert "serving.toml exists" in capfd.readouterr().err
    assert main(["rollback"]) == 1
    assert "sqlite:///mlflow.db did not respond (there is no such file)" in capfd.readouterr().err


def test_a_terminal_is_asked_for_the_settings(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    os.write(ours, b"churn\n\n~/features\n")
    ended = subprocess.run(
        [COMMAND, "init"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=ENVIRONMENT,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    asked = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert ended.returncode == 0, asked
    assert tomllib.loads((tmp_path / "serving.toml").read_text("utf-8")) == {
        "model_name": "churn",
        "mlflow_tracking_uri": "sqlite:///mlflow.db",
        "feature_repo": "~/features",
    }


@pytest.mark.parametrize("line", DOCUMENTED)
def test_a_documented_command_works(line: str, world: World, tmp_path: Path) -> None:
    if " init " in line:
        (tmp_path / "serving.toml").unlink()
    if " request " in line:
        (world.folder / "batch_requests").mkdir(exist_ok=True)
    if "rollback" in line:
        assert main(["promote", "2", "--unchecked"]) == 0
    if " replay" in line:
        answer_and_log(world, tmp_path / "log", [1001])
        with (tmp_path / "serving.toml").open("a") as settings:
            settings.write('prediction_log = "log"\n')
    try:
        ended = warm.run(["-c", COMMAND.read_text(), *shlex.split(line)[1:]], ENVIRONMENT, tmp_path)
        assert ended.returncode == 0, ended.stderr
    finally:
        world.promote(1)


def test_the_api_is_served_on_the_given_port(world: World, tmp_path: Path) -> None:
    refused = in_process("serve", "--host", "192.0.2.1", "--port", "1", "--set", "allow_anonymous=true", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("api: can't listen on 192.0.2.1:1 (")


def test_servers_get_absolute_paths_because_their_working_directory_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {name for name, hint in Settings.__annotations__.items() if "Path" in str(hint) or "Location" in str(hint)}
    given = {variable_names()[name]: name for name in names}
    found = _absolute(given, Settings.from_environment(given | {"SERVING_MODEL_NAME": "churn"}), tmp_path / "home")
    assert {variable: found[variable] for variable in given} == {
        variable: str(tmp_path / name) for variable, name in given.items()
    }


@pytest.mark.timeout(300)
def test_the_repository_of_feast_init_is_served_in_batch_and_online_until_a_signal(
    initial_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = initial_world.environment
    options = ["--features", given["SERVING_FEATURE_REPO"], "--mlflow", given["MLFLOW_TRACKING_URI"]]
    assert main(["init", "--model", "drivers", *options]) == 0
    rows = pd.DataFrame({"driver_id": [1001, 1005, 9999], "val_to_add": [1, 2, 3], "val_to_add_2": 0})
    port, dagit = free_port(), free_port()
    command = [COMMAND, "up", "--port", str(port), "--dagit-port", str(dagit)]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            if "serves drivers/1" in line:
                break
        assert answers_http(port, "/ready")
        assert answers_http(dagit, "/server_info")
        assert (tmp_path / "dagster_home" / "dagster.yaml").exists()
        rows.assign(event_timestamp=initial_world.now).to_csv(tmp_path / "batch_requests" / "day1.csv", index=False)
        feast(Path(given["SERVING_FEATURE_REPO"]), "materialize-incremental", f"{initial_world.now:%Y-%m-%dT%H:%M:%S}")
        request = {"request_id": "1", "entity_rows": rows.to_dict("records")}
        answer = httpx.post(f"http://127.0.0.1:{port}/scores", json=request, timeout=10).json()
        output = tmp_path / "artifacts" / "day1" / "batch_output.parquet"
        wait_until(output.exists, "day1 is scored", 120)
        batch = pq.read_table(output, columns=["driver_id", "prediction", "reason"]).to_pylist()
        assert [tuple(row.values()) for row in batch] == [tuple(row.values()) for row in answer["scores"]]
        assert batch[0]["prediction"] == pytest.approx(newest_rate(initial_world, 1001) + 1)
        assert [row["reason"] for row in batch] == [None, None, "not_found"]
        second = in_process("up", "--port", str(port), cwd=tmp_path)
        assert second.returncode == 1
        assert f"can't listen on port {port} of 127.0.0.1" in second.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not answers_http(port, "/live")
    assert not answers_http(dagit, "/server_info")


def test_everyone_is_scored_or_written_as_a_request_in_one_line(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    as_of = world.now.isoformat()
    assert main(["score", "--everyone", "--as-of", as_of, "-o", "everyone.parquet"]) == 0
    assert capfd.readouterr().out.startswith("everyone.parquet: 20 of 20 rows scored with driver_ranker/1 (")
    assert sorted(pq.read_table("everyone.parquet")["driver_id"].to_pylist()) == list(range(1001, 1021))
    folder = tmp_path / "requests"
    arguments = ["request", "--everyone", "--as-of", as_of, "--json", "--set", f"batch_requests={folder}"]
    assert main(arguments) == 1
    assert f"{folder}: there is no such folder: create it" in capfd.readouterr().err
    folder.mkdir()
    assert main(arguments) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["rows"] == 20
    (file,) = folder.iterdir()
    assert found["request"] == str(file)
    assert main(["score", "--everyone", "--as-of", "1999-01-01"]) == 1
    empty = "everyone-1999-01-01.parquet: as of 1999-01-01T00:00:00+00:00, no row of driver_stats is within its time"
    assert f"Batch request {empty}" in capfd.readouterr().err
    assert main(["score", str(file), "-o", "file.parquet"]) == 0
    assert pq.read_table("file.parquet").equals(pq.read_table("everyone.parquet"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["score"], "Give either FILE or --everyone"),
        (["score", "day1.csv", "--everyone"], "Give either FILE or --everyone"),
        (["score", "day1.csv", "--as-of", "2026-11-30"], "--as-of needs --everyone"),
        (["request"], "Give --everyone"),
        (["request", "--everyone", "--as-of", "soon"], "The time 'soon' is not in ISO 8601 format (2026-11-30)."),
    ],
)
def test_everyone_needs_a_time_and_no_file(
    arguments: list[str], problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert problem in capfd.readouterr().err
