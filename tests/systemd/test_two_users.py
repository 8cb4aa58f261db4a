"""Whole pytest runs of two users on one production server at once, and deaths in every phase."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.systemd import suites
from tests.systemd.support import ROOT, eventually

from understudy.lead import Production
from understudy.lead import production as find
from understudy.leases import holders

WORKERS = 8
LIMIT_S = 300.0

SHARING = """
import json, os, select, time
from pathlib import Path
import pytest

@pytest.fixture(scope="session", autouse=True)
def both_are_there():
    Path(f"{os.geteuid()}.here").touch()
    deadline = time.monotonic() + 200
    while len([*Path().glob("*.here")]) < 2:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.01)

def told(lead, began, **words):
    user, name = os.geteuid(), os.environ["PYTEST_CURRENT_TEST"].split("::")[1].split(" ")[0]
    row = {"user": user, "began": began, "ended": time.monotonic(), **words}
    Path(f"{user}-{name}.json").write_text(json.dumps(row))

def ours(lead):
    return {name for name in lead.api.configured() if "/test_" in name}

@pytest.mark.parametrize("number", range(8))
def test_shares(understudy, number):
    lead = understudy.production("mediamtx", lease_timeout_s=200)
    began = time.monotonic()
    mine = {lead.path(name).name for name in ("cam0", "cam1")}
    assert mine <= ours(lead)
    told(lead, began, names=sorted(mine))

@pytest.mark.parametrize("number", range(2))
def test_is_alone(understudy, number):
    lead = understudy.production("mediamtx", exclusive=True, lease_timeout_s=200)
    began = time.monotonic()
    assert ours(lead) == set()
    mine = lead.path("cam0").name
    assert ours(lead) == {mine}
    told(lead, began, names=[mine])
"""

DYING = """
import os, signal, socket, subprocess, sys
import pytest
from understudy import api, leases

UNIT = os.environ["LEAD"]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def then_die(owner, name, monkeypatch):
    call = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **words: (call(*args, **words), die()))

PUBLISHER = '''
import sys
from tests.systemd.test_paths import Publisher
one = Publisher(sys.argv[1])
print("publishes", flush=True)
one.connection.settimeout(60)
one.file.read()
'''

def published(path):
    child = subprocess.Popen([sys.executable, "-c", PUBLISHER, path.name], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"publishes\\n"

@pytest.mark.parametrize(
    "phase", ["before the lease", "waiting", "leased", "path added", "path in use", "removing"]
)
def test_dies(understudy, phase, monkeypatch):
    if phase == "before the lease":
        monkeypatch.setattr(leases, "lease", die)
    if phase == "waiting":
        understudy._worker.show = die
    if phase == "path added":
        then_die(api.Api, "add", monkeypatch)
    lead = understudy.production("mediamtx", unit=UNIT, exclusive=phase == "waiting")
    if phase == "leased":
        die()
    published(lead.path("cam0"))
    if phase == "path in use":
        die()
    then_die(api.Api, "kick", monkeypatch)
    lead.close()

def test_fails(understudy):
    understudy.production("mediamtx", unit=UNIT)
    assert False
"""


@pytest.fixture
def lead(production: dict[str, str]) -> Iterator[Production]:
    """Production, whose server must be as it was afterwards."""
    with closing(find("mediamtx", unit=production["mediamtx"])) as found:
        before = found.api.configured().keys()
        yield found
        assert found.api.configured().keys() == before


def write(folder: Path, text: str) -> Path:
    """A suite that everybody can run, and that can write beside itself."""
    folder.chmod(0o1777)
    (folder / "test_it.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:asyncio\n")
    return folder


def test_two_runs_of_two_users_share_it_and_are_alone_with_it(
    lead: Production, guest: suites.User, open_directory: Path
) -> None:
    """Paths are never mixed, and while one test is alone no other has anything."""
    folder = write(open_directory, SHARING)
    words = suites.pytest_words(f"-n{WORKERS}", "--understudy-require")
    root = suites.User(name="root", prefix=["env"], runtime=Path("/run"), systemctl=["systemctl"])
    running = [one.start(*words, cwd=folder) for one in (root, guest)]
    said = [one.communicate(timeout=LIMIT_S)[0] for one in running]
    for process, output in zip(running, said, strict=True):
        assert process.returncode == 0, output
        assert "10 passed" in output
        assert ", 0 left over, production as before" in output
    rows = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    assert len(rows) == 20
    assert len({row["user"] for row in rows}) == 2
    names = [name for row in rows for name in row["names"]]
    assert len(names) == len({*names}) == 36
    alone = [row for row in rows if len(row["names"]) == 1]
    assert len(alone) == 4
    for one in alone:
        others = [row for row in rows if row is not one]
        assert all(row["ended"] <= one["began"] or row["began"] >= one["ended"] for row in others)
    assert holders(lead.lease_key) == []


def test_a_worker_that_dies_in_any_phase_leaves_nothing(
    lead: Production, open_directory: Path, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("xdist")
    folder = write(open_directory, DYING)
    variables = ["env", f"LEAD={lead.unit}", f"PYTHONPATH={suites.CHECKOUT}"]
    me = suites.User(name="me", prefix=[], runtime=Path(), systemctl=[])
    user: suites.User = request.getfixturevalue("guest") if ROOT else me
    if not ROOT:
        variables += [f"XDG_RUNTIME_DIR={os.environ['XDG_RUNTIME_DIR']}"]
    with lead.lease():
        code, output = user.run(*variables, *suites.pytest_words("-n2"), cwd=folder)
        assert code == 1, output
        for phase in (
            "before the lease",
            "waiting",
            "leased",
            "path added",
            "path in use",
            "removing",
        ):
            assert f"crashed while running 'test_it.py::test_dies[{phase}]'" in output, output
        assert "7 failed" in output, output
        if ROOT:  # the guest may not read the system's journal, and is told what helps
            assert f"log of this test: (the log of {lead.unit} may not be read by" in output
            assert ", 0 left over, production as before" in output
        # Nobody but this process has a lease, or waits for one.
        (mine,) = eventually(lambda: [one for one in [holders(lead.lease_key)] if len(one) == 1])[0]
        assert mine.pid == os.getpid()
    lead.path("next").close()
    assert not [one for one in lead.api.configured() if "/test_dies" in one]
    assert lead.api.sessions() == []
