"""Whether this host is fit for understudy, and what helps where it is not.

A table of checks, each a function that gives findings. None changes anything, and none raises: what
it cannot see, it says. docs/doctor.md has each with what to do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias

from understudy import effects, lead, names, ports, services
from understudy.errors import (
    NetworkError,
    PortError,
    ProductionError,
    UnderstudyError,
)
from understudy.guard import RUN_ALPHABET
from understudy.manager import Manager, bus_variables, connect
from understudy.model import OURS, ManagerKind, Service
from understudy.netns import Namespace
from understudy.network import PROXY_PATHS
from understudy.ports.cgroups import processes
from understudy.ports.claiming import user_name
from understudy.ports.sock_diag import unix_listeners
from understudy.strays import singletons_of, strays

COMMAND_TIMEOUT_S: Final = 10.0
PRODUCTION_TIMEOUT_S: Final = 2.0
ENDING_TIMEOUT_S: Final = 2.0
STOPPING_TIMEOUT_S: Final = 8.0

SYSTEMD_MIN: Final = 252
EXPOSURE_MAX: Final = 5.0
CONTROLLERS: Final = ("cpu", "memory", "pids")
"""What an instance's limits need."""

MEDIAMTX_VERSIONS: Final = ((1, 13), (1, 20))
MEDIAMTX_URL: Final = "https://github.com/bluenviron/mediamtx/releases"
MEDIAMTX_VARIABLE: Final = "UNDERSTUDY_MEDIAMTX"

_BED = "boot a throwaway one from this very machine, as root: understudy bed -- COMMAND"
_RUN_UNIT = re.compile(
    rf"{OURS}(?P<kind>[a-z0-9-]+)@(?P<first>[a-z0-9]+)(?:-(?P<rest>[^.]+))?\.[a-z]+(?:\.d)?"
)
_RUN_SLICE = re.compile(rf"{OURS}(?:command-)?(?P<run>[a-z0-9]+)(?:-guarded)?\.(?:slice|scope)")
# Nothing else is taken for a run's: what is removed by mistake is lost.
_RUN = re.compile(rf"r[{RUN_ALPHABET}]{{5}}")
_EXPOSURE = re.compile(r"Overall exposure level for .*: ([0-9.]+) ([A-Z]+)")
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)\S*")


