"""A suite with hard-coded ports beside production: as it is, and in private networks.

The suite is tests/examples/legacy, and what is run is what its README says.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from tests.systemd.suites import LIMIT_S, User, outcomes, pytest_words
from tests.systemd.support import ROOT, command_line

pytestmark = pytest.mark.skipif(not ROOT, reason="only root can be production and all its users")

LEGACY = "tests/examples/legacy"

PING = "test_host_answers_ping"
BESIDE_PRODUCTION = {
    "test_api_port_is_applied": "skipped",
    "test_controller_uses_its_port": "passed",
    "test_default_config_starts": "skipped",
    "test_default_ports": "passed",
    "test_every_client_reaches_this_server": "failed",
    "test_ffmpeg_integration": "failed",
    "test_health_ready": "skipped",
    "test_health_ready_on_localhost": "skipped",
    "test_health_server_as_a_process": "skipped",
    "test_health_unhealthy_without_mediamtx": "failed",
    "test_health_unknown_path": "skipped",
    PING: "passed",
    "test_many_clients": "skipped",
    "test_mediamtx_is_managed_by_systemd": "passed",
    "test_nothing_on_a_free_port": "passed",
    "test_ping": "failed",
    "test_port_is_free_after_stop": "failed",
    "test_restart_on_the_same_port": "failed",
    "test_rtsp_options": "passed",
    "test_second_manager_is_refused": "failed",
    "test_start_and_stop": "skipped",
    "test_stream_is_created_and_deleted": "passed",
    "test_streams_come_from_mediamtx": "failed",
    "test_unknown_method": "failed",
    "test_unknown_stream_is_an_error": "passed",
}
"""How each test of the suite ends today, while production has its ports."""

ALL_PASSED = dict.fromkeys(BESIDE_PRODUCTION, "passed")

REQUESTS = {
    "an RTSP connection": (r"\[RTSP\] \[conn \S+\] opened", 2),
    "a path that the API does not know": (r"\[API\] path not found", 1),
}
"""What MediaMTX writes about the suite's requests, and how often."""

WORKERS = ["-n4", "--understudy-network", "worker", "--understudy-through", "mediamtx"]

SUITE = """
import os
import pathlib
import socket
import subprocess
import sys

import pytest


def test_first():
    assert "/understudy.slice/" in pathlib.Path("/proc/self/cgroup").read_text()
    {first}


@pytest.mark.parametrize("number", range(4))
def test_port(number):
    assert os.readlink("/proc/self/ns/net") != os.environ["HOST_NETWORK"]
    assert os.getcwd() == {cwd!r}
    with socket.create_server(("0.0.0.0", 8003)):
        pass
"""


def private(*command: str) -> list[str]:
    return command_line("run", "--network", "private", "--through", "mediamtx", "--", *command)


