"""Leases on production: shared by many, or exclusively one's own.

A lease is seen by every user of the host and held by the kernel (`lease_program` says how). The
process that keeps it is not the owner but one outside, started by the owner's manager: so it is in
the host's network although the owner may be in a private one, where abstract sockets are others,
and no child of the owner's inherits it. It ends with its owner, which it knows by a pidfd.

It keeps tests from disturbing one another by accident; it keeps nobody from production who does
not ask.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from understudy import lease_program, names
from understudy.errors import (
    LeaseError,
    NoManagerError,
    ProductionError,
    UnitExistsError,
    UsageError,
)
from understudy.lease_program import EXCLUSIVE, HOLDING, SHARED, Ticket
from understudy.manager import Manager, Transient, connect
from understudy.model import ManagerKind
from understudy.ports.claiming import user_name
from understudy.ports.sock_diag import unix_listeners

TIMEOUT_S = 60.0
START_TIMEOUT_S = 10.0
REMINDER_S = 1.0

INHERITED = "UNDERSTUDY_LEASE"
"""Environment: the lease of the command line that a command runs under, ``ID:KIND:KEY``."""

_KEY_LENGTH = 40
_WHO_LENGTH = 12
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
_BUFFER_BYTES = 262144

Waiting = Callable[[str, bool], None]
"""Told while a lease is waited for: in words, and whether it is somebody else than before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who has a lease, or waits for one.

    Attributes:
        who: What the process is called: ``pytest``.
        pid: Its PID, as it sees that itself.
        user: Its user's name.
        exclusive: Whether it is, or shall be, alone.
        holds: Whether it has the lease; else it waits.
        since_s: Seconds for which that has been so.
    """

    who: str
    pid: int
    user: str
    exclusive: bool
    holds: bool
    since_s: float

    def __str__(self) -> str:
        name = f"{self.who} {self.pid} of user {self.user}"
        name += " (this process)" * (self.pid == os.getpid())
        if self.holds:
            verb = "exclusively held by" if self.exclusive else "shared by"
            return f"{verb} {name}, since {self.since_s:.0f} s"
        kind = "exclusively" if self.exclusive else "to share it"
        return f"{name} stands before, wanting it {kind}, since {self.since_s:.0f} s"


class Lease:
    """A lease that one has until it is closed, or one's process ends.

    It is this process's: a forked child has none of it, and cannot close it. Closing twice does
    no harm.

    Attributes:
        id: Its id, as long as it lives that of no other lease or run: ``r7k2mq``.
        exclusive: Whether nobody else has one.
        network: What tells the network in which it is kept from every other.
    """

    def __init__(self, keeper: _Keeper, *, exclusive: bool, network: str) -> None:
        self.id = keeper.id
        self.exclusive = exclusive
        self.network = network
        self._keeper = keeper
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lease {self.id} {'exclusive' if self.exclusive else 'shared'}>"

    def close(self) -> None:
        """Give it back; it is free when this returns."""
        if self._open:
            self._open = False
            _give_back(self._keeper)

    def live_runs(self) -> frozenset[str]:
        """The ids of all runs and leases of this host that live, whoever has them.

        Raises:
            ProductionError: What keeps the lease is gone.
        """
        answer = self._keeper.ask({"verb": "live"}, "live")
        runs = answer["runs"]
        assert isinstance(runs, list)
        return frozenset(str(run) for run in runs)

    def keep_run(self, run: str) -> None:
        """Have a run seen to live as long as this lease does, also outside a private network.

        Args:
            run: Its id.

        Raises:
            ProductionError: What keeps the lease is gone.
        """
        self._keeper.ask({"verb": "name", "run": run}, "named")


def key_of(unit: str, kind: ManagerKind) -> str:
    """What a unit's leases go by: the same for all who mean the same unit.

    Args:
        unit: Production's unit.
        kind: Whose manager runs it; a user's own is meant among that user's processes only.
    """
    key = unit if kind is ManagerKind.SYSTEM else f"{os.geteuid()}+{unit}"
    if len(key) <= _KEY_LENGTH:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return f"{key[: _KEY_LENGTH - 13]}-{digest}"


def lease(
    key: str,
    *,
    service: str,
    exclusive: bool = False,
    timeout_s: float = TIMEOUT_S,
    manager: Manager | None = None,
    who: str = "",
    waiting: Waiting | None = None,
) -> Lease:
    """Get a lease, and wait for it where others have it. First come, first served.

    A process that has one already, of the same kind or an exclusive one, shares it with itself.

    Args:
        key: What `key_of` gives.
        service: What it is called for people.
        exclusive: Wait until nobody else has one, and have nobody else get one.
        timeout_s: Deadline in seconds for the whole call.
        manager: What starts the process that keeps it; None: the caller's own, and where there
            is none the process is started directly.
        who: What others are told that the owner is called; "": the program's name.
        waiting: Told while it is waited for: at once, at each change, and each second.

    Raises:
        LeaseError: Others have had it for the whole time; the message names them.
        ProductionError: The process that keeps it has ended.
        UsageError: It is asked for exclusively by who shares it.
        ManagerError: The manager refused, or there is none and this is a private network.
    """
    with _lock:
        if (known := _known(key)) is not None:
            keeper, held_exclusively = known
            if exclusive and not held_exclusively:
                raise _upgrade(service)
            keeper.users += 1
            return Lease(keeper, exclusive=held_exclusively, network=keeper.network)
    under = _inherited(key, service, exclusive=exclusive)
    keeper = _rested() or _begin(manager)
    try:
        _take(keeper, key, under, service, exclusive, timeout_s, who or program_name(), waiting)
    except BaseException:
        keeper.end()
        raise
    with _lock:
        _kept[key] = keeper, exclusive
    return Lease(keeper, exclusive=exclusive, network=keeper.network)


def holders(key: str) -> list[Holder]:
    """Who has leases, then who waits for one, in order; as seen in the caller's network.

    Args:
        key: What `key_of` gives.

    Raises:
        PortError: The kernel denies it.
    """
    seen = []
    for name, uid in unix_listeners():
        if name.startswith(b"\0"):
            ticket = lease_program.parse(name[1:].decode(errors="replace"), uid)
            if ticket is not None and ticket.key == key:
                seen.append(ticket)
    return _holders(seen)


def variable(key: str, lease: Lease) -> dict[str, str]:
    """The environment that tells a command which lease it runs under.

    Args:
        key: The lease's key.
        lease: The lease.
    """
    return {INHERITED: f"{lease.id}:{EXCLUSIVE if lease.exclusive else SHARED}:{key}"}


def program_name() -> str:
    """What this process is called: its script, or the module that it runs."""
    path = Path(sys.argv[0] or "python")
    return path.parent.name if path.name == "__main__.py" else path.name


_lock = threading.Lock()
_kept: dict[str, tuple[_Keeper, bool]] = {}
_resting: list[_Keeper] = []


class _Keeper:
    """The process that keeps a lease, seen from its owner."""

    def __init__(self, id_: str, channel: socket.socket) -> None:
        self.id = id_
        self.unit = names.lease_unit(id_)
        self.users = 1
        self.network = ""
        self._channel = channel
        self._pid = os.getpid()
        self._asking = threading.Lock()

    def ours(self) -> bool:
        """Whether this process began it, and is not a forked child of the one that did."""
        return self._pid == os.getpid()

    def send(self, message: Mapping[str, object], descriptors: Iterable[int] = ()) -> None:
        socket.send_fds(self._channel, [json.dumps(message).encode()], [*descriptors])

    def receive(self, timeout_s: float) -> dict[str, object] | None:
        """The next word; None if none came in time."""
        self._channel.settimeout(max(0.001, timeout_s))
        try:
            data = self._channel.recv(_BUFFER_BYTES)
        except TimeoutError:
            return None
        except OSError:
            data = b""
        if not data:
            raise ProductionError(
                "Cannot use the lease: the process that keeps it has ended",
                hint=f"See: journalctl -t {self.unit.removesuffix('.service')}",
            )
        answer: dict[str, object] = json.loads(data)
        return answer

    def ask(self, message: Mapping[str, object], wanted: str) -> dict[str, object]:
        if not self.ours():
            raise ProductionError("Cannot use the lease: it is that of another process")
        with self._asking:
            with contextlib.suppress(OSError):  # what follows says so
                self.send(message)
            answer = self.receive(START_TIMEOUT_S)
        if answer is None or answer["said"] != wanted:
            why = "no answer" if answer is None else answer.get("why", answer["said"])
            raise ProductionError(f"Cannot use the lease: what keeps it says: {why}")
        return answer

    def end(self) -> None:
        """Give up the lease, wait until it is free, and keep the process for the next one.

        If there is none soon, the process ends by itself.
        """
        if self.ours():
            with contextlib.suppress(OSError, ProductionError):
                self.send({"verb": "free"})
                while (answer := self.receive(START_TIMEOUT_S)) is not None:
                    if answer["said"] == "freed":
                        _rest(self)
                        return
        self._channel.close()

    def close(self) -> None:
        """Give up the channel."""
        self._channel.close()

    def wake(self) -> bool:
        """Have it keep another lease, with an id of its own; whether it is still there."""
        try:
            self.ask({"verb": "wake"}, "awake")
        except ProductionError:
            self._channel.close()
            return False
        self.id = _new_id()
        self.users = 1
        return True


def _known(key: str) -> tuple[_Keeper, bool] | None:
    """The lease that this process has; what a forked child finds of its parent's goes."""
    for known, (keeper, _) in [*_kept.items()]:
        if not keeper.ours():
            del _kept[known]
    return _kept.get(key)


