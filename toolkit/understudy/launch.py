"""From requests to ready instances: claim, derive, write, start, look, and try again.

A batch goes through in rounds. All of a round's files are written before the first start, all
starts are queued at once, and one loop watches all of them: the manager's words by event, the
sockets by one look at the kernel for the whole batch, the ready checks without blocking. What
lost a race for its ports goes into the next round under a new name and with new ports.
"""

from __future__ import annotations

import itertools
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from understudy import derive, instance, journal, ports
from understudy.errors import PortError, ReadyTimeoutError, StartError, UnderstudyError
from understudy.guard import Guard
from understudy.instance import Instance
from understudy.manager import Jobs, Manager, UnitStatus
from understudy.manager.commands import systemd_run
from understudy.manager.runner import RunnerJobs
from understudy.model import Derived, Engine, Part, Service
from understudy.ready import HttpProbe

ROUNDS = 12
"""How often a batch is tried with other ports before a thief is named and the caller is told."""

JOURNAL_LINES = 20
JOURNAL_SETTLE_S = 0.5
DISCARD_TIMEOUT_S = 30.0
PAUSE_MIN_S = 0.001
PAUSE_MAX_S = 0.05

EXIT_CHDIR = 200
EXIT_EXEC = 203
EXIT_NAMES = {
    EXIT_CHDIR: "its WorkingDirectory= cannot be entered",
    EXIT_EXEC: "its program cannot be executed",
    216: "its Group= cannot be taken",
    217: "its User= cannot be taken",
    218: "its capabilities cannot be set",
    226: "its mount namespace cannot be set up",
    228: "its system call filter cannot be set",
    233: "its runtime directory cannot be made",
    238: "its state directory cannot be made",
}
"""What the manager says before the program does (systemd.exec(5), "Process Exit Codes")."""

