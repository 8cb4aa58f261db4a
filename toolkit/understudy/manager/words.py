"""Unit-file words as the values that D-Bus wants, and back. Pure.

``systemd-run`` and ``systemctl`` translate between the two; who talks to a manager by D-Bus
has to do it himself. The types are those of org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterable
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


def _fields(name: str, value: str) -> list[Property]:
    return [Property(name, "aay", [list(field.encode()) for field in split(value, relaxed=True)])]


def _exec(name: str, value: str) -> list[Property]:
    argv = split(value, relaxed=True)
    if not argv or not argv[0].lstrip("-"):
        raise ValueError("no program is named")
    argv[0], ignore = argv[0].removeprefix("-"), argv[0].startswith("-")
    if argv[0][0] in "@:+!":
        raise ValueError(f"of the prefixes of a command line only '-' is known here: {value}")
    return [Property(name, "a(sasb)", [(argv[0], argv, ignore)])]


_DIRECTIVES: dict[str, Callable[[str, str], list[Property]]] = {
    **dict.fromkeys(("After", "Before", "BindsTo", "PartOf", "Requires", "Wants"), _words),
    **dict.fromkeys(("CollectMode", "Description", "KillMode", "Restart", "Slice", "Type"), _text),
    **dict.fromkeys(("StandardError", "StandardInput", "StandardOutput"), _text),
    **dict.fromkeys(("Group", "SyslogIdentifier", "User", "WorkingDirectory"), _text),
    **dict.fromkeys(("DefaultDependencies", "RemainAfterExit", "StopWhenUnneeded"), _boolean),
    **dict.fromkeys(("RuntimeMaxSec", "TimeoutStartSec", "TimeoutStopSec"), _span),
    **dict.fromkeys(("ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost"), _exec),
    **dict.fromkeys(("Environment", "RuntimeDirectory"), _words),
    **dict.fromkeys(("RuntimeDirectoryMode", "UMask"), _mode),
    **dict.fromkeys(("LimitCORE", "LimitNOFILE", "LimitNPROC"), _limit),
    "KillSignal": _signal,
    "LogExtraFields": _fields,
    "OOMScoreAdjust": _integer,
}
