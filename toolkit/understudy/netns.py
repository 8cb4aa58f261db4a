"""A private network: a network namespace of one's own, made and entered by forked children.

It knows the kernel (network_namespaces(7), user_namespaces(7)) and no systemd. A process with
threads can enter no user namespace, and who has entered one is never out again: so whatever is to
be done inside is done by a child that makes a few calls, sends descriptors back and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import socket
import struct
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self, TypeAlias

from understudy.errors import NetworkError

# linux/sched.h
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

_NS_GET_USERNS = 0xB701  # linux/nsfs.h

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFREQ = struct.Struct("=16sH22x")

_NETLINK_ROUTE = 0
_NETLINK_SOCK_DIAG = 4

# linux/netlink.h, linux/rtnetlink.h, linux/pkt_sched.h
_NLM_F_REQUEST_ACK = 0x1 | 0x4
_NLM_F_REPLACE_CREATE = 0x100 | 0x400
_RTM_NEWQDISC = 36
_RTM_DELQDISC = 37
_TC_H_ROOT = 0xFFFFFFFF
_TCA_KIND = 1
_TCA_OPTIONS = 2
_TCA_NETEM_LATENCY64 = 10
_NETLINK_MESSAGE = struct.Struct("=IHHII")
_TRAFFIC_CONTROL = struct.Struct("=B3xiIII")
_NETEM = struct.Struct("=IIIIII")
_NETEM_LIMIT = 10_000  # packets on the way at a time
_INT = struct.Struct("=i")

_BACKLOG = 4096
_DESCRIPTORS_PER_MESSAGE = 253  # SCM_MAX_FD of unix(7)
_LAST_GROUP = 2**31 - 1

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_NO_NETEM = (errno.ENOENT, errno.EOPNOTSUPP)
_DENIED = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS, errno.EINVAL, errno.ENOSYS)

PROFILE = "understudy-tester"
"""The AppArmor profile of testers, which `understudy.deploy` puts on a host that restricts user
namespaces: it allows them, and forbids nothing else."""

_RESTRICTED = "kernel.apparmor_restrict_unprivileged_userns"

_Say: TypeAlias = Callable[[str], None]
_Work: TypeAlias = Callable[[_Say], list[int]]


class Namespace:
    """A private network, held open by descriptors; entered by short-lived forked children.

    Made by `create` or found by `of`. It lives as long as a process is in it or somebody holds it
    open: `close` gives up what this object holds.

    Args:
        net: A descriptor of the network namespace, which this object closes.
        user: One of the user namespace that owns it; None where that is the caller's own.
    """

    def __init__(self, net: int, user: int | None) -> None:
        self._net = net
        self._user = user
        self._waiting: dict[int, socket.socket] = {}

    @classmethod
    def create(cls, *, user: bool, listen: Iterable[int] = ()) -> Self:
        """Make a private network: its loopback is up, and everybody in it may ping.

        Args:
            user: Make a user namespace around it, in which the caller keeps user and group: whoever
                is not root can make no network otherwise.
            listen: Ports to listen on inside from the start, so that `listen` has them at hand.

        Raises:
            NetworkError: The kernel denies it (the hint says what helps), or a port cannot be had.
        """
        uid, gid = os.geteuid(), os.getegid()
        numbers = list(dict.fromkeys(listen))

        def work(say: _Say) -> list[int]:
            say("make a private network")
            if user:
                _take_profile()
            _unshare(_CLONE_NEWNET | (_CLONE_NEWUSER if user else 0))
            if user:
                _write("/proc/self/setgroups", "deny")
                _write("/proc/self/uid_map", f"{uid} {uid} 1")
                _write("/proc/self/gid_map", f"{gid} {gid} 1")
            say("bring the loopback of a private network up")
            _set_loopback(up=True)
            _allow_ping(gid if user else None)
            names = ["net", "user"] if user else ["net"]
            spaces = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY) for name in names]
            return spaces + _listeners(numbers, say)

        net, *others = _in_child(work)
        made = cls(net, others.pop(0) if user else None)
        made._waiting = {
            number: socket.socket(fileno=each) for number, each in zip(numbers, others, strict=True)
        }
        return made

    @classmethod
    def of(cls, pid: int) -> Self:
        """The network of a live process, private or not.

        Args:
            pid: The process.

        Raises:
            NetworkError: There is no such process, or it is somebody else's.
        """
        try:
            net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            gone = isinstance(exc, (FileNotFoundError, ProcessLookupError))
            raise NetworkError(
                f"Cannot find the network of process {pid}: "
                + ("it is gone" if gone else str(exc.strerror)),
                hint=None
                if gone
                else "It is another user's: as root (sudo); or this process is in a private "
                "network itself, from which no other can be reached",
            ) from exc
        try:
            # Its owner and not the process's own: that may be one around a network of the host.
            user: int | None = fcntl.ioctl(net, _NS_GET_USERNS)
        except PermissionError:
            user = None  # One outside of ours: nothing to enter, and no right to.
        if user is not None:
            if _same(user, "/proc/self/ns/user"):
                os.close(user)
                user = None
            else:
                os.set_inheritable(user, False)
        return cls(net, user)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def net_path(self) -> str:
        """The network namespace as a path, for as long as this process holds it."""
        return f"/proc/{os.getpid()}/fd/{self._net}"

    @property
    def user_path(self) -> str:
        """The user namespace that owns it as a path; "" where that is the caller's own."""
        return "" if self._user is None else f"/proc/{os.getpid()}/fd/{self._user}"

    def is_ours(self) -> bool:
        """Whether it is the network that the calling process itself is in: nothing private."""
        return _same(self._net, "/proc/self/ns/net")

    def same_as(self, other: Namespace) -> bool:
        """Whether the other one is the same network."""
        return os.path.samestat(os.fstat(self._net), os.fstat(other._net))

    def listen(self, numbers: Iterable[int]) -> dict[int, socket.socket]:
        """Listen inside, on every address of IPv4 and IPv6: TCP sockets that are used outside.

        Args:
            numbers: The ports; a taken one is an error.

        Returns:
            The listening sockets by port; the caller closes them.

        Raises:
            NetworkError: A port is taken inside, or the namespace cannot be entered.
        """
        wanted = list(dict.fromkeys(numbers))
        missing = [number for number in wanted if number not in self._waiting]

        def work(say: _Say) -> list[int]:
            return _listeners(missing, say)

        made = self._inside(work) if missing else []
        for number, descriptor in zip(missing, made, strict=True):
            self._waiting[number] = socket.socket(fileno=descriptor)
        return {number: self._waiting.pop(number) for number in wanted}

    def sock_diag(self) -> socket.socket:
        """A socket that asks the kernel what is bound inside: for `understudy.ports.snapshot`.

        The caller closes it.

        Raises:
            NetworkError: The namespace cannot be entered.
        """

        def work(say: _Say) -> list[int]:
            say("list the sockets of a private network")
            made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
            return [made.detach()]

        [descriptor] = self._inside(work)
        return socket.socket(fileno=descriptor)

    def allow_ping(self) -> None:
        """Let everybody inside ping without a privilege (``net.ipv4.ping_group_range``).

        In a user namespace that is the caller's group. Where the kernel's settings cannot be
        written, as in some containers, it does nothing.

        Raises:
            NetworkError: The namespace cannot be entered.
        """
        gid = os.getegid() if self._user is not None else None

        def work(_say: _Say) -> list[int]:
            _allow_ping(gid)
            return []

        self._inside(work)

    def set_loopback(self, *, up: bool) -> None:
        """Bring the loopback interface up, or down: then nothing inside reaches anything.

        Raises:
            NetworkError: The namespace cannot be entered, or the caller has no right to.
        """

        def work(say: _Say) -> list[int]:
            say(f"bring the loopback of a private network {'up' if up else 'down'}")
            _set_loopback(up=up)
            return []

        self._inside(work)

    def disturb(self, *, delay_s: float = 0.0, loss: float = 0.0) -> None:
        """Delay or lose what is sent over the loopback interface (tc-netem(8)).

        Both directions of a connection go over it, so an answer takes twice the delay.

        Args:
            delay_s: Seconds by which each packet is delayed.
            loss: The part of the packets that is lost: 0.1 is one of ten. With neither, all is
                as it was.

        Raises:
            NetworkError: This kernel has no netem, or the namespace cannot be entered.
        """

        def work(say: _Say) -> list[int]:
            say("disturb a private network" if delay_s or loss else "calm a private network")
            _disturb(socket.if_nametoindex("lo"), delay_s, loss)
            return []

        self._inside(work)

    def close(self) -> None:
        """Give up the descriptors; the network goes with the last process in it. Twice is once."""
        for waiting in self._waiting.values():
            waiting.close()
        self._waiting.clear()
        for descriptor in (self._net, self._user):
            if descriptor is not None and descriptor >= 0:
                os.close(descriptor)
        self._net, self._user = -1, None

    def _inside(self, work: _Work) -> list[int]:
        # Read before the fork: the child of a process with threads takes no chances.
        user, net = self._user, self._net
        same_user = user is None or _same(user, "/proc/self/ns/user")
        here = self.is_ours()

        def enter(say: _Say) -> list[int]:
            say("enter a private network")
            if not same_user and user is not None:
                _setns(user, _CLONE_NEWUSER)
            if not here:
                _setns(net, _CLONE_NEWNET)
            return work(say)

        # A network alone can be entered by one thread, for a fiftieth of what a child takes.
        return _in_thread(enter) if same_user else _in_child(enter)


