"""From a request file to batch_input, batch_output and manifest: the same bytes each time, and no row is lost."""

import contextlib
import copy
import datetime as dt
import decimal
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.engine import LocalEngine
from scoring.batch.manifest import read_manifest
from scoring.errors import BatchRequestError, ModelRefused, PredictionFailed, ServingError, StorageError
from scoring.features.feature_service import link_features
from scoring.files.location import Location
from scoring.models.model import Model
from scoring.models.outputs import ONE_NUMBER
from scoring.models.registry import ModelVersion
from scoring.predict import Policy
from tests.support.batch_job import NOW, BatchJob, make_repository, write_request

HEADER = "driver_id,event_timestamp,order\n"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> BatchJob:
    folder = tmp_path_factory.mktemp("job")
    make_repository(folder)
    return BatchJob(folder)


@pytest.fixture
def scored(job: BatchJob, tmp_path: Path) -> Location:
    """The result folder of a request of 300 rows, `day1.parquet`."""
    job.run(write_request(tmp_path / "day1.parquet", 300), Location(tmp_path / "artifacts"))
    return Location(tmp_path / "artifacts" / "day1")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def output(job: BatchJob, folder: Path, rows: str) -> list[dict[str, Any]]:
    (folder / "day1.csv").write_text(HEADER + rows)
    job.run(Location(folder / "day1.csv"), Location(folder / "artifacts"))
    return pq.read_table(folder / "artifacts" / "day1" / "batch_output.parquet").to_pylist()


