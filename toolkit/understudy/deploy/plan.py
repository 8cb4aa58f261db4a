"""What has to be done with each file of a service. Pure, but for the files that it looks at."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from understudy import unitfile
from understudy.deploy.files import Files, Found, Kind, digest
from understudy.deploy.records import Manifest
from understudy.derive import SYSTEM_UNIT_DIR
from understudy.errors import DeployError
from understudy.model import Activation, HostFile, Service
from understudy.strays import UNIT_FOLDERS

BESIDE: Final = ".new"
"""What is put beside an edited file ends so."""

_STATE_ROOTS: Final = {
    "StateDirectory": "/var/lib",
    "CacheDirectory": "/var/cache",
    "LogsDirectory": "/var/log",
}
_MASK: Final = b"/dev/null"


class Action(StrEnum):
    """What is done with a file."""

    SAME = "unchanged"
    INSTALL = "installed"
    UPDATE = "updated"
    ADOPT = "adopted"
    KEEP = "kept"
    """Somebody has edited it, or it was there before: ours is put beside it."""
    EDITED = "edited"
    """The same, and ours is what it was when it was last put beside it."""
    LEFT = "left"
    """It is at a place that somebody has named, and not ours to write."""
    REMOVE = "removed"
    RESTORE = "restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A file, and what is done with it.

    Attributes:
        file: The file as it is to be.
        action: What is done.
        found: What is there.
        blocked: Whether even the place beside it has something that was edited.
    """

    file: HostFile
    action: Action
    found: Found | None
    blocked: bool = False

    @property
    def writes(self) -> str | None:
        """The path that is written; None if nothing is."""
        if self.action in (Action.INSTALL, Action.UPDATE, Action.ADOPT):
            return self.file.path
        if self.action is Action.KEEP and not self.blocked:
            return self.file.path + BESIDE
        return None

    def diff(self) -> str:
        """How what is to be differs from what there is, in unified form; "" if in nothing."""
        if self.action in (Action.SAME, Action.LEFT, Action.EDITED):
            return ""
        if self.file.secret or (self.found is not None and not self.found.mode & 0o077):
            return f"--- {self.file.path}: only its owner may read what is in it\n"
        there = b"" if self.found is None or self.found.kind is not Kind.FILE else self.found.data
        return "".join(
            difflib.unified_diff(
                there.decode(errors="replace").splitlines(keepends=True),
                self.file.text.splitlines(keepends=True),
                "/dev/null" if self.found is None else self.file.path,
                self.file.path + (BESIDE if self.action is Action.KEEP else ""),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of a service, by what is done with them.

    Attributes:
        names: All of them.
        sockets: Those that hold its ports.
        enabled: Those that are started at boot, as it is asked for; more may come with them.
        started: Those that are started.
    """

    names: tuple[str, ...]
    sockets: tuple[str, ...]
    enabled: tuple[str, ...]
    started: tuple[str, ...]


def units_of(service: Service, files: Sequence[HostFile]) -> Units:
    """The units among the files of a service.

    Args:
        service: The definition.
        files: What it needs on the host.
    """
    paths = [file.path.removeprefix(f"{SYSTEM_UNIT_DIR}/") for file in files]
    names = tuple(path for path in paths if "/" not in path)
    sockets = tuple(name for name in names if name.endswith(".socket"))
    main = service.production or f"{service.name}.service"
    if service.production_activation is Activation.PROXY:
        # Its proxies start it; by itself it would be stopped at once.
        return Units(names=names, sockets=sockets, enabled=sockets, started=sockets)
    return Units(names=names, sockets=sockets, enabled=(main, *sockets), started=(*sockets, main))


def steps(
    service: Service, wanted: Sequence[HostFile], files: Files, old: Manifest | None, *, adopt: bool
) -> list[Step]:
    """What to do with each file of a service.

    Args:
        service: The definition.
        wanted: Its files as they are to be.
        files: The host's files.
        old: What is remembered of it; None if it is not deployed.
        adopt: Whether units of others are taken over.

    Raises:
        DeployError: A unit is there that is somebody else's, or something that is no file.
    """
    found = []
    for file in wanted:
        if not file.ours:
            found.append(Step(file=file, action=Action.LEFT, found=None))
            continue
        there = files.look(file.path)
        action = _action(service, file, there, old, adopt=adopt)
        beside = files.look(file.path + BESIDE) if action is Action.KEEP else None
        ours = None if old is None else old.kept.get(file.path)
        blocked = beside is not None and beside.digest not in (ours, digest(file.text.encode()))
        found.append(Step(file=file, action=action, found=there, blocked=blocked))
    found += _no_longer_wanted(wanted, files, old)
    if old is None and not adopt:
        _check_elsewhere(service, wanted)
    return found


def _no_longer_wanted(
    wanted: Sequence[HostFile], files: Files, old: Manifest | None
) -> Iterator[Step]:
    """What an earlier definition needed, unless it was edited."""
    if old is None:
        return
    paths = {file.path for file in wanted}
    for path, ours in old.files.items():
        if path in paths or path in old.adopted:
            continue
        there = files.look(path)
        if there is not None and there.digest == ours:
            yield Step(file=HostFile(path=path, text=""), action=Action.REMOVE, found=there)


def _action(
    service: Service, file: HostFile, there: Found | None, old: Manifest | None, *, adopt: bool
) -> Action:
    if there is None:
        return Action.INSTALL
    new = digest(file.text.encode())
    ours = None if old is None else old.files.get(file.path)
    unit = file.path.startswith(f"{SYSTEM_UNIT_DIR}/")
    if there.kind is Kind.OTHER:
        raise DeployError(f"Cannot deploy '{service.name}': '{file.path}' is no file")
    offered = None if old is None else old.kept.get(file.path)
    if ours is not None and there.digest == new:
        return Action.SAME
    if ours is not None and there.digest == ours:
        return Action.UPDATE
    if ours is not None:
        return Action.EDITED if new in (ours, offered) else Action.KEEP
    if unit and there.kind is Kind.LINK and there.data == _MASK:
        name = Path(file.path).name
        raise DeployError(
            f"Cannot deploy '{service.name}': {name} is masked",
            hint=f"somebody wants that it never runs; else: systemctl unmask {name}",
        )
    if unit and not adopt:
        raise _foreign(service, file.path)
    if unit:
        return Action.ADOPT
    if offered is not None and there.digest == new:
        return Action.SAME  # ours was put in its place by hand
    return Action.EDITED if offered == new else Action.KEEP


def _check_elsewhere(service: Service, wanted: Sequence[HostFile]) -> None:
    """Demand that no unit of these names is where a package or a generator puts them."""
    for file in wanted:
        name = file.path.removeprefix(f"{SYSTEM_UNIT_DIR}/")
        if name == file.path or "/" in name:
            continue
        for folder in UNIT_FOLDERS:
            path = Path("/", folder, name)
            if str(path) != file.path and path.exists():
                raise _foreign(service, str(path))


def _foreign(service: Service, path: str) -> DeployError:
    return DeployError(
        f"Cannot deploy '{service.name}': '{path}' is there and was not put there by understudy",
        hint="what would change: --diff --adopt; --adopt takes it over and keeps a backup, "
        "which withdraw restores",
    )


def check_owner(service: Service, wanted: Sequence[HostFile], all_: Mapping[str, Manifest]) -> None:
    """Demand that no other deployed service has one of these files.

    Args:
        service: The definition.
        wanted: Its files.
        all_: What is deployed, by service.

    Raises:
        DeployError: One has.
    """
    for name, one in all_.items():
        shared = [file.path for file in wanted if file.path in one.files]
        if name != service.name and shared:
            raise DeployError(
                f"Cannot deploy '{service.name}': {Path(shared[0]).name} is deployed as '{name}'",
                hint=f"one of them at a time: sudo understudy withdraw {name}",
            )


def state_paths(files: Iterable[HostFile]) -> list[str]:
    """The directories that services make for themselves and keep, as their units say.

    Args:
        files: The units among them are looked at.
    """
    found: dict[str, None] = {}
    for file in files:
        if not file.path.startswith(f"{SYSTEM_UNIT_DIR}/"):
            continue
        for name, value in unitfile.effective(unitfile.parse(file.text)):
            root = _STATE_ROOTS.get(name)
            for word in unitfile.split(value) if root is not None else ():
                where = word.partition(":")[0]
                if "%" not in where and ".." not in where:
                    found |= dict.fromkeys((f"{root}/{where}", f"{root}/private/{where}"))
    return list(found)
