"""What testers may use of a host: ``[testers]`` in /etc/understudy/understudy.toml. Pure.

```toml
[testers]
memory_max = "50%"

[testers.anna]
memory_max = "16G"
```
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Final

from understudy.errors import DeployError, nearest_hint

SETTINGS: Final = "/etc/understudy/understudy.toml"
"""Where an administrator says so."""

DEFAULTS: Final[Mapping[str, str]] = {
    "memory_high": "40%",
    "memory_max": "50%",
    "tasks_max": "25%",
    "cpu_weight": "50",
    "io_weight": "50",
}
"""Of each tester, where nothing else is said; percentages are of what the machine has."""

DIRECTIVES: Final[Mapping[str, str]] = {
    "memory_high": "MemoryHigh",
    "memory_max": "MemoryMax",
    "tasks_max": "TasksMax",
    "cpu_weight": "CPUWeight",
    "io_weight": "IOWeight",
}
"""The directive of each (systemd.resource-control(5))."""

CONTROLLERS: Final[Mapping[str, str]] = {
    "MemoryHigh": "memory",
    "MemoryMax": "memory",
    "TasksMax": "pids",
    "CPUWeight": "cpu",
    "IOWeight": "io",
}
"""Without which a directive is accepted, and not enforced."""

_PERCENT = r"[1-9][0-9]?%|100%"
_FORMS: Final = {
    "memory": (re.compile(rf"[1-9][0-9]*[KMGT]?|{_PERCENT}|infinity"), '"8G" or "50%"'),
    "tasks": (re.compile(rf"[1-9][0-9]*|{_PERCENT}|infinity"), '2000 or "25%"'),
    "weight": (re.compile(r"[1-9][0-9]{0,3}|10000"), "a number from 1 to 10000"),
}


def bounds_of(tester: str, text: str) -> dict[str, str]:
    """What a tester may use, as directives and their values.

    Args:
        tester: The user's name.
        text: The content of the settings file; "" for none.

    Raises:
        DeployError: A key or a value is none; the message names it.
    """
    found = dict(DEFAULTS)
    table = _table(text)
    for name, value in table.items():
        if name in DEFAULTS:
            found[name] = _value(f"testers.{name}", name, value)
    for name, own in table.items():
        if name in DEFAULTS:
            continue
        if not isinstance(own, dict):
            raise _wrong(
                f"testers.{name}",
                "unknown key",
                f"{nearest_hint(name, DEFAULTS)}allowed: {', '.join(DEFAULTS)}, and a table for a "
                "tester of its own: [testers.anna]",
            )
        for key, value in own.items():
            if key not in DEFAULTS:
                near = nearest_hint(key, DEFAULTS)
                allowed = f"{near}allowed: {', '.join(DEFAULTS)}"
                raise _wrong(f"testers.{name}.{key}", "unknown key", allowed)
            checked = _value(f"testers.{name}.{key}", key, value)
            if name == tester:
                found[key] = checked
    return {DIRECTIVES[name]: value for name, value in found.items()}


def _table(text: str) -> Mapping[str, object]:
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise DeployError(f"Cannot read '{SETTINGS}': not TOML: {exc}") from exc
    table = settings.get("testers", {})
    if not isinstance(table, dict):
        raise _wrong("testers", "not a table", 'write it as [testers], then memory_max = "50%"')
    return table


def _value(where: str, name: str, value: object) -> str:
    form, example = _FORMS[name.partition("_")[0] if "weight" not in name else "weight"]
    text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
    if not form.fullmatch(text):
        raise _wrong(where, f"{value!r} cannot be meant", f"write it as {example}")
    return text


def _wrong(where: str, what: str, hint: str) -> DeployError:
    return DeployError(f"Cannot read '{SETTINGS}': {where}: {what}", hint=hint)