def requests_seen() -> Counter[str]:
    """What production's MediaMTX has written about requests so far."""
    subprocess.run(["journalctl", "--sync"], check=True)
    log = subprocess.run(
        ["journalctl", "--quiet", "--output=cat", "--unit=mediamtx.service"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return Counter({name: len(re.findall(text, log)) for name, (text, _) in REQUESTS.items()})


def write_suite(folder: Path, first: str) -> Path:
    (folder / "pytest.ini").write_text(
        "[pytest]\naddopts = -p no:hypothesispytest\nfilterwarnings = error\n"
    )
    (folder / "test_small.py").write_text(SUITE.format(first=first, cwd=str(folder)))
    return folder


def test_beside_production_it_skips_and_fails(production: dict[str, str], user: User) -> None:
    code, output = user.run(*pytest_words(LEGACY))
    # Whether everybody may ping is the host's own matter.
    assert outcomes(output) | {PING: "passed"} == BESIDE_PRODUCTION, output
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "Service already running on port 8003: [Errno 98] Address already in use" in output
    assert "[Errno 98] error while attempting to bind on address ('0.0.0.0', 8002)" in output


def test_in_a_private_network_it_is_green(production: dict[str, str], user: User) -> None:
    before = requests_seen()
    code, output = user.run(*private(*pytest_words(LEGACY)))
    assert outcomes(output) == ALL_PASSED, output
    assert code == 0
    assert requests_seen() - before == {name: count for name, (_, count) in REQUESTS.items()}


def test_with_workers_in_private_networks_it_is_green(
    production: dict[str, str], user: User
) -> None:
    before = requests_seen()
    code, output = user.run(*pytest_words(*WORKERS, LEGACY))
    assert outcomes(output) == ALL_PASSED, output
    assert code == 0
    assert "understudy: each worker in a private network of its own, let in: mediamtx" in output
    assert set(re.findall(r"^\[(gw\d+)\]", output, re.MULTILINE)) == {"gw0", "gw1", "gw2", "gw3"}
    assert requests_seen() - before == {name: count for name, (_, count) in REQUESTS.items()}


def test_a_worker_that_replaces_a_crashed_one_is_inside(
    production: dict[str, str], user: User, open_directory: Path
) -> None:
    suite = write_suite(open_directory, "os._exit(3)")
    options = ["-n1", "--understudy-network", "worker"]
    code, output = user.run(*pytest_words(*options), cwd=suite)
    assert code == pytest.ExitCode.TESTS_FAILED, output
    assert "worker 'gw0' crashed while running 'test_small.py::test_first'" in output
    assert len(re.findall(r"^\[gw1\].* PASSED ", output, re.MULTILINE)) == 4, output


def test_what_a_test_leaves_behind_ends_with_its_worker(
    production: dict[str, str], user: User, open_directory: Path
) -> None:
    left = "os.posix_spawnp('setsid', ['setsid', 'sleep', '1000'], os.environ)"
    code, output = user.run(
        *pytest_words("-n2", "--understudy-network", "worker"),
        cwd=write_suite(open_directory, left),
    )
    assert outcomes(output).pop("test_first") == "passed", output
    assert code == 0


def test_a_run_that_stops_at_its_first_failure_leaves_nothing(
    production: dict[str, str], user: User, open_directory: Path
) -> None:
    suite = write_suite(open_directory, "pytest.fail('enough')")
    options = ["-n2", "--maxfail=1", "--understudy-network", "worker"]
    code, output = user.run(*pytest_words(*options), cwd=suite)
    assert outcomes(output)["test_first"] == "failed", output
    assert code != 0


@pytest.mark.parametrize("end", ["INT", "TERM", "KILL"])
def test_workers_end_with_a_pytest_that_is_stopped(
    production: dict[str, str], user: User, open_directory: Path, end: str
) -> None:
    hang = "print('hanging', file=sys.__stderr__, flush=True); subprocess.run(['sleep', '1000'])"
    suite = write_suite(open_directory, hang)
    options = ["-n2", "-s", "--understudy-network", "worker"]
    with user.start(*pytest_words(*options), cwd=suite) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "hanging" in line:
                break
        assert "hanging" in said, said
        (pid,) = pytest_processes(process.pid)
        subprocess.run(["kill", "-s", end, str(pid)], check=True)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0


def test_what_cannot_be_let_in_is_told(production: dict[str, str], user: User) -> None:
    options = ["-n2", "--understudy-network=worker", "--understudy-through=no-such-service"]
    code, output = user.run(*pytest_words(*options, LEGACY))
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert "no-such-service" in output.partition("ERROR: Cannot start a worker")[0]
    assert "understudy run --network private --through no-such-service -- true" in output


def pytest_processes(ancestor: int) -> list[int]:
    """The controlling pytest below a prefix as runuser's: the first Python there is."""
    found = [ancestor]
    for number in found:
        if Path(f"/proc/{number}/comm").read_text().startswith("p"):
            return [number]
        children = Path(f"/proc/{number}/task/{number}/children").read_text()
        found += map(int, children.split())
    return []
