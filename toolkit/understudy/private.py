"""How instances in private networks come up: at the gate, inside, published, outside.

======================= ====================================================================
step                    what ends it
======================= ====================================================================
``GATE``                its command waits at the gate, in a network that is not the host's, and
                        what it uses outside can be reached inside
``INSIDE``              its start job is done, and it holds each of its ports inside
``DUE``                 the proxies of all instances that are due are started at once
``PUBLISHING``          all of its proxies run, in its network
``OUTSIDE``             its published ports are held outside; now they can be asked
======================= ====================================================================

A step is taken by as many of a batch as can take it, and none waits for another. What is not where
it should be is an error: a service in the host's network never passes the gate, and a proxy there
is stopped at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from enum import Enum, auto
from pathlib import Path

from understudy import failure, gate, names, network, ports
from understudy.errors import ManagerError, NetworkError, UnderstudyError
from understudy.manager import Jobs, Manager, Transient
from understudy.model import Activation, ManagerKind, Transport
from understudy.netns import Namespace, denied_hint
from understudy.plan import Plan
from understudy.ports.cgroups import processes

STOP_TIMEOUT_S = 10.0

ENTERING = "nsenter"
"""What a proxy of a user manager is until it is inside."""


class Step(Enum):
    """Where an instance is on its way."""

    GATE = auto()
    INSIDE = auto()
    DUE = auto()
    PUBLISHING = auto()
    OUTSIDE = auto()


class Passage:
    """The way of one instance.

    Args:
        plan: The instance.
        cgroup: Its control group.
        ephemeral: The ports that the kernel gives to clients.

    Attributes:
        step: Where it is.
        running: Whether its start job is done.
        check: How it stood to its ports inside when last looked at; None before.
        error: Why it cannot go on; None while it can.
        lost: Published ports that somebody else has.
        proxies: The units of its published ports that do not run inside yet, by port.
        listeners: What listens inside for somebody outside, until units are made of it.
        targets: Where each of them leads, by its number.
        through: Those units, while they do not run yet.
    """

    def __init__(self, plan: Plan, cgroup: str, ephemeral: range) -> None:
        self.plan = plan
        self.step = Step.GATE
        self.running = False
        self.check: ports.Check | None = None
        self.error: UnderstudyError | None = None
        self.lost: set[int] = set()
        self.proxies = dict(plan.derived.proxies)
        self.listeners: dict[int, socket.socket] = {}
        self.targets: dict[int, str] = {}
        self.through: set[str] = set()
        self._up: set[str] = set()
        self._cgroup = cgroup
        self._ephemeral = ephemeral
        self._entrance: int | None = None
        self._inside: socket.socket | None = None
        self._place: os.stat_result | None = None

    @property
    def here(self) -> bool:
        """Whether its network is the one that this process is in."""
        return self.plan.part.network is not None and self.plan.part.network.here

    @property
    def unpublished(self) -> bool:
        """Whether there is nothing to publish: sockets are handed in, or we are inside as well."""
        return self.here or self.plan.request.service.instance_activation is Activation.SOCKETS

    @property
    def waits_for(self) -> str:
        """What it waits for, for people; "" where its ports say more."""
        return {
            Step.GATE: "its command has not come to the gate of its network",
            Step.INSIDE: f"{', '.join(sorted(self.through))} do not run" if self.through else "",
            Step.PUBLISHING: f"no proxy runs yet for {', '.join(self.proxies)}",
        }.get(self.step, "")

    def go(self) -> None:
        """Take the step that can be taken without waiting."""
        try:
            if self.step is Step.GATE and self._at_gate():
                if self.here:
                    self._open()  # Where it is its ports show: no other process could see them.
                else:
                    self._pass()
                if self.error is not None:
                    return
                self.step = Step.OUTSIDE if self.unpublished else Step.INSIDE
            if self.step is Step.INSIDE and self.running and self._holds() and not self.through:
                self.step = Step.DUE if self.proxies else Step.OUTSIDE
            if self.step is Step.PUBLISHING and self._published():
                self.step = Step.OUTSIDE
        except (UnderstudyError, FileNotFoundError) as exc:
            if not processes(self._cgroup):
                return  # It has died on the way, and its manager tells.
            if not isinstance(exc, UnderstudyError):
                raise
            self.error = exc

    def up(self, unit: str) -> None:
        """One of its proxies runs, or one of the units that let something in."""
        if unit not in self.through:
            self._up.add(unit)
            return
        self.through.discard(unit)
        for pid in processes(self._beside(unit)):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if self._same_place(pid):
                    self.error = NetworkError(
                        f"Cannot let in what '{self.plan.derived.unit}' uses: '{unit}' runs in its "
                        "network, not outside"
                    )

    def refused(self, proxy: str, word: str, sockets: ports.Sockets) -> None:
        """One of its units did not start: see whether somebody else has the port.

        Args:
            proxy: Which.
            word: What its job came to.
            sockets: What is bound outside.
        """
        if not processes(self._cgroup):
            return  # The proxy went with its instance, whose end is told by itself.
        if proxy in self.through:
            self.error = failure.not_let_in(self.plan, proxy, word)
            return
        name = next(name for name, unit in self.proxies.items() if unit == proxy)
        number = self.plan.part.published[name]
        if word == "dependency" or sockets.bound(Transport.TCP, number):
            self.lost.add(number)
        else:
            self.error = failure.unpublished(self.plan, name, proxy, word)

    def heard(self) -> None:
        """Give up what listens inside: the units that were made of it have it."""
        for listener in self.listeners.values():
            listener.close()
        self.listeners = {}

    def close(self) -> None:
        """Give up what it has open; a gate that was not passed stays shut."""
        if self._entrance is not None:
            os.close(self._entrance)
            self._entrance = None
        if self._inside is not None:
            self._inside.close()
            self._inside = None
        self.heard()

    def _at_gate(self) -> bool:
        """Whether its command waits, in a process that can be seen."""
        gate_path = self.plan.derived.gate
        assert gate_path is not None
        if self._entrance is None:
            try:
                self._entrance = os.open(gate_path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # fifo(7): nobody reads
                    return False
                raise
        return bool(processes(self._cgroup))

    def _pass(self) -> None:
        """Look where it waits, let in what it uses, and open the gate."""
        part = self.plan.part
        assert part.network is not None
        assert self._entrance is not None
        pid = processes(self._cgroup)[0]
        with Namespace.of(pid) as found:
            self._place = os.stat(found.net_path)  # noqa: PTH116 - a link to follow
            if found.is_ours() or not self._is_wanted():
                # Before the gate is given up: with that its process ends.
                self.error = self._shared(pid)
                self.close()
                return
            if part.kind is ManagerKind.USER and not part.network.net_path:
                path = Path(gate.pid_path(names.files_directory(self.plan.derived.directory)))
                path.write_text(f"{gate.PID_VARIABLE}={pid}\n")
            self._inside = found.sock_diag()
            self.listeners = self._let_in(found)
        self._open()

    def _open(self) -> None:
        """Let its command run."""
        assert self._entrance is not None
        entrance, self._entrance = self._entrance, None
        with contextlib.suppress(BrokenPipeError):  # It has died: that is told by its manager.
            os.write(entrance, b"\n")
        os.close(entrance)

    def _let_in(self, space: Namespace) -> dict[int, socket.socket]:
        """Listen inside for what it uses outside, as far as somebody is there.

        From then on whoever connects inside is served, if not at once: the gate can be opened.
        """
        asked = self.plan.request.let_in
        if not asked:
            return {}
        outside = ports.snapshot()
        there = []
        for number in asked:
            bound = outside.bound(Transport.TCP, number)
            if addresses := [one.address for one in bound if one.listening]:
                there.append(number)
                self.targets[number] = f"{network.reached_at(addresses)}:{number}"
        wanted = self._free_inside(there)
        try:
            return space.listen(wanted) if wanted else {}
        except NetworkError:
            # In a network that is shared others let in the same at the same time.
            wanted = self._free_inside(wanted)
            return space.listen(wanted) if wanted else {}

    def _free_inside(self, numbers: Sequence[int]) -> list[int]:
        assert self._inside is not None
        inside = ports.snapshot(netlink=self._inside)
        return [number for number in numbers if not inside.bound(Transport.TCP, number)]

    def _holds(self) -> bool:
        """Whether it holds its ports inside."""
        assert self._inside is not None
        self.check = ports.check(
            self.plan.request.service.ports.values(),
            self.plan.part.ports,
            ports.snapshot(netlink=self._inside),
            ids=ports.cgroup_ids(self._cgroup),
            ephemeral=self._ephemeral,
        )
        if self.check.conflicts:
            self.error = failure.taken_inside(self.plan, self.check.conflicts[0])
        return self.check.held

    def _published(self) -> bool:
        """Whether all of its proxies run inside."""
        for name, proxy in list(self.proxies.items()):
            if proxy not in self._up:
                continue
            [pid, *_] = [*processes(self._beside(proxy)), 0]
            if not pid or _name(pid) == ENTERING:
                continue
            try:
                inside = self._same_place(pid)
            except (FileNotFoundError, ProcessLookupError):  # Its manager tells of its end.
                continue
            if not inside:
                raise NetworkError(
                    f"Cannot publish port '{name}' of '{self.plan.derived.unit}': its proxy "
                    f"'{proxy}' runs in another network",
                    hint="systemd took no notice of what its unit says, or a drop-in undoes it: "
                    f"{self._systemctl} cat {proxy}",
                )
            del self.proxies[name]
        return not self.proxies

    def _is_wanted(self) -> bool:
        """Whether its network is the one that it was to join."""
        network = self.plan.part.network
        if network is None or not network.net_path:
            return True
        try:
            wanted = os.stat(network.net_path)  # noqa: PTH116 - a link to follow
        except OSError as exc:
            raise NetworkError(
                f"Cannot start '{self.plan.derived.unit}': its network '{network}' is gone"
            ) from exc
        return self._place is not None and os.path.samestat(wanted, self._place)

    def _same_place(self, pid: int) -> bool:
        """Whether a process is in its network.

        Raises:
            FileNotFoundError: The process is gone.
        """
        return self._place is not None and os.path.samestat(_place(pid), self._place)

    def _shared(self, pid: int) -> NetworkError:
        unit = self.plan.derived.unit
        asked = "" if self._is_wanted() else f", not in '{self.plan.part.network}'"
        return NetworkError(
            f"Cannot isolate '{unit}': its process {pid} runs in the host's network{asked}; the "
            "service itself was not run",
            hint=f"systemd took no notice of PrivateNetwork=, or a drop-in undoes it: "
            f"{self._systemctl} cat {unit}; {denied_hint()}",
        )

    def _beside(self, unit: str) -> str:
        return f"{self._cgroup.rpartition('/')[0]}/{unit}"

    @property
    def _systemctl(self) -> str:
        return "systemctl --user" if self.plan.part.kind is ManagerKind.USER else "systemctl"


class Passages:
    """The ways of all private instances of a round.

    Args:
        manager: Where they are.
        run: The run's id.
        passages: Their ways; none in a round without a private instance.
    """

    def __init__(self, manager: Manager, run: str, passages: Iterable[Passage]) -> None:
        self._manager = manager
        self._run = run
        self._all = list(passages)
        self._units: dict[str, Passage] = {}
        self._starting: list[Jobs] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def jobs(self) -> Sequence[Jobs]:
        """The jobs of proxies under way."""
        return self._starting

    def go(self, passages: Collection[Passage]) -> bool:
        """Have each take the step it can take, and start what is due for all of them at once.

        While some is being started, what is due meanwhile is gathered.

        Args:
            passages: Those that are still on their way.

        Returns:
            Whether one of them took a step: then more was done than to look.
        """
        before = [passage.step for passage in passages]
        for passage in passages:
            passage.go()
            if passage.step is Step.PUBLISHING and isinstance(passage.error, NetworkError):
                # With its socket goes each proxy. What cannot be stopped ends with its instance.
                with contextlib.suppress(ManagerError):
                    sockets = [_socket_of(proxy) for proxy in passage.plan.derived.proxies.values()]
                    self._manager.stop(sockets, timeout_s=STOP_TIMEOUT_S)
        if not self._starting:
            self._start([passage for passage in passages if not passage.error])
        return before != [passage.step for passage in passages]

    def _start(self, passages: Iterable[Passage]) -> None:
        """Start the units that let in and that publish."""
        through: list[Transient] = []
        proxies: list[str] = []
        for passage in passages:
            if passage.listeners:
                units = self._through(passage)
                passage.through = {unit.unit for unit in units}
                self._units |= dict.fromkeys(passage.through, passage)
                through += units
            if passage.step is Step.DUE:
                passage.step = Step.PUBLISHING
                self._units |= dict.fromkeys(passage.proxies.values(), passage)
                proxies += passage.proxies.values()
        if through:
            self._starting += self._manager.create(through)
        if proxies:
            self._starting.append(self._manager.start(proxies))
        for passage in self._all:
            passage.heard()

    def _through(self, passage: Passage) -> list[Transient]:
        """The units that let in what an instance uses, for as long as its network is there."""
        numbers = passage.listeners
        targets = {number: passage.targets[number] for number in numbers}
        units = network.through_units(self._manager, self._run, numbers, targets)
        place = passage.plan.part.network
        if place is None or place.net_path:
            return units
        # Not after it: it may have to be reached before the instance says that it has started.
        bound = ("BindsTo", passage.plan.derived.unit)
        return [replace(unit, properties=[*unit.properties, bound]) for unit in units]

    def told(self, unit: str, word: str) -> bool:
        """Take news of a proxy; False where the unit is none.

        Args:
            unit: The unit.
            word: What its job came to, or ``died``.
        """
        if unit not in self._units:
            return False
        passage = self._units.pop(unit)
        if word == "done":
            passage.up(unit)
        else:
            passage.refused(unit, word, ports.snapshot())
        if not self._units:
            self._close_jobs()
        return True

    def close(self) -> None:
        """Give up what they have open."""
        self._close_jobs()
        for passage in self._all:
            passage.close()

    def _close_jobs(self) -> None:
        for jobs in self._starting:
            jobs.close()
        self._starting = []


def withdraw(manager: Manager, plan: Plan) -> None:
    """Take the published ports of an instance away, which is about to be started again.

    Args:
        manager: Where it is.
        plan: The instance.

    Raises:
        ManagerError: The manager did not stop its proxies in time.
    """
    sockets = [_socket_of(proxy) for proxy in plan.derived.proxies.values()]
    if sockets:
        manager.stop(sockets, timeout_s=STOP_TIMEOUT_S)
    # By an old number of a process a proxy would find the wrong network.
    files = names.files_directory(plan.derived.directory)
    Path(gate.pid_path(files)).unlink(missing_ok=True)


def _socket_of(proxy: str) -> str:
    return f"{proxy.removesuffix('.service')}.socket"


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _place(pid: int) -> os.stat_result:
    return os.stat(f"/proc/{pid}/ns/net")  # noqa: PTH116 - a link to follow
