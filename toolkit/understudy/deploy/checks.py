"""What is looked at before anything is changed, and what is waited for afterwards."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from understudy import ports, services, strays
from understudy.deploy.files import Files
from understudy.deploy.units import HostUnits
from understudy.derive import SYSTEM_UNIT_DIR
from understudy.errors import DeployError
from understudy.manager import UnitStatus
from understudy.model import Activation, HostFile, Port, Service
from understudy.ready import HttpProbe

LINES_SHOWN: Final = 12
PAUSE_MIN_S: Final = 0.002
PAUSE_MAX_S: Final = 0.1

_EXPOSURE = re.compile(r"exposure level for (\S+): ([0-9.]+)")
_DEAD = ("failed", "inactive")


def verify(service: Service, files: Sequence[HostFile], names: Sequence[str]) -> dict[str, float]:
    """Have systemd itself look at the units of a service, in a folder where they do nothing.

    Args:
        service: The definition.
        files: What it needs on the host.
        names: Its units.

    Returns:
        The exposure of each service among them (systemd-analyze(1), security): 0 is best, 10 worst.

    Raises:
        DeployError: It finds something wrong.
    """
    with tempfile.TemporaryDirectory(prefix="understudy-deploy-") as folder:
        for file in files:
            name = file.path.removeprefix(f"{SYSTEM_UNIT_DIR}/")
            if name != file.path:
                path = Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.write_text(file.text, encoding="utf-8")
        paths = [f"{folder}/{name}" for name in names]
        done = _analyze("verify", "--man=no", "--recursive-errors=no", *paths)
        # What it says of other units of the host is another matter.
        said = [line for line in done.stderr.splitlines() if any(name in line for name in names)]
        if done.returncode or said:
            lines = said or done.stderr.splitlines() or [f"exit code {done.returncode}"]
            error = DeployError(
                f"Cannot deploy '{service.name}': " + lines[0].replace(f"{folder}/", "").strip(),
                hint=_verify_hint(service, lines[0]),
            )
            for line in lines[1:]:
                error.add_note(line.replace(f"{folder}/", "").strip())
            raise error
        shown = [path for path in paths if path.endswith(".service")]
        done = _analyze("security", "--offline=yes", "--no-pager", *shown)
        return {name: float(level) for name, level in _EXPOSURE.findall(done.stdout)}


def _verify_hint(service: Service, line: str) -> str:
    if "is not executable" in line:
        known = ", ".join(service.values) or "none"
        return f"say where it is, with --set; the values of {service.name}: {known}"
    return f"see all of it: understudy render {service.name}"


def _analyze(*words: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemd-analyze", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as exc:
        raise DeployError("Cannot verify units: systemd-analyze is missing") from exc


def check_alone(service: Service, files: Sequence[HostFile]) -> None:
    """Demand that no second copy of a singleton runs.

    Args:
        service: The definition.
        files: What it needs on the host.

    Raises:
        DeployError: One does; the message names it, the hint ends it.
    """
    if not service.singleton:
        return
    started = strays.programs_of(
        file.text for file in files if file.path == f"{SYSTEM_UNIT_DIR}/{service.production}"
    )
    known = [
        replace(one, programs=one.programs | started)
        for one in strays.singletons_of()
        if one.unit == service.production
    ]
    for stray in strays.strays(known):
        raise DeployError(
            f"Cannot deploy '{service.name}': a host has one, and there is {stray}",
            hint=f"{stray.help}; it was known by: {', '.join(stray.seen)}",
        )


def check_free(service: Service, own: Sequence[str], *, may_own: bool) -> None:
    """Demand that nobody else holds a port of production's.

    Args:
        service: The definition.
        own: Its units.
        may_own: Whether its service itself may hold one: it opens its ports, or has them from
            its sockets already, or is stopped before they are started.

    Raises:
        DeployError: Somebody does; the message names who.
    """
    bound = ports.snapshot()
    for port, number in _numbers(service):
        for holder in ports.describe(bound.bound(port.transport, number)):
            if holder.within is None and holder.unit in own:
                if may_own or not str(holder.unit).endswith(".service"):
                    continue
                raise DeployError(
                    f"Cannot deploy '{service.name}': port {number} ({port.name}) is still held by "
                    f"{holder}, and is to be held by systemd for it",
                    hint="with --restart it is stopped first",
                )
            raise DeployError(
                f"Cannot deploy '{service.name}': port {number} ({port.name}) is held by {holder}",
                hint=f"understudy ports {number}",
            )


def _numbers(service: Service) -> Iterator[tuple[Port, int]]:
    """Production's ports, as far as it opens them by itself."""
    for port in services.opened(service).ports.values():
        for number in (port.number, port.behind):
            if number is not None:
                yield port, number


