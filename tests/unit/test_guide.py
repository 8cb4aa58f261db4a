"""The testing guide shows code that is run: each block stands in the file that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent.parent
DOCS = CHECKOUT / "docs"
GUIDE = DOCS / "testing-guide.md"
BLOCK = re.compile(r"(?:<!-- (?P<file>\S+) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)

BLOCKS = [(found["file"], found["code"]) for found in BLOCK.finditer(GUIDE.read_text())]


@pytest.mark.parametrize(("file", "code"), BLOCKS)
def test_its_code_is_in_the_examples(file: str, code: str) -> None:
    assert code in (CHECKOUT / file).read_text()


def test_it_has_code_of_each_kind() -> None:
    assert len(BLOCKS) >= 6


DECISION = DOCS / "decisions/0009-instances-beside-production.md"


@pytest.mark.parametrize("page", [GUIDE, DECISION], ids=lambda page: page.name)
def test_what_it_names_is_there(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\]\(([^)#:]+)[^)]*\)", text):
        assert (page.parent / name).exists(), name
    for file, test in re.findall(r"`(?:python )?(tests/[\w/.]+\.py)(?:::(\w+))?`", text):
        assert f"def {test}" in (CHECKOUT / file).read_text() or not test, (file, test)
