"""Second copies of what a host may have only once: found by program, port and cgroup.

A singleton (``singleton = true`` in its service.toml) has one production. Whatever else runs its
program, holds its standard ports or calls its unit the same is a stray, whoever started it and in
whatever container or private network it is. Instances are none, nor is what tests run in a private
network of understudy's, or in a bed.

Nothing is asked of systemd, so this works on any Linux and costs a few milliseconds: /proc, a dump
of the sockets, and cgroup paths, which systemd names after units.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from understudy import services, unitfile
from understudy.errors import NetworkError, PortError, UnderstudyError
from understudy.model import OURS, Service, Transport
from understudy.netns import Namespace
from understudy.ports import cgroups
from understudy.ports.claiming import user_name

if TYPE_CHECKING:
    from understudy.ports import Sockets

UNIT_FOLDERS: Final = (
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/transient",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
"""Where the system manager's unit files are (systemd.unit(5))."""

_USER_FOLDERS = (
    "etc/systemd/user",
    "run/user/{uid}/systemd/user",
    "run/user/{uid}/systemd/transient",
    "usr/lib/systemd/user",
)
_INTERPRETER = re.compile(r"(python|pypy|perl|ruby|node|nodejs|java|(ba|da|z)?sh)[0-9.]*t?")
_WITH_ARGUMENT = ("-X", "-W", "-cp", "-classpath", "--require", "-r")
_CODE = ("-c", "-e", "--eval")
_MODULE = re.compile(r"-[A-Za-z]*m")
_ASSIGNMENT = re.compile(r"\w+=.*", re.DOTALL)
_PREFIXES = "@-:+!|"
_PRIVATE = b"UNDERSTUDY_NETWORK=private"
_CONTAINER = re.compile(r"(docker|libpod)-([0-9a-f]{12})[0-9a-f]*\.scope")
_GROUPING = re.compile(r"(session-.*|init)\.scope|user@\d+\.service")
_LISTEN = "0A"
_UNCONNECTED = "07"

