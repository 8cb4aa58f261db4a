"""One process that runs tests: its run, what it has started, and what it tells about that."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypedDict

import pytest

from understudy.errors import ManagerError, NoManagerError, UnderstudyError
from understudy.instance import Instance
from understudy.journal import Mark, mark
from understudy.lead import Production
from understudy.manager import UnitStatus, connect
from understudy.plugin import watching
from understudy.plugin.ending import Ending
from understudy.plugin.face import Understudy
from understudy.plugin.settings import Settings, read
from understudy.pytest_plugin import WORKER, is_worker
from understudy.run import Run
from understudy.shared import SharedInstance

KEEP_S = 3600.0
"""Seconds that instances live that are kept after the session."""


class Started(TypedDict):
    """One instance that was started."""

    unit: str
    ports: dict[str, int]
    test: str
    started_in_s: float


class News(TypedDict, total=False):
    """What a process tells in a report: plain values, which can travel.

    Attributes:
        runs: Runs that must be gone at the end.
        staying: Runs that stay, and until when that is said for people.
        instances: What was started.
        kept: What was not stopped.
        production: What production was like before anything was done.
        alone: What of it a test had exclusively.
        problems: What went wrong when things were ended.
        note: What makes this slower than need be.
        unreachable: Why there is no manager to start anything on.
    """

    runs: list[str]
    staying: list[str]
    instances: list[Started]
    kept: list[Started]
    production: watching.Seen
    alone: list[str]
    problems: list[str]
    note: str
    unreachable: str


class Worker:
    """One process that runs tests. Made at the first use of a fixture.

    Attributes:
        pid: The process.
        settings: What was asked for.
        name: What others are told that it is called: ``pytest``, ``pytest-gw3``.
        test: The test that runs.
        mark: The place in the journal at which that test began.
        session: What ``understudy_session`` gives, if that is in use.
        shared: Shared instances, each with when it was first used here.
        failed: Whether a test that used the session's instances has failed.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.pid = os.getpid()
        self.settings: Settings = read(config)
        self.name = _name(config)
        self.session: Understudy | None = None
        self.shared: list[SharedInstance] = []
        self.failed = False
        self._config = config
        self._ending = Ending()
        self._group = f"pytest {_session_id(config)}"
        self._runs: list[Run] = []
        self._kept: list[Understudy] = []
        self._before: set[str] = set()
        self._gone: set[str] = set()
        self._news: News = {}
        self._watch: watching.Watch | None = None
        self._lock = threading.Lock()
        self.test = ""
        self.mark: Mark | None = None
        # "tests/test_x.py::test_y (setup)"
        self.begin_test(os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0])

    @classmethod
    def of(cls, config: pytest.Config) -> Worker:
        """The one of this process.

        Raises:
            UsageError: An option is wrong.
        """
        found = config.stash.get(WORKER, None)
        if found is None:
            found = config.stash[WORKER] = cls(config)
        assert isinstance(found, Worker)
        return found

    def run(self) -> Run:
        """The run of this process, begun if need be.

        A forked child gets one of its own, and so does a process that has closed all of its
        descriptors.

        Raises:
            UnderstudyError: There is no manager, or no run to be had.
        """
        with self._lock:
            if self._runs and self._runs[-1].is_usable:
                return self._runs[-1]
            return self._begin()

    def _begin(self) -> Run:
        settings = self.settings
        try:
            manager = connect(settings.manager_kind)
        except NoManagerError as exc:
            self._news["unreachable"] = f"{exc.message} (hint: {exc.hint})"
            raise
        if not self._runs:
            self._news["note"] = manager.note
        run = Run(
            manager=manager,
            engine=settings.engine_kind,
            port_range=settings.port_range,
            units=settings.units,
            timeout_s=settings.timeout_s,
            limits=settings.limits,
            background=settings.background,
        )
        run.start()
        self._runs.append(run)
        self._news.setdefault("runs", []).append(run.id)
        return run

    @property
    def run_id(self) -> str | None:
        """The id of the run of this process, if it has begun."""
        return self._runs[-1].id if self._runs and self._runs[-1].is_usable else None

    def _watch_production(self) -> watching.Watch:
        """See what production is like, before anything is done beside it."""
        if self._watch is None:
            self._watch = watching.Watch(self._group)
            self._has_seen(self._watch.look_at_all(self.settings.units))
        return self._watch

    def _has_seen(self, seen: watching.Seen) -> None:
        if seen:
            self._news.setdefault("production", {}).update(seen)

    def look(self) -> None:
        """A fixture is set up: see what production is like, and tell with that phase's report.

        Later it might not be told: a test can kill this process.
        """
        with self._lock:
            self._watch_production()

    def has_production(self, lead: Production, *, alone: bool) -> None:
        """Take note of production that a test has; it has done nothing to it yet.

        Args:
            lead: What it has.
            alone: Whether exclusively.
        """
        with self._lock:
            # One that no definition calls so.
            self._has_seen(self._watch_production().look([lead]))
            if alone:
                self._news.setdefault("alone", []).append(watching.key_of(lead))

    def show(self, line: str, news: bool) -> None:
        """Show a line at once, whatever is captured: somebody is waited for.

        Args:
            line: The line.
            news: Whether it says anything new.
        """
        if not news:
            return
        plugins = self._config.pluginmanager
        capture, reporter = map(plugins.get_plugin, ("capturemanager", "terminalreporter"))
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            if is_worker(self._config):  # its terminal is nowhere, but stderr is the controller's
                sys.stderr.write(f"\nunderstudy: {self.name}: {line}\n")
                sys.stderr.flush()
            elif reporter is not None:
                reporter.ensure_newline()
                reporter.write_line(f"understudy: {line}")

    @property
    def sharing(self) -> tuple[str, float]:
        """Among whom instances are shared, and how many seconds they are kept afterwards."""
        if self.settings.reuse:
            return f"pytest reuse {self.settings.reuse}", KEEP_S
        return self._group, 0.0

    def begin_test(self, test: str) -> None:
        """A test begins: from here on what is written to logs is its."""
        self.test = test
        self.mark = mark(test)
        others = [*self.shared, *(self.session.instances if self.session is not None else ())]
        self._before = {one.unit for one in others}
        self._gone = {one.unit for one in others if one.is_stopped}

    def was_there(self, one: Instance) -> bool:
        """Whether an instance of the session was there when this test began, or came since."""
        return one.unit not in self._gone

    def is_new(self, one: Instance) -> bool:
        """Whether an instance of the session came in this test."""
        return one.unit not in self._before

    def states(self, instances: Sequence[Instance]) -> dict[str, UnitStatus]:
        """What the manager says of instances; nothing where it does not answer."""
        if not instances:  # then there may be no run
            return {}
        try:
            return self._runs[-1].manager.status([one.unit for one in instances])
        except UnderstudyError:
            return {}

    def started(self, found: Sequence[Instance]) -> None:
        """Take note of new instances."""
        told = self._news.setdefault("instances", [])
        told += [self._described(one) for one in found]

    def shares(self, instance: SharedInstance) -> SharedInstance:
        """Take note of a shared instance, which is held until the end of this process's tests."""
        if instance not in self.shared:
            self.shared.append(instance)
            self.started([instance])
            key: Literal["staying", "runs"] = "staying" if self.settings.reuse else "runs"
            self._news.setdefault(key, []).append(instance.run)
        return instance

    def end(self, instances: Sequence[Instance], *, wait: bool) -> None:
        """End instances of this process's run, all at once.

        Args:
            instances: Which.
            wait: Whether they must have ended then.

        Raises:
            ManagerError: They were not stopped in time.
        """
        if wait or self.settings.waits or any(one.has_fixed_ports for one in instances):
            self._runs[-1].stop_instances(instances)
        elif self._ending.begin(instances):
            self.settle()

    def settle(self) -> bool:
        """Wait until what has been told to end has ended; what does not is a problem.

        Returns:
            Whether there was anything.
        """
        try:
            return self._ending.wait()
        except ManagerError as exc:
            self._news.setdefault("problems", []).append(str(exc))
            return True

    def keeps(self, face: Understudy) -> None:
        """Leave what was spawned by way of this as it is, also after the end of this process."""
        self._kept.append(face)
        alive = [one for one in face.instances if not one.is_stopped]
        self._news.setdefault("kept", []).extend(self._described(one) for one in alive)

    def finish(self) -> News:
        """End all that is not to be kept.

        Returns:
            What has not been told yet.
        """
        self.settle()
        kept = [one for face in self._kept for one in face.instances]
        for run in self._runs:
            try:
                self._end(run, [one for one in kept if one.run == run.id])
            except UnderstudyError as exc:
                self._news.setdefault("problems", []).append(str(exc))
        return self.take_news()

    def _end(self, run: Run, kept: Sequence[Instance]) -> None:
        if any(not one.is_stopped for one in kept) and run.is_usable:
            run.stop_instances([one for one in run.instances if one not in kept])
            run.detach(lifetime_s=KEEP_S)
            self._news.setdefault("staying", []).append(run.id)
        else:
            run.stop()

    def take_news(self) -> News:
        """What has happened since the last call."""
        news, self._news = self._news, {}
        return news

    def _described(self, one: Instance) -> Started:
        return {
            "unit": one.unit,
            "ports": dict(one.ports),
            "test": self.test,
            "started_in_s": one.started_in_s,
        }


