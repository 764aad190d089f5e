import subprocess
import sys

PROGRAM = """
import typeguard
before = typeguard.typechecked
from scoring.imports import import_feast
import_feast()
assert typeguard.typechecked is before
from feast import Entity
try:
    Entity(name=7)
except typeguard.TypeCheckError:
    print("checked")
else:
    print("not checked")
"""


def test_feast_is_imported_without_instrumentation_and_typeguard_is_left_as_it_was():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout.strip() == "not checked", done.stderr
