"""Who holds a port, where a real manager put the processes into their cgroups."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from understudy.model import Port, Transport
from understudy.ports import (
    Allocator,
    cgroup_ids,
    check,
    configured_range,
    holder,
    snapshot,
    socket_inodes,
)

pytestmark = pytest.mark.systemd

USER = [] if os.geteuid() == 0 else ["--user"]
WITHIN = None if os.geteuid() == 0 else f"user@{os.getuid()}.service"

SERVER = """\
import os, socket, sys
one = socket.create_server(("127.0.0.1", int(sys.argv[1])))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1))
one.accept()
"""


@pytest.fixture
def number() -> Iterator[int]:
    claim, numbers = Allocator(configured_range()).claim([Port(name="a", transport=Transport.TCP)])
    with claim:
        yield numbers["a"]


@pytest.fixture
def name() -> Iterator[str]:
    """A unit's name without its suffix; what has it is stopped."""
    name = f"understudy-test-{secrets.token_hex(4)}"
    with ExitStack() as undo:
        for suffix in ("service", "socket"):
            undo.callback(
                subprocess.run,
                ["systemctl", *USER, "stop", f"{name}.{suffix}"],
                check=False,
                stderr=subprocess.DEVNULL,
            )
        yield name


def systemd_run(*words: str) -> None:
    subprocess.run(["systemd-run", *USER, "--quiet", "--collect", *words], check=True)


def show(unit: str, name: str) -> str:
    command = ["systemctl", *USER, "show", "--value", f"--property={name}", unit]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def test_a_service_is_named_and_its_cgroup_is_the_managers(name: str, number: int) -> None:
    systemd_run(
        f"--unit={name}", "--service-type=notify", sys.executable, "-c", SERVER, str(number)
    )
    found = holder(Transport.TCP, number)
    assert found is not None
    assert (found.unit, found.within) == (f"{name}.service", WITHIN)
    assert found.cgroup == show(f"{name}.service", "ControlGroup")
    assert found.pid == int(show(f"{name}.service", "MainPID"))
    port = Port(name="http", transport=Transport.TCP)
    assert check([port], {"http": number}, snapshot(), ids=cgroup_ids(found.cgroup)).held


def test_a_port_the_manager_has_bound_is_told_apart_from_the_services_own(
    name: str, number: int
) -> None:
    systemd_run(
        f"--unit={name}", f"--socket-property=ListenStream=127.0.0.1:{number}", "sleep", "infinity"
    )
    found = holder(Transport.TCP, number)
    assert found is not None
    assert found.unit in ("init.scope", f"{name}.socket")
    assert found.within == WITHIN
    assert ".socket" in str(found)

    port = Port(name="http", transport=Transport.TCP)
    [conflict] = check([port], {"http": number}, snapshot(), ids=()).conflicts
    assert not conflict.shared
    subprocess.run(["systemctl", *USER, "start", f"{name}.service"], check=True)
    path = show(f"{name}.service", "ControlGroup")
    passed = socket_inodes(path)
    assert check([port], {"http": number}, snapshot(), ids=cgroup_ids(path), inodes=passed).held
