"""Testers on a real host: what they get, what they cannot do, and that all of it can be undone.

Users are made and the host is changed, so it must be one to throw away.
"""

from __future__ import annotations

import grp
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.systemd.hosts import User, made
from tests.systemd.support import (
    ROOT,
    require_throwaway,
    show,
    systemctl,
    understudy,
)

from understudy.ports import PortRange, claims
from understudy.run import Run

pytestmark = pytest.mark.skipif(not ROOT, reason="testers are root's to deploy")

RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
SETTINGS = Path("/etc/understudy/understudy.toml")
SITE = Path("/etc/sysctl.d/50-tests-of-understudy.conf")
LINGER = Path("/var/lib/systemd/linger")
REFUSED = re.compile(r"(?i)permission denied|access denied|authentication (is )?required")
LEAD = "tests-lead.service"
HOLD = ("spawn", "--exec", "sleep 999")


@pytest.fixture(scope="module")
def users() -> Iterator[Sequence[User]]:
    """Two users, and a host that may be changed."""
    require_throwaway()
    with made("utest-anna", "utest-bert") as found:
        yield found


@pytest.fixture
def anna(users: Sequence[User]) -> Iterator[User]:
    yield users[0]
    known = understudy("withdraw", "--tester", users[0].name, code=None)
    assert known.returncode == 0 or "nothing was deployed" in known.stderr
    users[0].end()


@pytest.fixture
def site() -> Iterator[None]:
    """What an administrator has set before."""
    SITE.write_text("net.ipv4.ip_local_reserved_ports = 9000-9003\n")
    before = RESERVED.read_text()
    RESERVED.write_text("8080,9000-9003\n")
    SETTINGS.parent.mkdir(exist_ok=True)
    SETTINGS.write_text("[testers]\ntasks_max = 777\n[testers.utest-anna]\nmemory_max = '1G'\n")
    yield
    RESERVED.write_text(before)
    SITE.unlink()
    SETTINGS.unlink()


@pytest.fixture
def lead() -> Iterator[str]:
    """A unit of the system's that is not the tester's."""
    words = ["systemd-run", "--quiet", "--collect", f"--unit={LEAD}", "sleep", "999"]
    subprocess.run(words, check=True)
    yield LEAD
    systemctl("stop", LEAD)


def host() -> dict[str, object]:
    """All that deploy may change on a host."""
    folders = ("/etc/systemd/system", "/etc/sysctl.d", "/etc/apparmor.d", "/var/lib/understudy")
    found: dict[str, object] = {}
    for path in (each for folder in folders for each in Path(folder).rglob("*")):
        found[str(path)] = path.read_bytes() if path.is_file() else ""
    found["lingering"] = sorted(path.name for path in LINGER.glob("*")) if LINGER.exists() else []
    found["journal"] = sorted(grp.getgrnam("systemd-journal").gr_mem)
    found["reserved"] = RESERVED.read_text()
    return found


def attacks(anna: User, lead: str) -> Iterator[tuple[str, ...]]:
    """What a tester may try, and none of it may succeed."""
    yield ("systemctl", "--no-ask-password", "stop", lead)
    yield ("systemctl", "--no-ask-password", "kill", lead)
    yield ("systemctl", "--no-ask-password", "restart", lead)
    yield ("systemctl", "--no-ask-password", "start", "understudy-x@r7k2mq-1.service")
    yield ("systemctl", "--no-ask-password", "daemon-reload")
    yield ("systemctl", "--no-ask-password", "set-property", anna.slice, "MemoryMax=infinity")
    yield ("systemctl", "--no-ask-password", "revert", anna.slice)
    yield ("systemd-run", "--system", "--no-ask-password", "--unit=understudy-x", "true")
    yield ("systemd-run", "--system", "--no-ask-password", "--scope", "true")
    yield ("loginctl", "--no-ask-password", "enable-linger", "root")
    yield ("cat", "/var/lib/understudy/deploy/testers/host.json")
    yield ("rm", "-r", f"/etc/systemd/system/{anna.slice}.d")
    yield ("tee", str(RESERVED))
    yield ("sh", "-c", f"echo -500 >/proc/{os.getpid()}/oom_score_adj")