def enter(net_path: str, user_path: str) -> None:
    """Enter a network for good: for a process without threads that becomes another program.

    Args:
        net_path: `Namespace.net_path`.
        user_path: `Namespace.user_path`; "" for none.

    Raises:
        OSError: The kernel denies it.
    """
    paths = ((user_path, _CLONE_NEWUSER), (net_path, _CLONE_NEWNET))
    # Both are opened first: from inside, the process that holds them may be out of reach.
    opened = [(os.open(path, os.O_RDONLY), kind) for path, kind in paths if path]
    for descriptor, kind in opened:
        _setns(descriptor, kind)
        os.close(descriptor)


def denied_hint(*, proc: Path = Path("/proc")) -> str:
    """Say why private networks are denied here, and the one setting that helps.

    Args:
        proc: Where the kernel's settings are.
    """

    def setting(name: str) -> str | None:
        try:
            return (proc / "sys" / name.replace(".", "/")).read_text().strip()
        except OSError:
            return None

    sudo = "or run it as root: sudo understudy run"
    for name, denies, allowed in (
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "15000"),
        ("user.max_net_namespaces", "0", "15000"),
    ):
        if setting(name) == denies:
            return f"this system allows no new namespaces: sudo sysctl -w {name}={allowed}; {sudo}"
    if setting(_RESTRICTED) == "1":
        return (
            "AppArmor denies capabilities in user namespaces to programs without a profile of "
            f"their own: sudo understudy deploy --tester $USER; {sudo}"
        )
    try:
        status = (proc / "self/status").read_text()
    except OSError:
        status = ""
    if "\nSeccomp:\t2" in status:
        return (
            "a seccomp filter is in force: a container denies namespaces unless it is told "
            "otherwise (docker run --security-opt seccomp=unconfined --cap-add SYS_ADMIN)"
        )
    return f"unshare --user --net true says more; {sudo}"


