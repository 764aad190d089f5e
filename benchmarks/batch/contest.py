"""Run rounds that alternate between contenders. Each contender's process stays alive between its rounds."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.environments import OURS_BATCH, build, python_of
from benchmarks.paths import ROOT, VAR
from tests.support.servers import environment_for_servers


class BatchRound(msgspec.Struct, frozen=True):
    """One contender's measurements in one round."""

    contender: str
    seconds: float
    cpu_s: float
    before_mib: float
    """Memory of the process before the round: imports and what its last round left."""
    peak_mib: float
    """Peak memory of the process during the round."""
    outcome: dict[str, Any]
    """The task's result, the same in all rounds of a contender."""


class ContenderFailed(RuntimeError):
    """A contender's process exited."""

    def __init__(self, name: str, log: str) -> None:
        super().__init__(f"{name} failed:\n{log}")


def contest(names: Sequence[str], rows: int, rounds: int, environment: Mapping[str, str]) -> list[BatchRound]:
    """Run each contender's task once per round, in an order that rotates from round to round.

    Args:
        names: contenders, keys of TASKS.
        rows: the number of rows to process.
        rounds: the number of rounds.
        environment: variables for the contenders, in addition to this process's.

    Raises:
        ContenderFailed: a contender's process exited; the message is the end of its log.
    """
    build(OURS_BATCH)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(name, rows, environment)) for name in names]
        for worker in workers:
            worker.answer()  # wait until it is ready
        figures: list[tuple[_Worker, dict[str, Any]]] = []
        for number in range(rounds):
            turn = number % len(workers)
            figures += [(worker, worker.ask("run")) for worker in workers[turn:] + workers[:turn]]
        # Last, because inspecting the results takes memory, some of which the process keeps.
        outcomes = {worker.name: worker.ask("outcome") for worker in workers}
    return [BatchRound(contender=worker.name, outcome=outcomes[worker.name], **each) for worker, each in figures]


class _Worker:
    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self._process = process

    def ask(self, what: str) -> dict[str, Any]:
        if self._process.stdin is not None:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            log = (VAR / "logs" / f"{self.name}.log").read_text().splitlines()[-15:]
            raise ContenderFailed(self.name, "\n".join(log))
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def _worker(name: str, rows: int, environment: Mapping[str, str]) -> Iterator[_Worker]:
    log = VAR / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python_of(OURS_BATCH)), "-m", "benchmarks.batch.worker", name, str(rows)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment_for_servers() | {"OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield _Worker(name, process)
    finally:
        process.kill()
        process.wait()
