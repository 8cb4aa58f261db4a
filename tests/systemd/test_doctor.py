"""What `understudy doctor` says of a host, and that what it advises helps."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.systemd.support import (
    ROOT,
    RUNTIME,
    UNIT_DIR,
    eventually,
    holders,
    systemctl,
    understudy,
)

from understudy.run import Run
from understudy.strays import Singleton, Stray, singletons_of, strays

USER = pwd.getpwuid(os.getuid()).pw_name
WHOSE = [] if ROOT else ["--user"]
STOP = "systemctl stop" if ROOT else "systemctl --user stop"

SERVER = """
import os, select, socket, sys
listening = []
for name, number in zip(("PORT", "OTHER"), sys.argv[1:]):
    one = socket.create_server(("0.0.0.0", int(os.environ.get(name, number))))
    listening.append(one)
print("ready", flush=True)
select.poll().poll()
"""

DEFINITION = """\
description = "lead of the tests"
production = "tests-lead.service"
singleton = true
[values]
script = "{2}"
[ports]
http = {{ tcp = {0}, env = "PORT", value = "{{port}}" }}
other = {{ tcp = {1}, env = "OTHER", value = "{{port}}" }}
"""


@dataclass(frozen=True)
class Lead:
    """A singleton of the tests: its definition, its program and its standard ports."""

    units: Path
    script: Path
    ports: tuple[int, int]

    def argv(self, script: Path | None = None, ports: tuple[int, int] | None = None) -> list[str]:
        numbers = self.ports if ports is None else ports
        return [sys.executable, str(script or self.script), *map(str, numbers)]

    def singletons(self) -> list[Singleton]:
        return [one for one in singletons_of(units=self.units) if one.service == "lead"]

    def strays(self) -> list[Stray]:
        return strays(self.singletons())

    def doctor(self, *only: str, code: int) -> list[dict[str, object]]:
        words = [word for name in only for word in ("--only", name)]
        said = understudy("doctor", "--json", "--units", self.units, *words, code=code)
        found: list[dict[str, object]] = json.loads(said.stdout)
        return found

    def production(self) -> dict[str, object]:
        """What is said of its production; the host may have others."""
        found = self.doctor("production", code=1)
        [mine] = [one for one in found if "tests-lead" in str(one["what"])]
        return mine


@pytest.fixture
def lead(open_directory: Path) -> Lead:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = (one.getsockname()[1], two.getsockname()[1])
    script = open_directory / "server.py"
    script.write_text(SERVER)
    home = open_directory / "lead"
    home.mkdir(mode=0o755)
    (home / "service.toml").write_text(DEFINITION.format(*ports, script))
    found = Lead(open_directory, script, ports)
    (home / "tests-lead.service.j2").write_text(f"[Service]\nExecStart={' '.join(found.argv())}\n")
    return found


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server by hand, and wait until it listens."""
    with ExitStack() as undo:

        def by_hand(*argv: str) -> subprocess.Popen[str]:
            one = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
            undo.callback(one.communicate)
            # What it forked as well: those have the other end of the pipe too.
            undo.callback(os.killpg, one.pid, signal.SIGKILL)
            assert one.stdout is not None
            assert one.stdout.readline().startswith("ready")
            return one

        yield by_hand


@pytest.fixture
def unit() -> Iterator[Callable[..., str]]:
    """Start a unit of nobody but the test."""
    started: list[str] = []

    def by_systemd(name: str, *argv: str) -> str:
        started.append(name)
        words = ["systemd-run", *WHOSE, "--quiet", "--collect", "--property=Type=exec"]
        subprocess.run([*words, f"--unit={name}", *argv], check=True)
        return name

    yield by_systemd
    for name in started:
        systemctl("stop", name, check=False)


@pytest.fixture
def installed(lead: Lead) -> Iterator[str]:
    """The lead's production, installed and not started."""
    path = UNIT_DIR / "tests-lead.service"
    UNIT_DIR.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[Service]\nExecStart={' '.join(lead.argv())}\n")
    systemctl("daemon-reload")
    yield path.name
    systemctl("stop", path.name, check=False)
    path.unlink()
    systemctl("daemon-reload")
    systemctl("reset-failed", path.name, check=False)


@pytest.fixture
def active(lead: Lead, installed: str) -> str:
    systemctl("start", installed)
    assert eventually(lambda: all(installed in holders("tcp", port) for port in lead.ports))
    return installed


def shell(command: str) -> None:
    """Do as the doctor says."""
    subprocess.run(
        ["sh", "-c", command], check=True, env={**os.environ, "XDG_RUNTIME_DIR": str(RUNTIME)}
    )