def _in_thread(work: _Work) -> list[int]:
    """Have a thread of its own do something; in what network it was goes with it."""
    doing = ["enter a private network"]
    made: list[int] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            made.extend(work(lambda what: doing.__setitem__(0, what)))
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run, name="understudy-network")
    thread.start()
    thread.join()
    if not failed:
        return made
    if isinstance(failed[0], OSError):
        raise _error(f"{failed[0].errno or 0} {doing[0]}".encode()) from failed[0]
    raise failed[0]


def _in_child(work: _Work) -> list[int]:
    """Have a forked child do something and send descriptors back."""
    _libc()  # loaded before the fork: an import in a child may wait for a lock for ever
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, warnings.catch_warnings():
            # The child makes calls of the kernel only: what it warns of cannot happen.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
            if pid == 0:
                _child(work, theirs)
        try:
            return _answer(ours)
        finally:
            with contextlib.suppress(ChildProcessError):  # a handler of the caller took it
                os.waitpid(pid, 0)


def _child(work: _Work, answer: socket.socket) -> None:
    doing = ["enter a private network"]
    try:
        made = work(lambda what: doing.__setitem__(0, what))
        for first in range(0, len(made), _DESCRIPTORS_PER_MESSAGE):
            part = made[first : first + _DESCRIPTORS_PER_MESSAGE]
            socket.send_fds(answer, [b"made"], part)
        answer.send(b"done")
    except OSError as exc:
        with contextlib.suppress(OSError):
            answer.send(f"{exc.errno or 0} {doing[0]}".encode())
    finally:
        os._exit(0)


def _answer(channel: socket.socket) -> list[int]:
    made: list[int] = []
    try:
        while True:
            # socket.recv_fds() would leave them open across an exec.
            message, ancillary, _flags, _address = channel.recvmsg(
                4096,
                socket.CMSG_SPACE(_DESCRIPTORS_PER_MESSAGE * _INT.size),
                socket.MSG_CMSG_CLOEXEC,
            )
            for _level, _kind, data in ancillary:
                made += [number for (number,) in _INT.iter_unpack(data)]
            if message == b"done":
                return made
            if message != b"made":
                raise _error(message)
    except BaseException:
        for descriptor in made:
            os.close(descriptor)
        raise