def refusal(job: BatchJob, folder: Path, content: str | bytes, name: str = "day1.csv") -> str:
    """The error of a request that can't be scored, after checking that the older result is as it was."""
    job.run(write_request(folder / f"{Path(name).stem}.parquet", 50), Location(folder / "artifacts"))
    before = files(folder / "artifacts" / "day1")
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BatchRequestError) as caught:
        job.run(Location(folder / name), Location(folder / "artifacts"))
    assert files(folder / "artifacts" / "day1") == before
    assert str(folder / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_manifest_traces_the_result_and_is_in_the_result_itself(job, tmp_path):
    request = write_request(tmp_path / "day1.parquet", 250)

    job.run(request, Location(tmp_path / "artifacts"), policy=Policy("impute", {"acc_rate": 0.5}))

    folder = tmp_path / "artifacts" / "day1"
    manifest = json.loads((folder / "manifest.json").read_text())
    origin, outcome = manifest["origin"], manifest["outcome"]
    for file, described in [
        (folder / "batch_output.parquet", manifest["batch_output"]),
        (folder / "batch_input.parquet", outcome["batch_input"]),
        (request.local, origin["request"]),
    ]:
        content = file.read_bytes()
        expected = {"name": file.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert described == expected
    assert (origin["model"], origin["feature_service"]) == ("linear/1", "driver_ranking")
    assert len(origin["definitions_hash"]) == 64
    assert (outcome["rows"], outcome["scored"], outcome["reasons"]) == (250, 248, {"not_found": 2})
    assert (outcome["missing_features"], outcome["impute_values"]) == ("impute", {"acc_rate": 0.5})
    assert outcome["software"]["pyarrow"] == pa.__version__
    footer = pq.read_metadata(folder / "batch_output.parquet").metadata
    assert json.loads(footer[b"serving.origin"]) == origin
    assert json.loads(footer[b"serving.outcome"]) == outcome


def test_the_same_request_with_the_same_version_gives_the_same_bytes(job, tmp_path):
    request = write_request(tmp_path / "day1.csv", 200_000)
    job.run(request, Location(tmp_path / "artifacts"))
    first = files(tmp_path / "artifacts" / "day1")
    job.run(request, Location(tmp_path / "artifacts"), version=2)
    other = files(tmp_path / "artifacts" / "day1")

    job.run(request, Location(tmp_path / "artifacts"), version=1)

    assert files(tmp_path / "artifacts" / "day1") == first
    assert sorted(first) == ["batch_input.parquet", "batch_output.parquet", "manifest.json"]
    assert other["batch_output.parquet"] != first["batch_output.parquet"]


def test_the_row_groups_of_a_request_change_no_byte_of_its_rows_results(job, tmp_path):
    rows = pq.read_table(write_request(tmp_path / "day1.parquet", 150_000).local)
    written = []
    for size in (150_000, 70_001, 1024):
        pq.write_table(rows, tmp_path / "day1.parquet", row_group_size=size)
        job.run(Location(tmp_path / "day1.parquet"), Location(tmp_path / "artifacts"))
        output = pq.ParquetFile(tmp_path / "artifacts" / "day1" / "batch_output.parquet")
        groups = [output.metadata.row_group(i).total_byte_size for i in range(output.num_row_groups)]
        written.append((groups, output.read()))
    assert all(groups == written[0][0] and rows.equals(written[0][1]) for groups, rows in written)


def test_a_result_is_made_again_alone_from_its_batch_input(job, scored):
    before = files(scored.local)
    (scored / "batch_output.parquet").local.unlink()
    (scored / "manifest.json").local.unlink()

    manifest = job.score(scored, job.model())

    assert files(scored.local) == before
    assert read_manifest(scored / "batch_output.parquet") == manifest
    assert LocalEngine().read_input_model(scored) == "linear/1"


def test_an_output_whose_manifest_can_not_be_written_is_not_published_either(job, scored, tmp_path):
    manifest, output = (scored / "manifest.json").local, scored / "batch_output.parquet"
    manifest.unlink()
    manifest.mkdir()
    before = output.read_bytes()
    run = functools.partial(job.run, Location(tmp_path / "day1.parquet"), Location(tmp_path / "artifacts"), version=2)

    with pytest.raises(StorageError, match=r"Writing .*/manifest\.json failed"):
        run()

    assert output.read_bytes() == before
    manifest.rmdir()
    run()
    assert read_manifest(output).origin.model == "linear/2"


def test_columns_of_tensors_come_out_as_they_went_in(job, tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(600.0).reshape(300, 2))
    for rows in (300, 0):
        request = write_request(tmp_path / "day1.parquet", 300)
        table = pq.read_table(request.local).append_column("tensor", tensors).slice(0, rows)
        pq.write_table(table, request.local)
        job.run(request, Location(tmp_path / "artifacts"))
        found = pq.read_table(tmp_path / "artifacts" / "day1" / "batch_output.parquet")["tensor"]
        assert found.type == tensors.type
        assert found.combine_chunks().equals(table["tensor"].combine_chunks()) if rows else len(found) == 0


def test_the_error_names_an_input_that_is_cut_while_it_is_read_and_not_the_output(job, tmp_path):
    job.run(write_request(tmp_path / "day1.parquet", 200_000), Location(tmp_path / "artifacts"))
    folder = Location(tmp_path / "artifacts" / "day1")
    source = folder / "batch_input.parquet"

    class Cutting(Model):
        """Cuts the file after the first rows were scored."""

        def predict(self, vectors: pa.Table) -> np.ndarray:
            with source.local.open("r+b") as file:
                file.truncate(1000)
            return super().predict(vectors)

    model = job.model()
    cutting = Cutting(*(getattr(model, name) for name in Model.__struct_fields__))
    with pytest.raises(BatchRequestError, match=r"batch_input\.parquet.*it can't be read|kept changing"):
        job.score(folder, cutting)


@pytest.mark.parametrize("raised", [MemoryError, RuntimeError])
def test_a_failure_that_may_be_the_machine_s_is_transient(job, scored, raised):
    model = job.model()
    calls = []

    def once(inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise raised
        return model.functions[0](inputs)

    failing = msgspec.structs.replace(model, functions=(once,))
    with pytest.raises(PredictionFailed, match=f"{raised.__name__} on ... rows") as caught:
        job.score(scored, failing)
    assert caught.value.transient


def test_names_of_columns_do_not_break_the_line(job, tmp_path):
    table = pa.table({"a\nb": [1], "event_timestamp": [NOW], **{f"column_{number}": [1] for number in range(100)}})
    file = tmp_path / "named.parquet"
    pq.write_table(table, file)
    with pytest.raises(BatchRequestError, match=r"the file has 'a\\nb', event_timestamp, .* and 82 more\)") as caught:
        job.run(Location(file), Location(tmp_path / "artifacts"))
    assert "\n" not in str(caught.value)


def test_unknown_keys_rows_before_the_first_feature_and_duplicates_are_kept_in_order(job, tmp_path):
    now, long_ago = NOW.isoformat(), (NOW - dt.timedelta(days=400)).isoformat()
    rows = output(job, tmp_path, f"3,{now},a\n-1,{now},b\n3,{long_ago},c\n3,{now},d\n3,{now},d\n")
    found = [(row["order"], row["reason"]) for row in rows]
    assert found == [("a", None), ("b", "not_found"), ("c", "not_found"), ("d", None), ("d", None)]
    assert len({row["prediction"] for row in rows}) == 2
    assert rows[0]["prediction"] is not None


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("3,yesterday,x", "column 'event_timestamp', row 1001: 'yesterday' is not an ISO 8601 date and time"),
        ("3,2026-06-01", "row 1001: it has 2 cells, and the header has 3"),
        ('3,2026-06-01,5" pipe', "line 1002 has an unclosed or misplaced quotation mark"),
    ],
)
def test_one_bad_row_in_the_middle_or_at_the_end_is_named_and_nothing_is_scored(job, tmp_path, row, says):
    good = "3,2026-06-01T00:00:00Z,x\n" * 1000
    for rest in (f"\n{good}", ""):  # the second is a file that was cut
        assert says in refusal(job, tmp_path, f"{HEADER}{good}{row}{rest}")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_parquet_file_that_was_cut_anywhere_is_refused(job, tmp_path, share):
    request = write_request(tmp_path / "day1.parquet", 2000)
    whole = request.local.read_bytes()
    request.local.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BatchRequestError, match="it can't be read"):
        job.join(request, Location(tmp_path))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_damaged_parquet_file_with_checksums_is_refused_or_read_right(job, tmp_path, place, value):
    request = write_request(tmp_path / "day1.parquet", 2000)
    expected = pq.read_table(request.local)
    pq.write_table(expected, request.local, write_page_checksum=True)
    content = bytearray(request.local.read_bytes())
    content[int(place * len(content))] ^= value
    request.local.write_bytes(content)
    output = tmp_path / "artifacts" / "day1" / "batch_output.parquet"
    output.unlink(missing_ok=True)
    with contextlib.suppress(ServingError):
        job.run(request, Location(tmp_path / "artifacts"))
    assert not output.exists() or pq.read_table(output, columns=expected.column_names).equals(expected)