def test_a_host_that_is_fit_has_no_problem(
    request: pytest.FixtureRequest, lead: Lead, active: str
) -> None:
    if ROOT:
        request.getfixturevalue("production")
        only: list[str] = []
    else:
        # The tests' own imitation of the system's production is a stray to every user.
        from understudy.doctor import CHECKS

        only = [name for name in CHECKS if name not in ("production", "strays")]
    found = lead.doctor(*only, code=0)
    assert {one["level"] for one in found} <= {"ok", "warning"}
    levels = {str(one["check"]): one["level"] for one in found}
    for name in ("cgroups", "managers", "rights", "namespaces", "port-range", "left-overs"):
        assert levels[name] == "ok", (name, found)
    assert ("lingering" in levels) is not ROOT
    exposures = {
        str(details["unit"]): details["exposure"]
        for one in found
        if one["check"] == "exposure" and isinstance(details := one["details"], dict)
    }
    assert isinstance(exposures["tests-lead.service"], float)
    if ROOT:
        assert exposures["mediamtx.service"] < 5 < exposures["tests-lead.service"]


def test_production_is_told_with_its_ports(lead: Lead, active: str) -> None:
    found = lead.doctor("production", code=0)
    [mine] = [one for one in found if "tests-lead" in str(one["what"])]
    assert mine["level"] == "ok"
    whose = "" if ROOT else f" on the manager of {USER}"
    first, second = lead.ports
    assert mine["what"] == f"{active} is active{whose}: http={first} other={second}"


def test_production_that_is_down_is_a_problem_with_its_start(lead: Lead, installed: str) -> None:
    found = lead.production()
    assert found["level"] == "problem"
    assert found["what"] == "tests-lead.service is inactive"
    how = "sudo systemctl" if ROOT else "systemctl --user"
    assert found["help"] == f"{how} start tests-lead.service"
    systemctl(*str(found["help"]).split()[-2:])
    assert eventually(lambda: lead.doctor("production", code=0))


def test_who_holds_a_port_of_productions_is_named(
    lead: Lead, installed: str, unit: Callable[..., str]
) -> None:
    unit("tests-thief.service", *lead.argv(lead.units / "server.py", (lead.ports[0], 0)))
    assert eventually(lambda: "tests-thief.service" in holders("tcp", lead.ports[0]))
    found = lead.production()
    assert found["level"] == "problem"
    assert "tests-thief.service" in str(found["what"])


def test_production_and_instances_are_no_strays(lead: Lead, active: str) -> None:
    with Run(units=lead.units) as run:
        run.spawn("lead")
        run.spawn("lead", network="private")
        assert lead.strays() == []
        assert lead.doctor("left-overs", code=0)[0]["level"] == "ok"


def test_a_second_copy_started_by_hand_is_found_with_its_parent(
    lead: Lead, active: str, start: Start
) -> None:
    stray = start(*lead.argv(ports=(0, 0)))
    [found] = lead.strays()
    assert found.pid == stray.pid
    assert found.parent == os.getpid()
    assert (found.service, found.production, found.user) == ("lead", "tests-lead.service", USER)
    assert found.seen == (f"program {lead.script}",)
    assert not found.elsewhere
    # Its unit is that of the tests: who would end that?
    assert not found.alone
    assert found.help.endswith(f" {stray.pid}")
    assert f", started by python -m pytest (PID {os.getpid()})" in str(found) or "pytest" in str(
        found
    )
    [said] = [
        one for one in lead.doctor("strays", code=1) if f"PID {stray.pid}" in str(one["what"])
    ]
    assert said["level"] == "problem"
    assert str(said["what"]).startswith("a second lead: ")
    assert said["why"] == "a host has one, which is tests-lead.service (AD-001)"
    assert said["details"] == json.loads(json.dumps(found.to_json())) | {
        "parent": os.getpid(),
    }


def test_a_second_copy_in_a_foreign_unit_is_found_and_ended_as_told(
    lead: Lead, active: str, unit: Callable[..., str]
) -> None:
    name = unit("tests-stray.service", *lead.argv(ports=(0, 0)))
    [found] = lead.strays()
    assert found.unit == name
    assert found.within == (None if ROOT else f"user@{os.getuid()}.service")
    assert found.help == f"{STOP} {name}"
    assert f" in {name}" in str(found)
    shell(found.help)
    assert eventually(lambda: lead.strays() == [])


def test_a_copy_under_another_name_in_a_network_of_its_own_is_found_by_its_ports(
    lead: Lead, active: str, start: Start
) -> None:
    other = lead.units / "renamed.py"
    shutil.copy(lead.script, other)
    into = ["unshare", "--net"] if ROOT else ["unshare", "--user", "--map-root-user", "--net"]
    stray = start(*into, *lead.argv(other))
    [found] = lead.strays()
    assert found.pid == stray.pid
    assert found.elsewhere
    first, second = lead.ports
    assert set(found.seen) == {f"port {first} (http)", f"port {second} (other)"}
    assert str(found).endswith("in another network")


