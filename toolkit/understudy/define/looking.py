"""Find out what an installed unit is told, and what it has open: it is looked at and not touched.

Who may not see something gets `Facts` without it; `understudy.define.writing` says what is missing.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from glob import glob as _glob
from pathlib import Path
from typing import Final

from understudy import ports
from understudy.define import known, words
from understudy.define.facts import Facts, Listener, PathKind, Source
from understudy.define.installed import PROGRAMS, SUFFIXES, Unit, of_service, sockets, variables
from understudy.errors import NoManagerError, NoSuchUnitError, UsageError
from understudy.manager import Manager, connect
from understudy.model import HOST, ManagerKind, Transport
from understudy.ports import cgroups

TEXT_MAX_BYTES: Final = 256 * 1024
"""A configuration file that is larger is none."""

ANSWER_TIMEOUT_S: Final = 1.0

_INCLUDED_MAX: Final = 200
_SUFFIX = re.compile(
    r"\.(?:service|socket|timer|target|path|mount|automount|swap|device|slice|scope)$"
)
_RUNNING = frozenset({"active", "reloading", "activating", "deactivating"})


def managers(kind: ManagerKind | None) -> Iterator[Manager]:
    """The managers that are asked for a unit, in this order.

    Args:
        kind: The one; None: the system's, and for others than root their own after it.

    Raises:
        NoManagerError: None is in reach.
    """
    if kind is not None:
        yield connect(kind)
        return
    fault: NoManagerError | None = None
    for one in (ManagerKind.SYSTEM, ManagerKind.USER):
        if one is ManagerKind.USER and os.geteuid() == 0:
            break
        try:
            yield connect(one)
        except NoManagerError as exc:
            fault = exc
    if fault is not None:
        raise fault


def find(unit: str, kind: ManagerKind | None) -> tuple[str, Manager]:
    """The unit that is meant, an alias followed, and the manager that has it.

    Args:
        unit: A service's name, with or without ``.service``.
        kind: As for `managers`.

    Raises:
        UsageError: It is no service, a template without an instance, masked, or cannot be read
            by its manager.
        NoSuchUnitError: No manager has a unit of that name.
        ManagerError: A manager cannot be reached or refuses.
    """
    name = unit if _SUFFIX.search(unit) else f"{unit}.service"
    if not name.endswith(".service"):
        raise UsageError(
            f"Cannot define '{name}': only a service can have instances",
            hint="name the service itself, as systemctl list-units --type=service does",
        )
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,255}", name):
        raise UsageError(f"Cannot define '{name}': that is no name of a unit")
    if name.endswith("@.service"):
        raise UsageError(
            f"Cannot define '{name}': it is a template, and says nothing by itself",
            hint=f"name an instance of it: {name.replace('@.', '@NAME.')}",
        )
    asked = []
    for manager in managers(kind):
        found = manager.properties(name, ("Id", "LoadState", "LoadError", "FragmentPath"))
        state = found.get("LoadState", "")
        if state == "masked":
            raise UsageError(
                f"Cannot define '{name}': it is masked, and has no text",
                hint=f"systemctl unmask {name}, if it is to be used at all",
            )
        if state == "loaded" and found.get("FragmentPath"):
            return found["Id"], manager
        if state not in ("not-found", "loaded"):
            said = found.get("LoadError", "").strip() or state
            raise UsageError(
                f"Cannot define '{name}': its manager cannot read it: {said}",
                hint=f"systemd-analyze verify {name}",
            )
        asked.append(str(manager.kind))
    raise NoSuchUnitError(
        f"Cannot define '{name}': no unit file of that name ({' and '.join(asked)} manager)",
        hint="those there are: systemctl list-unit-files --type=service",
    )


def look(name: str, manager: Manager) -> Facts:
    """Find out what there is to find out of a unit.

    Args:
        name: Its name, as `find` gives it.
        manager: Its manager.

    Raises:
        ManagerError: The unit's files cannot be read.
        PortError: The kernel does not tell who listens.
    """
    try:
        text = manager.cat(name)
    except UnicodeDecodeError as exc:
        raise UsageError(f"Cannot define '{name}': its text is not UTF-8") from exc
    specifiers = _specifiers(manager, name)
    unit = Unit(name, text, specifiers)
    status = manager.status([name])[name]
    running = status.active_state in _RUNNING and bool(status.control_group)
    environment_files = {path: _read(path) for path in _expanded(unit.environment_files)}
    environ = of_service(_environ(status.main_pid)) if running else {}
    told = {
        **{
            key: value
            for source in environment_files.values()
            for key, value in variables(source.text or "").items()
        },
        **environ,
        **unit.environment,
    }
    files, matches = _files(unit, told)
    triggers = manager.properties(name, ("TriggeredBy",)).get("TriggeredBy", "").split()
    sockets_of = {one: manager.cat(one) for one in triggers if one.endswith(".socket")}
    texts = [*unit.arguments, *told.values()]
    texts += [one.text for one in files.values() if one.text is not None]
    paths = {path.rstrip("/") for text in texts for _, _, path in words.paths(text)}
    paths |= {path for word in (unit.program, *unit.arguments) if (path := unit.absolute(word))}
    kinds = {path: _kind(path) for path in paths | set(unit.made)}
    seen, written, own_sockets = _open(status.control_group if running else "")
    listeners = _listeners(status.control_group) if running else ()
    named = {path for path, kind in kinds.items() if kind is PathKind.SOCKET}
    return Facts(
        unit=name,
        kind=manager.kind,
        text=text,
        running=running,
        listeners=listeners,
        sockets=sockets_of,
        specifiers=specifiers,
        files=files,
        matches=matches,
        kinds=kinds,
        environment_files=environment_files,
        environ=environ,
        others_sockets=frozenset(named - own_sockets) if running and seen else frozenset(),
        closed=frozenset(
            path
            for path, kind in kinds.items()
            if kind in (PathKind.FILE, PathKind.HIDDEN) and path not in files and _is_closed(path)
        )
        if manager.kind is ManagerKind.SYSTEM
        else frozenset(),
        written=frozenset(written | own_sockets),
        seen=seen,
        answers=_answers(listeners, sockets_of) if running else {},
        known_as=_known_as(listeners, sockets_of),
    )


def unit_names(manager: Manager) -> list[str]:
    """The services that a manager has files of, templates left out: for completion.

    Args:
        manager: The manager.
    """
    kind = manager.kind
    places = [Path("/etc/systemd", kind), Path("/usr/lib/systemd", kind), manager.unit_dir]
    if kind is ManagerKind.USER:
        places.append(Path.home() / ".config/systemd/user")
    found = {path.name for place in places for path in place.glob("*.service")}
    return sorted(name for name in found if not name.endswith("@.service"))


def _specifiers(manager: Manager, name: str) -> dict[str, str]:
    if manager.kind is ManagerKind.USER:
        home = str(Path.home())
        config = os.environ.get("XDG_CONFIG_HOME", f"{home}/.config")
        return {
            "t": str(manager.runtime_dir),
            "h": home,
            "E": config,
            "S": os.environ.get("XDG_STATE_HOME", f"{home}/.local/state"),
            "C": os.environ.get("XDG_CACHE_HOME", f"{home}/.cache"),
            "L": f"{os.environ.get('XDG_STATE_HOME', f'{home}/.local/state')}/log",
            "T": "/tmp",
            "V": "/var/tmp",
        }
    # In a system unit these are the manager's, whatever User= says (systemd.unit(5)).
    return {
        **{"t": "/run", "h": "/root", "E": "/etc", "S": "/var/lib", "C": "/var/cache"},
        **{"L": "/var/log", "T": "/tmp", "V": "/var/tmp"},
    }


def _expanded(patterns: Iterable[str]) -> list[str]:
    """Paths, and what the patterns among them stand for."""
    found: list[str] = []
    for pattern in patterns:
        found += _matching(pattern) if re.search(r"[*?\[]", pattern) else [pattern]
    return found


def _matching(pattern: str) -> list[str]:
    return sorted(_glob(pattern))  # noqa: PTH207 - of Path.glob no absolute pattern may be asked


def _read(path: str) -> Source:
    """A file's text, or why there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return Source(problem="is not there")
    except PermissionError:
        return Source(problem="may not be read", private=True)
    except OSError as exc:
        return Source(problem=f"cannot be read ({exc.strerror})")
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        private = _is_closed(path)
        if not stat.S_ISREG(status.st_mode):
            return Source(problem="is no file", private=private)
        content = file.read(TEXT_MAX_BYTES + 1)
    if len(content) > TEXT_MAX_BYTES or b"\0" in content:
        return Source(problem="is no text", private=private)
    try:
        return Source(text=content.decode().replace("\r\n", "\n"), private=private)
    except UnicodeDecodeError:
        return Source(problem="is no text in UTF-8", private=private)


