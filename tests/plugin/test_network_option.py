"""Networks for xdist's workers: what can be asked for, and what is refused."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

SHOW_SPECS = """
import json
import pytest

@pytest.hookimpl(trylast=True)
def pytest_xdist_setupnodes(config, specs):
    print("SPECS", json.dumps([spec.python for spec in specs]))
    pytest.exit("seen enough", returncode=0)
"""
NEEDS_WORKERS = (
    "*'worker' needs workers: run pytest with -n NUMBER (pytest-xdist), or all of it in *"
)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of one test, outside of all networks."""
    monkeypatch.delenv("UNDERSTUDY_NETWORK", raising=False)
    pytester.makepyfile("def test_passes(): pass")
    return pytester


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", *arguments)


def refused(suite: pytest.Pytester, text: str, *arguments: str) -> None:
    """The run is a usage error that says this, and no test has run."""
    result = run(suite, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {text}"])
    result.stdout.no_fnmatch_line("*passed*")


def pythons(suite: pytest.Pytester, *arguments: str) -> list[list[str] | None]:
    """What xdist would start as the Python of each worker, split as execnet does."""
    suite.makeconftest(SHOW_SPECS)
    lines = run(suite, "-s", *arguments).outlines
    (found,) = [line.partition("SPECS ")[2] for line in lines if "SPECS " in line]
    return [text and shlex.split(text) for text in json.loads(found)]


def through(*services: str) -> list[str]:
    """The command line before a worker's Python."""
    words = [word for service in services for word in ("--through", service)]
    return [sys.executable, "-P", "-m", "understudy", "run", "--network", "private", *words, "--"]


def test_a_run_that_asks_for_nothing_is_left_alone(suite: pytest.Pytester) -> None:
    result = run(suite)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("understudy: *")
    assert pythons(suite, "-n2") == [None, None]


def test_each_worker_is_started_inside(suite: pytest.Pytester) -> None:
    found = pythons(suite, "-n2", "--understudy-network", "worker")
    assert found == [[*through(), sys.executable]] * 2


def test_what_is_let_in_is_handed_on(suite: pytest.Pytester) -> None:
    options = ["--understudy-through", "mediamtx", "--understudy-through=camera-service:8003"]
    (found,) = pythons(suite, "-n1", "--understudy-network=worker", *options)
    assert found == [*through("mediamtx", "camera-service:8003"), sys.executable]


def test_the_settings_file_can_ask(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nunderstudy_network = worker\nunderstudy_through = mediamtx other:api")
    assert pythons(suite, "-n1") == [[*through("mediamtx", "other:api"), sys.executable]]


def test_the_command_line_comes_before_the_settings_file(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nunderstudy_network = worker\nunderstudy_through = mediamtx")
    (found,) = pythons(suite, "-n1", "--understudy-through", "other")
    assert found == [*through("other"), sys.executable]
    assert pythons(suite, "-n1", "--understudy-network", "none") == [None]


def test_a_python_of_the_users_choice_stays(suite: pytest.Pytester) -> None:
    options = ["--dist=load", "--tx", "popen//python='/opt/my python/bin/python' -X dev"]
    (found,) = pythons(suite, *options, "--understudy-network=worker")
    assert found == [*through(), "/opt/my python/bin/python", "-X", "dev"]


def test_the_header_says_whose_ports_they_are(suite: pytest.Pytester) -> None:
    suite.makeconftest(SHOW_SPECS)
    options = ["-n1", "--understudy-network=worker", "--understudy-through=mediamtx"]
    run(suite, *options).stdout.fnmatch_lines(
        ["understudy: each worker in a private network of its own, let in: mediamtx"]
    )


@pytest.mark.parametrize("without", [[], ["-n0"], ["-p", "no:xdist"], ["--tx=popen", "--dist=no"]])
def test_a_run_without_workers_is_refused(suite: pytest.Pytester, without: list[str]) -> None:
    refused(
        suite,
        NEEDS_WORKERS + "understudy run --network private --through mediamtx -- pytest",
        *without,
        *("--understudy-network", "worker", "--understudy-through", "mediamtx"),
    )


def test_the_settings_file_is_named_where_it_asks(suite: pytest.Pytester) -> None:
    suite.makeini("[pytest]\nunderstudy_network = worker")
    refused(suite, "understudy_network: " + NEEDS_WORKERS)


@pytest.mark.parametrize("look", ["--collect-only", "--fixtures", "--help", "--markers"])
def test_a_look_at_the_suite_needs_no_workers(suite: pytest.Pytester, look: str) -> None:
    assert run(suite, look, "--understudy-network", "worker").ret == pytest.ExitCode.OK


def test_a_run_that_is_inside_already_needs_no_workers(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_NETWORK", "private")
    run(suite, "--understudy-network", "worker").assert_outcomes(passed=1)


def test_an_unknown_network_is_refused(suite: pytest.Pytester) -> None:
    text = "'session' is none of: none, worker"
    refused(suite, f"--understudy-network: {text}", "-n1", "--understudy-network", "session")
    suite.makeini("[pytest]\nunderstudy_network = session")
    refused(suite, f"understudy_network: {text}", "-n1")


@pytest.mark.parametrize("service", ["media mtx", "mediamtx:", ":api", "--evil", "a/b", ""])
def test_what_is_no_service_is_refused(suite: pytest.Pytester, service: str) -> None:
    text = f"--understudy-through: '{service}' is not SERVICE or SERVICE:PORT"
    options = ["--understudy-network=worker", f"--understudy-through={service}"]
    refused(suite, text, "-n1", *options)


def test_letting_in_needs_a_network(suite: pytest.Pytester) -> None:
    text = "--understudy-through * there are none: add --understudy-network worker"
    refused(suite, text, "-n1", "--understudy-through", "mediamtx")


@pytest.mark.parametrize("spec", ["ssh=camera-host", "socket=127.0.0.1:8888"])
def test_a_worker_elsewhere_is_refused(suite: pytest.Pytester, spec: str) -> None:
    text = f"--understudy-network: '{spec}' is not a process of this host: only workers of *"
    refused(suite, text, "--dist=load", "--tx", spec, "--understudy-network", "worker")


def test_a_worker_that_cannot_start_is_told_in_one_line(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_MANAGER", "no-such-manager")
    text = "Cannot start a worker in a private network: see the error above, or try: " \
        "understudy run --network private -- true"  # fmt: skip
    refused(suite, text, "-n2", "--understudy-network", "worker")


def test_the_plugin_imports_nothing_heavy() -> None:
    seen = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, pytest; known = set(sys.modules); import understudy.pytest_plugin;"
            "print(*sorted(set(sys.modules) - known))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split() == ["understudy", "understudy.pytest_plugin"]