def test_a_copy_in_a_private_network_of_ours_is_none(lead: Lead, active: str, start: Start) -> None:
    words = [sys.executable, "-m", "understudy", "run", "--network", "private", "--"]
    start(*words, *lead.argv())
    assert lead.strays() == []


def test_a_copy_in_productions_place_is_found_by_both_of_its_ports(
    lead: Lead, installed: str, start: Start
) -> None:
    other = lead.units / "renamed.py"
    shutil.copy(lead.script, other)
    stray = start(*lead.argv(other))
    assert [one.pid for one in lead.strays()] == [stray.pid]


def test_one_standard_port_alone_makes_no_copy(lead: Lead, installed: str, start: Start) -> None:
    other = lead.units / "renamed.py"
    shutil.copy(lead.script, other)
    stray = start(*lead.argv(other, (lead.ports[0], 0)))
    assert lead.strays() == []
    assert eventually(lambda: f"PID {stray.pid}" in str(lead.production()["what"]))


def test_workers_of_a_copy_are_not_told_one_by_one(lead: Lead, active: str, start: Start) -> None:
    forking = lead.units / "server.py"
    forking.write_text("import os\nos.fork() or os.fork()\n" + SERVER)
    stray = start(*lead.argv(ports=(0, 0)))
    found = lead.strays()
    assert [one.pid for one in found] == [stray.pid], found


def test_what_a_dead_run_left_is_told_and_removed_as_told(lead: Lead) -> None:
    # Not a run's own doing: what is left when systemd is killed, or a file system fills up.
    run = "rbcdf2"
    folder = RUNTIME / "understudy" / run
    (folder / "lead-1").mkdir(parents=True)
    file = UNIT_DIR / f"understudy-lead@{run}-2.service"
    UNIT_DIR.mkdir(parents=True, exist_ok=True)
    file.write_text("[Service]\nExecStart=/bin/true\n")
    drop_ins = UNIT_DIR / f"{file.name}.d"
    drop_ins.mkdir()
    (drop_ins / "10-instance.conf").write_text("[Service]\n")
    name = f"understudy-lead@{run}-1.service"
    words = ["systemd-run", *WHOSE, "--quiet", f"--unit={name}", "--slice"]
    subprocess.run([*words, f"understudy-{run}.slice", "sleep", "1000"], check=True)
    top = "" if ROOT else systemctl("show", "--property=ControlGroup").strip().partition("=")[2]
    group = Path(f"/sys/fs/cgroup{top}/understudy.slice/understudy-rbcdf3.slice")
    group.mkdir(parents=True)
    with Run():
        found = lead.doctor("left-overs", code=1)
        assert [one["level"] for one in found] == ["problem", "problem"]
        first, second = found
        assert str(first["what"]).startswith(f"run {run} is dead and left 2 units (")
        assert first["details"] == {
            "run": run,
            "units": [name, f"understudy-{run}.slice"],
            "files": first["details"]["files"],  # type: ignore[index]
            "cgroups": [],
        }
        files = first["details"]["files"]
        assert {str(folder), str(file), str(drop_ins)} <= set(files)
        assert second["details"]["cgroups"] == [str(group)]  # type: ignore[index]
        for one in found:
            shell(str(one["help"]))
        assert lead.doctor("left-overs", code=0)[0]["what"] == "none; 1 live run on this host"
    assert not group.exists()
    assert not folder.exists()


def test_beds_and_strangers_are_no_left_overs(lead: Lead) -> None:
    strangers = [RUNTIME / "understudy/beds", RUNTIME / "understudy/notes"]
    made = [path for path in strangers if not path.exists()]
    for path in made:
        path.mkdir(parents=True)
    try:
        assert lead.doctor("left-overs", code=0)[0]["level"] == "ok"
    finally:
        for path in made:
            path.rmdir()


def test_people_get_one_line_for_each_check_and_no_progress_in_a_pipe(lead: Lead) -> None:
    said = understudy("doctor", "--only", "cgroups", "--only", "managers")
    assert said.stdout.splitlines()[0] == "ok       cgroups   v2 at /sys/fs/cgroup"
    assert said.stdout.splitlines()[-1].startswith("nothing to do in ")
    assert said.stderr == ""


def test_an_unknown_check_is_a_usage_error() -> None:
    said = understudy("doctor", "--only", "weather", code=2)
    assert "there is no check 'weather'; there are: systemd, cgroups" in said.stderr
