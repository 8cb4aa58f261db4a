"""Comments that ignore a finding: ``# understudy: ignore[rule] reason``.

``ignore-file`` is about the whole file; ``ignore-folder``, in a ``conftest.py``, about all files
in its folder and below.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from understudy.audit.files import Kind, Source, sources
from understudy.audit.rules import Finding, rule_name

_COMMENT = re.compile(
    r"#\s*understudy:\s*(?P<what>ignore(?:-file|-folder)?)\s*(?:\[(?P<rules>[^\]]*)\])?\s*(?P<reason>.*)"
)

FOLDER_FILE: Final = "conftest.py"
DEPTH_MAX: Final = 32


class Ignore(NamedTuple):
    """One comment.

    Attributes:
        line: Where it stands.
        alone: Whether nothing else does: then it is about the line below.
        scope: ``ignore``, ``ignore-file`` or ``ignore-folder``.
        rules: The rules' names.
        wrong: What is wrong with it; "" if nothing.
    """

    line: int
    alone: bool
    scope: str
    rules: tuple[str, ...]
    wrong: str


def read(source: Source) -> list[Ignore]:
    """The comments of a file; JSON has none."""
    if "understudy:" not in source.text or source.kind is Kind.JSON:
        return []
    return [_ignore(*one) for one in _comments(source)]


def _comments(source: Source) -> Iterator[tuple[int, bool, re.Match[str]]]:
    if source.kind is Kind.PYTHON:
        # A text that only looks like a comment is none.
        tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
        for token in tokens:
            if token.type == tokenize.COMMENT and (match := _COMMENT.match(token.string)):
                yield token.start[0], not token.line[: token.start[1]].strip(), match
        return
    for number, line in enumerate(source.text.split("\n"), 1):
        match = _COMMENT.search(line)
        if match and (match.start() == 0 or line[match.start() - 1] in " \t"):
            yield number, not line[: match.start()].strip(), match


def _ignore(line: int, alone: bool, match: re.Match[str]) -> Ignore:
    words = [word.strip() for word in (match["rules"] or "").split(",") if word.strip()]
    names = [rule_name(word) for word in words]
    wrong = ""
    if not words:
        wrong = "it names no rule"
    elif None in names:
        wrong = f"'{words[names.index(None)]}' is no rule"
    elif not re.search(r"\w", match["reason"]):
        wrong = "it has no reason"
    rules = tuple(name for name in names if name)
    return Ignore(line, alone, match["what"], rules, wrong)


class Comments:
    """The ignore comments of all files of an audit, and which of them were of use."""

    def __init__(self, rules: frozenset[str]) -> None:
        self._rules = rules
        self._files: dict[str, list[Ignore]] = {}
        self._folders: dict[Path, dict[str, list[Ignore]]] = {}
        self._used: set[tuple[str, int, str]] = set()

    def left(self, source: Source, findings: Iterable[Finding]) -> list[Finding]:
        """Those of a file's findings that no comment ignores."""
        own = self._files[source.name] = read(source)
        around = self._around(Path(source.name).parent, 0)
        left: list[Finding] = []
        for finding in findings:
            ignored = False
            for name, comments in ((source.name, own), *around.items()):
                for one in comments:
                    covers = comments is not own or _covers(one, finding)
                    if finding.rule in one.rules and covers:
                        self._used.add((name, one.line, finding.rule))
                        ignored = True
            if not ignored:
                left.append(finding)
        return left

    def about(self, source: Source) -> Iterator[Finding]:
        """What is wrong with a file's own comments; to be asked when all files have been seen.

        A comment for a rule that was not applied is not called unused.
        """
        for one in self._files[source.name]:
            wrong = one.wrong
            if one.scope == "ignore-folder" and Path(source.name).name != FOLDER_FILE:
                wrong = f"ignore-folder belongs in a {FOLDER_FILE}"
            if wrong and "wrong-ignore" in self._rules:
                text = f"{wrong}, so it ignores nothing"
                instead = "# understudy: ignore[rule] why this is right here"
                yield _about(source, one, "wrong-ignore", text, instead)
            for name in one.rules if not wrong and "unused-ignore" in self._rules else ():
                if name in self._rules and (source.name, one.line, name) not in self._used:
                    text = f"there is no {name} to ignore"
                    yield _about(source, one, "unused-ignore", text, "take it away")

    def _around(self, folder: Path, depth: int) -> dict[str, list[Ignore]]:
        """The comments about whole folders that a folder is under, by their file."""
        if folder not in self._folders:
            found: dict[str, list[Ignore]] = {}
            if depth < DEPTH_MAX and not (folder / ".git").exists() and folder.name:
                found |= self._around(folder.parent, depth + 1)
            for source in sources([folder / FOLDER_FILE]):
                if isinstance(source, Source):
                    about = [one for one in read(source) if one.scope == "ignore-folder"]
                    found[source.name] = [one for one in about if not one.wrong]
            self._folders[folder] = found
        return self._folders[folder]


def _covers(one: Ignore, finding: Finding) -> bool:
    if one.wrong or one.scope == "ignore-folder":
        return False
    if one.scope == "ignore-file":
        return True
    if one.alone and one.line == finding.line - 1:
        return True
    return finding.line <= one.line <= max(finding.last, finding.line)


def _about(source: Source, one: Ignore, rule: str, text: str, instead: str) -> Finding:
    return Finding(
        file=source.name, line=one.line, last=one.line, rule=rule, text=text, instead=instead
    )
