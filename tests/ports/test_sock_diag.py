"""What the kernel says of sockets, against sockets made for it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from understudy.errors import PortError
from understudy.model import Transport
from understudy.ports import Sockets, cgroups, snapshot, sock_diag

TCP, UDP = Transport.TCP, Transport.UDP
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


@pytest.fixture
def bind() -> Iterator[Bind]:
    with ExitStack() as undo:
        yield Bind(undo)


class Bind:
    """Binds sockets that are closed with the test."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    def __call__(
        self, transport: Transport, host: str = "127.0.0.1", port: int = 0, *options: int
    ) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        one = self._undo.enter_context(socket.socket(family, KINDS[transport]))
        for option in options:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        one.bind((host, port))
        return one


def number(one: socket.socket) -> int:
    port: int = one.getsockname()[1]
    return port


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("transport", list(Transport))
def test_a_bound_socket_is_seen_as_it_is(bind: Bind, transport: Transport, host: str) -> None:
    one = bind(transport, host)
    if transport is TCP:
        one.listen()
    [found] = snapshot().bound(transport, number(one))
    assert (found.transport, found.port, found.address) == (transport, number(one), host)
    assert found.inode == inode(one)
    assert found.uid == os.geteuid()
    assert found.listening
    assert found.cgroup in cgroups.cgroup_paths({found.cgroup})
    shown = f"[{host}]" if ":" in host else host
    assert str(found) == f"{transport} {shown}:{number(one)}"


def test_a_closed_socket_is_not_seen(bind: Bind) -> None:
    one = bind(UDP)
    port = number(one)
    assert snapshot().bound(UDP, port)
    one.close()
    assert not snapshot().bound(UDP, port)


def test_tcp_that_does_not_listen_is_seen_when_asked_for(bind: Bind) -> None:
    one = bind(TCP)
    assert not snapshot().bound(TCP, number(one))
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if release < (6, 8):
        pytest.skip("before Linux 6.8 nobody can see that")
    [found] = snapshot(idle=True).bound(TCP, number(one))
    assert not found.listening


def test_a_udp_client_is_bound_but_not_listening(bind: Bind) -> None:
    server, client = bind(UDP), bind(UDP)
    client.connect(server.getsockname())
    [found] = snapshot().bound(UDP, number(client))
    assert not found.listening


@pytest.mark.parametrize(
    ("transport", "option"),
    [(TCP, socket.SO_REUSEPORT), (UDP, socket.SO_REUSEPORT), (UDP, socket.SO_REUSEADDR)],
)
def test_sharing_a_port_is_seen(bind: Bind, transport: Transport, option: int) -> None:
    first = bind(transport, "127.0.0.1", 0, option)
    second = bind(transport, "127.0.0.1", number(first), option)
    if transport is TCP:
        first.listen()
        second.listen()
    found = snapshot().bound(transport, number(first))
    assert {one.inode for one in found} == {inode(first), inode(second)}


def test_a_wildcard_and_an_address_on_one_port_are_both_seen(bind: Bind) -> None:
    first = bind(UDP, "127.0.0.1", 0, socket.SO_REUSEADDR)
    bind(UDP, "0.0.0.0", number(first), socket.SO_REUSEADDR)
    bind(UDP, "::1", number(first))
    found = snapshot().bound(UDP, number(first))
    assert {one.address for one in found} == {"127.0.0.1", "0.0.0.0", "::1"}


def test_more_sockets_than_one_message_holds_are_all_seen(bind: Bind) -> None:
    expected = set()
    for _ in range(150):
        for host in ("127.0.0.1", "::1"):
            expected.add(inode(bind(UDP, host)))
            listener = bind(TCP, host)
            listener.listen()
            expected.add(inode(listener))
    found = snapshot()
    by_inode = {one.inode: one for one in found}
    assert expected <= by_inode.keys()
    assert len(found) == len(list(found))
    own = by_inode[min(expected)].cgroup
    assert expected <= {one.inode for one in found.of_cgroup([own])}


def test_listening_unix_sockets_are_seen_with_their_user() -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as silent:
        one.bind(f"\0understudy/test/{os.getpid()}")
        one.listen()
        silent.bind(f"\0understudy/silent/{os.getpid()}")
        found = dict(sock_diag.unix_listeners())
    assert found[f"\0understudy/test/{os.getpid()}".encode()] == os.geteuid()
    assert f"\0understudy/silent/{os.getpid()}".encode() not in found


def test_what_the_kernel_lacks_is_an_error_with_a_hint() -> None:
    impossible = sock_diag._INET_REQUEST.pack(socket.AF_INET, 255, 0, 1)
    with (
        sock_diag._connection() as netlink,
        pytest.raises(PortError, match=r"Cannot list the sockets: .*\n.*modules inet_diag"),
    ):
        list(sock_diag._dump(netlink, impossible))


def test_a_sandbox_without_netlink_is_an_error_with_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def denied(*_: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", denied)
    with pytest.raises(PortError, match=r"not supported by protocol\n.*allow AF_NETLINK"):
        snapshot()


def message(port: int, *attributes: tuple[int, bytes]) -> bytes:
    """An answer about a TCP listener, as linux/inet_diag.h lays it out."""
    address = socket.inet_aton("127.0.0.1")
    body = struct.pack("=BBxxHxx16s", socket.AF_INET, 10, socket.htons(port), address)
    body += struct.pack("=40xII", 7, port + 1)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 20, 2, socket.IPPROTO_TCP, 0) + body


def test_messages_of_different_layout_are_read_one_by_one() -> None:
    """As another kernel may send them: with more attributes, or without the cgroup."""
    shutdown, mark = (8, b"\0"), (15, b"abcd")
    done = struct.pack("=IHHIIi", 20, 3, 2, 0, 0, 0)
    answers = [
        message(1, shutdown, (21, struct.pack("=Q", 101)))
        + message(2, shutdown, (21, struct.pack("=Q", 102)))
        + message(3, shutdown)
        + message(4, shutdown)
        + message(5, shutdown, mark, (21, struct.pack("=Q", 105))),
        message(6, (21, struct.pack("=Q", 106)), shutdown) + done,
    ]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        for answer in answers:
            theirs.send(answer)
        found = [
            one
            for messages, size in sock_diag._dump(ours, b"request")
            for one in sock_diag._inet_sockets(messages, size)
        ]
        assert theirs.recv(100).endswith(b"request")
    assert [(one.port, one.inode, one.uid) for one in found] == [
        (port, port + 1, 7) for port in range(1, 7)
    ]
    assert [one.cgroup for one in found] == [101, 102, 0, 0, 105, 106]
    assert {one.address for one in found} == {"127.0.0.1"}


def test_nothing_is_bound_in_an_empty_look() -> None:
    nothing = Sockets([])
    assert nothing.bound(TCP, 1) == []
    assert nothing.of_cgroup([1]) == []
    assert len(nothing) == 0