_Key: TypeAlias = tuple[Transport, int]
_Program: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A second copy of a singleton.

    Attributes:
        service: Whose copy: the definition's name.
        production: The unit that it is not.
        pid: Its process; None where only a socket of it may be seen.
        command: Its command line; "" where it may not be seen.
        user: Whose it is.
        uid: That user's number.
        unit: The innermost systemd unit that it runs in; None if it runs in none.
        within: The unit around that one: a container, or a user's manager; None if none.
        cgroup: Its cgroup's path; "" if unknown.
        parent: The process that started it, as far as it still lives; None if unknown.
        parent_command: That process's command line.
        alone: Its unit runs nothing but it and what it started.
        elsewhere: It is in another network than the caller.
        seen: How it was recognised: ``program mediamtx``, ``port 8554 (rtsp)``.
    """

    service: str
    production: str
    pid: int | None
    command: str
    user: str
    uid: int
    unit: str | None
    within: str | None
    cgroup: str
    parent: int | None
    parent_command: str
    alone: bool
    elsewhere: bool
    seen: tuple[str, ...]

    def __str__(self) -> str:
        """``mediamtx (PID 812, user anna) in x.service, in another network``."""
        details = [f"user {self.user}"]
        if self.pid is not None:
            details.insert(0, f"PID {self.pid}")
        text = f"{_short(self.command) or self.service} ({', '.join(details)})"
        if self.unit:
            text += f" in {self.unit}" + (f" of {self.within}" if self.within else "")
        if self.parent and not self._is_managed():
            text += f", started by {_short(self.parent_command) or 'PID'} (PID {self.parent})"
        return text + (", in another network" if self.elsewhere else "")

    @property
    def help(self) -> str:
        """The command that ends it, for people to judge."""
        sudo = "" if self.uid == os.geteuid() else "sudo "
        unit = self.unit or ""
        if container := _CONTAINER.fullmatch(unit):
            tool = "podman" if container[1] == "libpod" else "docker"
            return f"{tool} stop {container[2]}"
        if self._is_managed():
            if self.within is None:
                return f"{'' if os.geteuid() == 0 else 'sudo '}systemctl stop {unit}"
            if self.within == f"user@{self.uid}.service":
                whose = "--user" if not sudo else f"--user --machine={self.user}@"
                return f"{sudo}systemctl {whose} stop {unit}"
        if self.pid is None:
            return f"{sudo}understudy doctor sees more"
        return f"{sudo}kill {self.pid}" if self.within is None else f"systemctl status {self.pid}"

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/json.md); keys are only ever added."""
        return {
            "service": self.service,
            "production": self.production,
            "pid": self.pid,
            "command": self.command,
            "user": self.user,
            "uid": self.uid,
            "unit": self.unit,
            "within": self.within,
            "cgroup": self.cgroup or None,
            "parent": self.parent,
            "parent_command": self.parent_command,
            "alone": self.alone,
            "elsewhere": self.elsewhere,
            "seen": list(self.seen),
        }

    def _is_managed(self) -> bool:
        """Whether its unit was made for it: ending that ends nothing else."""
        return self.alone and self.unit is not None and not _GROUPING.fullmatch(self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Singleton:
    """What a singleton is known by.

    Attributes:
        service: The definition's name.
        unit: Production's unit.
        ports: The name of each standard port, by transport and number.
        programs: What it is started as; see `program`.
    """

    service: str
    unit: str
    ports: Mapping[_Key, str] = field(default_factory=dict)
    programs: frozenset[_Program] = frozenset()


def strays(
    singletons: Sequence[Singleton] | None = None,
    *,
    units: Path | None = None,
    root: Path = Path("/"),
    sockets: Sockets | None = None,
) -> list[Stray]:
    """Find every second copy of a singleton that this user can see.

    Other users' processes are seen by their command line and, in the caller's network, by their
    ports; in what networks they are only root sees.

    Args:
        singletons: What to look for; None: all that are defined (`singletons_of`).
        units: A folder of service definitions to look in before all others.
        root: The root of the file system that has ``/proc``.
        sockets: The sockets of the caller's network; None: as the kernel tells now.

    Returns:
        Them, by service and PID. What may not be looked at is passed over: nothing is raised.
    """
    known = singletons_of(units=units, root=root) if singletons is None else singletons
    if not known:
        return []
    search = _Search(known, root)
    search.by_program()
    search.by_port_here(sockets)
    search.by_port_elsewhere()
    return search.found()


def singletons_of(*, units: Path | None = None, root: Path = Path("/")) -> list[Singleton]:
    """What the defined singletons are known by: as defined, and as they are installed here.

    Args:
        units: A folder of service definitions to look in before all others.
        root: The root of the file system that has the unit files.
    """
    by_unit: dict[str, Singleton] = {}
    try:
        folders = services.folders(units=units)
    except UnderstudyError:
        return []
    for folder, _origin in folders.values():
        with contextlib.suppress(UnderstudyError, OSError):
            changed_ns = max(file.stat().st_mtime_ns for file in folder.iterdir())
            one = _defined(folder, changed_ns)
            if one is None:
                continue
            # Two definitions of one production describe it together.
            if (other := by_unit.get(one.unit)) is not None:
                ports = {**one.ports, **other.ports}
                one = replace(other, ports=ports, programs=other.programs | one.programs)
            by_unit[one.unit] = one
    return [
        replace(one, programs=one.programs | _installed_programs(root, one.unit))
        for one in by_unit.values()
    ]


def program(argv: Sequence[str]) -> _Program | None:
    """What a command line runs, whatever its arguments: a program, a script or a module.

    Args:
        argv: The words of a process, or of an ``ExecStart=``.

    Returns:
        Its kind and name: ``("program", "mediamtx")``, ``("-m", "camera_service.main")``,
        ``("script", "/opt/x/server.py")``; None where that says nothing.
    """
    words = list(argv)
    if words and os.path.basename(words[0]) == "env":  # noqa: PTH119 - no Path for each process
        words = words[1:]
        while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0].startswith("-")):
            words.pop(0)
    if not words or not words[0]:
        return None
    name = words[0].rpartition("/")[2]
    if _INTERPRETER.fullmatch(name) is None:
        # Some write more than a name there: "nginx: master process /usr/sbin/nginx".
        return ("program", name.partition(" ")[0])
    rest = iter(words[1:])
    for word in rest:
        if word in _CODE:
            return None
        if word == "-jar" or (name.startswith(("python", "pypy")) and _MODULE.fullmatch(word)):
            kind = "-jar" if word == "-jar" else "-m"
            following = next(rest, "")
            return (kind, following) if following else None
        if word in _WITH_ARGUMENT:
            next(rest, "")
        elif not word.startswith("-"):
            return ("script", word) if word.startswith("/") else None
    return None


