"""The demo, in beds: production's standard ports are free there, whoever has them here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from understudy.bed import Bed, beds

pytestmark = [
    pytest.mark.bed,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("systemd-nspawn") is None,
        reason="needs root and systemd-nspawn",
    ),
]

LIMIT_S = 120.0
USER = "understudy-guest"
DEMO = [sys.executable, "-m", "understudy", "demo"]

STANDARD = {"mediamtx": {9997, 8554, 8888, 8889}, "camera-service": {8002, 8003}}

STOP_IN_THE_MIDDLE = """
import signal, subprocess, sys
demo = subprocess.Popen([sys.executable, "-m", "understudy", "demo"],
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
for line in demo.stdout:
    if line.startswith("\N{CHECK MARK}"):
        break
demo.send_signal(getattr(signal, sys.argv[1]))
print(demo.stdout.read().splitlines()[-1], demo.wait())
"""
TAKE_A_PORT = """
import socket, subprocess, sys
with socket.create_server(("127.0.0.1", 8003)):
    sys.exit(subprocess.call([sys.executable, "-m", "understudy", "demo"]))
"""
LOOK_AROUND = """
systemctl --user list-units --all --plain --no-legend 'demo-*' 'understudy-*'
find "$XDG_RUNTIME_DIR/systemd/user" "$XDG_RUNTIME_DIR"/understudy* -type f
ss -Hltn
"""

Play = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("/")  # nothing of this machine is bound
        up = Bed.up(owner_pid=os.getpid())
    with up:
        entry, env = up.command(["useradd", "--create-home", USER], cwd=Path("/"))
        subprocess.run(entry, env=env, check=True)
        yield up


@pytest.fixture
def as_user(bed: Bed) -> Play:
    """Run a command on the user manager of somebody in the bed."""

    def play(*argv: str) -> subprocess.CompletedProcess[str]:
        path = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        entry, env = bed.command(argv, user=USER, cwd=Path("/"), env=path)
        return run(entry, env)

    return play


def run(argv: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def left_for(as_user: Play) -> str:
    return as_user("sh", "-c", LOOK_AROUND).stdout


def check_facts(facts: dict[str, Any]) -> None:
    assert facts["held"] is True, facts["steps"]
    assert [step["held"] for step in facts["steps"]] == [True] * 5
    for production, numbers in zip(facts["production"], STANDARD.values(), strict=True):
        assert len(production["invocation_id"]) == 32
        assert numbers <= set(production["ports"].values())

    lead = facts["production"][0]["unit"]
    instances = facts["instances"]
    own = [one["unit"] for one in instances if one["service"] == "mediamtx"]
    partners = [one["talks_to"] for one in instances if one["service"] != "mediamtx"]
    assert sorted(partners) == sorted([lead] * 8 + own)
    assert len(own) == 2
    given = [number for one in instances for number in one["ports"].values()]
    assert len(given) == len(set(given))
    assert "address already in use" in facts["steps"][1]["measured"]


def own_beds() -> set[str]:
    """The beds that got no name from anybody, as the demo's; others may come and go meanwhile."""
    return {bed.name for bed in beds() if bed.name.startswith("bed-")}


def test_root_plays_in_a_bed_of_its_own() -> None:
    before = own_beds()
    done = run([*DEMO, "--json"])
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    check_facts(facts)
    assert "bed" in facts["place"]
    assert [one["unit"] for one in facts["production"]] == [
        "mediamtx.service",
        "camera-service.service",
    ]
    assert own_beds() == before


def test_user_plays_on_a_manager_of_their_own_and_nothing_is_left(as_user: Play) -> None:
    before = left_for(as_user)
    done = as_user(*DEMO, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    check_facts(facts)
    assert all(one["unit"].startswith("demo-") for one in facts["production"])
    assert left_for(as_user) == before


def test_screen_shows_every_step_without_colour_in_a_pipe(as_user: Play) -> None:
    done = as_user(*DEMO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("✓") == 5
    assert done.stdout.count("understudy-camera-service-activated@") == 10
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupt_leaves_nothing(as_user: Play, name: str) -> None:
    before = left_for(as_user)
    done = as_user(sys.executable, "-c", STOP_IN_THE_MIDDLE, name)
    assert done.stdout.strip() == "Interrupted. 130", done.stderr
    assert left_for(as_user) == before


def test_taken_port_is_named_and_nothing_is_started(as_user: Play) -> None:
    done = as_user(sys.executable, "-c", TAKE_A_PORT)
    assert done.returncode == 1
    assert "Cannot start production: port 8003 is held by " in done.stderr
    assert f"user {USER}" in done.stderr
    assert "hint: Play it in a bed" in done.stderr
    assert done.stdout == ""


def test_production_that_dies_is_a_failure_with_its_log() -> None:
    done = run(DEMO, {**os.environ, "UNDERSTUDY_MEDIAMTX": "/bin/false"})
    assert done.returncode == 1
    assert "✗ Production runs on its standard ports" in done.stdout
    assert "status=1/FAILURE" in done.stdout
    assert "Did not hold: Production runs" in done.stdout
    assert "✓" not in done.stdout


def test_unknown_mediamtx_is_named() -> None:
    done = run(DEMO, {**os.environ, "UNDERSTUDY_MEDIAMTX": "/no/such/mediamtx"})
    assert done.returncode == 1
    assert "Cannot run '/no/such/mediamtx'" in done.stderr