def test_a_tester_has_bounds_and_no_right_over_others(anna: User, site: None, lead: str) -> None:
    before = host()
    planned = understudy("deploy", "--tester", anna.name, "--journal", "--dry-run")
    assert "tester utest-anna: let the manager of utest-anna live without a login" in planned.stdout
    assert host() == before

    done = understudy("deploy", "--tester", anna.name, "--journal")
    assert done.stdout.endswith("tester utest-anna: deployed\n")
    assert (LINGER / anna.name).exists()
    assert show(anna.manager, "ActiveState") == {"ActiveState": "active"}
    assert anna.name in grp.getgrnam("systemd-journal").gr_mem
    assert RESERVED.read_text() == "8080,9000-9003,20000-29999\n"
    names = ("MemoryMax", "TasksMax", "CPUWeight", "IOWeight")
    bounds = {"MemoryMax": str(1 << 30), "TasksMax": "777", "CPUWeight": "50", "IOWeight": "50"}
    assert show(anna.slice, *names) == bounds
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    lacking = not {"memory", "pids", "cpu", "io"} <= set(controllers)
    assert ("note: accepted, and not enforced here: " in done.stderr) == lacking
    records = Path("/var/lib/understudy/deploy/testers")
    assert records.stat().st_mode & 0o777 == 0o700
    deployed = host()
    again = understudy("deploy", "--tester", anna.name, "--journal")
    assert again.stdout == "tester utest-anna: nothing to do\n"
    assert host() == deployed

    pid = show(lead, "MainPID")
    for words in attacks(anna, lead):
        refused = anna.run(*words)
        assert refused.returncode, f"{words}: {refused.stdout}"
        assert REFUSED.search(refused.stderr), f"{words}: {refused.stderr}"
    assert show(lead, "MainPID") == pid
    assert show(anna.slice, *names) == bounds
    assert host() == deployed

    assert anna.understudy(*HOLD).returncode == 0
    run = anna.guards().partition("@")[2].partition(".")[0]
    done = understudy("withdraw", "--tester", anna.name, "--json")
    [told] = json.loads(done.stdout)
    assert (told["tester"], told["runs"]) == (anna.name, [run])
    assert told["steps"][0] == f"end run {run}"
    assert anna.guards() == ""
    assert host() == before
    assert show(anna.slice, "TasksMax") != {"TasksMax": "777"}
    known = understudy("withdraw", "--tester", anna.name, code=1).stderr
    assert "Cannot withdraw tester 'utest-anna': nothing was deployed for that user" in known


def test_what_a_tester_had_before_stays_and_the_last_one_takes_the_range_along(
    anna: User, users: Sequence[User]
) -> None:
    bert = users[1]
    subprocess.run(["loginctl", "enable-linger", anna.name], check=True)
    subprocess.run(["gpasswd", "--add", anna.name, "systemd-journal"], check=True)
    before = host()
    both = ("--tester", anna.name, "--tester", bert.name)
    understudy("deploy", *both, "--journal")
    understudy("withdraw", "--tester", bert.name)
    assert "20000-29999" in RESERVED.read_text()
    understudy("withdraw", "--tester", anna.name)
    assert host() == before
    subprocess.run(["gpasswd", "--delete", anna.name, "systemd-journal"], check=True)
    subprocess.run(["loginctl", "disable-linger", anna.name], check=True)
    bert.end()


def test_what_goes_wrong_leaves_the_host_as_it_was(
    anna: User, tmp_path: Path, open_directory: Path
) -> None:
    before = host()
    tool = tmp_path / "loginctl"
    tool.write_text("#!/bin/sh\necho 'no such luck' >&2\nexit 1\n")
    tool.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    failed = understudy("deploy", "--tester", anna.name, "--journal", code=1, env=path)
    assert "Cannot enable linger for 'utest-anna': no such luck" in failed.stderr
    assert "all is as it was before" in failed.stderr
    assert host() == before
    assert show(anna.slice, "TasksMax") != {"TasksMax": "777"}
    # A link where root writes leads nowhere.
    folder = Path(f"/etc/systemd/system/{anna.slice}.d")
    folder.symlink_to(open_directory)
    failed = understudy("deploy", "--tester", anna.name, code=1)
    assert f"'{folder}' is no folder, or a symbolic link" in failed.stderr
    folder.unlink()
    assert host() == before
    assert not list(open_directory.iterdir())
    failed = understudy("deploy", "--tester=a\nb", code=1)
    assert "Cannot deploy tester 'a\\nb': that is no user's name" in failed.stderr


def test_only_root_deploys_testers(anna: User) -> None:
    for verb in ("deploy", "withdraw"):
        refused = anna.understudy(verb, "--tester", anna.name)
        assert refused.returncode == 1
        assert f"hint: sudo understudy {verb} --tester {anna.name}" in refused.stderr


def test_a_range_that_a_tester_has_used_up_is_that_testers_affair(anna: User) -> None:
    understudy("deploy", "--tester", anna.name)
    with Run(port_range=PortRange(20000, 20063)) as run:
        [mine] = run.claim_ports("tcp")
        ports = [word for number in range(12) for word in ("--port", f"p{number}/udp")]
        hold = (*HOLD, "--ports-from", "20000-20063", *ports)
        failed = anna.understudy(*hold, "--count", "4")
        assert failed.returncode == 1
        assert "of its 4 blocks 4 are claimed (3 by utest-anna, 1 by root)" in failed.stderr
        assert anna.guards() == ""
        assert claims([mine - mine % 16])
        [more] = run.claim_ports("tcp")
        assert more - more % 16 in range(20000, 20064)


def test_doctor_names_what_a_tester_lacks_and_deploy_gives_it(anna: User) -> None:
    checks = ("lingering", "bounds", "port-range")
    only = [word for check in checks for word in ("--only", check)]

    def levels() -> dict[str, str]:
        said = json.loads(anna.understudy("doctor", *only, "--json").stdout)
        helps = [one["help"] for one in said if one["level"] == "warning"]
        assert all(help_ == f"sudo understudy deploy --tester {anna.name}" for help_ in helps)
        return {one["check"]: one["level"] for one in said}

    assert levels() == {"lingering": "warning", "bounds": "warning", "port-range": "ok"}
    understudy("deploy", "--tester", anna.name)
    said = json.loads(anna.understudy("doctor", *only, "--json").stdout)
    found = {one["check"]: one for one in said}
    assert found["lingering"]["level"] == "ok"
    assert found["port-range"]["details"]["reserved"] is True
    assert found["bounds"]["details"]["bounds"]["TasksMax"] not in ("infinity", "")
