"""When a request whose run failed is retried, and with how many others."""

import pytest

from serving_assets.records.observations import Seen
from serving_assets.records.request_changes import Known
from serving_assets.records.requests import RequestFile
from serving_assets.records.retries import FailedAttempt, requests_per_retry


def test_a_request_is_retried_less_and_less_often_and_without_end():
    waits = [FailedAttempt(failures, 1000.0, open=True).retry_s - 1000 for failures in (1, 2, 3, 4, 50)]

    assert waits == [60, 300, 1800, 3600, 3600]


def test_after_many_failed_runs_each_request_is_alone():
    shared = [requests_per_retry(failures) for failures in range(10)]

    assert shared == sorted(shared, reverse=True)
    assert (shared[2], shared[-1]) == (250, 1)


@pytest.mark.parametrize(
    ("modified_s", "seen", "failures"),
    [
        (10, None, 3),
        (30, None, 0),
        (2**33, None, 3),
        (30, "day1.csv 1 30000000000", 3),
        (30, "day1.csv 1 10000000000", 0),
    ],
    ids=["written before", "written after", "written in the future", "read with this content", "read with another"],
)
def test_a_run_that_failed_before_the_file_was_written_does_not_count(modified_s, seen, failures):
    file = RequestFile("day1", "day1.csv", 1, modified_s * 10**9)
    known = Known({"day1": Seen(seen, "hash")} if seen else {}, {"day1": FailedAttempt(3, 20.0, open=True)})

    assert known.failures(file) == failures
