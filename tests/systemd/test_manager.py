"""Both ways to talk to a manager, on a real one: the system's as root, else the user's own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from understudy.errors import (
    AccessDeniedError,
    ManagerError,
    NoManagerError,
    NoSuchUnitError,
    UnitExistsError,
)
from understudy.manager import Jobs, Manager, Transient, connect
from understudy.model import ManagerKind

pytestmark = pytest.mark.systemd

TIMEOUT_S = 20.0
WAIT_FOR_EOF = [
    sys.executable,
    "-ISc",
    "import select; p = select.poll(); p.register(0, select.POLLIN); p.poll()",
]


class Stage:
    """A manager, unit files on it, and a token that makes their names this test's own."""

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.token = f"t{secrets.token_hex(4)}"

    def name(self, number: int = 1, suffix: str = "service") -> str:
        return f"understudy-test@{self.token}-{number}.{suffix}"

    def write(self, service: str, *, number: int = 1, unit: str = "") -> str:
        """Write a service's unit file and give its name."""
        name = self.name(number)
        self.manager.unit_dir.mkdir(parents=True, exist_ok=True)
        text = f"[Unit]\n{unit}\n[Service]\nTimeoutStopSec=2\n{service}\n"
        (self.manager.unit_dir / name).write_text(text)
        return name

    def names(self) -> list[str]:
        """The names of all loaded units of this test."""
        return sorted(self.manager.list([f"understudy-*{self.token}*"]))

    def clean(self) -> None:
        for path in self.manager.unit_dir.glob(f"understudy-*{self.token}*"):
            path.unlink()
        names = self.names()
        self.manager.stop(names, timeout_s=TIMEOUT_S)
        self.manager.reset_failed(names)


