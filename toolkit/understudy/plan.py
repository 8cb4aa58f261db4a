"""From requests to instances on paper: ports claimed, unit files derived, nothing written yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from understudy import derive, ports
from understudy.manager import Manager, Transient
from understudy.manager.commands import systemd_run
from understudy.model import Derived, Engine, Part, Service, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One wanted instance.

    Attributes:
        service: Its definition.
        values: Values that override the definition's, by name.
        environment: Further environment.
        used: By service name, by port name: the numbers of the services it talks to.
        uses: By service name: the instance it talks to; without those it finds as production's.
        asked: Names of the ports that were asked for.
        numbers: Exact port numbers asked for, by port name.
        base: The unit text to derive from, as installed on the host; None for the definition's.
        lazy: Whether a socket-activated instance is left to its first connection.
    """

    service: Service
    values: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    used: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    uses: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    base: str | None = None
    lazy: bool = False


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
        engine: How they are handed to the manager; None: unit files, and systemd-run for what is
            ad hoc.
        denied: Production's port numbers, by transport: not for an instance to bind.
        counter: The numbers of the instances.
    """

    manager: Manager
    run: str
    allocator: ports.Allocator
    engine: Engine | None = None
    denied: frozenset[tuple[Transport, int]] = frozenset()
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
            [request.service.ports.values() for request in requests],
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

    def _one(self, request: Request, claim: ports.Claim, numbers: Mapping[str, int]) -> Plan:
        part = Part(
            run=self.run,
            number=next(self.counter),
            kind=self.manager.kind,
            runtime_dir=str(self.manager.runtime_dir),
            ports=numbers,
            values=request.values,
            environment=request.environment,
            used=request.used,
            base=request.base,
            lazy=request.lazy,
            denied=self.denied,
        )
        return Plan(
            request=request,
            part=part,
            derived=derive.derive(request.service, part),
            claim=claim,
            engine=self.engine or (Engine.SYSTEMD_RUN if request.service.command else Engine.FILES),
        )
