"""Unit-file words as the values that D-Bus wants, and back. Pure.

``systemd-run`` and ``systemctl`` translate between the two; who talks to a manager by D-Bus
has to do it himself. The types are those of org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import errno
import re
import signal
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from understudy.errors import ManagerError, RenderError
from understudy.unitfile import split

INFINITY = 2**64 - 1
"""How D-Bus says ``infinity``, and ``not set``."""

_SECOND = 1_000_000
_SPANS = {
    **dict.fromkeys(("us", "usec", "µs"), 1),
    **dict.fromkeys(("ms", "msec"), 1_000),
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), _SECOND),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60 * _SECOND),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600 * _SECOND),
    **dict.fromkeys(("d", "day", "days"), 86400 * _SECOND),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400 * _SECOND),
}
_ALL_NAMESPACES = 0x7E020000
"""Every CLONE_NEW… flag that RestrictNamespaces= knows (linux/sched.h)."""

_MS_REC = 0x4000  # mount(2)
_ADDRESSES = {
    "any": ("0.0.0.0/0", "::/0"),
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": ("224.0.0.0/4", "ff00::/8"),
}
"""The words of IPAddressAllow= (systemd.resource-control(5))."""

_FAMILIES = {"ipv4": int(socket.AF_INET), "ipv6": int(socket.AF_INET6)}
_PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}

_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zµ]*)")


class Property(NamedTuple):
    """One property as the StartTransientUnit call takes it.

    Attributes:
        name: Its D-Bus name (``RuntimeMaxUSec``).
        signature: Its D-Bus type (``t``).
        value: Its value; arrays are lists, structs are tuples.
    """

    name: str
    signature: str
    value: object


_Translation = Callable[[str, str], list[Property]]


def microseconds(text: str) -> int:
    """A time span in microseconds (systemd.time(7)): ``90``, ``5s``, ``1min 30s``, ``infinity``.

    Raises:
        ValueError: It is none.
    """
    if text.strip() == "infinity":
        return INFINITY
    total = 0.0
    at = 0
    while at < len(text.rstrip()):
        span = _SPAN.match(text, at)
        if span is None or span.group(2) not in _SPANS:
            raise ValueError(f"not a time span: {text!r}")
        total += float(span.group(1)) * _SPANS[span.group(2)]
        at = span.end()
    if at == 0:
        raise ValueError("not a time span: ''")
    return round(total)


def boolean(text: str) -> bool:
    """A boolean (systemd.syntax(7)).

    Raises:
        ValueError: It is none.
    """
    if text in ("yes", "true", "on", "1", "y", "t"):
        return True
    if text in ("no", "false", "off", "0", "n", "f"):
        return False
    raise ValueError(f"not a boolean: {text!r}")


def environment(assignments: Iterable[str]) -> dict[str, str]:
    """Assignments (``K=V``) by name; the last of a name wins, as in systemd."""
    return dict(assignment.partition("=")[::2] for assignment in assignments)


def command(argv: Iterable[str]) -> Property:
    """``ExecStart=`` with these very arguments: ``$$`` is a ``$`` that is not expanded.

    ``ExecStartEx`` with ``no-env-expand`` would say so itself, but systemd 252 cannot read again
    what it writes down for that: after a daemon-reload the unit has a "bad unit file setting".
    """
    words = list(argv)
    literal = [word.replace("$", "$$") for word in words]
    return Property("ExecStart", "a(sasb)", [(words[0], literal, False)])


def typed(name: str, value: str) -> list[Property]:
    """A directive of a unit file as D-Bus properties.

    Args:
        name: The directive: ``RuntimeMaxSec``.
        value: What stands right of the equals sign; specifiers are not expanded.

    Raises:
        ManagerError: The directive is none of those known here, or the value is not of its type.
    """
    try:
        translate = _DIRECTIVES[name]
    except KeyError:
        known = ", ".join(sorted(_DIRECTIVES))
        raise ManagerError(
            f"Cannot set '{name}': no known property of a transient unit", hint=f"Known: {known}"
        ) from None
    try:
        return translate(name, value)
    except (ValueError, RenderError) as exc:
        raise ManagerError(f"Cannot set '{name}': {exc}") from exc


def complete_types(signature: str) -> list[str]:
    """Split a D-Bus signature into single complete types: ``sa(sv)`` is ``s`` and ``a(sv)``."""
    types = []
    start = depth = 0
    for end, char in enumerate(signature, 1):
        depth += (char == "(") - (char == ")")
        if depth == 0 and char != "a":
            types.append(signature[start:end])
            start = end
    return types


def _text(name: str, value: str) -> list[Property]:
    return [Property(name, "s", value)]


def _words(name: str, value: str) -> list[Property]:
    return [Property(name, "as", split(value, relaxed=True))]


def _boolean(name: str, value: str) -> list[Property]:
    return [Property(name, "b", boolean(value))]


def _integer(name: str, value: str) -> list[Property]:
    return [Property(name, "i", int(value))]


def _numbers(name: str, value: str) -> list[Property]:
    return [Property(name, "au", [int(word) for word in value.split()])]


def _mode(name: str, value: str) -> list[Property]:
    return [Property(name, "u", int(value, 8))]


def _span(name: str, value: str) -> list[Property]:
    return [Property(name.removesuffix("Sec") + "USec", "t", microseconds(value))]


def _signal(name: str, value: str) -> list[Property]:
    if value.isdecimal():
        return [Property(name, "i", int(value))]
    try:
        return [Property(name, "i", signal.Signals["SIG" + value.removeprefix("SIG")].value)]
    except KeyError:
        raise ValueError(f"not a signal: {value!r}") from None


def _limit(name: str, value: str) -> list[Property]:
    soft, _, hard = value.partition(":")
    return [
        Property(name, "t", _amount(hard or soft)),
        Property(f"{name}Soft", "t", _amount(soft)),
    ]


def _amount(value: str) -> int:
    return INFINITY if value == "infinity" else int(value)


def _weight(name: str, value: str) -> list[Property]:
    return [Property(name, "t", 0 if value == "idle" else int(value))]


def _fields(name: str, value: str) -> list[Property]:
    return [Property(name, "aay", [list(field.encode()) for field in split(value, relaxed=True)])]


def _number(name: str, value: str) -> list[Property]:
    return [Property(name, "u", int(value))]


def _one_of(numbers: Mapping[str, int]) -> _Translation:
    """A choice that D-Bus has as the kernel's number for it."""

    def translate(name: str, value: str) -> list[Property]:
        if value not in numbers:
            raise ValueError(f"none of {', '.join(numbers)}: {value!r}")
        return [Property(name, "i", numbers[value])]

    return translate


