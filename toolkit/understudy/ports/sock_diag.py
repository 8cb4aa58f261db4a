"""Every socket that holds a port, as the kernel tells it to every user: sock_diag(7).

It is asked before and after each start of an instance, so it costs a fraction of a millisecond
where ``ss`` costs several (tests/bench/bench_sock_diag.py).
"""

from __future__ import annotations

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
_INET_MESSAGE = struct.Struct("=BBxx H2x 16s 40x II")  # inet_diag_msg: what `Socket` has of it
_INET_DIAG_CGROUP_ID = 21
_CGROUP = struct.Struct("=Q")

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


class Socket(NamedTuple):
    """A socket that holds a port. A tuple, because each look makes hundreds.

    Attributes:
        transport: TCP or UDP.
        port: The local port.
        packed: The local address in network order, 4 or 16 bytes.
        inode: Its inode, as ``/proc/PID/fd`` shows it.
        uid: The user who made it.
        cgroup: The id of the cgroup it was made in: the inode of that cgroup's folder; 0 where
            the kernel does not tell (before Linux 5.8).
        state: The kernel's number of its state (net/tcp_states.h).
    """

    transport: Transport
    port: int
    packed: bytes
    inode: int
    uid: int
    cgroup: int
    state: int

    @property
    def address(self) -> str:
        """The local address: ``127.0.0.1``, ``0.0.0.0``, ``::``."""
        family = socket.AF_INET if len(self.packed) == 4 else socket.AF_INET6
        return socket.inet_ntop(family, self.packed)

    @property
    def listening(self) -> bool:
        """Whether anybody can reach it: TCP that listens, UDP without a peer."""
        return self.state == (_LISTEN if self.transport is Transport.TCP else _CLOSE)

    def __str__(self) -> str:
        host = self.address if len(self.packed) == 4 else f"[{self.address}]"
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
        return [one for one in self._by_port.get(port, ()) if one.transport is transport]

    def of_cgroup(self, ids: Collection[int]) -> list[Socket]:
        """The sockets that were made in one of these cgroups."""
        return [one for key in ids for one in self._by_cgroup.get(key, ())]

    @cached_property
    def by_inode(self) -> dict[int, Socket]:
        """The sockets by their inodes."""
        return {one.inode: one for one in self._sockets}

    @cached_property
    def _by_port(self) -> dict[int, list[Socket]]:
        index: dict[int, list[Socket]] = {}
        for one in self._sockets:
            index.setdefault(one.port, []).append(one)
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


def snapshot(*, idle: bool = False) -> Sockets:
    """See every listening TCP and every bound UDP socket of this network namespace.

    Args:
        idle: Whether to see TCP sockets too that are bound and do not listen. For reports: it
            takes the kernel (6.8 or newer) several times as long.

    Raises:
        PortError: The kernel denies it, or has no sock_diag.
    """
    tcp = 1 << _LISTEN | (1 << _BOUND_INACTIVE if idle else 0)
    udp = 1 << _CLOSE | 1 << _ESTABLISHED
    found: list[Socket] = []
    with _connection() as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _INET_REQUEST.pack(family, socket.IPPROTO_TCP, 0, tcp)
            found += _inet_sockets(netlink, request, Transport.TCP)
            request = _INET_REQUEST.pack(family, socket.IPPROTO_UDP, 0, udp)
            found += _inet_sockets(netlink, request, Transport.UDP)
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
        for buffer, start, end in _dump(netlink, request):
            values = _attributes(buffer, start + _UNIX_MESSAGE_SIZE, end)
            if _UNIX_DIAG_NAME in values:
                (uid,) = _UID.unpack(buffer[values[_UNIX_DIAG_UID]])
                found.append(UnixListener(buffer[values[_UNIX_DIAG_NAME]], uid))
    return found


def _inet_sockets(netlink: socket.socket, request: bytes, transport: Transport) -> Iterator[Socket]:
    size = 0  # messages of one size have the cgroup at the same place
    cgroup_at: int | None = None
    for buffer, start, end in _dump(netlink, request):
        family, state, port, packed, uid, inode = _INET_MESSAGE.unpack_from(buffer, start)
        if end - start != size:
            size = end - start
            values = _attributes(buffer, start + _INET_MESSAGE.size, end)
            value = values.get(_INET_DIAG_CGROUP_ID)
            cgroup_at = None if value is None else value.start - start
        cgroup = 0 if cgroup_at is None else _CGROUP.unpack_from(buffer, start + cgroup_at)[0]
        if family == socket.AF_INET:
            packed = packed[:4]
        yield Socket(transport, socket.ntohs(port), packed, inode, uid, cgroup, state)


def _connection() -> socket.socket:
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except OSError as exc:
        raise _denied(exc) from exc


def _dump(netlink: socket.socket, request: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Ask, and give each message of the answer: a buffer, its begin and end there."""
    size = _HEADER.size + len(request)
    try:
        netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0) + request)
        while True:
            buffer = netlink.recv(65536)
            at = 0
            while at < len(buffer):
                size, kind, _, _, _ = _HEADER.unpack_from(buffer, at)
                start, end = at + _HEADER.size, at + size
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    (code,) = _CODE.unpack_from(buffer, start)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield buffer, start, end
                at += (size + 3) & ~3
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
