"""Every socket that holds a port, as the kernel tells it to every user: sock_diag(7).

It is asked before and after each start of an instance, so it costs a fraction of a millisecond
where ``ss`` costs several (tests/bench/bench_sock_diag.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from understudy.errors import PortError
from understudy.model import Transport

# linux/netlink.h and linux/sock_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: size, kind, flags, sequence, port
_CODE = struct.Struct("=i")
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: size, kind

# linux/inet_diag.h
_INET_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2: family, protocol, extras, states
_INET_FIELDS = "=8xI4x BBxx H2x 16s 40x II"  # nlmsghdr and inet_diag_msg: what `Socket` has of them
_INET_MESSAGE_SIZE = 72
_INET_DIAG_CGROUP_ID = 21

# linux/unix_diag.h
_UNIX_REQUEST = struct.Struct("=BBHIIIII")  # unix_diag_req
_UNIX_MESSAGE_SIZE = 16
_UDIAG_SHOW_NAME = 0x01
_UDIAG_SHOW_UID = 0x40
_UNIX_DIAG_NAME = 0
_UNIX_DIAG_UID = 7
_UID = struct.Struct("=I")

# net/tcp_states.h; of these UDP has the first two
_ESTABLISHED = 1
_CLOSE = 7
_LISTEN = 10
_BOUND_INACTIVE = 13


_PROTOCOLS = {Transport.TCP: socket.IPPROTO_TCP, Transport.UDP: socket.IPPROTO_UDP}


class Socket(NamedTuple):
    """A socket that holds a port: as the kernel packs it, because a look makes hundreds.

    Attributes:
        protocol: IPPROTO_TCP or IPPROTO_UDP.
        family: AF_INET or AF_INET6.
        state: The kernel's number of its state (net/tcp_states.h).
        network_port: Its local port in network order.
        network_address: Its local address in network order, padded to 16 bytes.
        uid: The user who made it.
        inode: Its inode, as ``/proc/PID/fd`` shows it.
        cgroup: The id of the cgroup it was made in: the inode of that cgroup's folder; 0 where
            the kernel does not tell (before Linux 5.8).
    """

    protocol: int
    family: int
    state: int
    network_port: int
    network_address: bytes
    uid: int
    inode: int
    cgroup: int

    @property
    def transport(self) -> Transport:
        """TCP or UDP."""
        return Transport.TCP if self.protocol == socket.IPPROTO_TCP else Transport.UDP

    @property
    def port(self) -> int:
        """The local port."""
        return socket.ntohs(self.network_port)

    @property
    def address(self) -> str:
        """The local address: ``127.0.0.1``, ``0.0.0.0``, ``::``."""
        size = 4 if self.family == socket.AF_INET else 16
        return socket.inet_ntop(self.family, self.network_address[:size])

    @property
    def listening(self) -> bool:
        """Whether anybody can reach it: TCP that listens, UDP without a peer."""
        return self.state == (_LISTEN if self.protocol == socket.IPPROTO_TCP else _CLOSE)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.family == socket.AF_INET6 else self.address
        return f"{self.transport} {host}:{self.port}"


class Sockets:
    """What one look saw."""

    def __init__(self, sockets: Iterable[Socket]) -> None:
        self._sockets = tuple(sockets)

    def __iter__(self) -> Iterator[Socket]:
        return iter(self._sockets)

    def __len__(self) -> int:
        return len(self._sockets)

    def bound(self, transport: Transport, port: int) -> list[Socket]:
        """The sockets that hold this port, on whatever address."""
        protocol = _PROTOCOLS[transport]
        same = self._by_port.get(socket.htons(port), ())
        return [one for one in same if one.protocol == protocol]

    def of_cgroup(self, ids: Collection[int]) -> list[Socket]:
        """The sockets that were made in one of these cgroups."""
        return [one for key in ids for one in self._by_cgroup.get(key, ())]

    @cached_property
    def _by_port(self) -> dict[int, list[Socket]]:
        index: dict[int, list[Socket]] = {}
        for one in self._sockets:
            index.setdefault(one.network_port, []).append(one)
        return index

    @cached_property
    def _by_cgroup(self) -> dict[int, list[Socket]]:
        index: dict[int, list[Socket]] = {}
        for one in self._sockets:
            index.setdefault(one.cgroup, []).append(one)
        return index


class UnixListener(NamedTuple):
    """A unix socket that listens.

    Attributes:
        name: Its name; an abstract one begins with a null byte (unix(7)).
        uid: The user who made it.
    """

    name: bytes
    uid: int


def snapshot(*, idle: bool = False, netlink: socket.socket | None = None) -> Sockets:
    """See every listening TCP and every bound UDP socket of this network namespace.

    Args:
        idle: Whether to see TCP sockets too that are bound and do not listen. For reports: it
            takes the kernel (6.8 or newer) several times as long.
        netlink: A socket to ask with that was made in another network namespace
            (`understudy.netns.Namespace.sock_diag`): then that one's are seen. It stays open.

    Raises:
        PortError: The kernel denies it, or has no sock_diag.
    """
    states = {
        socket.IPPROTO_TCP: 1 << _LISTEN | (1 << _BOUND_INACTIVE if idle else 0),
        socket.IPPROTO_UDP: 1 << _CLOSE | 1 << _ESTABLISHED,
    }
    found: list[Socket] = []
    with contextlib.nullcontext(netlink) if netlink else _connection() as asked:
        for family in (socket.AF_INET, socket.AF_INET6):
            for protocol, wanted in states.items():
                request = _INET_REQUEST.pack(family, protocol, 0, wanted)
                # The protocol stands in no answer, but the sequence number does.
                for messages, size in _dump(asked, request, sequence=protocol):
                    found += _inet_sockets(messages, size)
    return Sockets(found)


def unix_listeners() -> list[UnixListener]:
    """See every listening unix socket of this network namespace that has a name.

    Raises:
        PortError: The kernel denies it, or has no sock_diag for unix sockets.
    """
    show = _UDIAG_SHOW_NAME | _UDIAG_SHOW_UID
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, 1 << _LISTEN, 0, show, 0, 0)
    found = []
    with _connection() as netlink:
        for messages, size in _dump(netlink, request):
            for start in range(0, len(messages), size):
                values = _attributes(
                    messages, start + _HEADER.size + _UNIX_MESSAGE_SIZE, start + size
                )
                if _UNIX_DIAG_NAME in values:
                    (uid,) = _UID.unpack(messages[values[_UNIX_DIAG_UID]])
                    found.append(UnixListener(messages[values[_UNIX_DIAG_NAME]], uid))
    return found


def _inet_sockets(messages: bytes, size: int) -> Iterator[Socket]:
    start = _HEADER.size + _INET_MESSAGE_SIZE
    cgroup = _attributes(messages, start, size).get(_INET_DIAG_CGROUP_ID)
    if cgroup is None:
        rows = struct.iter_unpack(f"{_INET_FIELDS} {size - start}x", messages)
        return (Socket._make((*row, 0)) for row in rows)
    layout = f"{_INET_FIELDS} {cgroup.start - start}x Q {size - cgroup.stop}x"
    return map(Socket._make, struct.iter_unpack(layout, messages))


def _connection() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except OSError as exc:
        raise _denied(exc) from exc


def _dump(
    netlink: socket.socket, request: bytes, *, sequence: int = 0
) -> Iterator[tuple[bytes, int]]:
    """Ask, and give the answer's messages in runs of one size: so all of a run have one layout."""
    size = _HEADER.size + len(request)
    header = _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, sequence, 0)
    try:
        netlink.send(header + request)
        while True:
            buffer = netlink.recv(65536)
            at = 0
            while at < len(buffer):
                size, kind, _, _, _ = _HEADER.unpack_from(buffer, at)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    (code,) = _CODE.unpack_from(buffer, at + _HEADER.size)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                padded = (size + 3) & ~3
                end = at + (len(buffer) - at) // padded * padded
                sizes = struct.iter_unpack(f"=I{padded - 4}x", buffer[at:end])
                if any(other != size for (other,) in sizes):
                    end = at + padded
                yield buffer[at:end], padded
                at = end
    except OSError as exc:
        raise _denied(exc) from exc


def _attributes(buffer: bytes, start: int, end: int) -> dict[int, slice]:
    """Where the value of each attribute stands, by the attribute's kind."""
    values = {}
    while start < end:
        size, kind = _ATTRIBUTE.unpack_from(buffer, start)
        values[kind] = slice(start + _ATTRIBUTE.size, start + size)
        start += (size + 3) & ~3
    return values


def _denied(exc: OSError) -> PortError:
    hint = None
    if exc.errno in (errno.ENOENT, errno.EPROTONOSUPPORT):
        hint = "The kernel modules inet_diag, tcp_diag, udp_diag and unix_diag are needed"
    elif exc.errno in (errno.EACCES, errno.EPERM, errno.EAFNOSUPPORT):
        hint = "A sandbox forbids netlink sockets: allow AF_NETLINK (RestrictAddressFamilies=)"
    return PortError(f"Cannot list the sockets: {exc.strerror}", hint=hint)
