"""A manager by D-Bus. The only module that imports pystemd (0.11 and later).

It speaks over systemd's private socket (``%t/systemd/private``): no bus daemon is needed or in
between, and every signal arrives unasked. Where that socket is out of reach, as the system
manager's is for everybody but root, it speaks over the bus.

Signals are read with ``process()``, never with pystemd's ``match_signal``: that keeps no
reference to its callback, and a collected one is a crash. Waiting is done with poll(2) on the
connection's descriptor, because pystemd's own ``wait`` holds the interpreter lock.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import select
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from understudy.errors import (
    AccessDeniedError,
    ManagerError,
    NoManagerError,
    NoSuchUnitError,
    UnitExistsError,
)
from understudy.manager import NO_RIGHT_HINT, Jobs, Transient, UnitStatus, ours
from understudy.manager.commands import CommandManager
from understudy.manager.words import INFINITY, Property, command, complete_types, environment, typed
from understudy.model import ManagerKind


def _import_dbuslib() -> Any:
    """Import ``pystemd.dbuslib`` without what ``import pystemd`` brings along.

    The package imports lxml for an interface that is not used here: two thirds of 30 ms, which
    every command would pay. So the package is a bare one while its module is imported.
    """
    if "pystemd" not in sys.modules:
        spec = importlib.util.find_spec("pystemd")
        if spec is None:
            raise ImportError("pystemd is not installed", name="pystemd")
        sys.modules["pystemd"] = importlib.util.module_from_spec(spec)
        try:
            return importlib.import_module("pystemd.dbuslib")
        finally:
            del sys.modules["pystemd"]
    return importlib.import_module("pystemd.dbuslib")


_dbuslib = _import_dbuslib()
_DBusError: Any = sys.modules["pystemd.dbusexc"].DBusBaseError

_SYSTEMD = b"org.freedesktop.systemd1"
_OBJECT = b"/org/freedesktop/systemd1"
_MANAGER = b"org.freedesktop.systemd1.Manager"
_UNIT = b"org.freedesktop.systemd1.Unit"
_PROPERTIES = b"org.freedesktop.DBus.Properties"

_TEXTS = frozenset({"ControlGroup", "Result", "Slice"})
"""Properties of a service that are texts, and shown as they are."""

_KINDS: dict[str, type[ManagerError]] = {
    "org.freedesktop.systemd1.NoSuchUnit": NoSuchUnitError,
    "org.freedesktop.systemd1.UnitExists": UnitExistsError,
    "org.freedesktop.DBus.Error.AccessDenied": AccessDeniedError,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": AccessDeniedError,
}


class DbusManager:
    """A `Manager` by D-Bus.

    Args:
        kind: Whose manager.
        runtime_dir: Its ``%t`` (`understudy.manager.find_runtime_dir`).
    """

    note = ""

    def __init__(self, kind: ManagerKind, runtime_dir: Path) -> None:
        self.kind = kind
        self.runtime_dir = runtime_dir
        self.unit_dir = runtime_dir / "systemd" / kind.value
        self._commands = CommandManager(kind, runtime_dir)

    def start_transient(
        self, unit: Transient, auxiliary: Sequence[Transient], *, stdin: int, timeout_s: float
    ) -> None:
        """See `Manager.start_transient`."""
        names = [ours(each.unit) for each in (unit, *auxiliary)]
        properties = [*_properties(unit), Property("StandardInputFileDescriptor", "h", stdin)]
        others = [
            (ours(one.unit), _variants(_properties(one)))
            for each in auxiliary
            for one in (*each.known, each)
        ]
        deadline = time.monotonic() + timeout_s
        with self._connect(listen=True) as bus:
            bus.call(
                "StartTransientUnit",
                "ssa(sv)a(sa(sv))",
                (unit.unit, "fail", _variants(properties), others),
                what=("start", unit.unit),
            )
            try:
                _wait_for_start(bus, names, deadline)
            except BaseException:
                bus.call(
                    "StopUnit", "ss", (unit.unit, "replace"), what=("stop", unit.unit), gone=True
                )
                raise

    def create(self, units: Sequence[Transient]) -> builtins.list[Jobs]:
        """See `Manager.create`; what has a property of unknown type is left to systemd-run."""
        calls: builtins.list[tuple[str, object]] = []
        others: builtins.list[Transient] = []
        for unit in units:
            ours(unit.unit)
            try:
                calls.append((unit.unit, _variants(_properties(unit))))
            except ManagerError:
                others.append(unit)
        # systemd-run's processes take their time: they begin first.
        jobs: builtins.list[Jobs] = [*self._commands.create(others)]
        if calls:
            try:
                jobs.append(self._created(calls))
            except BaseException:
                for each in jobs:
                    each.close()
                raise
        return jobs

    def _created(self, calls: Sequence[tuple[str, object]]) -> DbusJobs:
        bus = self._connect(listen=True)
        try:
            jobs = {
                bus.call(
                    "StartTransientUnit",
                    "ssa(sv)a(sa(sv))",
                    (unit, "fail", properties, []),
                    what=("start", unit),
                ): unit
                for unit, properties in calls
            }
        except BaseException:
            bus.close()
            raise
        return DbusJobs(bus, jobs)

    def start(self, units: Sequence[str]) -> DbusJobs:
        """See `Manager.start`."""
        return self._jobs("StartUnit", units, "fail", verb="start")

    def restart(self, unit: str) -> DbusJobs:
        """See `Manager.restart`."""
        return self._jobs("RestartUnit", [unit], "replace", verb="restart")

    def _jobs(self, method: str, units: Sequence[str], mode: str, *, verb: str) -> DbusJobs:
        for unit in units:
            ours(unit)
        bus = self._connect(listen=True)
        try:
            jobs = {bus.call(method, "ss", (unit, mode), what=(verb, unit)): unit for unit in units}
        except BaseException:
            bus.close()
            raise
        return DbusJobs(bus, jobs)

    def stop(self, units: Sequence[str], *, timeout_s: float, forget: Sequence[str] = ()) -> None:
        """See `Manager.stop`."""
        for unit in (*units, *forget):
            ours(unit)
        deadline = time.monotonic() + timeout_s
        with self._connect(listen=True) as bus:
            jobs: dict[bytes, str] = {}
            for unit in units:
                job = bus.call("StopUnit", "ss", (unit, "replace"), what=("stop", unit), gone=True)
                if job is not None:
                    jobs[job] = unit
            failed: dict[str, str] = {}
            while jobs and (left_s := deadline - time.monotonic()) > 0:
                for message in bus.signals(left_s):
                    job, _unit, result = _job_removed(message) or (b"", "", "")
                    unit = jobs.pop(job, "")
                    if unit and result != "done":
                        failed[unit] = f"job {result}"
            if not failed and not jobs:
                bus.forget(forget)
        failed.update(dict.fromkeys(jobs.values(), f"not stopped within {timeout_s:g} s"))
        if failed:
            what = ", ".join(f"'{unit}': {reason}" for unit, reason in failed.items())
            raise ManagerError(f"Cannot stop {what}")

    def begin_stop(self, units: Sequence[str]) -> None:
        """See `Manager.begin_stop`."""
        for unit in units:
            ours(unit)
        with self._connect() as bus:
            for unit in units:
                bus.call("StopUnit", "ss", (unit, "replace"), what=("stop", unit), gone=True)

    def reset_failed(self, units: Sequence[str]) -> None:
        """See `Manager.reset_failed`."""
        for unit in units:
            ours(unit)
        with self._connect() as bus:
            bus.forget(units)

    def kill(self, unit: str, signal: int, *, whole: bool = False) -> None:
        """See `Manager.kill`."""
        whom = "all" if whole else "main"
        with self._connect() as bus:
            bus.call("KillUnit", "ssi", (ours(unit), whom, signal), what=("kill", unit))

    def status(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        """See `Manager.status`."""
        with self._connect() as bus:
            return {unit: bus.status(row) for unit, row in zip(units, bus.rows(units), strict=True)}

    def list(self, patterns: Sequence[str]) -> dict[str, UnitStatus]:
        """See `Manager.list`."""
        with self._connect() as bus:
            rows = bus.call(
                "ListUnitsByPatterns", "asas", ([], patterns), what=("list", " ".join(patterns))
            )
            return {row[0].decode(): bus.status(row) for row in rows}

    def properties(self, unit: str, names: Sequence[str]) -> dict[str, str]:
        """See `Manager.properties`; what is not just a text is left to systemctl's own words."""
        kind = unit.rpartition(".")[2].capitalize()
        if kind != "Service" or not _TEXTS.issuperset(names):
            return self._commands.properties(unit, names)
        with self._connect() as bus:
            return {name: os.fsdecode(bus.get(_path(unit), kind, name, "s")) for name in names}

    def cat(self, unit: str) -> str:
        """See `Manager.cat`."""
        return self._commands.cat(unit)

    def _connect(self, *, listen: bool = False) -> _Connection:
        return _Connection(self.kind, self.runtime_dir, listen=listen)


