"""Production of this host: put there by its administrator, and taken away again.

The only part of the toolkit that changes units which are not called ``understudy-…``. Everything
else asks `understudy.manager.ours`, which refuses them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from understudy import derive, services
from understudy.errors import DeployError, UsageError, nearest_hint
from understudy.model import HostFile, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A service as it is to be on this host.

    Attributes:
        service: Its definition.
        values: The values that were set for it, on this occasion or an earlier one.
        files: The files that it needs there.
    """

    service: Service
    values: Mapping[str, str]
    files: Sequence[HostFile]


def check_root(verb: str, names: Iterable[str]) -> None:
    """Demand that root asks.

    Args:
        verb: ``deploy`` or ``withdraw``.
        names: What for.

    Raises:
        DeployError: Somebody else does.
    """
    if os.geteuid():
        words = " ".join(names)
        raise DeployError(
            f"Cannot {verb} '{words}': only root may change what the host runs",
            hint=f"sudo understudy {verb} {words}",
        )


def wanted(names: Iterable[str], settings: Mapping[str, str]) -> list[Wanted]:
    """What services are to be on this host, of definitions that only root can have written.

    Args:
        names: The services.
        settings: Values by name (``--set``); ``mediamtx.program`` is that of one of the services.

    Raises:
        UsageError: There is no such service, none has such a value, or more than one has it.
        DefinitionError: A definition is wrong.
        RenderError: A value is unfit, or a template is wrong.
    """
    found = [services.find(name, as_root=True) for name in dict.fromkeys(names)]
    values = _by_service(found, settings)
    return [
        Wanted(
            service=one,
            values=values[one.name],
            files=derive.production_files(
                one, values[one.name], used=services.used_numbers(one, as_root=True)
            ),
        )
        for one in found
    ]


def _by_service(found: Sequence[Service], settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Each value for the service that has it."""
    values: dict[str, dict[str, str]] = {one.name: {} for one in found}
    for key, value in settings.items():
        whose, _dot, name = key.rpartition(".")
        having = [one.name for one in found if name in one.values and whose in ("", one.name)]
        if not having:
            known = [word for one in found for word in one.values]
            raise UsageError(
                f"Cannot set '{key}': no service of {', '.join(values)} has such a value",
                hint=f"{nearest_hint(name, known)}their values: {', '.join(known) or 'none'}",
            )
        if len(having) > 1:
            raise UsageError(
                f"Cannot set '{key}': {' and '.join(having)} have such a value",
                hint=f"say which is meant: --set {having[0]}.{name}=…",
            )
        values[having[0]][name] = value
    return values
