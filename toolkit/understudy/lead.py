"""Production as it is on this host: found, looked at, shared, never changed."""

from __future__ import annotations

import contextlib
import datetime
import os
import pwd
import select
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from understudy import confided, names, ports, services
from understudy.derive import urls_of
from understudy.errors import NoManagerError, ProductionError, UsageError
from understudy.manager import Manager, UnitStatus, bus_variables, connect
from understudy.model import HttpCheck, ManagerKind, Port, Service
from understudy.ready import HttpProbe

if TYPE_CHECKING:
    from understudy.api import Api, Json
    from understudy.fingerprint import Aspect, Comparison, Fingerprint
    from understudy.leases import Lease, Waiting
    from understudy.paths import Owned, ProductionPath

TIMEOUT_S = 5.0
LEASE_TIMEOUT_S = 60.0
PAUSE_MIN_S = 0.002
PAUSE_MAX_S = 0.1

_COMING = ("activating", "reloading", "refreshing")
_JOURNALS = ("/var/log/journal", "/run/log/journal")


class Production:
    """The host's own copy of a service. Made by `understudy.production`.

    It has an instance's face as far as that only looks, so it can be given to ``uses=``. As a
    context manager it has a lease on production, a shared one unless told otherwise, and gives up
    at the end all that was had by way of it.

    Attributes:
        service: The service's name: ``mediamtx``.
        definition: Its definition.
        unit: Its unit name: ``mediamtx.service``.
        manager: Whose manager runs it.
        ports: The number of each declared port that it listens on, by name.
        urls: The URL of each of these that has one, by name.
        pid: Its main process's PID; 0 while a socket waits for its first connection.
        network: ``host``, as far as is known.
        inside_ports: None: it is in no private network of ours.
        invocation_id: 32 hex digits, other ones after each start; "" if it never ran.
        active_since: When it became active; None if it is not.
    """

    def __init__(
        self, manager: Manager, definition: Service, status: UnitStatus, numbers: dict[str, int]
    ) -> None:
        self.service = definition.name
        self.definition = definition
        self.unit = status.unit
        self.manager = manager.kind
        self.ports = numbers
        self.urls = urls_of(definition, numbers)
        self.pid = status.main_pid
        self.invocation_id = status.invocation_id
        self.active_since = (
            datetime.datetime.fromtimestamp(status.active_since_s, datetime.UTC)
            if status.active_since_s
            else None
        )
        self.network = "host"
        self.inside_ports: dict[str, int] = {}
        self._manager = manager
        self._lease: Lease | None = None
        self._paths: list[ProductionPath] = []
        self._swept = False
        self._test: str | None = None
        self._run: Callable[[], str | None] = lambda: None

    def __enter__(self) -> Self:
        if self._lease is None:
            self._lease = self.lease()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={number}" for name, number in self.ports.items())
        return f"<Production {self.unit} {numbers}>"

    def status(self) -> UnitStatus:
        """What its manager says of it now.

        Raises:
            ManagerError: The manager cannot be reached.
        """
        return self._manager.status([self.unit])[self.unit]

    def ready(self, *, timeout_s: float = TIMEOUT_S) -> bool:
        """Whether its definition's check passes; without one, whether it is active.

        Args:
            timeout_s: Seconds that it is given.
        """
        check = self.definition.ready
        if check is None or check.port not in self.ports:
            return self.status().active_state == "active"
        deadline = time.monotonic() + timeout_s
        return _ask(self.definition, check, self.ports[check.port], deadline) == ""

    @property
    def api(self) -> Api:
        """A client of its control API, which is MediaMTX's.

        Raises:
            ProductionError: It has none, or it is off.
        """
        from understudy.api import Api

        if "api" not in self.urls:
            off = "api" in self.definition.ports
            raise ProductionError(
                f"Cannot use the control API of production's '{self.service}': "
                + ("it is off" if off else "there is none"),
                hint="'api: yes' in its configuration" if off else None,
            )
        account = confided.credentials(self.definition, _known(self.definition))
        return Api(self.urls["api"], credentials=account)

    @property
    def confided(self) -> dict[str, str]:
        """Its values, where a secret of its is known here: from ``UNDERSTUDY_<SERVICE>_<NAME>``.

        Production's own files are not looked into.
        """
        known = _known(self.definition)
        return known if any(known[name] for name in self.definition.secrets) else {}

    def lease(
        self,
        *,
        exclusive: bool = False,
        timeout_s: float = LEASE_TIMEOUT_S,
        waiting: Waiting | None = None,
    ) -> Lease:
        """Get a lease on it: shared with others, or for who must be alone.

        Whoever disturbs others (a reload, a restart) asks for an exclusive one; it is waited for
        until all that came before are done, of all users of the host.

        Args:
            exclusive: Alone.
            timeout_s: Deadline in seconds for the whole call.
            waiting: Told while it is waited for: who has it, and whether that is news.

        Raises:
            ProductionError: Others have it for the whole time; the message names them.
            UsageError: It is asked for exclusively by a process that shares it.
            ManagerError: The process that keeps it cannot be started.
        """
        from understudy.leases import lease

        return lease(
            self.lease_key,
            service=self.service,
            exclusive=exclusive,
            timeout_s=timeout_s,
            waiting=waiting,
        )

    @property
    def lease_key(self) -> str:
        """What its leases go by, the same for all who mean the same unit."""
        from understudy.leases import key_of

        return key_of(self.unit, self.manager)

    def path(
        self,
        name: str,
        *,
        test: str | None = None,
        run: str | None = None,
        timeout_s: float = LEASE_TIMEOUT_S,
        waiting: Waiting | None = None,
        **settings: Json,
    ) -> ProductionPath:
        """A path of one's own on it: ``r7k2mq/test_x/cam0``, removed when it is closed.

        It comes with a shared lease, as long as it is open. What runs that are no more have left
        on the server is removed first.

        Args:
            name: The last part of its name.
            test: The middle part; None: what `name_paths` said, else the test that pytest is at,
                else the program's name.
            run: The first part: the id of a live run of the caller's; None: what `name_paths` said,
                else one of its own.
            timeout_s: Deadline in seconds for the lease, and again for the path.
            waiting: As for `lease`.
            settings: The path's settings in MediaMTX's words: ``source="rtsp://…"``.

        Raises:
            ProductionError: The server refuses, or others have it exclusively.
            UsageError: It cannot be called so.
            ManagerError: The process that keeps the lease cannot be started.
        """
        from understudy import paths

        api = self.api
        lease = self.lease(timeout_s=timeout_s, waiting=waiting)
        try:
            if not self._swept:
                # What others left is not this test's concern, if it will not go.
                with contextlib.suppress(ProductionError):
                    self.sweep(lease)
            made = paths.create(
                api,
                lease,
                name,
                test=self._test if test is None else test,
                run=self._run() if run is None else run,
                urls=self.urls,
                settings=settings,
                timeout_s=timeout_s,
            )
        except BaseException:
            lease.close()
            raise
        self._paths.append(made)
        return made

    def name_paths(self, *, test: str | None, run: Callable[[], str | None]) -> None:
        """Say what its paths are called by from now on, where `path` itself does not say.

        Args:
            test: The middle part; None: the test that pytest is at.
            run: Asked at each path for the first part: a live run's id; None: an id of its own.
        """
        self._test, self._run = test, run

    def clean(self, *, waiting: Waiting | None = None) -> list[Owned]:
        """Remove what runs that are no more have left on it, whoever's they were.

        Args:
            waiting: As for `lease`.

        Returns:
            What was removed.

        Raises:
            ProductionError: The server refuses, or others have it exclusively.
        """
        with self.lease(waiting=waiting) as lease:
            return self.sweep(lease)

    def remove_path(self, name: str, *, waiting: Waiting | None = None) -> None:
        """Remove a path that nobody is known to need, whoever has added it.

        Args:
            name: Its name.
            waiting: As for `lease`.

        Raises:
            ProductionError: There is none, a live run has it, the server refuses, or others have
                it exclusively.
        """
        from understudy import paths

        with self.lease(waiting=waiting) as lease:
            paths.remove(self.api, lease, name)

    def sweep(self, lease: Lease) -> list[Owned]:
        """`clean` for who has a lease on it.

        Args:
            lease: The lease.

        Raises:
            ProductionError: The server refuses.
        """
        from understudy import paths

        self._swept = True
        return paths.sweep(self.api, lease)

    def fingerprint(self) -> Fingerprint:
        """What it is like now, to be compared with what it is like later (`compare`).

        Raises:
            ManagerError: The manager cannot be reached.
        """
        from understudy import fingerprint

        api = self.api if "api" in self.urls else None
        return fingerprint.take(self._manager, self.unit, self.definition, api)

    def compare(self, before: Fingerprint, *, expected: Collection[Aspect] = ()) -> Comparison:
        """Say whether it is as it was; one line for people is the answer's `str`.

        Args:
            before: What `fingerprint` gave then.
            expected: What may differ: `understudy.fingerprint.RELOADED` after a test that had it
                exclusively and reloaded its configuration.

        Raises:
            ManagerError: The manager cannot be reached.
        """
        from understudy import fingerprint

        return fingerprint.compare(before, self.fingerprint(), expected=expected)

    def keep(self, lease: Lease) -> None:
        """Have a lease given back when this is closed.

        Args:
            lease: A lease on it.
        """
        self._lease = lease

    def close(self) -> None:
        """Give up what was had by way of it: its paths, and its lease.

        Raises:
            ExceptionGroup: What could not be undone.
        """
        faults: list[Exception] = []
        for path in reversed(self._paths):
            try:
                path.close()
            except ProductionError as exc:
                faults.append(exc)
        self._paths.clear()
        if self._lease is not None:
            self._lease.close()
            self._lease = None
        if faults:
            raise ExceptionGroup(f"Cannot undo all that was done to '{self.service}'", faults)

    @property
    def unreadable(self) -> str:
        """Why this user may not read its log, and what helps; "" where they may."""
        if self.manager is not ManagerKind.SYSTEM or _may_read_the_systems_journal():
            return ""
        return (
            f"(the log of {self.unit} may not be read by {_user()}: "
            f"sudo usermod -aG systemd-journal {_user()})"
        )

    def journal(self, *, lines: int | None = 100, since_s: float | None = None) -> str:
        """What it has written, oldest line first; where that may not be read, a word that says so.

        Args:
            lines: At most so many of the last lines; None for all.
            since_s: Only what came after this time, CLOCK_REALTIME seconds.
        """
        if unreadable := self.unreadable:
            return unreadable
        command = ["journalctl", "--quiet", "--no-pager", "--output=cat"]
        command += [f"--lines={lines}"] * (lines is not None)
        if since_s is not None:
            command.append(f"--since=@{since_s:.6f}")
        command += [f"--{self.manager}", f"--unit={self.unit}"]
        done = subprocess.run(
            command,
            env={**os.environ, **bus_variables(self._manager)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            text=True,
            errors="replace",
        )
        return done.stdout.removesuffix("\n")


def production(
    service: str | Service,
    *,
    unit: str | None = None,
    manager: Manager | ManagerKind | None = None,
    units: Path | None = None,
    timeout_s: float = TIMEOUT_S,
    exclusive: bool | None = None,
    lease_timeout_s: float = LEASE_TIMEOUT_S,
    waiting: Waiting | None = None,
    who: str = "",
) -> Production:
    """Find production's copy of a service, and see that it is active and ready.

    Nothing of it is started, and no right over it is needed.

    Args:
        service: Its name or definition.
        unit: Its unit, where that is called otherwise here than its definition says.
        manager: Whose manager runs it; None: the system's, or the caller's own if the system's does
            not know the unit.
        units: A folder of service definitions to look in before all others.
        timeout_s: Seconds that it is given to become ready.
        exclusive: Get a lease on it first, alone or shared, and keep that until it is closed; None:
            only look.
        lease_timeout_s: Deadline in seconds for the lease.
        waiting: As for `Production.lease`.
        who: What those who wait for the lease are told that its owner is called; "": the program's
            name.

    Raises:
        LeaseError: Others have it for the whole time.
        ProductionError: It is not installed, not active or not ready, or somebody else holds its
            port; the hint has the command that helps.
        UsageError: There is no such service, or it has no production.
        ManagerError: No manager can be reached.
    """
    definition, unit, found = find(service, unit=unit, manager=manager, units=units)
    finding = _Finding(definition, unit, found, timeout_s)
    if exclusive is None:
        return finding.find()
    finding.check_installed()  # else there is nothing to wait for
    from understudy import leases

    lease = leases.lease(
        leases.key_of(unit, found.kind),
        service=definition.name,
        exclusive=exclusive,
        timeout_s=lease_timeout_s,
        who=who,
        waiting=waiting,
    )
    try:
        lead = finding.find()
        if exclusive and "api" in lead.urls:
            # Whoever is alone finds nothing of those that are no more.
            with contextlib.suppress(ProductionError):
                lead.sweep(lease)
    except BaseException:
        lease.close()
        raise
    lead.keep(lease)
    return lead


def find(
    service: str | Service,
    *,
    unit: str | None = None,
    manager: Manager | ManagerKind | None = None,
    units: Path | None = None,
) -> tuple[Service, str, Manager]:
    """The definition, the unit and the manager of production's copy, whatever state that is in.

    Args:
        service: As for `production`.
        unit: As for `production`.
        manager: As for `production`.
        units: As for `production`.

    Raises:
        UsageError: There is no such service, or it has no production.
        ManagerError: No manager can be reached.
    """
    definition = service if isinstance(service, Service) else services.find(service, units=units)
    unit = unit or definition.production
    if unit is None:
        raise UsageError(
            f"Cannot find production's '{definition.name}': its definition names no unit",
            hint='production = "….service" in its service.toml, or unit=',
        )
    return definition, unit, _manager_of(unit, manager)


def seen(
    service: str | Service,
    *,
    unit: str | None = None,
    manager: Manager | ManagerKind | None = None,
    units: Path | None = None,
) -> Production | None:
    """Production's copy in whatever state it is; None where it is not installed.

    Args:
        service: As for `production`.
        unit: As for `production`.
        manager: As for `production`.
        units: As for `production`.

    Raises:
        UsageError: There is no such service, or it has no production.
        ManagerError: No manager can be reached.
    """
    definition, unit, found = find(service, unit=unit, manager=manager, units=units)
    status = found.status([unit])[unit]
    if status.load_state == "not-found":
        return None
    numbers = _Finding(definition, unit, found, 0.0).numbers(status)
    return Production(found, definition, status, numbers)


def every(*, units: Path | None = None) -> list[Production]:
    """Production of every service that has a definition, in whatever state, where it is installed.

    Args:
        units: A folder of service definitions to look in before all others.

    Returns:
        Them, each unit once; none where no manager is in reach.

    Raises:
        ManagerError: A manager went away.
    """
    found: dict[str, Production] = {}
    for definition in services.every(units=units):
        if definition.production is None or definition.production in found:
            continue
        try:
            one = seen(definition)
        except NoManagerError:
            return []
        if one is not None:
            found[one.unit] = one
    return [*found.values()]


def fingerprints(*, units: Path | None = None) -> dict[str, Fingerprint]:
    """What production of every service that has a definition is like now, where it is installed.

    Args:
        units: A folder of service definitions to look in before all others.

    Returns:
        By ``system mediamtx.service``; nothing where no manager is in reach.

    Raises:
        ManagerError: A manager went away.
    """
    return {f"{one.manager} {one.unit}": one.fingerprint() for one in every(units=units)}


def compare_all(
    before: Mapping[str, Fingerprint],
    after: Mapping[str, Fingerprint],
    *,
    expected: Collection[Aspect] = (),
) -> list[Comparison]:
    """Say of each production whether it is as it was.

    Args:
        before: What `fingerprints` gave.
        after: What it gave later; a unit that is not in it any more is one that is not installed.
        expected: What may differ.
    """
    from understudy import fingerprint

    found = []
    for name, one in before.items():
        now = after.get(name) or fingerprint.absent(one)
        found.append(fingerprint.compare(one, now, expected=expected))
    return found


class _Finding:
    """One look at production."""

    def __init__(self, definition: Service, unit: str, manager: Manager, timeout_s: float) -> None:
        self.definition = definition
        self.unit = unit
        self.manager = manager
        self.timeout_s = timeout_s
        self.deadline = time.monotonic() + timeout_s
        whose = "systemctl" if manager.kind is ManagerKind.SYSTEM else "systemctl --user"
        self.systemctl = whose
        self.start = f"sudo {whose}" if manager.kind is ManagerKind.SYSTEM else whose

    def find(self) -> Production:
        """Find it, or say what is wrong."""
        status = self._settled()
        self._check(status)
        check = self.definition.ready
        number = None if check is None else self.definition.ports[check.port].number
        if check is not None and number is not None:
            self._check_port(status, self.definition.ports[check.port], number)
            if said := _ask(self.definition, check, number, self.deadline):
                raise self._error(
                    f"it is not ready: GET {check.path} on port {number}: {said}",
                    f"{self.systemctl} status {self.unit}",
                )
            status = self._status()  # a connection may have started it
        return Production(self.manager, self.definition, status, self.numbers(status))

    def _status(self) -> UnitStatus:
        return self.manager.status([self.unit])[self.unit]

    def _settled(self) -> UnitStatus:
        """Its status, once it is no longer on its way."""
        pause_s = PAUSE_MIN_S
        while (status := self._status()).active_state in _COMING:
            if time.monotonic() >= self.deadline:
                break
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
        return status

    def check_installed(self) -> None:
        """See that there is such a unit."""
        self._check_installed(self._status())

    def _check_installed(self, status: UnitStatus) -> None:
        if status.load_state == "not-found":
            raise self._error(
                f"{self.unit} is not installed on the {self.manager.kind} manager"
                + self._instead(status),
                f"see what it would be: understudy render {self.definition.name}; "
                "another name or manager: unit=, manager=",
            )

    def _check(self, status: UnitStatus) -> None:
        state = status.active_state
        self._check_installed(status)
        if state == "failed":
            raise self._error(
                f"{self.unit} has failed ({_result(status)})" + self._instead(status),
                f"{self.start} restart {self.unit}; why: {_journalctl(self.manager, self.unit)}",
            )
        if state in _COMING:
            raise self._error(
                f"{self.unit} is still {state} after {self.timeout_s:g} s",
                f"{self.systemctl} status {self.unit}",
            )
        if state != "active" and not self._socket_units():
            raise self._error(
                f"{self.unit} is {state}" + self._instead(status),
                f"{self.start} start {self.unit}",
            )

    def _instead(self, status: UnitStatus) -> str:
        """Who is where production should be."""
        sockets = ports.snapshot()
        for port in self.definition.ports.values():
            bound = [] if port.number is None else sockets.bound(port.transport, port.number)
            if bound:
                holder = ports.describe(bound)[0]
                return f", and its port {port.number} ('{port.name}') is held by {holder}"
        return ""

    def _check_port(self, status: UnitStatus, port: Port, number: int) -> None:
        """Wait until it holds the port of its ready check; somebody else's answer is none."""
        pause_s = PAUSE_MIN_S
        while port.name not in self.numbers(status):
            others = ports.snapshot().bound(port.transport, number)
            # Between the two looks it may have come itself.
            if others and port.name not in self.numbers(status):
                raise self._error(
                    f"its port {number} ('{port.name}') is held by {ports.describe(others)[0]}, "
                    f"not by {self.unit}",
                    f"understudy ports {number}",
                )
            if time.monotonic() >= self.deadline:
                raise self._error(
                    f"{self.unit} is active, but nothing of it listens on port {number} "
                    f"('{port.name}')",
                    f"{self.systemctl} status {self.unit}",
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def numbers(self, status: UnitStatus) -> dict[str, int]:
        """The declared ports that it listens on: it, or a socket unit for it."""
        sockets = ports.snapshot()
        ids = ports.cgroup_ids(status.control_group) if status.control_group else frozenset()
        found = {}
        foreign: dict[str, list[ports.Socket]] = {}
        for port in self.definition.ports.values():
            bound = [] if port.number is None else sockets.bound(port.transport, port.number)
            if any(one.cgroup in ids for one in bound):
                assert port.number is not None
                found[port.name] = port.number
            elif bound:
                foreign[port.name] = bound
        if foreign and _in_private_network():
            # It is let in through a socket of somebody else's.
            for name, bound in foreign.items():
                holders = ports.describe(bound)
                if all(one.unit is None or names.parse(one.unit) is None for one in holders):
                    found[name] = bound[0].port
        elif foreign and (listening := self._listening()):
            for name in foreign:
                port = self.definition.ports[name]
                if port.number in listening:
                    found[name] = port.number
        return {name: found[name] for name in self.definition.ports if name in found}

    def _socket_units(self) -> list[str]:
        """The socket units that are active for it."""
        text = self.manager.properties(self.unit, ["TriggeredBy"]).get("TriggeredBy", "")
        named = [unit for unit in text.split() if unit.endswith(".socket")]
        stem = self.unit.removesuffix(".service")
        # Where a proxy stands before it, the socket is the proxy's.
        for unit in self.manager.list([f"{stem}.socket", f"{stem}-*.socket"]):
            if unit not in named:
                named.append(unit)
        states = self.manager.status(named) if named else {}
        return [unit for unit, one in states.items() if one.active_state == "active"]

    def _listening(self) -> set[int]:
        found = set()
        for unit in self._socket_units():
            text = self.manager.properties(unit, ["Listen"]).get("Listen", "")
            # "[::]:8002 (Stream)", one to a line
            for word in text.split():
                number = word.rpartition(":")[2]
                if number.isdecimal():
                    found.add(int(number))
        return found

    def _error(self, what: str, hint: str) -> ProductionError:
        return ProductionError(
            f"Cannot use production's '{self.definition.name}': {what}", hint=hint
        )


def _manager_of(unit: str, manager: Manager | ManagerKind | None) -> Manager:
    if isinstance(manager, ManagerKind):
        return connect(manager)
    if manager is not None:
        return manager
    kinds: Sequence[ManagerKind] = [ManagerKind.SYSTEM]
    if os.geteuid() != 0:
        kinds = [ManagerKind.SYSTEM, ManagerKind.USER]
    first: Manager | None = None
    fault: NoManagerError | None = None
    for kind in kinds:
        try:
            found = connect(kind)
            if found.status([unit])[unit].load_state != "not-found":
                return found
        except NoManagerError as exc:
            fault = fault or exc
        else:
            first = first or found
    if first is None:
        assert fault is not None
        raise fault
    return first


def _known(definition: Service) -> dict[str, str]:
    return confided.known(definition, {}, confided.from_environment(definition, os.environ))


def _ask(definition: Service, check: HttpCheck, number: int, deadline: float) -> str:
    """Ask until the answer is right; what the last one was otherwise.

    It is ready when it asks for a password that nobody told this process.
    """
    credentials = confided.credentials(definition, _known(definition))
    asks_back = "HTTP 401" if check.password and credentials is None else ""
    probe = HttpProbe(check, number, credentials)
    pause_s = PAUSE_MIN_S
    try:
        while True:
            if probe.step() or probe.last == asks_back:
                return ""
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return probe.last
            poll = select.poll()
            if probe.fileno() >= 0:
                poll.register(probe, select.POLLOUT if probe.wants_to_write else select.POLLIN)
                poll.poll(left_s * 1000)
            else:
                poll.poll(min(pause_s, left_s) * 1000)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
    finally:
        probe.close()


def _result(status: UnitStatus) -> str:
    if status.exit_code == os.CLD_EXITED:
        return f"exit status {status.exit_status}"
    return status.result or "no result"


def _journalctl(manager: Manager, unit: str) -> str:
    return (
        f"journalctl --user -u {unit}"
        if manager.kind is ManagerKind.USER
        else f"journalctl -u {unit}"
    )


def _may_read_the_systems_journal() -> bool:
    if os.geteuid() == 0:
        return True
    files = [file for place in _JOURNALS for file in Path(place).glob("*/system.journal")]
    return any(os.access(file, os.R_OK) for file in files)


def _in_private_network() -> bool:
    return os.environ.get("UNDERSTUDY_NETWORK", "").startswith("private")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