class DbusJobs:
    """`Jobs` on a connection of their own, closed with them.

    A death is told by the unit's state when it is asked for, after its job was reported as done
    and again after each later change: so the order in which the signals come does not matter.

    Args:
        bus: The connection that queued the jobs; this object closes it.
        jobs: Unit names by their job's object path.
    """

    said: Mapping[str, str] = MappingProxyType({})

    def __init__(self, bus: _Connection, jobs: dict[bytes, str]) -> None:
        self._bus: _Connection | None = bus
        self._jobs = jobs
        self._paths = {_path(unit): unit for unit in jobs.values()}
        self._up: set[str] = set()

    def wait(self, timeout_s: float) -> builtins.list[tuple[str, str]]:
        """See `Jobs.wait`."""
        deadline = time.monotonic() + timeout_s
        while self._bus is not None:
            news: builtins.list[tuple[str, str]] = []
            changed: dict[str, None] = {}
            for message in self._bus.signals(max(0.0, deadline - time.monotonic())):
                if (job := _job_removed(message)) is not None:
                    if (unit := self._jobs.pop(job[0], None)) is not None:
                        news.append((unit, job[2]))
                        if job[2] == "done":
                            self._up.add(unit)
                            changed[unit] = None
                elif (path := _changed(message)) is not None:
                    unit = self._paths.get(path)
                    if unit in self._up:
                        changed[unit] = None
            if changed:
                for unit, row in zip(changed, self._bus.rows([*changed]), strict=True):
                    if row[3] in (b"failed", b"inactive"):
                        self._up.remove(unit)
                        news.append((unit, "died"))
            if news or time.monotonic() >= deadline:
                return news
        return []

    def close(self) -> None:
        """See `Jobs.close`."""
        if self._bus is not None:
            self._bus.close()
            self._bus = None


