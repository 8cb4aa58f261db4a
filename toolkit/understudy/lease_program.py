"""The process that keeps a lease on production: its end frees the lease.

Run as ``python3 -I -S lease_program.py ID`` in the network of the host, with one end of a socket
pair (AF_UNIX, SOCK_SEQPACKET) as standard input, over which the owner says, as JSON:

==================================  ===============  ============================================
message                             descriptors      answer
==================================  ===============  ============================================
``{"verb": "own"}``                 a pidfd          none; from now on it ends with that process
``{"verb": "take", "key": …}``      none             ``waiting``, whenever that changes; ``held``
``{"verb": "name", "run": …}``      none             ``named``: that run is seen to live
``{"verb": "live"}``                none             ``live``: the ids of all runs that live
``{"verb": "free"}``                none             ``freed``; a little later it ends
``{"verb": "wake"}``                none             ``awake``: it does not, it is needed again
==================================  ===============  ============================================

A lease is a listening unix socket with an abstract name, which every user of the host sees and
the kernel takes back with the process. Who wants one takes a number, as in Lamport's bakery: a name
that says "choosing" is bound first, then one with a number above all that are seen, then the first
is given up. Whoever stands before, and does not want to share as well, is waited for: a connection
to a socket that nobody accepts ends with that socket, and poll(2) tells.

Nothing but the standard library is imported: it must be there in milliseconds.
"""

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time
from typing import NamedTuple

MARK = "understudy/lease/"
RUN = "understudy/run/"
CHOOSING, WAITING, HOLDING = "c", "w", "h"
SHARED, EXCLUSIVE = "s", "x"

NAME_BYTES = 107  # sun_path of unix(7) without the null byte in front
BACKLOG = 4096
MESSAGE_BYTES = 262144
AGAIN_S = 0.05
REST_S = 2.0

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h, net/tcp_states.h
NETLINK_SOCK_DIAG = 4
REQUEST = struct.Struct("=IHHII BBHIIIII")
SOCK_DIAG_BY_FAMILY = 20
REQUEST_DUMP = 0x301
LISTENING = 1 << 10
SHOW_NAME_AND_UID = 0x41
MESSAGE = struct.Struct("=IH10x")
MESSAGE_SIZE = 32  # nlmsghdr and unix_diag_msg
NLMSG_ERROR = 2
NLMSG_DONE = 3
ATTRIBUTE = struct.Struct("=HH")
ATTRIBUTE_NAME = 0
ATTRIBUTE_UID = 7


class Ticket(NamedTuple):
    """What a name says.

    Attributes:
        key: What it is a lease of.
        id: Whose: one for each lease.
        phase: Whether its number is being chosen, it waits, or it holds.
        number: Its place; 0 while it is chosen.
        kind: Shared or exclusive.
        pid: The owner's process.
        since: Tenths of a second of CLOCK_BOOTTIME at which the phase began.
        who: What the owner is called.
        uid: The owner's user.
        name: The socket's name, without the null byte.
    """

    key: str
    id: str
    phase: str
    number: int
    kind: str
    pid: int
    since: int
    who: str
    uid: int
    name: str


def name_of(
    key: str, id_: str, phase: str, number: int, kind: str, pid: int, since: int, who: str
) -> str:
    """The name of a ticket's socket; what is too long loses the end of ``who``."""
    words = [key, id_, phase, str(number), kind, str(pid), str(since), who]
    return (MARK + "/".join(words)).encode()[:NAME_BYTES].decode(errors="ignore")


def parse(name: str, uid: int) -> Ticket | None:
    """What a socket's name says; None if it is no ticket's."""
    words = name.removeprefix(MARK).split("/")
    if not name.startswith(MARK) or len(words) != 8:
        return None
    key, id_, phase, number, kind, pid, since, who = words
    if phase not in (CHOOSING, WAITING, HOLDING) or kind not in (SHARED, EXCLUSIVE):
        return None
    if not all(word.isascii() and word.isdigit() for word in (number, pid, since)):
        return None
    return Ticket(key, id_, phase, int(number), kind, int(pid), int(since), who, uid, name)


