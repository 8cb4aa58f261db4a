"""What is done for a tester: bounds, reserved ports, and all of it on a host made of files."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from understudy.deploy import reserved, testers
from understudy.deploy.bounds import DEFAULTS, DIRECTIVES, bounds_of
from understudy.deploy.testers import (
    Account,
    Host,
    account,
    deploy_testers,
    profile_text,
    withdraw_testers,
)
from understudy.errors import DeployError

ANNA = pwd.struct_passwd(("anna", "x", 4711, 4711, "", "/home/anna", "/bin/bash"))
SLICE = "etc/systemd/system/user-4711.slice.d/50-understudy.conf"
MANAGER = "etc/systemd/system/user@4711.service.d/50-understudy.conf"
PROFILE = "etc/apparmor.d/understudy-tester"
LINGER = "var/lib/systemd/linger/anna"


class FakeHost(Host):
    """Files in a folder; what would be run is written down, and done as far as files show it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, owner=os.geteuid(), command=self.run)
        self.ran: list[str] = []
        self.fails = ""
        for name, text in {
            reserved.KERNEL: "8080\n",
            "proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0\n",
            "sys/kernel/security/apparmor/profiles": "",
        }.items():
            self.put(name, text)

    def put(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def run(self, words: Sequence[str], what: str) -> str:
        line = " ".join(words).replace(f"{self.root}", "")
        self.ran.append(line)
        if self.fails and self.fails in line:
            raise DeployError(f"Cannot {what}: no")
        if words[0] == "loginctl" and words[1] == "enable-linger":
            self.put(LINGER, "")
        elif words[0] == "loginctl":
            (self.root / LINGER).unlink()
        elif words[:2] == ["systemctl", "start"]:
            self.put("run/user/4711/systemd/private", "")
        elif words[0] == "apparmor_parser":
            loaded = "understudy-tester (unconfined)\n" * (words[1] == "--replace")
            self.put("sys/kernel/security/apparmor/profiles", loaded)
        return ""

    def tree(self) -> dict[str, str]:
        """Every file with its content, but for the sockets of managers."""
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in self.root.rglob("*")
            if path.is_file() and "run/user" not in str(path)
        }


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    def known(name: str) -> pwd.struct_passwd:
        if name != "anna":
            raise KeyError(name)
        return ANNA

    monkeypatch.setattr(pwd, "getpwnam", known)
    monkeypatch.setattr(testers, "check_root", lambda _verb, _names: None)
    monkeypatch.setattr(testers, "_is_member", lambda _account, _group: False)
    said = subprocess.CompletedProcess([], 0, stdout="", stderr="")
    monkeypatch.setattr(testers, "_as_user", lambda _account, _words, _timeout_s: said)
    return FakeHost(tmp_path)


def test_bounds_are_the_tables_the_testers_own_and_else_the_defaults() -> None:
    defaults = {DIRECTIVES[name]: value for name, value in DEFAULTS.items()}
    assert bounds_of("anna", "") == bounds_of("anna", 'port_range = "1-2"') == defaults
    text = '[testers]\ntasks_max = 500\n[testers.anna]\nmemory_max = "16G"\ncpu_weight = 100\n'
    own = {"MemoryMax": "16G", "CPUWeight": "100"}
    assert bounds_of("anna", text) == {**defaults, "TasksMax": "500", **own}
    assert bounds_of("bert", text) == {**defaults, "TasksMax": "500"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "not TOML: "),
        ("testers = 1", "testers: not a table\n  hint: write it as"),
        ("[testers]\nmemory = 1", "testers.memory: unknown key\n  hint: .*memory_max"),
        ("[testers]\nmemory_max = 0", "testers.memory_max: 0 cannot be meant"),
        ("[testers]\nmemory_max = true", "testers.memory_max: True cannot be meant"),
        ('[testers]\nmemory_max = "1G\\nUser=root"', "testers.memory_max: '1G.nUser=root' "),
        ('[testers]\ntasks_max = "101%"', "testers.tasks_max: '101%' cannot be meant"),
        (
            "[testers]\ncpu_weight = 10001",
            "testers.cpu_weight: 10001 cannot be meant\n.* 1 to 10000",
        ),
        ("[testers.bert]\nio_wait = 1", "testers.bert.io_wait: unknown key"),
        ("[testers.bert]\nio_weight = []", r"testers.bert.io_weight: \[\] cannot be meant"),
    ],
)
def test_bounds_that_cannot_be_meant_are_refused(text: str, message: str) -> None:
    pattern = f"Cannot read '/etc/understudy/understudy.toml': {message}"
    with pytest.raises(DeployError, match=pattern):
        bounds_of("anna", text)


