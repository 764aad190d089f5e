"""The garbage collector ignores the objects that exist after the first load, and no later ones."""

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


def test_only_the_first_load_freezes_the_existing_objects() -> None:
    # In a process of its own, because it affects all objects.
    root = Path(__file__).resolve().parents[4]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, env=os.environ, capture_output=True, text=True, check=True
    )
    before, first, second = map(int, result.stdout.split())
    assert before == 0
    assert first > 10_000
    assert second <= first