@lru_cache
def _defined(folder: Path, _changed_ns: int) -> Singleton | None:
    service = services.load(folder, "")
    if not service.singleton or service.production is None:
        return None
    ports = {
        (port.transport, number): port.name
        for port in service.ports.values()
        for number in (port.number, port.behind)
        if number is not None
    }
    return Singleton(
        service=service.name,
        unit=service.production,
        ports=ports,
        programs=_rendered_programs(service),
    )


def _rendered_programs(service: Service) -> frozenset[_Program]:
    from understudy.derive import render_production  # jinja2 is slow to import

    try:
        files = render_production(service, {})
    except UnderstudyError:  # it cannot be rendered without a value of this host's
        return frozenset()
    return programs_of(text for name, text in files.items() if name.endswith(".service"))


def _installed_programs(root: Path, unit: str) -> frozenset[_Program]:
    """What production's unit runs as it is on this host, drop-ins included."""
    texts = []
    uid = os.geteuid()
    for folder in (*UNIT_FOLDERS, *(each.format(uid=uid) for each in _USER_FOLDERS)):
        # A unit that is not there is the usual case: one look each, and no exception.
        for path in (root / folder / unit, root / folder / f"{unit}.d"):
            if os.access(path, os.R_OK):
                files = sorted(path.glob("*.conf")) if path.is_dir() else [path]
                for file in files:
                    with contextlib.suppress(OSError, UnicodeDecodeError):
                        texts.append(file.read_text(encoding="utf-8"))
    return programs_of(texts)


def programs_of(texts: Iterable[str]) -> frozenset[_Program]:
    """What unit files start, as `program` names it.

    Args:
        texts: Their contents.
    """
    found = set()
    for text in texts:
        for line in unitfile.parse(text):
            if line.section == "Service" and line.name == "ExecStart":
                with contextlib.suppress(UnderstudyError):
                    words = unitfile.split(line.value.lstrip(_PREFIXES))
                    if one := program(words):
                        found.add(one)
    return frozenset(found)


@dataclass(slots=True)
class _Candidate:
    """A process, or the sockets of one that may not be seen, and what speaks for a copy."""

    singleton: Singleton
    pid: int | None
    cgroup: str
    uid: int
    command: str
    seen: dict[str, None] = field(default_factory=dict)