def test_reserved_ports_are_read_and_written_as_the_kernel_does(tmp_path: Path) -> None:
    assert reserved.numbers("\n") == frozenset()
    assert reserved.text_of(reserved.numbers("8081,8080,9000-9002,8082\n")) == "8080-8082,9000-9002"
    for name, text in {
        "etc/sysctl.d/50-a.conf": "# x\nnet.ipv4.ip_local_reserved_ports = 1-3\n",
        "usr/lib/sysctl.d/50-a.conf": "net.ipv4.ip_local_reserved_ports = 7\n",
        "usr/lib/sysctl.d/60-b.conf": "-net/ipv4/ip_local_reserved_ports=9, 11\nkernel.x = 1\n",
        reserved.FILE.lstrip("/"): "net.ipv4.ip_local_reserved_ports = 20000-29999\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert reserved.of_others(tmp_path) == {9, 11}
    (tmp_path / "usr/lib/sysctl.d/60-b.conf").unlink()
    assert reserved.of_others(tmp_path) == {1, 2, 3}


@pytest.mark.parametrize(
    "name", ["", "-rf", "a/b", "a\nb", "a b", ".", "..", "a:b", "a\0b", "a\x7fb", "/etc", "x" * 300]
)
def test_what_is_no_users_name_is_refused(name: str) -> None:
    with pytest.raises(DeployError, match="that is no user's name"):
        account(name)


def test_who_cannot_be_a_tester_is_refused() -> None:
    with pytest.raises(DeployError, match="'no-such-user': there is no such user\n  hint: sudo us"):
        account("no-such-user")
    with pytest.raises(DeployError, match="'root': root needs nothing"):
        account("root")
    with pytest.raises(DeployError, match="'nobody': user 65534 is nobody in particular"):
        account("nobody")


def outcome(found: list[testers.TesterOutcome]) -> testers.TesterOutcome:
    [one] = found
    return one


def test_a_tester_comes_and_goes_and_all_is_as_before(host: FakeHost) -> None:
    before = host.tree()
    planned = outcome(deploy_testers(["anna"], pretend=True, host=host))
    assert (host.tree(), host.ran) == (before, [])
    done = outcome(deploy_testers(["anna"], host=host))
    assert done.plan == planned.plan
    assert host.ran == [
        "systemctl daemon-reload",
        "loginctl enable-linger anna",
        "systemctl start user@4711.service",
    ]
    assert "\n[Slice]\nMemoryHigh=40%\nMemoryMax=50%\n" in (host.root / SLICE).read_text()
    assert (host.root / reserved.KERNEL).read_text() == "8080,20000-29999\n"
    assert not (host.root / PROFILE).exists()
    record = host.root / "var/lib/understudy/deploy/testers/anna.tester"
    assert record.stat().st_mode & 0o777 == 0o600
    assert record.parent.stat().st_mode & 0o777 == 0o700
    assert done.to_json()["changed"]

    deployed = host.tree()
    again = outcome(deploy_testers(["anna"], host=host))
    assert (again.changed, again.plan, host.tree()) == (False, [], deployed)

    host.ran.clear()
    gone = outcome(withdraw_testers(["anna"], host=host))
    assert host.ran == ["systemctl daemon-reload", "loginctl disable-linger anna"]
    assert gone.plan[-1] == "reserve ports 20000-29999 no longer"
    assert host.tree() == before
    assert not (host.root / SLICE).parent.exists()
    with pytest.raises(DeployError, match=r"tester 'anna': nothing was deployed .*\n.*: none"):
        withdraw_testers(["anna"], host=host)


def test_what_was_there_before_stays(host: FakeHost) -> None:
    host.put(LINGER, "")
    host.put("run/user/4711/systemd/private", "")
    host.put(reserved.KERNEL, "8080,20000-20015\n")
    before = host.tree()
    deploy_testers(["anna"], host=host)
    withdraw_testers(["anna"], host=host)
    assert host.tree() == before
    assert host.ran == ["systemctl daemon-reload"] * 2


@pytest.mark.parametrize(
    "fails", ["systemctl daemon-reload", "loginctl enable", "systemctl start", "apparmor_parser"]
)
def test_what_goes_wrong_leaves_all_as_it_was(host: FakeHost, fails: str) -> None:
    host.put("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
    before = host.tree()
    host.fails = fails
    with pytest.raises(DeployError, match=r"Cannot .*: no") as caught:
        deploy_testers(["anna"], host=host)
    notes = caught.value.__notes__
    # What fails once fails again where it undoes something, and that is told.
    assert notes[0].startswith("all is as it was before")
    left = {"sys/kernel/security/apparmor/profiles": ""}
    assert {**host.tree(), **left} == {**before, **left}


@pytest.mark.parametrize("at", ["systemctl daemon-reload", "loginctl", "systemctl start"])
def test_what_was_killed_half_way_can_be_done_again_and_undone(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    before = host.tree()
    with monkeypatch.context() as patch:
        # SIGKILL: nothing is put back.
        patch.setattr(testers, "_undone_on_error", lambda _said: contextlib.nullcontext([]))
        host.fails = at
        with pytest.raises(DeployError):
            deploy_testers(["anna"], host=host)
    assert host.tree() != before
    host.fails = ""
    withdraw_testers(["anna"], host=host)
    assert host.tree() == before
    deploy_testers(["anna"], host=host)
    deployed = host.tree()
    (host.root / LINGER).unlink()
    (host.root / SLICE).unlink()
    assert outcome(deploy_testers(["anna"], host=host)).changed
    assert host.tree() == deployed
    withdraw_testers(["anna"], host=host)
    assert host.tree() == before


def test_settings_that_change_are_taken_over_and_edited_files_are_kept(host: FakeHost) -> None:
    deploy_testers(["anna"], host=host)
    host.put("etc/understudy/understudy.toml", "[testers]\ntasks_max = 7\n")
    done = outcome(deploy_testers(["anna"], host=host))
    assert done.plan == [f"update /{SLICE}", "reload systemd"]
    assert "-TasksMax=25%\n+TasksMax=7\n" in done.diffs[f"/{SLICE}"]
    host.put(SLICE, "[Slice]\nTasksMax=9\n")
    done = outcome(deploy_testers(["anna"], host=host))
    assert not done.changed
    assert done.notes[-1] == f"'/{SLICE}' was edited and is kept; without it deploy writes it anew"
    assert (
        f"'/{SLICE}' was edited and is kept" in outcome(withdraw_testers(["anna"], host=host)).notes
    )
    assert (host.root / SLICE).exists()


def test_ports_that_are_reserved_later_by_others_stay_so(host: FakeHost) -> None:
    deploy_testers(["anna"], host=host)
    host.put("etc/sysctl.d/60-site.conf", "net.ipv4.ip_local_reserved_ports = 9000\n")
    done = outcome(deploy_testers(["anna"], host=host))
    assert done.plan == [f"update {reserved.FILE}", "reserve ports 20000-29999"]
    assert (host.root / reserved.KERNEL).read_text() == "8080,9000,20000-29999\n"
    withdraw_testers(["anna"], host=host)
    assert (host.root / reserved.KERNEL).read_text() == "8080,9000\n"


def test_a_link_or_a_folder_of_others_leads_nowhere(host: FakeHost, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = (host.root / SLICE).parent
    folder.parent.mkdir(parents=True)
    folder.symlink_to(elsewhere)
    before = host.tree()
    with pytest.raises(DeployError, match="is no folder, or a symbolic link"):
        deploy_testers(["anna"], host=host)
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(DeployError, match="others than root may write to"):
        deploy_testers(["anna"], host=host)
    assert host.tree() == before
    assert list(elsewhere.iterdir()) == []


def test_settings_that_others_may_write_are_not_used(host: FakeHost) -> None:
    host.put("etc/understudy/understudy.toml", "")
    (host.root / "etc/understudy/understudy.toml").chmod(0o666)
    with pytest.raises(DeployError, match="others than root may write to it"):
        deploy_testers(["anna"], host=host)


def test_where_apparmor_restricts_namespaces_the_managers_of_testers_are_exempt(
    host: FakeHost,
) -> None:
    host.put("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
    before = host.tree()
    deploy_testers(["anna"], host=host)
    assert host.ran[0] == f"apparmor_parser --replace /{PROFILE}"
    assert (host.root / PROFILE).read_text() == profile_text()
    assert "AppArmorProfile=-understudy-tester\n" in (host.root / MANAGER).read_text()
    assert outcome(deploy_testers(["anna"], host=host)).plan == []
    # It was unloaded by somebody.
    host.put("sys/kernel/security/apparmor/profiles", "")
    again = outcome(deploy_testers(["anna"], host=host))
    assert again.plan == ["load profile understudy-tester"]
    withdraw_testers(["anna"], host=host)
    assert host.tree() == before
    assert host.ran[-1] == f"apparmor_parser --remove /{PROFILE}"


def test_the_profile_is_attached_to_no_program_and_can_be_read() -> None:
    [line] = [line for line in profile_text().splitlines() if line.startswith("profile ")]
    assert line == "profile understudy-tester flags=(unconfined) {"
    if (parser := shutil.which("apparmor_parser")) and Path("/etc/apparmor.d/abi/4.0").exists():
        words = [parser, "--skip-kernel-load", "--skip-cache"]
        subprocess.run(words, input=profile_text(), text=True, check=True)


def test_who_is_root_anyway_is_told(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testers, "_is_member", lambda _account, group: group == "docker")
    done = outcome(deploy_testers(["anna"], pretend=True, host=host))
    assert any(
        note.startswith("anna is in group docker, and so can be root") for note in done.notes
    )


def test_the_record_of_a_tester_that_is_damaged_is_an_error(host: FakeHost) -> None:
    deploy_testers(["anna"], host=host)
    host.put("var/lib/understudy/deploy/testers/anna.tester", "{")
    (host.root / "var/lib/understudy/deploy/testers/anna.tester").chmod(0o600)
    for verb in (deploy_testers, withdraw_testers):
        with pytest.raises(DeployError, match="it is damaged"):
            verb(["anna"], host=host)


def test_a_testers_manager_may_say_anything(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy_testers(["anna"], host=host)
    stopped: list[Sequence[str]] = []

    def answers(
        _account: Account, words: Sequence[str], _timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        if words[0] == "stop":
            stopped.append(words)
        lines = [
            "understudy-guard@r7k2mq.service loaded",
            "",
            "--root=/ x",
            "sshd.service",
            "\x1b[2J",
        ]
        return subprocess.CompletedProcess(words, 0, stdout="\n".join(lines), stderr="")

    monkeypatch.setattr(testers, "_as_user", answers)
    done = outcome(withdraw_testers(["anna"], host=host))
    assert done.runs == ["r7k2mq"]
    assert stopped == [["stop", "--", "understudy-guard@r7k2mq.service"]]


def test_a_testers_manager_that_says_nothing_holds_nobody_up(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy_testers(["anna"], host=host)

    def hangs(_account: Account, words: Sequence[str], timeout_s: float) -> None:
        raise subprocess.TimeoutExpired(words, timeout_s)

    monkeypatch.setattr(testers, "_as_user", hangs)
    done = outcome(withdraw_testers(["anna"], host=host))
    assert "the manager of anna does not answer" in done.notes
    assert "loginctl disable-linger anna" in host.ran


def test_a_drop_in_is_for_one_tester_alone() -> None:
    text = testers.slice_text(Account("anna", 4711, 4711), {"TasksMax": "5"})
    assert text.endswith("[Slice]\nTasksMax=5\n")
    assert testers.slice_path(4711) == f"/{SLICE}"
