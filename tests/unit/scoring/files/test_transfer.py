"""What is fetched is one state of a file, with its size and hash; what is written is hashed meanwhile."""

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.errors import StorageError
from scoring.files.location import Location
from scoring.files.transfer import HASHED_EVERY_S, content_of, fetch, hashing, publishing


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