class _Search:
    """One search. All of /proc is read once, and what is a candidate more closely."""

    def __init__(self, singletons: Sequence[Singleton], root: Path) -> None:
        self._root = root
        self._proc = str(root / "proc")
        self._singletons = singletons
        self._commands = dict(_commands(self._proc))
        self._here = self._network("self")
        self._cgroups: dict[int, str] = {}
        self._candidates: dict[tuple[str, object], _Candidate] = {}
        self._by_unit = {one.unit: one for one in singletons}

    def by_program(self) -> None:
        """By what a process runs, and by what its unit is called."""
        wanted = {each: singleton for singleton in self._singletons for each in singleton.programs}
        names = {name for kind, name in wanted if kind == "program"}
        for pid, argv in self._commands.items():
            one = program(argv)
            if one not in wanted:
                executable = _link(f"{self._proc}/{pid}/exe").removesuffix(" (deleted)")
                name = executable.rpartition("/")[2]
                one = ("program", name) if name in names else None
            if one is not None:
                what = f"program {one[1]}"
                self._add(wanted[one], pid, what)

    def by_port_here(self, sockets: Sockets | None) -> None:
        """By standard ports in the caller's network, other users' sockets included."""
        from understudy.ports import describe, snapshot

        try:
            bound = snapshot() if sockets is None else sockets
            for singleton in self._singletons:
                production = self._production_ids(singleton)
                foreign = [
                    one
                    for transport, number in singleton.ports
                    for one in bound.bound(transport, number)
                    if one.listening and one.cgroup not in production
                ]
                holders = describe(foreign) if foreign else []
                groups: dict[object, list[_Key]] = {}
                for holder in holders:
                    key = holder.pid or (holder.cgroup, holder.uid)
                    assert holder.transport is not None
                    groups.setdefault(key, []).append((holder.transport, holder.port))
                    # A socket unit, or the manager that holds its socket, is no copy of anything.
                    if (holder.unit or "").endswith(".socket") or holder.unit == "init.scope":
                        groups.pop(key)
                for holder in holders:
                    key = holder.pid or (holder.cgroup, holder.uid)
                    if held := groups.pop(key, None):
                        self._add_ports(
                            singleton, holder.pid, held, holder.cgroup, holder.uid, holder.command
                        )
        except PortError:  # no sock_diag, or no cgroups: then by program only
            return

    def by_port_elsewhere(self) -> None:
        """By standard ports in every other network that has a process this user may look at."""
        networks: dict[str, list[int]] = {}
        for pid in self._commands:
            network = self._network(pid)
            if network not in ("", self._here):
                networks.setdefault(network, []).append(pid)
        for pids in networks.values():
            inodes = {} if _is_of_ours(self._cgroup(pids[0])) else self._bound_in(pids[0])
            if not inodes:
                continue
            for pid in pids:
                opened = _socket_inodes(f"{self._proc}/{pid}/fd")
                held = {inodes[inode] for inode in opened & inodes.keys()}
                for singleton in self._singletons:
                    if mine := sorted(held & singleton.ports.keys()):
                        self._add_ports(singleton, pid, mine, "", 0, "")

    def found(self) -> list[Stray]:
        """What is left when production, instances and rehearsals are taken out."""
        left = [one for one in self._candidates.values() if not self._is_expected(one)]
        pids = {(one.singleton.service, one.pid) for one in left if one.pid is not None}
        answer = []
        for one in left:
            parent = self._parent(one.pid)
            if (one.singleton.service, parent) not in pids:  # else a worker of one that is listed
                answer.append(self._stray(one, parent))
        return sorted(answer, key=lambda one: (one.service, one.pid or 0))

    def _bound_in(self, pid: int) -> dict[int, _Key]:
        """The sockets on standard ports in the network of a process, by inode."""
        folder = f"{self._proc}/{pid}/net"
        # The tables are slow to read, and most networks have nothing to show in them.
        if not _has_tcp(folder):
            return {}
        wanted = {key for singleton in self._singletons for key in singleton.ports}
        if self._root == Path("/"):
            with (
                contextlib.suppress(NetworkError, PortError),
                Namespace.of(pid) as network,
                network.sock_diag() as netlink,
            ):
                from understudy.ports import snapshot

                found = snapshot(netlink=netlink)
                return {
                    one.inode: key for key in wanted for one in found.bound(*key) if one.listening
                }
        return _bound_in(folder, wanted)

    def _add_ports(
        self,
        singleton: Singleton,
        pid: int | None,
        held: Collection[_Key],
        cgroup: str,
        uid: int,
        command: str,
    ) -> None:
        """One port may be anybody's; who has two of them plays this part."""
        known = self._known(singleton, pid, cgroup)
        if known is None and len(set(held)) < min(2, len(singleton.ports)):
            return
        for key in held:
            what = f"port {key[1]} ({singleton.ports[key]})"
            if known is not None:
                known.seen[what] = None
            elif pid is not None:
                self._add(singleton, pid, what)
            else:
                one = self._candidates.setdefault(
                    (singleton.service, (cgroup, uid)),
                    _Candidate(singleton, None, cgroup, uid, command),
                )
                one.seen[what] = None

    def _known(self, singleton: Singleton, pid: int | None, cgroup: str) -> _Candidate | None:
        """The candidate that these sockets belong to; another user's is known by its cgroup."""
        if pid is not None:
            return self._candidates.get((singleton.service, pid))
        alike = [
            one
            for one in self._candidates.values()
            if one.singleton is singleton and cgroup and one.cgroup == cgroup
        ]
        return alike[0] if len(alike) == 1 else None

    def _add(self, singleton: Singleton, pid: int, what: str) -> None:
        key = (singleton.service, pid)
        if key not in self._candidates:
            try:
                uid = os.stat(f"{self._proc}/{pid}").st_uid  # noqa: PTH116 - no Path for each
            except OSError:  # it has just ended
                return
            command = shlex.join(self._commands.get(pid, []))
            self._candidates[key] = _Candidate(singleton, pid, self._cgroup(pid), uid, command)
        self._candidates[key].seen[what] = None

    def _is_expected(self, one: _Candidate) -> bool:
        if self._is_production(one.cgroup, one.singleton.unit) or _is_of_ours(one.cgroup):
            return True
        if one.pid is None:
            return False
        try:
            environment = Path(f"{self._proc}/{one.pid}/environ").read_bytes()
        except OSError:  # another user's: that user's doctor sees more
            return f"/{OURS}command-" in one.cgroup
        return any(entry.startswith(_PRIVATE) for entry in environment.split(b"\0"))

    def _is_production(self, path: str, unit: str) -> bool:
        """Whether a cgroup is production's: the system's, or else the caller's own."""
        before, found, _after = path.partition(f"/{unit}")
        if not found or cgroups.unit_of(f"{before}{found}") != unit:
            return False
        above = [segment for segment in before.split("/") if segment]
        if all(segment.endswith(".slice") for segment in above):
            return True
        own = f"user@{os.geteuid()}.service"
        outside = [segment for segment in above if not segment.endswith(".slice")]
        return os.geteuid() != 0 and outside == [own] and not self._has_system_unit(unit)

    def _has_system_unit(self, unit: str) -> bool:
        return any(os.access(self._root / folder / unit, os.F_OK) for folder in UNIT_FOLDERS)

    def _production_ids(self, singleton: Singleton) -> frozenset[int]:
        """The ids of production's cgroups, as far as they are known without a walk."""
        paths = {f"/system.slice/{singleton.unit}"}
        paths |= {
            one.cgroup
            for one in self._candidates.values()
            if self._is_production(one.cgroup, singleton.unit)
        }
        return frozenset(number for path in paths for number in cgroups.cgroup_ids(path))

    def _stray(self, one: _Candidate, parent: int | None) -> Stray:
        unit, within, *_ = (*cgroups.units_of(one.cgroup), None, None)
        seen = list(one.seen)
        if unit == one.singleton.unit:
            seen.append(f"unit {unit}")
        return Stray(
            service=one.singleton.service,
            production=one.singleton.unit,
            pid=one.pid,
            command=one.command,
            user=user_name(one.uid),
            uid=one.uid,
            unit=unit,
            within=within,
            cgroup=one.cgroup,
            parent=parent,
            parent_command=shlex.join(self._commands.get(parent or 0, [])),
            alone=one.pid is None or self._is_alone(one.pid, one.cgroup),
            elsewhere=one.pid is not None and self._network(one.pid) not in ("", self._here),
            seen=tuple(seen),
        )

    def _is_alone(self, pid: int, cgroup: str) -> bool:
        family = {pid}
        # A child may have a lower number than its parent: until there are no more.
        others = {one for one in self._commands if one != pid and self._cgroup(one) == cgroup}
        while children := {one for one in others if self._parent(one) in family}:
            family |= children
            others -= children
        return not others

    def _network(self, pid: int | str) -> str:
        return _link(f"{self._proc}/{pid}/ns/net")

    def _cgroup(self, pid: int) -> str:
        if pid not in self._cgroups:
            lines = _read(f"{self._proc}/{pid}/cgroup").decode(errors="replace").splitlines()
            path = next((line[3:] for line in lines if line.startswith("0::")), "")
            self._cgroups[pid] = path
        return self._cgroups[pid]

    def _parent(self, pid: int | None) -> int | None:
        if pid is None:
            return None
        # The second field is the name, which may hold anything, spaces and brackets too.
        words = _read(f"{self._proc}/{pid}/stat").rpartition(b")")[2].split()
        return int(words[1]) or None if len(words) > 1 else None


