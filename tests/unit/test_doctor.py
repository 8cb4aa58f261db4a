"""Doctor and the search for second copies, on trees of files that stand for a host."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.fakes import FakeManager, status

from understudy import doctor
from understudy.doctor import CHECKS, Finding, Host, Level, examine, run_of
from understudy.model import ManagerKind, Transport
from understudy.ports import Sockets
from understudy.strays import Singleton, Stray, program, strays

SYSTEM = "/system.slice/mediamtx.service"
SESSION = "/user.slice/user-1000.slice/session-3.scope"

MEDIAMTX = Singleton(
    service="mediamtx",
    unit="mediamtx.service",
    ports={(Transport.TCP, 9997): "api", (Transport.TCP, 8554): "rtsp"},
    programs=frozenset({("program", "mediamtx"), ("-m", "standins.mediamtx")}),
)

TCP_HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when   uid inode\n"


class Processes:
    """A /proc of one's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self/ns").mkdir(parents=True)
        (root / "proc/self/ns/net").symlink_to("net:[1]")

    def add(
        self,
        pid: int,
        argv: Sequence[str],
        cgroup: str,
        *,
        parent: int = 1,
        network: int = 1,
        environment: Sequence[str] = (),
        listens: Sequence[int] = (),
        exe: str = "",
    ) -> None:
        folder = self.root / "proc" / str(pid)
        for name in ("ns", "net", "fd"):
            (folder / name).mkdir(parents=True)
        (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in argv))
        (folder / "cgroup").write_text(f"1:name=systemd:/x\n0::{cgroup}\n")
        (folder / "stat").write_text(f"{pid} (a name) x) S {parent} 1 1\n")
        (folder / "environ").write_bytes(b"".join(word.encode() + b"\0" for word in environment))
        (folder / "ns/net").symlink_to(f"net:[{network}]")
        if exe:
            (folder / "exe").symlink_to(exe)
        rows = ""
        for number, port in enumerate(listens):
            inode = pid * 100 + number
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
            rows += f" {number}: 00000000:{port:04X} 00000000:0000 0A 0:0 0:0 0 0 0 {inode}\n"
        (folder / "net/tcp").write_text(TCP_HEADER + rows)

    def strays(self, singletons: Sequence[Singleton] = (MEDIAMTX,)) -> list[Stray]:
        return strays(singletons, root=self.root, sockets=Sockets([]))


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/local/bin/mediamtx", "/etc/mediamtx.yml"], ("program", "mediamtx")),
        (["mediamtx"], ("program", "mediamtx")),
        (["/opt/x/venv/bin/python", "-m", "camera.main"], ("-m", "camera.main")),
        (["python3.11", "-X", "dev", "-Im", "camera.main", "-m", "x"], ("-m", "camera.main")),
        (["python3", "/opt/x/server.py", "--port", "1"], ("script", "/opt/x/server.py")),
        (["/usr/bin/env", "A=b", "mediamtx"], ("program", "mediamtx")),
        (["java", "-cp", "x", "-jar", "/opt/y.jar"], ("-jar", "/opt/y.jar")),
        (["python3", "server.py"], None),
        (["sh", "-c", "mediamtx"], None),
        (["python3", "-c", "import mediamtx"], None),
        (["python3", "-m"], None),
        ([""], None),
        ([], None),
    ],
)
def test_what_a_command_line_runs(argv: list[str], expected: tuple[str, str] | None) -> None:
    assert program(argv) == expected


def test_production_is_no_stray(processes: Processes) -> None:
    processes.add(10, ["/usr/local/bin/mediamtx"], SYSTEM)
    processes.add(11, ["/usr/local/bin/mediamtx"], f"{SYSTEM}/worker")
    processes.add(12, ["/usr/local/bin/mediamtx"], "/media.slice/mediamtx.service")
    assert processes.strays() == []


def test_what_has_mediamtx_among_its_arguments_is_no_stray(processes: Processes) -> None:
    processes.add(10, ["vim", "/etc/mediamtx"], SESSION)
    processes.add(11, ["sh", "-c", "mediamtx"], SESSION)
    assert processes.strays() == []


