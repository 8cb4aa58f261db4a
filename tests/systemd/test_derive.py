"""Derived instances in the eyes of a real manager."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.systemd.support import ROOT, eventually, show

from understudy.instance import Instance
from understudy.model import Engine
from understudy.run import Run

DEFINITION = """\
description = "a server with all that a production unit may have"
production = "demanding.service"
[values]
root = "/"
"""

# Whatever a user manager refuses, and whatever only production may have.
DEMANDING = """\
[Unit]
Description=a demanding server
Wants=network-online.target no-such.service

[Service]
Type=exec
ExecStartPre=/bin/false
ExecStart=/usr/bin/env python3 -c "import time; print(%s, flush=True); time.sleep(1000)"
ExecStop=/bin/false
WorkingDirectory={{ root }}
Environment=OWN=production "KEPT=two words"
EnvironmentFile=/etc/shadow
LoadCredential=secret:/etc/shadow
User=mail
Group=video
SupplementaryGroups=audio video
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_BIND_SERVICE
SecureBits=keep-caps
DeviceAllow=char-video4linux rw
PIDFile=/run/demanding.pid
Sockets=no-such.socket
StateDirectory=demanding
ReadWritePaths=/var/lib/no-such
LogNamespace=demanding
Nice=-5
CPUSchedulingPolicy=rr
CPUSchedulingPriority=5
IOSchedulingClass=realtime
OOMScoreAdjust=-900
LimitNOFILE=1000000
Restart=always
RestartForceExitStatus=0
TimeoutStopSec=90
KillMode=process
PrivateDevices=yes
PrivateIPC=yes
PrivateTmp=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
TemporaryFileSystem=/srv
RemoveIPC=yes
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
"""

AWKWARD = {
    "OWN": "test",
    "EMPTY": "",
    "SPACES": "  two  words ",
    "QUOTES": """a "b" 'c' `d`""",
    "BACKSLASH": "a\\nb\\",
    "SPECIFIERS": "%n %% %t %",
    "VARIABLES": "$HOME ${HOME} $$",
    "COMMENT": "# ; not one",
    "TAB": "a\tb",
    "ALPHABETS": "ä ☃ 𝄞",
}

VOLATILE = (
    *("ActiveEnter", "AssertTimestamp", "ConditionTimestamp", "InactiveExit", "StateChange"),
    *("CPUUsage", "ControlGroupId", "ExecMain", "GID", "IO", "IP", "InvocationID", "MainPID"),
    *("Memory", "EffectiveMemory", "EffectiveTasks", "TasksCurrent", "UID"),
    # How the unit came to the manager.
    *("DropInPaths", "FragmentPath", "Transient", "UnitFile"),
)
"""Beginnings of the names of properties that differ between two lives of one unit."""


@pytest.fixture
def demanding(tmp_path: Path) -> Path:
    """A folder of definitions with the service ``demanding``."""
    folder = tmp_path / "demanding"
    folder.mkdir()
    (folder / "service.toml").write_text(DEFINITION)
    (folder / "demanding.service.j2").write_text(DEMANDING.replace("%s", "'up'"))
    return tmp_path


@pytest.fixture(params=["/root" if ROOT else str(Path.home()), "/tmp"])
def private_directory(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory where ProtectHome= or PrivateTmp= hides everything."""
    with tempfile.TemporaryDirectory(dir=request.param, prefix="understudy-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return {name: value for name, _, value in (row.partition("=") for row in text.split("\0"))}


@pytest.mark.parametrize("engine", Engine)
def test_a_demanding_unit_runs_as_an_instance(demanding: Path, engine: Engine) -> None:
    with Run(units=demanding, engine=engine) as run:
        instance = run.spawn("demanding", env=AWKWARD)
        found = environment(instance.pid)
        assert {name: found.get(name) for name in AWKWARD} == AWKWARD
        assert found["KEPT"] == "two words"
        assert eventually(lambda: "up" in instance.journal())
        assert Path(f"/proc/{instance.pid}/cwd").readlink() == instance.directory
        shown = show(instance.unit, "Nice", "Restart", "KillMode", "EnvironmentFiles", "User")
        own = f"{instance.directory}.files/secrets.env (ignore_errors=no)"
        assert shown["EnvironmentFiles"] == own
        assert (shown["Nice"], shown["Restart"], shown["KillMode"]) == ("0", "no", "mixed")
        expected = f"us-{instance.run}-{instance.number}" if ROOT else ""
        assert shown["User"] == expected


def described(instance: Instance) -> dict[str, list[str]]:
    """All that a manager says of an instance, but for what no two lives have in common."""
    return {
        # The command's times and PID are volatile; lists have no order.
        name: sorted(value.replace(instance.run, "RUN").partition(" ; start_time=")[0].split())
        for name, value in show(instance.unit).items()
        if not name.startswith(VOLATILE)
    }


def test_both_engines_give_the_manager_the_same_unit(demanding: Path) -> None:
    with (
        Run(units=demanding, engine=Engine.FILES) as files,
        Run(units=demanding, engine=Engine.SYSTEMD_RUN) as transient,
    ):
        by_file = described(files.spawn("demanding", env=AWKWARD))
        by_call = described(transient.spawn("demanding", env=AWKWARD))
    assert len(by_file) > 200
    assert by_call == by_file


def test_a_value_in_a_hidden_place_is_seen_by_the_instance(
    demanding: Path, private_directory: Path
) -> None:
    (demanding / "demanding/instance.conf").write_text(
        "[Service]\nWorkingDirectory={{ root }}\nExecStart=\n"
        "ExecStart=/bin/sh -c 'cat seen; exec sleep 1000'\n"
    )
    (private_directory / "seen").write_text("the checkout\n")
    with Run(units=demanding) as run:
        instance = run.spawn("demanding", values={"root": private_directory})
        assert eventually(lambda: "the checkout" in instance.journal())
