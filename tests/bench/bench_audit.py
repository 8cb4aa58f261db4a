"""What an audit costs: files and lines a second, and how that compares with only parsing them.

Run it as ``python tests/bench/bench_audit.py [FILES]``. It writes that many copies (500 unless
told) of a test of some 60 lines into a folder that is removed, and audits them, and the standard
library's asyncio; medians of several rounds, in turns.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from understudy.audit import audit, known

ROUNDS = 5
TEST = """
import subprocess
import time

import pytest
import requests
from config import Config

API = "http://localhost:%d/v3"


def find_free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    process = subprocess.Popen(["mediamtx", str(tmp_path / "x.yml")])
    time.sleep(2)
    yield process
    process.terminate()


@pytest.mark.parametrize("name", ["cam0", "cam1"])
def test_path_%d(server, name):
    answer = requests.get(f"{API}/paths/get/{name}")
    assert answer.status_code == 200
    assert answer.json()["name"] == name
"""


def main(count: int = 500) -> None:
    """Measure and print.

    Args:
        count: How many files to write.
    """
    with tempfile.TemporaryDirectory(prefix="understudy-bench-") as folder:
        for at in range(count):
            body = "".join(TEST % (9997, number) for number in range(2))
            Path(folder, f"test_{at}.py").write_text(body)
        report("written files", Path(folder))
    report("the standard library's asyncio", Path(statistics.__file__).parent / "asyncio")


def report(name: str, folder: Path) -> None:
    """Measure one folder and print a line for each way."""
    definitions = known()
    files = sorted(folder.rglob("*.py"))
    lines = sum(file.read_bytes().count(b"\n") for file in files)
    ways: dict[str, Callable[[], object]] = {
        "ast.parse": lambda: [ast.parse(file.read_bytes()) for file in files],
        "audit": lambda: audit([folder], definitions),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, function in ways.items():
            began = time.perf_counter()
            function()
            times[way].append(time.perf_counter() - began)
    base = statistics.median(times["ast.parse"])
    print(f"{name}: {len(files)} files, {lines} lines (median of {ROUNDS})")
    print(f"{'ms':>8}  {'files/s':>8}  {'lines/s':>8}  {'ratio':>5}")
    for way, values in times.items():
        median = statistics.median(values)
        figures = (len(files) / median, lines / median, median / base)
        print(
            f"{median * 1000:8.0f}  {figures[0]:8.0f}  {figures[1]:8.0f}  {figures[2]:5.2f}  {way}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
