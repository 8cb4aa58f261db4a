"""The corpus: small files, and the lines where the audit must find something, and nowhere else.

A case begins with ``=== what it is about: FILE, FILE``; its files are parted by ``---``. A line
that has a finding says so: ``# expect: RULE RULE``, or ``# expect@3: RULE`` for line 3. JSON has no
comments, so there the title says it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from understudy.audit import RULES, audit, known

CASES = Path(__file__).parent / "cases"
EXPECTED = re.compile(r"#\s*expect(?:@(\d+))?:\s*([\w -]+)$")


class Case(NamedTuple):
    title: str
    files: dict[str, str]
    expected: Counter[tuple[str, int, str]]


def cases() -> Iterator[Case]:
    for corpus in sorted(CASES.glob("*.txt")):
        for text in re.split(r"^=== ", corpus.read_text(), flags=re.MULTILINE)[1:]:
            head, _, body = text.partition("\n")
            title, _, rest = head.partition(": ")
            names, _, told = rest.partition(" (")
            bodies = re.split(r"^---\n", body.rstrip("\n") + "\n", flags=re.MULTILINE)
            files = dict(zip(names.split(", "), bodies, strict=True))
            expected = Counter(
                (names, int(line), rule) for line, rule in re.findall(r"(\d+): ([\w-]+)", told)
            )
            for name, content in files.items():
                for number, line in enumerate(content.splitlines(), 1):
                    if match := EXPECTED.search(line):
                        for rule in match[2].split():
                            expected[name, int(match[1] or number), rule] += 1
            yield Case(title, files, expected)


ALL = list(cases())


def test_the_corpus_is_large_enough() -> None:
    assert len(ALL) >= 60
    assert len({case.title for case in ALL}) == len(ALL)
    assert sum(not case.expected for case in ALL) >= 12
    assert {rule for case in ALL for _, _, rule in case.expected} == set(RULES)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.title)
def test_just_what_is_expected_is_found(case: Case, tmp_path: Path) -> None:
    for name, content in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # What is expected is no reason for an ignore.
        path.write_text(re.sub(r"\s*# expect(@\d+)?: .*$", "", content, flags=re.MULTILINE))
    report = audit([tmp_path], known())
    assert not report.unread
    found = Counter(
        (Path(one.file).relative_to(tmp_path).as_posix(), one.line, one.rule)
        for one in report.findings
    )
    assert found == case.expected, "\n".join(map(str, report.findings))
    for one in report.findings:
        assert one.text
        assert one.instead
