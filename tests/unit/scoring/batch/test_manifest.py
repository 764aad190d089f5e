"""The manifest describes the output beside it."""

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.batch.manifest import (
    ORIGIN_KEY,
    SUMMARY_KEY,
    Manifest,
    Origin,
    ScoringSummary,
    read_manifest,
    settle_manifest,
)
from scoring.files.location import Location
from scoring.files.transfer import Content, content_of


def test_the_manifest_is_of_what_lies_there_and_not_of_what_somebody_replaced(tmp_path: Path) -> None:
    output = Location(tmp_path / "batch_output.parquet")
    origin = Origin(Content("day1.csv", 1, "00"), "m/1", "service", "hash")
    outcome = ScoringSummary(Content("batch_input.parquet", 1, "00"), "exclude", {}, 1, 1, {}, {})
    metadata = {ORIGIN_KEY: msgspec.json.encode(origin), SUMMARY_KEY: msgspec.json.encode(outcome)}
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), output.local)
    theirs = Manifest(content_of(output.local, output.name), origin, outcome)

    # Not read once more: what another run has put there would have another origin.
    same = Manifest(Content(output.name, theirs.batch_output.size, "reported"), origin, outcome)
    assert settle_manifest(output, same) == same
    assert not (tmp_path / "manifest.json").exists()
    other_version = msgspec.structs.replace(origin, model="m/2")
    for ours in (
        msgspec.structs.replace(theirs, origin=other_version),
        msgspec.structs.replace(theirs, batch_output=Content(output.name, 7, "00")),
    ):
        assert settle_manifest(output, ours) == theirs
        assert read_manifest(output) == theirs
