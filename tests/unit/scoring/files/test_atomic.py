"""A reader finds the old file or the new one, whole."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from scoring.files.atomic import SCRATCH_PREFIX, SYNC_BYTES, SYNC_EVERY_S, scratch_folder, scratch_root, whole_file


def test_the_new_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "out.txt"
    with whole_file(destination) as part:
        part.write_text("new")
        assert not destination.exists()
    assert destination.read_text() == "new"
    assert [each.name for each in destination.parent.iterdir()] == ["out.txt"]


def test_a_file_that_is_synced_while_it_grows_comes_out_whole(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as part, part.open("wb") as file:
        file.write(bytes(SYNC_BYTES))
        file.flush()
        time.sleep(4 * SYNC_EVERY_S)
        file.write(b"the rest")

    assert (tmp_path / "a").stat().st_size == SYNC_BYTES + len(b"the rest")
    assert (tmp_path / "a").read_bytes().endswith(b"the rest")


def test_a_folder_that_exists_and_takes_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:  # as in /proc and in folders that an automounter provides
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "mkstemp", missing)
    with pytest.raises(FileNotFoundError, match="no file can be created in this folder"), whole_file(tmp_path / "a"):
        pass


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    destination = tmp_path / "out.txt"
    destination.write_text("old")

    def write_half() -> None:
        with whole_file(destination) as part:
            part.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert destination.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["out.txt"]


def test_a_failed_first_write_leaves_no_empty_folder_and_disturbs_no_other_writer(tmp_path: Path) -> None:
    destination = tmp_path / "day1" / "out.txt"

    def fail() -> None:
        with pytest.raises(OSError, match="disk full"), whole_file(destination):
            raise OSError("disk full")

    fail()
    assert not destination.parent.exists()

    with whole_file(destination) as part:
        fail()
        part.write_text("new")
    assert destination.read_text() == "new"

    destination.unlink()
    fail()
    assert destination.parent.exists()  # it was there before


def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "out.txt") as part:
            part.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "out.txt").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_lives_is_not(tmp_path: Path) -> None:
    destination = tmp_path / "out.txt"
    dead = tmp_path / ".out.txt.abc.part"
    dead.write_text("half")
    others = tmp_path / ".other.txt.abc.part"
    others.write_text("half")

    with whole_file(destination) as first:
        assert not dead.exists()
        with whole_file(destination) as second:
            assert first.exists()
            second.write_text("second")
        first.write_text("first")

    assert destination.read_text() == "first"
    assert sorted(each.name for each in tmp_path.iterdir()) == [".other.txt.abc.part", "out.txt"]


def test_a_scratch_folder_ends_with_its_block_and_dead_ones_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = tmp_path / "model-serving-checkout"
    others.mkdir()
    os.mkfifo(tmp_path / "model-serving-fifo")
    dead = scratch_root() / f"{SCRATCH_PREFIX}dead"
    dead.mkdir()
    (dead / "spilt").write_text("x")

    with scratch_folder() as outer:
        assert not dead.exists()
        (outer / "file").write_text("x")
        with scratch_folder() as inner:
            assert inner != outer
        assert (outer / "file").exists()

    assert list(scratch_root().iterdir()) == []
    assert others.exists()


def test_what_somebody_else_put_in_the_place_of_scratch_folders_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = scratch_root()
    place.rmdir()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=f"set TMPDIR: '{place}'"), scratch_folder():
        pass