def _error(message: bytes) -> NetworkError:
    if not message:
        return NetworkError("Cannot enter a private network: the process for it died")
    number, _, doing = message.decode().partition(" ")
    code = int(number)
    if code in _NO_NETEM and doing.startswith("disturb"):
        return NetworkError(
            f"Cannot {doing}: this kernel has no netem, which delays and loses packets",
            hint="modprobe sch_netem, as root; some distributions have it in a package of its own "
            "(linux-modules-extra-…, kernel-modules-extra)",
        )
    if code == errno.EADDRINUSE:
        return NetworkError(
            f"Cannot {doing}: {os.strerror(code)}",
            hint="something in that network has it, or lets it in already",
        )
    denied = code in _DENIED and not doing.startswith("listen")
    return NetworkError(
        f"Cannot {doing}: {os.strerror(code)}", hint=denied_hint() if denied else None
    )


def _listeners(numbers: Iterable[int], say: _Say) -> list[int]:
    with contextlib.ExitStack() as undo:
        made = [undo.enter_context(_listener(number, say)) for number in numbers]
        return [one.detach() for one in made]  # What is detached is not closed.


def _listener(number: int, say: _Say) -> socket.socket:
    say(f"listen on port {number} of a private network")
    try:
        made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            return _listening(made, "::", number)
        except BaseException:
            made.close()
            raise
    except OSError as exc:
        if exc.errno not in _NO_IPV6:
            raise
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        return _listening(made, "0.0.0.0", number)
    except BaseException:
        made.close()
        raise


def _listening(made: socket.socket, address: str, number: int) -> socket.socket:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, number))
    made.listen(_BACKLOG)
    return made


def _set_loopback(*, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0))
        _name, flags = _IFREQ.unpack(asked)
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags))


def _disturb(interface: int, delay_s: float, loss: float) -> None:
    """Set the queueing discipline of an interface, or remove it."""
    kind, flags = _RTM_NEWQDISC, _NLM_F_REQUEST_ACK | _NLM_F_REPLACE_CREATE
    # The older fields count in ticks of the scheduler; nanoseconds are in an attribute.
    latency = _attribute(_TCA_NETEM_LATENCY64, struct.pack("=q", round(delay_s * 1e9)))
    options = _NETEM.pack(0, _NETEM_LIMIT, round(loss * 0xFFFFFFFF), 0, 0, 0) + latency
    body = _attribute(_TCA_KIND, b"netem\0") + _attribute(_TCA_OPTIONS, options)
    if not delay_s and not loss:
        kind, flags, body = _RTM_DELQDISC, _NLM_F_REQUEST_ACK, b""
    body = _TRAFFIC_CONTROL.pack(socket.AF_UNSPEC, interface, 0, _TC_H_ROOT, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as netlink:
        size = _NETLINK_MESSAGE.size + len(body)
        netlink.send(_NETLINK_MESSAGE.pack(size, kind, flags, 1, 0) + body)
        (code,) = struct.unpack_from("=i", netlink.recv(4096), _NETLINK_MESSAGE.size)
    if code and not (kind == _RTM_DELQDISC and -code in (errno.ENOENT, errno.EINVAL)):
        raise OSError(-code, os.strerror(-code))


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + b"\0" * (-size % 4)


def _allow_ping(gid: int | None) -> None:
    # A user namespace knows no other group: all of them would be refused.
    first, last = (0, _LAST_GROUP) if gid is None else (gid, gid)
    with contextlib.suppress(OSError):
        _write("/proc/sys/net/ipv4/ping_group_range", f"{first} {last}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _same(descriptor: int, path: str) -> bool:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116 - a link to follow


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _take_profile() -> None:
    """Where AppArmor restricts user namespaces: take the testers' profile, if this host has it.

    Its name is all that it takes (aa_change_profile(2)); without it the kernel says no, as before.
    """
    with contextlib.suppress(OSError):
        if Path(f"/proc/sys/{_RESTRICTED.replace('.', '/')}").read_text().strip() == "1":
            Path("/proc/self/attr/apparmor/current").write_text(f"changeprofile {PROFILE}")


def _unshare(flags: int) -> None:
    _checked(_libc().unshare(flags))


def _setns(descriptor: int, kind: int) -> None:
    # os.setns() and os.unshare() exist from Python 3.12 on.
    _checked(_libc().setns(descriptor, kind))


def _checked(result: int) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