_IN_USE = re.compile(r"address (already )?in use|EADDRINUSE|\[Errno 98\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One wanted instance.

    Attributes:
        service: Its definition.
        values: Values that override the definition's, by name.
        environment: Further environment.
        used: By service name, by port name: the numbers of the services it talks to.
        numbers: Exact port numbers asked for, by port name.
        base: The unit text to derive from, as installed on the host; None for the definition's.
        lazy: Whether a socket-activated instance is left to its first connection.
    """

    service: Service
    values: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    base: str | None = None
    lazy: bool = False


@dataclass(slots=True, kw_only=True)
class Stage:
    """Where the instances of one run are put.

    Attributes:
        manager: The manager they run on.
        run: The run's id.
        guard: The run's guard, which keeps their claims.
        allocator: Where their ports come from.
        engine: How they are handed to the manager; None for the default of each
            (unit files, and systemd-run for what is ad hoc).
        cgroup: The control group of the run's slice, as systemd gives it.
        counter: The numbers of the instances.
    """

    manager: Manager
    run: str
    guard: Guard
    allocator: ports.Allocator
    engine: Engine | None
    cgroup: str
    counter: Iterator[int] = field(default_factory=lambda: itertools.count(1))


def launch(
    stage: Stage,
    requests: Sequence[Request],
    *,
    timeout_s: float,
    progress: Callable[[int, int], None] = lambda _ready, _total: None,
) -> list[Instance]:
    """Start all of the requested instances, and return when all are ready.

    Args:
        stage: Where to put them.
        requests: What is wanted.
        timeout_s: Deadline in seconds for the whole call, not per try.
        progress: Called with how many are ready, and of how many, whenever that changes.

    Raises:
        StartError: One died, or its job failed; none of the batch is left.
        ReadyTimeoutError: One was not ready in time; none of the batch is left.
        PortError: No ports to be had, or every round lost them to somebody.
        ManagerError: The manager refused.
    """
    began = time.monotonic()
    deadline = began + timeout_s
    done: dict[int, _Attempt] = {}
    live: list[_Attempt] = []
    lost: _Attempt | None = None
    waiting = dict(enumerate(requests))
    taken: set[int] = set()
    try:
        for _round in range(ROUNDS):
            attempts = _prepare(stage, waiting, taken, live)
            _watch(
                stage,
                attempts,
                began=began,
                deadline=deadline,
                ready=lambda: progress(_ready_count(live), len(requests)),
            )
            failed = [attempt for attempt in attempts if attempt.failure is not None]
            if failed:
                raise _first(failed, len(requests))
            done.update({a.index: a for a in attempts if not a.conflict})
            losers = [attempt for attempt in attempts if attempt.conflict]
            if not losers:
                return [done[index].to_instance(stage) for index in sorted(done)]
            _discard(stage, losers, live)
            lost = losers[0]
            taken.update(number for attempt in losers for number in attempt.lost)
            waiting = {attempt.index: attempt.request for attempt in losers}
            if time.monotonic() > deadline or any(request.numbers for request in waiting.values()):
                break
        assert lost is not None
        raise _no_ports(lost)
    except BaseException:
        _discard(stage, list(live), live)
        raise


def engine_of(request: Request, engine: Engine | None) -> Engine:
    """How a request is handed to the manager.

    Args:
        request: What is wanted.
        engine: What the caller asked for; None: unit files, and systemd-run for what is ad hoc.
    """
    return engine or (Engine.SYSTEMD_RUN if request.service.command else Engine.FILES)


def runner_command(derived: Derived, part: Part) -> list[str]:
    """The ``systemd-run`` command line that starts an instance as a transient unit.

    Raises:
        RenderError: It has what no transient unit can have.
    """
    rows, argv = derive.transient(derived, part)
    return systemd_run(part.kind, derived.unit, rows, argv, options=["--quiet"])


class _Attempt:
    """One instance on its way, under one name and with one set of ports."""

    def __init__(
        self,
        *,
        index: int,
        request: Request,
        part: Part,
        derived: Derived,
        claim: ports.Claim,
        cgroup: str,
        transient: bool,
    ) -> None:
        self.index = index
        self.request = request
        self.part = part
        self.derived = derived
        self.claim = claim
        self.cgroup = cgroup
        self.transient = transient
        self.running = False
        self.failure: UnderstudyError | None = None
        self.conflict = ""
        self.lost: set[int] = set()
        self.held: Mapping[str, int] = {}
        self.check: ports.Check | None = None
        self.started_in_s = 0.0
        check = request.service.ready
        self.probe: HttpProbe | None = None
        if check is not None and not request.lazy:
            self.probe = HttpProbe(check, part.ports[check.port])

    @property
    def unit(self) -> str:
        return self.derived.unit

    @property
    def to_start(self) -> str:
        """The unit to start: an eager service brings its socket along."""
        socket = self.derived.socket
        return socket if socket and self.request.lazy else self.unit

    def to_instance(self, stage: Stage) -> Instance:
        return Instance(
            stage.manager,
            self.request.service,
            self.derived,
            run=self.part.run,
            number=self.part.number,
            ports=self.part.ports,
            undeclared=[str(socket) for socket in self.check.undeclared] if self.check else (),
            started_in_s=self.started_in_s,
            freed=lambda: stage.guard.free(list(self.held)),
        )

    def settled(self, sockets: ports.Sockets) -> bool:
        """Look at its sockets: True once it is ready, or has lost a port to somebody."""
        self.check = ports.check(
            self.request.service.ports.values(),
            self.part.ports,
            sockets,
            ids=ports.cgroup_ids(self.cgroup),
            inodes=self._passed(sockets),
        )
        if self.check.conflicts:
            self.lose(self.check.conflicts)
            return True
        if self.request.lazy:
            return True
        return not self.check.missing and (self.probe is None or self.probe.step())

    def _passed(self, sockets: ports.Sockets) -> frozenset[int]:
        """The sockets that the manager bound for it: what its processes have open.

        A lazy one has no process yet; its socket unit is active, so a port's one socket is its.
        """
        if self.derived.socket is None:
            return frozenset()
        if not self.request.lazy:
            return ports.socket_inodes(self.cgroup)
        declared = self.request.service.ports.values()
        bound = [sockets.bound(port.transport, self.part.ports[port.name]) for port in declared]
        return frozenset(found[0].inode for found in bound if len(found) == 1)

    def lose(self, conflicts: Iterable[ports.Conflict]) -> None:
        """Note what somebody else holds."""
        for conflict in conflicts:
            self.conflict = self.conflict or str(conflict)
            self.lost.add(conflict.number)


def _prepare(
    stage: Stage, waiting: Mapping[int, Request], taken: Collection[int], live: list[_Attempt]
) -> list[_Attempt]:
    """Claim ports, derive, and write every file of the round; `live` has what must be undone."""
    claimed = stage.allocator.claim_many(
        [request.service.ports.values() for request in waiting.values()],
        exact=[request.numbers for request in waiting.values()],
        avoid=taken,
    )
    attempts = []
    for (index, request), (claim, numbers) in zip(waiting.items(), claimed, strict=True):
        part = Part(
            run=stage.run,
            number=next(stage.counter),
            kind=stage.manager.kind,
            runtime_dir=str(stage.manager.runtime_dir),
            ports=numbers,
            values=request.values,
            environment=request.environment,
            used=request.used,
            base=request.base,
            lazy=request.lazy,
        )
        derived = derive.derive(request.service, part)
        attempt = _Attempt(
            index=index,
            request=request,
            part=part,
            derived=derived,
            claim=claim,
            cgroup=f"{stage.cgroup}/{derived.unit}",
            transient=engine_of(request, stage.engine) is Engine.SYSTEMD_RUN,
        )
        live.append(attempt)
        attempts.append(attempt)
    descriptors: dict[str, int] = {}
    for attempt in attempts:
        attempt.held = attempt.claim.descriptors()
        descriptors |= attempt.held
    stage.guard.hold(descriptors)
    for attempt in attempts:
        attempt.claim.close()
        instance.write_files(stage.manager, attempt.derived, units=not attempt.transient)
    return attempts


def _watch(
    stage: Stage, attempts: Sequence[_Attempt], *, began: float, deadline: float,
    ready: Callable[[], None],
) -> None:  # fmt: skip
    """Start a round and return when each of it is ready, lost its ports, or has failed."""
    jobs = _start(stage, attempts)
    pending = {attempt.to_start: attempt for attempt in attempts}
    try:
        while pending:
            now = time.monotonic()
            if now >= deadline:
                for attempt in pending.values():
                    attempt.failure = _late(attempt, deadline - began)
                return
            # Looking costs little; looking often for a slow service would still be waste.
            pause_s = min(max((now - began) / 20, PAUSE_MIN_S), PAUSE_MAX_S, deadline - now)
            for unit, word in _news(jobs, pending.values(), pause_s):
                if unit in pending and word == "done":
                    pending[unit].running = True
                elif unit in pending:
                    _died(stage, pending.pop(unit), word, said=_said(jobs, unit))
            running = [attempt for attempt in pending.values() if attempt.running]
            if not running:
                continue
            sockets = ports.snapshot()
            for attempt in running:
                if attempt.settled(sockets):
                    attempt.started_in_s = time.monotonic() - began
                    del pending[attempt.to_start]
                    ready()
    finally:
        for each in jobs:
            each.close()
        for attempt in attempts:
            if attempt.probe is not None:
                attempt.probe.close()


def _news(
    jobs: Sequence[Jobs], pending: Iterable[_Attempt], pause_s: float
) -> list[tuple[str, str]]:
    """Wait for the manager or for an answer to a ready check, whichever is first."""
    poll = select.poll()
    asked = [a.probe for a in pending if a.probe is not None and a.probe.fileno() >= 0]
    for probe in asked:
        poll.register(probe, select.POLLOUT if probe.wants_to_write else select.POLLIN)
    if asked:
        poll.poll(pause_s * 1000)
        pause_s = 0
    return [news for each in jobs for news in each.wait(pause_s / len(jobs))]


def _start(stage: Stage, attempts: Sequence[_Attempt]) -> list[Jobs]:
    """Hand a round to the manager: units in files by start jobs, transient ones by systemd-run."""
    jobs: list[Jobs] = []
    transient = [attempt for attempt in attempts if attempt.transient]
    if transient:
        jobs.append(
            RunnerJobs(
                stage.manager, {a.unit: runner_command(a.derived, a.part) for a in transient}
            )
        )
    if len(transient) < len(attempts):
        jobs.append(stage.manager.start([a.to_start for a in attempts if not a.transient]))
    return jobs


def _said(jobs: Sequence[Jobs], unit: str) -> str:
    return next((each.said.get(unit, "") for each in jobs if isinstance(each, RunnerJobs)), "")


def _died(stage: Stage, attempt: _Attempt, word: str, *, said: str) -> None:
    """Find out why, and whether other ports would help."""
    sockets = ports.snapshot()
    declared = attempt.request.service.ports.values()
    attempt.check = ports.check(
        declared, attempt.part.ports, sockets, ids=frozenset(), inodes=frozenset()
    )
    attempt.lose(attempt.check.conflicts)
    if attempt.conflict:
        return
    status = stage.manager.status([attempt.unit])[attempt.unit]
    lines = journal.read(attempt.unit, lines=JOURNAL_LINES, settle_s=JOURNAL_SETTLE_S)
    text = "\n".join([*said.splitlines(), *(line.text for line in lines)])
    if declared and _IN_USE.search(text):
        # Whoever it was has let go already; which port it was, only some services say.
        attempt.conflict = "a port was in use, and is free again"
        return
    ended = describe_end(status, word)
    attempt.failure = StartError(
        f"Cannot start '{attempt.unit}': {ended}",
        unit=attempt.unit,
        result=status.result or word,
        exit_status=status.exit_status if status.exit_code else None,
        journal=text,
        hint=_end_hint(stage, attempt, status),
    )


def describe_end(status: UnitStatus, word: str) -> str:
    """How a unit ended, for people.

    Args:
        status: What the manager says of it.
        word: What its job came to (systemd.unit(5)), or ``died``.
    """
    if status.exit_code == os.CLD_EXITED and status.exit_status in EXIT_NAMES:
        return f"{EXIT_NAMES[status.exit_status]} (exit status {status.exit_status})"
    if status.exit_code == os.CLD_EXITED:
        return f"it exited with status {status.exit_status} before it was ready"
    if status.exit_code in (os.CLD_KILLED, os.CLD_DUMPED):
        try:
            name = signal.Signals(status.exit_status).name
        except ValueError:
            name = f"signal {status.exit_status}"
        return f"it was ended by {name} before it was ready"
    if status.result not in ("", "success"):
        return f"{status.result} (job: {word})"
    return f"job {word}"


def _end_hint(stage: Stage, attempt: _Attempt, status: UnitStatus) -> str:
    program = _program(attempt.derived)
    if status.exit_status == EXIT_EXEC and program:
        found = shutil.which(program)
        if found is None:
            return f"there is no program '{program}' here; --set names another one"
        return f"is '{found}' executable, and may the instance's user reach it?"
    if status.exit_status == EXIT_CHDIR:
        return (
            "may the instance's user enter its WorkingDirectory=? A checkout below a home of "
            "mode 0700 cannot be entered by others: use --manager user"
        )
    return f"See: understudy logs {attempt.unit}"


def _program(derived: Derived) -> str:
    for line in derived.units.get(derived.unit, "").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ExecStart" and value.split():
            return value.split()[0].strip('"').lstrip("@-:+!|")
    return ""


def _late(attempt: _Attempt, timeout_s: float) -> ReadyTimeoutError:
    """Say what is missing of an instance that runs, or what its job waits for."""
    check = attempt.check
    if check is None:
        what = "its start job has not ended"
    elif check.missing:
        unheld = ", ".join(
            f"{port.name} ({port.transport} {number})" for port, number in check.missing
        )
        what = f"nothing of it holds {unheld}"
        if check.undeclared:
            others = ", ".join(str(socket) for socket in check.undeclared)
            what += f"; it listens on {others} instead"
    else:
        assert attempt.probe is not None
        probe = attempt.probe
        what = f"GET {probe.check.path} on port {probe.port}: {probe.last}"
    lines = journal.read(attempt.unit, lines=JOURNAL_LINES, settle_s=JOURNAL_SETTLE_S)
    return ReadyTimeoutError(
        f"Cannot start '{attempt.unit}': not ready after {timeout_s:g} s: {what}",
        unit=attempt.unit,
        timeout_s=timeout_s,
        journal="\n".join(line.text for line in lines),
        hint="More time: --timeout S (timeout_s=)",
    )


def _no_ports(attempt: _Attempt) -> PortError:
    number = min(attempt.lost) if attempt.lost else None
    owner = None
    if number is not None:
        transport = next(
            port.transport
            for port in attempt.request.service.ports.values()
            if attempt.part.ports.get(port.name) == number
        )
        holder = ports.holder(transport, number)
        owner = str(holder) if holder else None
    who = f"port {number} is held by {owner}" if owner else attempt.conflict
    return PortError(
        f"Cannot start '{attempt.unit}': {who}",
        port=number,
        owner=owner,
        hint="Another range: --ports-from FIRST-LAST; who holds what: understudy ports",
    )


def _first(failed: Sequence[_Attempt], total: int) -> UnderstudyError:
    error = failed[0].failure
    assert error is not None
    if len(failed) > 1:
        error.add_note(f"{len(failed)} of {total} instances failed; this is the first of them.")
    return error


def _discard(stage: Stage, attempts: Sequence[_Attempt], live: list[_Attempt]) -> None:
    """Undo attempts: units, files and claims."""
    if not attempts:
        return
    try:
        instance.discard(
            stage.manager, [attempt.derived for attempt in attempts], timeout_s=DISCARD_TIMEOUT_S
        )
    finally:
        for attempt in attempts:
            attempt.claim.close()
            live.remove(attempt)
        stage.guard.free([name for attempt in attempts for name in attempt.held])


def _ready_count(live: Sequence[_Attempt]) -> int:
    return sum(attempt.started_in_s > 0 and not attempt.conflict for attempt in live)
