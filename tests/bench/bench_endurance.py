"""Many tests with an instance each, again and again: does one ever fail, is anything ever left?

Run it in a bed, as root and as a user: ``python tests/bench/bench_endurance.py [TESTS [RUNS]]``
(400 tests, 10 runs unless told), under ``-n 4``. In each test a small server is started, asked who
it is, and ended. After each run units, processes, sockets and files of runs are counted with
systemctl, /proc and the file system as witnesses, not by the toolkit. Its exit code is 1 if there
was a failure or anything was left.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TESTS = 400
RUNS = 10
WORKERS = 4
SETTLE_S = 10.0
PAUSE_S = 0.05
LAST_LINES = 60

PERL = (
    r"use Socket; $| = 1; socket(S, PF_INET, SOCK_STREAM, 0);"
    r" setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);"
    r" bind(S, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die; listen(S, 50);"
    r" while (accept(C, S)) { syswrite C, $$; close C }"
)
"""Answers each connection with its process number."""

SUITE = f"""
import socket

import pytest

SERVER = ["/usr/bin/perl", "-e", {PERL!r}, "{{port.main}}"]


@pytest.mark.parametrize("number", range(TESTS))
def test_it(understudy, number):
    server = understudy.spawn(exec=SERVER, ports=["main"])
    with socket.create_connection(("127.0.0.1", server.ports["main"]), timeout=30) as connection:
        assert int(connection.recv(100)) == server.pid
"""


def left() -> set[str]:
    """All that there is of runs of this user's manager."""
    root = os.geteuid() == 0
    runtime = Path("/run") if root else Path(f"/run/user/{os.geteuid()}")
    listed = subprocess.run(
        ["systemctl", *([] if root else ["--user"]), "list-units", "--all", "--plain",
         "--no-legend", "understudy-*"],
        stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )  # fmt: skip
    found = {f"unit {row.split()[0]}" for row in listed.stdout.splitlines()}
    places = ("systemd/system/understudy-*", "systemd/user/understudy-*",
              "systemd/transient/understudy-*", "understudy/*", "private/understudy/*")  # fmt: skip
    found |= {f"file {path}" for place in places for path in runtime.glob(place)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "/understudy.slice/understudy-" in (process / "cgroup").read_text():
                found.add(f"process {process.name}")
        except OSError:
            pass  # it has just ended
    named = re.findall(r"@understudy/\S+", Path("/proc/net/unix").read_text())
    return found | {f"socket {name}" for name in named}


def left_since(before: set[str]) -> set[str]:
    """What is there now and was not before; waits for what is just ending."""
    deadline = time.monotonic() + SETTLE_S
    while (found := left() - before) and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
    return found


def run(folder: Path, tests: int) -> tuple[float, int, Sequence[str]]:
    """Run the suite once: seconds, how many tests did not pass, what is left."""
    before = left()
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider",
         f"-n{WORKERS}"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    took_s = time.monotonic() - began
    counts = re.findall(r"(\d+) (passed|failed|errors?)\b", done.stdout.splitlines()[-1])
    failed = tests - sum(int(count) for count, word in counts if word == "passed")
    account = rf"^understudy: {tests} instances? started, .* 0 left over"
    if not failed and (done.returncode or not re.search(account, done.stdout, re.MULTILINE)):
        failed = 1  # not a test, but the session
    if failed:
        print("\n".join(done.stdout.splitlines()[-LAST_LINES:]))
    return took_s, failed, sorted(left_since(before))


def main(tests: int, runs: int) -> int:
    """Run, print, and give the exit code."""
    manager = "user" if os.geteuid() else "system"
    print(f"{tests} tests of an instance each, -n {WORKERS}, {manager} manager")
    print(f"{'run':>4}{'seconds':>10}{'failures':>10}{'left':>6}", flush=True)
    took: list[float] = []
    failures = 0
    remains: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-endurance-") as name:
        folder = Path(name)
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_it.py").write_text(SUITE.replace("TESTS", str(tests)))
        for number in range(1, runs + 1):
            took_s, failed, found = run(folder, tests)
            print(f"{number:>4}{took_s:>10.1f}{failed:>10}{len(found):>6}", flush=True)
            took.append(took_s)
            failures += failed
            remains += found
    for one in remains:
        print(f"left: {one}")
    print(f"seconds a run: {statistics.median(took):.1f} ({min(took):.1f}-{max(took):.1f})")
    print(f"failures: {failures} (target: 0)")
    print(f"left over: {len(remains)} (target: 0)")
    return int(bool(failures or remains))


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(main(*given, *(TESTS, RUNS)[len(given) :]))
