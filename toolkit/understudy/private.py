"""How instances in private networks come up: at the gate, inside, published, outside.

======================= ====================================================================
step                    what ends it
======================= ====================================================================
``GATE``                its command waits at the gate, in a network that is not the host's
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
from enum import Enum, auto
from pathlib import Path

from understudy import failure, gate, names, ports
from understudy.errors import ManagerError, NetworkError, UnderstudyError
from understudy.manager import Jobs, Manager
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
    """

    def __init__(self, plan: Plan, cgroup: str, ephemeral: range) -> None:
        self.plan = plan
        self.step = Step.GATE
        self.running = False
        self.check: ports.Check | None = None
        self.error: UnderstudyError | None = None
        self.lost: set[int] = set()
        self.proxies = dict(plan.derived.proxies)
        self._up: set[str] = set()
        self._cgroup = cgroup
        self._ephemeral = ephemeral
        self._entrance: int | None = None
        self._inside: socket.socket | None = None
        self._place: os.stat_result | None = None

    @property
    def by_sockets(self) -> bool:
        """Whether its sockets are bound outside and handed in: then there is nothing to publish."""
        return self.plan.request.service.instance_activation is Activation.SOCKETS

    @property
    def waits_for(self) -> str:
        """What it waits for, for people; "" where its ports say more."""
        return {
            Step.GATE: "its command has not come to the gate of its network",
            Step.PUBLISHING: f"no proxy runs yet for {', '.join(self.proxies)}",
        }.get(self.step, "")

    def go(self) -> None:
        """Take the step that can be taken without waiting."""
        try:
            if self.step is Step.GATE and self._at_gate():
                self._pass()
                self.step = Step.OUTSIDE if self.by_sockets else Step.INSIDE
            if self.step is Step.INSIDE and self._holds() and self.running:
                self.step = Step.DUE if self.proxies else Step.OUTSIDE
            if self.step is Step.PUBLISHING and self._published():
                self.step = Step.OUTSIDE
        except UnderstudyError as exc:
            self.error = exc

    def up(self, proxy: str) -> None:
        """One of its proxies runs."""
        self._up.add(proxy)

    def refused(self, proxy: str, word: str, sockets: ports.Sockets) -> None:
        """One of its proxies did not start: see whether somebody else has the port.

        Args:
            proxy: Which.
            word: What its job came to.
            sockets: What is bound outside.
        """
        if not processes(self._cgroup):
            return  # The proxy went with its instance, whose end is told by itself.
        name = next(name for name, unit in self.proxies.items() if unit == proxy)
        number = self.plan.part.published[name]
        if word == "dependency" or sockets.bound(Transport.TCP, number):
            self.lost.add(number)
        else:
            self.error = failure.unpublished(self.plan, name, proxy, word)

    def close(self) -> None:
        """Give up what it has open; a gate that was not passed stays shut."""
        if self._entrance is not None:
            os.close(self._entrance)
            self._entrance = None
        if self._inside is not None:
            self._inside.close()
            self._inside = None

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
        with Namespace.of(pid) as network:
            self._place = _place(pid)
            if network.is_ours() or not self._is_wanted():
                self.close()
                raise self._shared(pid)
            if part.kind is ManagerKind.USER and not part.network.net_path:
                path = Path(gate.pid_path(names.files_directory(self.plan.derived.directory)))
                path.write_text(f"{gate.PID_VARIABLE}={pid}\n")
            if not self.by_sockets:
                self._inside = network.sock_diag()
        entrance, self._entrance = self._entrance, None
        with contextlib.suppress(BrokenPipeError):  # It has died: that is told by its manager.
            os.write(entrance, b"\n")
        os.close(entrance)

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
            if not self._same_place(pid):
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
        try:
            return self._place is not None and os.path.samestat(_place(pid), self._place)
        except NetworkError:
            return True  # It has ended, and its manager tells.

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
        self._proxies: dict[str, Passage] = {}
        self._starting: Jobs | None = None

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def jobs(self) -> Sequence[Jobs]:
        """The jobs of proxies under way."""
        return [] if self._starting is None else [self._starting]

    def go(self, passages: Collection[Passage]) -> None:
        """Have each take the step it can take, and start the proxies of all that are due.

        While proxies are being started, others that are due meanwhile are gathered.

        Args:
            passages: Those that are still on their way.
        """
        for passage in passages:
            passage.go()
            if passage.step is Step.PUBLISHING and isinstance(passage.error, NetworkError):
                # With its socket goes each proxy. What cannot be stopped ends with its instance.
                with contextlib.suppress(ManagerError):
                    sockets = [_socket_of(proxy) for proxy in passage.plan.derived.proxies.values()]
                    self._manager.stop(sockets, timeout_s=STOP_TIMEOUT_S)
        due = [passage for passage in passages if passage.step is Step.DUE and not passage.error]
        if due and self._starting is None:
            self._proxies = {unit: one for one in due for unit in one.proxies.values()}
            self._starting = self._manager.start(list(self._proxies))
            for passage in due:
                passage.step = Step.PUBLISHING

    def told(self, unit: str, word: str) -> bool:
        """Take news of a proxy; False where the unit is none.

        Args:
            unit: The unit.
            word: What its job came to, or ``died``.
        """
        if unit not in self._proxies:
            return False
        passage = self._proxies.pop(unit)
        if word == "done":
            passage.up(unit)
        else:
            passage.refused(unit, word, ports.snapshot())
        if not self._proxies:
            self._close_jobs()
        return True

    def close(self) -> None:
        """Give up what they have open."""
        self._close_jobs()
        for passage in self._all:
            passage.close()

    def _close_jobs(self) -> None:
        if self._starting is not None:
            self._starting.close()
            self._starting = None


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
    try:
        return os.stat(f"/proc/{pid}/ns/net")  # noqa: PTH116 - a link to follow
    except OSError as exc:
        raise NetworkError(
            f"Cannot find the network of process {pid}: {exc.strerror}",
            hint="It has ended, or is another user's",
        ) from exc
