"""The benchmarks run and print their ratios; what these come to is docs/benchmarks.md's affair."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.systemd.support import require

BENCHES = Path(__file__).parent.parent / "bench"
LIMIT_S = 120.0


def printed(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ratios(text: str) -> dict[str, float]:
    return {name: float(ratio) for name, ratio in re.findall(r"^(.+): (\d+\.\d+)", text, re.M)}


def test_spawn_is_timed_beside_every_other_way() -> None:
    require(Path("/usr/bin/redis-server").exists(), "redis-server is not installed")
    text = printed("bench_spawn.py", "2")
    assert text.count("2 rounds") == 4  # two commands, two definitions
    for other in ("Popen, 1 ms", "its unit, by hand", "systemd-run, 0.1 s"):
        assert ratios(text)[f"understudy, in a run / {other}"] > 0


def test_many_are_timed_beside_a_bare_loop() -> None:
    pytest.importorskip("pystemd")
    text = printed("bench_many.py", "3", "1")
    assert text.count("3 x ") == 2
    assert set(ratios(text)) == {"start", "end"}


def test_help_is_timed_beside_click() -> None:
    assert ratios(printed("bench_help.py", "2"))["understudy --help / import click"] > 0


def test_forty_tests_of_an_instance_each_all_pass_and_leave_nothing() -> None:
    pytest.importorskip("xdist")
    text = printed("bench_endurance.py", "40", "1")
    assert "\nfailures: 0 (target: 0)\nleft over: 0 (target: 0)\n" in text


def test_what_was_held_against_instances_is_counted() -> None:
    text = printed("bench_objections.py", "2", "2", "2")
    assert re.search(r"^port conflicts, find_free_port\(\): [0-4] of 4 instances", text, re.M)
    assert "port conflicts, claimed by understudy: 0 of 4 instances (0.0 %)\n" in text
    assert "orphans of a killed owner, subprocess: 10 of 10 processes live on\n" in text
    assert "orphans of a killed owner, understudy: 0 of 10 instances leave anything" in text
    same, settings = map(int, re.findall(r"^parity: (\d+) of (\d+) settings", text, re.M)[0])
    assert settings / 2 < same < settings


def test_production_is_timed_beside_busy_instances() -> None:
    text = printed("bench_background.py", "2", "1", "20")
    rows = [line.split()[0] for line in text.splitlines()[2:]]
    assert rows == ["none", "background", "plain"]