class Level(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check has seen.

    Attributes:
        check: Its name, as in docs/doctor.md.
        level: Whether all is well, something is missing, or something must be done.
        what: What was seen.
        why: Why that matters; "" where all is well.
        help: The command or the setting that helps; "" where there is none to give.
        details: What programs want to know of it, for some checks (docs/json.md).
    """

    check: str
    level: Level
    what: str
    why: str = ""
    help: str = ""
    details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/json.md); keys are only ever added."""
        return {
            "check": self.check,
            "level": self.level.value,
            "what": self.what,
            "why": self.why,
            "help": self.help,
            "details": dict(self.details),
        }


class Host:
    """What is looked at, and as whom.

    Args:
        root: The root of the file system that has ``/proc``, ``/sys``, ``/run`` and ``/var``.
        uid: Who asks; None: this process's user.
        units: A folder of service definitions to look in before all others.
    """

    def __init__(
        self, root: Path = Path("/"), *, uid: int | None = None, units: Path | None = None
    ) -> None:
        self.root = root
        self.uid = os.geteuid() if uid is None else uid
        self.user = user_name(self.uid)
        self.units = units
        self.kind = ManagerKind.USER if self.uid else ManagerKind.SYSTEM

    def manager(self, kind: ManagerKind) -> Manager:
        """A manager that answers.

        Raises:
            ManagerError: It does not.
        """
        found = connect(kind)
        found.status(["-.slice"])
        return found

    @cached_property
    def own(self) -> Manager | None:
        """The manager that this user's runs are on, if it is in reach."""
        with contextlib.suppress(UnderstudyError):
            return self.manager(self.kind)
        return None

    @cached_property
    def productions(self) -> list[tuple[Service, Manager | None]]:
        """A definition of each production, and the manager that knows its unit."""
        found: dict[str, Service] = {}
        for folder, origin in services.folders(units=self.units).values():
            with contextlib.suppress(UnderstudyError, OSError):
                one = services.load(folder, origin)
                # Of two that describe one production, the one that is called like it.
                if one.production and (
                    one.production not in found or one.production == f"{one.name}.service"
                ):
                    found[one.production] = one
        managers = [self.system, self.own] if self.uid else [self.system]
        answer = []
        for unit, service in sorted(found.items()):
            knowing = (
                one
                for one in managers
                if one is not None and one.status([unit])[unit].load_state != "not-found"
            )
            answer.append((service, next(knowing, None)))
        return answer

    @cached_property
    def system(self) -> Manager | None:
        """The system's manager, if it is in reach."""
        with contextlib.suppress(UnderstudyError):
            return self.manager(ManagerKind.SYSTEM)
        return None

    @cached_property
    def said(self) -> Mapping[str, str]:
        """What the own manager says of itself; nothing if it is not in reach."""
        if self.own is None:
            return {}
        wanted = "--property=Version,Features,ControlGroup,Virtualization"
        text = _output(["systemctl", f"--{self.kind}", "show", wanted], self.own)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def read(self, path: str) -> str | None:
        """A file below the root; None if it is not there or may not be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def cgroup_root(self) -> Path | None:
        """Where the unified hierarchy is mounted."""
        for place in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
            if (self.root / place / "cgroup.procs").exists():
                return self.root / place
        return None

    def live_runs(self) -> set[str]:
        """The runs of this host that live, of all users."""
        prefix = b"\0understudy/run/"
        found = {
            one.name.removeprefix(prefix).decode(errors="replace")
            for one in unix_listeners()
            if one.name.startswith(prefix)
        }
        # One that was begun in another network is not seen by its name.
        if self.own is not None:
            guards = self.own.list([names.guard_unit("*"), f"{OURS}lease@*.service"]).values()
            found |= {
                one.unit.partition("@")[2].removesuffix(".service")
                for one in guards
                if one.active_state in ("active", "activating")
            }
        return found


Check: TypeAlias = Callable[[Host], Iterable[Finding]]


def examine(
    host: Host | None = None,
    *,
    only: Collection[str] = (),
    progress: Callable[[str], None] = lambda _name: None,
) -> list[Finding]:
    """Look at this host.

    Args:
        host: What to look at; None: this machine, as this process's user.
        only: Names of checks; empty: all of `CHECKS`.
        progress: Is told the name of each check that has been made.

    Returns:
        What was found, in the order of `CHECKS`; at least one finding of each check that has
        something to say to this user.
    """
    host = host or Host()
    wanted = [name for name in CHECKS if not only or name in only]
    done: dict[str, list[Finding]] = {}
    # It forks, which a process is better at before it has threads.
    if "namespaces" in wanted:
        done["namespaces"] = _made("namespaces", host)
    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="understudy-doctor") as pool:
        asked = {name: pool.submit(_made, name, host) for name in wanted if name not in done}
        for name in wanted:
            if name in asked:
                done[name] = asked[name].result()
            progress(name)
    return [finding for name in wanted for finding in done[name]]


def _made(name: str, host: Host) -> list[Finding]:
    try:
        return list(CHECKS[name](host))
    except UnderstudyError as exc:
        return [_unseen(name, exc.message, exc.hint or "")]
    except Exception as exc:
        # A report that ends half-way helps nobody; what went wrong stands in its line.
        return [_unseen(name, f"{type(exc).__name__}: {exc}")]


def _unseen(name: str, why: str, help_: str = "") -> Finding:
    return _warning(name, "could not be looked at", why, help_)


def _ok(check: str, what: str, **details: object) -> Finding:
    return Finding(check=check, level=Level.OK, what=what, details=details)


def _warning(check: str, what: str, why: str, help_: str = "", **details: object) -> Finding:
    return Finding(
        check=check, level=Level.WARNING, what=what, why=why, help=help_, details=details
    )


def _problem(check: str, what: str, why: str, help_: str = "", **details: object) -> Finding:
    return Finding(
        check=check, level=Level.PROBLEM, what=what, why=why, help=help_, details=details
    )


# systemd and what it stands on.


def _systemd(host: Host) -> Iterator[Finding]:
    text, features = host.said.get("Version", ""), host.said.get("Features", "")
    if not text:
        try:
            first, _, features = _output(["systemctl", "--version"]).partition("\n")
        except FileNotFoundError:
            yield _problem(
                "systemd", "there is none", "no systemctl is in PATH", "sudo apt install systemd"
            )
            return
        text = first.removeprefix("systemd ").partition("(")[2].rstrip(")") or first
    known = [word for word in features.split() if word[1:] in ("BPF_FRAMEWORK", "SECCOMP")]
    what = " ".join([text, *known])
    number = re.match(r"\d+", text)
    details: dict[str, object] = {"version": text, "features": features.split()}
    if number is None or int(number[0]) < SYSTEMD_MIN:
        yield _problem(
            "systemd", what, f"it must be {SYSTEMD_MIN} or newer", "Debian 12 has 252", **details
        )
    elif "-SECCOMP" in known:
        yield _warning(
            "systemd", what, "no system call filter of a unit is in force", "", **details
        )
    elif "-BPF_FRAMEWORK" in known and host.uid == 0:
        yield _warning(
            "systemd",
            what,
            "SocketBindDeny= is not in force; whose a port is, is looked at in any case",
            "systemd of Debian 13 has it; nothing depends on it",
            **details,
        )
    else:
        yield _ok("systemd", what, **details)


def _cgroups(host: Host) -> Iterator[Finding]:
    place = host.cgroup_root()
    if place is None:
        yield _problem(
            "cgroups",
            "the unified hierarchy (cgroup2) is not mounted",
            "nobody can tell whose a port is",
            "boot without systemd.unified_cgroup_hierarchy=0",
        )
    elif place.name == "unified":
        yield _warning(
            "cgroups",
            "hybrid: v1, with v2 at /sys/fs/cgroup/unified",
            "limits of user managers are not in force",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    else:
        yield _ok("cgroups", "v2 at /sys/fs/cgroup")


def _managers(host: Host) -> Iterator[Finding]:
    for kind in ManagerKind:
        if kind is ManagerKind.USER and host.uid == 0:
            continue
        whose = "the system's" if kind is ManagerKind.SYSTEM else f"{host.user}'s own"
        try:
            found = host.manager(kind)
        except UnderstudyError as exc:
            finding = _problem if kind is host.kind else _warning
            why = "instances run on it" if kind is host.kind else "production cannot be looked at"
            yield finding("managers", exc.message, why, exc.hint or _BED)
        else:
            how = "by commands" if found.note else "by D-Bus"
            yield _ok("managers", f"{whose} answers, {how}", kind=str(kind))


def _lingering(host: Host) -> Iterator[Finding]:
    if host.uid == 0:
        return
    if (host.root / "var/lib/systemd/linger" / host.user).exists():
        yield _ok("lingering", f"on: the manager of {host.user} lives without a login")
    else:
        yield _warning(
            "lingering",
            f"off for {host.user}",
            "the manager, and every run with it, ends with the last login",
            _deploy(host),
        )


def _bounds(host: Host) -> Iterator[Finding]:
    """What a tester may use at most; of root there is nothing to say."""
    if host.uid == 0:
        return
    unit = f"user-{host.uid}.slice"
    if host.system is None:
        yield _unseen("bounds", f"no manager is in reach that knows {unit}")
        return
    found = host.system.properties(unit, ["MemoryMax", "TasksMax", "CPUWeight", "IOWeight"])
    details = {"slice": unit, "bounds": found}
    text = " ".join(f"{name}={value}" for name, value in found.items())
    if found["MemoryMax"] == "infinity":
        yield _warning(
            "bounds",
            f"{host.user} may use all memory of this host",
            "a test that runs wild takes production's",
            _deploy(host),
            **details,
        )
        return
    group = (host.cgroup_root() or host.root) / f"user.slice/{unit}/memory.max"
    if group.exists():
        yield _ok("bounds", f"{text} for {host.user}", **details)
    else:
        yield _warning(
            "bounds",
            f"{text} for {host.user}: not enforced",
            "this system has no controller for that slice",
            "give tests --background, which needs none",
            **details,
        )


def _deploy(host: Host) -> str:
    return f"sudo understudy deploy --tester {host.user}"


def _rights(host: Host) -> Iterator[Finding]:
    if host.own is None:
        yield _unseen("rights", f"the {host.kind} manager is not in reach")
        return
    place = host.own.unit_dir
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        yield _problem(
            "rights",
            f"'{place}' may not be written by {host.user}",
            "unit files of instances go there",
            f"sudo systemctl restart user@{host.uid}.service" if host.uid else "",
        )
    elif host.uid == 0:
        yield _ok("rights", "root: instances on the system manager, each under a user of its own")
    else:
        yield _ok(
            "rights", f"{host.user}: instances on the own manager; no right over others is needed"
        )


def _controllers(host: Host) -> Iterator[Finding]:
    place = host.cgroup_root()
    if place is None or host.own is None:
        what = "cgroup2" if place is None else f"the {host.kind} manager"
        yield _unseen("controllers", f"{what} is not there")
        return
    group = host.said.get("ControlGroup", "")
    text = host.read(str((place / group.lstrip("/") / "cgroup.controllers").relative_to(host.root)))
    if text is None:
        yield _unseen("controllers", f"no cgroup.controllers in '{group or '/'}'")
        return
    missing = [name for name in CONTROLLERS if name not in text.split()]
    details = {"controllers": text.split()}
    if not missing:
        yield _ok("controllers", f"{text} for {host.user}", **details)
        return
    at_all = host.read(str((place / "cgroup.controllers").relative_to(host.root))) or ""
    held_back = not set(missing) <= set(at_all.split())
    yield _warning(
        "controllers",
        f"no {', '.join(missing)} for {host.user}",
        "limits such as MemoryMax= are accepted and not enforced",
        "a container or kernel keeps them from this system: outside they may be there"
        if held_back
        else "sudo mkdir -p /etc/systemd/system/user@.service.d && "
        "printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | "
        "sudo tee /etc/systemd/system/user@.service.d/delegate.conf && "
        f"sudo systemctl daemon-reload && sudo systemctl restart user@{host.uid}.service",
        **details,
    )


def _namespaces(host: Host) -> Iterator[Finding]:
    try:
        Namespace.create(user=host.uid != 0).close()
    except NetworkError as exc:
        yield _warning(
            "namespaces", exc.message, "tests in private networks cannot be run", exc.hint or ""
        )
        return
    missing = not any((host.root / path.lstrip("/")).exists() for path in PROXY_PATHS)
    if missing or shutil.which("nsenter") is None:
        what = "systemd-socket-proxyd" if missing else "nsenter"
        yield _warning(
            "namespaces",
            f"a private network was made, but {what} is missing",
            "no port can be published from or let into a private network",
            f"sudo apt install {'systemd' if missing else 'util-linux'}",
        )
    else:
        yield _ok("namespaces", "a private network was made, and is gone again")


def _apparmor(host: Host) -> Iterator[Finding]:
    name = "kernel.apparmor_restrict_unprivileged_userns"
    if host.read(f"proc/sys/{name.replace('.', '/')}") != "1":
        yield _ok("apparmor", "does not restrict user namespaces")
    elif host.uid == 0:
        yield _ok("apparmor", "restricts user namespaces, but not root's")
    else:
        yield _warning(
            "apparmor",
            "restricts unprivileged user namespaces",
            "no private network and no bound file for instances of a user",
            f"{_deploy(host)}; or as root: sudo understudy run",
        )


def _port_range(_host: Host) -> Iterator[Finding]:
    try:
        chosen = ports.configured_range()
        chosen.check_ephemeral()
        ephemeral = ports.ephemeral_ports()
        reserved = chosen.is_reserved()
    except PortError as exc:
        yield _problem(
            "port-range", exc.message, "a client may get a port of an instance", exc.hint or ""
        )
        return
    claimed = len(ports.claims(chosen.blocks))
    yield _ok(
        "port-range",
        f"{chosen} ({chosen.origin}), {len(chosen.blocks) - claimed} of {len(chosen.blocks)} "
        f"blocks free; clients get {ephemeral[0]}-{ephemeral[-1]}"
        + (", and none of these" if reserved else ""),
        first=chosen.first,
        last=chosen.last,
        blocks=len(chosen.blocks),
        claimed=claimed,
        reserved=reserved,
    )


# What helps it along.


def _pystemd(_host: Host) -> Iterator[Finding]:
    try:
        importlib.import_module("understudy.manager.dbus")
    except ImportError as exc:
        yield _warning(
            "dbus",
            f"pystemd cannot be used: {exc}",
            "each call to a manager costs a process or two",
            "sudo apt install python3-pystemd",
        )
    else:
        yield _ok("dbus", "pystemd is there")


def _mediamtx(host: Host) -> Iterator[Finding]:
    default = services.find("mediamtx", units=host.units).values.get("program", "")
    named = os.environ.get(MEDIAMTX_VARIABLE)
    candidates = [named] if named else [default.partition(" ")[0], shutil.which("mediamtx")]
    path = next((one for one in candidates if one and os.access(one, os.X_OK)), None)
    if path is None:
        yield _warning(
            "mediamtx",
            f"none at {named or default}" + ("" if named else " or in PATH"),
            "instances of mediamtx need its program",
            f"{MEDIAMTX_URL}; or where it is: --set program=/path/to/mediamtx",
        )
        return
    status = Path(path).stat()
    if status.st_uid not in (0, host.uid) or status.st_mode & 0o022:
        yield _unseen("mediamtx", f"'{path}' can be changed by other users, so it was not run")
        return
    try:
        text = _output([path, "--version"]).strip()
    except (OSError, subprocess.TimeoutExpired) as exc:
        text = str(exc)
    version = _VERSION.fullmatch(text)
    if version is None:
        yield _warning(
            "mediamtx", f"{path} does not tell its version: {text[:60]}", "is it MediaMTX?"
        )
        return
    number = (int(version[1]), int(version[2]))
    (low, high), what = MEDIAMTX_VERSIONS, f"{text} at {path}"
    if low <= number <= high:
        yield _ok("mediamtx", what, version=text, path=path)
    else:
        known = f"v{low[0]}.{low[1]} to v{high[0]}.{high[1]}"
        yield _warning(
            "mediamtx", what, f"{known} are known", MEDIAMTX_URL, version=text, path=path
        )


def _journal(host: Host) -> Iterator[Finding]:
    whose = ["--user", "--system"] if host.uid else ["--system"]
    dark = [one for one in whose if not _can_read(one, host.own)]
    if not dark:
        yield _ok("journal", f"can be read by {host.user}")
        return
    what = {"--user": f"the own units of {host.user}", "--system": "the system's units"}
    yield _warning(
        "journal",
        f"lines of {what[dark[0]]} cannot be read by {host.user}",
        "errors have no log" if "--user" in dark else "production's log cannot be shown",
        f"sudo usermod -aG systemd-journal {host.user}, and log in again"
        if host.uid
        else "systemctl status systemd-journald",
    )


def _can_read(whose: str, manager: Manager | None) -> bool:
    # A line of the last boot says enough; no line at all is what a denied reader gets.
    words = ["journalctl", whose, "--quiet", "--lines=1", "--output=cat", "--no-pager"]
    return bool(_output(words, manager))


# Production, and who stands in its place.


def _production(host: Host) -> Iterator[Finding]:
    if not host.productions:
        yield _ok("production", "no definition names one")
    for service, manager in host.productions:
        unit = service.production or ""
        if manager is None:
            holders = _in_its_place(service)
            if host.system is None and host.own is None:
                yield _unseen("production", f"{unit}: no manager is in reach{holders}", _BED)
                continue
            yield _warning(
                "production",
                f"{unit} is not installed{holders}",
                f"tests find no production's {service.name}",
                f"understudy render {service.name}",
                unit=unit,
                state="not-found",
            )
            continue
        state = manager.status([unit])[unit].active_state
        try:
            found = lead.production(service, manager=manager, timeout_s=PRODUCTION_TIMEOUT_S)
        except ProductionError as exc:
            yield _problem(
                "production",
                exc.message.partition(": ")[2],
                f"tests find no production's {service.name}",
                exc.hint or "",
                unit=unit,
                state=state,
            )
            continue
        yield from _found(host, service, found, state)


def _found(host: Host, service: Service, found: lead.Production, state: str) -> Iterator[Finding]:
    others = list(_others(service, found))
    numbers = " ".join(f"{name}={number}" for name, number in found.ports.items())
    whose = "" if found.manager is ManagerKind.SYSTEM else f" on the manager of {host.user}"
    details = {"unit": found.unit, "state": state, "ports": dict(found.ports)}
    if others:
        yield _problem(
            "production",
            f"{found.unit} is {state}{whose}, but {', and '.join(text for text, _ in others)}",
            "whoever connects reaches one or the other",
            f"understudy ports {' '.join(dict.fromkeys(str(number) for _, number in others))}",
            **details,
        )
    else:
        yield _ok(
            "production", f"{found.unit} is {state}{whose}: {numbers or 'no port'}", **details
        )


def _others(service: Service, found: lead.Production) -> Iterator[tuple[str, int]]:
    """Who else has a port of production's that has it too or could not get it."""
    sockets = ports.snapshot()
    for port in service.ports.values():
        if port.number is None:
            continue
        bound = [one for one in sockets.bound(port.transport, port.number) if one.listening]
        for holder in ports.describe(bound) if bound else ():
            passed = holder.unit is not None and (
                holder.unit.endswith(".socket") or holder.unit == "init.scope"
            )
            if holder.unit != found.unit and not (passed and port.name in found.ports):
                yield f"{port.number} ({port.name}) is held by {holder}", port.number


def _in_its_place(service: Service) -> str:
    sockets = ports.snapshot()
    for port in service.ports.values():
        if port.number is not None and (bound := sockets.bound(port.transport, port.number)):
            holder = ports.describe(bound)[0]
            return f", and its port {port.number} ({port.name}) is held by {holder}"
    return ""


def _exposure(host: Host) -> Iterator[Finding]:
    for service, manager in host.productions:
        if manager is None or service.production is None:
            continue
        words = ["systemd-analyze", f"--{manager.kind}", "security", "--no-pager"]
        text = _output([*words, service.production], manager)
        match = _EXPOSURE.search(text)
        unit, whose = service.production, "--user " * (manager.kind is ManagerKind.USER)
        if match is None:
            yield _unseen("exposure", f"systemd-analyze says nothing of {unit}")
            continue
        what = f"{unit}: {match[1]} {match[2]}"
        details = {"unit": unit, "exposure": float(match[1])}
        if float(match[1]) > EXPOSURE_MAX:
            yield _warning(
                "exposure",
                what,
                "what it may do, an instance on the system manager may too",
                f"systemd-analyze {whose}security {unit}; the shipped unit is stricter: "
                f"understudy render {service.name}",
                **details,
            )
        else:
            yield _ok("exposure", what, **details)


def _precedence(host: Host) -> Iterator[Finding]:
    for service, manager in host.productions:
        unit = service.production or ""
        if manager is None or not manager.status([unit])[unit].main_pid:
            continue
        try:
            lacking = effects.precedence_not_in_force(manager, unit)
        except (FileNotFoundError, ProcessLookupError):
            yield _unseen("precedence", f"the main process of {unit} is gone, or hidden")
            continue
        if not lacking:
            yield _ok("precedence", f"{unit} comes first, as far as its unit says", unit=unit)
            continue
        reasons = "; ".join(f"{one.setting}: {one.reason}" for one in lacking)
        yield _warning(
            "precedence",
            f"not in force for {unit}: {reasons}",
            "tests can take processor, disk or memory from it",
            "give tests --background; docs/test-hosts.md, Production comes first",
            unit=unit,
            not_in_force=[one.to_json() for one in lacking],
        )


def _strays(host: Host) -> Iterator[Finding]:
    known = singletons_of(units=host.units, root=host.root)
    found = strays(known, root=host.root)
    for one in found:
        yield _problem(
            "strays",
            f"a second {one.service}: {one}; seen by {', '.join(one.seen)}",
            f"a host has one, which is {one.production} (AD-001)",
            one.help,
            **one.to_json(),
        )
    if not found:
        of = ", ".join(one.service for one in known) or "anything"
        limit = "" if host.uid == 0 else "; into other users' networks only root sees"
        yield _ok("strays", f"no second copy of {of}{limit}")


# What dead runs left.


@dataclass(slots=True)
class _Left:
    """What there is of one dead run."""

    units: list[str] = field(default_factory=list)
    failed: bool = False
    stopping: bool = False
    files: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def run_of(name: str) -> str | None:
    """The run that a unit, or a file of one, belongs to; None if it is of none.

    Args:
        name: ``understudy-mediamtx@r7k2mq-1.service``, or its folder of drop-ins.
    """
    if match := _RUN_SLICE.fullmatch(name):
        run = match["run"]
    elif match := _RUN_UNIT.fullmatch(name):
        if match["kind"] == "making":
            return None
        # A shared run's unit has the key before the run.
        run = (match["rest"] or "") if match["kind"] == "shared" else match["first"]
    else:
        return None
    return run if _RUN.fullmatch(run) else None


def _left_overs(host: Host) -> Iterator[Finding]:
    # What is just ending is no left-over.
    deadline = time.monotonic() + ENDING_TIMEOUT_S
    limit = time.monotonic() + STOPPING_TIMEOUT_S
    pause_s = 0.01
    while found := _left(host):
        now = time.monotonic()
        if now >= deadline and not (now < limit and any(one.stopping for one in found.values())):
            break
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.2)
    for run, one in sorted(found.items()):
        counts = [
            f"{len(things)} {noun}{'' if len(things) == 1 else 's'} ({things[0]}"
            + (", …)" if len(things) > 1 else ")")
            for things, noun in (
                (one.units, "unit"),
                (one.files, "file"),
                (one.groups, "cgroup"),
            )
            if things
        ]
        yield _problem(
            "left-overs",
            f"run {run} is dead and left {', '.join(counts)}",
            "they hold memory, ports or names that nobody frees",
            _removal(host, run, one),
            run=run,
            units=one.units,
            files=one.files,
            cgroups=one.groups,
        )
    if not found:
        live = len(host.live_runs())
        yield _ok("left-overs", f"none; {live} live run{'' if live == 1 else 's'} on this host")


