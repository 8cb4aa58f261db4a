"""understudy: short-lived systemd services for tests, beside production and never in its way.

The public names are imported when they are used: the command line and a test run that asks for
nothing pay for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.errors import (
        AccessDeniedError,
        BedError,
        DefinitionError,
        InstanceError,
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
    from understudy.model import Engine, ManagerKind
    from understudy.plan import Request
    from understudy.ports import PortRange
    from understudy.run import Run

__all__ = [
    "AccessDeniedError",
    "BedError",
    "DefinitionError",
    "Engine",
    "Instance",
    "InstanceError",
    "LogTimeoutError",
    "ManagerError",
    "ManagerKind",
    "NetworkError",
    "NoManagerError",
    "NoSuchUnitError",
    "PortError",
    "PortRange",
    "ProductionError",
    "ReadyTimeoutError",
    "RenderError",
    "Request",
    "Run",
    "RunError",
    "StartError",
    "UnderstudyError",
    "UnitExistsError",
    "UsageError",
]

_HOMES = {
    "Engine": "model",
    "Instance": "instance",
    "ManagerKind": "model",
    "PortRange": "ports",
    "Request": "plan",
    "Run": "run",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'understudy' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"understudy.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
