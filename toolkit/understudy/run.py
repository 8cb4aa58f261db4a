"""A run: all that one test run owns, and the one thing to end."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypedDict, Unpack

from understudy import confided, names, ports, services
from understudy.claimed import ClaimedPorts
from understudy.derive import bind_rules
from understudy.errors import InstanceError, RunError, UsageError, nearest_hint
from understudy.guard import Guard, take_id
from understudy.instance import Instance, discard, stop_all
from understudy.launch import Stage, launch
from understudy.listing import Found
from understudy.manager import Manager, connect
from understudy.model import (
    Activation,
    Derived,
    Engine,
    ManagerKind,
    Port,
    PrivateNetwork,
    Service,
    Transport,
)
from understudy.names import guard_unit, slice_unit
from understudy.plan import Plan, Planner, Request
from understudy.ports.cgroups import processes

if TYPE_CHECKING:
    from understudy.guests import Guest
    from understudy.shared import SharedInstance

LIFETIME_S = 3600.0
"""How long a run of the command line lives that nobody owns."""

TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0

_PORT_SPEC = re.compile(r"(?P<name>[^/:]*)(/(?P<transport>tcp|udp))?(:(?P<inside>[0-9]{1,5}))?")


class Listening(Protocol):
    """What another service can be told to talk to: an `Instance`, or one that `listing` found."""

    @property
    def unit(self) -> str:
        """Its unit name."""

    @property
    def ports(self) -> Mapping[str, int]:
        """The number of each of its ports, by name."""

    @property
    def network(self) -> str:
        """``host``, ``private``, or ``private:NAME``."""

    @property
    def inside_ports(self) -> Mapping[str, int]:
        """The numbers of its ports inside its private network, by name."""

    @property
    def confided(self) -> Mapping[str, str]:
        """Its values by name, where one that is secret is known."""


class SpawnArguments(TypedDict, total=False):
    """What `Run.request` takes by name, for those that hand it on."""

    exec: Sequence[str]
    ports: Mapping[str, int] | Iterable[str]
    values: Mapping[str, object] | None
    env: Mapping[str, str] | None
    uses: Mapping[str, Listening] | None
    installed: bool
    lazy: bool
    network: str | PrivateNetwork | None
    background: bool | None


class Run:
    """All that one test run owns: instances, slice, files, ports.

    ``with Run() as run:`` ends it with the block. Whatever happens to the block, the run ends with
    its owner, which is the process that began it: SIGKILL included, forked children or not.

    Args:
        manager: Which systemd manager, or one that is connected already; None: root has the
            system's, everybody else their own.
        engine: How instances are handed to the manager; None: unit files, and for what is
            ad hoc transient units, as systemd-run makes them.
        port_range: Where ports are taken from; None: as configured.
        units: A folder of service definitions to look in before all others.
        lifetime_s: Seconds after which it ends whatever happens; None: only with its owner.
        timeout_s: Deadline in seconds for each call, where the call itself names none.
        limits: What each instance may use at most, as directives (systemd.resource-control(5)):
            ``{"MemoryMax": "512M"}``. Without the controller they have no effect.
        background: Whether its instances get only what nobody else wants of processors and disks,
            where the call itself does not say.

    Attributes:
        id: Its id (``r7k2mq``); "" until it begins.
        instances: What was spawned in it, those included that have been stopped since.
        manager: Where it lives.
    """

    def __init__(
        self,
        *,
        manager: Manager | ManagerKind | None = None,
        engine: Engine | None = None,
        port_range: ports.PortRange | None = None,
        units: Path | str | None = None,
        lifetime_s: float | None = None,
        timeout_s: float = TIMEOUT_S,
        limits: Mapping[str, str] | None = None,
        background: bool = False,
    ) -> None:
        if manager is None or isinstance(manager, ManagerKind):
            manager = connect(manager)
        self.manager = manager
        self.engine = engine
        self.units = None if units is None else Path(units)
        self.timeout_s = timeout_s
        self.id = ""
        self.instances: list[Instance] = []
        self.lifetime_s = lifetime_s
        self.limits = dict(limits or {})
        self.background = background
        self._port_range = port_range
        self._owner_pid = 0
        self._stage: Stage | None = None
        self._here: PrivateNetwork | None = None
        self._lock = threading.Lock()
        self._sharing = threading.RLock()
        self._shared: dict[str, SharedInstance] = {}
        self._guests: list[Guest] = []
        self._prefixes = count(1)

    def __enter__(self) -> Run:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Run {self.id or 'not begun'}, {len(self.instances)} instances>"

    @property
    def slice(self) -> str:
        """The slice that holds all of the run: ``understudy-r7k2mq.slice``."""
        return slice_unit(self.id)

    @property
    def guard(self) -> str:
        """The unit whose end ends the run: ``understudy-guard@r7k2mq.service``."""
        return guard_unit(self.id)

    def start(self) -> None:
        """Begin the run.

        Raises:
            RunError: It has begun already.
            PortError: The port range will not do.
            ManagerError: The manager refused.
        """
        if self.id:
            raise RunError(
                f"Cannot begin run '{self.id}': it has begun already", hint="a new Run()"
            )
        allocator = self._allocator()
        self._owner_pid = os.getpid()
        run, name = take_id()
        with name:
            guard = Guard.start(
                self.manager,
                run,
                owner_pid=self._owner_pid,
                lifetime_s=self.lifetime_s,
                held={"run": name.fileno()},
                denied=bind_rules(allocator.never),
                timeout_s=self.timeout_s,
            )
        try:
            group = self.manager.properties(guard.unit, ["ControlGroup"])["ControlGroup"]
            self._here = _own_network(group, self.manager)
        except BaseException:
            guard.close()
            self.manager.stop([guard.unit], timeout_s=STOP_TIMEOUT_S)
            raise
        self.id = run
        # The slice itself may not have a cgroup yet; the guard's lies beside it.
        cgroup = f"{group.rpartition('/')[0]}/{slice_unit(run)}"
        self._stage = Stage(planner=self._planner(run, allocator), guard=guard, cgroup=cgroup)

    def spawn(
        self,
        service: str | Service | None = None,
        *,
        exec: Sequence[str] = (),
        ports: Mapping[str, int] | Iterable[str] = (),
        values: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        uses: Mapping[str, Listening] | None = None,
        installed: bool = False,
        lazy: bool = False,
        network: str | PrivateNetwork | None = None,
        background: bool | None = None,
        timeout_s: float | None = None,
    ) -> Instance:
        """Start one instance, and return when it is ready.

        Args:
            service: A service's name or definition; None with ``exec``.
            exec: An ad hoc service's command line; ``{port.http}`` is its port ``http``,
                ``{dir}`` its own directory.
            ports: Names of ports that are closed unless asked for, or exact numbers by name (0:
                any). For ``exec`` all of its ports, of which ``media/udp`` is a UDP one, and
                ``http:8003`` has the number 8003 inside a private network.
            values: Values for the definition's templates.
            env: Further environment.
            uses: Which instance of another service it talks to, by that service's name;
                production's where none is named.
            installed: Derive from production's unit as it is on this host, instead of ours.
            lazy: Leave a socket-activated service to its first connection; its errors then come
                with that.
            network: ``private``: in a network of its own, in which it has production's ports;
                ``private:NAME``: in one that instances can share; ``host``; None: as its
                definition says. Its TCP ports are published, and what it uses is let in.
            background: Whether it gets only what nobody else wants of processors and disks; None:
                as its run.
            timeout_s: Deadline in seconds for the whole call.

        Raises:
            UsageError: No such service, port, value or network.
            DefinitionError: The definition is wrong.
            RenderError: A value cannot go into a unit.
            PortError: No port to be had, or somebody else holds the one asked for.
            StartError: It died, or its job failed; nothing of it is left.
            ReadyTimeoutError: It was not ready in time; nothing of it is left.
            NetworkError: Its private network cannot be had, or did not come about.
            ManagerError: The manager refused.
            RunError: The run has ended, or not begun.
        """
        request = self.request(
            service,
            exec=exec,
            ports=ports,
            values=values,
            env=env,
            uses=uses,
            installed=installed,
            lazy=lazy,
            network=network,
            background=background,
        )
        return self.spawn_many([request], timeout_s=timeout_s)[0]

    def spawn_many(
        self,
        wanted: Iterable[str | Service | Request],
        *,
        timeout_s: float | None = None,
        progress: Callable[[int, int], None] = lambda _ready, _total: None,
    ) -> list[Instance]:
        """Start many instances in parallel, and return when all are ready.

        Args:
            wanted: Service names, or what `request` gives for those that want more than a name.
            timeout_s: Deadline in seconds for the whole call.
            progress: Called with how many are ready, and of how many, whenever that changes.

        Raises:
            UnderstudyError: As `spawn`; then none of them is left.
        """
        requests = [item if isinstance(item, Request) else self.request(item) for item in wanted]
        return self._launch(requests, timeout_s, progress=progress)

    async def aspawn(
        self,
        service: str | Service | None = None,
        *,
        timeout_s: float | None = None,
        **arguments: Unpack[SpawnArguments],
    ) -> Instance:
        """`spawn` for asyncio: the event loop goes on meanwhile.

        Who is canceled meanwhile goes on when nothing of the instance is left, some milliseconds
        later. Many at once: ``asyncio.gather``, or a task group.

        Args:
            service: As `spawn`.
            timeout_s: As `spawn`.
            arguments: As `spawn`.
        """
        from understudy.awaiting import in_thread

        def start(canceled: Callable[[], bool]) -> Instance:
            request = self.request(service, **arguments)
            return self._launch([request], timeout_s, canceled=canceled)[0]

        return await in_thread(start, undo=lambda instance: instance.stop())

    def shared(
        self,
        service: str | Service | None = None,
        *,
        group: str = "",
        keep_s: float = 0.0,
        lifetime_s: float | None = None,
        timeout_s: float | None = None,
        **arguments: Unpack[SpawnArguments],
    ) -> SharedInstance:
        """Use one instance together with other runs, and start it first if nobody has.

        It is started once, by whoever comes first; the others wait until it is ready. It ends after
        the last run that uses it, however that ends, and never earlier.

        Args:
            service: As `spawn`.
            group: Among whom: all runs of this manager that give the same name, such as a test
                run's id; "" for all of this user's.
            keep_s: Seconds that it is kept for others after this run's use has ended. Once nobody
                uses it, one that is kept gives way to a request with other settings, or after its
                definition has changed.
            lifetime_s: Seconds after which it ends whatever happens, if this run starts it; None:
                with its users only.
            timeout_s: As `spawn`.
            arguments: As `spawn`.

        Raises:
            UsageError: It is in use with other settings; the error says which.
            InstanceError: It has died while others use it.
            RunError: Another run is starting it, and was not done in time.
            UnderstudyError: As `spawn`.
        """
        request = self.request(service, **arguments)
        return self._share(request, group, keep_s, lifetime_s, timeout_s)

    async def ashared(
        self,
        service: str | Service | None = None,
        *,
        group: str = "",
        keep_s: float = 0.0,
        lifetime_s: float | None = None,
        timeout_s: float | None = None,
        **arguments: Unpack[SpawnArguments],
    ) -> SharedInstance:
        """`shared` for asyncio, as `aspawn` is `spawn`."""
        from understudy.awaiting import in_thread

        def start(canceled: Callable[[], bool]) -> SharedInstance:
            request = self.request(service, **arguments)
            return self._share(request, group, keep_s, lifetime_s, timeout_s, canceled=canceled)

        return await in_thread(start, undo=lambda instance: instance.stop())

    def forget(self, instance: SharedInstance) -> None:
        """Take note that this run has given up what it shared."""
        with self._sharing:
            self._shared.pop(instance.key, None)

    def claim_ports(self, *transports: str) -> ClaimedPorts:
        """Numbers for servers that are started by other means, such as one in the test's process.

        Nobody had bound them, and no run gives them to anybody else until they are released or
        this run ends.

        Args:
            transports: ``tcp`` or ``udp``, one for each number.

        Raises:
            UsageError: A transport is neither.
            PortError: There are none to be had.
            RunError: The run has ended, or not begun.
        """
        stage = self._live_stage()
        wanted = []
        for number, transport in enumerate(transports, 1):
            if transport not in [*Transport]:
                raise UsageError(
                    f"Cannot claim a port of '{transport}': no such transport", hint="tcp or udp"
                )
            wanted.append(Port(name=f"port-{number}", transport=Transport(transport)))
        claim, numbers = stage.planner.allocator.claim(wanted)
        with claim:
            held = claim.descriptors()
            stage.guard.hold(held)
        return ClaimedPorts(list(numbers.values()), lambda: stage.guard.free(list(held)))

    def request(
        self,
        service: str | Service | None = None,
        *,
        exec: Sequence[str] = (),
        ports: Mapping[str, int] | Iterable[str] = (),
        values: Mapping[str, object] | None = None,
        env: Mapping[str, str] | None = None,
        uses: Mapping[str, Listening] | None = None,
        installed: bool = False,
        lazy: bool = False,
        network: str | PrivateNetwork | None = None,
        background: bool | None = None,
    ) -> Request:
        """What `spawn` with these arguments asks for, to be given to `spawn_many`.

        Raises:
            UsageError: No such service, port or network, or it cannot be ``lazy``.
            DefinitionError: The definition is wrong.
            NoSuchUnitError: ``installed``, and production is not installed here.
        """
        numbers = dict(ports) if isinstance(ports, Mapping) else dict.fromkeys(ports, 0)
        asked = [_port_name(spec) for spec in numbers]
        if exec:
            if service is not None:
                raise UsageError("Cannot spawn: a service and a command line exclude each other")
            definition = ad_hoc(exec, list(numbers))
        elif service is None:
            raise UsageError("Cannot spawn: neither a service nor a command line was named")
        else:
            definition = self._find(service, installed=installed)
            _check_names(definition, asked)
            definition = services.opened(definition, asked)
        if lazy and definition.instance_activation is not Activation.SOCKETS:
            raise UsageError(
                f"Cannot spawn '{definition.name}' lazily: it opens its ports itself, so nothing "
                "would start it at its first connection",
                hint="only a service that takes its sockets from systemd: [activation] instance = "
                '"sockets"',
            )
        if network is None:
            network = "private" if definition.private else "host"
        place = network if isinstance(network, PrivateNetwork) else network_named(network)
        exact = {_port_name(spec): number for spec, number in numbers.items() if number}
        if place is None:
            _check_no_inside(definition, numbers)
        else:
            _check_private(definition, exact, lazy=lazy)
        used = {**self._production_ports(definition), **_used(definition, uses or {}, place)}
        set_ = {name: str(value) for name, value in (values or {}).items()}
        return Request(
            service=definition,
            values={k: v for k, v in set_.items() if k not in definition.secrets},
            secrets={k: v for k, v in set_.items() if k in definition.secrets and v},
            used_secrets=self._confided(definition, uses or {}),
            environment=dict(env or {}),
            used=used,
            uses={name: word for name, one in (uses or {}).items() if (word := _shell_word(one))},
            guest_of=_guest_of(definition, uses or {}),
            asked=tuple(asked),
            numbers=exact,
            base=self._installed(definition) if installed else None,
            lazy=lazy,
            network=place,
            let_in=() if place is None else self._let_in(definition, used, uses or {}, place),
            background=self.background if background is None else background,
        )

    def stop_instances(
        self, instances: Sequence[Instance], *, timeout_s: float = STOP_TIMEOUT_S
    ) -> None:
        """Stop some of its instances, all at once; those that have been stopped are left alone.

        Args:
            instances: Which.
            timeout_s: Deadline in seconds for all of them.

        Raises:
            ManagerError: The manager did not stop them in time; they end with the run.
        """
        stop_all(instances, timeout_s=timeout_s)

    @property
    def is_usable(self) -> bool:
        """Whether instances can be spawned in it by this process.

        A forked child's run is its parent's. Who closes all descriptors loses the connection to
        the run's guard; the run still ends with its owner.
        """
        stage = self._stage
        return stage is not None and self._owner_pid == os.getpid() and stage.guard.is_open()

    def detach(self, *, lifetime_s: float | None = None) -> None:
        """Let the run live on without this process, until its lifetime is over.

        Args:
            lifetime_s: Seconds from now after which it ends whatever happens; None: those that it
                was begun with, counted from its beginning.

        Raises:
            RunError: It has no lifetime: nothing would ever end it; or it has ended.
        """
        stage = self._live_stage()
        if self.lifetime_s is None and lifetime_s is None:
            raise RunError(
                f"Cannot detach run '{self.id}': it has no lifetime, so nothing would end it",
                hint="Run(lifetime_s=3600)",
            )
        stage.guard.detach(lifetime_s=lifetime_s)
        stage.guard.close()
        self._stage = None

    def plan(self, requests: Sequence[Request]) -> list[Plan]:
        """What `spawn_many` with these requests would start, in a run that is never begun.

        The ports were free and the files derived; nothing is claimed, written or started.

        Args:
            requests: What `request` gives.

        Raises:
            PortError: There are no ports to be had.
            RenderError: A value or a template is wrong.
        """
        run, name = take_id()
        name.close()
        requests = [self._prefixed(request, run) for request in requests]
        plans = self._planner(run, self._allocator()).plan(requests)
        for plan in plans:
            plan.claim.close()
        return plans

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the run: all of its instances, its slice, its files. A second call does nothing.

        In a forked child it does nothing either: the run is its parent's.

        Args:
            timeout_s: Deadline in seconds.

        Raises:
            ManagerError: The manager did not end it in time.
            RunError: Something of it was left.
        """
        stage = self._stage
        if stage is None or os.getpid() != self._owner_pid:
            return
        self._stage = None
        try:
            end(self.manager, self.id, timeout_s=timeout_s)
            for instance in self._shared.values():
                instance.wait_for_end(timeout_s)
        finally:
            for guest in self._guests:
                guest.close()
            stage.guard.close()

    def _launch(
        self,
        requests: Sequence[Request],
        timeout_s: float | None,
        *,
        progress: Callable[[int, int], None] = lambda _ready, _total: None,
        canceled: Callable[[], bool] = lambda: False,
    ) -> list[Instance]:
        stage = self._live_stage()
        requests = self._in_networks(requests)
        with contextlib.ExitStack() as undo:
            welcomed = [self._welcomed(request, undo) for request in requests]
            found = launch(
                stage,
                [request for request, _guests in welcomed],
                timeout_s=self.timeout_s if timeout_s is None else timeout_s,
                progress=progress,
                canceled=canceled,
            )
            undo.pop_all()
        with self._lock:
            self.instances += found
            for one, (_request, guests) in zip(found, welcomed, strict=True):
                for guest in guests:
                    one.when_ended(guest.close)
                self._guests += guests
        return found

    def _welcomed(
        self, request: Request, undo: contextlib.ExitStack
    ) -> tuple[Request, list[Guest]]:
        """Give an instance that talks to production's server a name of its own on it."""
        if not request.guest_of:
            return request, []
        from understudy.guests import welcome

        request = self._prefixed(request, self.id)
        guests = []
        for name, prefix in request.prefixes.items():
            guest = welcome(name, request.guest_of[name], prefix, self.id, units=self.units)
            if guest is not None:
                undo.callback(guest.close)
                guests.append(guest)
        return request, guests

    def _prefixed(self, request: Request, run: str) -> Request:
        prefix = f"{run}/{request.service.name}-{next(self._prefixes)}"
        return replace(request, prefixes=dict.fromkeys(request.guest_of, prefix))

    def _share(
        self,
        request: Request,
        group: str,
        keep_s: float,
        lifetime_s: float | None,
        timeout_s: float | None,
        *,
        canceled: Callable[[], bool] = lambda: False,
    ) -> SharedInstance:
        from understudy import shared

        if self._here is not None:
            raise UsageError(
                f"Cannot share '{request.service.name}' from inside of a private network: whoever "
                "is elsewhere could not reach it",
                hint="spawn one of its own, or be outside",
            )
        wanted = shared.Wanted(
            request=request,
            group=group,
            keep_s=keep_s,
            lifetime_s=lifetime_s,
            timeout_s=self.timeout_s if timeout_s is None else timeout_s,
            canceled=canceled,
        )
        with self._sharing:
            found = shared.join(self, self._live_stage(), wanted, self._shared.get(wanted.key))
            self._shared[wanted.key] = found
            return found

    def _live_stage(self) -> Stage:
        if self._stage is None:
            state = f"'{self.id}': it has ended" if self.id else "a run that has not begun"
            raise RunError(f"Cannot use run {state}", hint="with understudy.Run() as run: …")
        return self._stage

    def _find(self, service: str | Service, *, installed: bool) -> Service:
        if isinstance(service, Service):
            return service
        try:
            return services.find(service, units=self.units)
        except UsageError:
            if not (installed and service.endswith(".service")):
                raise
        stem = service.removesuffix(".service")
        with contextlib.suppress(UsageError):
            if (found := services.find(stem, units=self.units)).production == service:
                return found
        # A unit of this host that nobody wrote a definition for.
        name = stem.lower().replace("_", "-").replace("@", "-")
        if not names.valid_service_name(name):
            raise UsageError(
                f"Cannot spawn '{service}': '{name}' cannot be an instance's name",
                hint="Write a definition for it: docs/service-definition.md",
            )
        return Service(name=name, description=f"Copy of {service}", production=service)

    def _installed(self, definition: Service) -> str:
        if definition.production is None:
            raise UsageError(
                f"Cannot derive '{definition.name}' from the installed unit: "
                "its definition names no production unit"
            )
        return connect(ManagerKind.SYSTEM).cat(definition.production)

    def _allocator(self) -> ports.Allocator:
        never = services.production_ports(units=self.units)
        return ports.Allocator(self._port_range or ports.configured_range(), never=never)

    def _planner(self, run: str, allocator: ports.Allocator) -> Planner:
        return Planner(
            manager=self.manager,
            run=run,
            allocator=allocator,
            engine=self.engine,
            denied=allocator.never,
            limits=self.limits,
        )

    def _production_ports(self, definition: Service) -> dict[str, dict[str, int]]:
        used: dict[str, dict[str, int]] = {}
        for name in definition.uses:
            declared = services.find(name, units=self.units).ports.values()
            used[name] = {port.name: port.number for port in declared if port.number is not None}
        return used

    def _confided(
        self, definition: Service, uses: Mapping[str, Listening]
    ) -> dict[str, Mapping[str, str]]:
        """What is known of the secrets of the services that it talks to."""
        found: dict[str, Mapping[str, str]] = {}
        for name in definition.uses_secrets:
            if name in uses:
                told = uses[name].confided
            else:
                used = services.find(name, units=self.units)
                secrets = confided.from_environment(used, os.environ)
                told = confided.known(used, {}, secrets) if secrets else {}
            if told:
                found[name] = told
        return found

    def _in_networks(self, requests: Sequence[Request]) -> list[Request]:
        """Find or make the networks that are shared by their names; join our own."""
        found: dict[str, PrivateNetwork] = {}
        placed = []
        for request in requests:
            place = request.network
            if self._here is not None:
                _check_here(request)
                placed.append(replace(request, network=self._here))
            elif place is not None and place.name and not place.net_path:
                if place.name not in found:
                    found[place.name] = self._network(place.name)
                placed.append(replace(request, network=found[place.name]))
            else:
                placed.append(request)
        return placed

    def _network(self, name: str) -> PrivateNetwork:
        from understudy.network import Network

        made = Network.find_or_make(self.manager, self.id, name, timeout_s=self.timeout_s)
        user = self.manager.kind is ManagerKind.USER
        return PrivateNetwork(
            name=name,
            net_path=f"/proc/{made.pid}/ns/net",
            user_path=f"/proc/{made.pid}/ns/user" if user else "",
            holder=made.unit if made.run == self.id else "",
        )

    def _let_in(
        self,
        definition: Service,
        used: Mapping[str, Mapping[str, int]],
        uses: Mapping[str, Listening],
        place: PrivateNetwork,
    ) -> tuple[int, ...]:
        """The TCP ports outside that an instance in a private network talks to."""
        numbers = []
        for name, told in definition.uses.items():
            if name in uses and _is_beside(uses[name], place):
                continue
            declared = services.find(name, units=self.units).ports
            for port in told:
                if port in used[name] and declared[port].transport is Transport.TCP:
                    numbers.append(used[name][port])
        return tuple(dict.fromkeys(numbers))


