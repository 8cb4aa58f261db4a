"""Who comes first on a busy host: production before all, ``--background`` after all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.systemd.support import MEDIAMTX, ROOT, show, systemctl, understudy

from understudy.model import Engine
from understudy.ports.cgroups import mount
from understudy.run import Run

BACKGROUND = (19, os.SCHED_IDLE, "idle")
USUAL = (0, os.SCHED_OTHER, "best-effort")

_SWITCH = Path("/proc/sys/kernel/sched_autogroup_enabled")
AUTOGROUPS = _SWITCH.exists() and _SWITCH.read_text() == "1\n"

SERVER = [
    *("/usr/bin/perl", "-e"),
    "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);"
    "bind(S, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die; listen(S, 9); sleep 999",
    "{port.http}",
]

ITSELF = """
import os, subprocess
io = subprocess.run(["ionice"], capture_output=True, text=True).stdout.split(":")[0].strip()
print(os.nice(0), os.sched_getscheduler(0), io)
"""


def standing(pid: int) -> tuple[int, int, str]:
    """How a process is scheduled: nice value, policy, and its class of input and output."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[38]) == os.sched_getscheduler(pid)
    if fields[38] == str(os.SCHED_IDLE) and AUTOGROUPS:
        assert Path(f"/proc/{pid}/autogroup").read_text().endswith("nice 19\n")
    said = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(fields[16]), int(fields[38]), said.stdout.split(":")[0].strip()


def not_in_force(name: str) -> set[str]:
    [shown] = json.loads(understudy("show", name, "--json").stdout)
    return {one["setting"] for one in shown["not_in_force"]}


@pytest.mark.parametrize("engine", Engine)
def test_in_the_background_an_instance_is_last_in_line(engine: Engine) -> None:
    with Run(background=True, engine=engine) as run:
        ours = run.spawn(exec=SERVER, ports=["http"])
        usual = run.spawn(exec=SERVER, ports=["http"], background=False)
        assert standing(ours.pid) == BACKGROUND
        assert standing(usual.pid) == USUAL
        ours.restart()
        assert standing(ours.pid) == BACKGROUND
        there = "cpu" in Path(mount(), "cgroup.controllers").read_text().split()
        lacking = {"CPUWeight=idle"} if not there else set()
        asked_for = {"Nice=19", "CPUSchedulingPolicy=idle", "IOSchedulingClass=idle"}
        seen = not_in_force(f"{run.id}-{ours.number}")
        assert seen & {"CPUWeight=idle", *asked_for} >= lacking
        assert not seen & asked_for
        if AUTOGROUPS and ROOT:
            # Taken back behind its back, it is seen.
            Path(f"/proc/{ours.pid}/autogroup").write_text("0")
            assert "CPUSchedulingPolicy=idle" in not_in_force(f"{run.id}-{ours.number}")


def test_what_publishes_a_private_instance_is_last_in_line_too() -> None:
    with Run() as run:
        one = run.spawn(exec=SERVER, ports=["http:8003"], network="private", background=True)
        assert standing(one.pid) == BACKGROUND
        proxy = f"understudy-publish@{run.id}-{one.number}-http.service"
        assert standing(int(show(proxy, "MainPID")["MainPID"])) == BACKGROUND
        folder = run.manager.unit_dir / f"{proxy}.d"
        assert folder.is_dir()
        one.stop()
        assert not folder.exists()


@pytest.mark.parametrize(
    "before",
    [
        ("run",),
        ("run", "--network", "private"),
        ("run", "--network", "private:behind"),
        ("spawn", "--exec", "sleep 999"),
    ],
)
def test_so_is_a_command(before: tuple[str, ...]) -> None:
    line = [*before, "--background", "--", sys.executable, "-c", ITSELF]
    assert understudy(*line).stdout.split() == [str(word) for word in BACKGROUND]


def test_a_script_of_background_instances_does_the_same(tmp_path: Path) -> None:
    options = ("spawn", "--exec", "sleep 999", "--background", "--lifetime", "99", "--dry-run")
    script = understudy(*options).stdout
    path = tmp_path / "script"
    path.write_text(script)
    subprocess.run(["sh", path], check=True)
    unit = re.findall(r"understudy-sleep@\S+?\.service", script)[0]
    assert standing(int(show(unit, "MainPID")["MainPID"])) == BACKGROUND
    systemctl("stop", script.split()[-1])


@pytest.mark.skipif(not ROOT, reason="production's own units are root's to install")
def test_production_outlives_its_instances(production: Mapping[str, str]) -> None:
    with Run() as run:
        one = run.spawn("mediamtx", values=MEDIAMTX)
        score = Path(f"/proc/{one.pid}/oom_score_adj").read_text()
        weights = show(one.unit, "CPUWeight", "IOWeight", "MemoryLow")
        assert int(score) == 500
    assert not {"500", str(256 << 20)} & set(weights.values())
    told = {
        one["details"]["unit"]: {each["setting"] for each in one["details"]["not_in_force"]}
        for one in json.loads(understudy("doctor", "--only", "precedence", "--json").stdout)
    }
    # Doctor says just what does not hold, such as in a container that may not protect anybody.
    group = Path(mount(), "system.slice")
    for unit in production.values():
        shown = show(unit, "MainPID", "CPUWeight", "IOWeight")
        assert (shown["CPUWeight"], shown["IOWeight"]) == ("500", "500")
        points = int(Path(f"/proc/{shown['MainPID']}/oom_score_adj").read_text())
        assert points == (0 if "OOMScoreAdjust=-500" in told[unit] else -500)
        assert ("CPUWeight=500" in told[unit]) != (group / unit / "cpu.weight").exists()
        assert ("IOWeight=500" in told[unit]) != (group / unit / "io.weight").exists()
        assert any(one.startswith("MemoryLow=") for one in told[unit])
