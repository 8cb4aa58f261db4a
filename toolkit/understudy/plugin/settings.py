"""The plugin's options, read and checked: what cannot be meant is refused before any test."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from understudy.errors import PortError, nearest_hint
from understudy.pytest_plugin import OPTIONS, given, origin, setting_names, stands_in

if TYPE_CHECKING:
    from understudy.model import Engine, ManagerKind
    from understudy.ports import PortRange

TIMEOUT_S = 30.0
MANAGERS = ("auto", "system", "user")
ENGINES = ("files", "systemd-run")
KEEPS = ("never", "failed", "always")
STOPS = ("soon", "wait")

_LIMITS = {
    "memory": ("MemoryMax", re.compile(r"[1-9][0-9]*[KMGT]?"), "512M"),
    "tasks": ("TasksMax", re.compile(r"[1-9][0-9]*"), "100"),
    "cpu": ("CPUQuota", re.compile(r"[1-9][0-9]*%"), "50%"),
}
_CONTROLLERS = {"MemoryMax": "memory", "TasksMax": "pids", "CPUQuota": "cpu"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What was asked for.

    Attributes:
        manager: ``auto``, ``system`` or ``user``.
        engine: How instances are handed to the manager; "" for the usual way.
        ports: The range of ports, ``FIRST-LAST``; "" as configured.
        timeout_s: Seconds that each start is given.
        keep: Whose instances stay after the session: ``never``, ``failed`` or ``always``.
        waits: Whether each test's end waits until its instances have ended.
        limits: What each instance may use at most, as directives.
        background: Whether instances get only what nobody else wants of processors and disks.
        reuse: The name under which shared instances are kept for the next session; "" for none.
        logs: The folder that whole logs are written to; None for none.
        units: A folder of definitions to look in before all others.
        require: Whether absent production is a failure instead of a skip.
    """

    manager: str = "auto"
    engine: str = ""
    ports: str = ""
    timeout_s: float = TIMEOUT_S
    keep: str = "never"
    waits: bool = False
    limits: Mapping[str, str] = field(default_factory=dict)
    background: bool = False
    reuse: str = ""
    logs: Path | None = None
    units: Path | None = None
    require: bool = False

    @property
    def manager_kind(self) -> ManagerKind | None:
        """Whose manager; None for the caller's usual one."""
        from understudy.model import ManagerKind

        return None if self.manager == "auto" else ManagerKind(self.manager)

    @property
    def engine_kind(self) -> Engine | None:
        """How instances are handed to the manager; None for the usual way."""
        from understudy.model import Engine

        return Engine(self.engine) if self.engine else None

    @property
    def port_range(self) -> PortRange | None:
        """The range of ports; None as configured."""
        from understudy.ports import PortRange

        return PortRange.parse(self.ports, origin="--understudy-ports") if self.ports else None


def read(config: pytest.Config) -> Settings:
    """Read options and settings file.

    Raises:
        UsageError: A value that cannot be meant, or an unknown name.
    """
    _check_names(config)
    return Settings(
        manager=_choice(config, "manager", MANAGERS) or "auto",
        engine=_choice(config, "engine", ENGINES),
        ports=_ports(config),
        timeout_s=_timeout(config),
        keep=_choice(config, "keep", KEEPS) or "never",
        waits=_choice(config, "stop", STOPS) == "wait",
        limits=_limits(config),
        background=bool(given(config, "background")),
        reuse=_reuse(config),
        logs=_folder(config, "logs", must_exist=False),
        units=_folder(config, "units", must_exist=True),
        require=bool(given(config, "require")),
    )


def not_in_force(settings: Settings) -> str:
    """One line on the limits that have no effect here; "" where all have.

    A manager takes them without a word where it has no such controller.
    """
    if not settings.limits or not sys.platform.startswith("linux"):
        return ""
    import os

    from understudy.ports.cgroups import mount

    uid = os.geteuid()
    if settings.manager == "user" or (settings.manager == "auto" and uid):
        place = f"user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"
        whose, hint = "your user manager", "Delegate= in a drop-in of user@.service"
    else:
        place, whose, hint = "cgroup.controllers", "this host", "a host with cgroup v2 alone"
    try:
        there = Path(mount(), place).read_text(encoding="ascii").split()
    except (OSError, PortError):
        there = []
    names = {directive: name for name, (directive, *_) in _LIMITS.items()}
    lacking = [names[one] for one in settings.limits if _CONTROLLERS[one] not in there]
    if not lacking:
        return ""
    return (
        f"understudy: not in force here: the limit of {', '.join(lacking)}: {whose} has no such "
        f"controller (hint: {hint})"
    )


def _check_names(config: pytest.Config) -> None:
    known = [f"understudy_{name}" for name in OPTIONS]
    for key in setting_names(config):
        if key.startswith("understudy_") and key not in known:
            raise pytest.UsageError(
                f"{key}: no such setting; {nearest_hint(key, known)}there are: " + ", ".join(known)
            )


def _refuse(config: pytest.Config, name: str, text: str, near: str = "") -> pytest.UsageError:
    return pytest.UsageError(
        f"{origin(config, name)}: {text}" + (f"; {near}".rstrip() * bool(near))
    )


def _choice(config: pytest.Config, name: str, allowed: Iterable[str]) -> str:
    value = str(given(config, name) or "")
    if value and value not in allowed:
        near = nearest_hint(value, allowed)
        raise _refuse(config, name, f"'{value}' is none of: {', '.join(allowed)}", near)
    return value


def _ports(config: pytest.Config) -> str:
    value = str(given(config, "ports") or "")
    if value and sys.platform.startswith("linux"):
        from understudy.ports import PortRange

        try:
            PortRange.parse(value, origin=origin(config, "ports"))
        except PortError as exc:
            raise pytest.UsageError(str(exc)) from exc
    return value


def _timeout(config: pytest.Config) -> float:
    text = str(given(config, "timeout") or "")
    if not text:
        return TIMEOUT_S
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not float(text):
        raise _refuse(config, "timeout", f"'{text}' is no number of seconds")
    return float(text)


def _limits(config: pytest.Config) -> dict[str, str]:
    text = str(given(config, "limits") or "")
    found = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = map(str.strip, part.partition("="))
        if name not in _LIMITS:
            near = nearest_hint(name, _LIMITS)
            raise _refuse(config, "limits", f"'{name}' is none of: {', '.join(_LIMITS)}", near)
        directive, form, example = _LIMITS[name]
        if not form.fullmatch(value):
            raise _refuse(config, "limits", f"'{part}' is not like {name}={example}")
        found[directive] = value
    return found


def _reuse(config: pytest.Config) -> str:
    value = str(given(config, "reuse") or "")
    if value and not _NAME.fullmatch(value):
        raise _refuse(config, "reuse", f"'{value}' is no name: letters, digits, '.', '_' and '-'")
    return value


def _folder(config: pytest.Config, name: str, *, must_exist: bool) -> Path | None:
    value = str(given(config, name) or "")
    if not value:
        return None
    folder = stands_in(config, name) / Path(value).expanduser()
    if must_exist and not folder.is_dir():
        raise _refuse(config, name, f"'{folder}' is not a folder")
    if folder.exists() and not folder.is_dir():
        raise _refuse(config, name, f"'{folder}' is there, and no folder")
    return folder