def test_a_copy_started_by_hand_is_told_with_its_parent(processes: Processes) -> None:
    processes.add(9, ["bash"], SESSION)
    processes.add(10, ["./mediamtx", "my.yml"], SESSION, parent=9)
    [found] = processes.strays()
    assert (found.pid, found.parent, found.parent_command) == (10, 9, "bash")
    assert found.unit == "session-3.scope"
    assert f"mediamtx (PID 10, user {found.user}) in session-3.scope" in str(found)
    assert str(found).endswith(", started by bash (PID 9)")
    assert found.help == "kill 10"
    json.dumps(found.to_json())


def test_a_renamed_process_is_known_by_its_executable(processes: Processes) -> None:
    processes.add(10, ["hidden"], SESSION, exe="/opt/mediamtx (deleted)")
    assert [one.seen for one in processes.strays()] == [("program mediamtx",)]


def test_a_unit_of_its_own_is_to_be_stopped(processes: Processes) -> None:
    processes.add(10, ["mediamtx"], "/system.slice/copy.service")
    processes.add(11, ["ffmpeg"], "/system.slice/copy.service", parent=10)
    [found] = processes.strays()
    assert found.alone
    sudo = "" if os.geteuid() == 0 else "sudo "
    assert found.help == f"{sudo}systemctl stop copy.service"


def test_a_unit_that_runs_more_is_not_to_be_stopped(processes: Processes) -> None:
    processes.add(9, ["jenkins"], "/system.slice/jenkins.service")
    processes.add(10, ["mediamtx"], "/system.slice/jenkins.service", parent=9)
    [found] = processes.strays()
    assert found.help == "kill 10"
    assert "in jenkins.service, started by jenkins (PID 9)" in str(found)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        (f"docker-{'0a' * 32}.scope", "docker stop 0a0a0a0a0a0a"),
        (f"libpod-{'0b' * 32}.scope", "podman stop 0b0b0b0b0b0b"),
    ],
)
def test_a_container_is_ended_by_its_own_means(
    processes: Processes, unit: str, expected: str
) -> None:
    processes.add(10, ["/mediamtx"], f"/system.slice/{unit}", network=2)
    [found] = processes.strays()
    assert found.help == expected
    assert found.elsewhere


def test_a_unit_of_productions_name_in_a_container_is_a_stray(processes: Processes) -> None:
    processes.add(10, ["mediamtx"], f"/machine.slice/systemd-nspawn@x.service/payload{SYSTEM}")
    [found] = processes.strays()
    assert "unit mediamtx.service" in found.seen
    assert found.within == "systemd-nspawn@x.service"
    assert found.help == "systemctl status 10"


@pytest.mark.parametrize(
    "cgroup",
    [
        "/understudy.slice/understudy-r7k2mq.slice/understudy-mediamtx@r7k2mq-1.service",
        "/user.slice/user-1000.slice/user@1000.service/understudy.slice/understudy-r7k2mq.slice"
        "/understudy-mediamtx@r7k2mq-1.service",
        f"/understudy-bed-x/payload{SYSTEM}",
    ],
)
def test_instances_and_beds_are_no_strays(processes: Processes, cgroup: str) -> None:
    processes.add(10, ["mediamtx"], cgroup)
    processes.add(11, ["other"], cgroup, network=2, listens=[9997, 8554])
    assert processes.strays() == []


def test_a_run_may_have_a_copy_in_a_private_network_only(processes: Processes) -> None:
    scope = "/understudy.slice/understudy-r7k2mq.slice/understudy-command-r7k2mq.scope"
    private = ["UNDERSTUDY_NETWORK=private:lab"]
    processes.add(10, ["mediamtx"], scope, network=2, environment=private)
    processes.add(11, ["mediamtx"], SESSION, network=2, environment=private)
    processes.add(12, ["mediamtx"], scope)
    assert [one.pid for one in processes.strays()] == [12]


def test_two_standard_ports_in_another_network_make_a_copy(processes: Processes) -> None:
    processes.add(10, ["renamed"], SESSION, network=2, listens=[9997, 8554, 80])
    processes.add(11, ["jupyter"], SESSION, network=3, listens=[9997, 80])
    [found] = processes.strays()
    assert found.pid == 10
    assert found.seen == ("port 8554 (rtsp)", "port 9997 (api)")
    assert found.elsewhere


