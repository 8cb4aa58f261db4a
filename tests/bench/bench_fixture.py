"""What a function-scoped server costs a test: fixture, first right reply, end, as pytest counts it.

Run it in a bed, as root and as a user: ``python tests/bench/bench_fixture.py [ROUNDS]`` (30 unless
told). For each of the ways a suite is written in which every test has a server of its own; the
suites take turns, a few tests at a time. What pytest counts for set-up, call and tear-down is told,
and what a test costs its suite: the time from its start to the next one's start, in which is also
what goes on behind the tests. The program is started as a plain command by every way.

- ``Popen, 1 ms``: a bare subprocess on a port that was free, asked every millisecond, terminated.
- ``a bare unit, by D-Bus``: a transient unit with nothing in it but the command, made by one call
  and asked every millisecond, stopped by another, whose job is waited for: the least that any
  service of systemd costs.
- ``understudy``: ``understudy.spawn(exec=…)``, ended by the fixture.
- ``mirakuru``: its TCP executor as it comes (``pip install mirakuru``).
- ``pytest-xprocess``: ``xprocess.ensure`` with a pattern of the log, and ``terminate``
  (``pip install pytest-xprocess``).

The last two are left out where they are not installed. Then ``pytest --collect-only`` of an empty
suite is timed, with the plugin and without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROUNDS = 30
TURN = 10
"""Tests that a way has before another has its turn."""

COLLECT_TARGET = 15.0
TARGETS = {
    "Popen, 1 ms": 1.6,
    "mirakuru": 0.35,
    "pytest-xprocess": 0.35,
    "a bare unit, by D-Bus": None,
}
PHASES = {"setup": "set-up", "call": "call", "teardown": "tear-down"}

WAYS = {
    "popen": ("Popen, 1 ms", ""),
    "by_unit": ("a bare unit, by D-Bus", "pystemd"),
    "by_understudy": ("understudy", "understudy"),
    "by_mirakuru": ("mirakuru", "mirakuru"),
    "by_xprocess": ("pytest-xprocess", "xprocess"),
}
"""By the name of the fixture: what it is called, and what must be installed."""

PERL = (
    r"use Socket; $| = 1; socket(S, PF_INET, SOCK_STREAM, 0);"
    r" setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);"
    r" bind(S, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die; listen(S, 50); print qq(ready\n);"
    r" while (accept(C, S)) { syswrite C, qq(OK\n); close C }"
)
"""A server that is up within some milliseconds and ends at once: what is left is the fixture's."""