@pytest.fixture(params=["dbus", "commands"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    prefer: Literal["dbus", "commands"] = request.param
    try:
        manager = connect(prefer=prefer)
    except NoManagerError as exc:
        if os.environ.get("UNDERSTUDY_REQUIRE_ALL"):
            raise
        pytest.skip(exc.message)
    stage = Stage(manager)
    yield stage
    stage.clean()
    assert wait_until_empty(stage) == []


def wait_until_empty(stage: Stage) -> list[str]:
    """What is still loaded of the test's units when systemd has had time to forget them."""
    deadline = time.monotonic() + TIMEOUT_S
    while (names := stage.names()) and time.monotonic() < deadline:
        pass
    return names


def news(jobs: Jobs, count: int) -> list[tuple[str, str]]:
    """The first so many pieces of news, then close."""
    got: list[tuple[str, str]] = []
    deadline = time.monotonic() + TIMEOUT_S
    with contextlib.closing(jobs):
        while len(got) < count and time.monotonic() < deadline:
            got += jobs.wait(deadline - time.monotonic())
    return got


def run_frame(stage: Stage, command: Sequence[str] = WAIT_FOR_EOF) -> list[Transient]:
    """A guard, its slice and its clean-up unit, as a run has them."""
    guard = f"understudy-guard@{stage.token}.service"
    group = f"understudy-{stage.token}.slice"
    clean = f"understudy-clean@{stage.token}.service"
    bound = [("BindsTo", guard), ("After", guard), ("CollectMode", "inactive-or-failed")]
    return [
        Transient(
            unit=guard,
            properties=[
                ("Description", "A guard"),
                ("Type", "exec"),
                ("Slice", "understudy.slice"),
                ("Wants", clean),
                ("CollectMode", "inactive-or-failed"),
                ("RuntimeMaxSec", "60"),
                ("TimeoutStopSec", "5s"),
                ("Environment", "\"UNDERSTUDY_TEST=a b\" UNDERSTUDY_OTHER='$c'"),
                ("LimitNOFILE", "512"),
                ("OOMScoreAdjust", "100"),
                ("LogExtraFields", "UNDERSTUDY_RUN=x"),
            ],
            command=command,
        ),
        Transient(unit=group, properties=bound),
        Transient(
            unit=clean,
            properties=[
                *bound,
                ("Type", "oneshot"),
                ("RemainAfterExit", "yes"),
                ("Slice", group),
                ("ExecStop", f"/bin/sh -c \"rm -rf '{mark(stage)}'\""),
            ],
        ),
    ]


def mark(stage: Stage) -> Path:
    return stage.manager.runtime_dir / f"understudy-test-{stage.token}"


def test_a_transient_unit_lives_as_long_as_its_standard_input(stage: Stage) -> None:
    guard, group, clean = run_frame(stage)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            stage.manager.start_transient(
                guard, [group, clean], stdin=theirs.fileno(), timeout_s=TIMEOUT_S
            )
        mark(stage).touch()
        states = stage.manager.status([each.unit for each in (guard, group, clean)])
        assert {unit: each.active_state for unit, each in states.items()} == {
            guard.unit: "active",
            group.unit: "active",
            clean.unit: "active",
        }
        status = states[guard.unit]
        assert status.description == "A guard"
        assert status.environment == {"UNDERSTUDY_TEST": "a b", "UNDERSTUDY_OTHER": "$c"}
        assert status.runtime_max_s == 60
        assert states[clean.unit].control_group == ""
        shown = stage.manager.properties(
            guard.unit, ["LimitNOFILE", "OOMScoreAdjust", "LogExtraFields", "TimeoutStopUSec"]
        )
        assert shown == {
            "LimitNOFILE": "512",
            "OOMScoreAdjust": "100",
            "LogExtraFields": "UNDERSTUDY_RUN=x",
            "TimeoutStopUSec": "5s",
        }
    assert wait_until_empty(stage) == []
    assert not mark(stage).exists()


def test_a_pidfd_ends_a_transient_unit_with_its_process(stage: Stage) -> None:
    guard, group, clean = run_frame(stage)
    reader, writer = os.pipe()
    owner = os.posix_spawn(
        "/bin/cat", ["cat"], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)]
    )
    pidfd = os.pidfd_open(owner)
    try:
        stage.manager.start_transient(guard, [group, clean], stdin=pidfd, timeout_s=TIMEOUT_S)
        assert guard.unit in stage.names()
        os.kill(owner, signal.SIGKILL)
    finally:
        for fd in (pidfd, reader, writer):
            os.close(fd)
        os.waitpid(owner, 0)
    assert wait_until_empty(stage) == []


def test_a_command_is_taken_literally(stage: Stage) -> None:
    path = mark(stage)
    guard = Transient(
        unit=stage.name(),
        properties=[("Type", "oneshot"), ("RemainAfterExit", "yes")],
        command=["/bin/sh", "-c", 'printf "%s\\n" "$@" > "$0"', str(path), "$HOME", "$$", "%t", ""],
    )
    with Path(os.devnull).open() as stdin:
        stage.manager.start_transient(guard, [], stdin=stdin.fileno(), timeout_s=TIMEOUT_S)
    try:
        assert path.read_text() == "$HOME\n$$\n%t\n\n"
    finally:
        path.unlink()


def test_a_name_in_use_is_an_error_and_leaves_its_unit(stage: Stage) -> None:
    guard, group, clean = run_frame(stage)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stage.manager.start_transient(
            guard, [group, clean], stdin=theirs.fileno(), timeout_s=TIMEOUT_S
        )
        before = stage.manager.status([guard.unit])[guard.unit].invocation_id
        with pytest.raises(UnitExistsError, match=f"Cannot start '{guard.unit}': "):
            stage.manager.start_transient(
                guard, [group, clean], stdin=theirs.fileno(), timeout_s=TIMEOUT_S
            )
        assert stage.manager.status([guard.unit])[guard.unit].invocation_id == before


def test_a_transient_unit_that_cannot_be_executed_leaves_nothing(stage: Stage) -> None:
    guard, group, clean = run_frame(stage, ["/nonexistent/understudy"])
    with (
        Path(os.devnull).open() as stdin,
        pytest.raises(ManagerError, match=f"Cannot start '{guard.unit}': "),
    ):
        stage.manager.start_transient(
            guard, [group, clean], stdin=stdin.fileno(), timeout_s=TIMEOUT_S
        )
    assert wait_until_empty(stage) == []


