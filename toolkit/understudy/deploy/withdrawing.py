"""Taking production away from this host: what deploy has put there, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from understudy import services
from understudy.deploy import records
from understudy.deploy.alone import alone
from understudy.deploy.files import Files
from understudy.deploy.outcome import Outcome, check_root
from understudy.deploy.plan import BESIDE, Action, state_paths
from understudy.deploy.records import Manifest
from understudy.deploy.transaction import (
    Change,
    Transaction,
    attempt,
    finish,
    journal_of,
    lock,
    remove_user,
    undone_on_error,
)
from understudy.deploy.units import HostUnits
from understudy.derive import SYSTEM_UNIT_DIR
from understudy.errors import DeployError, nearest_hint
from understudy.manager import Manager, connect
from understudy.model import HostFile, ManagerKind

TIMEOUT_S: Final = 60.0


def withdraw(
    names: Iterable[str],
    *,
    purge: bool = False,
    now: bool = False,
    pretend: bool = False,
    timeout_s: float = TIMEOUT_S,
    said: Callable[[str], None] = lambda _text: None,
) -> list[Outcome]:
    """Take away what `deploy` has put on this host, all of it or nothing.

    What was edited since is kept. What was there before, and was taken over, is there again and
    runs if it ran.

    Args:
        names: The services.
        purge: Whether their state, their directories and their users go too.
        now: Whether they are stopped without regard for those who have a lease on them.
        pretend: Whether all is looked at, and nothing changed.
        timeout_s: Seconds that all have to stop.
        said: Told what was found from an earlier time.

    Raises:
        DeployError: A service cannot be stopped: all is as it was.
        ExceptionGroup: Not all could be put back as it was.
        ManagerError: The system manager cannot be reached.
    """
    names = list(dict.fromkeys(names))
    check_root("withdraw", names)
    manager = connect(ManagerKind.SYSTEM)
    files = Files()
    with lock(files, "withdraw", names):
        if not pretend:
            for note in finish(files, manager):
                said(note)
        known = records.manifests(files)
        for name in names:
            _check_known(name, known)
        work = [_Plan(known[name], files, manager, purge=purge) for name in names if name in known]
        if work and not pretend:
            running = {
                plan.old.unit: plan.old.service
                for plan in work
                if not (now or plan.old.withdrawn) and plan.states[plan.old.unit].active
            }
            with alone(running, "stop", timeout_s=timeout_s, said=said):
                _carry_out(work, files, manager, purge=purge, timeout_s=timeout_s, said=said)
        done = {plan.outcome.service: plan.outcome for plan in work}
        return [done.get(name) or _nothing(name) for name in names]


def _check_known(name: str, known: Iterable[str]) -> None:
    known = list(known)
    if name not in known and name not in services.folders(as_root=True):
        raise DeployError(
            f"Cannot withdraw '{name}': it is not deployed here",
            hint=f"{nearest_hint(name, known)}deployed are: {', '.join(known) or 'none'}",
        )


def _nothing(name: str) -> Outcome:
    return Outcome(service=name, unit="", notes=[f"{name} is not deployed here"])


class _Plan:
    """What is to be done for one service."""

    def __init__(self, old: Manifest, files: Files, manager: Manager, *, purge: bool) -> None:
        self.old = old
        self._files = files
        self.purge = purge
        self.outcome = Outcome(service=old.service, unit=old.unit)
        self.units = {*old.units, *old.before}
        self.states = {
            unit: HostUnits(manager, self.units).state(unit) for unit in sorted(self.units)
        }
        of_units = state_paths(self._unit_files())
        self.state = [path for path in (*of_units, *old.state) if os.path.lexists(path)]
        self.directories = [path for path in old.directories if not _is_empty(files, path)]
        self.changes = [*self._files_of_it(), *self._files_beside()]
        self.left = None if purge else self._left()
        data = None if self.left is None else self.left.to_text().encode()
        path = records.manifest_path(old.service)
        self.changes.append(Change(path=path, data=data, mode=0o600))
        self.outcome.changed = not old.withdrawn or purge
        self.outcome.plan = list(self._words())

    @property
    def enabled_again(self) -> list[str]:
        """What was started at boot before it was deployed."""
        return [unit for unit, state in self.old.before.items() if state.enabled]

    @property
    def started_again(self) -> list[str]:
        """What ran before it was deployed."""
        return [unit for unit, state in self.old.before.items() if state.active]

    def _left(self) -> Manifest | None:
        """What is remembered for a later ``--purge``."""
        if not (self.old.user or self.state or self.directories):
            return None
        return Manifest(
            service=self.old.service,
            unit=self.old.unit,
            units=(),
            directories=self.directories,
            user=self.old.user,
            state=self.state,
            withdrawn=True,
        )

    def _unit_files(self) -> list[HostFile]:
        found = []
        for path in self.old.files:
            there = self._files.look(path) if path.startswith(SYSTEM_UNIT_DIR) else None
            if there is not None:
                text = there.data.decode(errors="replace")
                found.append(HostFile(path=path, text=text))
        return found

    def _files_of_it(self) -> Iterable[Change]:
        for path, ours in self.old.files.items():
            there = self._files.look(path)
            backup = records.backup_path(self.old.service, path)
            if there is not None and there.digest != ours:
                self.outcome.files.append((path, Action.KEEP))
                text = f"'{path}' was edited and is kept"
                if path in self.old.adopted:
                    text += f"; what was there before deploy is in '{backup}'"
                self.outcome.notes.append(text)
            elif path in self.old.adopted and (before := self._files.look(backup)) is not None:
                self.outcome.files.append((path, Action.RESTORE))
                yield Change(
                    path=path,
                    data=before.data,
                    mode=before.mode,
                    ids=(before.uid, before.gid),
                    link=before.kind == "link",
                )
                yield Change(path=backup, data=None)
            elif there is not None:
                self.outcome.files.append((path, Action.REMOVE))
                yield Change(path=path, data=None)

    def _files_beside(self) -> Iterable[Change]:
        for path, ours in self.old.kept.items():
            there = self._files.look(path + BESIDE)
            if there is not None and there.digest == ours:
                self.outcome.files.append((path + BESIDE, Action.REMOVE))
                yield Change(path=path + BESIDE, data=None)
            if path not in self.old.files and self._files.look(path) is not None:
                self.outcome.notes.append(f"'{path}' was there before, and is kept")

    def _words(self) -> Iterable[str]:
        yield from (f"stop {unit}" for unit, state in self.states.items() if state.active)
        yield from (f"disable {unit}" for unit, state in self.states.items() if state.enabled)
        for path, action in self.outcome.files:
            if action is not Action.KEEP:
                yield f"{'restore' if action is Action.RESTORE else 'remove'} {path}"
        yield from (f"enable {unit}" for unit in self.enabled_again)
        yield from (f"start {unit}" for unit in self.started_again)
        if self.purge:
            for path in (*self.state, *self.directories):
                yield f"remove {path} with all that is in it"
            if self.old.user:
                yield f"remove user {self.old.user}"


def _carry_out(
    plans: Sequence[_Plan],
    files: Files,
    manager: Manager,
    *,
    purge: bool,
    timeout_s: float,
    said: Callable[[str], None],
) -> None:
    changes = [change for plan in plans for change in plan.changes]
    states = {unit: state for plan in plans for unit, state in plan.states.items()}
    units = HostUnits(manager, states)
    names = [plan.old.service for plan in plans]
    journal = journal_of("withdraw", names, changes, files, units=states)
    transaction = Transaction(files, units, journal, changes)
    with undone_on_error(transaction, said):
        units.stop([unit for unit in states if states[unit].active], timeout_s=timeout_s)
        units.disable([unit for unit in states if states[unit].enabled])
        transaction.write()
        units.reload()
        units.enable([unit for plan in plans for unit in plan.enabled_again])
        units.start([u for plan in plans for u in plan.started_again], timeout_s=timeout_s)
        transaction.commit()
    units.forget(unit for unit in states if not units.state(unit).active)
    for plan in plans:
        plan.outcome.notes += _clear_away(plan, files, purge=purge)


def _is_empty(files: Files, path: str) -> bool:
    """Whether there is nothing in a directory, or no directory, as far as one may look there."""
    try:
        with files.opened(path) as folder:
            return not os.listdir(folder)  # noqa: PTH208 - of a descriptor
    except FileNotFoundError:
        return True
    except DeployError:
        return not os.path.lexists(path)


def _clear_away(plan: _Plan, files: Files, *, purge: bool) -> list[str]:
    """Remove what may only go once there is no way back."""
    notes: list[str] = []
    for path in plan.state if purge else ():
        attempt(notes, files.remove_tree, path)
    for path in plan.old.directories:
        attempt(notes, files.remove_tree if purge else files.remove_folder, path)
    for folder in reversed(plan.old.folders):
        attempt(notes, files.remove_folder, folder)
    if purge and plan.old.user:
        attempt(notes, remove_user, plan.old.user)
    if plan.left is not None:
        kept = [*plan.left.state, *plan.left.directories]
        kept += [f"user {plan.left.user}"] if plan.left.user else []
        notes.append(f"kept: {', '.join(kept)}; --purge removes them")
    _remove_backup_folders(plan.old, files)
    return notes


def _remove_backup_folders(old: Manifest, files: Files) -> None:
    """Remove the folders in which files were kept that were taken over, where they are empty."""
    top = records.backup_path(old.service, "")
    for path in old.adopted:
        folder = records.backup_path(old.service, path).rpartition("/")[0]
        while folder.startswith(top) and files.remove_folder(folder):
            folder = folder.rpartition("/")[0]
