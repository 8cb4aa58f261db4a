"""Real sockets on loopback: a range for each worker, processes that end with the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from understudy.model import Port, Transport
from understudy.ports import Allocator, PortRange, cgroups

BLOCKS = 12

PRELUDE = """\
import json, os, random, socket, sys
from understudy.model import Port, Transport
from understudy.ports import Allocator, PortRange, claims, holder, snapshot
TCP, UDP = Transport.TCP, Transport.UDP

def answer(value):
    print(json.dumps(value), flush=True)

"""


class Child:
    """A Python process that answers once, and then waits to be ended."""

    def __init__(
        self, code: str, *, user: int | None, cgroup: Path | None, new_network: bool
    ) -> None:
        join = f"open('{cgroup}/cgroup.procs', 'w').write('0')\n" if cgroup else ""
        prefix = ["unshare", "--net"] if new_network else []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", f"{PRELUDE}{join}{code}\nsys.stdin.read()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=user,
            extra_groups=None if user is None else [],
            cwd="/",
        )
        self.pid = self._process.pid

    def answer(self) -> Any:
        """What it answered; waits for that."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"it ended with {self._process.wait()}"
        return json.loads(line)

    def go(self) -> None:
        """Send it the line it waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End it with SIGKILL, and return when it is gone."""
        self._process.kill()
        self._process.communicate()


class Spawn:
    """Starts children, and ends them."""

    def __init__(self) -> None:
        self._children = ExitStack()

    def __call__(
        self,
        code: str,
        *,
        user: int | None = None,
        cgroup: Path | None = None,
        new_network: bool = False,
    ) -> Child:
        child = Child(code, user=user, cgroup=cgroup, new_network=new_network)
        self._children.callback(child.kill)
        return child

    def kill_all(self) -> None:
        self._children.close()


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start children, which are gone when the test is."""
    starter = Spawn()
    yield starter
    starter.kill_all()


@pytest.fixture
def port_range() -> PortRange:
    """A small range that no other worker uses."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 11008 + worker * BLOCKS * 16
    return PortRange(first, first + BLOCKS * 16 - 1, "a test")


@pytest.fixture
def allocator(port_range: PortRange) -> Allocator:
    return Allocator(port_range)


@pytest.fixture
def instance_ports() -> list[Port]:
    """Six listeners, a pair among them."""
    return [
        Port(name="api", transport=Transport.TCP),
        Port(name="rtsp", transport=Transport.TCP),
        Port(name="rtp", transport=Transport.UDP, even=True),
        Port(name="rtcp", transport=Transport.UDP, next_to="rtp"),
        Port(name="hls", transport=Transport.TCP),
        Port(name="srt", transport=Transport.UDP, shares=True),
    ]


@pytest.fixture
def slice_folder(spawn: Spawn) -> Iterator[Path]:
    """A cgroup to make others in."""
    folder = Path(cgroups.mount(), f"understudytest{os.getpid()}.slice")
    try:
        folder.mkdir()
    except OSError as exc:
        if os.geteuid() == 0 and os.environ.get("UNDERSTUDY_REQUIRE_ALL"):
            raise
        pytest.skip(f"cannot make a cgroup: {exc.strerror}")
    yield folder
    spawn.kill_all()
    for below, _folders, _files in os.walk(folder, topdown=False):
        Path(below).rmdir()
