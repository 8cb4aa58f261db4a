"""understudy: short-lived systemd services for tests, beside production and never in its way.

The public names are imported when they are used: the command line and a test run that asks for
nothing pay for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.claimed import ClaimedPorts
    from understudy.errors import (
        AccessDeniedError,
        BedError,
        DefinitionError,
        InstanceError,
        LeaseError,
        LogTimeoutError,
        ManagerError,
        NetworkError,
        NoManagerError,
        NoSuchUnitError,
        PortError,
        ProductionError,
        ReadyTimeoutError,
        RenderError,
        RunError,
        StartError,
        UnderstudyError,
        UnitExistsError,
        UsageError,
    )
    from understudy.instance import Instance
    from understudy.journal import Mark
    from understudy.lead import Production, production
    from understudy.model import Engine, ManagerKind, Service
    from understudy.plan import Request
    from understudy.plugin.face import Understudy
    from understudy.ports import PortRange
    from understudy.run import Run
    from understudy.shared import SharedInstance

__all__ = [
    "AccessDeniedError",
    "BedError",
    "ClaimedPorts",
    "DefinitionError",
    "Engine",
    "Instance",
    "InstanceError",
    "LeaseError",
    "LogTimeoutError",
    "ManagerError",
    "ManagerKind",
    "Mark",
    "NetworkError",
    "NoManagerError",
    "NoSuchUnitError",
    "PortError",
    "PortRange",
    "Production",
    "ProductionError",
    "ReadyTimeoutError",
    "RenderError",
    "Request",
    "Run",
    "RunError",
    "Service",
    "SharedInstance",
    "StartError",
    "Understudy",
    "UnderstudyError",
    "UnitExistsError",
    "UsageError",
    "production",
]

_HOMES = {
    "ClaimedPorts": "claimed",
    "Engine": "model",
    "Instance": "instance",
    "ManagerKind": "model",
    "Mark": "journal",
    "PortRange": "ports",
    "Production": "lead",
    "Request": "plan",
    "Run": "run",
    "Service": "model",
    "SharedInstance": "shared",
    "Understudy": "plugin.face",
    "production": "lead",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'understudy' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"understudy.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
