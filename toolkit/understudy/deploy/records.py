"""What deploy remembers: what it put where, and what to do should it be ended half-way.

All of it is below ``/var/lib/understudy/deploy``, for root alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, Self, TypeVar

from understudy.deploy.files import Files, Kind
from understudy.errors import DeployError

_T = TypeVar("_T")

STATE: Final = "/var/lib/understudy/deploy"
"""Where it is remembered."""

JOURNAL: Final = f"{STATE}/journal"
"""How everything was before a change that is under way."""

DONE: Final = f"{STATE}/journal-done"
"""What `JOURNAL` is called once the change is complete and only names are left to be tidied up."""

_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitState:
    """How a unit is.

    Attributes:
        active: Whether it runs, or listens.
        enabled: Whether it is started at boot.
        invocation: Its invocation id, another one after each start; "" if it never ran.
        loaded: Whether the manager knows it.
    """

    active: bool = False
    enabled: bool = False
    invocation: str = ""
    loaded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One service as it was deployed.

    Attributes:
        service: The definition's name.
        unit: Production's unit.
        units: All of its units.
        values: The values that were set for it.
        files: The digest of each file that is ours, by path.
        kept: Files of others that lie where one of ours belongs, by path: the digest of ours,
            which was put beside.
        adopted: Files of others that were taken over; a backup of each is kept.
        folders: Folders that were made for its files, the outermost first.
        directories: Its own directories, as far as they were made for it.
        user: The user that was made for it; "" if none was.
        before: How its units were before it was first deployed, as far as they were there.
        stale: The invocations that still run as they were before their files changed.
        state: Once it is withdrawn: the directories with its state, which are still there.
        withdrawn: Whether it is, and nothing but its user and its state is left.
    """

    service: str
    unit: str
    units: Sequence[str]
    values: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    adopted: Sequence[str] = ()
    folders: Sequence[str] = ()
    directories: Sequence[str] = ()
    user: str = ""
    before: Mapping[str, UnitState] = field(default_factory=dict)
    stale: Sequence[str] = ()
    state: Sequence[str] = ()
    withdrawn: bool = False

    def to_text(self) -> str:
        """It as a file."""
        return _to_text(asdict(self))

    @classmethod
    def from_text(cls, text: str, path: str) -> Self:
        """It from a file.

        Raises:
            DeployError: It is another version's, or damaged.
        """
        return _from_text(cls, "before", text, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """How everything was before a change, and what it is to be.

    Attributes:
        verb: ``deploy`` or ``withdraw``.
        services: Of what.
        files: By path: the digest before, and after; None where there is no file.
        folders: Folders that are made, the outermost first.
        directories: By path: mode, user and group before; None if it was not there.
        units: How each unit was.
        users: Users that are made.
        state: Directories that the services make and that were not there.
    """

    verb: str
    services: Sequence[str]
    files: Mapping[str, Sequence[str | None]]
    folders: Sequence[str]
    directories: Mapping[str, Sequence[int] | None]
    units: Mapping[str, UnitState]
    users: Sequence[str]
    state: Sequence[str] = ()

    def to_text(self) -> str:
        """It as a file."""
        return _to_text(asdict(self))

    @classmethod
    def from_text(cls, text: str, path: str) -> Self:
        """It from a file.

        Raises:
            DeployError: It is another version's, or damaged.
        """
        return _from_text(cls, "units", text, path)


def manifest_path(service: str) -> str:
    """Where a service's manifest is."""
    return f"{STATE}/{service}.json"


def backup_path(service: str, path: str) -> str:
    """Where a file that was taken over is kept."""
    return f"{STATE}/backup/{service}{path}"


def manifest(files: Files, service: str) -> Manifest | None:
    """What is remembered of a service; None if it is not deployed.

    Raises:
        DeployError: It cannot be read.
    """
    path = manifest_path(service)
    found = files.look(path)
    if found is None:
        return None
    return Manifest.from_text(_text(found.data if found.kind is Kind.FILE else b"", path), path)


def manifests(files: Files) -> dict[str, Manifest]:
    """What is remembered of each deployed service, by its name.

    Raises:
        DeployError: One cannot be read.
    """
    try:
        with files.opened(STATE) as folder:
            names = sorted(os.listdir(folder))  # noqa: PTH208 - of a descriptor
    except FileNotFoundError:
        return {}
    services = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    found = {name: manifest(files, name) for name in services}
    return {name: one for name, one in found.items() if one is not None}


def journal(files: Files, path: str = JOURNAL) -> Journal | None:
    """The change that is under way; None if none is.

    Raises:
        DeployError: It cannot be read.
    """
    found = files.look(path)
    if found is None:
        return None
    return Journal.from_text(_text(found.data, path), path)


def _to_text(content: Mapping[str, object]) -> str:
    return json.dumps({"version": _VERSION, **content}, indent=2) + "\n"


def _from_text(kind: type[_T], states: str, text: str, path: str) -> _T:
    try:
        content = json.loads(text)
        _check_version(content.pop("version"), path)
        content[states] = {unit: UnitState(**row) for unit, row in content[states].items()}
        return kind(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _damaged(path, exc) from exc


def _check_version(version: object, path: str) -> None:
    if version != _VERSION:
        raise DeployError(
            f"Cannot read '{path}': it was written by another version of understudy ({version})",
            hint="deploy and withdraw with the version that wrote it",
        )


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise _damaged(path, exc) from exc


def _damaged(path: str, exc: Exception) -> DeployError:
    return DeployError(
        f"Cannot read '{path}': it is damaged ({exc})",
        hint="it says what of this host was deployed; restore it, or undo that by hand",
    )
