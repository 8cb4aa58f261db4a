"""The end of a test's instances: what goes on behind the next test, and what is waited for."""

from __future__ import annotations

import pytest
from tests.systemd.support import ROOT
from tests.systemd.test_plugin import CONFTEST, HEAD, SERVER, account, run, suite

__all__ = ["suite"]  # a fixture

pytest_plugins = ["pytester"]

LINGERER = (
    "$SIG{TERM} = sub { until (-e 'go') { select(undef, undef, undef, 0.01) } exit };" + SERVER
)
"""A server that ends when it is let go; else it is killed, seconds later."""

LINGERING = f"""
SHOW = ["systemctl", *{[] if ROOT else ["--user"]!r}, "show", "--value", "--property=ActiveState"]
LINGERING = []


def spawn_lingering(understudy, ports=("main",), **more):
    command = ["/usr/bin/perl", "-e", {LINGERER!r}, "{{port.main}}"]
    LINGERING[:] = [understudy.spawn(exec=command, ports=ports, **more)]


def let_go(after_s=0.0):
    behind = "&" if after_s else ""
    os.system(f"(sleep {{after_s}}; touch {{LINGERING[0].directory}}/go) {{behind}}")


def state():
    show = [*SHOW, LINGERING[0].unit]
    return subprocess.run(show, capture_output=True, text=True).stdout.strip()


def note(what):
    with open("seen", "a") as file:
        print(what, state(), file=file)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    if LINGERING:
        note(item.name)


@pytest.fixture
def before():
    yield
    if LINGERING:
        note("before")


@pytest.fixture
def finalized(request):
    request.addfinalizer(lambda: note("finalized"))


@pytest.fixture(scope="module")
def wider():
    yield
    note("wider")
"""
"""What starts one, and notes whether it is there still when a test or a fixture ends."""

SUITE = """
from conftest import let_go, spawn_lingering, state, LINGERING

def test_soon(tmp_path, monkeypatch, understudy):
    spawn_lingering(understudy)

def test_meanwhile(one):
    assert ask(one) == one.pid
    assert state() == "deactivating"
    let_go()
    LINGERING.clear()

def test_made_from(before, understudy):
    spawn_lingering(understudy)
    let_go(0.3)

def test_made_from_another(finalized, understudy):
    spawn_lingering(understudy)
    let_go(0.3)

def test_beside(understudy, before):
    spawn_lingering(understudy)

def test_meanwhile_too():
    let_go()
    LINGERING.clear()

def test_fixed_port(understudy):
    with understudy.run.claim_ports("tcp") as (number,):
        pass
    spawn_lingering(understudy, ports={"main": number})
    let_go(0.3)

def test_network(understudy):
    spawn_lingering(understudy, network="private:lab")
    let_go(0.3)

def test_last(wider, understudy):
    spawn_lingering(understudy)
    let_go(0.3)
"""


def seen(suite: pytest.Pytester) -> dict[str, str]:
    lines = (suite.path / "seen").read_text().splitlines()
    return dict(line.split() for line in lines)


@pytest.mark.newest
def test_what_may_be_in_the_way_is_waited_for(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST + LINGERING)
    suite.makepyfile(test_other=f"{HEAD}def test_other(one): pass")
    result = run(suite, SUITE)
    result.assert_outcomes(passed=10)
    waited = ["test_made_from", "test_made_from_another", "finalized", "test_fixed_port"]
    waited += ["test_network", "test_last", "wider", "test_other"]
    expected = dict.fromkeys(waited, "inactive")
    expected |= {"test_soon": "deactivating", "test_beside": "deactivating", "before": "active"}
    assert seen(suite) == expected
    assert "0 left over" in account(result)


def test_all_can_be_waited_for(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST + LINGERING)
    body = SUITE.partition("def test_meanwhile(one)")[0].replace(
        "    spawn_lingering(understudy)\n", "    spawn_lingering(understudy)\n    let_go(0.3)\n"
    )
    result = run(suite, body, "--understudy-stop=wait")
    result.assert_outcomes(passed=1)
    assert seen(suite) == {"test_soon": "inactive"}


def test_ports_of_what_is_ending_are_waited_for_where_there_are_no_others(
    suite: pytest.Pytester,
) -> None:
    body = """
@pytest.mark.parametrize("number", range(10))
def test_it(one, number):
    assert ask(one) == one.pid

@pytest.mark.parametrize("number", range(3))
def test_claimed(understudy, number):
    understudy.spawn(**ONE) if number == 1 else understudy.ports("tcp")

@pytest.mark.parametrize("number", range(3))
def test_async(understudy, number):
    import asyncio
    one = asyncio.run(understudy.aspawn(**ONE))
    assert ask(one) == one.pid

def test_shared(understudy):
    assert ask(understudy.shared(**ONE))
"""
    result = run(suite, body, "--understudy-ports=20000-20015")
    result.assert_outcomes(passed=17)


@pytest.mark.newest
def test_what_does_not_end_fails_the_session(suite: pytest.Pytester) -> None:
    body = """
def test_it(one):
    from understudy import instance
    from understudy.errors import ManagerError

    def fails(instances, **_):
        if instances:
            instance.stop_all = stop_all
            raise ManagerError(f"Cannot stop '{instances[0].unit}': job canceled")

    stop_all, instance.stop_all = instance.stop_all, fails
"""
    result = run(suite, body)
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*1 instance started*",
            "understudy: Cannot stop 'understudy-perl@*-1.service': job canceled",
        ]
    )