def _files(
    unit: Unit, told: Mapping[str, str]
) -> tuple[dict[str, Source], dict[str, tuple[str, ...]]]:
    """Configuration files: those it is told of, those in the usual places, those they include."""
    files: dict[str, Source] = {}
    matches: dict[str, tuple[str, ...]] = {}
    default = known.CONFIG_DEFAULT.get(unit.stem)
    waiting = [*unit.told(told.values()), *([default] if default else []), *unit.usual()]
    environment = set(unit.environment_files)
    named = {*unit.told(told.values())}
    while waiting and len(files) < _INCLUDED_MAX:
        path = os.path.normpath(waiting.pop(0))
        if path in files or path in environment or not _is_configuration(path, path in named):
            continue
        if unit.is_state(path) and not path.endswith(SUFFIXES):
            continue
        source = files[path] = _read(path)
        if source.text is None:
            continue
        if source.text.startswith("#!"):
            del files[path]
            continue
        if path not in named and words.is_secret_file(path, source.text):
            del files[path]  # it only lies where a configuration would
            continue
        for one in words.includes(words.without_comments(source.text)):
            pattern = str(Path(path).parent / one.pattern)
            matches[pattern] = tuple(filter(os.path.isfile, _matching(pattern)))
            waiting += matches[pattern]
    return files, matches


