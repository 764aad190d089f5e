"""When the circuit breaker admits requests to the feature store."""

import pytest
import structlog

from api.errors import StoreUnavailable
from api.model.store_health import OPENS_AFTER, Breaker


def closed() -> Breaker:
    breaker = Breaker()
    breaker.answered()
    return breaker


def test_it_is_open_until_the_first_answer() -> None:
    with pytest.raises(StoreUnavailable):
        Breaker().check()
    closed().check()


def test_it_opens_after_several_failures_in_a_row_and_one_answer_closes_it() -> None:
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


def test_the_log_has_the_stores_message_once_and_ready_has_a_description() -> None:
    breaker = closed()
    with structlog.testing.capture_logs() as lines:
        for _ in range(10):
            breaker.failed("it refused the connection", "Error 111 connecting to inside:6379")
    assert breaker.state.problem == "it refused the connection"
    assert [line["reason"] for line in lines] == ["Error 111 connecting to inside:6379"]


def test_failures_between_answers_never_open_it() -> None:
    breaker = closed()
    for _ in range(10 * OPENS_AFTER):
        breaker.failed("no answer")
        breaker.answered()
    breaker.check()
    assert breaker.opened == 0
