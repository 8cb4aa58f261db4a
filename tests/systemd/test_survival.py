"""SIGKILL of a run's owner leaves nothing, whenever it comes and whoever was forked before."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic

import pytest
from tests.systemd.support import SERVICES, SOON_S, left_since, traces

ROUNDS = int(os.environ.get("UNDERSTUDY_SURVIVAL_ROUNDS", "20"))
"""How many owners are killed at a random moment."""

STRIDE = int(os.environ.get("UNDERSTUDY_SURVIVAL_STRIDE", "1"))
"""An owner kills itself at every so-manieth step; more than 1 for a quick look."""

AT_ONCE = 5
STEPS_MIN = 30

MANAGERS = [
    pytest.param(
        "dbus",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("pystemd") is None, reason="pystemd is not installed"
        ),
    ),
    "commands",
]


@contextmanager
def owner(last: int, prefer: str) -> Iterator[subprocess.Popen[str]]:
    """A mortal owner in a session of its own, by which its forked children are found."""
    mortal = Path(__file__).with_name("mortal.py")
    process = subprocess.Popen(
        [sys.executable, str(mortal), str(last), prefer, str(SERVICES)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if session(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def session(leader: int) -> set[str]:
    """The processes of a session, by name, without those that are dead."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, owner_ = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(owner_) == leader and state not in "ZX":
            found.add(path.parent.name)
    return found


@pytest.fixture(scope="module", params=MANAGERS)
def steps(request: pytest.FixtureRequest) -> tuple[str, int]:
    """How to talk to the manager, and how many steps an owner then has."""
    with owner(0, request.param) as process:
        # Its forked children hold its pipes open: a line, not the end.
        assert process.stdout is not None
        count = process.stdout.readline()
        assert process.wait(SOON_S) == 0
    return request.param, int(count)


def test_owner_killed_at_every_step_leaves_nothing(steps: tuple[str, int]) -> None:
    prefer, count = steps
    assert count > STEPS_MIN
    before = traces()
    survived: list[int] = []
    orphans = 0
    deaths = range(1, count + 1, STRIDE)
    for first in range(0, len(deaths), AT_ONCE):
        batch = [(last, None) for last in deaths[first : first + AT_ONCE]]
        lived, left = kill(batch, prefer, before)
        survived += lived
        orphans += left
    # Where the manager is asked again and again, a step more or less is chance.
    assert all(last > count - 10 for last in survived), survived
    assert orphans > len(deaths) // 2


def test_owner_killed_at_random_leaves_nothing() -> None:
    before = traces()
    chance = random.Random(65)
    delays = [chance.uniform(0.1, 1.5) for _ in range(ROUNDS)]
    orphans = 0
    for first in range(0, ROUNDS, AT_ONCE):
        owners = [(-1, delay) for delay in delays[first : first + AT_ONCE]]
        survived, left = kill(owners, "any", before)
        assert survived == []
        orphans += left
    assert orphans > 0


def kill(
    owners: Sequence[tuple[int, float | None]], prefer: str, before: set[str]
) -> tuple[list[int], int]:
    """Let some owners die, and demand that only their forked children are left.

    Args:
        owners: For each the step at which it kills itself, and the delay after which it is killed.
        prefer: How they talk to the manager.
        before: What there was before.

    Returns:
        The steps of those that lived to their end, and how many forked children lived on.
    """
    survived = []
    with ExitStack() as stack:
        batch = [(stack.enter_context(owner(last, prefer)), last, delay) for last, delay in owners]
        began = monotonic()
        for process, last, delay in sorted(batch, key=lambda item: item[2] or 0):
            if delay is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, began + delay - monotonic()))
                process.kill()
            if process.wait(SOON_S) != -signal.SIGKILL:
                survived.append(last)
        assert left_since(before) == set(), f"owners killed at {owners}"
        return survived, sum(len(session(process.pid)) for process, *_ in batch)