PROGRAMS = {
    "a small Perl server": {
        "command": ["/usr/bin/perl", "-e", PERL, "PORT"],
        "question": "",
        "answer": "OK",
        "pattern": "ready",
    },
    "redis-server": {
        "command": ["/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", "PORT",
                    "--daemonize", "no", "--save", ""],
        "question": "PING\r\n",
        "answer": "+PONG",
        "pattern": "Ready to accept connections",
    },
    "python3 -m http.server": {
        "command": ["/usr/bin/python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "PORT"],
        "question": "GET / HTTP/1.0\r\n\r\n",
        "answer": "HTTP/1.0 200",
        "pattern": "Serving HTTP on",
    },
}  # fmt: skip

CONFTEST = """
import json, os, socket, subprocess, sys, time
from pathlib import Path
import pytest

PROGRAM = json.loads(os.environ["PROGRAM"])
TOOK, BEGAN = {}, {}


def command(number):
    return [str(number) if word == "PORT" else word for word in PROGRAM["command"]]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def replies(number):
    try:
        with socket.create_connection(("127.0.0.1", number), timeout=30) as connection:
            connection.sendall(PROGRAM["question"].encode())
            return connection.recv(100).decode().startswith(PROGRAM["answer"])
    except OSError:
        return False


@pytest.fixture
def popen(tmp_path):
    number = free_port()
    with subprocess.Popen(
        command(number), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not replies(number):
            time.sleep(0.001)
        yield number
        process.terminate()


@pytest.fixture
def by_unit(tmp_path):
    from understudy.manager import Transient, connect

    number = free_port()
    manager = connect()
    unit = Transient(
        unit=f"understudy-bench-{number}.service",
        properties=[("CollectMode", "inactive-or-failed")],
        command=command(number),
    )
    (jobs,) = manager.create([unit])
    jobs.close()
    while not replies(number):
        time.sleep(0.001)
    yield number
    manager.stop([unit.unit], timeout_s=30)


@pytest.fixture
def by_understudy(understudy):
    words = ["{port.main}" if word == "PORT" else word for word in PROGRAM["command"]]
    return understudy.spawn(exec=words, ports=["main"]).ports["main"]


@pytest.fixture
def by_mirakuru(tmp_path):
    import mirakuru

    number = free_port()
    with mirakuru.TCPExecutor(
        command(number), host="127.0.0.1", port=number, cwd=tmp_path, stdout=subprocess.DEVNULL,
        timeout=30,
    ):
        yield number


@pytest.fixture
def by_xprocess(request):
    from xprocess import ProcessStarter

    xprocess = request.getfixturevalue("xprocess")
    number = free_port()

    class Starter(ProcessStarter):
        pattern = PROGRAM["pattern"]
        args = command(number)

    xprocess.ensure("server", Starter)
    yield number
    xprocess.getinfo("server").terminate()


def pytest_runtest_logreport(report):
    TOOK.setdefault(report.nodeid, {})[report.when] = report.duration


def pytest_runtest_logstart(nodeid):
    BEGAN[nodeid] = time.perf_counter()


def pytest_sessionfinish():
    tests = list(BEGAN)
    for one, following in zip(tests, tests[1:]):
        TOOK[one]["all"] = BEGAN[following] - BEGAN[one]
    # The first warms up, and begins the run; nothing comes after the last.
    Path("took.json").write_text(json.dumps([TOOK[one] for one in tests[1:-1]]))
"""

TEST = """
import pytest
from conftest import replies


@pytest.mark.parametrize("number", range({count}))
def test_it({fixture}, number):
    assert replies({fixture})


def test_last():
    pass
"""


def measure(program: Mapping[str, object], rounds: int) -> dict[str, list[Mapping[str, float]]]:
    """Run the suites, and give for each way what each of its tests took, in milliseconds."""
    present = [way for way, (_, module) in WAYS.items() if not module or _installed(module)]
    found: dict[str, list[Mapping[str, float]]] = {WAYS[way][0]: [] for way in present}
    left = rounds
    while left > 0:
        for way in random.sample(present, len(present)):
            for phases in _took(program, way, min(left, TURN)):
                found[WAYS[way][0]].append({name: 1000 * each for name, each in phases.items()})
        left -= TURN
    return found


def _took(program: Mapping[str, object], way: str, count: int) -> list[dict[str, float]]:
    """Run a suite of one way, and give what each test took, in seconds by phase."""
    with tempfile.TemporaryDirectory(prefix="bench-fixture-") as folder:
        place = Path(folder)
        (place / "pytest.ini").write_text("[pytest]\n")
        (place / "conftest.py").write_text(CONFTEST)
        (place / "test_it.py").write_text(TEST.format(count=count + 1, fixture=way))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q"],
            cwd=place,
            env={**os.environ, "PYTEST_ADDOPTS": "", "PROGRAM": json.dumps(program)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        took: list[dict[str, float]] = json.loads((place / "took.json").read_text())
        return took


def report(title: str, took: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Print medians, ratios and targets."""
    manager = "user" if os.geteuid() else "system"
    print(f"\n{title}, {manager} manager, {len(took['understudy'])} rounds; medians in ms")
    heads = "".join(f"{head:>10}" for head in (*PHASES.values(), "the test"))
    print(f"{'':24}{heads}{'quartiles':>16}")
    medians = {}
    for name, tests in took.items():
        whole = [phases["all"] for phases in tests]
        medians[name] = statistics.median(whole)
        parts = [statistics.median(phases[phase] for phases in tests) for phase in PHASES]
        low, _, high = statistics.quantiles(whole, n=4)
        figures = "".join(f"{part:10.1f}" for part in (*parts, medians[name]))
        print(f"{name:24}{figures}{f'{low:.1f}-{high:.1f}':>16}")
    for name, target in TARGETS.items():
        if name in medians:
            ratio = medians["understudy"] / medians[name]
            aim = "" if target is None else f" (target: at most {target:g})"
            print(f"understudy / {name}: {ratio:.2f}{aim}")


def measure_collect(rounds: int) -> None:
    """Time ``pytest --collect-only`` of an empty suite, with the plugin and without it."""
    ways = {"without the plugin": ["-p", "no:understudy"], "with the plugin": []}
    took: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory(prefix="bench-fixture-") as folder:
        Path(folder, "pytest.ini").write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
        for count in range(rounds + 1):
            for name in random.sample([*ways], len(ways)):
                began = time.perf_counter()
                subprocess.run(
                    [*command, *ways[name]], cwd=folder, capture_output=True, check=False
                )
                if count:
                    took[name].append((time.perf_counter() - began) * 1000)
    bare, plugged = (statistics.median(times) for times in took.values())
    print(f"\npytest --collect-only of an empty suite, {rounds} rounds: {bare:.1f} ms without the")
    print(f"plugin, {plugged:.1f} ms with it")
    more = (plugged / bare - 1) * 100
    print(f"the plugin adds, in percent: {more:.1f} (target: at most {COLLECT_TARGET:g})")


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def main(rounds: int) -> None:
    """Measure and print."""
    for title, program in PROGRAMS.items():
        if Path(str(program["command"][0])).exists():
            report(title, measure(program, rounds))
    measure_collect(rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)