class _Connection:
    """One connection to a manager, for one call or one batch of jobs.

    Args:
        kind: Whose manager.
        runtime_dir: Its ``%t``.
        listen: Whether signals are waited for, which a bus brings on request only.
    """

    def __init__(self, kind: ManagerKind, runtime_dir: Path, *, listen: bool = False) -> None:
        private = runtime_dir / "systemd/private"
        direct = os.access(private, os.W_OK)
        bus = runtime_dir / ("bus" if kind is ManagerKind.USER else "dbus/system_bus_socket")
        address = f"unix:path={_escaped(private if direct else bus)}"
        self._bus = _dbuslib.DBusAddress(address.encode(), direct)
        self._what = f"the {kind} manager"
        try:
            self._bus.open()
        except _DBusError as exc:
            raise NoManagerError(f"Cannot reach {self._what}: {os.strerror(-exc.errno)}") from exc
        self._open = True
        self._poll = select.poll()
        self._poll.register(self._bus.get_fd(), select.POLLIN)
        if listen and not direct:
            self._subscribe()

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; a second time does no harm (to pystemd it would)."""
        if self._open:
            self._open = False
            self._bus.close()

    def call(
        self,
        method: str,
        signature: str,
        values: Iterable[object],
        *,
        what: tuple[str, str],
        gone: bool = False,
    ) -> Any:
        """Call a method of the manager.

        Args:
            method: Its name.
            signature: The D-Bus types of its arguments.
            values: Its arguments.
            what: Verb and object of the error text.
            gone: Give None where the manager does not know the unit.

        Returns:
            The body of the reply.
        """
        arguments = _arguments(signature, values)
        try:
            return self._bus.call_method(
                _SYSTEMD, _OBJECT, _MANAGER, method.encode(), arguments
            ).body
        except _DBusError as exc:
            error = _error(exc, *what)
            if gone and isinstance(error, NoSuchUnitError):
                return None
            raise error from exc

    def forget(self, units: Iterable[str]) -> None:
        """Forget that units failed; those that are gone are no error."""
        for unit in units:
            self.call("ResetFailedUnit", "s", (unit,), what=("reset", unit), gone=True)

    def get(self, path: bytes, interface: str, name: str, signature: str) -> Any:
        """A property of a unit, or None if units of its kind do not have it."""
        interface = f"org.freedesktop.systemd1.{interface}"
        try:
            return self._bus.get_property(
                _SYSTEMD, path, interface.encode(), name.encode(), signature.encode()
            )
        except _DBusError as exc:
            if _name(exc) in (
                "org.freedesktop.DBus.Error.UnknownProperty",
                "org.freedesktop.DBus.Error.UnknownInterface",
            ):
                return None
            raise _error(exc, "read", name) from exc

    def rows(self, units: Sequence[str]) -> list[Any]:
        """The manager's table row of each unit (``ListUnitsByNames``)."""
        rows = self.call("ListUnitsByNames", "as", (units,), what=("show", " ".join(units)))
        if len(rows) != len(units):  # It leaves out what cannot be a unit.
            raise ManagerError(f"Cannot show '{' '.join(units)}': not all of these are unit names")
        return list(rows)

    def status(self, row: Sequence[Any]) -> UnitStatus:
        """The status of the unit of a table row."""
        name, description, load_state, active_state, sub_state, _following, path, *_ = row
        unit = name.decode()
        known = {
            "unit": unit,
            "load_state": load_state.decode(),
            "active_state": active_state.decode(),
            "sub_state": sub_state.decode(),
            "description": description.decode(errors="replace"),
        }
        if load_state == b"not-found" and active_state == b"inactive":
            return UnitStatus(**known)
        kind = unit.rpartition(".")[2].capitalize()

        def get(name: str, signature: str, default: Any, interface: str = kind) -> Any:
            value = self.get(path, interface, name, signature)
            return default if value is None else value

        cpu = get("CPUUsageNSec", "t", INFINITY)
        known |= {
            "result": get("Result", "s", b"").decode(),
            "control_group": os.fsdecode(get("ControlGroup", "s", b"")),
            "cpu_usage_nsec": None if cpu == INFINITY else cpu,
            "invocation_id": bytes(get("InvocationID", "ay", [], "Unit")).hex(),
            "environment": environment(map(os.fsdecode, get("Environment", "as", []))),
        }
        if active_state == b"active":
            known["active_since_s"] = get("ActiveEnterTimestamp", "t", 0, "Unit") / 1e6
        if kind == "Service":
            limit = get("RuntimeMaxUSec", "t", INFINITY)
            known |= {
                "exit_code": get("ExecMainCode", "i", 0),
                "exit_status": get("ExecMainStatus", "i", 0),
                "main_pid": get("MainPID", "u", 0),
                "n_restarts": get("NRestarts", "u", 0),
                "exec_main_start_s": get("ExecMainStartTimestamp", "t", 0) / 1e6,
                "runtime_max_s": None if limit == INFINITY else limit / 1e6,
            }
        return UnitStatus(**known)

    def has_job(self, unit: str) -> bool:
        """Whether a job of that unit is queued or running."""
        job = self.get(_path(unit), "Unit", "Job", "(uo)")
        return job is not None and job[0] != 0

    def signals(self, timeout_s: float) -> list[Any]:
        """The messages at hand; if there are none, those that arrive in so many seconds."""
        messages = self._drain()
        if not messages and timeout_s > 0:
            self._poll.poll(timeout_s * 1000)
            messages = self._drain()
        return messages

    def _drain(self) -> list[Any]:
        messages = []
        idle = 0
        # An empty answer is the end, or a message that the library kept to itself.
        while idle < 2:
            try:
                message = self._bus.process()
            except _DBusError as exc:
                raise ManagerError(
                    f"Cannot listen to {self._what}: {os.strerror(-exc.errno)}",
                    hint="did it execute itself anew (systemctl daemon-reexec)? Try again",
                ) from exc
            if message.is_empty():
                idle += 1
            else:
                messages.append(message)
        return messages

    def _subscribe(self) -> None:
        rule = "type='signal',sender='org.freedesktop.systemd1'"
        daemon = b"org.freedesktop.DBus"
        try:
            self._bus.call_method(
                daemon, b"/org/freedesktop/DBus", daemon, b"AddMatch", _arguments("s", [rule])
            )
            self._bus.call_method(_SYSTEMD, _OBJECT, _MANAGER, b"Subscribe", [])
        except _DBusError as exc:
            self.close()
            raise _error(exc, "listen to", self._what) from exc