def test_a_transient_unit_that_is_not_up_in_time_is_ended(stage: Stage) -> None:
    slow = Transient(
        unit=stage.name(),
        properties=[("Type", "notify"), ("CollectMode", "inactive-or-failed")],
        command=["/bin/sleep", "1000"],
    )
    with (
        Path(os.devnull).open() as stdin,
        pytest.raises(ManagerError, match="not done in time"),
    ):
        stage.manager.start_transient(slow, [], stdin=stdin.fileno(), timeout_s=0.1)
    assert wait_until_empty(stage) == []


def server(stage: Stage, number: int, *properties: tuple[str, str]) -> Transient:
    """A transient unit as an instance may be one."""
    return Transient(
        unit=stage.name(number),
        properties=[("Type", "exec"), ("TimeoutStopSec", "2"), *properties],
        command=["/bin/sleep", "1000"],
    )


def settled(batch: Sequence[Jobs], count: int) -> list[tuple[str, str]]:
    """What a batch's jobs came to, whatever their kinds; they are closed."""
    deadline = time.monotonic() + TIMEOUT_S
    got: list[tuple[str, str]] = []
    with contextlib.ExitStack() as closing:
        for jobs in batch:
            closing.callback(jobs.close)
        while len(got) < count and time.monotonic() < deadline:
            for jobs in batch:
                got += jobs.wait(0.01)
    return sorted(got)


def test_transient_units_are_created_with_what_is_known_and_what_is_not(stage: Stage) -> None:
    # The second has a directive whose type on D-Bus nobody wrote down here.
    units = [server(stage, 1), server(stage, 2, ("LimitMEMLOCK", "1M")), server(stage, 3)]
    batch = stage.manager.create(units)
    assert settled(batch, 3) == [(unit.unit, "done") for unit in units]
    states = stage.manager.status([unit.unit for unit in units])
    assert {each.active_state for each in states.values()} == {"active"}
    assert stage.manager.properties(units[1].unit, ["LimitMEMLOCK"]) == {"LimitMEMLOCK": "1048576"}


def test_a_created_unit_survives_a_reload(stage: Stage) -> None:
    unit = Transient(
        unit=stage.name(),
        properties=[("Type", "exec"), ("TimeoutStopSec", "2"), ("SystemCallErrorNumber", "EPERM")],
        command=["/bin/sh", "-c", 'sleep "${0#$}"; :', "$1000"],
    )
    assert settled(stage.manager.create([unit]), 1) == [(unit.unit, "done")]
    subprocess.run(["systemctl", f"--{stage.manager.kind}", "daemon-reload"], check=True)
    shown = stage.manager.properties(unit.unit, ["LoadState", "ActiveState"])
    assert shown == {"LoadState": "loaded", "ActiveState": "active"}


def test_a_created_unit_that_cannot_be_executed_is_a_failed_job(stage: Stage) -> None:
    unit = replace(server(stage, 1), command=["/nonexistent/understudy"])
    assert settled(stage.manager.create([unit]), 1) == [(unit.unit, "failed")]
    assert stage.manager.status([unit.unit])[unit.unit].active_state in ("failed", "inactive")


def test_the_death_of_a_created_unit_is_told(stage: Stage) -> None:
    # Not at once: systemd may learn of the end before it does of the beginning.
    unit = replace(server(stage, 1), command=["/bin/sh", "-c", "sleep 0.2; exit 3"])
    assert settled(stage.manager.create([unit]), 2) == [(unit.unit, "died"), (unit.unit, "done")]
    assert stage.manager.status([unit.unit])[unit.unit].exit_status == 3


def test_what_is_not_ours_is_not_created(stage: Stage) -> None:
    foreign = replace(server(stage, 1), unit="nginx-test.service")
    with pytest.raises(AccessDeniedError, match=r"'nginx-test\.service': it is not a unit"):
        stage.manager.create([server(stage, 2), foreign])
    assert stage.names() == []


