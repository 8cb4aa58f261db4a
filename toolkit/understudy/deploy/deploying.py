"""Putting production on this host."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from understudy import confided, derive, services
from understudy.deploy import checks, records
from understudy.deploy.alone import alone
from understudy.deploy.files import Files, Found, Kind, digest
from understudy.deploy.outcome import Outcome, check_root
from understudy.deploy.plan import (
    BESIDE,
    Action,
    Units,
    check_owner,
    state_paths,
    steps,
    units_of,
)
from understudy.deploy.records import Manifest
from understudy.deploy.transaction import (
    Change,
    Transaction,
    finish,
    has_user,
    journal_of,
    lock,
    make_users,
    run,
    undone_on_error,
)
from understudy.deploy.units import HostUnits
from understudy.errors import DeployError, UsageError, nearest_hint
from understudy.manager import Manager, connect
from understudy.model import OURS, HostFile, ManagerKind, Service

TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A service as it is to be on this host.

    Attributes:
        service: Its definition.
        values: The values that were set for it, on this occasion or an earlier one.
        files: The files that it needs there.
        old: What is remembered of it; None if it is not deployed.
        left: What an earlier withdraw has left of it; None if nothing.
    """

    service: Service
    values: Mapping[str, str]
    files: Sequence[HostFile]
    old: Manifest | None = None
    left: Manifest | None = None


def wanted(
    names: Iterable[str], settings: Mapping[str, str], *, files: Files | None = None
) -> list[Wanted]:
    """What services are to be on this host, of definitions that only root can have written.

    Args:
        names: The services.
        settings: Values by name (``--set``); ``mediamtx.program`` is that of one of the services.
            Those that were set at an earlier time still are.
        files: The host's files.

    Raises:
        UsageError: There is no such service, none has such a value, or more than one has it.
        DefinitionError: A definition is wrong.
        RenderError: A value is unfit, or a template is wrong.
        DeployError: Others than root may write to a definition.
    """
    found = [_trusted(name) for name in dict.fromkeys(names)]
    values = _by_service(found, settings)
    answer = []
    for one in found:
        found_there = records.manifest(files or Files(), one.name)
        left = found_there if found_there is not None and found_there.withdrawn else None
        old = None if left is not None else found_there
        settable = {*one.values, *one.secrets}
        kept = {} if old is None else {k: v for k, v in old.values.items() if k in settable}
        set_ = {**kept, **values[one.name]}
        used = services.used_numbers(one, as_root=True)
        answer.append(
            Wanted(
                service=one,
                values=set_,
                files=derive.production_files(one, set_, used=used),
                old=old,
                left=left,
            )
        )
    return answer


def _trusted(name: str) -> Service:
    try:
        found = services.find(name, as_root=True)
    except UsageError as exc:
        known = ", ".join(sorted(services.folders(as_root=True)))
        raise UsageError(
            exc.message,
            hint=f"{nearest_hint(name, services.folders(as_root=True))}known services: {known}; "
            f"a definition of this host is a folder in {services.SYSTEM_UNITS}",
        ) from exc
    if found.folder is not None and found.folder.is_relative_to(services.SYSTEM_UNITS):
        checks.check_trusted(found.folder, Files())
    return found


