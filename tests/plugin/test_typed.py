"""A consumer's mypy --strict is content with the fixtures, and finds mistakes in their use."""

from __future__ import annotations

from pathlib import Path

from tests.typing.checker import mypy

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