def test_a_batch_of_unit_files_starts(stage: Stage) -> None:
    units = [stage.write("Type=exec\nExecStart=/bin/sleep 1000", number=n) for n in range(20)]
    got = news(stage.manager.start(units), len(units))
    assert sorted(got) == sorted((unit, "done") for unit in units)
    states = stage.manager.list([f"understudy-test@{stage.token}-*"])
    assert {each.active_state for each in states.values()} == {"active"}
    assert sorted(states) == sorted(units)
    stage.manager.stop(units, timeout_s=TIMEOUT_S)
    assert {each.active_state for each in stage.manager.status(units).values()} == {"inactive"}


def test_what_runs_already_is_done_at_once(stage: Stage) -> None:
    unit = stage.write("Type=exec\nExecStart=/bin/sleep 1000")
    assert news(stage.manager.start([unit]), 1) == [(unit, "done")]
    assert news(stage.manager.start([unit]), 1) == [(unit, "done")]


def test_a_binary_that_is_missing_fails_the_job(stage: Stage) -> None:
    unit = stage.write("Type=exec\nExecStart=/nonexistent/understudy")
    assert news(stage.manager.start([unit]), 1) == [(unit, "failed")]
    status = stage.manager.status([unit])[unit]
    assert (status.active_state, status.result) == ("failed", "exit-code")
    assert (status.exit_code, status.exit_status) == (1, 203)
    stage.manager.reset_failed([unit])
    assert stage.manager.status([unit])[unit].active_state == "inactive"


def test_a_unit_whose_requirement_fails_is_told_apart(stage: Stage) -> None:
    needed = stage.write("Type=exec\nExecStart=/nonexistent/understudy", number=1)
    unit = stage.write(
        "Type=exec\nExecStart=/bin/sleep 1000", number=2, unit=f"Requires={needed}\nAfter={needed}"
    )
    assert news(stage.manager.start([unit]), 1) == [(unit, "dependency")]


@pytest.mark.parametrize(("kind", "lives_s"), [("exec", 0), ("simple", 0), ("exec", 0.005)])
def test_a_death_right_after_the_start_is_told_every_time(
    stage: Stage, kind: str, lives_s: float
) -> None:
    service = f"Type={kind}\nExecStart=/bin/sh -c 'sleep {lives_s}; exit 7'"
    units = [stage.write(service, number=n) for n in range(100)]
    by_unit: dict[str, list[str]] = {unit: [] for unit in units}
    deadline = time.monotonic() + TIMEOUT_S
    with contextlib.closing(stage.manager.start(units)) as jobs:
        alive = set(units)
        while alive and time.monotonic() < deadline:
            for unit, word in jobs.wait(deadline - time.monotonic()):
                by_unit[unit].append(word)
                if word != "done":
                    alive.discard(unit)
    # A Type=exec service may be dead before its start was seen: then its job has failed.
    assert {tuple(words) for words in by_unit.values()} <= {("done", "died"), ("failed",)}
    states = stage.manager.status(units).values()
    assert {(each.result, each.exit_status) for each in states} == {("exit-code", 7)}


def test_a_unit_that_is_forgotten_at_its_death_has_died(stage: Stage) -> None:
    unit = stage.write(
        "Type=exec\nExecStart=/bin/sleep 1000", unit="CollectMode=inactive-or-failed"
    )
    with contextlib.closing(stage.manager.start([unit])) as jobs:
        assert jobs.wait(TIMEOUT_S) == [(unit, "done")]
        stage.manager.kill(unit, signal.SIGKILL)
        assert jobs.wait(TIMEOUT_S) == [(unit, "died")]
        assert jobs.wait(0.001) == []