class Waiting:
    """Waits until a service is ready: active, its ports held by it alone, its check passed.

    Args:
        service: The definition.
        units: Its units.
        names: Those of them that may hold its ports.
        strict: Whether every declared port has to be there; else only the one that is asked.
        credentials: User and password with which it is asked; None for none.
    """

    def __init__(
        self,
        service: Service,
        units: HostUnits,
        names: Sequence[str],
        *,
        strict: bool,
        credentials: tuple[str, str] | None = None,
    ) -> None:
        self._service = service
        self._units = units
        self._names = names
        self._strict = strict
        self._credentials = credentials
        self._unit = service.production or f"{service.name}.service"
        self._since_s = time.time()
        self._restarts = units.status([self._unit])[self._unit].n_restarts

    def wait(self, deadline: float) -> list[str]:
        """Wait.

        Args:
            deadline: CLOCK_MONOTONIC seconds.

        Returns:
            What may be looked at by people: declared ports that it does not open.

        Raises:
            DeployError: It has died, somebody else has a port of its, or it was not ready in time.
        """
        check, credentials = self._service.ready, self._credentials
        number = None if check is None else self._service.ports[check.port].number
        probe = None if check is None or number is None else HttpProbe(check, number, credentials)
        pause_s = PAUSE_MIN_S
        answered = probe is None
        try:
            while True:
                self._check_alive()
                missing = self._missing()
                if probe is not None and not answered:
                    answered = probe.step()
                if answered and (not missing or not self._strict):
                    return [f"port {text} is declared, and it does not open it" for text in missing]
                if time.monotonic() >= deadline:
                    raise self._late(probe, missing)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        finally:
            if probe is not None:
                probe.close()

    def _check_alive(self) -> None:
        status = self._units.status([self._unit])[self._unit]
        died = status.active_state == "failed" or status.n_restarts > self._restarts
        if status.active_state == "inactive":
            # Before the first connection that is how it is.
            died = self._service.production_activation is not Activation.PROXY
        if died or status.sub_state == "auto-restart":
            raise self._error(f"{self._unit} has died ({_end(status)})")

    def _missing(self) -> list[str]:
        groups = [s.control_group for s in self._units.status(self._names).values()]
        groups = [group for group in groups if group]
        ids = frozenset[int]().union(*map(ports.cgroup_ids, groups))
        inodes = frozenset[int]().union(*map(ports.socket_inodes, groups))
        behind = self._service.production_activation is Activation.PROXY
        opened = services.opened(self._service).ports.values()
        numbers = {port.name: port.number for port in opened if port.number is not None}
        found = ports.check(opened, numbers, ports.snapshot(), ids=ids, inodes=inodes)
        if found.conflicts:
            conflict = found.conflicts[0]
            others = ports.describe(conflict.others)
            how = "shared with" if conflict.shared else "held by"
            raise DeployError(
                f"Cannot deploy '{self._service.name}': port {conflict.number} "
                f"({conflict.port.name}) is {how} {', '.join(map(str, others))}",
                hint=f"understudy ports {conflict.number}",
            )
        return [
            f"{number} ({port.name})"
            for port, number in found.missing
            if not (behind and port.transport.value == "udp")
        ]

    def _late(self, probe: HttpProbe | None, missing: Sequence[str]) -> DeployError:
        if probe is not None and missing:
            said = f"it does not listen on port {', '.join(missing)}"
        elif probe is not None:
            said = f"GET {probe.check.path} on port {probe.port}: {probe.last}"
        else:
            said = f"it does not listen on port {', '.join(missing)}"
        return self._error(f"{self._unit} was not ready in time: {said}")

    def _error(self, what: str) -> DeployError:
        error = DeployError(
            f"Cannot deploy '{self._service.name}': {what}",
            hint=f"all that it said: journalctl -u {self._unit}",
        )
        for line in last_lines(self._unit, self._since_s):
            error.add_note(f"| {line}")
        return error


def _end(status: UnitStatus) -> str:
    if status.exit_status:
        return f"{status.result}, status {status.exit_status}"
    return status.result


def last_lines(unit: str, since_s: float) -> list[str]:
    """What a unit wrote last.

    Args:
        unit: Its name.
        since_s: From when on, CLOCK_REALTIME seconds.
    """
    done = subprocess.run(
        [
            *("journalctl", "--system", "--no-pager", "--quiet", "--output=cat"),
            *(f"--unit={unit}", f"--since=@{since_s:.3f}", f"--lines={LINES_SHOWN}"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout.splitlines()


def check_trusted(folder: Path, files: Files) -> None:
    """Demand that nobody but root can have written a definition.

    Args:
        folder: Its folder, below /etc/understudy/units.
        files: The host's files.

    Raises:
        DeployError: Somebody else can.
    """
    with files.opened(str(folder)):
        pass
    for path in folder.rglob("*"):
        status = path.lstat()
        if path.is_symlink() or status.st_uid != 0 or status.st_mode & 0o022:
            raise DeployError(
                f"Cannot deploy '{folder.name}': '{path}' is a symbolic link, or others than root "
                "may write to it",
                hint=f"see: ls -l {path}",
            )