def _errno(name: str, value: str) -> list[Property]:
    number = int(value) if value.isdecimal() else getattr(errno, value, None)
    if not isinstance(number, int):
        raise ValueError(f"not an error number: {value!r}")
    return [Property(name, "i", number)]


def _bounding_set(name: str, value: str) -> list[Property]:
    from understudy.procfs import CAPABILITIES

    words = [word.lower().removeprefix("cap_") for word in value.split()]
    if unknown := set(words) - set(CAPABILITIES):
        raise ValueError(f"only a set of capabilities is known here, not {sorted(unknown)[0]!r}")
    return [Property(name, "t", sum(1 << CAPABILITIES.index(word) for word in {*words}))]


def _namespaces(name: str, value: str) -> list[Property]:
    # What it may still make.
    return [Property(name, "t", 0 if boolean(value) else _ALL_NAMESPACES)]


def _allowed(name: str, value: str) -> list[Property]:
    """A list that allows, or with ``~`` before it denies."""
    listed = _plain_words(value.removeprefix("~"))
    if listed == ["none"]:
        listed = []
    return [Property(name, "(bas)", (not value.startswith("~"), listed))]


def _plain_words(value: str) -> list[str]:
    if "\\" in value:
        # Which escapes are undone is another matter for each directive.
        raise ValueError("a backslash is not known here")
    return split(value)


def _paths(name: str, value: str) -> list[Property]:
    return [Property(name, "as", _plain_words(value))]


def _binds(name: str, value: str) -> list[Property]:
    binds = []
    for word in _plain_words(value):
        source, _, rest = word.partition(":")
        target, _, option = rest.partition(":")
        if ":" in option or option not in ("", "rbind", "norbind"):
            raise ValueError(f"not a bind: {word!r}")
        path = source.removeprefix("-")
        recursive = 0 if option == "norbind" else _MS_REC
        binds.append((path, target or path, path != source, recursive))
    return [Property(name, "a(ssbt)", binds)]


def _mounts(name: str, value: str) -> list[Property]:
    pairs = [word.partition(":") for word in _plain_words(value)]
    return [Property(name, "a(ss)", [(path, options) for path, _, options in pairs])]


def _environment_file(_name: str, value: str) -> list[Property]:
    path = value.removeprefix("-")
    if not path.startswith("/"):
        raise ValueError(f"not an absolute path: {value!r}")
    return [Property("EnvironmentFiles", "a(sb)", [(path, path != value)])]


def _path_exists(name: str, value: str) -> list[Property]:
    kind = "Asserts" if name.startswith("Assert") else "Conditions"
    if not value.startswith("/"):
        raise ValueError(f"not an absolute path: {value!r}")
    return [Property(kind, "a(sbbs)", [(name, False, False, value)])]


def _addresses(name: str, value: str) -> list[Property]:
    import ipaddress

    found = []
    for word in _plain_words(value):
        for text in _ADDRESSES.get(word, (word,)):
            net = ipaddress.ip_network(text, strict=False)
            family = socket.AF_INET if net.version == 4 else socket.AF_INET6
            found.append((int(family), list(net.network_address.packed), net.prefixlen))
    return [Property(name, "a(iayu)", found)]