def _give_back(keeper: _Keeper) -> None:
    if not keeper.ours():
        return
    with _lock:
        keeper.users -= 1
        if keeper.users:
            return
        for key, (known, _) in [*_kept.items()]:
            if known is keeper:
                del _kept[key]
    keeper.end()


def _inherited(key: str, service: str, *, exclusive: bool) -> str:
    """The id of the lease that this process's command line has of the same; "" if it has none."""
    id_, _, rest = os.environ.get(INHERITED, "").partition(":")
    kind, _, of = rest.partition(":")
    if of != key:
        return ""
    if exclusive and kind == SHARED:
        raise _upgrade(service)
    return id_


def _upgrade(service: str) -> UsageError:
    return UsageError(
        f"Cannot have '{service}' exclusively: this process shares it already",
        hint="give that lease back first, or ask for the exclusive one in its place",
    )


def _rest(keeper: _Keeper) -> None:
    atexit.unregister(end_resting)
    atexit.register(end_resting)
    _resting.append(keeper)


def end_resting() -> None:
    """Let those go that keep no lease any more; each ends by itself a little later."""
    while _resting:
        _resting.pop().close()


def _rested() -> _Keeper | None:
    """A process that kept a lease just now and has not ended yet; to start one takes its time."""
    while True:
        try:
            keeper = _resting.pop()
        except IndexError:
            return None
        if keeper.wake():
            return keeper


