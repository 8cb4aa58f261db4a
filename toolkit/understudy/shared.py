"""One instance for many: started by whoever comes first, ended after the last, counted by systemd.

A shared instance lives in a run of its own, which no process owns (docs/architecture.md has the
picture, docs/decisions/0005-shared-instances.md the reasons):

- ``understudy-shared@KEY-RUN.service`` is stopped by systemd when nothing needs it any more
  (``StopWhenUnneeded=``), and that run's guard with it (``PartOf=``);
- ``understudy-hold@USER-RUN.service``, bound to the guard of a run that uses it, needs it;
- ``understudy-linger@RUN-USER.service`` follows a hold, if asked for, and needs it a while longer;
- ``understudy-making@KEY.service``, bound to the guard of the run that makes it, is there once at a
  time, so exactly one makes it.

KEY stands for service and group. None of these has a process that could be killed instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from understudy import control, launch, names
from understudy.derive import bind_rules
from understudy.errors import (
    InstanceError,
    ManagerError,
    NoSuchUnitError,
    RunError,
    UnderstudyError,
    UnitExistsError,
    UsageError,
)
from understudy.guard import Guard, few_rights
from understudy.instance import STOP_TIMEOUT_S, Instance
from understudy.launch import CanceledError, Stage
from understudy.manager import Manager, Transient
from understudy.model import ManagerKind
from understudy.plan import Plan, Planner, Request

if TYPE_CHECKING:
    from understudy.run import Run

PAUSE_MIN_S = 0.001
PAUSE_MAX_S = 0.05

_RECORD = "shared.json"
_SECRET = "sha256:"
"""How a setting begins that is compared and not shown."""
_ENDED = ("inactive", "failed")

_CONFINED = """\
# It is nothing but a clock, and nobody waits for its start.
DynamicUser=yes
CapabilityBoundingSet=
UMask=0077
PrivateDevices=yes
PrivateIPC=yes
PrivateNetwork=yes
PrivateUsers=yes
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
IPAddressDeny=any
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=none
RestrictNamespaces=yes
RestrictRealtime=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a run wants to share.

    Attributes:
        request: The instance.
        group: Among whom: all runs of this manager that name it so.
        keep_s: Seconds that it is kept after the last user; 0 for none.
        lifetime_s: Seconds after which it ends whatever happens; None for never.
        timeout_s: Deadline in seconds for the whole call.
        canceled: Asked again and again whether to give up.
    """

    request: Request
    group: str = ""
    keep_s: float = 0.0
    lifetime_s: float | None = None
    timeout_s: float
    canceled: Callable[[], bool] = lambda: False

    @property
    def key(self) -> str:
        """What it is found by."""
        text = f"{self.group}\0{self.request.service.name}"
        return "k" + hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """What it is called in errors."""
        group = f" in group '{self.group}'" if self.group else ""
        return f"'{self.request.service.name}'{group}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What those who come later must know of it. A file in the shared run's directory.

    Attributes:
        unit: The instance's unit.
        number: Its number in the shared run.
        ports: Its ports, by name.
        undeclared: See `Instance`.
        started_in_s: See `Instance`.
        settings: All that makes it what it is, by name.
    """

    unit: str
    number: int
    ports: dict[str, int]
    undeclared: list[str]
    started_in_s: float
    settings: dict[str, str]


