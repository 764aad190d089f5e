"""When, and with how many others, a request is taken again whose run failed."""

from serving_assets.records.retries import Attempts, again_at, together


def test_a_request_is_taken_again_ever_more_rarely_and_for_ever():
    waits = [again_at([1000.0] * failures) - 1000 for failures in (1, 2, 3, 4, 50)]

    assert waits == [60, 300, 1800, 3600, 3600]
    assert again_at([]) == 0


def test_after_many_failed_runs_each_request_stands_alone():
    shared = [together(failures) for failures in range(10)]

    assert shared == sorted(shared, reverse=True)
    assert (shared[2], shared[-1]) == (250, 1)


def test_what_failed_before_the_file_was_written_does_not_count_unless_its_clock_is_ahead():
    tried = Attempts((10.0, 20.0, 30.0), open=True)

    assert tried.of_content(15.0, now=40.0) == (20.0, 30.0)
    assert tried.of_content(99.0, now=40.0) == (10.0, 20.0, 30.0)