def _is_of_ours(cgroup: str) -> bool:
    """Whether a cgroup is that of an instance, of what belongs to one, or of a bed."""
    return any(
        word.startswith(f"{OURS}bed-") or word.endswith((".service", ".socket"))
        for word in cgroup.split("/")
        if word.startswith(OURS)
    )


def _commands(proc: str) -> Iterator[tuple[int, list[str]]]:
    """Every process's words; kernel threads have none and are left out."""
    for name in os.listdir(proc):  # noqa: PTH208 - this is done in every test run
        if name.isdecimal():
            text = _read(f"{proc}/{name}/cmdline")
            if text:
                words = text.decode(errors="surrogateescape").split("\0")
                yield int(name), words[:-1] if words[-1] == "" else words


def _has_tcp(folder: str) -> bool:
    """Whether a network has any TCP socket (proc_pid_net(5), sockstat)."""
    texts = (_read(f"{folder}/sockstat"), _read(f"{folder}/sockstat6"))
    # One that has no such file may have some.
    return not all(texts) or any(re.search(rb"TCP6?: inuse [1-9]", text) for text in texts)


def _bound_in(folder: str, wanted: Collection[_Key]) -> dict[int, _Key]:
    """The listening sockets of a network that are on wanted ports, by inode (proc_net_tcp(5))."""
    found: dict[int, _Key] = {}
    for transport in Transport:
        state = _LISTEN if transport is Transport.TCP else _UNCONNECTED
        for suffix in ("", "6"):
            text = _read(f"{folder}/{transport}{suffix}").decode(errors="replace")
            for line in text.splitlines()[1:]:
                words = line.split()
                if len(words) > 9 and words[3] == state:
                    key = (transport, int(words[1].rpartition(":")[2], 16))
                    if key in wanted:
                        found[int(words[9])] = key
    return found


def _socket_inodes(folder: str) -> set[int]:
    inodes = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208
            kind, _, number = _link(f"{folder}/{name}").partition(":")
            if kind == "socket":
                inodes.add(int(number.strip("[]")))
    return inodes


def _read(path: str) -> bytes:
    """A file of /proc; nothing where it may not be read or the process has ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - no Path for each process
    except OSError:
        return ""


def _short(command: str) -> str:
    """The program of a command line, with what an interpreter runs."""
    with contextlib.suppress(ValueError):
        words = shlex.split(command)
        if words:
            name = words[0].rpartition("/")[2]
            what = program(words)
            if what is not None and what[0] != "program":
                return f"{name} {'' if what[0] == 'script' else what[0] + ' '}{what[1]}"
            return name
    return ""
