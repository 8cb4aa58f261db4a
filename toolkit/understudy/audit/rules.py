"""The rules of the audit, and what a finding is. docs/audit.md explains each with an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from understudy.errors import UsageError, nearest_hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that the audit looks for.

    Attributes:
        id: What never changes: ``A101``.
        name: What people write: ``bound-port``.
        summary: What is found, in one line.
    """

    id: str
    name: str
    summary: str


RULES: Final[Mapping[str, Rule]] = {
    name: Rule(id=number, name=name, summary=summary)
    for number, name, summary in (
        ("A101", "bound-port", "a server is bound to a port that is written into the suite"),
        ("A102", "connected-port", "a client connects to a port that is written into the suite"),
        ("A103", "port-argument", "production's port is passed as an argument"),
        ("A104", "port-default", "production's port is a default, an attribute or a constant"),
        ("A105", "hidden-default", "a call leaves production's port to a default"),
        ("A106", "config-port", "production's port is in a configuration or an environment"),
        ("A201", "free-port-helper", "a helper gives a port away before it is used: a race"),
        ("A202", "free-port-call", "a port is used that was free a moment ago: a race"),
        ("A301", "own-server", "the suite starts a server of its own"),
        ("A302", "production-control", "the suite starts, stops or kills production"),
        ("A401", "port-skip", "a test is skipped because a port is taken"),
        ("A402", "sleep-for-ready", "a sleep waits for a server to be ready"),
        ("A501", "post-for-delete", "POST is sent where MediaMTX's API wants DELETE"),
        ("A901", "unused-ignore", "an ignore comment that ignores nothing"),
        ("A902", "wrong-ignore", "an ignore comment without a reason or of no known rule"),
    )
}
"""Every rule, by its name."""

IGNORE_RULES: Final = frozenset(("unused-ignore", "wrong-ignore"))
"""Those about ignore comments, which cannot be ignored by one."""

_BY_ID: Final = {rule.id: name for name, rule in RULES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One place in a suite that has to change.

    Attributes:
        file: The file, as it was named or found.
        line: Its line, from 1.
        last: The last line of the same statement or call: an ignore comment may stand there.
        rule: The rule's name.
        text: What was seen.
        instead: What to write instead.
        source: The line as it is written, without the space around it.
    """

    file: str
    line: int
    rule: str
    text: str
    instead: str
    last: int = 0
    source: str = ""

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/audit.md); keys are only ever added."""
        return {
            "file": self.file,
            "line": self.line,
            "id": RULES[self.rule].id,
            "rule": self.rule,
            "text": self.text,
            "instead": self.instead,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A file that could not be audited.

    Attributes:
        file: The file, as it was named or found.
        line: The line where reading ended; 0 where there is none.
        reason: Why.
    """

    file: str
    reason: str
    line: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"Cannot audit '{place}': {self.reason}"


def rule_name(word: str) -> str | None:
    """The name of the rule that a word means: an id or a name; None if it means none."""
    return word if word in RULES else _BY_ID.get(word.upper())


def chosen(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> frozenset[str]:
    """The names of the rules to apply.

    Args:
        select: Ids or names, or the beginning of ids (``A1``); nothing means all rules.
        ignore: The same, of rules to leave out.

    Raises:
        UsageError: A word means no rule; the hint has the nearest.
    """
    wanted = frozenset().union(*map(_meant, select)) or frozenset(RULES)
    return wanted.difference(*map(_meant, ignore))


def _meant(word: str) -> frozenset[str]:
    name = rule_name(word)
    if name is not None:
        return frozenset((name,))
    begun = frozenset(
        name for number, name in _BY_ID.items() if word and number.startswith(word.upper())
    )
    if not begun:
        raise UsageError(
            f"Cannot find rule '{word}': no id or name of that kind",
            hint=f"{nearest_hint(word, RULES)}see: understudy audit --list-rules",
        )
    return begun
