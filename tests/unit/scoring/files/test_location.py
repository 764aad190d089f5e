"""A place for files is a folder or an S3 prefix; what is published appears whole; what is fetched is one state."""

import os
import tempfile
import threading
import time
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.batch.manifest import (
    ORIGIN_KEY,
    SUMMARY_KEY,
    Manifest,
    Origin,
    ScoringSummary,
    read_manifest,
    settle_manifest,
)
from scoring.errors import SettingsError, StorageError
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.transfer import HASHED_EVERY_S, TICK_NS, Content, content_of, fetch, hashing, publishing
from scoring.settings import Settings


def artifacts(text: str) -> Location:
    return Settings.from_environment({"SERVING_MODEL_NAME": "m", "SERVING_ARTIFACTS": text}).artifacts


@pytest.mark.parametrize(
    ("text", "printed", "local"),
    [
        ("artifacts", "artifacts", Path("artifacts")),
        ("/data/artifacts/", "/data/artifacts", Path("/data/artifacts")),
        ("file:///data/my%20artifacts", "/data/my artifacts", Path("/data/my artifacts")),
        ("s3://bucket", "s3://bucket", None),
        ("s3://bucket/a/b/", "s3://bucket/a/b", None),
    ],
)
def test_a_setting_names_a_folder_or_an_s3_prefix(text: str, printed: str, local: Path | None) -> None:
    place = artifacts(text)
    assert (str(place), place.local) == (printed, local)
    assert str(place / "day1" / "batch_output.parquet") == f"{printed}/day1/batch_output.parquet"
    assert (place / "day1").parent == place
    assert (place / "day1").name == "day1"


@pytest.mark.parametrize("text", ["gs://bucket/a", "s3://", "s3:///a", "file://host/a", "http://host/a", "://a"])
def test_another_kind_of_place_is_refused_in_one_line_that_says_what_would_do(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        artifacts(text)
    assert str(caught.value).startswith(f"SERVING_ARTIFACTS is {text!r}: it must be a folder, file:///folder")
    assert "\n" not in str(caught.value)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match="AWS_") as caught:
        artifacts("s3://AKIAKEY:hunter2@bucket/a")
    assert "hunter2" not in str(caught.value)


def test_a_folder_lists_its_files_with_size_and_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("abc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")

    (entry,) = Location(tmp_path).files()

    assert (entry.name, entry.size, entry.modified_ns) == ("a.csv", 3, (tmp_path / "a.csv").stat().st_mtime_ns)
    with pytest.raises(FileNotFoundError):
        Location(tmp_path / "none").files()


def test_the_stamp_changes_with_the_content_and_only_then(tmp_path: Path) -> None:
    place = Location(tmp_path / "a.txt")
    with publishing(place) as part:
        part.write_text("one")
    first = place.stamp()
    assert place.stamp() == first
    with publishing(place) as part:
        part.write_text("two")
    assert place.stamp() != first


def test_what_is_fetched_is_a_copy_with_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc" * 1000)

    content = fetch(Location(tmp_path / "a.txt"), tmp_path / "copy")

    assert (tmp_path / "copy").read_bytes() == b"abc" * 1000
    assert content == content_of(tmp_path / "a.txt", "a.txt")
    with pytest.raises(FileNotFoundError):
        fetch(Location(tmp_path / "none"), tmp_path / "copy")


def test_a_file_that_grows_while_it_is_fetched_is_refused(tmp_path: Path) -> None:
    class StillWritten(Location):
        """Somebody appends a row between the first look and the second."""

        def stamp(self) -> str:
            before = super().stamp()
            with (tmp_path / "a.csv").open("a") as file:
                file.write("row\n")
            return before

    (tmp_path / "a.csv").write_text("header\n")
    with pytest.raises(StorageError, match="another process is writing to it"):
        fetch(StillWritten(tmp_path / "a.csv"), tmp_path / "copy")


@settings(max_examples=20)
@given(pieces=st.lists(st.binary(max_size=100) | st.integers(0, 3 << 20).map(bytes), max_size=6), pause=st.booleans())
def test_a_file_is_hashed_while_it_is_written_as_it_is_afterwards(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], pause: bool
) -> None:
    place = Location(tmp_path_factory.mktemp("hashed") / "a.bin")
    with publishing(place) as part, hashing(part) as content:
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                file.flush()
                time.sleep(HASHED_EVERY_S * 1.5 * pause)
        copied = content(place.name)
    assert copied == content_of(place.local, "a.bin")


def test_the_hashing_of_a_file_that_is_not_finished_ends_with_the_block(tmp_path: Path) -> None:
    threads = threading.active_count()
    with pytest.raises(KeyError), publishing(Location(tmp_path / "a.bin")) as part, hashing(part):
        raise KeyError
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


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


def test_a_write_that_shares_a_tick_of_the_disk_s_clock_with_the_first_look_is_noticed(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"old")
    tick = file.stat().st_mtime_ns

    class Racing(Location):
        """Somebody writes once more as soon as it was looked at, at the same time by the disk's clock if at once."""

        def open(self) -> pa.NativeFile:
            opened = super().open()
            file.write_bytes(b"new")
            if time.time_ns() - tick < TICK_NS:
                os.utime(file, ns=(tick, tick))
            return opened

    with pytest.raises(StorageError, match="another process is writing to it"):
        fetch(Racing(file), tmp_path / "copy")


def test_a_full_tmpdir_is_named_where_a_file_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc" * 100_000)
    with pytest.raises(StorageError) as caught:
        fetch(Location(tmp_path / "a.bin"), Path("/dev/full"))
    assert str(caught.value).endswith("No space left on device in /dev (TMPDIR)")


def test_a_file_where_tmpdir_belongs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(OSError, match="because a file has this name: remove it, or set TMPDIR"), scratch_folder():
        pass


def test_a_place_that_can_not_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match=r"^Writing .*/file/a\.txt failed: ") as caught,
        publishing(Location(tmp_path / "file" / "a.txt")),
    ):
        pass
    assert "\n" not in str(caught.value)