def test_workers_of_a_copy_are_told_once(processes: Processes) -> None:
    processes.add(10, ["mediamtx"], SESSION)
    processes.add(11, ["mediamtx"], SESSION, parent=10)
    assert [one.pid for one in processes.strays()] == [10]


def test_processes_that_end_meanwhile_are_passed_over(processes: Processes) -> None:
    (processes.root / "proc/77").mkdir()
    (processes.root / "proc/78").mkdir()
    (processes.root / "proc/78/cmdline").write_bytes(b"mediamtx\0")
    assert [one.cgroup for one in processes.strays()] == [""]


def test_nothing_is_looked_for_where_nothing_is_a_singleton(processes: Processes) -> None:
    processes.add(10, ["mediamtx"], SESSION)
    assert processes.strays([]) == []


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("understudy-mediamtx@r7k2mq-1.service", "r7k2mq"),
        ("understudy-mediamtx@r7k2mq-1.service.d", "r7k2mq"),
        ("understudy-guard@r7k2mq.service", "r7k2mq"),
        ("understudy-publish@r7k2mq-1-http.socket", "r7k2mq"),
        ("understudy-hold@r7k2mq-r4hr3d.service", "r7k2mq"),
        ("understudy-shared@0123abcd-r4hr3d.service", "r4hr3d"),
        ("understudy-r7k2mq.slice", "r7k2mq"),
        ("understudy-r7k2mq-guarded.slice", "r7k2mq"),
        ("understudy-command-r7k2mq.scope", "r7k2mq"),
        ("understudy-making@0123abcd.service", None),
        ("understudy-bed-x.scope", None),
        ("understudy-beds.slice", None),
        ("understudy.slice", None),
        ("mediamtx.service", None),
    ],
)
def test_the_run_of_a_name(name: str, run: str | None) -> None:
    assert run_of(name) == run


