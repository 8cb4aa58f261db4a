"""From requests to ready instances: plan, write, start, look, and try again.

A batch goes through in rounds. All of a round's files are written before the first start, all
starts are queued at once, and one loop watches all of them: the manager's words by event, the
sockets by one look at the kernel for the whole batch, the ready checks without blocking. What
lost a race for its ports goes into the next round under a new name and with new ports.
"""

from __future__ import annotations

import contextlib
import functools
import select
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from understudy import autogroup, confided, control, failure, instance, ports, private
from understudy.errors import ManagerError, UnderstudyError
from understudy.guard import Guard
from understudy.instance import Instance
from understudy.manager import Jobs
from understudy.model import Engine, Port
from understudy.plan import Plan, Planner, Request
from understudy.private import Passage, Passages, Step
from understudy.ready import HttpProbe

ROUNDS = 12
"""How often a batch is tried with other ports before the thief is named."""

UNSEEN_LOSSES = 3
"""How often a service may say that an address is in use while all of its ports are free."""

DISCARD_TIMEOUT_S = 30.0
PAUSE_MIN_S = 0.001
PAUSE_MAX_S = 0.05


@dataclass(slots=True, kw_only=True)
class Stage:
    """Where the instances of one run are put.

    Attributes:
        planner: What makes plans of requests.
        guard: The run's guard, which keeps their claims.
        cgroup: The control group of the run's slice, as systemd gives it.
    """

    planner: Planner
    guard: Guard
    cgroup: str


def launch(
    stage: Stage,
    requests: Sequence[Request],
    *,
    timeout_s: float,
    progress: Callable[[int, int], None] = lambda _ready, _total: None,
    canceled: Callable[[], bool] = lambda: False,
) -> list[Instance]:
    """Start all of the requested instances, and return when all are ready.

    Args:
        stage: Where to put them.
        requests: What is wanted.
        timeout_s: Deadline in seconds for the whole call, not per try.
        progress: Called with how many are ready, and of how many, whenever that changes.
        canceled: Asked again and again whether to give up.

    Raises:
        CanceledError: It was; none of the batch is left.
        StartError: One died, or its job failed; none of the batch is left.
        ReadyTimeoutError: One was not ready in time; none of the batch is left.
        PortError: No ports to be had, or every round lost them to somebody.
        RenderError: A value or a template is wrong.
        ManagerError: The manager refused.
    """
    batch = _Batch(stage, requests, timeout_s=timeout_s, progress=progress, canceled=canceled)
    try:
        return batch.launch()
    except BaseException as exc:
        try:
            batch.discard(list(batch.live))
        except ManagerError as left:
            exc.add_note(f"And then: {left.message}")
        raise


class CanceledError(Exception):
    """Whoever wanted the instances wants them no more; none of them is left."""


def restart(stage: Stage, plan: Plan, timeout_s: float) -> None:
    """Restart an instance where it is, and return when it is ready again.

    Args:
        stage: Where it is.
        plan: What it was started as.
        timeout_s: Deadline in seconds for the whole call.

    Raises:
        StartError: It died, or its job failed.
        ReadyTimeoutError: It was not ready in time.
        PortError: Somebody else holds one of its ports.
        ManagerError: The manager refused.
    """
    _Batch(stage, [plan.request], timeout_s=timeout_s).restart(plan)


