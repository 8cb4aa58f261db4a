"""The account of a session: what was started, what is left, whether production is as it was."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from understudy import journal, names
from understudy.errors import UnderstudyError
from understudy.manager import connect
from understudy.model import ManagerKind
from understudy.plugin import watching
from understudy.plugin.settings import Settings, read
from understudy.plugin.worker import KEEP_S, News, Started
from understudy.pytest_plugin import LEDGER

GONE_S = 10.0
"""Seconds that the runs of killed processes have to end."""

PAUSE_MIN_S = 0.002
PAUSE_MAX_S = 0.1

_ENDED = ("inactive", "failed")


class Ledger:
    """The account of a session, kept where its result is made."""

    def __init__(self, config: pytest.Config) -> None:
        self.settings: Settings = read(config)
        self.problems: list[str] = []
        self._runs: dict[str, None] = {}
        self._staying: dict[str, None] = {}
        self._started: dict[str, Started] = {}
        self._kept: dict[str, Started] = {}
        self._production: watching.Seen = {}
        self._alone: list[str] = []
        self._found = watching.Found()
        self._notes: dict[str, None] = {}
        self._left: list[str] = []
        self._unreachable: dict[str, int] = {}

    @classmethod
    def of(cls, config: pytest.Config) -> Ledger:
        """The one of this session."""
        found = config.stash.get(LEDGER, None)
        if found is None:
            found = config.stash[LEDGER] = cls(config)
        assert isinstance(found, Ledger)
        return found

    def add(self, news: News) -> None:
        """Enter what a process has told."""
        self._runs |= dict.fromkeys(news.get("runs", ()))
        self._staying |= dict.fromkeys(news.get("staying", ()))
        self._started |= {one["unit"]: one for one in news.get("instances", ())}
        self._kept |= {one["unit"]: one for one in news.get("kept", ())}
        self.problems += news.get("problems", ())
        self._production = {**news.get("production", {}), **self._production}
        self._alone += news.get("alone", ())
        if note := news.get("note"):
            self._notes[note] = None
        if reason := news.get("unreachable"):
            self._unreachable[reason] = self._unreachable.get(reason, 0) + 1

    def close(self) -> None:
        """See what is left, and whether production is as it was; write the logs."""
        if self._unreachable and not (self._runs or self._production):
            return
        try:
            runs = [run for run in self._runs if run not in self._staying]
            self._left = _left(self.settings.manager_kind, runs)
            if self._left:
                self.problems.append(f"left over: {', '.join(self._left)}")
            units = self.settings.units
            self._found = watching.compare_all(self._production, self._alone, units)
            self.problems += self._found.problems
            found = [*self._found.notes, *watching.second_copies(self._production, units)]
            self._notes |= dict.fromkeys(found)
            if self.settings.logs is not None:
                self._write_logs(self.settings.logs)
        except (UnderstudyError, OSError) as exc:
            self.problems.append(str(exc))

    def lines(self) -> list[str]:
        """The account, for people: one line where all is well."""
        nothing = [
            f"understudy: nothing was started, {count} times: {reason}"
            for reason, count in self._unreachable.items()
        ]
        if not (self._started or self._production or self.problems or self._notes):
            return nothing
        count = len(self._started)
        slowest = max(self._started.values(), key=lambda one: one["started_in_s"], default=None)
        words = [f"{count} instance{'s' * (count != 1)} started"]
        if slowest is not None:
            words.append(f"slowest {slowest['started_in_s']:.2f} s ({_short(slowest['unit'])})")
        words.append(f"{len(self._left)} left over")
        if as_before := self._found.as_before():
            words.append(as_before)
        lines = [f"understudy: {', '.join(words)}", *nothing]
        lines += [f"understudy: {one}" for one in self.problems]
        lines += [f"understudy: note: {one}" for one in self._notes]
        if self.settings.logs is not None:
            lines.append(f"understudy: whole logs: {self.settings.logs}")
        return [*lines, *self._staying_lines()]

    def _staying_lines(self) -> list[str]:
        lines = []
        for one in self._kept.values():
            numbers = " ".join(f"{name}={number}" for name, number in one["ports"].items())
            lines.append(f"understudy: kept: {one['unit']} {numbers} ({one['test']})")
        for unit in self._started:
            parsed = names.parse(unit)
            if self.settings.reuse and parsed is not None and parsed[1] in self._staying:
                lines.append(f"understudy: kept for the next session: {unit}")
        for run in self._staying:
            lines.append(
                f"understudy: run {run} ends in {KEEP_S / 60:.0f} min at the latest; look: "
                f"understudy logs {run}; stop it: understudy stop {run}"
            )
        return lines

    def _write_logs(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for unit, text in journal.texts(list(self._started)).items():
            (folder / f"{unit.removesuffix('.service')}.log").write_text(text, encoding="utf-8")


def _left(kind: ManagerKind | None, runs: Sequence[str]) -> list[str]:
    """The units of these runs that are there still; waits for what is just ending."""
    if not runs:
        return []
    manager = connect(kind)
    patterns = [f"understudy-*@{run}[-.]*" for run in runs]
    deadline = time.monotonic() + GONE_S
    pause_s = PAUSE_MIN_S
    while True:
        found = [
            unit
            for unit, status in manager.list(patterns).items()
            if status.active_state not in _ENDED or names.parse(unit) is not None
        ]
        if not found or time.monotonic() >= deadline:
            return sorted(found)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


def _short(unit: str) -> str:
    return unit.removeprefix("understudy-").removesuffix(".service")
