"""Claims: exclusive between processes, seen by all users, freed by the kernel."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from understudy.errors import PortError
from understudy.model import Port, Transport
from understudy.ports import (
    BLOCK,
    Allocator,
    Claim,
    Hold,
    PortRange,
    check,
    claiming,
    claims,
    snapshot,
)

if TYPE_CHECKING:
    from tests.ports.conftest import Spawn

NOBODY = 65534
TCP, UDP = Transport.TCP, Transport.UDP
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def claimed_blocks(port_range: PortRange) -> list[int]:
    return [one.block for one in claims(port_range.blocks)]


def test_a_claim_is_seen_while_it_is_held(port_range: PortRange) -> None:
    block = port_range.blocks[0]
    with Claim() as claim:
        assert claim.add([block])
        assert claim.blocks == (block,)
        [found] = claims([block])
        assert found.block == block
        assert (found.pid, found.uid) == (os.getpid(), os.geteuid())
        assert claims([block + BLOCK]) == []
        assert found in claims()
    assert claims([block]) == []


def test_blocks_are_claimed_all_or_none(port_range: PortRange) -> None:
    with Claim() as first, Claim() as second:
        assert not first.blocks
        assert not first.descriptors()
        assert first.add([port_range.blocks[1]])
        assert not second.add(port_range.blocks[0:3])
        assert not second.blocks
        assert claimed_blocks(port_range) == [port_range.blocks[1]]
        assert not first.add([port_range.blocks[1]])
        assert second.add(port_range.blocks[2:4])
        assert second.descriptors().keys() == {f"port/{block}" for block in second.blocks}


def test_a_claim_of_a_killed_process_is_free(spawn: Spawn, port_range: PortRange) -> None:
    child = spawn(
        f"claim, numbers = Allocator(PortRange({port_range.first}, {port_range.last}))"
        ".claim([Port(name='a', transport=TCP)])\n"
        "answer(claim.blocks[0])"
    )
    block: int = child.answer()
    [found] = claims(port_range.blocks)
    assert (found.block, found.pid) == (block, child.pid)
    with Claim() as claim:
        assert not claim.add([block])
        child.kill()
        assert claim.add([block])


def test_a_copy_of_the_descriptor_holds_the_claim(
    spawn: Spawn, allocator: Allocator, instance_ports: list[Port], port_range: PortRange
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        name = f"\0understudy/test/{os.getpid()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(name)
            listener.listen()
            keeper = spawn(
                f"pair = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
                f"pair.connect({name!r})\n"
                "_, [copy], _, _ = socket.recv_fds(pair, 1, 1)\n"
                "socket.socket(fileno=os.dup(copy)).listen(4096)\n"
                "answer('kept')"
            )
            connection, _ = listener.accept()
        with connection:
            claim, _ = allocator.claim(instance_ports)
            [descriptor] = claim.descriptors().values()
            socket.send_fds(connection, [b"x"], [descriptor])
            assert keeper.answer() == "kept"
    claim.close()
    [found] = claims(port_range.blocks)
    assert found.pid == keeper.pid, "who called listen(2) last is who holds it"
    keeper.kill()
    assert claims(port_range.blocks) == []


def test_asking_who_holds_a_claim_works_however_often_it_is_done(
    port_range: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "_BACKLOG", 1)
    with Claim() as claim:
        claim.add([port_range.blocks[0]])
        found = [claims(port_range.blocks)[0] for _ in range(4)]
    assert [one.uid for one in found] == [os.geteuid()] * 4
    assert [one.pid for one in found] == [os.getpid()] * 2 + [None] * 2, "its queue is full"


@as_root
def test_another_user_sees_our_claims_and_cannot_have_them(
    spawn: Spawn, port_range: PortRange
) -> None:
    child_range = f"PortRange({port_range.first}, {port_range.last})"
    with Claim() as ours:
        assert ours.add(port_range.blocks[2:])
        child = spawn(
            f"blocks = {child_range}.blocks\n"
            "seen = [[one.block, one.user, one.pid] for one in claims(blocks)]\n"
            f"held = Allocator({child_range}).claim_many([[Port(name='a', transport=TCP)]] * 2)\n"
            "answer([os.getuid(), seen, sorted(claim.blocks[0] for claim, _ in held)])",
            user=NOBODY,
        )
        uid, seen, theirs = child.answer()
        assert uid == NOBODY
        assert seen == [[block, "root", os.getpid()] for block in ours.blocks]
        assert theirs == list(port_range.blocks[:2])
        by_user = {(one.block, one.user) for one in claims(port_range.blocks)}
        assert by_user == {
            *((block, "nobody") for block in port_range.blocks[:2]),
            *((block, "root") for block in port_range.blocks[2:]),
        }
        count = len(port_range.blocks)
        why = f"of its {count} blocks {count} are claimed .{count - 2} by root, 2 by nobody."
        with pytest.raises(PortError, match=why) as caught:
            Allocator(port_range).claim([Port(name="a", transport=TCP)])
        assert "understudy stop --all" in str(caught.value.hint)
        assert caught.value.owner == "root, nobody"


@as_root
def test_claims_end_at_the_network_namespace(spawn: Spawn, port_range: PortRange) -> None:
    code = (
        f"blocks = PortRange({port_range.first}, {port_range.last}).blocks\n"
        "answer([one.block for one in claims(blocks)])"
    )
    with Claim() as claim:
        claim.add(port_range.blocks)
        assert spawn(code, new_network=True).answer() == []
        assert spawn(code).answer() == list(port_range.blocks)


def test_eight_processes_never_get_one_number_twice(spawn: Spawn, port_range: PortRange) -> None:
    # As many instances as there are blocks, so that they have to meet.
    code = (
        "sys.stdin.readline()\n"
        f"allocator = Allocator(PortRange({port_range.first}, {port_range.last}))\n"
        "ports = [Port(name=str(n), transport=random.choice([TCP, UDP])) for n in range(12)]\n"
        "numbers = []\n"
        "for _ in range(60):\n"
        "    try:\n"
        "        numbers.append(allocator.claim(ports))\n"
        "    except Exception as exc:\n"
        "        assert 'blocks' in str(exc), exc\n"
        "    if numbers and random.random() < 0.7:\n"
        "        numbers.pop(random.randrange(len(numbers)))[0].close()\n"
        "answer([sorted(one.values()) for _, one in numbers])"
    )
    children = [spawn(code) for _ in range(8)]
    for child in children:
        child.go()
    given = [number for child in children for one in child.answer() for number in one]
    assert given
    assert len(given) == len(set(given))
    held = claimed_blocks(port_range)
    assert {number - number % BLOCK for number in given} == set(held)


def test_numbers_in_use_are_not_given(allocator: Allocator, port_range: PortRange) -> None:
    ports = [Port(name="tcp", transport=TCP), Port(name="udp", transport=UDP)]
    with ExitStack() as undo:
        for block in port_range.blocks:
            for number in range(block, block + 15, 2):
                for kind, host in ((socket.SOCK_STREAM, "::"), (socket.SOCK_DGRAM, "127.0.0.1")):
                    family = socket.AF_INET6 if ":" in host else socket.AF_INET
                    one = undo.enter_context(socket.socket(family, kind))
                    one.bind((host, number))
                    if kind == socket.SOCK_STREAM:
                        one.listen()
        for claim, numbers in allocator.claim_many([ports] * len(port_range.blocks)):
            undo.enter_context(claim)
            assert all(number % 2 for number in numbers.values())
            assert len(set(numbers.values())) == 2


def test_productions_numbers_and_avoided_ones_are_not_given(port_range: PortRange) -> None:
    ports = [Port(name="a", transport=TCP)]
    first = range(port_range.first, port_range.last + 1, BLOCK)
    never = {(TCP, block) for block in first}
    avoid = {block + 1 for block in first}
    for _ in port_range.blocks:
        claim, numbers = Allocator(port_range, never=never).claim(ports, avoid=avoid)
        claim.close()
        assert numbers["a"] % BLOCK == 2


def test_a_service_with_many_ports_gets_consecutive_blocks(
    allocator: Allocator, port_range: PortRange
) -> None:
    ports = [Port(name=str(number), transport=TCP) for number in range(40)]
    with ExitStack() as undo:
        for claim, numbers in allocator.claim_many([ports] * 2):
            undo.enter_context(claim)
            first = claim.blocks[0]
            assert claim.blocks == (first, first + BLOCK, first + 2 * BLOCK)
            assert sorted(numbers.values()) == list(range(first, first + 40))


def test_a_block_more_is_taken_where_numbers_in_between_are_not_to_be_had(
    port_range: PortRange,
) -> None:
    ports = [Port(name=str(number), transport=TCP) for number in range(BLOCK)]
    never = {(TCP, block + 5) for block in port_range.blocks}
    claim, numbers = Allocator(port_range, never=never).claim(ports)
    with claim:
        assert len(claim.blocks) == 2
        assert never.isdisjoint((TCP, number) for number in numbers.values())


def test_a_batch_is_claimed_as_a_whole_or_not_at_all(
    allocator: Allocator, port_range: PortRange, instance_ports: list[Port]
) -> None:
    with pytest.raises(PortError, match=f"Cannot find 6 free ports in {port_range}"):
        allocator.claim_many([instance_ports] * (len(port_range.blocks) + 1))
    assert claims(port_range.blocks) == []


def test_no_ports_need_no_claim(allocator: Allocator) -> None:
    claim, numbers = allocator.claim([])
    assert (claim.blocks, claim.descriptors(), numbers) == ((), {}, {})


# Exact numbers


def test_an_exact_number_outside_the_range_is_given_unclaimed(
    allocator: Allocator, port_range: PortRange, instance_ports: list[Port]
) -> None:
    number = port_range.last + 1 + 2 * BLOCK
    claim, numbers = allocator.claim(instance_ports, exact={"api": number})
    with claim:
        assert numbers["api"] == number
        assert len(claim.blocks) == 1
        assert {one - one % BLOCK for name, one in numbers.items() if name != "api"} == {
            claim.blocks[0]
        }
        assert list(numbers) == [port.name for port in instance_ports]


def test_an_exact_number_in_the_range_is_claimed_and_excludes_others(
    allocator: Allocator, port_range: PortRange
) -> None:
    ports = [Port(name="a", transport=TCP), Port(name="b", transport=UDP)]
    number = port_range.blocks[3] + 5
    claim, numbers = allocator.claim(ports, exact={"a": number})
    with claim:
        assert numbers["a"] == number
        assert port_range.blocks[3] in claim.blocks
        with pytest.raises(
            PortError, match=f"tcp port {number + 1} to 'a': its block is claimed by .*PID"
        ) as caught:
            allocator.claim(ports, exact={"a": number + 1})
        assert caught.value.port == number + 1
        assert f"PID {os.getpid()}" in str(caught.value.owner)
        other = PortRange(port_range.first + 6 * BLOCK, port_range.last, "another user")
        with pytest.raises(PortError, match="its block is claimed by"):
            Allocator(other).claim(ports, exact={"a": number + 1})


@pytest.mark.parametrize("transport", list(Transport))
def test_a_taken_exact_number_names_its_holder(
    allocator: Allocator, port_range: PortRange, transport: Transport
) -> None:
    port = Port(name="api", transport=transport)
    with socket.socket(socket.AF_INET, KINDS[transport]) as one:
        one.bind(("127.0.0.1", 0))
        if transport is TCP:
            one.listen()
        number = one.getsockname()[1]
        with pytest.raises(
            PortError, match=f"Cannot give {transport} port {number} to 'api': it is held by"
        ) as caught:
            allocator.claim([port], exact={"api": number})
    assert f"PID {os.getpid()}" in str(caught.value.owner)
    assert caught.value.port == number
    assert claims(port_range.blocks) == []


def test_productions_number_is_refused(port_range: PortRange) -> None:
    allocator = Allocator(port_range, never={(TCP, 8002)})
    with pytest.raises(PortError, match="tcp port 8002 to 'ws': it is production's"):
        allocator.claim([Port(name="ws", transport=TCP)], exact={"ws": 8002})
    claim, numbers = allocator.claim([Port(name="ws", transport=UDP)], exact={"ws": 8002})
    with claim:
        assert numbers == {"ws": 8002}


def test_two_instances_cannot_have_one_exact_number(
    allocator: Allocator, port_range: PortRange
) -> None:
    number = port_range.last + 1 + 2 * BLOCK
    with pytest.raises(PortError, match="it is asked for more than once"):
        allocator.claim_many([[Port(name="a", transport=TCP)]] * 2, exact=[{"a": number}] * 2)
    assert claims(port_range.blocks) == []


# Thieves: those who bind without a claim


@pytest.mark.parametrize(
    "option", [None, socket.SO_REUSEADDR, socket.SO_REUSEPORT], ids=["plain", "addr", "port"]
)
def test_a_thief_between_claim_and_start_is_seen(
    allocator: Allocator, instance_ports: list[Port], option: int | None
) -> None:
    """The instance is this process's first set of sockets, the thief the second."""
    random_ = random.Random(option)
    conflicts = 0
    for _ in range(100):
        with ExitStack() as undo:

            def bind(
                port: Port, number: int, option: int | None, undo: ExitStack = undo
            ) -> int | None:
                one = undo.enter_context(socket.socket(socket.AF_INET, KINDS[port.transport]))
                if option is not None:
                    one.setsockopt(socket.SOL_SOCKET, option, 1)
                try:
                    one.bind((random_.choice(["127.0.0.1", "0.0.0.0"]), number))
                    if port.transport is TCP:
                        one.listen()
                except OSError:
                    one.close()
                    return None
                return os.fstat(one.fileno()).st_ino

            claim, numbers = allocator.claim(instance_ports)
            undo.enter_context(claim)
            stolen = {
                port.name
                for port in instance_ports
                if random_.random() < 0.2 and bind(port, numbers[port.name], option) is not None
            }
            own = {
                port.name: inode
                for port in instance_ports
                if (inode := bind(port, numbers[port.name], option)) is not None
            }
            found = check(instance_ports, numbers, snapshot(), ids=(), inodes=set(own.values()))
            expected = {
                port.name: {
                    (True, True): Hold.SHARED,
                    (True, False): Hold.TAKEN,
                    (False, True): Hold.HELD,
                    (False, False): Hold.MISSING,
                }[port.name in stolen, port.name in own]
                for port in instance_ports
            }
            assert found.holds == expected
            assert {conflict.port.name for conflict in found.conflicts} == stolen
            conflicts += len(stolen)
    assert conflicts > 50