def _left(host: Host) -> dict[str, _Left]:
    """What is left, by run. Names are looked at before what lives: a run that begins has its
    socket first.
    """
    found: dict[str, _Left] = {}

    def of(name: str) -> _Left | None:
        run = run_of(name)
        return None if run is None else found.setdefault(run, _Left())

    units = host.own.list([f"{OURS}*"]) if host.own is not None else {}
    for unit, status in sorted(units.items()):
        if (one := of(unit)) is not None and status.load_state != "not-found":
            one.units.append(unit)
            one.failed |= status.active_state == "failed"
            one.stopping |= status.active_state == "deactivating"
    for path in _files(host):
        if (one := of(Path(path).name)) is not None:
            one.files.append(path)
    for run, path in _directories(host):
        found.setdefault(run, _Left()).files.append(path)
    for path in _groups(host):
        # One of a loaded unit goes with it.
        name = Path(path).name
        if name not in units and (one := of(name)) is not None:
            one.groups.append(path)
    live = host.live_runs() if found else set()
    return {
        run: one
        for run, one in found.items()
        if run not in live and (one.units or one.files or one.groups)
    }


def _runtime(host: Host) -> Path:
    if host.own is not None:
        return host.own.runtime_dir
    return host.root / (f"run/user/{host.uid}" if host.uid else "run")


