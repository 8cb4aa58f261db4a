"""A baseline: the findings that a suite has today, so that only new ones count.

A finding is known again by its file, its rule and the text of its line, so lines may move. Two of
the same are counted: a third is new.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from understudy.audit.rules import Finding
from understudy.errors import UnderstudyError

VERSION: Final = 1

Key: TypeAlias = "tuple[str, str, str]"


class Compared(NamedTuple):
    """Findings beside a baseline.

    Attributes:
        new: Those that it does not hold.
        known: How many it holds.
        gone: How many of its own are no longer found.
    """

    new: list[Finding]
    known: int
    gone: int


def compare(findings: Sequence[Finding], file: Path, audited: Iterable[str]) -> Compared:
    """Tell new findings from those of a baseline.

    Args:
        findings: All that was found.
        file: The baseline.
        audited: The files that were audited: what it holds of others is not gone.

    Raises:
        UnderstudyError: It cannot be read, or is no baseline.
    """
    held = _read(file)
    left = held.copy()
    new: list[Finding] = []
    for finding in findings:
        key = _key(finding, file)
        if left[key] > 0:
            left[key] -= 1
        else:
            new.append(finding)
    seen = {_place(name, file) for name in audited}
    gone = sum(count for key, count in left.items() if key[0] in seen)
    return Compared(new, len(findings) - len(new), gone)


def text(findings: Sequence[Finding], file: Path) -> str:
    """What a baseline of these findings says; sorted, for version control.

    Args:
        findings: All that was found.
        file: Where it will be: files are named as seen from there.
    """
    counts = Counter(_key(finding, file) for finding in findings)
    rows = [
        {"file": name, "rule": rule, "source": source, "count": count}
        for (name, rule, source), count in sorted(counts.items())
    ]
    return json.dumps({"version": VERSION, "findings": rows}, indent=1, ensure_ascii=False) + "\n"


def _key(finding: Finding, file: Path) -> Key:
    return _place(finding.file, file), finding.rule, " ".join(finding.source.split())


def _place(name: str, file: Path) -> str:
    return Path(os.path.relpath(name, file.parent)).as_posix()


def _read(file: Path) -> Counter[Key]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise UnderstudyError(
            f"Cannot read baseline '{file}': {exc.strerror}",
            hint="--write-baseline makes one of what is found now",
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise UnderstudyError(f"Cannot read baseline '{file}': not JSON: {exc}") from exc
    try:
        if content["version"] != VERSION:
            raise ValueError
        return Counter(
            {
                (str(row["file"]), str(row["rule"]), str(row["source"])): int(row["count"])
                for row in content["findings"]
            }
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise UnderstudyError(
            f"Cannot read baseline '{file}': not a baseline of version {VERSION}",
            hint="--write-baseline makes one of what is found now",
        ) from exc