class _Attempt:
    """One instance on its way, under one name and with one set of ports."""

    def __init__(self, index: int, plan: Plan, cgroup: str, ephemeral: range) -> None:
        self.index = index
        self.plan = plan
        self.to_start = plan.to_start
        self.cgroup = cgroup
        self.ephemeral = ephemeral
        self.held = plan.claim.descriptors()
        self.running = False
        self.failure: UnderstudyError | None = None
        self.conflict = ""
        self.lost: set[int] = set()
        self.check: ports.Check | None = None
        self.started_in_s = 0.0
        self.passage = Passage(plan, cgroup, ephemeral) if plan.derived.gate else None
        check = plan.request.service.ready
        self.probe: HttpProbe | None = None
        if check is not None and not plan.request.lazy:
            told = confided.known(plan.request.service, plan.part.values, plan.part.secrets)
            credentials = confided.credentials(plan.request.service, told)
            self.probe = HttpProbe(check, plan.part.outside[check.port], credentials)

    @property
    def visible(self) -> bool:
        """Whether its sockets can be looked at from outside."""
        return self.running and (self.passage is None or self.passage.step is Step.OUTSIDE)

    @property
    def stuck(self) -> bool:
        """Whether it cannot go on in its private network."""
        if self.passage is None:
            return False
        self.check = self.passage.check or self.check
        self.failure = self.passage.error
        if self.passage.lost:
            self.conflict = "a port was taken before it could be published"
            self.lost |= self.passage.lost
        return bool(self.failure or self.conflict)

    def ran(self) -> None:
        """Its start job is done."""
        self.running = True
        if self.passage is not None:
            self.passage.running = True

    def settled(self, sockets: ports.Sockets) -> bool:
        """Look at its sockets: True once it is ready, or has lost a port to somebody."""
        if self.passage is not None and not self.passage.unpublished:
            self._look_at_published(sockets)
        else:
            self.look(sockets, ids=ports.cgroup_ids(self.cgroup), inodes=self._passed(sockets))
        if self.conflict or self.plan.request.lazy:
            return True
        assert self.check is not None
        return not self.check.missing and (self.probe is None or self.probe.step())

    def look(
        self, sockets: ports.Sockets, *, ids: Collection[int], inodes: Collection[int] = ()
    ) -> None:
        """See how it stands to its ports; what somebody else holds is lost."""
        self.check = ports.check(
            self.plan.request.service.ports.values(),
            self.plan.part.ports,
            sockets,
            ids=ids,
            inodes=inodes,
            ephemeral=self.ephemeral,
        )
        self._lose(self.check)

    def _look_at_published(self, sockets: ports.Sockets) -> None:
        """See that its sockets outside, which were bound for it, are alone on their ports."""
        numbers = self.plan.part.published
        declared = [self.plan.request.service.ports[name] for name in numbers]
        inodes = _alone(declared, numbers, sockets)
        self._lose(ports.check(declared, numbers, sockets, ids=(), inodes=inodes))

    def _lose(self, check: ports.Check) -> None:
        for conflict in check.conflicts:
            self.conflict = self.conflict or str(conflict)
            self.lost.add(conflict.number)

    def _passed(self, sockets: ports.Sockets) -> frozenset[int]:
        """The sockets that the manager bound for it: what its processes have open.

        A lazy one has no process yet; its socket unit is active, so a port's one socket is its.
        """
        if self.plan.derived.socket is None:
            return frozenset()
        if not self.plan.request.lazy:
            return ports.socket_inodes(self.cgroup)
        declared = self.plan.request.service.ports.values()
        return _alone(declared, self.plan.part.ports, sockets)


