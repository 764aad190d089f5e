"""One small file publishes several files at once. Older ones are removed when no reader can need them."""

import os
import time
from pathlib import Path

import pytest

from scoring.batch.generations import KEPT_S, generation, publish_input, publish_output, read_parted_input, whole
from scoring.batch.manifest import Manifest, Origin, ScoringSummary, output_parts, read_manifest
from scoring.errors import BatchRequestError
from scoring.files.location import Location
from scoring.files.transfer import Content

ORIGIN = Origin(Content("day1.csv", 1, "00"), "m/1", "service", "hash")


def write(folder: Path, kind: str, texts: list[str]) -> list[Content]:
    with generation(Location(folder), kind) as name:
        (folder / name).mkdir(parents=True)
        parts = []
        for i, text in enumerate(texts):
            (folder / name / f"part-{i}").write_text(text)
            parts.append(Content(f"{name}/part-{i}", len(text), f"{i:02x}"))
    return parts


def manifest(parts: list[Content]) -> Manifest:
    content = whole("batch_output", parts)
    return Manifest(content, ORIGIN, ScoringSummary(content, "exclude", {}, 2, 2, {}, {}), tuple(parts))


def names(folder: Path, kind: str) -> set[str]:
    return {each.name for each in (folder / kind).iterdir()}


def age(folder: Path, seconds: float) -> None:
    for each in [folder, *folder.rglob("*")]:
        os.utime(each, (time.time() - seconds, time.time() - seconds))


def test_a_reader_finds_the_parts_that_were_published_last(tmp_path):
    (tmp_path / "batch_output.parquet").write_text("of the local engine")
    assert output_parts(Location(tmp_path)) == [Location(tmp_path / "batch_output.parquet")]
    for texts in (["a", "b"], ["c"]):
        publish_output(Location(tmp_path), manifest(write(tmp_path, "batch_output", texts)))
        assert [place.local.read_text() for place in output_parts(Location(tmp_path))] == texts
    assert not (tmp_path / "batch_output.parquet").exists()
    assert read_manifest(Location(tmp_path / "batch_output.parquet")).batch_output.size == 1


def test_a_generation_stays_for_a_day_after_it_was_replaced_or_last_written_to(tmp_path):
    first = write(tmp_path, "batch_input", ["a"])
    publish_input(Location(tmp_path), ORIGIN, 1, first)
    unfinished = write(tmp_path, "batch_input", ["of another run"])
    second = write(tmp_path, "batch_input", ["b"])
    publish_input(Location(tmp_path), ORIGIN, 1, second)
    folder = {key: parts[0].name.split("/")[1] for key, parts in [("1", first), ("?", unfinished), ("2", second)]}
    assert names(tmp_path, "batch_input") == set(folder.values())

    age(tmp_path / "batch_input", KEPT_S + 10)
    age(tmp_path / "batch_input" / folder["?"], 60)
    third = write(tmp_path, "batch_input", ["c"])
    publish_input(Location(tmp_path), ORIGIN, 1, third)

    assert names(tmp_path, "batch_input") == {folder["?"], third[0].name.split("/")[1]}
    assert read_parted_input(Location(tmp_path)).parts == tuple(third)


def test_what_a_failed_block_wrote_is_gone_and_so_are_the_folders_made_for_it(tmp_path):
    folder = tmp_path / "day1"

    def fail_half_way() -> None:
        with generation(Location(folder), "batch_output") as name:
            (folder / name).mkdir(parents=True)
            (folder / name / "part-0").write_text("half")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "says"), [(None, "there is no such file"), (b"{}", "can't be read")])
def test_without_joined_rows_the_error_says_what_to_do(tmp_path, content, says):
    if content is not None:
        (tmp_path / "batch_input.json").write_bytes(content)
    with pytest.raises(BatchRequestError, match=f"{says}.*materialize batch_input"):
        read_parted_input(Location(tmp_path))