@contextmanager
def for_test(request: pytest.FixtureRequest) -> Iterator[Understudy]:
    """What the fixture ``understudy`` gives."""
    from understudy.pytest_plugin import FACE, FAILED, WAITS

    item: pytest.Item = request.node
    worker = Worker.of(request.config)
    worker.look()
    face = item.stash[FACE] = Understudy(worker, item.nodeid)
    yield face
    keep = worker.settings.keep
    face.end(
        keep=keep == "always" or (keep == "failed" and item.stash.get(FAILED, False)),
        wait=item.stash.get(WAITS, False),
    )


@contextmanager
def for_session(request: pytest.FixtureRequest) -> Iterator[Understudy]:
    """What the fixture ``understudy_session`` gives."""
    worker = Worker.of(request.config)
    worker.look()
    worker.session = face = Understudy(worker, "the session", label="session")
    yield face
    keep = worker.settings.keep
    face.end(keep=keep == "always" or (keep == "failed" and worker.failed), wait=True)
    worker.session = None


def _name(config: pytest.Config) -> str:
    if is_worker(config):
        return f"pytest-{getattr(config, 'workerinput')['workerid']}"  # noqa: B009 - xdist's
    return "pytest"


def _session_id(config: pytest.Config) -> str:
    if is_worker(config):
        return str(getattr(config, "workerinput")["testrunuid"])  # noqa: B009 - xdist's
    return f"{os.getpid()} {time.time_ns()}"
