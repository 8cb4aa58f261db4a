"""Which ports a service has, what they are called, and which places are its own. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise

from understudy import names
from understudy.define import known, words
from understudy.define.facts import PathKind
from understudy.define.installed import PROGRAMS, sockets
from understudy.define.plan import Plan, Port
from understudy.model import Transport

_DIRECTORYISH = re.compile(r"(?i)dir|path|folder|home|root|data|store|storage")
_DATAGRAMS = re.compile(r"(?i)udp|rtc?p|srt|quic")


class Finding:
    """What is found of a unit, put into a plan.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def find_ports(self) -> None:
        """Which ports it has: those it is handed, those it listens on, or those its words name."""
        for text in self.plan.facts.sockets.values():
            for one in sockets(text):
                if one.number:
                    port = self._add(one.transport, one.number)
                    port.passed = True
                    port.name = one.name
                else:
                    self.plan.note(
                        f"systemd listens on '{one.path}' for it",
                        "an instance gets TCP and UDP sockets only",
                    )
        if any(port.passed for port in self.plan.ports):
            for own in self.plan.facts.listeners:
                if self.plan.port(own.transport, own.number) is None:
                    self.plan.note(
                        f"it listens on {own.transport} {own.number} beside what it is given",
                        "a definition has sockets of one kind: [activation]",
                    )
            return
        for own in self.plan.facts.listeners:
            self._add(own.transport, own.number, address=own.address)
        if self.plan.ports:
            return
        network = self.plan.unit.setting("PrivateNetwork") or self.plan.unit.setting(
            "NetworkNamespacePath"
        )
        if self.plan.facts.running and not network:
            self.plan.note("it runs, and listens on no port")
            return
        self._guess()
        default = known.WITHOUT_CONFIG.get(self.plan.unit.stem)
        if not self.plan.ports and default is not None and self.plan.unread():
            self._add(Transport.TCP, default.port)
        if self.plan.facts.running:
            self.plan.note("it runs in a network of its own: what it listens on there is not known")
        elif self.plan.ports:
            found = ", ".join(f"{port.transport} {port.number}" for port in self.plan.ports)
            self.plan.note(
                f"not running: ports are only those that its words name ({found})",
                "start it and define it again with --force, or look through [ports]",
            )
        else:
            self.plan.note(
                "not running: no ports are known",
                "start it and define it again with --force, or add them to [ports]",
            )

    def _guess(self) -> None:
        """Ports of one that does not run: what its own words declare."""
        self._declared([*self.plan.words(), *self.plan.configuration()])
        if not self.plan.ports:
            usual = self.plan.usual_configuration().values()
            self._declared([text for texts in usual for text in texts])
        if not self.plan.ports:
            pairs = pairwise(["", *self.plan.unit.arguments])
            lone = [
                match[1]
                for before, word in pairs
                if (match := re.fullmatch(r"(?:-p)?(\d{2,5})", word))
                and not (before.startswith("-") and word.isdigit())
            ]
            if len(lone) == 1 and 80 <= int(lone[0]) <= 65535:
                self._add(Transport.TCP, int(lone[0]))

    def _declared(self, texts: Iterable[str]) -> None:
        for text in texts:
            for one in words.mentions(text):
                if one.declares:
                    udp = any(_DATAGRAMS.search(key) for key in one.keys)
                    self._add(Transport.UDP if udp else Transport.TCP, one.number)

    def _add(self, transport: Transport, number: int, *, address: str = "") -> Port:
        port = self.plan.port(transport, number)
        if port is None:
            port = Port(transport=transport, number=number, address=address)
            self.plan.ports.append(port)
        return port

    def name_ports(self) -> None:
        """Give each a name: what it is called where it is told, or what its number is known as."""
        self.plan.ports.sort(key=lambda one: (one.transport, one.number))
        for text in self.plan.words():
            for one in words.mentions(text):
                if (port := self.plan.named(one)) is not None:
                    port.keys += one.keys[:1]
        for text in self.plan.configuration():
            for one in words.mentions(text):
                if (port := self.plan.named(one)) is not None:
                    port.keys += [*one.keys[:1], f"{words.section(text, one.start)}.port"]
        taken: set[str] = set()
        own = {*re.split(r"\W", self.plan.unit.name.lower()), self.plan.unit.stem, self.plan.name}
        for port in self.plan.ports:
            wanted = [
                port.name,
                *(said for key in port.keys if (said := _qualifier(key)) and said not in own),
                *([known.PORT_NAMES[port.number]] if self._known_number(port) else []),
                *(["http"] if port.number in self.plan.facts.answers else []),
                self.plan.facts.known_as.get((port.transport, port.number), ""),
            ]
            wanted = [one for one in wanted if names.valid_port_name(one)]
            first = wanted[0] if wanted else str(port.transport)
            numbered = f"{first}-{port.number}"
            port.name = first if wanted and first not in taken else numbered
            if port.name in taken:
                port.name = f"{port.transport}-{port.number}"
            taken.add(port.name)

    def _known_number(self, port: Port) -> bool:
        return port.transport is Transport.TCP and port.number in known.PORT_NAMES

    def find_own_paths(self) -> None:
        """See to it that whatever it writes has a place of the instance's."""
        found: dict[str, bool] = dict.fromkeys(self.plan.unit.made, True)
        for text in (*self.plan.words(), *self.plan.configuration()):
            for start, _end, path in words.paths(text):
                place = path.rstrip("/")
                if self._shared(place):
                    continue
                if place in self.plan.facts.others_sockets:
                    self.plan.note(
                        f"it talks to '{place}', which is not its own",
                        "so do instances, unless its copy of the configuration says otherwise",
                    )
                    continue
                before = text[text.rfind("\n", 0, start) + 1 : start]
                found[place] = found.get(place, False) or self._is_folder(path, before)
        self._give_places(found)

    def _is_folder(self, path: str, before: str) -> bool:
        """Whether a path is a folder's: as it is, or else by how it is called."""
        place = path.rstrip("/")
        kind = self.plan.facts.kinds.get(place, PathKind.ABSENT)
        if kind in (PathKind.FILE, PathKind.SOCKET):
            return False
        if kind is PathKind.DIRECTORY or place != path:
            return True
        return "." not in place.rpartition("/")[2] and bool(_DIRECTORYISH.search(before))

    def _shared(self, place: str) -> bool:
        """Whether a path is one that instances may go on using."""
        if self.plan.root and (place == self.plan.root or place.startswith(f"{self.plan.root}/")):
            return True
        if place in self.plan.facts.files and self.plan.facts.files[place].text is not None:
            return True
        kind = self.plan.facts.kinds.get(place)
        if kind is PathKind.FILE and (place.endswith(PROGRAMS) or words.is_certificate(place)):
            return True
        return not self.plan.unit.is_state(place)

    def _give_places(self, found: Mapping[str, bool]) -> None:
        made = self.plan.unit.made
        mentioned = {place: folder for place, folder in found.items() if place not in made}
        folders = [place for place, folder in found.items() if folder]
        several = len([place for place in folders if place in mentioned]) > 1
        taken: set[str] = set()
        for place in made:
            self.plan.own[place] = "{{ directory }}"
        for place, folder in mentioned.items():
            parent = place.rpartition("/")[0]
            name = place.rpartition("/")[2]
            if folder and not several:
                self.plan.own[place] = "{{ directory }}"
                continue
            if name in taken:
                name = f"{parent.rpartition('/')[2]}-{name}"
            while name in taken:
                name += "-"
            taken.add(name)
            self.plan.own[place] = f"{{{{ directory }}}}/{name}"
            if folder:
                self.plan.made.append(self.plan.own[place])


def _qualifier(key: str) -> str:
    """What a key says of its port: ``admin`` of ``ADMIN_PORT``; "" of ``PORT``."""
    key = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3-\2\4", key.lstrip("-"))
    parts = re.split(r"[._-]+", key.lower())
    common = {"port", "ports", "listen", "listener", "bind", "address", "addr", "server", "p", "l"}
    common |= {
        "endpoint",
        "socket",
        "tcp",
        "udp",
        "virtualhost",
        "b",
        "host",
        "app",
        "d",
        "a",
        "local",
        "",
    }
    left = [part for part in parts if part not in common]
    return left[-1] if len(left) == 1 and len(parts) > 1 else ""
