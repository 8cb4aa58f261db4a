"""A run: all that one test run owns, and the one thing to end."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from understudy import names, ports, services
from understudy.errors import InstanceError, RunError, UsageError, nearest_hint
from understudy.guard import Guard
from understudy.instance import Instance, discard
from understudy.launch import Stage, launch
from understudy.listing import Found
from understudy.manager import Manager, connect
from understudy.model import Activation, Derived, Engine, ManagerKind, Port, Service, Transport
from understudy.names import guard_unit, slice_unit
from understudy.plan import Plan, Planner, Request

LIFETIME_S = 3600.0
"""How long a run of the command line lives that nobody owns."""

TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0

# No vowels, so no words; no 0, 1 or l, so nothing to misread.
_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"


class Listening(Protocol):
    """What another service can be told to talk to: an `Instance`, or one that `listing` found."""

    @property
    def unit(self) -> str:
        """Its unit name."""

    @property
    def ports(self) -> Mapping[str, int]:
        """The number of each of its ports, by name."""


class Run:
    """All that one test run owns: instances, slice, files, ports.

    ``with Run() as run:`` ends it with the block. Whatever happens to the block, the run ends with
    its owner, which is the process that began it: SIGKILL included, forked children or not.

    Args:
        manager: Which systemd manager, or one that is connected already; None: root has the
            system's, everybody else their own.
        engine: How instances are handed to the manager; None: unit files, and systemd-run for
            what is ad hoc.
        port_range: Where ports are taken from; None: as configured.
        units: A folder of service definitions to look in before all others.
        lifetime_s: Seconds after which it ends whatever happens; None: only with its owner.
        timeout_s: Deadline in seconds for each call, where the call itself names none.

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
        units: Path | None = None,
        lifetime_s: float | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        if manager is None or isinstance(manager, ManagerKind):
            manager = connect(manager)
        self.manager = manager
        self.engine = engine
        self.units = units
        self.timeout_s = timeout_s
        self.id = ""
        self.instances: list[Instance] = []
        self.lifetime_s = lifetime_s
        self._port_range = port_range
        self._owner_pid = 0
        self._stage: Stage | None = None
        self._lock = threading.Lock()

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
        run, name = _take_id()
        with name:
            guard = Guard.start(
                self.manager,
                run,
                owner_pid=self._owner_pid,
                lifetime_s=self.lifetime_s,
                held={"run": name.fileno()},
                timeout_s=self.timeout_s,
            )
        try:
            cgroup = self._slice_cgroup(run)
        except BaseException:
            guard.close()
            self.manager.stop([guard.unit], timeout_s=STOP_TIMEOUT_S)
            raise
        self.id = run
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
        timeout_s: float | None = None,
    ) -> Instance:
        """Start one instance, and return when it is ready.

        Args:
            service: A service's name or definition; None with ``exec``.
            exec: An ad hoc service's command line; ``{port.http}`` is its port ``http``,
                ``{dir}`` its own directory.
            ports: Names of ports that are closed unless asked for, or exact numbers by name (0:
                any). For ``exec`` all of its ports, of which ``media/udp`` is a UDP one.
            values: Values for the definition's templates.
            env: Further environment.
            uses: Which instance of another service it talks to, by that service's name;
                production's where none is named.
            installed: Derive from production's unit as it is on this host, instead of ours.
            lazy: Leave a socket-activated service to its first connection; its errors then come
                with that.
            timeout_s: Deadline in seconds for the whole call.

        Raises:
            UsageError: No such service, port or value.
            DefinitionError: The definition is wrong.
            RenderError: A value cannot go into a unit.
            PortError: No port to be had, or somebody else holds the one asked for.
            StartError: It died, or its job failed; nothing of it is left.
            ReadyTimeoutError: It was not ready in time; nothing of it is left.
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
        stage = self._live_stage()
        requests = [item if isinstance(item, Request) else self.request(item) for item in wanted]
        if timeout_s is None:
            timeout_s = self.timeout_s
        found = launch(stage, requests, timeout_s=timeout_s, progress=progress)
        with self._lock:
            self.instances += found
        return found

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
    ) -> Request:
        """What `spawn` with these arguments asks for, to be given to `spawn_many`.

        Raises:
            UsageError: No such service or port, or it cannot be ``lazy``.
            DefinitionError: The definition is wrong.
            NoSuchUnitError: ``installed``, and production is not installed here.
        """
        numbers = dict(ports) if isinstance(ports, Mapping) else dict.fromkeys(ports, 0)
        asked = [name.partition("/")[0] for name in numbers]
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
        return Request(
            service=definition,
            values={name: str(value) for name, value in (values or {}).items()},
            environment=dict(env or {}),
            used={**self._production_ports(definition), **_used(definition, uses or {})},
            uses={name: one.unit for name, one in (uses or {}).items()},
            asked=tuple(asked),
            numbers={name.partition("/")[0]: number for name, number in numbers.items() if number},
            base=self._installed(definition) if installed else None,
            lazy=lazy,
        )

    def detach(self) -> None:
        """Let the run live on without this process, until its lifetime is over.

        Raises:
            RunError: It has no lifetime: nothing would ever end it; or it has ended.
        """
        stage = self._live_stage()
        if self.lifetime_s is None:
            raise RunError(
                f"Cannot detach run '{self.id}': it has no lifetime, so nothing would end it",
                hint="Run(lifetime_s=3600)",
            )
        stage.guard.detach()
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
        run, name = _take_id()
        name.close()
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
        finally:
            stage.guard.close()

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
        )

    def _production_ports(self, definition: Service) -> dict[str, dict[str, int]]:
        used: dict[str, dict[str, int]] = {}
        for name in definition.uses:
            declared = services.find(name, units=self.units).ports.values()
            used[name] = {port.name: port.number for port in declared if port.number is not None}
        return used

    def _slice_cgroup(self, run: str) -> str:
        # The slice itself may not have a cgroup yet; the guard's lies beside it.
        guard = guard_unit(run)
        group = self.manager.properties(guard, ["ControlGroup"])["ControlGroup"]
        return f"{group.rpartition('/')[0]}/{slice_unit(run)}"


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
    derived = Derived(
        unit=one.unit,
        socket=socket_unit if has_socket else None,
        units={},
        files={},
        directory=names.instance_directory(
            str(manager.runtime_dir), one.service, one.run, one.number
        ),
    )
    discard(manager, [derived], timeout_s=timeout_s)


def ad_hoc(command: Sequence[str], port_names: Sequence[str]) -> Service:
    """The definition of a service that is just a command line.

    Args:
        command: Its argv, with ``{port.NAME}`` for its ports.
        port_names: Their names; ``NAME/udp`` is a UDP port.

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
        name, _, transport = spec.partition("/")
        if transport not in ("", "tcp", "udp") or not names.valid_port_name(name):
            raise UsageError(
                f"Cannot use '{spec}' as a port: not a name",
                hint="A name of lower-case letters and digits, and /udp for a UDP port",
            )
        transport_of = Transport(transport or "tcp")
        url = "http://{host}:{port}" if transport_of is Transport.TCP else None
        declared[name] = Port(name=name, transport=transport_of, url=url)
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


def _used(definition: Service, uses: Mapping[str, Listening]) -> dict[str, dict[str, int]]:
    for name in uses:
        if name not in definition.uses:
            near = nearest_hint(name, definition.uses)
            known = ", ".join(definition.uses) or "none"
            raise UsageError(
                f"Cannot spawn '{definition.name}': it does not use '{name}'",
                hint=f"{near}it uses: {known}",
            )
    for name, instance in uses.items():
        if missing := [port for port in definition.uses[name] if port not in instance.ports]:
            raise InstanceError(
                f"Cannot use '{instance.unit}' as '{name}': it has no port '{missing[0]}'",
                unit=instance.unit,
            )
    return {name: dict(instance.ports) for name, instance in uses.items()}


def _take_id() -> tuple[str, socket.socket]:
    """A run id that no live run of this host has, and the name that says so to all users."""
    while True:
        run = "r" + "".join(random.SystemRandom().choices(_ALPHABET, k=5))
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(f"\0understudy/run/{run}")
            name.listen()
        except OSError as exc:
            name.close()
            if exc.errno != errno.EADDRINUSE:
                raise
        else:
            return run, name
