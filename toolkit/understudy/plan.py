"""From requests to instances on paper: ports claimed, unit files derived, nothing written yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from understudy import derive, ports
from understudy.errors import RenderError, UsageError
from understudy.manager import Manager, Transient
from understudy.manager.commands import systemd_run
from understudy.model import (
    Activation,
    Derived,
    Engine,
    Part,
    Port,
    PrivateNetwork,
    Service,
    Transport,
)
from understudy.ports import numbering


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One wanted instance.

    Attributes:
        service: Its definition.
        values: Values that override the definition's, by name.
        secrets: Its secrets, as far as they were set.
        used_secrets: By service name, by name: values and secrets of the services it talks to.
        environment: Further environment, which nobody else sees.
        used: By service name, by port name: the numbers of the services it talks to.
        uses: By service name: the instance it talks to, as a word of a shell command that names it
            or starts the same; without those it finds as production's.
        guest_of: By service name, where it takes a path prefix on production's server: the unit
            of that, "" for the one that its definition names.
        prefixes: By service name: that prefix.
        asked: Names of the ports that were asked for.
        numbers: Exact port numbers asked for, by port name.
        base: The unit text to derive from, as installed on the host; None for the definition's.
        lazy: Whether a socket-activated instance is left to its first connection.
        network: The private network that it is to be in; None for the host's.
        let_in: TCP ports of the host that it finds inside, under the same numbers, if somebody
            listens on them when it starts.
        background: Whether it gets only what nobody else wants of processors and disks.
    """

    service: Service
    values: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    used_secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    used: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    uses: Mapping[str, str] = field(default_factory=dict)
    guest_of: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    base: str | None = None
    lazy: bool = False
    network: PrivateNetwork | None = None
    let_in: tuple[int, ...] = ()
    background: bool = False

    @property
    def claimed(self) -> list[Port]:
        """The ports that need a number of this host: inside a private network others do."""
        ports = self.service.ports.values()
        by_sockets = self.service.instance_activation is Activation.SOCKETS
        if self.network is None or self.network.here or by_sockets:
            return list(ports)
        return [port for port in ports if port.transport is Transport.TCP or port.number is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One instance on paper.

    Attributes:
        request: What was asked for.
        part: What makes it different from production.
        derived: Its files.
        claim: What keeps its ports from everybody else; to be closed.
        engine: How it is handed to the manager.
    """

    request: Request
    part: Part
    derived: Derived
    claim: ports.Claim
    engine: Engine

    @property
    def inside_ports(self) -> Mapping[str, int]:
        """The numbers of the ports that it has in a private network; none anywhere else."""
        place = self.part.network
        return {} if place is None or place.here or self.derived.socket else self.part.ports

    @property
    def to_start(self) -> str:
        """The unit to start: an eager service brings its socket along."""
        socket = self.derived.socket
        return socket if socket and self.request.lazy else self.derived.unit

    def transient(self) -> Transient:
        """The same as a transient unit.

        Raises:
            RenderError: It has what no transient unit can have.
        """
        rows, argv = derive.transient(self.derived, self.part)
        return Transient(unit=self.derived.unit, properties=rows, command=argv)

    def systemd_run(self) -> list[str]:
        """The ``systemd-run`` command line that starts it as a transient unit.

        Raises:
            RenderError: It has what no transient unit can have.
        """
        unit = self.transient()
        options = ["--quiet"]
        return systemd_run(
            self.part.kind, unit.unit, unit.properties, unit.command, options=options
        )


@dataclass(slots=True, kw_only=True)
class Planner:
    """Plans the instances of one run.

    Attributes:
        manager: The manager they are for.
        run: The run's id.
        allocator: Where their ports come from.
        engine: How they are handed to the manager; None: unit files, and for what is ad
            hoc transient units, as systemd-run makes them.
        denied: Production's port numbers, by transport: not for an instance to bind.
        limits: What each instance may use at most, as directives.
        counter: The numbers of the instances.
    """

    manager: Manager
    run: str
    allocator: ports.Allocator
    engine: Engine | None = None
    denied: frozenset[tuple[Transport, int]] = frozenset()
    limits: Mapping[str, str] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=lambda: count(1))

    def plan(self, requests: Sequence[Request], *, avoid: Collection[int] = ()) -> list[Plan]:
        """Claim ports for each of the requests and derive its files; all of them or none.

        Args:
            requests: What is wanted.
            avoid: Port numbers that somebody was found to hold.

        Raises:
            PortError: There are no ports to be had.
            RenderError: A value or a template is wrong.
        """
        claimed = self.allocator.claim_many(
            [request.claimed for request in requests],
            exact=[request.numbers for request in requests],
            avoid=avoid,
        )
        try:
            return [
                self._one(request, claim, numbers)
                for request, (claim, numbers) in zip(requests, claimed, strict=True)
            ]
        except BaseException:
            for claim, _numbers in claimed:
                claim.close()
            raise

    def known(self, request: Request, numbers: Mapping[str, int] | None = None) -> Plan:
        """The plan of an instance whose ports somebody else claimed; its claim holds nothing.

        Args:
            request: What was asked for.
            numbers: Its port numbers; None for some that are always the same, to compare files.
        """
        if numbers is None:
            groups = numbering.group(request.claimed)
            numbers = numbering.assign(groups, range(20000, 30000), self.denied) or {}
        return self._one(request, ports.Claim(), numbers)

    def _one(self, request: Request, claim: ports.Claim, numbers: Mapping[str, int]) -> Plan:
        place = request.network
        if place is not None and place.name and not place.net_path:
            raise UsageError(
                f"Cannot put '{request.service.name}' into '{place}' here: a network with a name "
                "is found or made when an instance is spawned",
                hint="--network private",
            )
        inside, published = _numbers(request, numbers)
        part = Part(
            run=self.run,
            number=next(self.counter),
            kind=self.manager.kind,
            runtime_dir=str(self.manager.runtime_dir),
            ports=inside,
            published=published,
            network=request.network,
            values=request.values,
            secrets=request.secrets,
            used_secrets=request.used_secrets,
            environment=request.environment,
            used=request.used,
            prefixes=request.prefixes,
            base=request.base,
            lazy=request.lazy,
            denied=self.denied,
            limits=self.limits,
            background=request.background,
        )
        return Plan(
            request=request,
            part=part,
            derived=derive.derive(request.service, part),
            claim=claim,
            engine=self._engine(request),
        )

    def _engine(self, request: Request) -> Engine:
        if request.network is None:
            by_command = Engine.SYSTEMD_RUN if request.service.command else Engine.FILES
            return self.engine or by_command
        if self.engine is Engine.SYSTEMD_RUN:
            raise RenderError(
                f"Cannot start '{request.service.name}' in a private network by systemd-run: its "
                "proxies are units with files",
                hint="--engine files",
            )
        return Engine.FILES


def _numbers(
    request: Request, given: Mapping[str, int]
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """The numbers that an instance is told, and those under which it is reached from outside.

    Args:
        request: The instance.
        given: The numbers of this host that were claimed for it.
    """
    if request.network is None or request.network.here:
        return given, {}
    if request.service.instance_activation is Activation.SOCKETS:
        return given, given
    ports = request.service.ports
    inside = {name: derive.inside_number(port, given.get(name, 0)) for name, port in ports.items()}
    tcp = {name: number for name, number in given.items() if ports[name].transport is Transport.TCP}
    return inside, tcp
