import subprocess
import sys

import pytest

PROGRAM = """
import typeguard
before = typeguard.typechecked
{imports}
assert typeguard.typechecked is before
from feast import Entity
try:
    Entity(name=7)
except typeguard.TypeCheckError:
    print("checked")
else:
    print("not checked")
"""

OUR_OWN = "from scoring.imports import import_feast; import_feast()"
# MLflow imports Feast for its first request over HTTP.
MLFLOWS = """
from scoring.errors import RegistryUnreachable
from scoring.models.registry import MlflowRegistry
try:
    MlflowRegistry("http://127.0.0.1:1", "http://127.0.0.1:1").resolve("model", "champion")
except RegistryUnreachable:
    assert "feast" in sys.modules
"""


@pytest.mark.parametrize("imports", [OUR_OWN, "import sys" + MLFLOWS], ids=["import_feast", "an HTTP registry"])
def test_feast_is_imported_without_instrumentation_and_typeguard_is_left_as_it_was(imports):
    program = PROGRAM.format(imports=imports)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout.strip() == "not checked", done.stderr
