"""What lives on a manager: runs and instances, read back from systemd, which is the database.

An instance's unit says all there is to know: its name has service, run and number, its
``Environment=`` the ports and URLs.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from understudy import names
from understudy.errors import InstanceError, UsageError
from understudy.manager import Manager, UnitStatus
from understudy.model import ManagerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One instance as its manager knows it.

    Attributes:
        unit: Its service unit.
        run: Its run's id.
        service: Its service's name.
        number: Its number in the run.
        manager: Whose manager it runs on.
        status: What that manager says of it.
        ports: The number of each port, by name.
        urls: The URL of each port that has one, by name.
        network: ``host``, ``private``, or ``private:NAME``.
        inside_ports: The number of each port inside its private network, by name.
    """

    unit: str
    run: str
    service: str
    number: int
    manager: ManagerKind
    status: UnitStatus
    ports: dict[str, int] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    network: str = "host"
    inside_ports: dict[str, int] = field(default_factory=dict)

    @property
    def confided(self) -> dict[str, str]:
        """Its values, if a secret one was set and its owner asks; they are in no output.

        Raises:
            InstanceError: They are another user's.
        """
        runtime = "/run" if self.manager is ManagerKind.SYSTEM else f"/run/user/{os.geteuid()}"
        directory = names.instance_directory(runtime, self.service, self.run, self.number)
        path = Path(names.confided_path(names.files_directory(directory)))
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except PermissionError as exc:
            raise InstanceError(
                f"Cannot use '{self.unit}': its secrets are its owner's", unit=self.unit
            ) from exc

    @property
    def state(self) -> str:
        """``active``, ``failed``, … as systemctl(1) says it."""
        return self.status.active_state

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/json.md); keys are only ever added."""
        since = datetime.datetime.fromtimestamp(self.status.active_since_s, datetime.UTC)
        return {
            "unit": self.unit,
            "run": self.run,
            "service": self.service,
            "number": self.number,
            "manager": str(self.manager),
            "state": self.state,
            "result": self.status.result,
            "pid": self.status.main_pid or None,
            "since": since.isoformat() if self.status.active_since_s else None,
            "ports": self.ports,
            "urls": self.urls,
            "network": self.network,
            "inside_ports": self.inside_ports,
        }


def instances(manager: Manager) -> list[Found]:
    """Every instance that the manager has loaded, by run and number.

    Raises:
        ManagerError: The manager cannot be reached.
    """
    found = []
    for unit, status in manager.list(["understudy-*@*.service"]).items():
        parsed = names.parse(unit)
        if parsed is not None:
            service, run, number = parsed
            found.append(
                Found(
                    unit=unit,
                    run=run,
                    service=service,
                    number=number,
                    manager=manager.kind,
                    status=status,
                    ports=_numbers(status, "UNDERSTUDY_PORTS"),
                    urls=dict(_pairs(status, "UNDERSTUDY_URLS")),
                    network=status.environment.get("UNDERSTUDY_NETWORK", "host"),
                    inside_ports=_numbers(status, "UNDERSTUDY_INSIDE_PORTS"),
                )
            )
    return sorted(found, key=lambda one: (one.run, one.number))


def runs(manager: Manager) -> list[str]:
    """The id of every live run of the manager.

    Raises:
        ManagerError: The manager cannot be reached.
    """
    guards = manager.list([names.guard_unit("*")])
    return sorted(unit.partition("@")[2].removesuffix(".service") for unit in guards)


def find(found: Sequence[Found], name: str) -> Found:
    """The one instance that a person means.

    Args:
        found: All there are.
        name: Its unit with or without ``.service``, or ``mediamtx@r7k2mq-1``, or ``r7k2mq-1``, or
            a service or run that has just one.

    Raises:
        UsageError: None is called so, or more than one.
    """
    text = name.removesuffix(".service").removesuffix(".socket").removeprefix("understudy-")
    matching = [
        one
        for one in found
        if text in (f"{one.service}@{one.run}-{one.number}", f"{one.run}-{one.number}")
    ] or [one for one in found if text in (one.service, one.run)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        known = ", ".join(f"{one.run}-{one.number}" for one in found) or "none"
        raise UsageError(
            f"Cannot find instance '{name}': there is none of that name",
            hint=f"live instances: {known}; see: understudy list",
        )
    raise UsageError(
        f"Cannot tell which instance '{name}' is: {len(matching)} are called so",
        hint="name one: " + ", ".join(f"{one.run}-{one.number}" for one in matching),
    )


def _numbers(status: UnitStatus, variable: str) -> dict[str, int]:
    return {name: int(text) for name, text in _pairs(status, variable)}


def _pairs(status: UnitStatus, variable: str) -> list[tuple[str, str]]:
    text = status.environment.get(variable, "")
    # A URL holds no space and no comma, and a port's name no equals sign.
    items = (item.partition("=") for item in text.split(","))
    return [(name, value) for name, _, value in items if value]
