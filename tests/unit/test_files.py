"""A reader finds the old file or the new one, whole."""

import os
from pathlib import Path

import pytest

from scoring.files import whole_file


def test_the_new_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "out.txt"
    with whole_file(destination) as part:
        part.write_text("new")
        assert not destination.exists()
    assert destination.read_text() == "new"
    assert [each.name for each in destination.parent.iterdir()] == ["out.txt"]


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


def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "out.txt") as part:
            part.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "out.txt").stat().st_mode & 0o777 == 0o640
