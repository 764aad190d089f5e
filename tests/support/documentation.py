"""The code of the documentation, which tests run."""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def code_blocks(page: str, section: str) -> dict[str, str]:
    """Return language → code of the section `## {section}` of docs/{page}, all blocks of a language together."""
    text = (DOCS / page).read_text(encoding="utf-8")
    [found] = [each for each in text.split("\n## ") if each.startswith(f"{section}\n")]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", found, re.MULTILINE | re.DOTALL)
    return {language: "\n".join(code for other, code in blocks if other == language) for language, _ in blocks}