def _new_id() -> str:
    return "r" + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in os.urandom(5))


def _begin(manager: Manager | None) -> _Keeper:
    """Start the process that will keep a lease; it ends with this one from its first moment on."""
    if manager is None:
        try:
            manager = connect()
        except NoManagerError:
            if os.environ.get("UNDERSTUDY_NETWORK", "").startswith("private"):
                raise
    while True:
        id_ = _new_id()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        keeper = _Keeper(id_, ours)
        try:
            owner = os.pidfd_open(os.getpid())
            try:
                keeper.send({"verb": "own"}, [owner])
            finally:
                os.close(owner)
            _start(manager, id_, theirs.fileno())
        except UnitExistsError:
            ours.close()
        except BaseException:
            ours.close()
            raise
        else:
            return keeper
        finally:
            theirs.close()


def _start(manager: Manager | None, id_: str, channel: int) -> None:
    argv = [sys.executable, "-I", "-S", str(Path(lease_program.__file__).resolve()), id_]
    if manager is None:
        subprocess.run([*argv, "--alone"], stdin=channel, check=True, start_new_session=True)
        return
    unit = names.lease_unit(id_)
    properties = [
        ("Description", f"Lease on production of process {os.getpid()}"),
        # Its channel holds what was said before it is there.
        ("Type", "simple"),
        ("Slice", "understudy.slice"),
        ("CollectMode", "inactive-or-failed"),
        ("TimeoutStopSec", "5"),
        ("SyslogIdentifier", unit.removesuffix(".service")),
    ]
    manager.start_transient(
        Transient(unit=unit, properties=properties, command=argv),
        [],
        stdin=channel,
        timeout_s=START_TIMEOUT_S,
    )


def _take(
    keeper: _Keeper,
    key: str,
    under: str,
    service: str,
    exclusive: bool,
    timeout_s: float,
    who: str,
    waiting: Waiting | None,
) -> None:
    deadline = time.monotonic() + timeout_s
    who = re.sub(r"[^\w.+-]", "-", who, flags=re.ASCII)[:_WHO_LENGTH] or "process"
    kind = EXCLUSIVE if exclusive else SHARED
    words = {"key": key, "under": under, "id": keeper.id, "kind": kind, "who": who}
    keeper.send({"verb": "take", "pid": os.getpid(), **words})
    before: list[Ticket] = []
    while True:
        left_s = deadline - time.monotonic()
        answer = keeper.receive(min(left_s, REMINDER_S))
        if answer is not None and answer["said"] == "held":
            keeper.network = str(answer["network"])
            return
        if answer is not None and answer["said"] == "failed":
            raise ProductionError(f"Cannot lease '{service}': {answer['why']}")
        if answer is not None:
            rows = answer["before"]
            assert isinstance(rows, list)
            before = [Ticket(*row) for row in rows]
        text = describe(_holders(before))
        if left_s <= 0:
            how = " exclusively" if exclusive else ""
            raise LeaseError(
                f"Cannot lease '{service}'{how}: "
                + (f"after {timeout_s:g} s still {text}" if text else "no answer in time"),
                hint=f"see who has it: understudy production {service}; a longer wait: timeout_s=, "
                "--timeout",
            )
        if waiting is not None and before:
            waiting(f"waiting for {service}: {text}", answer is not None)


def describe(found: list[Holder]) -> str:
    """Holders in a few words: the first, and how many others."""
    if not found:
        return ""
    others = len(found) - 1
    return str(found[0]) + (f", and {others} other{'s' * (others > 1)}" if others else "")


def _holders(tickets: Iterable[Ticket]) -> list[Holder]:
    best: dict[str, Ticket] = {}
    for one in tickets:
        if one.id not in best or one.phase == HOLDING:
            best[one.id] = one
    order = sorted(best.values(), key=lambda one: (one.phase != HOLDING, one.number, one.id))
    now = lease_program.now()
    return [
        Holder(
            who=one.who,
            pid=one.pid,
            user=user_name(one.uid),
            exclusive=one.kind == EXCLUSIVE,
            holds=one.phase == HOLDING,
            since_s=max(0, now - one.since) / 10,
        )
        for one in order
    ]
