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
        "registered_model_version.json",
        "Registered_Model_Version.json",
    ],
)
def test_names_that_could_leave_the_folder_break_a_range_or_replace_a_file_are_not_keys(key):
    assert not is_safe_key(key)


def test_requests_are_listed_oldest_first_without_other_files(tmp_path):
    for age_s, name in [(10, "new.csv"), (30, "old.parquet"), (20, "middle.tsv"), (5, "notes.txt"), (5, ".part.csv")]:
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (1_000_000 - age_s, 1_000_000 - age_s))
    (tmp_path / "folder.csv").mkdir()

    assert [file.key for file in list_requests(Location(tmp_path))] == ["old", "middle", "new"]


def test_requests_are_found_among_any_other_files_which_are_named(tmp_path):
    fine = ["Région_7.csv", "a..b.tsv", "2026-11-22.parquet", "DAY1.CSV", "day2.Parquet"]
    odd = [
        "day 1.csv",
        "a\nb.csv",
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
    assert r"'a\nb.csv'" in folder.ignored
    assert "'day 1.csv'" in folder.ignored
    folder.ignored.encode()


def test_a_missing_request_folder_is_an_error(tmp_path):
    with pytest.raises(BatchRequestError, match="SERVING_BATCH_REQUESTS"):
        list_requests(Location(tmp_path / "none"))


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("day1", r"day1\.csv, day1\.tsv would share one result"),
        ("DAY2", r"DAY2\.CSV, DAY2\.csv would share one result"),
        ("../secret", "a request's name needs"),
        ("day 3", "a request's name needs"),
        ("day4", "requests/day4: there is no such file with one of the extensions"),
    ],
)
def test_a_request_without_one_file_of_its_name_in_the_folder_is_refused(tmp_path, key, problem):
    folder = tmp_path / "requests"
    folder.mkdir()
    for name in ("day1.csv", "day1.tsv", "DAY2.CSV", "DAY2.csv", "day 3.csv", "../secret.csv"):
        (folder / name).write_text("x")
    files = {file.key: file for file in list_requests(Location(folder))}

    with pytest.raises(BatchRequestError, match=problem):
        find_request(Location(folder), files, key)