def _wait_for_start(bus: _Connection, units: Sequence[str], deadline: float) -> None:
    """Return when the first unit's start job, and what jobs the others have, are done."""
    waiting = set(units)
    while waiting:
        if units[0] not in waiting:
            # The others have a job only where the first one wants them.
            waiting = {unit for unit in waiting if bus.has_job(unit)}
        left_s = deadline - time.monotonic()
        for message in bus.signals(max(0.0, left_s) if waiting else 0.0):
            _job, unit, result = _job_removed(message) or (b"", "", "")
            if unit in units and result != "done":
                raise ManagerError(f"Cannot start '{unit}': job {result}")
            waiting.discard(unit)
        if waiting and left_s <= 0:
            raise ManagerError(f"Cannot start '{units[0]}': not done in time")


def _escaped(path: Path) -> str:
    """A path as it stands in a D-Bus address."""
    plain = frozenset(b"/-_.*\\abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
    return "".join(chr(byte) if byte in plain else f"%{byte:02x}" for byte in os.fsencode(path))


def _job_removed(message: Any) -> tuple[bytes, str, str] | None:
    """A job's path, unit and result, if the message says that it is finished."""
    if not message.is_signal(_MANAGER, b"JobRemoved"):
        return None
    message.process_reply(False)
    _id, path, unit, result = message.body
    return path, unit.decode(), result.decode()


def _changed(message: Any) -> bytes | None:
    """The path of the unit that changed or was unloaded, if the message says so."""
    if message.is_signal(_PROPERTIES, b"PropertiesChanged"):
        path: bytes = message.get_path()
        return path
    if message.is_signal(_MANAGER, b"UnitRemoved"):
        message.process_reply(False)
        _unit, path = message.body
        return path
    return None


def _path(unit: str) -> bytes:
    path: bytes = _dbuslib.path_encode(_OBJECT + b"/unit", unit.encode())
    return path


def _properties(unit: Transient) -> list[Property]:
    properties: list[Property] = []
    for each in (one for name, value in unit.properties for one in typed(name, value)):
        last = properties[-1] if properties else None
        if last and last[:2] == each[:2] and isinstance(last.value, list):
            # Lists add up: what follows itself is one property of several values.
            properties[-1] = last._replace(value=[*last.value, *cast("list[object]", each.value)])
        else:
            properties.append(each)
    if unit.command:
        properties.append(command(unit.command))
    if unit.stdin is not None:
        properties.append(Property("StandardInputFileDescriptor", "h", unit.stdin))
    return properties


def _variants(properties: Iterable[Property]) -> list[tuple[str, tuple[str, object]]]:
    return [(each.name, (each.signature, each.value)) for each in properties]


_types = lru_cache(complete_types)


def _arguments(signature: str, values: Iterable[Any]) -> list[tuple[int, Any]]:
    """Values as pystemd's flat list of (type, value); a variant's value is (signature, value)."""
    flat: list[tuple[int, Any]] = []
    for each, value in zip(_types(signature), values, strict=True):
        inner = each[1:-1] if each[0] == "(" else each[1:]
        if each == "v":
            flat += [(ord("v"), value[0].encode()), *_arguments(value[0], value[1:]), (-1, None)]
        elif each[0] == "a":
            items = [item for one in value for item in _arguments(inner, [one])]
            flat += [(ord("a"), inner.encode()), *items, (-1, None)]
        elif each[0] == "(":
            flat += [(ord("r"), inner.encode()), *_arguments(inner, value), (-1, None)]
        else:
            flat.append((ord(each), os.fsencode(value) if each in "so" else value))
    return flat


def _name(exc: Any) -> str:
    """The D-Bus error's name; pystemd gives a class instead of the names that it knows."""
    if exc.err_name:
        return str(exc.err_name.decode())
    short = type(exc).__name__.removeprefix("DBus").removesuffix("Error")
    if short == "NoSuchUnit":
        return "org.freedesktop.systemd1.NoSuchUnit"
    return f"org.freedesktop.DBus.Error.{short}"


def _said(exc: Any) -> str:
    text = exc.err_message
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def _error(exc: Any, verb: str, thing: str) -> ManagerError:
    name = _name(exc)
    kind = _KINDS.get(name, ManagerError)
    hint = NO_RIGHT_HINT if kind is AccessDeniedError else None
    return kind(f"Cannot {verb} '{thing}': {_said(exc)}", name=name, hint=hint)
