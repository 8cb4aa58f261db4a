"""A consumer's mypy --strict is content with the fixtures, and finds mistakes in their use."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import understudy

CONSUMER = """
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import pytest

from understudy import ClaimedPorts, Instance, Production, SharedInstance, Understudy


@pytest.fixture
def camera(understudy: Understudy) -> Instance:
    mtx = understudy.spawn("mediamtx", ports=["metrics"], timeout_s=5)
    values = {"root": Path.cwd()}
    return understudy.spawn("camera-service", uses={"mediamtx": mtx}, values=values, lazy=False)


@pytest.fixture(scope="session")
def server(understudy_session: Understudy) -> Iterator[Instance]:
    with understudy_session.spawn(exec=["server", "{port.http}"], ports={"http": 8003}) as one:
        yield one


def test_all(understudy: Understudy, camera: Instance, server: Instance) -> None:
    assert_type(camera.ports["websocket"], int)
    assert_type(understudy.shared("mediamtx"), SharedInstance)
    assert_type(understudy.production("mediamtx"), Production)
    assert_type(understudy.ports("tcp", "udp"), ClaimedPorts)
    assert_type(understudy.spawn_many(["mediamtx", understudy.request("redis")]), list[Instance])
    assert_type(understudy.instances, list[Instance])


async def test_async(understudy: Understudy) -> None:
    assert_type(await understudy.aspawn("mediamtx", env={"A": "b"}), Instance)
    assert_type(await understudy.ashared("mediamtx", network="private"), SharedInstance)
"""

MISTAKES = {
    "understudy.spawn(service=3)": "arg-type",
    "understudy.spawn('mediamtx', port=['api'])": "call-arg",
    "understudy.shared('mediamtx').port": "attr-defined",
    "understudy.ports(8003)": "arg-type",
}


def mypy(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Check a file as a consumer does, who has none of our settings."""
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    (folder / "test_cameras.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--config-file=",
         "--cache-dir=cache", "test_cameras.py"],
        cwd=folder,
        env={"MYPYPATH": str(Path(understudy.__file__).parent.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


def test_a_consumers_fixtures_are_typed(tmp_path: Path) -> None:
    done = mypy(tmp_path, CONSUMER)
    assert done.stdout + done.stderr == ""


def test_a_consumers_mistakes_are_found(tmp_path: Path) -> None:
    lines = [f"    {mistake}" for mistake in MISTAKES]
    head = "from understudy import Understudy\ndef test_it(understudy: Understudy) -> None:\n"
    done = mypy(tmp_path, head + "\n".join(lines) + "\n")
    for number, kind in enumerate(MISTAKES.values(), start=3):
        assert [line for line in done.stdout.splitlines()
                if f":{number}: error:" in line and f"[{kind}]" in line], done.stdout  # fmt: skip