def stand_before(mine: Ticket, seen: list[Ticket]) -> list[Ticket]:
    """Whom the owner of a ticket waits for, in order; nobody, and the lease is the owner's.

    Args:
        mine: The ticket.
        seen: All that were seen after the ticket's number had been chosen.
    """
    before: dict[str, Ticket] = {}
    for one in seen:
        if one.key != mine.key or one.id == mine.id:
            continue
        sharing = one.kind == mine.kind == SHARED
        earlier = (one.number, one.id) < (mine.number, mine.id)
        # Who is choosing may get the same number, or less than one that has just been seen.
        if one.phase == CHOOSING or (earlier and not sharing):
            known = before.get(one.id)
            if known is None or known.phase != HOLDING:
                before[one.id] = one
    return sorted(before.values(), key=lambda one: (one.phase != HOLDING, one.number, one.id))


def listeners() -> list[tuple[str, int]]:
    """Name and user of every listening unix socket of this network with an abstract name."""
    found: dict[str, int] = {}
    # Where a dump is longer than a buffer, one that is skipped because another has just gone is
    # seen by the second look.
    for _ in range(2):
        found.update(dump())
    return [*found.items()]


def dump() -> dict[str, int]:
    """One look (sock_diag(7))."""
    found: dict[str, int] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.send(
            REQUEST.pack(
                *(REQUEST.size, SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 0, 0),
                *(socket.AF_UNIX, 0, 0, LISTENING, 0, SHOW_NAME_AND_UID, 0, 0),
            )
        )
        while True:
            answer = netlink.recv(65536)
            while answer:
                size, kind = MESSAGE.unpack_from(answer)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    (code,) = struct.unpack_from("=i", answer, 16)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return found
                name, uid = attributes(answer[MESSAGE_SIZE:size])
                if name.startswith(b"\0"):
                    found[name[1:].decode(errors="replace")] = uid
                answer = answer[(size + 3) & ~3 :]


def attributes(data: bytes) -> tuple[bytes, int]:
    """Name and user among a socket's attributes."""
    name, uid = b"", 0
    while data:
        size, kind = ATTRIBUTE.unpack_from(data)
        if kind == ATTRIBUTE_NAME:
            name = data[ATTRIBUTE.size : size]
        elif kind == ATTRIBUTE_UID:
            uid = int.from_bytes(data[ATTRIBUTE.size : size], sys.byteorder)
        data = data[(size + 3) & ~3 :]
    return name, uid


def bind(name: str) -> socket.socket:
    """A listening socket of that name."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        one.bind(f"\0{name}")
        one.listen(BACKLOG)
    except BaseException:
        one.close()
        raise
    return one


def now() -> int:
    """Tenths of a second since the boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 10)