def _by_service(found: Sequence[Service], settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Each value for the service that has it."""
    values: dict[str, dict[str, str]] = {one.name: {} for one in found}
    all_ = {one.name: [*one.values, *one.secrets] for one in found}
    for key, value in settings.items():
        whose, _dot, name = key.rpartition(".")
        having = [one.name for one in found if name in all_[one.name] and whose in ("", one.name)]
        if not having:
            known = [word for one in found for word in all_[one.name]]
            raise UsageError(
                f"Cannot set '{key}': no service of {', '.join(values)} has such a value",
                hint=f"{nearest_hint(name, known)}their values: {', '.join(known) or 'none'}",
            )
        if len(having) > 1:
            raise UsageError(
                f"Cannot set '{key}': {' and '.join(having)} have such a value",
                hint=f"say which is meant: --set {having[0]}.{name}=…",
            )
        values[having[0]][name] = value
    return values


def deploy(
    names: Iterable[str],
    settings: Mapping[str, str] | None = None,
    *,
    adopt: bool = False,
    restart: bool = False,
    now: bool = False,
    pretend: bool = False,
    timeout_s: float = TIMEOUT_S,
    said: Callable[[str], None] = lambda _text: None,
) -> list[Outcome]:
    """Put production on this host, all of it or nothing.

    Args:
        names: The services.
        settings: Values (``--set``), remembered from then on.
        adopt: Whether units that are there already are taken over.
        restart: Whether what runs is restarted where its files change.
        now: Whether it is restarted without regard for those who have a lease on it.
        pretend: Whether all is looked at, and nothing changed.
        timeout_s: Seconds from the first start until all are ready.
        said: Told what is done, and what was found from an earlier time.

    Raises:
        DeployError: Something is in the way, or a service was not ready: all is as it was.
        ExceptionGroup: Not all could be put back as it was.
        UsageError, DefinitionError, RenderError: As for `wanted`.
        ManagerError: The system manager cannot be reached.
    """
    names = list(dict.fromkeys(names))
    check_root("deploy", names)
    manager = connect(ManagerKind.SYSTEM)
    files = Files()
    with lock(files, "deploy", names):
        if not pretend:
            for note in finish(files, manager):
                said(note)
        found = wanted(names, settings or {}, files=files)
        known = records.manifests(files)
        for one in found:
            check_owner(one.service, one.files, known)
        plans = [_Plan(one, files, manager, adopt=adopt, restart=restart) for one in found]
        work = [plan for plan in plans if plan.is_work]
        for plan in work:
            plan.look()
        if work and not pretend:
            running = {
                plan.unit: plan.service.name
                for plan in work
                if plan.restarts and not now and plan.states[plan.unit].active
            }
            with alone(running, "restart", timeout_s=timeout_s, said=said):
                _carry_out(work, files, manager, timeout_s=timeout_s, said=said)
        return [plan.outcome for plan in plans]


class _Plan:
    """What is to be done for one service."""

    def __init__(
        self, one: Wanted, files: Files, manager: Manager, *, adopt: bool, restart: bool
    ) -> None:
        self.one = one
        self.service = one.service
        self.old = one.old
        self._files = files
        self.unit = one.service.production or f"{one.service.name}.service"
        self.names: Units = units_of(one.service, one.files)
        if any(name.startswith(OURS) for name in self.names.names):
            raise DeployError(
                f"Cannot deploy '{self.service.name}': '{self.unit}' is called like those of runs",
                hint=f"another name for it than {OURS}…",
            )
        self.gone = [] if one.old is None else sorted({*one.old.units} - {*self.names.names})
        self.units = HostUnits(manager, {*self.names.names, *self.gone})
        self.states = {unit: self.units.state(unit) for unit in (*self.names.names, *self.gone)}
        self.steps = steps(one.service, one.files, files, one.old, adopt=adopt)
        self.outdated = self._outdated()
        self.restarts = bool(self.outdated) and restart
        self.starts = [u for u in self.names.started if not self.units.runs(u)]
        self.enables = [unit for unit in self.names.enabled if not self.states[unit].enabled]
        # A socket is started anew only while its service does not run.
        anew = [unit for unit in self.outdated if unit in self.names.sockets]
        self.stops_first: list[str] = []
        if self.restarts and (anew or self._takes_ports_from_itself()):
            self.stops_first = [*anew, self.unit]
        user = one.service.deploy.user
        self.user = user if user is not None and not has_user(user) else ""
        self.manifest = self._manifest()
        self.outcome = self._outcome()

    def _outdated(self) -> list[str]:
        """What runs as it was before its files changed, now or at an earlier time."""
        written = {step.writes for step in self.steps}
        gone = any(step.action is Action.REMOVE for step in self.steps)
        changed = gone or any(step.writes == step.file.path for step in self.steps)
        stale = () if self.old is None else self.old.stale
        found = []
        for unit in (*self.names.sockets, self.unit):
            state = self.states[unit]
            own = f"{derive.SYSTEM_UNIT_DIR}/{unit}" in written
            if state.active and (
                state.invocation in stale or own or (changed and unit == self.unit)
            ):
                found.append(unit)
        return found

    @property
    def is_work(self) -> bool:
        """Whether there is anything to do."""
        written = any(step.writes or step.action is Action.REMOVE for step in self.steps)
        return bool(
            written or self.starts or self.enables or self.restarts or self.gone or self.user
            or self._is_news()
        )  # fmt: skip

    def look(self) -> None:
        """Look whether it can be done."""
        self.outcome.exposure = checks.verify(self.service, self.one.files, self.names.names)
        may_own = not self._takes_ports_from_itself() or self.restarts
        checks.check_free(self.service, [*self.names.names, *self.gone], may_own=may_own)
        checks.check_alone(self.service, self.one.files)
        for change in self.changes():
            self._files.missing_folders(change.path)

    def _takes_ports_from_itself(self) -> bool:
        """Whether its sockets are new, and its service has opened their ports by itself."""
        new = any(not self.states[socket].active for socket in self.names.sockets)
        return new and self.states[self.unit].active

    def changes(self) -> list[Change]:
        """The files that are written and removed, its manifest among them."""
        found = []
        for step in self.steps:
            file = step.file
            if step.action is Action.ADOPT and step.found is not None:
                found.append(_backup(self.service.name, file.path, step.found))
            if step.action is Action.REMOVE:
                found.append(Change(path=file.path, data=None))
            elif step.writes is not None:
                found.append(
                    Change(
                        path=step.writes,
                        data=file.text.encode(),
                        mode=file.mode,
                        owner=file.owner,
                        group=file.group,
                    )
                )
            if step.action is Action.SAME and self._has_own_beside(file.path):
                found.append(Change(path=file.path + BESIDE, data=None))
        path = records.manifest_path(self.service.name)
        if self._is_news():
            found.append(Change(path=path, data=self.manifest.to_text().encode(), mode=0o600))
        return found

    def _is_news(self) -> bool:
        """Whether anything is to be remembered that was not."""
        return self.old is None or self.manifest.to_text() != self.old.to_text()

    def _has_own_beside(self, path: str) -> bool:
        if self.old is None or path not in self.old.kept:
            return False
        there = self._files.look(path + BESIDE)
        return there is not None and there.digest == self.old.kept[path]

    def directories(self) -> dict[str, tuple[int, int, int] | None]:
        """How its own directories are, as far as nobody can lead astray who looks there."""
        found: dict[str, tuple[int, int, int] | None] = {}
        for path in self._directories():
            with contextlib.suppress(DeployError):
                there = self._files.look(path)
                found[path] = None if there is None else (there.mode, there.uid, there.gid)
        return found

    def _directories(self) -> list[str]:
        values = {**self.service.values, **self.one.values}
        return [services.filled(one.path, values) for one in self.service.deploy.directories]

    def state_paths(self) -> list[str]:
        """The directories that its services make, and that are not there."""
        return [path for path in state_paths(self.one.files) if not os.path.lexists(path)]

    def sysusers(self) -> str:
        """The row that makes its user."""
        path = f"/etc/sysusers.d/understudy-{self.service.name}.conf"
        return next(file.text for file in self.one.files if file.path == path)

    def tmpfiles(self) -> str | None:
        """The file that makes its directories; None if there is none, or it is somebody else's."""
        path = f"/etc/tmpfiles.d/understudy-{self.service.name}.conf"
        return path if path in self.manifest.files else None

    def waiting(self, units: HostUnits) -> checks.Waiting:
        """What waits until it is ready."""
        values = confided.known(self.service, {}, self.one.values)
        others = (Action.KEEP, Action.EDITED, Action.LEFT)
        return checks.Waiting(
            self.service,
            units,
            self.names.names,
            # With a configuration that is not ours its ports may be others.
            strict=all(step.action not in others for step in self.steps),
            credentials=confided.credentials(self.service, values),
        )

    def _manifest(self) -> Manifest:
        old = self.old
        ours = {} if old is None else dict(old.files)
        kept = {} if old is None else dict(old.kept)
        adopted = [] if old is None else list(old.adopted)
        for step in self.steps:
            path, new = step.file.path, digest(step.file.text.encode())
            if step.action in (Action.SAME, Action.INSTALL, Action.UPDATE, Action.ADOPT):
                ours[path] = new
                kept.pop(path, None)
            elif step.action is Action.KEEP:
                kept[path] = new
            elif step.action is Action.REMOVE:
                ours.pop(path, None)
            if step.action is Action.ADOPT:
                adopted.append(path)
        last = old or self.one.left
        folders = {} if last is None else dict.fromkeys(last.folders)
        for step in self.steps:
            if step.writes is not None:
                folders |= dict.fromkeys(self._files.missing_folders(step.writes))
        directories = {} if last is None else dict.fromkeys(last.directories)
        new_ones = [path for path, access in self.directories().items() if access is None]
        return Manifest(
            service=self.service.name,
            unit=self.unit,
            units=self.names.names,
            values=self.one.values,
            files=ours,
            kept=kept,
            adopted=adopted,
            folders=list(folders),
            directories=list(directories | dict.fromkeys(new_ones)),
            user=self.user or ("" if last is None else last.user),
            before=self.states if old is None else old.before,
            stale=() if self.restarts else [self.states[unit].invocation for unit in self.outdated],
        )

    def _outcome(self) -> Outcome:
        outcome = Outcome(service=self.service.name, unit=self.unit)
        outcome.files = [(step.file.path, step.action) for step in self.steps]
        outcome.diffs = {step.file.path: text for step in self.steps if (text := step.diff())}
        outcome.updates = [
            outcome.diffs[step.file.path]
            for step in self.steps
            if step.found is not None and step.file.path in outcome.diffs
        ]
        outcome.texts = {
            step.writes: "" if step.file.secret else step.file.text
            for step in self.steps
            if step.writes is not None
        }
        outcome.restart_needed = bool(self.outdated) and not self.restarts
        outcome.plan = list(self._words())
        outcome.changed = self.is_work
        for step in self.steps:
            path = step.file.path
            if step.action is Action.KEEP and step.blocked:
                text = f"'{path}' was edited and is kept, and so is '{path}{BESIDE}'"
                outcome.notes.append(f"{text}: what is new is nowhere")
            elif step.action is Action.KEEP:
                outcome.notes.append(f"'{path}' is kept as it is; ours is in '{path}{BESIDE}'")
            elif step.action is Action.EDITED:
                outcome.notes.append(f"'{path}' was edited and is kept")
            elif step.action is Action.LEFT:
                there = "" if os.path.lexists(path) else ", and is not there"
                outcome.notes.append(f"'{path}' is yours, not below {_home(self.service)}{there}")
        if outcome.restart_needed:
            outcome.notes.append(
                f"{self.unit} still runs as it was started before, until it is restarted: "
                f"sudo understudy deploy {self.service.name} --restart"
            )
        return outcome

    def _words(self) -> Iterator[str]:
        if self.user:
            yield f"make user {self.user}"
        for step in self.steps:
            if step.action is Action.ADOPT:
                kept = records.backup_path(self.service.name, step.file.path)
                yield f"keep {step.file.path} as {kept}"
            if step.writes is not None:
                file = step.file
                yield f"write {step.writes} ({file.mode:04o} {file.owner}:{file.group})"
            elif step.action is Action.REMOVE:
                yield f"remove {step.file.path}"
        yield from (f"stop and disable {unit}" for unit in self.gone)
        yield from (
            f"make {path}" for path in self.manifest.directories if not os.path.lexists(path)
        )
        yield from (f"enable {unit}" for unit in self.enables)
        if self.restarts:
            yield from (f"restart {unit}" for unit in self.outdated)
        yield from (f"start {unit}" for unit in self.starts)


def _home(service: Service) -> str:
    return derive.configuration_directory(service)


def _backup(service: str, path: str, found: Found) -> Change:
    return Change(
        path=records.backup_path(service, path),
        data=found.data,
        mode=found.mode,
        ids=(found.uid, found.gid),
        link=found.kind is Kind.LINK,
    )


def _carry_out(
    plans: Sequence[_Plan],
    files: Files,
    manager: Manager,
    *,
    timeout_s: float,
    said: Callable[[str], None],
) -> None:
    changes = [change for plan in plans for change in plan.changes()]
    states = {unit: state for plan in plans for unit, state in plan.states.items()}
    units = HostUnits(manager, states)
    users = {plan.user: plan.sysusers() for plan in plans if plan.user}
    journal = journal_of(
        "deploy",
        [plan.service.name for plan in plans],
        changes,
        files,
        units=states,
        users=list(users),
        directories={path: row for plan in plans for path, row in plan.directories().items()},
        state=[path for plan in plans for path in plan.state_paths()],
    )
    transaction = Transaction(files, units, journal, changes)
    with undone_on_error(transaction, said):
        make_users(users)
        gone = [unit for plan in plans for unit in plan.gone if states[unit].loaded]
        units.stop(gone, timeout_s=timeout_s)
        units.disable(gone)
        transaction.write()
        if any(change.path.startswith(f"{derive.SYSTEM_UNIT_DIR}/") for change in changes):
            units.reload()
        for plan in plans:
            if (path := plan.tmpfiles()) is not None:
                run(["systemd-tmpfiles", "--create", path], f"make directories of '{path}'")
        adopting = [plan for plan in plans if any(s.action is Action.ADOPT for s in plan.steps)]
        units.enable([u for plan in adopting for u in plan.names.enabled], anew=True)
        enables = [u for plan in plans if plan not in adopting for u in plan.enables]
        units.enable([unit for unit in enables if not units.enabled(unit)])
        deadline = time.monotonic() + timeout_s
        units.stop([u for plan in plans for u in plan.stops_first], timeout_s=timeout_s)
        # What runs on has other files now than those it was started with.
        waiting = [(plan, plan.waiting(units)) for plan in plans if plan.starts or plan.restarts]
        again = [plan.unit for plan in plans if plan.restarts and not plan.stops_first]
        # To start what is to be restarted in an hour is to wait for an hour.
        again += [u for plan in plans for u in plan.starts if states[u].active and u not in again]
        units.restart(again, timeout_s=timeout_s)
        begun = [
            u for plan in plans for u in (plan.names.started if plan.stops_first else plan.starts)
        ]
        units.start([unit for unit in begun if unit not in again], timeout_s=timeout_s)
        for plan, one in waiting:
            said(f"waiting for {plan.unit}")
            plan.outcome.notes += one.wait(deadline)
        transaction.commit()
