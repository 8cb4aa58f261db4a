"""Production in the fixtures: leased, with paths of each test's own, and compared at the end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.systemd.test_plugin import account, run, suite

from understudy.api import Api
from understudy.lead import production as find
from understudy.services import find as find_service

pytest_plugins = ["pytester"]

__all__ = ["suite"]

API = "http://127.0.0.1:9997"

BODY = """
from understudy.leases import holders

UNIT = {unit!r}


@pytest.fixture
def lead(understudy):
    return understudy.production("mediamtx", unit=UNIT)

def ours(lead):
    return [name for name in lead.api.configured() if name.startswith("r") and "/" in name]

def had(lead):
    return [(one.who, one.exclusive, one.holds) for one in holders(lead.lease_key)]
"""


@pytest.fixture
def unit(production: dict[str, str]) -> Iterator[str]:
    """Production's unit; nothing of the test may be left on its server."""
    before = Api(API).configured().keys()
    find("mediamtx", unit=production["mediamtx"])  # pytester forgets what is imported after it
    yield production["mediamtx"]
    assert Api(API).configured().keys() == before


def test_it_is_leased_for_a_test_with_paths_that_go_with_it(
    unit: str, suite: pytest.Pytester
) -> None:
    result = run(
        suite,
        BODY.format(unit=unit)
        + """
def test_forgets(lead, understudy):
    path = lead.path("cam0")
    assert path.name.split("/")[1:] == ["test_forgets", "cam0"]
    assert had(lead) == [("pytest", False, True)]
    understudy.run  # from here on the run's id is the first part
    assert lead.path("cam1").name == understudy.run.id + "/test_forgets/cam1"
    assert len(ours(lead)) == 2

def test_later(lead):
    assert ours(lead) == []
    assert had(lead) == [("pytest", False, True)]

def test_of_the_session(understudy_session, understudy):
    lead = understudy_session.production("mediamtx", unit=UNIT)
    assert "/session/" in lead.path("cam0").name
    with pytest.raises(Exception, match="this process shares it already"):
        understudy.production("mediamtx", unit=UNIT, exclusive=True)

def test_that_fails(lead, understudy_session):
    assert len(ours(lead)) == 1, "the session's"
    lead.path("cam1")
    assert False
""",
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [f"*- understudy: mediamtx ({unit}) -*", "state: active (running), PID *"]
    )
    told = result.stdout.str().partition(f"understudy: mediamtx ({unit})")[2]
    assert re.search(r"^log of this test:( nothing was written)?$", told, re.MULTILINE)
    assert account(result).startswith("understudy: 0 instances started, 0 left over, production as")


def test_who_is_alone_is_alone_and_may_reload(unit: str, suite: pytest.Pytester) -> None:
    """Workers with paths of their own are no difference, what an exclusive test changes is none."""
    pytest.importorskip("xdist")
    try:
        result = run(
            suite,
            BODY.format(unit=unit)
            + """
@pytest.mark.parametrize("number", range(4))
def test_shares(lead, number):
    mine = {lead.path(name).name for name in ("a", "b")}
    assert mine <= set(ours(lead))
    assert {one for one in ours(lead) if f"test_shares-{number}" in one} == mine

@pytest.mark.parametrize("number", range(2))
def test_is_alone(understudy, number):
    lead = understudy.production("mediamtx", unit=UNIT, exclusive=True)
    assert ours(lead) == []
    mine = lead.path("alone").name
    assert ours(lead) == [mine]
    (one,) = [one for one in had(lead) if one[2]]
    assert one == ("pytest-" + os.environ["PYTEST_XDIST_WORKER"], True, True)
    if number:
        lead.api.add("reloaded")
""",
            "-n3",
        )
    finally:
        Api(API).delete("reloaded")
    result.assert_outcomes(passed=6)
    assert re.search(
        r", production as before, as expected: \S+: API path reloaded is new, changed between \S+ "
        r"and \S+( \(not seen: .*\))?$",
        account(result),
    )


def test_what_others_keep_is_an_error_and_no_skip(unit: str, suite: pytest.Pytester) -> None:
    body = BODY.format(unit=unit)
    body += "def test_it(understudy):\n    understudy.production('mediamtx', unit=UNIT, **HOW)\n"
    body = body.replace("**HOW", "lease_timeout_s=0.3")
    waits = f"waiting for mediamtx: exclusively held by others {os.getpid()} of user"
    with closing(find("mediamtx", unit=unit, exclusive=True, who="others")):
        alone = run(suite, body)
        worker = run(suite, body, "-n1")
    for result in (alone, worker):
        result.assert_outcomes(failed=1)
        result.stdout.re_match_lines(
            [r"E   understudy.errors.LeaseError: Cannot lease 'mediamtx': after 0.3 s still excl"]
        )
    alone.stdout.fnmatch_lines([f"understudy: {waits} *"])
    worker.stderr.fnmatch_lines([f"understudy: pytest-gw0: {waits} *"])


def test_a_difference_fails_the_session_and_is_not_another_ones(
    unit: str, suite: pytest.Pytester
) -> None:
    body = BODY.format(unit=unit)
    body += "def test_it(lead):\n    lead.api.delete('stray')\n    lead.api.add('stray')\n"
    api = Api(API)
    try:
        result = run(suite, body)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.re_match_lines(
            [
                r"understudy: production is not as it was: \S+: API path stray is new, changed "
                r"between \d\d:\d\d:\d\d and "
            ]
        )
        api.delete("stray")
        # As long as others share it, it may be theirs.
        with find("mediamtx", unit=unit) as lead:
            result = run(suite, body)
            assert result.ret == pytest.ExitCode.OK
            result.stdout.re_match_lines(
                [rf"understudy: note: \S+: API path stray is new, .* \(shared by \S+ {os.getpid()}"]
            )
            assert lead.status().active_state == "active"
    finally:
        api.delete("stray")


def test_a_second_copy_is_told_once(suite: pytest.Pytester, open_directory: Path) -> None:
    program = open_directory / find_service("mediamtx").name
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "1000"]) as stray:
        try:
            result = run(suite, "def test_it(one): pass")
        finally:
            stray.kill()
    result.assert_outcomes(passed=1)
    told = [line for line in result.outlines if f"PID {stray.pid}," in line]
    assert len(told) == 1
    assert told[0].startswith("understudy: note: a second copy of mediamtx, beside mediamtx.serv")
    assert "end it: " in told[0]
