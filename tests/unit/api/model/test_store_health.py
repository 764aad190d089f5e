"""When requests are let through to the feature store, and when they are told at once that it does not answer."""

import pytest
import structlog

from api.errors import StoreUnavailable
from api.model.store_health import OPENS_AFTER, Breaker


def closed() -> Breaker:
    breaker = Breaker()
    breaker.answered()
    return breaker


def test_until_the_store_has_answered_once_nobody_is_let_through() -> None:
    with pytest.raises(StoreUnavailable):
        Breaker().check()
    closed().check()


def test_it_opens_after_some_failures_running_and_one_answer_closes_it() -> None:
    breaker = closed()
    for _ in range(OPENS_AFTER - 1):
        breaker.failed("no answer")
        breaker.check()
    breaker.failed("no answer")
    with pytest.raises(StoreUnavailable):
        breaker.check()
    assert breaker.state.problem == "no answer"
    assert breaker.opened == 1
    breaker.answered()
    breaker.check()
    assert breaker.state.problem is None


def test_the_log_gets_the_stores_own_words_once_and_ready_gets_ours() -> None:
    breaker = closed()
    with structlog.testing.capture_logs() as lines:
        for _ in range(10):
            breaker.failed("it refused the connection", "Error 111 connecting to inside:6379")
    assert breaker.state.problem == "it refused the connection"
    assert [line["reason"] for line in lines] == ["Error 111 connecting to inside:6379"]


def test_failures_with_answers_between_them_never_open_it() -> None:
    breaker = closed()
    for _ in range(10 * OPENS_AFTER):
        breaker.failed("no answer")
        breaker.answered()
    breaker.check()
    assert breaker.opened == 0
