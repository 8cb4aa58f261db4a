"""What production is like at one time, to be compared with what it is like later.

Everything is read, with the rights of whoever asks; what those do not suffice for is named, so that
"as before" never means "not looked at".
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import shlex
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from understudy import ports
from understudy.api import Api
from understudy.errors import ProductionError
from understudy.manager import Manager, UnitStatus
from understudy.model import ManagerKind, Service
from understudy.paths import others

GROWTH_BYTES = 64 * 1024 * 1024
"""How much a state directory may grow during a run before that is a difference."""

ENTRIES_MAX = 20000

_UNSEEN = "unseen"
_SINCE = "it was active since"


class Aspect(StrEnum):
    """What is looked at."""

    STATE = "state"
    INVOCATION = "invocation"
    PROCESS = "main process"
    RESTARTS = "restarts"
    UNIT_FILES = "unit files"
    CONFIGURATION = "configuration"
    SOCKETS = "sockets"
    PATHS = "API paths"
    STATE_DIRECTORY = "state directory"


RELOADED: Final = frozenset({Aspect.CONFIGURATION, Aspect.PATHS, Aspect.SOCKETS})
"""What may differ after a test that had production to itself and reloaded its configuration."""

_PROPERTIES = (
    "FragmentPath",
    "DropInPaths",
    "NeedDaemonReload",
    "ExecStart",
    "EnvironmentFiles",
    "StateDirectory",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a unit was like.

    Attributes:
        unit: Its name.
        taken_s: CLOCK_REALTIME seconds.
        values: By aspect, and within one by what it is of: a file, a socket, a path.
        unseen: What this user could not see, in words.
        active_since: Since when it was active; "" if it was not.
    """

    unit: str
    taken_s: float
    values: Mapping[str, Mapping[str, str]]
    unseen: tuple[str, ...] = ()
    active_since: str = ""

    def to_json(self) -> dict[str, object]:
        """As plain values, for another process or a file."""
        return {
            "unit": self.unit,
            "taken_s": self.taken_s,
            "values": {str(aspect): dict(rows) for aspect, rows in self.values.items()},
            "unseen": list(self.unseen),
            "active_since": self.active_since,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Fingerprint:
        """What `to_json` gave.

        Args:
            value: That.

        Raises:
            ProductionError: It is something else.
        """
        try:
            rows, unseen, taken_s = value["values"], value["unseen"], value["taken_s"]
            assert isinstance(rows, dict)
            assert isinstance(unseen, list)
            assert isinstance(taken_s, (int, float))
            return cls(
                unit=str(value["unit"]),
                taken_s=float(taken_s),
                values={
                    str(aspect): {str(key): str(text) for key, text in dict(row).items()}
                    for aspect, row in rows.items()
                },
                unseen=tuple(str(text) for text in unseen),
                active_since=str(value["active_since"]),
            )
        except (AssertionError, KeyError, TypeError, ValueError) as exc:
            raise ProductionError("Cannot read a fingerprint: it is none") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not as it was.

    Attributes:
        unit: The unit.
        aspect: What kind of thing.
        what: Which of that kind: a file, a socket, a path; "" where there is only one.
        text: What became of it, and when, for people.
    """

    unit: str
    aspect: Aspect
    text: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.unit}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two fingerprints of a unit, side by side.

    Attributes:
        before: The earlier one.
        after: The later one.
        differences: What is not as it was, except what was expected.
        expected: What is not as it was, as was expected.
    """

    before: Fingerprint
    after: Fingerprint
    differences: tuple[Difference, ...]
    expected: tuple[Difference, ...] = ()

    @property
    def untouched(self) -> bool:
        """Whether there is no difference but expected ones."""
        return not self.differences

    def __str__(self) -> str:
        """One line for people."""
        after = self.after
        if self.differences:
            line = f"{after.unit} is not as it was: " + "; ".join(
                one.text for one in self.differences
            )
        else:
            sockets = len(after.values.get(Aspect.SOCKETS, ()))
            files = sum(
                len(after.values.get(aspect, ()))
                for aspect in (Aspect.UNIT_FILES, Aspect.CONFIGURATION)
            )
            line = (
                f"{after.unit} as before: same start ({after.active_since or 'not active'}), "
                f"{_count(files, 'file')}, {_count(sockets, 'socket')}"
            )
            if Aspect.PATHS in after.values:
                line += f", {_count(len(after.values[Aspect.PATHS]), 'API path')}"
            if self.expected:
                line += "; as expected: " + "; ".join(one.text for one in self.expected)
        unseen = dict.fromkeys((*self.before.unseen, *after.unseen))
        return line + (f" (not seen: {', '.join(unseen)})" if unseen else "")


def take(
    manager: Manager, unit: str, definition: Service | None = None, api: Api | None = None
) -> Fingerprint:
    """See what a unit is like. Nothing is changed, and no connection is kept.

    Args:
        manager: Whose it is.
        unit: Its name.
        definition: The service it is production's copy of, if that is known.
        api: Its control API, if it has one.

    Raises:
        ManagerError: The manager cannot be reached.
    """
    status = manager.status([unit])[unit]
    known = manager.properties(unit, _PROPERTIES)
    since = _date(status.active_since_s) if status.active_since_s else ""
    unseen: list[str] = []
    values: dict[str, dict[str, str]] = {
        Aspect.STATE: {"": status.active_state, "since": since},
        Aspect.INVOCATION: {"": status.invocation_id},
        Aspect.PROCESS: {"": str(status.main_pid)},
        Aspect.RESTARTS: {"": str(status.n_restarts)},
        Aspect.UNIT_FILES: dict(_files(_unit_files(manager, unit, known), unseen)),
        Aspect.CONFIGURATION: dict(_files(_configuration(known, status, definition), unseen)),
    }
    if os.environ.get("UNDERSTUDY_NETWORK", "").startswith("private"):
        unseen.append("sockets (from a private network)")
    else:
        values[Aspect.SOCKETS] = dict(_sockets(manager, unit, status, definition))
    if known.get("NeedDaemonReload") == "yes":
        values[Aspect.UNIT_FILES]["daemon-reload"] = "needed"
    if directories := known.get("StateDirectory", "").split():
        values[Aspect.STATE_DIRECTORY] = dict(_state(manager, directories, unseen))
    if api is not None:
        try:
            values[Aspect.PATHS] = dict.fromkeys(others(api), "")
        except ProductionError as exc:
            unseen.append(f"API paths ({exc.message.rpartition(': ')[2]})")
    return Fingerprint(
        unit=unit,
        taken_s=time.time(),
        values=values,
        unseen=tuple(dict.fromkeys(unseen)),
        active_since=since,
    )


def absent(before: Fingerprint) -> Fingerprint:
    """What a unit is like that was there and is not installed any more.

    Args:
        before: What it was like.
    """
    return Fingerprint(
        unit=before.unit,
        taken_s=time.time(),
        values={Aspect.STATE: {"": "not installed any more"}},
    )


def compare(
    before: Fingerprint, after: Fingerprint, *, expected: Collection[Aspect] = ()
) -> Comparison:
    """Say what is not as it was.

    What is no longer seen, or was not seen before, is no difference: it is named as unseen.

    Args:
        before: The earlier fingerprint.
        after: The later one, of the same unit.
        expected: What may differ; `RELOADED` after a test that reloaded its configuration.

    Raises:
        ProductionError: They are of two units.
    """
    if before.unit != after.unit:
        raise ProductionError(
            f"Cannot compare fingerprints of '{before.unit}' and '{after.unit}': two units"
        )
    found = [one for aspect in Aspect for one in _differences(aspect, before, after)]
    # A new start, or none any more, is one word for all that comes with it.
    state = _of(before, Aspect.STATE) != _of(after, Aspect.STATE)
    if state or _of(before, Aspect.INVOCATION) != _of(after, Aspect.INVOCATION):
        since = f"{_SINCE} "
        found = [
            one
            for one in found
            if one.aspect is not Aspect.PROCESS and not one.text.startswith(since)
        ]
    return Comparison(
        before=before,
        after=after,
        differences=tuple(one for one in found if one.aspect not in expected),
        expected=tuple(one for one in found if one.aspect in expected),
    )


def _differences(aspect: Aspect, before: Fingerprint, after: Fingerprint) -> Iterator[Difference]:
    old, new = before.values.get(aspect), after.values.get(aspect)
    if old is None or new is None:
        return
    for key in dict.fromkeys((*old, *new)):
        was, now = old.get(key), new.get(key)
        if was == now or _UNSEEN in (was, now):
            continue
        if text := _said(aspect, key, was, now, before, after):
            yield Difference(unit=after.unit, aspect=aspect, text=text, what=key)


def _said(
    aspect: Aspect,
    key: str,
    was: str | None,
    now: str | None,
    before: Fingerprint,
    after: Fingerprint,
) -> str:
    between = f"between {_clock(before.taken_s)} and {_clock(after.taken_s)}"
    match aspect:
        case Aspect.STATE if key == "since":
            return f"{_SINCE} {was or 'never'} and now since {now or 'never'}"
        case Aspect.STATE:
            return f"it was {was} and is {now}"
        case Aspect.INVOCATION:
            pids = [one.values[Aspect.PROCESS][""] for one in (before, after)]
            return f"it was started anew on {after.active_since} (PID {pids[0]}, now {pids[1]})"
        case Aspect.PROCESS:
            return f"its main process was {was} and is {now}, changed {between}"
        case Aspect.RESTARTS:
            return f"its manager had restarted it {was} times and now {now}"
        case Aspect.STATE_DIRECTORY:
            grown = _bytes(now) - _bytes(was)
            if grown <= GROWTH_BYTES:
                return ""
            return f"{key} grew by {grown / 1024 / 1024:.0f} MiB {between}"
        case Aspect.UNIT_FILES if key == "daemon-reload":
            return "its unit files were changed without a daemon-reload" if now else ""
        case Aspect.UNIT_FILES | Aspect.CONFIGURATION:
            if now is None:
                return f"{key} has been removed {between}"
            verb = "is new" if was is None else "has been changed"
            return f"{key} {verb}, at {_changed(key) or between}"
        case _:
            what = "API path" if aspect is Aspect.PATHS else "socket"
            return f"{what} {key} is {'new' if was is None else 'gone'}, changed {between}"


def _unit_files(manager: Manager, unit: str, known: Mapping[str, str]) -> list[str]:
    """Its file and its drop-ins, those included that the manager has not read yet."""
    fragment = known.get("FragmentPath", "")
    found = dict.fromkeys(
        [*([fragment] if fragment else []), *known.get("DropInPaths", "").split()]
    )
    folders = [Path(f"{manager.unit_dir}/{unit}.d"), Path(f"{fragment}.d")]
    if manager.kind is ManagerKind.SYSTEM:
        folders.append(Path(f"/etc/systemd/system/{unit}.d"))
    for folder in folders:
        with contextlib.suppress(OSError):
            found |= dict.fromkeys(sorted(str(path) for path in folder.glob("*.conf")))
    return [*found]


def _configuration(
    known: Mapping[str, str], status: UnitStatus, definition: Service | None
) -> list[str]:
    """The files that its command line and environment name."""
    argv: list[str] = []
    with contextlib.suppress(OSError):
        argv = Path(f"/proc/{status.main_pid}/cmdline").read_text(errors="replace").split("\0")
    for part in known.get("ExecStart", "").split(" ; "):
        name, _, value = part.strip().lstrip("{ ").partition("=")
        if name == "argv[]":
            try:
                argv += shlex.split(value)
            except ValueError:
                argv += value.split()
    for part in known.get("EnvironmentFiles", "").split():
        argv.append(part)
    if definition is not None:
        argv += [str(one.over) for one in definition.files if one.over]
    found: dict[str, None] = {}
    for word in argv[1:]:
        path = word.rpartition("=")[2]
        if path.startswith("/") and not path.startswith(("/dev/", "/proc/")):
            try:
                if Path(path).is_file() and not os.access(path, os.X_OK):
                    found[path] = None
            except OSError:
                found[path] = None  # in a folder that may not be entered
    return [*found]


def _files(paths: Collection[str], unseen: list[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        try:
            yield path, hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        except FileNotFoundError:
            continue
        except OSError:
            try:
                status = Path(path).stat()
            except OSError:
                unseen.append(path)
                yield path, _UNSEEN
            else:
                unseen.append(f"what is in {path}, only its size and time")
                yield path, f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def _sockets(
    manager: Manager, unit: str, status: UnitStatus, definition: Service | None
) -> Iterator[tuple[str, str]]:
    """What it listens on: what was made in its cgroup, and its declared ports if held for it."""
    ids = ports.cgroup_ids(status.control_group) if status.control_group else frozenset()
    # A socket without a port of its own choice is a client's: it comes and goes.
    declared = {
        (one.transport, one.number)
        for one in (definition.ports.values() if definition is not None else ())
    }
    triggering = manager.properties(unit, ["TriggeredBy"]).get("TriggeredBy", "").split()
    for one in ports.snapshot():
        if not one.listening:
            continue
        own = one.cgroup in ids
        if own and (str(one.transport) == "tcp" or (one.transport, one.port) in declared):
            yield str(one), ""
        elif triggering and (one.transport, one.port) in declared:
            yield str(one), "held for it"


def _state(
    manager: Manager, directories: Collection[str], unseen: list[str]
) -> Iterator[tuple[str, str]]:
    if manager.kind is not ManagerKind.SYSTEM:
        return
    for name in directories:
        path = Path("/var/lib") / name.partition(":")[0]
        size, whole = _size(path)
        if not whole:
            unseen.append(f"how much is in {path}")
        yield str(path), str(size) if whole else _UNSEEN


def _size(path: Path) -> tuple[int, bool]:
    """Bytes in a directory, and whether all of it could be seen."""
    total, entries, whole = 0, 0, True
    left = [str(path)]
    while left:
        try:
            with os.scandir(left.pop()) as found:
                for one in found:
                    entries += 1
                    if entries > ENTRIES_MAX:
                        return total, False
                    if one.is_dir(follow_symlinks=False):
                        left.append(one.path)
                    else:
                        total += one.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
        except OSError:
            whole = False
    return total, whole


def _bytes(text: str | None) -> int:
    return int(text) if text else 0


def _changed(path: str) -> str:
    try:
        return _clock(Path(path).stat().st_mtime)
    except OSError:
        return ""


def _of(one: Fingerprint, aspect: Aspect) -> str:
    return one.values.get(aspect, {}).get("", "")


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M:%S")


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
