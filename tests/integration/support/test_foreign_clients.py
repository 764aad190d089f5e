"""The clients of other projects can be imported, in the versions that are pinned."""

import re
import sys

import pytest

from tests.support.foreign_clients import ROOT, run_script

PINNED = dict(
    re.findall(r"^([\w-]+)==(\S+)", (ROOT / "tests" / "clients" / "requirements.txt").read_text(), re.MULTILINE)
)
IMPORT = """
import importlib, json, sys
from importlib.metadata import version
for module in sys.argv[1:]:
    importlib.import_module(module)
print(json.dumps({(package := module.partition(".")[0]): version(package) for module in sys.argv[1:]}))
"""


@pytest.mark.parametrize(
    "modules",
    [
        ["kserve", "tritonclient.http"],
        pytest.param(
            ["mlserver.codecs", "mlserver.types"],
            marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="MLServer 1.7 is for Python up to 3.12"),
        ),
    ],
    ids=lambda modules: modules[0],
)
def test_each_client_is_installed_in_the_pinned_version(modules: list[str]) -> None:
    versions = run_script(IMPORT, *modules)
    assert versions == {package: PINNED[package] for package in versions}