def _files(host: Host) -> list[str]:
    place = _runtime(host) / "systemd"
    own = place / str(host.kind)
    found = [*own.glob(f"{OURS}*"), *own.glob(f"*.wants/{OURS}*")]
    return sorted(map(str, [*found, *(place / "transient").glob(f"{OURS}*")]))


def _directories(host: Host) -> list[tuple[str, str]]:
    runtime = _runtime(host)
    found = [*(runtime / "understudy").glob("*"), *(runtime / "private/understudy").glob("*")]
    return sorted((path.name, str(path)) for path in found if _RUN.fullmatch(path.name))


def _groups(host: Host) -> list[str]:
    place = host.cgroup_root()
    if place is None or (host.uid and not host.said.get("ControlGroup")):
        return []
    top = place / host.said.get("ControlGroup", "").lstrip("/")
    return sorted(map(str, (top / "understudy.slice").glob(f"{OURS}*.slice")))


def _removal(host: Host, run: str, left: _Left) -> str:
    """The shell command that takes it away, and nothing of another run."""
    pattern = f"understudy*[@-]{run}[-.]*"
    # Services before their slice, and both by globs: one that is gone meanwhile is no error.
    patterns = (f"understudy*@{run}[-.]*", f"understudy*-{run}[-.]*")
    systemctl = "systemctl --user" if host.uid else "systemctl"
    steps = []
    if left.units:
        steps += [f"{systemctl} stop '{each}'" for each in patterns]
    if left.failed:
        steps.append(f"{systemctl} reset-failed '{pattern}'")
    folders = {str(Path(path).parent) for path in left.files if Path(path).name != run}
    words = [f"{shlex.quote(folder)}/{pattern}" for folder in sorted(folders)]
    words += [shlex.quote(path) for path in left.files if Path(path).name == run]
    if words:
        steps.append(f"rm -rf -- {' '.join(words)}")
    for group in left.groups:
        quoted = shlex.quote(group)
        if _has_processes(host, group):
            steps.append(f"echo 1 >{quoted}/cgroup.kill")
        steps.append(f"find {quoted} -depth -type d -exec rmdir {{}} ';'")
    return "; ".join(steps)


def _has_processes(host: Host, group: str) -> bool:
    place = host.cgroup_root()
    return place is not None and bool(processes(group.removeprefix(str(place))))


def _output(words: Sequence[str], manager: Manager | None = None) -> str:
    variables = {} if manager is None else bus_variables(manager)
    return subprocess.run(
        words,
        env={**os.environ, **variables, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    ).stdout


CHECKS: Final[Mapping[str, Check]] = {
    "systemd": _systemd,
    "cgroups": _cgroups,
    "managers": _managers,
    "lingering": _lingering,
    "bounds": _bounds,
    "rights": _rights,
    "controllers": _controllers,
    "namespaces": _namespaces,
    "apparmor": _apparmor,
    "port-range": _port_range,
    "dbus": _pystemd,
    "journal": _journal,
    "mediamtx": _mediamtx,
    "production": _production,
    "exposure": _exposure,
    "precedence": _precedence,
    "strays": _strays,
    "left-overs": _left_overs,
}
"""Every check, by name, in the order in which it is shown."""
