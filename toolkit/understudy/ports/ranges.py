"""The range that instances take their ports from, and where it is set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from understudy.errors import PortError, nearest_hint

BLOCK = 16
"""Ports in a block. A block begins at a multiple of it, on every host and for every user."""

VARIABLE = "UNDERSTUDY_PORT_RANGE"
"""The environment variable that sets the range."""

_IPV4 = Path("/proc/sys/net/ipv4")
_FILES = ("~/.config/understudy/understudy.toml", "/etc/understudy/understudy.toml")
_KEYS = ("port_range",)
_HOST_KEYS = (*_KEYS, "testers")
"""What the last file may have: of testers, `understudy.deploy` reads it."""

_EXAMPLE = 'port_range = "20000-29999"'


@dataclass(frozen=True, slots=True)
class PortRange:
    """A range of port numbers.

    Attributes:
        first: The lowest number.
        last: The highest.
        origin: Where it was set, for people: ``UNDERSTUDY_PORT_RANGE``, a file's name.

    Raises:
        PortError: It reaches below 1024 or above 65535, or holds no whole block.
    """

    first: int = 20000
    last: int = 29999
    origin: str = field(default="the default", compare=False)

    def __post_init__(self) -> None:
        if self.first < 1024 or self.last > 65535:
            raise self._unusable("ports for everybody are 1024-65535")
        if not self.blocks:
            raise self._unusable(f"it holds no whole block of {BLOCK} ports")

    @classmethod
    def parse(cls, text: str, *, origin: str = "the port range") -> PortRange:
        """Read ``FIRST-LAST``, both included.

        Args:
            text: ``20000-29999``.
            origin: Where the text comes from; errors name it.

        Raises:
            PortError: It is not a range, or not one that can be used.
        """
        match = re.fullmatch(r"\s*([0-9]{1,5})\s*-\s*([0-9]{1,5})\s*", text)
        if match is None:
            raise PortError(
                f"Cannot read the port range '{text}' ({origin})",
                hint="Write it as FIRST-LAST: 20000-29999",
            )
        return cls(int(match[1]), int(match[2]), origin)

    @property
    def blocks(self) -> range:
        """The first numbers of the blocks that lie wholly inside."""
        return range(-(-self.first // BLOCK) * BLOCK, self.last + 2 - BLOCK, BLOCK)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def check_ephemeral(self) -> None:
        """Demand that the kernel never gives these ports to a client by itself.

        Raises:
            PortError: The range and ``net.ipv4.ip_local_port_range`` overlap in a port that is
                not in ``net.ipv4.ip_local_reserved_ports`` (the kernel's ip-sysctl.rst).
        """
        ephemeral = ephemeral_ports()
        overlap = range(max(self.first, ephemeral.start), min(self.last + 1, ephemeral.stop))
        if overlap and not _reserved_ports().issuperset(overlap):
            raise self._unusable(
                f"the kernel gives {overlap[0]}-{overlap[-1]} to clients"
                f" (ip_local_port_range is {ephemeral[0]}-{ephemeral[-1]})",
                hint=f"Set {VARIABLE} to a range outside, or reserve this one: "
                f"sysctl net.ipv4.ip_local_reserved_ports={self}",
            )

    def is_reserved(self) -> bool:
        """Whether the kernel gives none of these ports to a client, whatever its range is.

        Raises:
            PortError: The kernel does not tell.
        """
        return _reserved_ports().issuperset(range(self.first, self.last + 1))

    def _unusable(self, why: str, hint: str | None = None) -> PortError:
        return PortError(
            f"Cannot use the port range {self} ({self.origin}): {why}",
            hint=hint or f"Set another: {VARIABLE}=20000-29999",
        )


def block_of(number: int) -> int:
    """The first number of the block that a port lies in."""
    return number - number % BLOCK


def configured_range(argument: str | None = None) -> PortRange:
    """The range that is set for this user on this host.

    The first of these that is set counts: the argument, the environment variable
    ``UNDERSTUDY_PORT_RANGE``, ``port_range`` in ``~/.config/understudy/understudy.toml`` or in
    ``/etc/understudy/understudy.toml``, else 20000-29999.

    Args:
        argument: What the caller asks for: ``20000-29999``.

    Raises:
        PortError: What is set is not a usable range; the error names where it is set.
    """
    if argument is not None:
        return PortRange.parse(argument, origin="given")
    if text := os.environ.get(VARIABLE):
        return PortRange.parse(text, origin=VARIABLE)
    return _from_files(_FILES)


def host_range() -> PortRange:
    """The range that is set for all users of this host, whatever one of them may have set.

    Raises:
        PortError: What is set is not a usable range.
    """
    return _from_files(_FILES[-1:])


def _from_files(names: Iterable[str]) -> PortRange:
    for name in names:
        text = _read_setting(name)
        if text is not None:
            return PortRange.parse(text, origin=f"port_range in {name}")
    return PortRange()


def ephemeral_ports() -> range:
    """The ports that the kernel gives to clients (``net.ipv4.ip_local_port_range``; IPv6 too).

    Raises:
        PortError: The kernel does not tell.
    """
    first, last = _read_sysctl("ip_local_port_range").split()
    return range(int(first), int(last) + 1)


def _reserved_ports() -> set[int]:
    numbers: set[int] = set()
    for part in _read_sysctl("ip_local_reserved_ports").strip().split(","):
        if part:
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _read_sysctl(name: str) -> str:
    try:
        return (_IPV4 / name).read_text(encoding="ascii")
    except OSError as exc:
        raise PortError(f"Cannot read '{exc.filename}': {exc.strerror}") from exc


def _read_setting(name: str) -> str | None:
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # a user without a home
        return None
    if not os.access(path, os.F_OK):  # or a home of somebody else's, after setpriv(1)
        return None
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise PortError(f"Cannot read '{path}': {exc.strerror}") from exc
    import tomllib  # where no file is, nobody pays for it

    try:
        settings = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise PortError(
            f"Cannot read '{path}': not TOML: {exc}", hint=f"Write: {_EXAMPLE}"
        ) from exc
    known = _HOST_KEYS if name == _FILES[-1] else _KEYS
    for key in settings:
        if key not in known:
            raise PortError(
                f"Cannot read '{path}': {key}: unknown key",
                hint=f"{nearest_hint(key, known)}allowed: {', '.join(known)}",
            )
    setting = settings.get("port_range")
    if setting is not None and not isinstance(setting, str):
        raise PortError(
            f"Cannot use port_range in '{path}': {setting!r} is not a text",
            hint=f"Write it as {_EXAMPLE}",
        )
    return setting