def test_a_parquet_file_with_a_damaged_column_name_is_refused(job, tmp_path):
    content = write_request(tmp_path / "whole.parquet", 40).local.read_bytes().replace(b"driver_id", b"dr\xc2ver_id", 1)
    assert "it can't be read" in refusal(job, tmp_path, content, "day1.parquet")


def test_columns_that_scoring_does_not_need_keep_their_types_and_values(job, tmp_path):
    rows = 3
    extras = pa.table(
        {
            "seen_ns": pa.array([1_700_000_000_123_456_789, None, -1], pa.timestamp("ns")),
            "seen_there_ns": pa.array([1_700_000_000_123_456_789, None, 1], pa.timestamp("ns", "Asia/Bangkok")),
            "took": pa.array([1, None, -5], pa.duration("ns")),
            "of_day": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
            "amount": pa.array([decimal.Decimal(f"{10**50}.25"), None, decimal.Decimal("-1.00")], pa.decimal256(70, 2)),
            "kind": pa.array(["a", None, "a"]).dictionary_encode(),
            "tags": pa.array([["x"], None, []], pa.large_list(pa.large_string())),
            "half": pa.array([0.5, None, -1.0], pa.float16()),
            "driver_stats is stale": pa.array([True, None, False]),
            "whole": pa.array([2**64 - 1, None, 0], pa.uint64()),
        }
    )
    request = pq.read_table(write_request(tmp_path / "few.parquet", rows).local)
    for name in extras.column_names:
        request = request.append_column(extras.schema.field(name), extras[name])
    pq.write_table(request, tmp_path / "day1.parquet")

    job.run(Location(tmp_path / "day1.parquet"), Location(tmp_path / "artifacts"))

    output = pq.read_table(tmp_path / "artifacts" / "day1" / "batch_output.parquet")
    assert output.select(extras.column_names).schema.types == extras.schema.types
    assert output.select(extras.column_names).equals(extras)
    assert output["prediction"].null_count == 0


def test_a_request_that_does_not_exist_is_named(job, tmp_path):
    with pytest.raises(BatchRequestError, match=r"none\.csv: there is no such file"):
        job.run(Location(tmp_path / "none.csv"), Location(tmp_path / "artifacts"))
    with pytest.raises(BatchRequestError, match="materialize batch_input first"):
        job.score(Location(tmp_path), job.model())


