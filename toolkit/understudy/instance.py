"""One instance, from its start to its end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from understudy import envfile, names
from understudy.control import Controls
from understudy.derive import urls_of
from understudy.errors import InstanceError
from understudy.faults import InstanceNetwork
from understudy.manager import Manager
from understudy.model import Derived, Service

STOP_TIMEOUT_S = 30.0
RESTART_TIMEOUT_S = 30.0

_DEAD = ("inactive", "failed")


class Instance(Controls):
    """A copy of a service for a test, on ports of its own.

    Made by `understudy.Run.spawn`. As a context manager it stops at the end of the block; without
    one it ends with its run.

    Attributes:
        service: The service's name: ``mediamtx``.
        definition: The definition it was made from.
        run: The id of the run it belongs to.
        number: Its number in that run, from 1.
        unit: Its unit name: ``understudy-mediamtx@r7k2mq-1.service``.
        ports: The number of each of its ports, by name; of one in a private network those under
            which they are reached from outside.
        inside_ports: Their numbers inside its private network, by name; none in the host's, and
            none where its sockets are bound outside.
        network: Its network, as a string ``host``, ``private``, or ``private:NAME``; a private one
            can be cut off, delayed and made to lose packets: ``instance.network.down()``.
        urls: The URL of each port that has one, by name.
        directory: Its own directory, which goes with it.
        undeclared: Sockets it listens on that its definition does not declare, for people:
            ``tcp 0.0.0.0:9000``.
        started_in_s: Seconds from the request until it was ready.
        confided: Its values by name, where one that is secret was set; for who is to talk to it.
        shared: Whether other runs use it as well.
        has_fixed_ports: Whether another instance could have its place only after its end: the
            numbers were asked for, or are those inside a private network of a name.
    """

    shared = False

    def __init__(
        self,
        manager: Manager,
        service: Service,
        derived: Derived,
        *,
        run: str,
        number: int,
        ports: Mapping[str, int],
        undeclared: Sequence[str] = (),
        started_in_s: float = 0.0,
        freed: Callable[[], None] = lambda: None,
        again: Callable[[float], None] | None = None,
        inside_ports: Mapping[str, int] | None = None,
        network: str = "host",
        line: str = "",
        has_fixed_ports: bool = False,
    ) -> None:
        self.service = service.name
        self.definition = service
        self.run = run
        self.number = number
        self.unit = derived.unit
        self.ports = dict(ports)
        self.inside_ports = dict(inside_ports or {})
        self.network = InstanceNetwork(network, derived.unit, lambda: self.pid)
        self.urls = urls_of(service, ports)
        self.directory = Path(derived.directory)
        self.undeclared = tuple(undeclared)
        self.confided = dict(derived.confided)
        self.started_in_s = started_in_s
        self.has_fixed_ports = has_fixed_ports
        self._manager = manager
        self._derived = derived
        self._freed = freed
        self._again = again
        self._line = line
        self._stopped = False
        self._owner_pid = os.getpid()

    def __repr__(self) -> str:
        ports = ", ".join(f"{name}={number}" for name, number in self.ports.items())
        return f"<Instance {self.unit} {ports}>"

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def restart(self, *, timeout_s: float = RESTART_TIMEOUT_S) -> None:
        """Stop its service and start it again, and return when it is ready, on the same ports.

        Its ``RuntimeDirectory=`` is emptied in between, as at a restart of production. One that
        has died is started again.

        Args:
            timeout_s: Deadline in seconds for the whole call.

        Raises:
            StartError: It died, or its job failed. It stays in the run, as failed.
            ReadyTimeoutError: It runs, but was not ready in time.
            PortError: Somebody took one of its ports in between.
            InstanceError: It has been stopped.
            ManagerError: The manager refused.
        """
        if self._stopped or self._again is None:
            raise InstanceError(
                f"Cannot restart '{self.unit}': it has been stopped, and its ports given back",
                unit=self.unit,
                hint="spawn another one",
            )
        self._again(timeout_s)

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` has been called; one that has died is not stopped."""
        return self._stopped

    def when_ended(self, step: Callable[[], None]) -> None:
        """Have something done once it has ended by `stop`; for what belongs to it elsewhere.

        Args:
            step: What is done, after its ports have been given back.
        """
        freed = self._freed

        def both() -> None:
            try:
                freed()
            finally:
                step()

        self._freed = both

    def reproduce(self) -> str:
        """The shell command that starts the same, on other ports where none were asked for."""
        return self._line

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop it, and remove its unit files and its directory. A second call does nothing.

        In a forked child it does nothing either: the instance is its parent's.

        Args:
            timeout_s: Deadline in seconds for the whole call.

        Raises:
            ManagerError: The manager did not stop it in time; it ends with its run.
        """
        if self._stopped or os.getpid() != self._owner_pid:  # its claims may be another's by now
            return
        discard(self._manager, [self._derived], timeout_s=timeout_s)
        self._stopped = True
        self._freed()


def stop_all(instances: Sequence[Instance], *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """`Instance.stop` for several of one manager, all at once.

    One that is shared is given up, as by its own `stop`.

    Args:
        instances: Which; those that have been stopped, or are another process's, are left alone.
        timeout_s: Deadline in seconds for all of them.

    Raises:
        ManagerError: The manager did not stop them in time; they end with their run.
    """
    alive = _alive(instances)
    for one in [each for each in alive if each.shared]:
        alive.remove(one)
        one.stop(timeout_s=timeout_s)
    if not alive:
        return
    discard(alive[0]._manager, [one._derived for one in alive], timeout_s=timeout_s)
    for one in alive:
        one._stopped = True
        one._freed()


def end_all(instances: Sequence[Instance]) -> None:
    """Have several of one manager end, and do not wait: `stop_all` does that, or `collect`.

    Args:
        instances: Which, none of them shared; others are left alone as by `stop_all`.

    Raises:
        ManagerError: The manager refused.
    """
    if alive := _alive(instances):
        alive[0]._manager.begin_stop([one._derived.socket or one.unit for one in alive])


def collect(instances: Sequence[Instance]) -> list[Instance]:
    """See what of several has ended, and remove what is left of those.

    Args:
        instances: What `end_all` was given.

    Returns:
        Those that have not ended yet.

    Raises:
        ManagerError: The manager did not answer.
    """
    alive = _alive(instances)
    if not alive:
        return []
    manager = alive[0]._manager
    units = {one.unit: _units(one._derived) for one in alive}
    there = manager.list([unit for each in units.values() for unit in each])
    busy = {unit for unit, status in there.items() if status.active_state not in _DEAD}
    ended = [one for one in alive if busy.isdisjoint(units[one.unit])]
    manager.reset_failed([unit for one in ended for unit in units[one.unit] if unit in there])
    for one in ended:
        remove_files(manager, one._derived)
        one._stopped = True
        one._freed()
    return [one for one in alive if one not in ended]


def discard(manager: Manager, instances: Sequence[Derived], *, timeout_s: float) -> None:
    """Stop instances and remove their files; what is gone already is no error.

    A socket is stopped in the place of its service, which requires it: one transaction takes both,
    where two stop jobs could let a waiting connection bring the service back.

    Args:
        manager: Where they are.
        instances: Which.
        timeout_s: Seconds until all must be stopped.

    Raises:
        ManagerError: The manager did not stop them in time; their files stay until the run's end.
    """
    manager.stop(
        [derived.socket or derived.unit for derived in instances],
        timeout_s=timeout_s,
        forget=[unit for derived in instances for unit in _units(derived)],
    )
    for derived in instances:
        remove_files(manager, derived)


def write_files(manager: Manager, derived: Derived, *, units: bool = True) -> None:
    """Write an instance's unit files and its own files, and what is for its manager alone.

    Args:
        manager: Whose unit directory.
        derived: The instance.
        units: Whether to write unit files as well; a transient unit has none.

    Raises:
        FileExistsError: A file of that name is there: somebody else's.
    """
    texts = {Path(path): text for path, text in derived.files.items()}
    if units:
        texts |= {manager.unit_dir / path: text for path, text in derived.units.items()}
    for path, text in texts.items():
        _write(path, text, 0o666)
    if derived.secrets:
        secrets = names.secrets_path(names.files_directory(derived.directory))
        _write(Path(secrets), envfile.write(derived.secrets), 0o600)
    if derived.confided:
        confided = names.confided_path(names.files_directory(derived.directory))
        _write(Path(confided), json.dumps(dict(derived.confided)), 0o600)
    if derived.gate is not None:
        gate = Path(derived.gate)
        gate.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(gate)
        gate.chmod(0o644)  # whoever it runs as, and whatever the caller's umask


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file that is not there, and at no moment is readable by more than `mode` says."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, mode)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, flags, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def remove_files(manager: Manager, derived: Derived) -> None:
    """Remove what `write_files` wrote, and the instance's directory; what is gone is no error."""
    for unit in _units(derived):
        (manager.unit_dir / unit).unlink(missing_ok=True)
    for folder in (
        *(manager.unit_dir / f"{unit}.d" for unit in _units(derived)),
        Path(derived.directory),
        Path(names.files_directory(derived.directory)),
    ):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def _alive(instances: Sequence[Instance]) -> list[Instance]:
    """Those that are this process's, and have not been stopped."""
    return [one for one in instances if not one._stopped and one._owner_pid == os.getpid()]


def _units(derived: Derived) -> list[str]:
    """All units of an instance that can be loaded, and have a file of their own."""
    units = [derived.unit, *([derived.socket] if derived.socket else [])]
    for proxy in derived.proxies.values():
        units += [proxy, f"{proxy.removesuffix('.service')}.socket"]
    return units
