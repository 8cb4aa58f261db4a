"""What names, addresses and URLs say of ports, whatever language they are written in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from understudy.audit.known import Known, Owner
from understudy.model import Transport

UNKNOWN: Final = "\0"
"""Stands in a text for a part that is only known when the suite runs."""

_URL = re.compile(
    r"(?<![\w.+-])(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*)://"
    r"(?:[^/@\s\"'<>]*@)?"
    r"(?P<host>\[[0-9a-fA-F:.]*\]|[^\[\]/:?#\s\"'<>]*)"
    r":(?P<port>[0-9]{1,5})(?![0-9\0])"
)
_ADDRESS = re.compile(
    r"(?P<host>\[[0-9a-fA-F:.]*\]|[\w.*-]*|\0)?:(?P<port>[0-9]{2,5})(?:/(?P<transport>tcp|udp))?"
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_PORTS: Final = frozenset(("port", "ports"))
_NUMBERS: Final = frozenset(("number", "num", "no", "nr", "default", "value"))
_ADDRESSES: Final = (
    *("address", "addr", "listen", "bind", "endpoint", "url", "uri", "host", "server", "target"),
)
_DATAGRAM_SCHEMES: Final = frozenset(("udp", "srt", "rtp"))
_ERRNO: Final = r"errno\W{0,3}98\b|eaddrinuse|address already in use"
_TAKEN = re.compile(
    rf"{_ERRNO}|port\b.{{0,40}}\b(in use|taken|occupied|busy|conflict\w*|already|not free)"
    r"|\b(in use|taken|occupied|busy|conflict\w*|already (running|listening|bound|started))"
    r"\b.{0,20}\bport|port conflict",
    re.IGNORECASE | re.DOTALL,
)
_TAKEN_ERROR = re.compile(_ERRNO, re.IGNORECASE)


class Place(NamedTuple):
    """A host and a port as they stand in a URL or an address."""

    scheme: str
    host: str
    port: int

    @property
    def local(self) -> bool:
        """Whether the host is this machine."""
        return is_local(self.host)

    @property
    def open(self) -> bool:
        """Whether the host is only known when the suite runs."""
        return UNKNOWN in self.host

    @property
    def transport(self) -> Transport | None:
        """What the scheme says of it."""
        if not self.scheme:
            return None
        return Transport.UDP if self.scheme.lower() in _DATAGRAM_SCHEMES else Transport.TCP

    def owner(self, known: Known, name: str = "") -> Owner | None:
        """Whose the port is, if the host may be this machine."""
        if not (self.local or self.open):
            return None
        return known.owner(self.port, name=name, transport=self.transport)


def is_local(host: str) -> bool:
    """Whether a host's name or address is this machine, or all of its addresses."""
    bare = host.strip("[]").lower()
    return bare in ("", "*", "localhost", "::", "::1", "0.0.0.0") or bare.startswith("127.")


def urls(text: str) -> Iterator[Place]:
    """The places that the URLs in a text name by number."""
    for match in _URL.finditer(text) if "://" in text else ():
        number = int(match["port"])
        if 0 < number < 65536:
            yield Place(match["scheme"], match["host"], number)


def address(text: str) -> Place | None:
    """The place that a text is: ``:9997``, ``localhost:9997``, ``[::1]:9997/udp``."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        return None
    scheme = match["transport"] or ""
    return Place(scheme, match["host"] or "", int(match["port"]))


def is_port_name(name: str) -> bool:
    """Whether a thing of this name is a port: ``port``, ``api_port``, ``rtspPort``, ``PORT_NO``."""
    if "ort" not in name and "ORT" not in name:
        return False
    words = [word.lower() for word in _WORDS.findall(name)]
    while len(words) > 1 and words[-1] in _NUMBERS:
        words.pop()
    # CAMERA_SERVICE_MEDIAMTX_API_PORT, MTX_MULTICASTRTPPORT.
    last = words[-1] if words else ""
    return last in _PORTS or (last.endswith("port") and last.startswith(("multicast", "rt")))


def is_address_name(name: str) -> bool:
    """Whether a thing of this name has an address in it: ``apiAddress``, ``MTX_RTSPADDRESS``."""
    return name.lower().endswith(_ADDRESSES)


def number_in(value: object) -> int | None:
    """The port number that a value is, as a number or as digits."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 5:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536:
        return value
    return None


def keyed(name: str, value: object, known: Known) -> tuple[int, Owner] | None:
    """The known port that a key of this name is set to; None if it is none."""
    number = number_in(value)
    if number is not None:
        if not (is_port_name(name) or name in known.variables):
            return None
        owner = known.owner(number, name=name)
    elif isinstance(value, str) and (is_address_name(name) or is_port_name(name)):
        place = address(value)
        if place is None:
            return None
        number, owner = place.port, place.owner(known, name)
    else:
        return None
    return (number, owner) if owner else None


def says_taken(text: str) -> bool:
    """Whether a text says that a port is taken."""
    return _TAKEN.search(text) is not None


def says_taken_error(text: str) -> bool:
    """Whether a text is of the error of a port that is taken (errno(3), EADDRINUSE)."""
    return _TAKEN_ERROR.search(text) is not None


def says_delete(text: str) -> bool:
    """Whether a URL is that of the API call that wants DELETE (MediaMTX, control API v3)."""
    return "config/paths/delete/" in text
