"""What is loaded at the start is out of the garbage collector's sight; what comes later is not."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import gc
from api.model.settled_loader import SettledLoader
from tests.support.fakes import FakeLoader
loader = SettledLoader(FakeLoader())
counts = [gc.get_freeze_count()]
for _ in range(2):
    loader.load(loader.poll(), None)
    counts.append(gc.get_freeze_count())
print(*counts)
"""


def test_the_first_load_alone_settles_what_is_in_memory() -> None:
    # In a process of its own: this one's objects are none of the test's business.
    root = Path(__file__).resolve().parents[4]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env=os.environ, capture_output=True, text=True, check=True
    )
    before, first, second = map(int, result.stdout.split())
    assert before == 0
    assert first > 10_000
    assert second <= first