class SharedInstance(Instance):
    """An instance that other runs use as well. Made by `understudy.Run.shared`.

    What is done to it (`kill`, `restart`, `freeze`) is done to all who use it. `stop` only gives
    it up.
    """

    shared = True

    def __init__(self, user: Run, stage: Stage, plan: Plan, record: Record, key: str) -> None:
        super().__init__(
            user.manager,
            plan.request.service,
            plan.derived,
            run=plan.part.run,
            number=plan.part.number,
            ports=record.ports,
            inside_ports=plan.inside_ports,
            network=str(plan.part.network or "host"),
            undeclared=record.undeclared,
            started_in_s=record.started_in_s,
            again=functools.partial(launch.restart, stage, plan),
            line=control.command_line(plan.request, plan.part.kind),
        )
        self.key = key
        self.settings = record.settings
        self.users = 1
        self._user = user
        self._hold = names.hold_unit(user.id, plan.part.run)

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Give it up: it ends when nobody uses it any more. A second call does nothing.

        Who asked for it more than once in one run gives it up as often. Returns when it is gone, or
        is seen to be still in use.

        Args:
            timeout_s: Deadline in seconds for the whole call.

        Raises:
            ManagerError: The manager did not stop it in time.
        """
        if self._stopped or os.getpid() != self._owner_pid:
            return
        self.users -= 1
        if self.users > 0:
            return
        self._stopped = True
        self._user.forget(self)
        deadline = time.monotonic() + timeout_s
        self._manager.stop([self._hold], timeout_s=timeout_s)
        self.wait_for_end(max(0.0, deadline - time.monotonic()))

    def wait_for_end(self, timeout_s: float) -> None:
        """After its last user's end: return when nothing of it is left; while it is used, at once.

        Raises:
            ManagerError: It did not end in time.
        """
        _wait_for_end(self._manager, self.key, self.run, timeout_s)


def join(
    run: Run, stage: Stage, wanted: Wanted, used: SharedInstance | None = None
) -> SharedInstance:
    """Use the shared instance, and start it first if nobody has.

    Args:
        run: Whose use it is, and with which it ends.
        stage: That run's.
        wanted: What is wanted.
        used: What that run uses already under the same key.

    Raises:
        UsageError: It is in use with other settings, or cannot be shared.
        InstanceError: It has died while others use it.
        RunError: Somebody else is starting it, and was not done in time.
        UnderstudyError: As `Run.spawn`; then nothing of it is left.
    """
    place = wanted.request.network
    if place is not None and place.name:
        raise UsageError(
            f"Cannot share {wanted.title}: network '{place}' ends with the run that made it",
            hint='network="private": one of its own',
        )
    joining = _Joining(run, stage, wanted)
    if used is None:
        return joining.join()
    if (fault := joining.fault(used.run, used.unit, used.settings)) is not None:
        raise fault
    used.users += 1
    return used


class _Joining:
    """One run on its way to a shared instance."""

    def __init__(self, run: Run, stage: Stage, wanted: Wanted) -> None:
        self.run = run
        self.stage = stage
        self.wanted = wanted
        self.manager = run.manager
        self.settings = _settings(self._planner("r0", 1), wanted.request)
        self.deadline = time.monotonic() + wanted.timeout_s
        self.pause_s = PAUSE_MIN_S
        self.making = names.making_unit(wanted.key)

    def join(self) -> SharedInstance:
        """Go on until it is there."""
        while True:
            if (joined := self._use_found(replace=False)) is not None:
                return joined
            try:
                self._begin_making()
            except UnitExistsError:
                self._pause()
                continue
            try:
                # Somebody may have been done just before.
                joined = self._use_found(replace=True)
                return joined if joined is not None else self._make()
            finally:
                self._end_making()

    def _pause(self) -> None:
        """Wait a little for somebody else's work."""
        if self.wanted.canceled():
            raise CanceledError
        if time.monotonic() >= self.deadline:
            maker = self.manager.status([self.making])[self.making]
            who = maker.environment.get("UNDERSTUDY_RUN", "")
            raise RunError(
                f"Cannot share {self.wanted.title}: not ready after {self.wanted.timeout_s:g} s: "
                + (f"run {who} is still starting it" if who else "another run was starting it"),
                hint="More time: timeout_s=; what lives: understudy list",
            )
        time.sleep(self.pause_s)
        self.pause_s = min(2 * self.pause_s, PAUSE_MAX_S)

    def _begin_making(self) -> None:
        guard = names.guard_unit(self.run.id)
        self._start(
            self.making,
            f"Run {self.run.id} is starting what it shares",
            [
                ("BindsTo", guard),
                ("After", guard),
                ("Environment", f"UNDERSTUDY_RUN={self.run.id}"),
            ],
        )

    def _end_making(self) -> None:
        try:
            self.manager.stop([self.making], timeout_s=STOP_TIMEOUT_S)
        except ManagerError:
            # Where a stop is proved by looking, the next one's may be there already.
            maker = self.manager.status([self.making])[self.making]
            if maker.environment.get("UNDERSTUDY_RUN") == self.run.id:
                raise

    def _use_found(self, *, replace: bool) -> SharedInstance | None:
        """Use the one that is there; None if there is none to be used.

        Args:
            replace: Whether to end one that is only kept, and will not do; for whoever makes one.
        """
        for unit, status in self.manager.list([names.shared_unit(self.wanted.key, "*")]).items():
            run = unit.removesuffix(".service").rpartition("-")[2]
            record = _read(self.manager, run)
            if status.active_state != "active" or record is None:
                continue  # it is not quite there yet, or not any more
            fault = self.fault(run, record.unit, record.settings)
            if fault is None:
                if self._hold(run, found=True):
                    return self._instance(run, record)
            elif self._in_use(run):
                raise fault
            elif replace:
                self._replace(run, record, fault)
        return None

    def fault(
        self, run: str, unit: str, settings: Mapping[str, str]
    ) -> UsageError | InstanceError | None:
        """Why the one that is there will not do; None if it will."""
        if differing := differences(settings, self.settings):
            return UsageError(
                f"Cannot share {self.wanted.title}: run {run} has it with other settings: "
                + "; ".join(differing),
                hint="the same settings for all who share it, another group=, or spawn()",
            )
        status = self.manager.status([unit])[unit]
        if status.active_state == "failed" or (
            status.active_state == "inactive" and not self.wanted.request.lazy
        ):
            return InstanceError(
                f"Cannot share {self.wanted.title}: '{unit}' has died while others use it",
                unit=unit,
                hint=f"See: understudy logs {unit}; end it for all: understudy stop {run}",
            )
        return None

    def _in_use(self, run: str) -> bool:
        holds = self.manager.list([names.hold_unit("*", run)])
        return any(status.active_state == "active" for status in holds.values())

    def _replace(self, run: str, record: Record, fault: UnderstudyError) -> None:
        """End one that was only kept for somebody who wants it as it was.

        Without its record nobody begins to use it, and who has begun looks for the record again.
        """
        _file(self.manager, run).unlink(missing_ok=True)
        if self._in_use(run):
            _write(self.manager, run, record)
            raise fault
        self.manager.stop([names.guard_unit(run)], timeout_s=STOP_TIMEOUT_S)

    def _hold(self, run: str, *, found: bool) -> bool:
        """Need a shared run from now on.

        Args:
            run: Its id.
            found: Whether it should be there already.

        Returns:
            False if it was not there any more.
        """
        user, guard = self.run.id, names.guard_unit(self.run.id)
        shared, hold = names.shared_unit(self.wanted.key, run), names.hold_unit(user, run)
        # After=: if the shared unit is being stopped, this one starts after its end.
        rows = [("BindsTo", guard), ("After", guard), ("Wants", shared), ("After", shared)]
        if self.wanted.keep_s:
            linger = names.linger_unit(run, user)
            rows.append(("OnSuccess", linger))
            self._write_linger(linger, run, shared)
        while True:
            try:
                self._start(hold, f"Run {user} uses shared run {run}", rows)
                break
            except UnitExistsError:  # this run gave it up a moment ago
                self._pause()
        held = False
        try:
            held = not found or self._is_there(run, shared)
        finally:
            if not held:
                self.manager.stop([hold], timeout_s=STOP_TIMEOUT_S)
        if held:
            return True
        (self.manager.unit_dir / names.linger_unit(run, user)).unlink(missing_ok=True)
        return False

    def _is_there(self, run: str, shared: str) -> bool:
        states = self.manager.status([shared, names.guard_unit(run)])
        active = all(status.active_state == "active" for status in states.values())
        return active and _read(self.manager, run) is not None

    def _write_linger(self, linger: str, run: str, shared: str) -> None:
        text = linger_text(self.manager.kind, run, shared, self.wanted.keep_s)
        self.manager.unit_dir.mkdir(parents=True, exist_ok=True)
        (self.manager.unit_dir / linger).write_text(text, encoding="utf-8")

    def _make(self) -> SharedInstance:
        """Begin the shared run as one of this process, and hand it over when it is ready.

        Killed at any step this process leaves either a run that ends with it, or one that is needed
        by nothing but a hold that ends with it.
        """
        from understudy.guard import take_id
        from understudy.run import end

        run, name = take_id()
        shared = names.shared_unit(self.wanted.key, run)
        with name:
            guard = Guard.start(
                self.manager,
                run,
                owner_pid=os.getpid(),
                lifetime_s=self.wanted.lifetime_s,
                held={"run": name.fileno()},
                denied=bind_rules(self.stage.planner.denied),
                timeout_s=max(1.0, self.deadline - time.monotonic()),
                part_of=shared,
            )
        try:
            stage = self._stage(run, guard)
            instance = launch.launch(
                stage,
                [self.wanted.request],
                timeout_s=max(0.001, self.deadline - time.monotonic()),
                canceled=self.wanted.canceled,
            )[0]
            record = Record(
                unit=instance.unit,
                number=instance.number,
                ports=instance.ports,
                undeclared=list(instance.undeclared),
                started_in_s=instance.started_in_s,
                settings=self.settings,
            )
            self._share(run, shared)
            guard.detach()
            _write(self.manager, run, record)
            return self._instance(run, record)
        except BaseException as exc:
            try:
                end(self.manager, run)
                self.manager.stop([names.hold_unit(self.run.id, run)], timeout_s=STOP_TIMEOUT_S)
            except (ManagerError, RunError) as left:
                exc.add_note(f"And then: {left.message}")
            raise
        finally:
            guard.close()

    def _share(self, run: str, shared: str) -> None:
        """Let it live as long as it is needed. What needs it comes first: else it ends at once."""
        guard = names.guard_unit(run)
        self._hold(run, found=False)
        # Not BindsTo=: to start this one must never start a guard that has ended.
        rows = [("Requisite", guard), ("After", guard), ("StopWhenUnneeded", "yes")]
        self._start(shared, f"Shared run {run}: {self.wanted.title}", rows, run=run)

    def _start(
        self, unit: str, description: str, rows: list[tuple[str, str]], *, run: str = ""
    ) -> None:
        """Start a unit that is only there to be needed, or to need another."""
        properties = [
            ("Description", description),
            ("Type", "oneshot"),
            ("RemainAfterExit", "yes"),
            ("Slice", names.slice_unit(run or self.run.id)),
            ("CollectMode", "inactive-or-failed"),
            ("TimeoutStopSec", "5"),
            *few_rights(self.manager),
            *rows,
        ]
        _start(self.manager, Transient(unit=unit, properties=properties, command=["/bin/true"]))

    def _planner(self, run: str, number: int) -> Planner:
        planner = self.stage.planner
        return Planner(
            manager=self.manager,
            run=run,
            allocator=planner.allocator,
            engine=planner.engine,
            denied=planner.denied,
            limits=planner.limits,
            counter=count(number),
        )

    def _stage(self, run: str, guard: Guard, *, number: int = 1) -> Stage:
        own = names.slice_unit(self.run.id)
        return Stage(
            planner=self._planner(run, number),
            guard=guard,
            cgroup=self.stage.cgroup.removesuffix(own) + names.slice_unit(run),
        )

    def _instance(self, run: str, record: Record) -> SharedInstance:
        stage = self._stage(run, self.stage.guard, number=record.number)
        plan = stage.planner.known(self.wanted.request, record.ports)
        return SharedInstance(self.run, stage, plan, record, self.wanted.key)


