"""Production before the first test that may touch it, and after the last: is it the same?

A session takes one fingerprint of each active production, in whichever worker comes first, and
compares it once, where the session's result is made.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from understudy import lead, leases, services
from understudy.errors import UnderstudyError
from understudy.fingerprint import (
    RELOADED,
    Aspect,
    Comparison,
    Difference,
    Fingerprint,
    absent,
    compare,
)
from understudy.lead import Production
from understudy.model import Activation, ManagerKind, Service

_MARK = "understudy/watch/"


class Before(TypedDict):
    """What production was like, as it travels from a worker.

    Attributes:
        service: The definition's name.
        unit: Its unit.
        manager: Whose manager runs it.
        fingerprint: What `Fingerprint.to_json` gave.
    """

    service: str
    unit: str
    manager: str
    fingerprint: dict[str, object]


Seen = dict[str, Before]
"""By ``system mediamtx.service``."""


def key_of(one: Production) -> str:
    """What production goes by here: ``system mediamtx.service``."""
    return f"{one.manager} {one.unit}"


class Watch:
    """One process's part: what no other worker of the session has seen before, it looks at.

    Args:
        session: What all workers of the session have in common.
    """

    def __init__(self, session: str) -> None:
        self._session = session
        self._held: dict[str, socket.socket | None] = {}
        # A forked child may outlive the session, and the names would with it.
        os.register_at_fork(after_in_child=self._give_up)

    def look(self, found: Collection[Production]) -> Seen:
        """Take the fingerprint of each that is active, and that nobody has taken yet."""
        return {
            key_of(one): Before(
                service=one.service,
                unit=one.unit,
                manager=str(one.manager),
                fingerprint=one.fingerprint().to_json(),
            )
            for one in found
            if one.active_since is not None and _stays(one) and self._is_first(key_of(one))
        }

    def look_at_all(self, units: Path | None) -> Seen:
        """`look` at all that have a definition; nothing where no manager is in reach.

        Args:
            units: A folder of definitions to look in before all others.
        """
        if not self._is_first(""):
            return {}
        try:
            return self.look(lead.every(units=units))
        except UnderstudyError:
            return {}

    def _give_up(self) -> None:
        for key, one in self._held.items():
            if one is not None:
                one.close()
                self._held[key] = None

    def _is_first(self, key: str) -> bool:
        """Whether no worker of the session has come before; a name that the kernel gives once."""
        if key in self._held:
            return False
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        digest = hashlib.sha256(f"{os.geteuid()} {self._session} {key}".encode()).hexdigest()[:32]
        try:
            one.bind(f"\0{_MARK}{digest}")
        except OSError:
            one.close()
            self._held[key] = None
            return False
        self._held[key] = one  # as long as this process lives
        return True


@dataclass(slots=True)
class Found:
    """What there is to say of production at a session's end.

    Attributes:
        comparisons: Before and after, of each that was looked at.
        problems: What is not as it was, for people.
        notes: What has changed, but may be others' doing; second copies of a singleton.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_before(self) -> str:
        """A few words where nothing has changed; "" where it has, or nothing was looked at."""
        if self.problems or not self.comparisons:
            return ""
        texts = [str(each) for one in self.comparisons for each in one.expected]
        unseen = dict.fromkeys(
            each for one in self.comparisons for each in (*one.before.unseen, *one.after.unseen)
        )
        return (
            "production as before"
            + (f", as expected: {'; '.join(texts)}" if texts else "")
            + (f" (not seen: {', '.join(unseen)})" if unseen else "")
        )


def compare_all(before: Seen, alone: Collection[str], units: Path | None) -> Found:
    """See what has become of production.

    Args:
        before: What was seen.
        alone: Those that a test has had exclusively, and may have reloaded.
        units: A folder of definitions to look in before all others.
    """
    found = Found()
    for key, one in before.items():
        was = Fingerprint.from_json(one["fingerprint"])
        now = lead.seen(_service(one, units), unit=one["unit"], manager=ManagerKind(one["manager"]))
        comparison = compare(
            was,
            absent(was) if now is None else now.fingerprint(),
            expected=RELOADED if key in alone else (),
        )
        found.comparisons.append(comparison)
        for each in comparison.differences:
            if each.aspect is Aspect.PATHS and (others := _who_shares(one)):
                found.notes.append(f"{each} ({others})")
            else:
                found.problems.append(f"production is not as it was: {each}{_help(each, one)}")
    return found


def second_copies(before: Mapping[str, Before], units: Path | None) -> list[str]:
    """Second copies of a singleton, for people: that there are any is not this session's doing.

    Args:
        before: What the session takes for production.
        units: A folder of definitions to look in before all others.
    """
    from understudy import strays

    ours = {one["unit"] for one in before.values()}
    return [
        f"a second copy of {one.service}, beside {one.production}: {one}; end it: {one.help}"
        for one in strays.strays(units=units)
        if one.unit not in ours
    ]


def _who_shares(one: Before) -> str:
    """Others who have a lease on it, now that all of this session's are given back."""
    return leases.describe(leases.holders(leases.key_of(one["unit"], ManagerKind(one["manager"]))))


def _help(each: Difference, one: Before) -> str:
    """The command that puts it right, where there is one."""
    if each.aspect is not Aspect.PATHS or f"{each.what} is new" not in each.text:
        return ""
    return f"; remove it: understudy clean {one['service']} --path {each.what}"


def _stays(one: Production) -> bool:
    """Whether it is not stopped whenever it is idle, and started by whoever connects."""
    return one.definition.production_activation is not Activation.PROXY


def _service(one: Before, units: Path | None) -> Service:
    try:
        return services.find(one["service"], units=units)
    except UnderstudyError:  # a definition that a test has made
        return Service(name=one["service"], description="", production=one["unit"])
