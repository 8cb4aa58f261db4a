"""A run that is begun inside of a private network: its instances join that network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.systemd.support import SERVICES, understudy

PRIVATE = ("run", "--network", "private", "--")

ANSWERS = """
import socket, sys
import understudy

with understudy.Run(units=sys.argv[1]) as run:
    found = run.spawn_many(["redis"] * 3)
    adhoc = run.spawn(exec=["/usr/bin/python3", "-m", "http.server", "{port.http}"], ports=["http"])
    for one in found:
        with socket.create_connection(("127.0.0.1", one.ports["redis"]), timeout=5) as client:
            client.sendall(b"PING\\r\\n")
            print(client.recv(16).decode().strip(), one.network)
    with socket.create_connection(("127.0.0.1", adhoc.ports["http"]), timeout=5):
        print("http", adhoc.network)
"""


def test_instances_are_reached_from_where_their_run_was_begun(tmp_path: Path) -> None:
    program = tmp_path / "answers.py"
    program.write_text(ANSWERS)
    done = understudy(*PRIVATE, sys.executable, str(program), str(SERVICES))
    assert done.stdout.split("\n")[:4] == ["+PONG private"] * 3 + ["http private"]


def test_several_services_that_would_collide_have_ports_of_their_own() -> None:
    command = ["understudy", "spawn", "redis", "--count", "3", "--units", str(SERVICES)]
    done = understudy(*PRIVATE, sys.executable, "-m", *command, "--", "sh", "-c", "ss -Hltn")
    assert len({line.split()[3] for line in done.stdout.splitlines()}) == 3


def test_what_listens_inside_cannot_be_reached_outside() -> None:
    look = f"{sys.executable} -m understudy list --json"
    command = ["understudy", "spawn", "redis", "--units", str(SERVICES), "--", "sh", "-c", look]
    done = understudy(*PRIVATE, sys.executable, "-m", *command)
    [one] = json.loads(done.stdout)
    assert one["network"] == "private"
    port = one["ports"]["redis"]
    held = understudy("ports", str(port), "--json")
    assert not [row for row in json.loads(held.stdout) if row.get("holder")], held.stdout


@pytest.mark.parametrize("network", ["private", "private:lab"])
def test_another_network_is_out_of_reach_from_inside(network: str) -> None:
    command = ["understudy", "spawn", "redis", "--units", str(SERVICES), "--network", network]
    done = understudy(*PRIVATE, sys.executable, "-m", *command, code=1)
    assert f"Cannot spawn 'redis' in network '{network}': this process is in a" in done.stderr
    assert "hint: without a network: 'redis' then joins the one that this" in done.stderr


def test_sockets_bound_outside_are_refused_inside() -> None:
    command = ["understudy", "spawn", "camera-service-activated"]
    done = understudy(*PRIVATE, sys.executable, "-m", *command, code=1)
    assert "systemd binds its sockets outside, where this process cannot reach them" in done.stderr
    assert "hint: understudy run --service camera-service-activated lets them in" in done.stderr


def test_sharing_is_refused_inside() -> None:
    share = f"import understudy\nwith understudy.Run(units={str(SERVICES)!r}) as run:\n"
    done = understudy(*PRIVATE, sys.executable, "-c", f"{share}    run.shared('redis')", code=1)
    assert "Cannot share 'redis' from inside of a private network" in done.stderr