def linger_text(kind: ManagerKind, run: str, shared: str, keep_s: float) -> str:
    """The unit that holds a shared run for a while.

    Args:
        kind: Whose manager runs it.
        run: The shared run's id.
        shared: The unit that it needs.
        keep_s: For how many seconds.
    """
    guard = names.guard_unit(run)
    confined = _CONFINED if kind is ManagerKind.SYSTEM else ""
    return (
        f"[Unit]\nDescription=Shared run {run} is kept for a while\n"
        f"Requisite={guard}\nAfter={guard}\nWants={shared}\nCollectMode=inactive-or-failed\n"
        f"[Service]\nType=exec\nExecStart=/bin/sleep {keep_s:.3f}\n"
        f"Slice={names.slice_unit(run)}\nTimeoutStopSec=5\n{confined}"
    )


def _settings(planner: Planner, request: Request) -> dict[str, str]:
    """All that makes the instance what it is, in words that an error can show."""
    plan = planner.known(request)
    texts = json.dumps([plan.derived.units, plan.derived.files], sort_keys=True)
    found = {
        "from": "definition" if request.base is None else "installed",
        "lazy": "yes" if request.lazy else "no",
        "engine": str(plan.engine),
        "network": str(request.network or "host"),
        "ports": ", ".join(request.service.ports),
        "files": hashlib.sha256(texts.encode()).hexdigest()[:12],
    }
    found |= {f"port '{name}'": str(number) for name, number in request.numbers.items()}
    found |= {f"value '{name}'": value for name, value in request.values.items()}
    # Those who share it compare values, and nobody is shown one.
    confided = {f"env '{name}'": value for name, value in request.environment.items()}
    confided |= {f"value '{name}'": value for name, value in request.secrets.items()}
    for service, told in request.used_secrets.items():
        confided[f"secrets of '{service}'"] = json.dumps(told, sort_keys=True)
    found |= {
        name: f"{_SECRET}{hashlib.sha256(value.encode()).hexdigest()}"
        for name, value in confided.items()
    }
    for service, numbers in request.used.items():
        found[f"used '{service}'"] = ", ".join(
            f"{name} {number}" for name, number in numbers.items()
        )
    return found


