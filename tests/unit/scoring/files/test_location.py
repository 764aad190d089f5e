"""A place for files is a folder or an S3 prefix; what is published appears whole; what is fetched is one state."""

import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pytest

from scoring.errors import SettingsError, StorageError
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.transfer import TICK_NS, fetch, publishing
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