class _Batch:
    """A batch of requests on its way; `live` is what must be undone if it fails."""

    def __init__(
        self,
        stage: Stage,
        requests: Sequence[Request],
        *,
        timeout_s: float,
        progress: Callable[[int, int], None] = lambda _ready, _total: None,
        canceled: Callable[[], bool] = lambda: False,
    ) -> None:
        self.live: list[_Attempt] = []
        self._stage = stage
        self._manager = stage.planner.manager
        self._requests = requests
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._progress = progress
        self._canceled = canceled

    def launch(self) -> list[Instance]:
        """Go through the rounds."""
        waiting = dict(enumerate(self._requests))
        taken: set[int] = set()
        unseen = 0
        for number in range(1, ROUNDS + 1):
            self._round(waiting, taken)
            losers = [attempt for attempt in self.live if attempt.conflict]
            failed = [a for a in self.live if a.failure is not None and not a.conflict]
            unseen += any(not loser.lost for loser in losers)
            if unseen > UNSEEN_LOSSES:
                failed += [loser for loser in losers if not loser.lost]
            if failed:
                raise self._first(failed)
            if not losers:
                break
            exact = any(loser.plan.request.numbers for loser in losers)
            if number == ROUNDS or exact or time.monotonic() > self._began + self._timeout_s:
                raise self._given_up(losers[0])
            self.discard(losers)
            taken.update(port for loser in losers for port in loser.lost)
            waiting = {loser.index: loser.plan.request for loser in losers}
        self._yield(self.live)
        return [self._instance(one) for one in sorted(self.live, key=lambda one: one.index)]

    def restart(self, plan: Plan) -> None:
        """Start one that is there already once more."""
        unit = plan.derived.unit
        cgroup = f"{self._stage.cgroup}/{plan.derived.place}"
        attempt = _Attempt(0, plan, cgroup, ports.ephemeral_ports())
        attempt.to_start = unit  # whose socket, if it has one, stays
        if attempt.passage is not None:
            private.withdraw(self._manager, plan)
        with contextlib.ExitStack() as closing:
            if attempt.probe is not None:
                closing.callback(attempt.probe.close)
            jobs = closing.enter_context(contextlib.closing(self._manager.restart(unit)))
            self._watch([jobs], {unit: attempt})
        if attempt.conflict and attempt.lost:
            raise self._given_up(attempt)
        if attempt.failure is not None:
            raise attempt.failure
        self._yield([attempt])

    def discard(self, attempts: Sequence[_Attempt]) -> None:
        """Undo attempts: units, files and claims."""
        if not attempts:
            return
        try:
            instance.discard(
                self._manager,
                [attempt.plan.derived for attempt in attempts],
                timeout_s=DISCARD_TIMEOUT_S,
            )
        finally:
            for attempt in attempts:
                attempt.plan.claim.close()
                self.live.remove(attempt)
            self._stage.guard.free([name for attempt in attempts for name in attempt.held])

    def _round(self, waiting: Mapping[int, Request], taken: Collection[int]) -> None:
        self._stage.guard.hurry()
        ephemeral = ports.ephemeral_ports()
        plans = self._stage.planner.plan(list(waiting.values()), avoid=taken)
        attempts = [
            _Attempt(index, plan, f"{self._stage.cgroup}/{plan.derived.place}", ephemeral)
            for index, plan in zip(waiting, plans, strict=True)
        ]
        self.live += attempts
        descriptors: dict[str, int] = {}
        for attempt in attempts:
            descriptors |= attempt.held
        self._stage.guard.hold(descriptors)
        for attempt in attempts:
            attempt.plan.claim.close()
            by_file = attempt.plan.engine is Engine.FILES
            instance.write_files(self._manager, attempt.plan.derived, units=by_file)
        with contextlib.ExitStack() as closing:
            for attempt in attempts:
                if attempt.probe is not None:
                    closing.callback(attempt.probe.close)
            jobs = [
                closing.enter_context(contextlib.closing(each)) for each in self._start(attempts)
            ]
            self._watch(jobs, {attempt.plan.to_start: attempt for attempt in attempts})

    def _start(self, attempts: Sequence[_Attempt]) -> Iterator[Jobs]:
        """Hand a round to the manager: files by their names, transient units as they are."""
        files = [a.plan for a in attempts if a.plan.engine is Engine.FILES]
        transient = [a.plan for a in attempts if a.plan.engine is Engine.SYSTEMD_RUN]
        if transient:
            yield from self._manager.create([plan.transient() for plan in transient])
        if files:
            yield self._manager.start([plan.to_start for plan in files])

    def _watch(self, jobs: Sequence[Jobs], pending: dict[str, _Attempt]) -> None:
        """Return when each attempt is ready, has lost its ports, or has failed."""
        stage = self._stage
        ways = [one.passage for one in pending.values() if one.passage is not None]
        with contextlib.closing(Passages(self._manager, stage.planner.run, ways)) as passages:
            self._watch_all(jobs, pending, passages)

    def _watch_all(
        self, jobs: Sequence[Jobs], pending: dict[str, _Attempt], passages: Passages
    ) -> None:
        deadline = self._began + self._timeout_s
        look_s = next_look = 0.0
        # What is private comes to its gate before its job is done.
        up_since = time.monotonic() if passages else None
        while pending:
            now = time.monotonic()
            if self._canceled():
                raise CanceledError
            if now >= deadline:
                for attempt in pending.values():
                    attempt.failure = failure.late(
                        attempt.plan,
                        attempt.check,
                        attempt.probe,
                        timeout_s=self._timeout_s,
                        waits_for=attempt.passage.waits_for if attempt.passage else "",
                    )
                return
            # Looking costs little for one and more for hundreds; looking often for what is slow,
            # or once for every job of a large batch, would be waste. Before the first one runs
            # there is nothing to look at, and the end of its job is told.
            pause_s = PAUSE_MAX_S
            if up_since is not None:
                pause_s = max((now - up_since) / 20, 2 * look_s, PAUSE_MIN_S)
            pause_s = min(pause_s, PAUSE_MAX_S, deadline - now)
            for unit, word in _news([*jobs, *passages.jobs], pending.values(), pause_s):
                if passages.told(unit, word):
                    continue
                if unit in pending and word == "done":
                    pending[unit].ran()
                    up_since = time.monotonic() if up_since is None else up_since
                elif unit in pending:
                    self._died(pending.pop(unit), word, said=_said(jobs, unit))
            looked = time.monotonic()
            if looked < next_look:
                continue
            if passages:
                ways = [one.passage for one in pending.values() if one.passage is not None]
                if passages.go(ways):
                    looked = time.monotonic()  # A step takes its time, but once.
                for attempt in [one for one in pending.values() if one.stuck]:
                    del pending[attempt.to_start]
            visible = [attempt for attempt in pending.values() if attempt.visible]
            if visible:
                sockets = ports.snapshot()
            for attempt in visible:
                if attempt.settled(sockets):
                    attempt.started_in_s = time.monotonic() - self._began
                    del pending[attempt.to_start]
                    self._progress(self._ready_count(), len(self._requests))
            look_s = time.monotonic() - looked
            next_look = looked + 2 * look_s

    def _yield(self, attempts: Iterable[_Attempt]) -> None:
        """Do for those in the background what no setting of a unit can."""
        derived = [one.plan.derived for one in attempts if one.plan.request.background]
        units = [unit for one in derived for unit in (one.unit, *one.proxies.values())]
        if units and autogroup.are_on():
            pids = [one.main_pid for one in self._manager.status(units).values() if one.main_pid]
            deadline = self._began + self._timeout_s
            autogroup.yield_to_others(pids, deadline=deadline, canceled=self._canceled)

    def _died(self, attempt: _Attempt, word: str, *, said: str) -> None:
        """Find out why, and whether other ports would help.

        Where the manager binds the ports, only a socket that could not be bound has lost one.
        """
        outside = attempt.passage is None or attempt.passage.here
        by_itself = attempt.plan.derived.socket is None and outside
        if by_itself or word == "dependency":
            attempt.look(ports.snapshot(), ids=())
        if attempt.lost:
            return
        unit = attempt.plan.derived.unit
        error = failure.died(attempt.plan, self._manager.status([unit])[unit], word, said=said)
        attempt.failure = error
        if attempt.passage is not None and not attempt.passage.here:
            return
        if attempt.plan.part.ports and failure.speaks_of_a_taken_port(error):
            # Whoever it was has let go already; which port it was, only some services say.
            attempt.conflict = "a port was in use"

    def _ready_count(self) -> int:
        return sum(one.started_in_s > 0 and not one.conflict for one in self.live)

    def _first(self, failed: Sequence[_Attempt]) -> UnderstudyError:
        error = failed[0].failure
        assert error is not None
        if len(failed) > 1:
            count = f"{len(failed)} of {len(self._requests)}"
            error.add_note(f"{count} instances failed; this is the first of them.")
        return error

    def _given_up(self, loser: _Attempt) -> UnderstudyError:
        if loser.lost:
            return failure.no_ports(loser.plan, loser.lost, loser.conflict)
        assert loser.failure is not None
        return loser.failure

    def _instance(self, attempt: _Attempt) -> Instance:
        plan = attempt.plan
        return Instance(
            self._manager,
            plan.request.service,
            plan.derived,
            run=plan.part.run,
            number=plan.part.number,
            ports=plan.part.outside,
            inside_ports=plan.inside_ports,
            network=str(plan.part.network or "host"),
            undeclared=[str(one) for one in attempt.check.undeclared] if attempt.check else (),
            started_in_s=attempt.started_in_s,
            freed=lambda: self._stage.guard.free(list(attempt.held)),
            again=functools.partial(restart, self._stage, plan),
            line=control.command_line(plan.request, plan.part.kind),
            has_fixed_ports=bool(
                plan.request.numbers or (plan.part.network and plan.part.network.name)
            ),
        )


def _news(
    jobs: Sequence[Jobs], pending: Iterable[_Attempt], pause_s: float
) -> list[tuple[str, str]]:
    """Wait for the manager or for an answer to a ready check, whichever is first."""
    poll = select.poll()
    asked = [one.probe for one in pending if one.probe is not None and one.probe.fileno() >= 0]
    for probe in asked:
        poll.register(probe, select.POLLOUT if probe.wants_to_write else select.POLLIN)
    if asked:
        poll.poll(pause_s * 1000)
        pause_s = 0
    return [news for each in jobs for news in each.wait(pause_s / len(jobs))]


def _alone(
    declared: Iterable[Port], numbers: Mapping[str, int], sockets: ports.Sockets
) -> frozenset[int]:
    """The sockets that are the only ones on their ports."""
    bound = [sockets.bound(port.transport, numbers[port.name]) for port in declared]
    return frozenset(found[0].inode for found in bound if len(found) == 1)


def _said(jobs: Sequence[Jobs], unit: str) -> str:
    return next((each.said[unit] for each in jobs if unit in each.said), "")