def test_a_request_that_is_being_written_is_refused_and_is_not_an_outage(job, tmp_path):
    class Growing(Location):
        """Gets another row at each look."""

        def stamp(self) -> str:
            with self.local.open("a") as file:
                file.write(f"3,{NOW.isoformat()},x\n")
            return super().stamp()

    (tmp_path / "day1.csv").write_text(HEADER)
    with pytest.raises(BatchRequestError, match=r"day1\.csv: it kept changing while it was read: another process"):
        job.run(Growing(tmp_path / "day1.csv"), Location(tmp_path / "artifacts"))


def test_a_join_key_that_is_also_an_input_keeps_its_type_and_only_the_model_gets_a_double(job, tmp_path):
    signature = Signature((ModelInput("driver_id", pa.float64()), ModelInput("acc_rate", pa.float64())))
    other = copy.copy(job)
    other.features = link_features(job.store, "linear/1", "driver_ranking", signature, ("driver_id",))
    model = Model(ModelVersion("linear", 1), signature, ONE_NUMBER, (lambda inputs: inputs[:, 0],), as_array=True)
    keys = [3, 2**53 + 1, 7]
    (tmp_path / "day1.csv").write_text(HEADER + "".join(f"{key},{NOW.isoformat()},x\n" for key in keys))

    other.join(Location(tmp_path / "day1.csv"), Location(tmp_path))
    other.score(Location(tmp_path), model)

    found = pq.read_table(tmp_path / "batch_output.parquet")
    assert (found["driver_id"].type, found["driver_id"].to_pylist()) == (pa.int64(), keys)
    assert found["reason"].to_pylist() == [None, "not_found", None]
    assert found["prediction"].to_pylist() == [3.0, None, 7.0]
    for dtype in (pa.string(), pa.timestamp("ns")):
        wrong = Signature((ModelInput("driver_id", dtype), ModelInput("acc_rate", pa.float64())))
        with pytest.raises(ModelRefused, match="the join key 'driver_id', which fills it, is declared int64"):
            link_features(job.store, "linear/1", "driver_ranking", wrong, ("driver_id",))


class TooLarge(ValueError):
    """Raised by a model for a number that it can't take."""


def test_an_input_that_is_no_number_is_unknown_and_a_row_that_the_model_fails_on_has_a_reason(job, tmp_path):
    def predict(inputs: np.ndarray) -> np.ndarray:
        if (inputs[:, 1] > 1e300).any():
            raise TooLarge
        return inputs[:, 0] + inputs[:, 1]

    signature = Signature((ModelInput("acc_rate", pa.float64()), ModelInput("amount", pa.float64())))
    other, folder = copy.copy(job), Location(tmp_path)
    other.features = link_features(job.store, "linear/1", "driver_ranking", signature, ("amount",))
    model = Model(ModelVersion("linear", 1), signature, ONE_NUMBER, (predict,), as_array=True)
    table = {
        "driver_id": pa.array([1, 2, 3, 4, 5]),
        "event_timestamp": pa.array([NOW] * 5, pa.timestamp("us", "UTC")),
    }

    def run(*amounts: float | None, policy: Policy | None = None) -> list[dict[str, Any]]:
        pq.write_table(pa.table({**table, "amount": pa.array(amounts)}), tmp_path / "day1.parquet")
        other.join(folder / "day1.parquet", folder)
        other.score(folder, model, policy)
        return pq.read_table(tmp_path / "batch_output.parquet").to_pylist()

    rows = run(1.0, 2.0, 3.0, float("nan"), None)
    assert [row["reason"] for row in rows] == [None, None, None, "null_feature", "null_feature"]
    with pytest.raises(BatchRequestError, match=r"column 'amount', row 2: 'inf' \(double\) is not a finite number"):
        run(1.0, float("inf"), 3.0, 4.0, None)
    rows = run(1.0, 2.0, 1e308, 4.0, 1e308)
    assert [row["reason"] for row in rows] == [None, None, "model_failed", None, "model_failed"]
    assert [row["prediction"] is None for row in rows] == [False, False, True, False, True]
    assert read_manifest(folder / "batch_output.parquet").outcome.reasons == {"model_failed": 2}
    with pytest.raises(PredictionFailed, match=r"TooLarge on 5 rows; of these, row 3 is the first, .* 'amount'$"):
        run(1.0, 2.0, 1e308, 4.0, 1e308, policy=Policy("reject"))
    with pytest.raises(PredictionFailed, match=r"TooLarge on every row"):
        run(1e308, 1e308, None, 1e307, 1e308)
    assert pq.read_table(tmp_path / "batch_output.parquet").to_pylist() == rows
