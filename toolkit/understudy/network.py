"""Private networks of a run: production let in, and networks that several share by a name.

``understudy-through@RUN-N.service`` lets a port in. Its process is outside, where production is;
its socket was made inside and is handed to it. So whoever connects inside reaches production, from
the moment at which the socket listens: a connection waits until the process is there.

``understudy-network@RUN-NAME.service`` is a process that does nothing but hold a network of
its own, for whoever enters it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Self

from understudy import names
from understudy.errors import (
    NetworkError,
    ProductionError,
    UnderstudyError,
    UsageError,
    nearest_hint,
)
from understudy.guard import few_rights
from understudy.manager import Manager, Transient
from understudy.model import ManagerKind, Transport
from understudy.netns import Namespace

if TYPE_CHECKING:
    from understudy.model import Service
    from understudy.ports import Sockets

TIMEOUT_S = 30.0

PROXY_PATHS = (
    "/usr/lib/systemd/systemd-socket-proxyd",
    "/lib/systemd/systemd-socket-proxyd",
)

_UP = ("active", "reloading", "refreshing")

_NAME_RULE = "at most 64 lower-case letters, digits and single dashes"

# A run is one process's: each of its units has another number.
_numbers = itertools.count(1)


def production_targets(service: Service, port: str, sockets: Sockets) -> dict[int, str]:
    """Where production's TCP ports are to be found that listen now.

    Args:
        service: Production's definition.
        port: The name or the number of one of its ports; "" for all that listen.
        sockets: What is bound (`understudy.ports.snapshot`).

    Returns:
        Each one's address (``127.0.0.1:9997``) by its number.

    Raises:
        UsageError: It has no such port, or that one is UDP.
        ProductionError: None of them listens.
    """
    declared = {one.name: one.number for one in service.ports.values() if one.number is not None}
    wanted = {
        name: number
        for name, number in declared.items()
        if service.ports[name].transport is Transport.TCP and port in ("", name, str(number))
    }
    if not wanted:
        raise _no_port(service, port, declared)
    found = {}
    for number in wanted.values():
        addresses = [one.address for one in sockets.bound(Transport.TCP, number) if one.listening]
        if addresses:
            # Without brackets, also for IPv6: systemd-socket-proxyd(8) takes the last colon.
            found[number] = f"{reached_at(addresses)}:{number}"
    if not found:
        usual = {name: n for name, n in wanted.items() if service.ports[name].switch is None}
        which = ", ".join(f"{name} {number}" for name, number in (usual or wanted).items())
        unit = service.production
        raise ProductionError(
            f"Cannot let '{service.name}' in: "
            + (
                f"its port {which} does not listen"
                if port
                else f"none of its ports listens: {which}"
            ),
            hint=f"systemctl start {unit}" if unit else "start it first",
        )
    return found


def _no_port(service: Service, port: str, declared: Mapping[str, int]) -> UsageError:
    udp = [name for name, number in declared.items() if port in (name, str(number))]
    if udp:
        return UsageError(
            f"Cannot let port '{port}' of '{service.name}' in: it is UDP, which no proxy carries",
            hint="an instance has it inside: --service or --join",
        )
    known = ", ".join(f"{name} ({number})" for name, number in declared.items()) or "none"
    if not port:
        return UsageError(
            f"Cannot let '{service.name}' in: it declares no TCP port that production has",
            hint=f"its ports: {known}",
        )
    return UsageError(
        f"Cannot let '{service.name}' in: it has no port '{port}'",
        hint=f"{nearest_hint(port, [*declared, *map(str, declared.values())])}its ports: {known}",
    )


def reached_at(addresses: Sequence[str]) -> str:
    """The address to connect to of what listens on these.

    Args:
        addresses: As the kernel has them: ``0.0.0.0``, ``::``, ``127.0.0.1``.
    """
    if any(one == "0.0.0.0" or one.startswith("127.") for one in addresses):
        loopback = [one for one in addresses if one.startswith("127.")]
        return "127.0.0.1" if "0.0.0.0" in addresses else loopback[0]
    if "::" in addresses:
        return "127.0.0.1"
    return addresses[0]


def let_in(
    manager: Manager,
    run: str,
    namespace: Namespace,
    targets: Mapping[int, str],
    *,
    timeout_s: float = TIMEOUT_S,
) -> list[str]:
    """Let what listens outside be reached inside, for as long as the run lives.

    Args:
        manager: The run's manager.
        run: Its id.
        namespace: The private network.
        targets: Where each port inside leads (``127.0.0.1:9997``), by the port's number.
        timeout_s: Deadline in seconds.

    Returns:
        The units that do it.

    Raises:
        NetworkError: A port is taken inside; or a process that should be outside is not.
        ManagerError: The manager refused.
    """
    listeners = namespace.listen(targets)
    try:
        units = through_units(manager, run, listeners, targets)
        start(manager, units, timeout_s=timeout_s)
    finally:
        for listener in listeners.values():
            listener.close()
    unit_names = [unit.unit for unit in units]
    check_outside(manager, unit_names, namespace)
    return unit_names


class LettingIn:
    """Lets ports in as they are first connected to, while the block lasts.

    They listen inside from the beginning; whoever connects waits a few milliseconds for the
    process that leads out. Who uses none of them waits for none.

    Args:
        manager: The run's manager.
        run: Its id.
        namespace: The private network.
        targets: Where each port inside leads, by the port's number.

    Attributes:
        errors: Why ports could not be let in.

    Raises:
        NetworkError: A port is taken inside, or systemd's proxy is not installed.
    """

    def __init__(
        self, manager: Manager, run: str, namespace: Namespace, targets: Mapping[int, str]
    ) -> None:
        if targets:
            proxy_program()
        self.errors: list[UnderstudyError] = []
        self._manager = manager
        self._run = run
        self._namespace = namespace
        self._targets = targets
        self._listeners = namespace.listen(targets)
        self._ending = False
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="understudy-through", daemon=True)

    def __enter__(self) -> Self:
        if self._listeners:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self._waker.close()
        if self._listeners:
            self._thread.join()
        for listener in self._listeners.values():
            listener.close()
        self._wake.close()

    def end(self) -> None:
        """Say that the run is about to end: what cannot be let in from now on is no error."""
        self._ending = True

    def _serve(self) -> None:
        # The signals are the main thread's: it waits for the command and passes them on.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for listener in self._listeners.values():
            poll.register(listener, select.POLLIN)
        by_descriptor = {one.fileno(): number for number, one in self._listeners.items()}
        while True:
            ready = [descriptor for descriptor, _event in poll.poll()]
            if self._wake.fileno() in ready:
                return
            due = {by_descriptor[descriptor]: descriptor for descriptor in ready}
            for descriptor in ready:
                poll.unregister(descriptor)
            try:
                self._let_in(list(due))
            except (UnderstudyError, OSError) as exc:
                if not self._ending:
                    self.errors.append(_not_let_in(due, exc))
                for number in due:
                    # Whoever else has a copy: nobody is to wait for an answer.
                    self._listeners[number].shutdown(socket.SHUT_RDWR)
            for number in due:
                self._listeners[number].close()

    def _let_in(self, numbers: Sequence[int]) -> None:
        targets = {number: self._targets[number] for number in numbers}
        units = through_units(self._manager, self._run, self._listeners, targets)
        start(self._manager, units, timeout_s=TIMEOUT_S)
        check_outside(self._manager, [unit.unit for unit in units], self._namespace)


def _not_let_in(numbers: Iterable[int], exc: UnderstudyError | OSError) -> UnderstudyError:
    if isinstance(exc, UnderstudyError):
        return exc
    which = ", ".join(map(str, numbers))
    return NetworkError(
        f"Cannot let port {which} in: {exc.strerror or exc}",
        hint="ulimit -n says how many descriptors a process may have"
        if exc.errno == errno.EMFILE
        else None,
    )


def through_units(
    manager: Manager,
    run: str,
    listeners: Mapping[int, socket.socket],
    targets: Mapping[int, str],
) -> list[Transient]:
    """The units that let ports in, to be started together with others.

    Args:
        manager: The run's manager.
        run: Its id.
        listeners: What listens inside, by port; open until the units are started.
        targets: Where each port leads.

    Raises:
        NetworkError: systemd's proxy is not installed.
    """
    program = proxy_program()
    guard = names.guard_unit(run)
    # Whom it serves and where it connects is all that it may do: it needs no right of root's.
    own = [("DynamicUser", "yes"), ("User", f"ut-{run}")]
    return [
        Transient(
            unit=(unit := names.through_unit(run, next(_numbers))),
            properties=[
                ("Description", f"Port {number} of understudy run {run} leads to {target}"),
                ("Type", "exec"),
                ("Slice", names.slice_unit(run)),
                ("BindsTo", guard),
                ("After", guard),
                ("CollectMode", "inactive-or-failed"),
                ("TimeoutStopSec", "5"),
                ("SyslogIdentifier", unit.removesuffix(".service")),
                ("Environment", f"UNDERSTUDY_RUN={run}"),
                *(own if manager.kind is ManagerKind.SYSTEM else ()),
            ],
            # The socket is standard input; sd_listen_fds(3) wants it as descriptor 3.
            command=[
                *("/bin/sh", "-c"),
                'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$1" 3<&0 0</dev/null',
                *(program, target),
            ],
            stdin=listeners[number].fileno(),
        )
        for number, target in targets.items()
    ]


def check_outside(manager: Manager, units: Sequence[str], namespace: Namespace) -> None:
    """Demand that processes are not in a private network; stop those that are.

    Args:
        manager: Their manager.
        units: The units whose main processes these are.
        namespace: The network.

    Raises:
        NetworkError: One of them is in it: it would connect to itself for ever.
    """
    for unit, status in manager.status(units).items():
        if not status.main_pid:
            continue  # It has ended: its connections are closed, which its users see.
        try:
            with Namespace.of(status.main_pid) as found:
                inside = found.same_as(namespace)
        except NetworkError:
            continue  # gone, or another user's: that is not a process of a network of ours
        if inside:
            manager.stop([unit], timeout_s=TIMEOUT_S)
            raise NetworkError(
                f"Cannot let production in: '{unit}' runs in the private network, not outside"
            )


def start(manager: Manager, units: Sequence[Transient], *, timeout_s: float) -> None:
    """Start transient units and return when all have begun; if one does not, stop all of them.

    Args:
        manager: Where.
        units: The units.
        timeout_s: Deadline in seconds.

    Raises:
        NetworkError: One did not begin.
        ManagerError: The manager refused.
    """
    deadline = time.monotonic() + timeout_s
    waiting = {unit.unit for unit in units}
    try:
        with contextlib.ExitStack() as opened:
            jobs = manager.create(units)
            for each in jobs:
                opened.callback(each.close)
            while waiting and time.monotonic() < deadline:
                # More than one only where a property is left to systemd-run.
                pause_s = deadline - time.monotonic() if len(jobs) == 1 else 0.005
                for unit, word in [news for each in jobs for news in each.wait(pause_s)]:
                    if word != "done":
                        raise NetworkError(
                            f"Cannot start '{unit}': job {word}",
                            hint=f"See: journalctl -t {unit.removesuffix('.service')}",
                        )
                    waiting.discard(unit)
        if waiting:
            late = ", ".join(sorted(waiting))
            raise NetworkError(f"Cannot start '{late}': not done within {timeout_s:g} s")
    except BaseException:
        manager.stop([unit.unit for unit in units], timeout_s=TIMEOUT_S)
        raise


@cache
def proxy_program() -> str:
    """Where ``systemd-socket-proxyd`` is.

    Raises:
        NetworkError: It is not installed.
    """
    for path in PROXY_PATHS:
        if os.access(path, os.X_OK):
            return path
    raise NetworkError(
        f"Cannot let a port through: {PROXY_PATHS[0]} is not there",
        hint="It is part of systemd; a distribution may have it in a package of its own",
    )


class Network:
    """A private network with a name, which everything of one manager finds by it.

    Attributes:
        name: Its name (``lab``).
        run: The run that made it, and with which it ends.
        unit: What holds it.
        pid: The process that holds it: its namespaces are ``/proc/PID/ns/net`` and ``user``.
    """

    def __init__(self, name: str, run: str, pid: int) -> None:
        self.name = name
        self.run = run
        self.unit = names.network_unit(run, name)
        self.pid = pid

    @classmethod
    def find(cls, manager: Manager, name: str) -> Self | None:
        """The network of that name, if it lives.

        Args:
            manager: Where it lives.
            name: Its name.

        Raises:
            UsageError: That is no name.
        """
        _check_name(name)
        found = manager.list([names.network_unit("*", name)])
        for unit, status in sorted(found.items()):
            parts = names.parse_network(unit)
            live = status.active_state in _UP and status.main_pid
            if parts is not None and parts[1] == name and live:
                return cls(name, parts[0], status.main_pid)
        return None

    @classmethod
    def find_or_make(
        cls, manager: Manager, run: str, name: str, *, timeout_s: float = TIMEOUT_S
    ) -> Self:
        """The network of that name; if there is none, one that ends with the run.

        Two runs that ask at the same time get the same one.

        Args:
            manager: Where it lives.
            run: The run that makes it.
            name: Its name.
            timeout_s: Deadline in seconds.

        Raises:
            UsageError: That is no name.
            NetworkError: It cannot be made, or is not private.
            ManagerError: The manager refused.
        """
        if (found := cls.find(manager, name)) is not None:
            return found
        with _alone(manager, name, timeout_s):
            found = cls.find(manager, name)
            return found or cls._make(manager, run, name, timeout_s)

    @classmethod
    def _make(cls, manager: Manager, run: str, name: str, timeout_s: float) -> Self:
        guard = names.guard_unit(run)
        unit = names.network_unit(run, name)
        # Without a user namespace around it systemd 252's user manager shares the host's network.
        around = [("PrivateUsers", "yes")] if manager.kind is ManagerKind.USER else []
        holder = Transient(
            unit=unit,
            properties=[
                ("Description", f"Private network {name} of understudy run {run}"),
                ("Type", "exec"),
                ("Slice", names.slice_unit(run)),
                ("BindsTo", guard),
                ("After", guard),
                ("CollectMode", "inactive-or-failed"),
                ("TimeoutStopSec", "5"),
                ("PrivateNetwork", "yes"),
                *few_rights(manager),
                *around,
                ("SyslogIdentifier", unit.removesuffix(".service")),
                ("Environment", f"UNDERSTUDY_RUN={run}"),
            ],
            command=["/bin/sleep", "infinity"],
        )
        start(manager, [holder], timeout_s=timeout_s)
        made = cls(name, run, manager.status([unit])[unit].main_pid)
        try:
            with made.namespace() as namespace:
                namespace.allow_ping()
        except BaseException:
            manager.stop([unit], timeout_s=TIMEOUT_S)
            raise
        return made

    def namespace(self) -> Namespace:
        """Its namespaces, held open; the caller closes them.

        Raises:
            NetworkError: It is gone, or is no private one.
        """
        found = Namespace.of(self.pid)
        if found.is_ours():
            found.close()
            if os.environ.get("UNDERSTUDY_NETWORK") == f"private:{self.name}":
                raise NetworkError(
                    f"Cannot enter network '{self.name}': this process is in it already",
                    hint="without --network a command stays where it is",
                )
            raise NetworkError(
                f"Cannot use network '{self.name}': '{self.unit}' runs in the host's network",
                hint="The manager cannot isolate here: sudo understudy run",
            )
        return found


def network_name(text: str) -> str | None:
    """The name of the network that a word stands for; "" for one without, None for the host's.

    Args:
        text: ``host``, ``private``, or ``private:NAME``.

    Raises:
        UsageError: It is none of these.
    """
    kind, colon, name = text.partition(":")
    if text == "host":
        return None
    if kind != "private" or (colon and not names.valid_network_name(name)):
        raise UsageError(
            f"Cannot use network '{text}': "
            + ("that is no name" if kind == "private" else "there is no such kind"),
            hint=f"host, private, or private:NAME with a name of {_NAME_RULE}",
        )
    return name


def _check_name(name: str) -> None:
    if not names.valid_network_name(name):
        raise UsageError(
            f"Cannot use '{name}' as a network's name",
            hint=f"{_NAME_RULE}: private:lab",
        )


@contextlib.contextmanager
def _alone(manager: Manager, name: str, timeout_s: float) -> Iterator[None]:
    """Be the only one of this manager that looks for a network and makes it."""
    whose = os.geteuid() if manager.kind is ManagerKind.USER else "system"
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        while True:
            try:
                lock.bind(f"\0understudy/network/{whose}/{name}")
                break
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
            if time.monotonic() >= deadline:
                raise NetworkError(
                    f"Cannot make network '{name}': somebody else has been making it for "
                    f"{timeout_s:g} s"
                )
            select.select([], [], [], pause_s)
            pause_s = min(2 * pause_s, 0.05)
        yield