def differences(there: Mapping[str, object], here: Mapping[str, str]) -> list[str]:
    """What is not the same there and here, in words for people."""
    names_ = [*there, *(name for name in here if name not in there)]
    differing = [name for name in names_ if there.get(name) != here.get(name)]
    if differing == ["files"]:
        return ["its definition has changed since"]
    return [
        f"{name} is {_difference(there.get(name), here.get(name))}"
        for name in differing
        if name != "files"
    ]


def _difference(there: object, here: object) -> str:
    if _said(there) == _said(here):
        return "not the same there and here"
    return f"{_said(there)} there and {_said(here)} here"


def _said(value: object) -> str:
    if value is None:
        return "not set"
    return "set" if str(value).startswith(_SECRET) else f"'{value}'"


def _file(manager: Manager, run: str) -> Path:
    return Path(names.run_directory(str(manager.runtime_dir), run)) / _RECORD


def _write(manager: Manager, run: str, record: Record) -> None:
    """Write what those who come later must know; it is there whole or not at all."""
    file = _file(manager, run)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        json.dump(dataclasses.asdict(record), opened)
    new.rename(file)


def _read(manager: Manager, run: str) -> Record | None:
    try:
        return Record(**json.loads(_file(manager, run).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _start(manager: Manager, unit: Transient) -> None:
    """Start one unit and wait for its job.

    Raises:
        UnitExistsError: There is one of that name.
        RunError: What it is bound to is gone: the run has ended.
        ManagerError: The manager refused.
    """
    name = unit.unit
    try:
        batches = manager.create([unit])
    except NoSuchUnitError as exc:
        raise RunError(f"Cannot start '{name}': what it is bound to has ended") from exc
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with contextlib.ExitStack() as closing:
        for jobs in batches:
            closing.callback(jobs.close)
        while time.monotonic() < deadline:
            for jobs in batches:
                for _unit, word in jobs.wait(0.05 / len(batches)):
                    if word == "done":
                        return
                    said = jobs.said.get(name, "")
                    kind = UnitExistsError if "already" in said else ManagerError
                    raise kind(f"Cannot start '{name}': {said or f'job {word}'}")
    raise ManagerError(f"Cannot start '{name}': not done in time")


def _wait_for_end(manager: Manager, key: str, run: str, timeout_s: float) -> None:
    units = [names.shared_unit(key, run), names.guard_unit(run), names.clean_unit(run)]
    needing = [names.hold_unit("*", run), names.linger_unit(run, "*")]
    deadline = time.monotonic() + timeout_s
    pause_s = PAUSE_MIN_S
    while True:
        states = manager.status(units)
        left = [unit for unit, one in states.items() if one.active_state not in _ENDED]
        # The manager sees only after the last one's end that nothing needs it any more.
        needed = states[units[0]].active_state == "active" and any(
            one.active_state not in _ENDED for one in manager.list(needing).values()
        )
        if not left or needed:
            return
        if time.monotonic() >= deadline:
            raise ManagerError(f"Cannot end shared run '{run}': {', '.join(left)} has not stopped")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