def _bound_ports(name: str, value: str) -> list[Property]:
    """Rules as systemd.resource-control(5) has them: ``tcp:8000-8010``, ``ipv4:udp``, ``any``."""
    rules = []
    for word in value.split():
        *kinds, numbers = word.split(":")
        family = protocol = 0
        for kind in kinds:
            if kind in _FAMILIES and not family and not protocol:
                family = _FAMILIES[kind]
            elif kind in _PROTOCOLS and not protocol:
                protocol = _PROTOCOLS[kind]
            else:
                raise ValueError(f"not a port to bind: {word!r}")
        if numbers in _FAMILIES or numbers in _PROTOCOLS:
            family, protocol = _FAMILIES.get(numbers, family), _PROTOCOLS.get(numbers, protocol)
            numbers = "any"
        first, _, last = numbers.partition("-")
        count = 0 if numbers == "any" else int(last or first) - int(first) + 1
        rules.append((family, protocol, count, int(first) if count else 0))
    return [Property(name, "a(iiqq)", rules)]


def _exec(name: str, value: str) -> list[Property]:
    argv = split(value, relaxed=True)
    if not argv or not argv[0].lstrip("-"):
        raise ValueError("no program is named")
    argv[0], ignore = argv[0].removeprefix("-"), argv[0].startswith("-")
    if argv[0][0] in "@:+!":
        raise ValueError(f"of the prefixes of a command line only '-' is known here: {value}")
    return [Property(name, "a(sasb)", [(argv[0], argv, ignore)])]


_SWITCHES = """
    DefaultDependencies DynamicUser LockPersonality MemoryDenyWriteExecute NoNewPrivileges
    PrivateDevices PrivateIPC PrivateMounts PrivateNetwork PrivateTmp PrivateUsers ProtectClock
    ProtectControlGroups ProtectHostname ProtectKernelLogs ProtectKernelModules
    ProtectKernelTunables RemainAfterExit RemoveIPC RestrictRealtime RestrictSUIDSGID SendSIGHUP
    SendSIGKILL StopWhenUnneeded
"""
_TEXTS = """
    CollectMode Description DevicePolicy FailureAction Group KillMode NetworkNamespacePath
    NotifyAccess ProcSubset ProtectHome ProtectProc ProtectSystem Restart RuntimeDirectoryPreserve
    Slice StandardError StandardInput StandardOutput SuccessAction SyslogIdentifier Type User
    WorkingDirectory
"""
_PATHS = "ExecPaths InaccessiblePaths NoExecPaths ReadOnlyPaths ReadWritePaths"
_SPANS_OF_TIME = """
    RestartSec RuntimeMaxSec StartLimitIntervalSec TimeoutAbortSec TimeoutStartSec TimeoutStopSec
"""
_DIRECTIVES: dict[str, _Translation] = {
    **dict.fromkeys(("After", "Before", "BindsTo", "OnSuccess", "PartOf"), _words),
    **dict.fromkeys(("Documentation", "Requires", "Requisite", "Wants"), _words),
    **dict.fromkeys(("Environment", "JoinsNamespaceOf", "RuntimeDirectory"), _words),
    **dict.fromkeys(_TEXTS.split(), _text),
    **dict.fromkeys(_SWITCHES.split(), _boolean),
    **dict.fromkeys(_SPANS_OF_TIME.split(), _span),
    **dict.fromkeys(_PATHS.split(), _paths),
    **dict.fromkeys(("ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost"), _exec),
    **dict.fromkeys(("RuntimeDirectoryMode", "UMask"), _mode),
    **dict.fromkeys(("LimitCORE", "LimitNOFILE", "LimitNPROC"), _limit),
    "EnvironmentFile": _environment_file,
    **dict.fromkeys(("AssertPathExists", "ConditionPathExists"), _path_exists),
    **dict.fromkeys(("BindPaths", "BindReadOnlyPaths"), _binds),
    **dict.fromkeys(("CPUSchedulingPriority", "Nice", "OOMScoreAdjust"), _integer),
    **dict.fromkeys(("IPAddressAllow", "IPAddressDeny"), _addresses),
    **dict.fromkeys(("RestrictAddressFamilies", "SystemCallFilter"), _allowed),
    **dict.fromkeys(("SocketBindAllow", "SocketBindDeny"), _bound_ports),
    "CPUWeight": _weight,
    "CPUSchedulingPolicy": _one_of({"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5}),
    "CapabilityBoundingSet": _bounding_set,
    "IOSchedulingClass": _one_of({"none": 0, "realtime": 1, "best-effort": 2, "idle": 3}),
    "KillSignal": _signal,
    "PIDs": _numbers,
    "LogExtraFields": _fields,
    "RestrictNamespaces": _namespaces,
    "StartLimitBurst": _number,
    "SystemCallArchitectures": _paths,
    "SystemCallErrorNumber": _errno,
    "TemporaryFileSystem": _mounts,
}
