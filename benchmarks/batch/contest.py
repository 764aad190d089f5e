"""Rounds that go from contender to contender, each in a process that stays alive between its rounds."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.environments import OURS_BATCH, build, python_of
from benchmarks.place import ROOT, VAR
from tests.support.servers import environment_for_servers


class BatchRound(msgspec.Struct, frozen=True):
    """One contender's work once."""

    contender: str
    seconds: float
    cpu_s: float
    before_mib: float
    """Memory of the process when it began: imports and what is left of its last round."""
    peak_mib: float
    """The most memory of the process meanwhile."""
    outcome: dict[str, Any]
    """What came out; the same in all rounds of a contender."""


class ContenderFailed(RuntimeError):
    """A contender's process ended."""

    def __init__(self, name: str, log: str) -> None:
        super().__init__(f"{name} failed:\n{log}")


def contest(names: Sequence[str], rows: int, rounds: int, environment: Mapping[str, str]) -> list[BatchRound]:
    """Have each do its work once a round, in an order that turns from round to round.

    Args:
        names: contenders, of TASKS.
        rows: how many they work on.
        rounds: how often.
        environment: what they get beside this process's.

    Raises:
        ContenderFailed: one raised; the text is the end of its log.
    """
    build(OURS_BATCH)
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_worker(name, rows, environment)) for name in names]
        for worker in workers:
            worker.answer()  # it is ready
        figures: list[tuple[_Worker, dict[str, Any]]] = []
        for number in range(rounds):
            turn = number % len(workers)
            figures += [(worker, worker.ask("run")) for worker in workers[turn:] + workers[:turn]]
        # At last: to look at what came out takes memory, some of which the process keeps.
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
