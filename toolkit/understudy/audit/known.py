"""What the definitions know: whose a port, a program or a unit is, and what to write instead."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from understudy import services
from understudy.errors import DefinitionError
from understudy.model import Service, Transport

_DATAGRAM_NAME = re.compile(r"udp|rtc?p(?!.*tcp)|srtp|srtcp|srt|quic|ice", re.IGNORECASE)
_TCP_NAME = re.compile(r"rtsp|rtmp|tcp", re.IGNORECASE)
_PROGRAM_VALUES: Final = ("program", "command", "executable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose a port is.

    Attributes:
        service: The definition's name.
        port: The port's name in it.
        transport: Its transport.
        url: Whether it has a URL.
        singleton: Whether tests share production's: a host has only one.
    """

    service: str
    port: str
    transport: Transport = Transport.TCP
    url: bool = False
    singleton: bool = True

    def __str__(self) -> str:
        return f"{self.service}'s {self.port}"

    @property
    def variable(self) -> str:
        """What a command beside an instance finds the number in."""
        words = f"{self.service}_{self.port}".upper().replace("-", "_")
        return f"UNDERSTUDY_{words}_PORT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The definitions, by what a suite may mention of them.

    Attributes:
        ports: Owner by transport and production's number.
        programs: Service by the name of its program: ``mediamtx``.
        modules: Service by the Python module that it is started as.
        units: Service by the name of its production unit, without its suffix.
        variables: Owner by the environment variable that carries its number or address.
    """

    ports: Mapping[tuple[Transport, int], Owner] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, Owner] = field(default_factory=dict)

    def owner(
        self, number: int, *, name: str = "", transport: Transport | None = None
    ) -> Owner | None:
        """Whose a port number is; None if no definition knows it.

        Args:
            number: The number.
            name: What the number is called where it stands: a number that is production's for
                UDP alone (8000) is believed to be one only if the name fits.
            transport: Where it is known. None: TCP, or UDP by the name.
        """
        if transport is None and name in self.variables:
            transport = self.variables[name].transport
        tcp = self.ports.get((Transport.TCP, number))
        udp = self.ports.get((Transport.UDP, number))
        if transport is not None:
            return tcp if transport is Transport.TCP else udp
        if tcp is not None:
            return tcp
        datagram = _DATAGRAM_NAME.search(name) and not _TCP_NAME.search(name)
        return udp if datagram else None


def known(*, units: Path | None = None) -> Known:
    """What all definitions that can be found know; one that is wrong is left out.

    Args:
        units: A folder of definitions to look in before all others (``--units``).

    Raises:
        UsageError: ``units`` is not a folder.
    """
    found: list[Service] = []
    for folder, origin in services.folders(units=units).values():
        with contextlib.suppress(DefinitionError, OSError):
            found.append(services.load(folder, origin))
    return of(sorted(found, key=lambda service: service.name))


def of(definitions: Iterable[Service]) -> Known:
    """What these definitions know; where two know the same, it is the first one's."""
    ports: dict[tuple[Transport, int], Owner] = {}
    programs: dict[str, str] = {}
    modules: dict[str, str] = {}
    units: dict[str, str] = {}
    variables: dict[str, Owner] = {}
    for service in definitions:
        for port in service.ports.values():
            owner = Owner(
                service=service.name,
                port=port.name,
                transport=port.transport,
                url=port.url is not None,
                singleton=service.singleton,
            )
            if port.number is not None:
                ports.setdefault((port.transport, port.number), owner)
            for variable in port.env:
                variables.setdefault(variable, owner)
        if service.production:
            stem = service.production.removesuffix(".service")
            units.setdefault(stem, service.name)
            programs.setdefault(stem, service.name)
        _programs(service, programs, modules)
    return Known(ports=ports, programs=programs, modules=modules, units=units, variables=variables)


def _programs(service: Service, programs: dict[str, str], modules: dict[str, str]) -> None:
    if service.values.get("module"):
        modules.setdefault(service.values["module"], service.name)
    for name in _PROGRAM_VALUES:
        try:
            words = shlex.split(service.values.get(name, ""))
        except ValueError:
            continue
        if "-m" in words[:-1]:
            modules.setdefault(words[words.index("-m") + 1], service.name)
        elif words and not Path(words[0]).name.startswith("python"):
            programs.setdefault(Path(words[0]).name, service.name)


PRIVATE: Final = "understudy run --network private -- pytest"
"""What runs a suite as it is, with all standard ports free."""


def bound_instead(owner: Owner | None) -> str:
    """For a server that is bound to a fixed port."""
    if owner is None:
        return f"bind port 0 and pass on what getsockname() says; or as it is: {PRIVATE}"
    return f'run.spawn("{owner.service}").ports["{owner.port}"]; or as it is: {PRIVATE}'


def connected_instead(owner: Owner | None, *, url: bool = False) -> str:
    """For a client that connects to a fixed port, or a URL that does."""
    if owner is None:
        return 'the server\'s own number: run.spawn(exec=[…, "{port.http}"], ports=["http"])'
    return _asked(owner, url=url)


def passed_instead(owner: Owner, name: str) -> str:
    """For production's port as an argument or a default."""
    return f"pass {name}={_asked(owner)}" if name.isidentifier() else _asked(owner)


def config_instead(owner: Owner) -> str:
    """For production's port in a configuration file."""
    return f'render the file from run.spawn("{owner.service}").ports["{owner.port}"]'


def variable_instead(owner: Owner, name: str) -> str:
    """For production's port in an environment variable."""
    return f'"${owner.variable}" for {name}, beside understudy spawn {owner.service} -- …'


def shell_instead(owner: Owner) -> str:
    """For production's port in a shell script."""
    return f"${owner.variable}, beside understudy spawn {owner.service} -- …"


def spawn_instead(service: str | None, *, shell: bool = False) -> str:
    """For a server that the suite starts."""
    if shell:
        what = service or "--exec '… {port.http}' --port http"
        return f"understudy spawn {what} -- …, which ends it with the command"
    if service is None:
        return 'run.spawn(exec=["…", "{port.http}"], ports=["http"]): gone when the run is gone'
    return f'run.spawn("{service}"), or share it: understudy.production("{service}")'


def alone_instead(service: str, *, shell: bool = False) -> str:
    """For a command that rules production."""
    if shell:
        return f"understudy spawn {service} -- …, whose instance may be stopped"
    return (
        f'run.spawn("{service}") and stop that; to be alone with production: '
        f'understudy.production("{service}", exclusive=True)'
    )


def _asked(owner: Owner, *, url: bool = False) -> str:
    part = "urls" if url and owner.url else "ports"
    own = f'run.spawn("{owner.service}").{part}["{owner.port}"]'
    if not owner.singleton:
        return own
    return f'understudy.production("{owner.service}").{part}["{owner.port}"], or an instance\'s'