class TreeHost(Host):
    """A host that is a tree of files and a fake manager."""

    def __init__(self, root: Path, *, uid: int = 1000, live: Sequence[str] = ()) -> None:
        super().__init__(root, uid=uid)
        kind = ManagerKind.USER if uid else ManagerKind.SYSTEM
        self.fake = FakeManager(root / "run", kind=kind)
        self.live = set(live)
        self.__dict__["own"] = self.fake
        self.says(Version="257.13-1", Features="+SECCOMP +BPF_FRAMEWORK -XKBCOMMON")

    def says(self, **said: str) -> None:
        group = "/user@1000.service" if self.uid else ""
        self.__dict__["said"] = {"ControlGroup": group, **said}

    def live_runs(self) -> set[str]:
        return self.live

    def write(self, path: str, text: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def check(self, name: str) -> list[Finding]:
        return list(CHECKS[name](self))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TreeHost:
    monkeypatch.setattr(doctor, "ENDING_TIMEOUT_S", 0.0)
    return TreeHost(tmp_path)


def test_systemd_with_bpf_is_ok(host: TreeHost) -> None:
    [found] = host.check("systemd")
    assert (found.level, found.what) == (Level.OK, "257.13-1 +SECCOMP +BPF_FRAMEWORK")


def test_an_old_systemd_is_a_problem(host: TreeHost) -> None:
    host.says(Version="249.11", Features="+SECCOMP")
    [found] = host.check("systemd")
    assert (found.level, found.why) == (Level.PROBLEM, "it must be 252 or newer")


@pytest.mark.parametrize("uid", [0, 1000])
def test_no_bpf_is_a_matter_of_roots_only(tmp_path: Path, uid: int) -> None:
    host = TreeHost(tmp_path, uid=uid)
    host.says(Version="252.39", Features="+SECCOMP -BPF_FRAMEWORK")
    [found] = host.check("systemd")
    assert found.level is (Level.OK if uid else Level.WARNING)


@pytest.mark.parametrize(
    ("file", "level"),
    [
        ("sys/fs/cgroup/cgroup.procs", Level.OK),
        ("sys/fs/cgroup/unified/cgroup.procs", Level.WARNING),
        ("sys/fs/cgroup/memory/cgroup.procs", Level.PROBLEM),
    ],
)
def test_cgroup_versions(host: TreeHost, file: str, level: Level) -> None:
    host.write(file)
    assert [one.level for one in host.check("cgroups")] == [level]


def test_lingering(host: TreeHost) -> None:
    [found] = host.check("lingering")
    assert found.level is Level.WARNING
    assert found.help == f"sudo understudy deploy --tester {host.user}"
    host.write(f"var/lib/systemd/linger/{host.user}")
    [found] = host.check("lingering")
    assert found.level is Level.OK


def test_controllers_that_are_not_handed_down_are_told_with_the_drop_in(host: TreeHost) -> None:
    host.write("sys/fs/cgroup/cgroup.procs")
    host.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    host.write("sys/fs/cgroup/user@1000.service/cgroup.controllers", "memory pids\n")
    [found] = host.check("controllers")
    assert found.what == f"no cpu for {host.user}"
    assert "Delegate=cpu cpuset io memory pids" in found.help
    host.write("sys/fs/cgroup/user@1000.service/cgroup.controllers", "cpu memory pids\n")
    assert [one.level for one in host.check("controllers")] == [Level.OK]


def test_the_restriction_of_apparmor_is_told(host: TreeHost) -> None:
    assert [one.level for one in host.check("apparmor")] == [Level.OK]
    host.write("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
    [found] = host.check("apparmor")
    assert found.level is Level.WARNING
    assert f"sudo understudy deploy --tester {host.user}" in found.help


def test_what_dead_runs_left_is_told_by_run(host: TreeHost) -> None:
    host.live = {"r2zvxq"}
    host.write("sys/fs/cgroup/cgroup.procs")
    for run in ("rdbcf2", "r2zvxq"):
        unit = f"understudy-x@{run}-1.service"
        host.fake.units[unit] = status(unit, active_state="failed")
        host.write(f"run/systemd/user/{unit}")
        host.write(f"run/understudy/{run}/x-1/log")
    empty = "sys/fs/cgroup/user@1000.service/understudy.slice/understudy-rdbcf3.slice"
    host.write(f"{empty}/cgroup.events")
    host.write("run/understudy/beds/x")
    first, second = host.check("left-overs")
    assert first.level is Level.PROBLEM
    assert first.what.startswith("run rdbcf2 is dead and left 1 unit (")
    assert first.details["units"] == ["understudy-x@rdbcf2-1.service"]
    assert first.help == (
        "systemctl --user stop 'understudy*@rdbcf2[-.]*'; "
        "systemctl --user stop 'understudy*-rdbcf2[-.]*'; "
        "systemctl --user reset-failed 'understudy*[@-]rdbcf2[-.]*'; "
        f"rm -rf -- {host.root}/run/systemd/user/understudy*[@-]rdbcf2[-.]* "
        f"{host.root}/run/understudy/rdbcf2"
    )
    assert second.details["cgroups"] == [str(host.root / empty)]
    assert "beds" not in first.help + second.help


def test_no_left_overs(host: TreeHost) -> None:
    host.live = {"r2zvxq"}
    [found] = host.check("left-overs")
    assert (found.level, found.what) == (Level.OK, "none; 1 live run on this host")


def test_a_check_that_fails_says_so_and_the_others_go_on(
    host: TreeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_host: Host) -> list[Finding]:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(doctor, "CHECKS", {"apparmor": fails, "lingering": CHECKS["lingering"]})
    told: list[str] = []
    first, second = examine(host, progress=told.append)
    assert (first.level, first.what) == (Level.WARNING, "could not be looked at")
    assert first.why == "ZeroDivisionError: division by zero"
    assert second.check == "lingering"
    assert told == ["apparmor", "lingering"]


def test_only_some_checks_can_be_asked_for(host: TreeHost) -> None:
    assert {one.check for one in examine(host, only=["apparmor"])} == {"apparmor"}


def test_json_has_all_keys_for_every_finding(host: TreeHost) -> None:
    [found] = host.check("apparmor")
    assert list(found.to_json()) == ["check", "level", "what", "why", "help", "details"]
