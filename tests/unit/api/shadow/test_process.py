"""What the API does with the answers of a challenger's process, whatever is at the other end of the pipe."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pyarrow as pa
import pytest

from api.shadow.process import ChallengerProcess, Predicted, Prediction, ProcessEnded
from scoring.errors import PredictionFailed
from scoring.models.trial_process import decode_bytes, encode
from scoring.predict import Policy, Scores

SCHEMA = pa.schema({"prediction": pa.float64()})
REASONS = pa.nulls(3, pa.string())
LIMIT_S = 0.3


class Process(ChallengerProcess):
    """A process that runs `command`, and another end of the pipe that does what `act` does."""

    def __init__(self, act: Callable[[Connection], None], command: str = "sleep 60") -> None:
        super().__init__("ranker/2", Policy(), LIMIT_S)
        self._pipe, there = Pipe()
        self._process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
        self.pid = self._process.pid

        def run() -> None:
            with contextlib.suppress(OSError, EOFError), there:
                act(there)

        threading.Thread(target=run, daemon=True).start()

    def ask(self, rows: int = 3) -> Scores:
        return self.score(pa.table({"x": [1.5] * rows}), pa.nulls(rows, pa.string()), SCHEMA)

    @property
    def alive(self) -> bool:
        return self._process is not None


def answer(rows: int = 3, name: str = "prediction", reason: str = "reason", number: int = 1) -> bytes:
    outputs = pa.table({name: [1.0] * rows})
    return encode(Predicted(number, outputs, pa.table({reason: pa.nulls(rows, pa.string())})))


def replies(*messages: bytes) -> Callable[[Connection], None]:
    def act(there: Connection) -> None:
        for message in messages:
            there.recv_bytes()
            there.send_bytes(message)
        there.poll(60)

    return act


@pytest.fixture
def made() -> Iterator[Callable[..., Process]]:
    with contextlib.ExitStack() as stack:

        def make(*arguments: object) -> Process:
            process = Process(*arguments)  # type: ignore[arg-type]
            stack.callback(process.close)
            return process

        yield make


def test_answers_and_failures_of_the_model_are_passed_on(made: Callable[..., Process]) -> None:
    process = made(replies(answer(), encode(Predicted(2, failure="ValueError")), answer(number=3)))
    assert process.ask().outputs.equals(pa.table({"prediction": [1.0] * 3}))
    with pytest.raises(PredictionFailed, match="ValueError") as raised:
        process.ask()
    assert type(raised.value) is PredictionFailed
    assert process.ask().reasons == REASONS


@pytest.mark.parametrize(
    "message",
    [
        answer(number=7),
        answer(rows=5),
        answer(rows=1),
        answer(name="other"),
        answer(reason="other"),
        encode(Predicted(1)),
        encode(Predicted(7, failure="ValueError")),
        b"hello",
        b"",
        b"\xc0",
    ],
)
def test_another_message_than_the_answer_ends_the_process(made: Callable[..., Process], message: bytes) -> None:
    process = made(replies(message))
    with pytest.raises(ProcessEnded, match="sent something other than the answer"):
        process.ask()
    assert not process.alive


def test_a_second_answer_to_a_request_is_not_taken_for_the_answer_to_the_next(made: Callable[..., Process]) -> None:
    def twice(there: Connection) -> None:
        while True:
            message = answer(number=decode_bytes(there.recv_bytes(), Prediction).number)
            there.send_bytes(message)
            there.send_bytes(message)

    process = made(twice)
    process.ask()
    with pytest.raises(ProcessEnded):
        process.ask()


@pytest.mark.parametrize("start", [b"", b"\x7f\x00", b"\x00\x00\x00\x7fx"], ids=["nothing", "half a length", "a part"])
def test_one_that_sends_no_whole_answer_is_killed_at_the_limit(made: Callable[..., Process], start: bytes) -> None:
    def begin(there: Connection) -> None:
        there.recv_bytes()
        os.write(there.fileno(), start)
        time.sleep(60)

    process, began = made(begin), time.monotonic()
    with pytest.raises(ProcessEnded, match=r"no answer within 0\.3 seconds"):
        process.ask()
    assert time.monotonic() - began < 3
    assert not process.alive


def test_one_that_does_not_read_is_killed_at_the_limit(made: Callable[..., Process]) -> None:
    process, began = made(lambda _: time.sleep(60)), time.monotonic()
    with pytest.raises(ProcessEnded, match="no answer within"):
        process.ask(200_000)
    assert time.monotonic() - began < 3
    assert not process.alive


@pytest.mark.parametrize(("command", "how"), [("exit 3", "status 3"), ("kill -SEGV $$", "SIGSEGV")])
def test_the_message_names_how_it_ended_even_if_the_pipe_ends_first(
    made: Callable[..., Process], command: str, how: str
) -> None:
    process = made(lambda there: there.recv_bytes() and None, f"sleep 0.1; {command}")
    with pytest.raises(ProcessEnded, match=rf"its process ended \({how}\)"):
        process.ask()
