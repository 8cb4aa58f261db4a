"""Ports that the kernel gives to no client by itself: ``net.ipv4.ip_local_reserved_ports``.

One setting has all of them, so whoever adds some has to say again what others have said
(ip-sysctl.rst in the kernel's documentation; sysctl.d(5)).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

KERNEL: Final = "proc/sys/net/ipv4/ip_local_reserved_ports"
"""What is reserved now, below the root of the file system."""

FILE: Final = "/etc/sysctl.d/99-zz-understudy.conf"
"""What is reserved at boot. Of several files the last one counts, by its name."""

_FOLDERS = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
_ASSIGNED = re.compile(
    r"\s*-?\s*net[./]ipv4[./]ip_local_reserved_ports\s*=\s*([0-9,\s-]*)", re.ASCII
)


def numbers(text: str) -> frozenset[int]:
    """The port numbers in a list such as ``8080,20000-29999``.

    Raises:
        ValueError: It is none.
    """
    found: set[int] = set()
    for part in filter(None, map(str.strip, text.split(","))):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def text_of(found: Iterable[int]) -> str:
    """The shortest such list."""
    spans: list[list[int]] = []
    for number in sorted(found):
        if spans and spans[-1][1] + 1 == number:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def now(root: Path) -> frozenset[int]:
    """What is reserved now.

    Args:
        root: The root of the file system.

    Raises:
        OSError: The kernel does not tell.
    """
    return numbers((root / KERNEL).read_text(encoding="ascii"))


def of_others(root: Path) -> frozenset[int]:
    """What others have reserved for each boot: in the last file but ours that says something.

    Args:
        root: The root of the file system.
    """
    files: dict[str, Path] = {}
    for folder in reversed(_FOLDERS):
        files |= {path.name: path for path in (root / folder).glob("*.conf")}
    files.pop(Path(FILE).name, None)
    found: frozenset[int] = frozenset()
    for path in [files[name] for name in sorted(files)]:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # a link that leads nowhere
            continue
        for match in filter(None, map(_ASSIGNED.fullmatch, lines)):
            try:
                found = numbers(match[1])
            except ValueError:
                continue
    return found


def file_text(found: Iterable[int]) -> str:
    """The file that reserves these at boot."""
    return (
        "# Written by 'understudy deploy --tester': the range of its instances, and what was\n"
        "# reserved before. Reserve others in a file of your own, and deploy again.\n"
        f"net.ipv4.ip_local_reserved_ports = {text_of(found)}\n"
    )
