import os

import pytest

from scoring.errors import BatchRequestError
from scoring.files.location import Location
from serving_assets.records.requests import find_request, is_safe_key, list_requests, read_request_folder


@pytest.mark.parametrize("key", ["day1", "2026-11-22", "a.b", "Région_7", "_x", "x" * 100])
def test_ordinary_file_names_are_keys(key):
    assert is_safe_key(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "-x",
        "a b",
        "a...b",
        "a\nb",
        "x" * 101,
        "a\\b",
        "a,b",
        "Registered_Model_Version.json",
    ],
)
def test_names_that_could_leave_the_folder_or_break_a_range_are_no_keys(key):
    assert not is_safe_key(key)


def test_a_name_whose_results_would_lie_where_a_file_of_ours_does_is_no_key():
    assert not is_safe_key("registered_model_version.json")
    assert not is_safe_key("Registered_Model_Version.json")


def test_requests_are_listed_oldest_first_without_other_files(tmp_path):
    for age_s, name in [(10, "new.csv"), (30, "old.parquet"), (20, "middle.tsv"), (5, "notes.txt"), (5, ".part.csv")]:
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1_000_000 - age_s, 1_000_000 - age_s))
    (tmp_path / "folder.csv").mkdir()

    assert [file.key for file in list_requests(Location(tmp_path))] == ["old", "middle", "new"]


def test_whatever_lies_in_the_folder_the_requests_in_it_are_found_and_the_rest_is_named(tmp_path):
    fine = ["Région_7.csv", "a..b.tsv", "2026-11-22.parquet"]
    odd = [
        "day 1.csv",
        "a\nb.csv",
        "DAY1.CSV",
        "day1.csv.gz",
        "...csv",
        "a...b.csv",
        os.fsdecode(b"bad\xff.csv"),
        "registered_model_version.json.csv",
    ]
    for name in (*fine, *odd, ".hidden.csv", ".a.parquet.part"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "nowhere.csv").symlink_to("nothing")
    (tmp_path / "device.csv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a..b.tsv")

    folder = read_request_folder(Location(tmp_path))

    assert sorted(file.name for file in folder.requests) == sorted([*fine, "link.csv"])
    assert sorted(folder.others) == sorted(set(odd) - {"...csv"})
    assert r"'a\nb.csv'" in folder.not_taken
    assert "'DAY1.CSV'" in folder.not_taken
    folder.not_taken.encode()


def test_a_missing_request_folder_is_told(tmp_path):
    with pytest.raises(BatchRequestError, match="SERVING_BATCH_REQUESTS"):
        list_requests(Location(tmp_path / "none"))


def test_two_files_that_would_share_one_result_are_refused(tmp_path):
    (tmp_path / "day1.csv").write_text("x")
    (tmp_path / "day1.tsv").write_text("x")

    with pytest.raises(BatchRequestError, match=r"day1\.csv, day1\.tsv would share one result"):
        find_request(Location(tmp_path), "day1")


def test_a_key_from_outside_cannot_reach_another_folder(tmp_path):
    (tmp_path / "secret.csv").write_text("x")
    (tmp_path / "requests").mkdir()

    with pytest.raises(BatchRequestError, match="a request's name needs"):
        find_request(Location(tmp_path / "requests"), "../secret")


def test_a_request_without_a_file_is_told(tmp_path):
    with pytest.raises(BatchRequestError, match="there is no such file"):
        find_request(Location(tmp_path), "day1")