@pytest.mark.parametrize("stage", ["dbus"], indirect=True)
def test_over_the_bus_everything_is_told_too(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if systemd's private socket were out of reach.
    monkeypatch.setattr("understudy.manager.dbus.os.access", lambda *_: False)
    guard, group, clean = run_frame(stage)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stage.manager.start_transient(
            guard, [group, clean], stdin=theirs.fileno(), timeout_s=TIMEOUT_S
        )
    unit = stage.write("Type=exec\nExecStart=/bin/sleep 1000")
    with contextlib.closing(stage.manager.start([unit])) as jobs:
        assert jobs.wait(TIMEOUT_S) == [(unit, "done")]
        stage.manager.kill(unit, signal.SIGKILL)
        assert jobs.wait(TIMEOUT_S) == [(unit, "died")]
    stage.manager.stop([unit], timeout_s=TIMEOUT_S)


def test_restart_gives_a_new_invocation(stage: Stage) -> None:
    unit = stage.write("Type=exec\nExecStart=/bin/sleep 1000")
    assert news(stage.manager.start([unit]), 1) == [(unit, "done")]
    before = stage.manager.status([unit])[unit]
    assert news(stage.manager.restart(unit), 1) == [(unit, "done")]
    after = stage.manager.status([unit])[unit]
    assert after.active_state == "active"
    assert after.invocation_id != before.invocation_id


def test_waiting_ends_in_time_without_news(stage: Stage) -> None:
    unit = stage.write("Type=notify\nExecStart=/bin/sleep 1000")
    jobs = stage.manager.start([unit])
    assert jobs.wait(0.001) == []
    assert jobs.wait(0) == []
    jobs.close()
    jobs.close()


def test_a_unit_without_a_file_cannot_start(stage: Stage) -> None:
    there = stage.write("ExecStart=/bin/sleep 1000", number=1)
    gone = stage.name(2)
    with pytest.raises(NoSuchUnitError, match=f"Cannot start '{gone}': Unit {gone} not found"):
        stage.manager.start([there, gone])
    with pytest.raises(NoSuchUnitError, match=f"Cannot restart '{gone}': "):
        stage.manager.restart(gone)
    with pytest.raises(NoSuchUnitError, match=f"Cannot kill '{gone}': "):
        stage.manager.kill(gone, signal.SIGTERM)
    with pytest.raises(NoSuchUnitError, match=f"Cannot show '{gone}': "):
        stage.manager.cat(gone)


def test_what_is_gone_can_be_stopped_and_reset(stage: Stage) -> None:
    unit = stage.write("Type=exec\nExecStart=/bin/sleep 1000", number=1)
    assert news(stage.manager.start([unit]), 1) == [(unit, "done")]
    stage.manager.stop([stage.name(2), unit, stage.name(3)], timeout_s=TIMEOUT_S)
    assert stage.manager.status([unit])[unit].active_state == "inactive"
    stage.manager.reset_failed([unit, stage.name(2)])
    stage.manager.stop([], timeout_s=TIMEOUT_S)
    assert stage.manager.status([]) == {}


def test_a_stop_that_takes_too_long_is_an_error(stage: Stage) -> None:
    # Unlike a trap, which the stop may come before, this is in force from the first instruction.
    unit = stage.write("Type=exec\nKillSignal=SIGCONT\nExecStart=/bin/sleep infinity")
    assert news(stage.manager.start([unit]), 1) == [(unit, "done")]
    with pytest.raises(ManagerError, match=f"Cannot stop '{unit}': not stopped within 0.2 s"):
        stage.manager.stop([unit], timeout_s=0.2)


@pytest.mark.parametrize("foreign", ["mediamtx.service", "dbus.service", "my-understudy-x.service"])
def test_units_of_others_are_refused(stage: Stage, foreign: str) -> None:
    own = stage.name()
    bad, good = Transient(unit=foreign), Transient(unit=own, command=["/bin/true"])
    manager = stage.manager
    for change in (
        lambda: manager.start([own, foreign]),
        lambda: manager.restart(foreign),
        lambda: manager.stop([own, foreign], timeout_s=1),
        lambda: manager.reset_failed([own, foreign]),
        lambda: manager.kill(foreign, signal.SIGTERM),
        lambda: manager.start_transient(bad, [], stdin=0, timeout_s=1),
        lambda: manager.start_transient(good, [bad], stdin=0, timeout_s=1),
    ):
        with pytest.raises(AccessDeniedError, match=f"Cannot change '{foreign}'"):
            change()
    assert stage.names() == []


def test_status_tells_what_runs(stage: Stage) -> None:
    before = time.time() - 1
    unit = stage.write(
        'Type=exec\nExecStart=/bin/sleep 1000\nRuntimeMaxSec=90\nEnvironment="A=b \\"c\\" $d" E=\n',
        unit="Description=A test's unit",
    )
    assert news(stage.manager.start([unit]), 1) == [(unit, "done")]
    status = stage.manager.status([unit])[unit]
    assert status.unit == unit
    assert (status.load_state, status.active_state, status.sub_state) == (
        "loaded",
        "active",
        "running",
    )
    assert Path(f"/proc/{status.main_pid}/comm").read_text() == "sleep\n"
    assert status.control_group.endswith(f"/{unit}")
    assert len(status.invocation_id) == 32
    assert status.description == "A test's unit"
    assert status.environment == {"A": 'b "c" $d', "E": ""}
    assert (status.result, status.exit_code, status.exit_status) == ("success", 0, 0)
    assert (status.n_restarts, status.runtime_max_s) == (0, 90)
    assert before <= status.exec_main_start_s <= time.time()
    assert before <= status.active_since_s <= time.time()


def test_status_of_what_is_not_there(stage: Stage) -> None:
    unit = stage.name()
    status = stage.manager.status([unit])[unit]
    assert (status.load_state, status.active_state) == ("not-found", "inactive")
    assert status.invocation_id == ""
    assert status.cpu_usage_nsec is None


def test_both_ways_give_the_same_status(stage: Stage) -> None:
    unit = stage.write("Type=exec\nExecStart=/bin/sh -c 'exit 3'\nEnvironment=A=b")
    # It may be dead before its job is done, or just after.
    with contextlib.closing(stage.manager.start([unit])) as jobs:
        while jobs.wait(TIMEOUT_S)[-1][1] == "done":
            pass
    names = [unit, stage.name(2), "init.scope", "-.slice"]
    one, other = (connect(prefer=way).status(names) for way in ("dbus", "commands"))
    for name in names:
        for field in ("load_state", "active_state", "sub_state", "result", "exit_code"):
            assert getattr(one[name], field) == getattr(other[name], field), (name, field)
        for field in ("exit_status", "main_pid", "control_group", "invocation_id", "environment"):
            assert getattr(one[name], field) == getattr(other[name], field), (name, field)


def test_cat_gives_the_file_and_its_drop_ins(stage: Stage) -> None:
    unit = stage.write("ExecStart=/bin/sleep 1000")
    drop_in = stage.manager.unit_dir / f"{unit}.d/10-test.conf"
    drop_in.parent.mkdir()
    try:
        drop_in.write_text("[Service]\nEnvironment=A=b\n")
        path = stage.manager.unit_dir / unit
        assert stage.manager.cat(unit) == (
            f"# {path}\n{path.read_text()}\n# {drop_in}\n{drop_in.read_text()}"
        )
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()


def test_nothing_is_in_the_way_of_a_lost_environment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = stage.write("Type=exec\nExecStart=/bin/sleep 1000")
    for variable in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    prefer: Literal["dbus", "commands"] = "commands" if stage.manager.note else "dbus"
    manager = connect(prefer=prefer)
    assert news(manager.start([unit]), 1) == [(unit, "done")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_the_system_manager_can_be_asked_but_not_used_without_right() -> None:
    for prefer in ("dbus", "commands"):
        manager = connect(ManagerKind.SYSTEM, prefer=prefer)
        assert manager.status(["init.scope"])["init.scope"].active_state == "active"
        with pytest.raises(AccessDeniedError, match=r"Cannot start 'understudy-x\.slice': "):
            manager.start(["understudy-x.slice"])