def end(manager: Manager, run: str, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End a run by its id: stop its guard, and nothing else, in one transaction.

    Args:
        manager: Where it lives.
        run: Its id; one that has ended is no error.
        timeout_s: Deadline in seconds.

    Raises:
        ManagerError: The manager did not end it in time.
        RunError: Something of it was left.
    """
    manager.stop([guard_unit(run)], timeout_s=timeout_s)
    left = sorted(path.name for path in manager.unit_dir.glob(f"understudy-*@{run}[-.]*"))
    if left:
        raise RunError(
            f"Cannot end run '{run}': these files are left: {', '.join(left)}",
            hint=f"rm -r {manager.unit_dir}/understudy-*@{run}-*",
        )


def stop_instance(manager: Manager, one: Found, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop one instance of a run that may be another process's, and remove its files.

    Args:
        manager: Where it lives.
        one: The instance, as `listing` found it.
        timeout_s: Deadline in seconds.

    Raises:
        ManagerError: The manager did not stop it in time.
    """
    socket_unit = names.socket_unit(one.service, one.run, one.number)
    has_socket = (manager.unit_dir / socket_unit).exists()
    proxies = {}
    if one.network != "host":
        ours = {port: names.publish_unit(one.run, one.number, port) for port in one.ports}
        proxies = {port: unit for port, unit in ours.items() if (manager.unit_dir / unit).exists()}
    derived = Derived(
        unit=one.unit,
        socket=socket_unit if has_socket else None,
        units={},
        files={},
        directory=names.instance_directory(
            str(manager.runtime_dir), one.service, one.run, one.number
        ),
        proxies=proxies,
    )
    discard(manager, [derived], timeout_s=timeout_s)


def network_named(text: str) -> PrivateNetwork | None:
    """The network that a word stands for; None for the host's.

    Args:
        text: ``host``, ``private``, or ``private:NAME``.

    Raises:
        UsageError: It is none of these.
    """
    if text == "host":
        return None
    from understudy.network import network_name

    name = network_name(text)
    return None if name is None else PrivateNetwork(name=name)


def ad_hoc(command: Sequence[str], port_names: Sequence[str]) -> Service:
    """The definition of a service that is just a command line.

    Args:
        command: Its argv, with ``{port.NAME}`` for its ports.
        port_names: Their names; ``NAME/udp`` is a UDP port, ``NAME:8003`` has that number inside a
            private network.

    Raises:
        UsageError: A port's name or transport is none, or there is no such program.
    """
    program = shutil.which(command[0])
    if program is None:
        found = shutil.which(command[0], mode=os.F_OK)
        raise UsageError(
            f"Cannot run '{command[0]}': {'permission denied' if found else 'command not found'}",
            hint=f"chmod +x {found}" if found else "Give its path, or set PATH",
        )
    declared: dict[str, Port] = {}
    for spec in port_names:
        match = _PORT_SPEC.fullmatch(spec)
        if match is None or not names.valid_port_name(match["name"]):
            raise UsageError(
                f"Cannot use '{spec}' as a port: not a name",
                hint="A name of lower-case letters and digits, /udp for a UDP port, and :NUMBER "
                "for the one that it has in a private network",
            )
        transport = Transport(match["transport"] or "tcp")
        url = "http://{host}:{port}" if transport is Transport.TCP else None
        inside = int(match["inside"]) if match["inside"] else None
        if inside is not None and not 0 < inside < 65536:
            raise UsageError(f"Cannot use '{spec}' as a port: {inside} is no port number")
        declared[match["name"]] = Port(
            name=match["name"], transport=transport, number=inside, url=url
        )
    stem = Path(command[0]).name.lower().split(".")[0].replace("_", "-")
    name = stem if names.valid_service_name(stem) else "exec"
    return Service(
        name=name,
        description=f"Ad hoc {name}",
        origin="ad hoc",
        ports=declared,
        command=(os.path.abspath(program), *command[1:]),  # noqa: PTH100 - symlinks stay
    )


def _check_names(definition: Service, asked: Iterable[str]) -> None:
    for name in asked:
        if name not in definition.ports:
            near = nearest_hint(name, definition.ports)
            known = ", ".join(definition.ports) or "none"
            raise UsageError(
                f"Cannot spawn '{definition.name}': it has no port '{name}'",
                hint=f"{near}its ports: {known}",
            )


def _port_name(spec: str) -> str:
    """The name in ``NAME[/udp][:INSIDE]``."""
    return spec.partition("/")[0].partition(":")[0]


def _check_no_inside(definition: Service, specs: Iterable[str]) -> None:
    for spec in specs:
        if ":" in spec:
            raise UsageError(
                f"Cannot spawn '{definition.name}' with port '{spec}': in the host's network no "
                "instance has a number that is written into it",
                hint="--network private; for an exact number: NAME=NUMBER",
            )


def _check_private(definition: Service, exact: Mapping[str, int], *, lazy: bool) -> None:
    if lazy:
        raise UsageError(
            f"Cannot spawn '{definition.name}' lazily in a private network: that is looked at "
            "before it is handed its first connection",
        )
    if definition.instance_activation is Activation.SOCKETS:
        return
    for name, number in exact.items():
        if definition.ports[name].transport is Transport.UDP:
            raise UsageError(
                f"Cannot publish UDP port '{name}' of '{definition.name}' as {number}: only TCP "
                "is passed on into a private network",
                hint="a service that takes its sockets from systemd has UDP too; or be inside: "
                "understudy run --join",
            )


def _own_network(guard_cgroup: str, manager: Manager) -> PrivateNetwork | None:
    """The private network that this process itself is in; None where it is in its manager's.

    Args:
        guard_cgroup: The control group of a process that the manager has started.
        manager: The run's manager.
    """
    own = os.stat("/proc/self/ns/net")  # noqa: PTH116 - a link to follow
    for pid in processes(guard_cgroup):
        try:
            if os.path.samestat(own, os.stat(f"/proc/{pid}/ns/net")):  # noqa: PTH116
                return None
        except PermissionError:
            pass  # ptrace(2): one's own process can be out of sight from a user namespace alone
        except OSError:
            continue  # it has just ended
        around = f"/proc/{os.getpid()}/ns/user" if manager.kind is ManagerKind.USER else ""
        return PrivateNetwork(net_path=f"/proc/{os.getpid()}/ns/net", user_path=around, here=True)
    return None


def _check_here(request: Request) -> None:
    """Refuse what cannot be had from inside of a private network."""
    name = request.service.name
    if request.network is not None:
        raise UsageError(
            f"Cannot spawn '{name}' in network '{request.network}': this process is in a private "
            "network itself, from which no other can be reached",
            hint=f"without a network: '{name}' then joins the one that this process is in",
        )
    if request.service.instance_activation is Activation.SOCKETS:
        raise UsageError(
            f"Cannot spawn '{name}' from inside of a private network: systemd binds its sockets "
            "outside, where this process cannot reach them",
            hint=f"understudy run --service {name} lets them in",
        )


def _shell_word(one: Listening) -> str:
    """What names an instance on a command line, or starts one that is ours; "" for production."""
    if isinstance(one, Instance):
        return f'"$({one.reproduce()} --names)"'
    return "" if names.parse(one.unit) is None else shlex.quote(one.unit)


def _is_beside(one: Listening, place: PrivateNetwork) -> bool:
    """Whether an instance is in this network, one that is shared by its name."""
    return bool(place.name) and one.network == str(place)


def _guest_of(definition: Service, uses: Mapping[str, Listening]) -> dict[str, str]:
    """Whose production's server it gets a path prefix on, with that one's unit."""
    units = {name: uses[name].unit if name in uses else "" for name in definition.prefixes}
    return {name: unit for name, unit in units.items() if not names.parse(unit)}


def _used(
    definition: Service, uses: Mapping[str, Listening], place: PrivateNetwork | None
) -> dict[str, dict[str, int]]:
    for name in uses:
        if name not in definition.uses:
            near = nearest_hint(name, definition.uses)
            known = ", ".join(definition.uses) or "none"
            raise UsageError(
                f"Cannot spawn '{definition.name}': it does not use '{name}'",
                hint=f"{near}it uses: {known}",
            )
    numbers = {}
    for name, instance in uses.items():
        beside = place is not None and _is_beside(instance, place) and instance.inside_ports
        numbers[name] = dict(instance.inside_ports if beside else instance.ports)
        if missing := [port for port in definition.uses[name] if port not in numbers[name]]:
            raise InstanceError(
                f"Cannot use '{instance.unit}' as '{name}': it has no port '{missing[0]}'",
                unit=instance.unit,
            )
    return numbers