def _is_configuration(path: str, named: bool) -> bool:
    """Whether there is a file that is neither a program nor a folder, as far as may be seen."""
    if path.endswith(PROGRAMS) or path.startswith(("/proc/", "/sys/", "/dev/")):
        return False
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except PermissionError:
        return named and path.startswith("/etc/")
    except OSError:
        return False
    return stat.S_ISREG(mode) and not mode & 0o111


def _kind(path: str) -> PathKind:
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except PermissionError:
        return PathKind.HIDDEN
    except (OSError, ValueError):
        return PathKind.ABSENT
    if stat.S_ISDIR(mode):
        return PathKind.DIRECTORY
    return PathKind.SOCKET if stat.S_ISSOCK(mode) else PathKind.FILE


def _is_closed(path: str) -> bool:
    """Whether a file, or a folder that it lies in, is not for every user."""
    place = Path(path)
    try:
        return not place.stat().st_mode & stat.S_IROTH or not all(
            folder.stat().st_mode & stat.S_IXOTH for folder in place.parents
        )
    except OSError:
        return True


def _environ(pid: int) -> dict[str, str]:
    """The environment of a process; nothing where it may not be seen."""
    with contextlib.suppress(OSError):
        rows = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        pairs = (row.decode(errors="replace").partition("=") for row in rows if b"=" in row)
        return {name: value for name, _, value in pairs}
    return {}


def _listeners(group: str) -> tuple[Listener, ...]:
    """What the processes of a control group listen on, each port once."""
    ephemeral = ports.ephemeral_ports()
    inodes = ports.socket_inodes(group)
    ids = ports.cgroup_ids(group)
    found: dict[tuple[Transport, int], Listener] = {}
    for one in ports.snapshot():
        client = one.transport is Transport.UDP and one.port in ephemeral
        if one.listening and not client and (one.cgroup in ids or one.inode in inodes):
            listener = Listener(transport=one.transport, number=one.port, address=one.address)
            key = (one.transport, one.port)
            if key not in found or ":" in found[key].address:
                found[key] = listener
    return tuple(found[key] for key in sorted(found))


def _open(group: str) -> tuple[bool, set[str], set[str]]:
    """What processes have open: if that may be seen, what they write, their unix sockets."""
    if not group:
        return True, set(), set()
    pids = cgroups.processes(group)
    seen = not pids
    written: set[str] = set()
    for pid in pids:
        try:
            links = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        seen = True
        for link in links:
            with contextlib.suppress(OSError, StopIteration):
                path = str(link.readlink())
                rows = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().splitlines()
                flags = int(next(row for row in rows if row.startswith("flags:"))[6:], 8)
                if flags & os.O_ACCMODE and Path(path).is_file():
                    written.add(path)
    return seen, written, _unix_sockets(cgroups.socket_inodes(group)) if seen else set()


def _unix_sockets(inodes: Collection[int]) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for row in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
            fields = row.split(maxsplit=7)
            if len(fields) == 8 and int(fields[6]) in inodes and fields[7].startswith("/"):
                found.add(fields[7])
    return found


def _numbers(
    listeners: Iterable[Listener], socket_units: Mapping[str, str]
) -> set[tuple[Transport, int]]:
    found = {(one.transport, one.number) for one in listeners}
    for text in socket_units.values():
        found |= {(one.transport, one.number) for one in sockets(text) if one.number}
    return found


def _known_as(
    listeners: Iterable[Listener], socket_units: Mapping[str, str]
) -> dict[tuple[Transport, int], str]:
    """The names of services(5) of its ports."""
    found = {}
    for transport, number in _numbers(listeners, socket_units):
        with contextlib.suppress(OSError):
            found[transport, number] = socket.getservbyport(number, transport.value)
    return found


def _answers(listeners: Iterable[Listener], socket_units: Mapping[str, str]) -> dict[int, int]:
    """How its TCP ports answer ``GET /``, where nothing else is known to be spoken there."""
    listeners = list(listeners)
    near = {"", "0.0.0.0", "::", "::1"}
    reached = {
        (one.transport, one.number)
        for one in listeners
        if one.address in near or one.address.startswith("127.")
    }
    names = _known_as(listeners, {})
    found = {}
    for transport, number in sorted(reached & _numbers(listeners, socket_units)):
        name = known.PORT_NAMES.get(number) or names.get((transport, number), "http")
        if transport is Transport.TCP and name in known.HTTP:
            status = _answer(number)
            if status is not None:
                found[number] = status
    return found


def _answer(number: int) -> int | None:
    connection = http.client.HTTPConnection(HOST, number, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", "/", headers={"User-Agent": "understudy"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    # 400: TLS is spoken there, or another protocol; 5xx says that it is not ready.
    return status if status < 500 and status != 400 else None