class Keeper:
    """One lease after the other, each from the question to the end."""

    def __init__(self, id_: str, channel: socket.socket) -> None:
        self.id = id_
        # As long as this lives it is not what a dead run has left.
        self.alive = bind(f"{RUN}{id_}")
        self.channel = channel
        self.poll = select.poll()
        self.poll.register(channel, select.POLLIN)
        self.owner: int | None = None
        self.mine: Ticket | None = None
        self.kept: dict[str, socket.socket] = {}
        self.watched: dict[str, socket.socket] = {}
        self.held = False
        self.told: list[Ticket] | None = None
        self.ends: float | None = None

    def run(self) -> None:
        """Serve the owner until one of the two ends."""
        again = False
        while True:
            wait_s = AGAIN_S if again else None
            if self.ends is not None:
                wait_s = max(0.0, self.ends - time.monotonic())
            ready = {fd for fd, _ in self.poll.poll(None if wait_s is None else wait_s * 1000)}
            again = False
            if self.owner in ready or (not ready and self.ends is not None):
                return
            if self.channel.fileno() in ready and not self.serve():
                return
            if self.mine is not None and not self.held:
                again = self.look()

    def serve(self) -> bool:
        """Do what the owner says; False if that was the last."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.channel, MESSAGE_BYTES, 4)
        except ConnectionResetError:
            data, descriptors = b"", []
        if not data:
            # An owner that has become another program, or has closed all its descriptors, lives.
            self.poll.unregister(self.channel)
            return self.owner is not None and self.ends is None
        message = json.loads(data)
        verb = message["verb"]
        try:
            if verb == "own":
                self.owner = descriptors[0]
                self.poll.register(self.owner, select.POLLIN)
            elif verb == "take":
                self.take(message)
            elif verb == "name":
                self.name_run(message["run"])
                self.say(said="named")
            elif verb == "live":
                runs = [name.removeprefix(RUN) for name, _ in listeners() if name.startswith(RUN)]
                self.say(said="live", runs=runs, network=network())
            elif verb == "free":
                self.free()
                self.say(said="freed")
            elif verb == "wake":
                self.ends = None
                self.say(said="awake")
        except OSError as exc:
            self.say(said="failed", why=exc.strerror or str(exc))
        return True

    def free(self) -> None:
        """Give up all that is kept, and wait a little whether there is more to do."""
        for one in self.watched.values():
            self.poll.unregister(one)
        for one in (*self.kept.values(), *self.watched.values()):
            one.close()
        self.kept.clear()
        self.watched.clear()
        self.mine, self.held, self.told = None, False, None
        self.ends = time.monotonic() + REST_S

    def take(self, message: dict[str, str]) -> None:
        """Take a number."""
        key, id_, kind, who = (message[word] for word in ("key", "id", "kind", "who"))
        pid = int(message["pid"])
        if id_ != self.id:
            self.kept[f"{RUN}{id_}"] = bind(f"{RUN}{id_}")
        # What runs under a lease of its command line shares that with its like alone.
        if any(one.id == message["under"] for one in tickets()):
            key = f"in-{message['under']}"
        choosing = name_of(key, id_, CHOOSING, 0, kind, pid, now(), who)
        with bind(choosing):
            seen = tickets()
            number = 1 + max((one.number for one in seen if one.key == key), default=0)
            name = name_of(key, id_, WAITING, number, kind, pid, now(), who)
            self.kept[name] = bind(name)
        self.mine = parse(name, os.getuid())

    def look(self) -> bool:
        """See who stands before; whether to look again soon, because not all can be watched."""
        assert self.mine is not None
        before = stand_before(self.mine, tickets())
        names = {one.name for one in before}
        for gone in self.watched.keys() - names:
            one = self.watched.pop(gone)
            self.poll.unregister(one)
            one.close()
        if not before:
            mine = self.mine
            name = name_of(
                mine.key, mine.id, HOLDING, mine.number, mine.kind, mine.pid, now(), mine.who
            )
            self.kept[name] = bind(name)
            self.held = True
            self.say(said="held", network=network())
            return False
        again = False
        for name in names - self.watched.keys():
            again |= not self.watch(name)
        if before != self.told:
            self.told = before
            self.say(said="waiting", before=before)
        return again

    def watch(self, name: str) -> bool:
        """Have the end of a socket told; False if it cannot be, or has been."""
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.setblocking(False)
        try:
            one.connect(f"\0{name}")
        except OSError:
            one.close()
            return False
        self.watched[name] = one
        self.poll.register(one, select.POLLRDHUP)
        return True

    def name_run(self, run: str) -> None:
        """Have a run seen to live as long as this does; one that lives already is."""
        with contextlib.suppress(OSError):
            self.kept[f"{RUN}{run}"] = bind(f"{RUN}{run}")

    def say(self, **words: object) -> None:
        """Tell the owner, who may have stopped listening."""
        with contextlib.suppress(OSError):
            self.channel.send(json.dumps(words).encode(), socket.MSG_DONTWAIT)


def tickets() -> list[Ticket]:
    """All tickets that are seen."""
    found = [parse(name, uid) for name, uid in listeners()]
    return [one for one in found if one is not None]


def network() -> str:
    """What tells this host and its network from every other: boot and network namespace."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        boot = file.read().strip()
    return f"{boot[:8]}-{os.stat('/proc/self/ns/net').st_ino}"  # noqa: PTH116


def main() -> None:
    """Keep one lease."""
    if "--alone" in sys.argv and os.fork():
        # Whoever has no manager starts this as a child, and must not find it among its children.
        return
    Keeper(sys.argv[1], socket.socket(fileno=0)).run()


if __name__ == "__main__":
    main()
