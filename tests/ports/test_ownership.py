"""Who holds a port, by cgroup: real cgroups, named as systemd names a unit's."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from understudy.cli import cli
from understudy.model import Port, Transport
from understudy.ports import (
    Allocator,
    Claim,
    Hold,
    PortRange,
    State,
    cgroup_ids,
    cgroups,
    check,
    holder,
    holders,
    snapshot,
    socket_inodes,
)

if TYPE_CHECKING:
    from tests.ports.conftest import Spawn

TCP, UDP = Transport.TCP, Transport.UDP

BIND = """\
one = socket.socket(socket.AF_INET, socket.{kind})
one.setsockopt(socket.SOL_SOCKET, socket.{option}, 1)
one.bind(('127.0.0.1', {number}))
if one.type == socket.SOCK_STREAM:
    one.listen()
answer(one.getsockname()[1])
"""
TCP_SERVER = BIND.format(kind="SOCK_STREAM", option="SO_REUSEPORT", number=0)


def unit(slice_folder: Path, name: str) -> tuple[Path, str]:
    """A cgroup for a unit: its folder, and its path as systemd would give it."""
    folder = slice_folder / name
    folder.mkdir(parents=True)
    return folder, str(folder).removeprefix(cgroups.mount())


def test_a_holder_is_named_by_its_unit(spawn: Spawn, slice_folder: Path) -> None:
    folder, path = unit(slice_folder, "camera-service.service")
    server = spawn(TCP_SERVER, cgroup=folder)
    number = server.answer()
    found = holder(TCP, number)
    assert found is not None
    assert found.state is State.LISTENING
    assert (found.unit, found.within, found.cgroup) == ("camera-service.service", None, path)
    assert (found.address, found.port) == ("127.0.0.1", number)
    assert "socket.socket" in found.command
    assert str(found) == f"camera-service.service (user {found.user}, PID {server.pid})"
    assert len(run(str(number)).splitlines()) == 2, "a command of several lines is shown in one"
    assert holder(UDP, number) is None
    server.kill()
    assert holder(TCP, number) is None


def test_a_unit_inside_another_is_named_with_it(spawn: Spawn, slice_folder: Path) -> None:
    folder, _ = unit(slice_folder, "machine-web.scope/payload/system.slice/nginx.service")
    number = spawn(TCP_SERVER, cgroup=folder).answer()
    assert str(holder(TCP, number)).startswith("nginx.service in machine-web.scope (user ")


def test_a_passed_socket_belongs_to_the_unit_that_bound_it(
    spawn: Spawn, slice_folder: Path
) -> None:
    """As a manager does it: bound in the .socket's cgroup, used in the service's."""
    socket_folder, socket_path = unit(slice_folder, "web.socket")
    service_folder, service_path = unit(slice_folder, "web.service")
    service = spawn(
        f"open('{socket_folder}/cgroup.procs', 'w').write('0')\n"
        "one = socket.socket()\n"
        "one.bind(('127.0.0.1', 0))\n"
        "one.listen()\n"
        f"open('{service_folder}/cgroup.procs', 'w').write('0')\n"
        "answer(one.getsockname()[1])"
    )
    number = service.answer()
    found = holder(TCP, number)
    assert found is not None
    assert (found.unit, found.pid) == ("web.socket", service.pid)

    ports = [Port(name="http", transport=TCP)]
    seen = snapshot()
    ids = cgroup_ids(service_path)
    assert check(ports, {"http": number}, seen, ids=ids).holds == {"http": Hold.TAKEN}
    inodes = socket_inodes(service_path)
    assert check(ports, {"http": number}, seen, ids=ids, inodes=inodes).held
    assert check(ports, {"http": number}, seen, ids=cgroup_ids(socket_path)).held


def test_of_all_who_have_a_socket_the_one_of_its_unit_is_named(
    spawn: Spawn, slice_folder: Path
) -> None:
    folder, _ = unit(slice_folder, "maker.service")
    name = f"\0understudy/test/{os.getpid()}"
    older = spawn(
        "answer('up')\n"
        "sys.stdin.readline()\n"
        "pair = socket.socket(socket.AF_UNIX)\n"
        f"pair.connect({name!r})\n"
        "copy = socket.recv_fds(pair, 1, 1)\n"
        "answer('got it')"
    )
    assert older.answer() == "up"
    maker = spawn(
        "listener = socket.socket(socket.AF_UNIX)\n"
        f"listener.bind({name!r})\n"
        "listener.listen()\n"
        f"{TCP_SERVER}"
        "socket.send_fds(listener.accept()[0], [b'x'], [one.fileno()])",
        cgroup=folder,
    )
    number = maker.answer()
    older.go()
    assert older.answer() == "got it"
    found = holder(TCP, number)
    assert found is not None
    assert (found.unit, found.pid) == ("maker.service", maker.pid)


def test_an_instance_is_known_by_its_cgroup_and_those_below(
    spawn: Spawn, slice_folder: Path
) -> None:
    folder, path = unit(slice_folder, "own.service")
    below, _ = unit(folder, "worker/deep")
    other, other_path = unit(slice_folder, "other.service")
    assert len(cgroup_ids(path)) == 3
    assert cgroup_ids(path).isdisjoint(cgroup_ids(other_path))
    assert cgroup_ids(f"{path}/gone") == frozenset()

    number = spawn(TCP_SERVER, cgroup=below).answer()
    ports = [Port(name="http", transport=TCP)]
    found = check(ports, {"http": number}, snapshot(), ids=cgroup_ids(path))
    assert found.holds == {"http": Hold.HELD}
    found = check(ports, {"http": number + 1}, snapshot(), ids=cgroup_ids(path))
    assert [(one.address, one.port) for one in found.undeclared] == [("127.0.0.1", number)]

    sharer = BIND.format(kind="SOCK_STREAM", option="SO_REUSEPORT", number=number)
    assert spawn(sharer, cgroup=other).answer() == number
    found = check(ports, {"http": number}, snapshot(), ids=cgroup_ids(path))
    assert found.holds == {"http": Hold.SHARED}
    found = check(ports, {"http": number}, snapshot(), ids=cgroup_ids(other_path))
    assert found.holds == {"http": Hold.SHARED}
    assert {one.unit for one in holders(TCP, number)} == {"own.service", "other.service"}


def test_srt_beside_production_is_seen(spawn: Spawn, slice_folder: Path) -> None:
    """UDP with SO_REUSEADDR: both start without an error, one starves (MediaMTX's SRT)."""
    lead, lead_path = unit(slice_folder, "mediamtx.service")
    own, own_path = unit(slice_folder, "instance.service")
    code = BIND.format(kind="SOCK_DGRAM", option="SO_REUSEADDR", number="{number}")
    number = spawn(code.format(number=0), cgroup=lead).answer()
    srt = Port(name="srt", transport=UDP, shares=True)
    assert check([srt], {"srt": number}, snapshot(), ids=cgroup_ids(lead_path)).held
    assert spawn(code.format(number=number), cgroup=own).answer() == number
    found = check([srt], {"srt": number}, snapshot(), ids=cgroup_ids(own_path))
    assert found.holds == {"srt": Hold.SHARED}


def test_another_users_process_is_named_when_its_unit_has_only_one(
    spawn: Spawn, slice_folder: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    folder, _ = unit(slice_folder, "lead.service")
    server = spawn(TCP_SERVER, cgroup=folder)
    number = server.answer()
    look = spawn(f"answer(str(holder(TCP, {number})))", user=65534)
    assert look.answer() == f"lead.service (user root, PID {server.pid})"
    spawn("answer(0)", cgroup=folder).answer()
    look = spawn(f"answer(str(holder(TCP, {number})))", user=65534)
    assert look.answer() == "lead.service (user root)"


def test_a_claimed_port_is_held_by_its_claimant(allocator: Allocator) -> None:
    claim, numbers = allocator.claim([Port(name="a", transport=TCP)])
    with claim:
        found = holder(UDP, numbers["a"] + 1)
        assert found is not None
        assert (found.state, found.pid) == (State.CLAIMED, os.getpid())
        assert str(found).startswith("claimed by ")
    assert holder(UDP, numbers["a"] + 1) is None


# The command


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ["ports", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def objects(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("--json", *arguments))
    return found


def test_the_command_shows_holders_claims_and_free_ports(port_range: PortRange) -> None:
    free, claimed = port_range.blocks[0], port_range.blocks[1]
    with Claim() as claim, socket.socket() as one:
        claim.add([claimed])
        one.bind(("127.0.0.1", 0))
        one.listen()
        number = one.getsockname()[1]
        rows = objects(str(number), str(free), str(claimed + 3))
        assert [(row["state"], row["port"], row["last"]) for row in rows] == [
            ("listening", number, number),
            ("free", free, free),
            ("claimed", claimed, claimed + 15),
        ]
        assert len({tuple(row) for row in rows}) == 1, "every object has the same keys"
        assert (rows[0]["transport"], rows[0]["address"]) == ("tcp", "127.0.0.1")
        assert (rows[0]["pid"], rows[0]["uid"]) == (os.getpid(), os.geteuid())
        assert rows[2]["pid"] == os.getpid()
        everything = objects()
        assert rows[0] in everything
        assert rows[2] in everything
        assert [row["port"] for row in everything] == sorted(row["port"] for row in everything)

        table = run(str(number), str(free), str(claimed)).splitlines()
        assert table[0].split()[:4] == ["PORT", "TRANSPORT", "ADDRESS", "STATE"]
        assert table[1].split()[:4] == [str(number), "tcp", "127.0.0.1", "listening"]
        assert table[2].split()[:4] == [str(free), "-", "-", "free"]
        assert table[3].split()[:4] == [f"{claimed}-{claimed + 15}", "-", "-", "claimed"]


def test_the_command_lists_no_clients_unless_they_are_asked_for() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())
        number = client.getsockname()[1]
        assert [row["state"] for row in objects(str(number))] == ["bound"]
        assert number not in {row["port"] for row in objects()}


def test_an_impossible_port_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["ports", "70000"])
    assert result.exit_code == 2
    assert "70000 is not in the range" in result.output
