"""The code of the documentation, which tests run."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def code_blocks(page: str, section: str) -> dict[str, str]:
    """Return language → code block of the section `## {section}` of docs/{page}; the last one if there are several."""
    text = (DOCS / page).read_text(encoding="utf-8")
    [found] = [each for each in text.split("\n## ") if each.startswith(f"{section}\n")]
    return dict(re.findall(r"^```(\w+)\n(.*?)^```$", found, re.MULTILINE | re.DOTALL))
