"""The start of a proxy in front of production: it waits until the service behind it listens.

Run by systemd, with the public socket passed to it, as

    python3 -I -S proxy_program.py UNIT PORT TIMEOUT_S PROXY [OPTION …]

``systemd-socket-proxyd`` accepts a connection before it knows whether anybody is behind it: the
client sees an end of file. So this becomes the proxy only once a process of UNIT listens on PORT.
If that does not come to be, the waiting clients are let go, one by one: a connection that stays
in the queue would have systemd start everything anew at once, for ever.

When UNIT ends by itself, the proxy is ended as well, so that the next connection starts both. With
``BindsTo=`` systemd would see to that alone, but then this would not even be started where UNIT
fails at its start, and nobody would let the clients go.

It imports nothing but the standard library: it is a part of production.
"""

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.05

FIRST_DESCRIPTOR = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h
NETLINK_SOCK_DIAG = 4
DUMP_LISTENING = struct.Struct("=IHHII BBBxI48x")
SOCK_DIAG_BY_FAMILY = 20
REQUEST_DUMP = 0x301
LISTEN = 10
MESSAGE = struct.Struct("=IH10x")
NLMSG_ERROR = 2
NLMSG_DONE = 3
SOCKET = struct.Struct(">20xH2x16s48x")
ATTRIBUTE = struct.Struct("=HH")
CGROUP_ID = 21


def main() -> None:
    """Wait, then become the proxy."""
    unit, port, timeout_s, *command = sys.argv[1:]
    try:
        address = wait(unit, int(port), float(timeout_s))
        say_ready()
        os.execv(command[0], [*command, address])
    except OSError as exc:
        give_up(f"Cannot pass connections on to {unit}: {exc}")


def wait(unit: str, port: int, timeout_s: float) -> str:
    """Wait until a process of the unit listens; give the address on which it can be reached."""
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    folder = cgroup_of(unit)
    if folder is None:
        give_up(f"{unit} does not run")
    # The kernel reports a change of this file: the end of the last process is one.
    events = os.open(folder / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    while True:
        alive = populated(events)
        address = listener(port, folder)
        if address is not None:
            break
        if not alive:
            give_up(f"{unit} has ended, and has not listened on port {port} before")
        if time.monotonic() > deadline:
            give_up(f"{unit} does not listen on port {port} after {timeout_s:g} s")
        poll.poll(pause_s * 1000)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    if os.fork() == 0:
        end_with(events, poll)
    return address


def end_with(events: int, poll: select.poll) -> NoReturn:
    """As a child of the proxy, end it when the unit behind it has ended."""
    proxy = os.getppid()
    os.closerange(FIRST_DESCRIPTOR, events)
    while populated(events):
        poll.poll()
    os.kill(proxy, signal.SIGTERM)
    os._exit(0)


def cgroup_of(unit: str) -> Path | None:
    """The folder of the unit's cgroup in the unified hierarchy; None if the unit does not run.

    Units lie in slices, and what lies in a unit is not systemd's own. The bus is not asked: without
    nss-systemd it does not talk to dynamic users.
    """
    slices = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    while slices:
        folder = slices.pop()
        # systemd puts "_" before a name that the kernel could take for one of its own files.
        for found in (folder / unit, folder / f"_{unit}"):
            if (found / "cgroup.events").exists():
                return found
        slices += folder.glob("*.slice")
    return None


def populated(events: int) -> bool:
    """Whether a process lives in a cgroup or below, by its open ``cgroup.events``."""
    try:
        return b"populated 1" in os.pread(events, 4096, 0)
    except OSError:  # the cgroup is gone
        return False


def listener(port: int, folder: Path) -> str | None:
    """Where a process of the cgroup, and nobody else's, listens on a port: ``127.0.0.1:80``."""
    ids = {Path(parent).stat().st_ino for parent, _, _ in os.walk(folder)}
    for family in (socket.AF_INET, socket.AF_INET6):
        for number, packed, cgroup in listening(family):
            # Before Linux 5.8 the kernel does not tell whose a socket is.
            if number == port and (cgroup in ids or not cgroup):
                if family == socket.AF_INET:
                    host = socket.inet_ntop(family, packed[:4])
                    return f"{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
                host = socket.inet_ntop(family, packed)
                # The proxy takes what follows the last colon for the port, and knows no brackets.
                return f"{'::1' if host == '::' else host}:{port}"
    return None


def listening(family: int) -> Iterator[tuple[int, bytes, int]]:
    """Port, address and id of the cgroup of each listening TCP socket (sock_diag(7))."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.send(
            DUMP_LISTENING.pack(
                *(DUMP_LISTENING.size, SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 0, 0),
                *(family, socket.IPPROTO_TCP, 0, 1 << LISTEN),
            )
        )
        while True:
            answer = netlink.recv(65536)
            while answer:
                size, kind = MESSAGE.unpack_from(answer)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return
                number, address = SOCKET.unpack_from(answer)
                yield number, address, cgroup_id(answer[SOCKET.size : size])
                answer = answer[(size + 3) & ~3 :]


def cgroup_id(attributes: bytes) -> int:
    """The id among a socket's attributes; 0 if it is not there."""
    while attributes:
        size, kind = ATTRIBUTE.unpack_from(attributes)
        if kind == CGROUP_ID:
            return int.from_bytes(attributes[ATTRIBUTE.size : size], sys.byteorder)
        attributes = attributes[(size + 3) & ~3 :]
    return 0


def say_ready() -> None:
    """Tell systemd that connections are passed on from now on: not every proxyd does."""
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", address.replace("@", "\0", 1) if address[0] == "@" else address)


def give_up(reason: str) -> NoReturn:
    """Close what waits for an answer, and end."""
    for descriptor in range(int(os.environ.get("LISTEN_FDS", "0"))):
        with socket.socket(fileno=FIRST_DESCRIPTOR + descriptor) as waiting:
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting.accept()[0].close()
    sys.exit(reason)


if __name__ == "__main__":
    main()
