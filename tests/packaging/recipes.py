"""The recipes of docs/ci: the command lines of their jobs, as they are written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

CI: Final = Path(__file__).parents[2] / "docs/ci"


def lines(file: str, job: str) -> list[str]:
    """What a job runs, line by line; a test holds this to what a parser of YAML reads."""
    text = (CI / file).read_text()
    found = re.search(rf"^( *){job}:\n(?P<body>(?:\1 .*\n|\n)+)", text, re.MULTILINE)
    assert found is not None, f"{file} has no job {job}"
    if file == "gitlab.yml":
        return re.findall(r"^    - (.*)$", found["body"], re.MULTILINE)
    blocks = re.findall(r"^ +run: \|\n((?: {10}.*\n)+)", found["body"], re.MULTILINE)
    return [line.strip() for block in blocks for line in block.splitlines()]


def commands(job: str) -> list[str]:
    """A job as a test runs it: GitHub's; GitLab's is held to it by a test."""
    return lines("github.yml", job)
