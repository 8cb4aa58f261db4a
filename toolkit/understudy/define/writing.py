"""From facts to a definition's files. Pure: text in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Final

from understudy import names, unitfile
from understudy.define import known, words
from understudy.define.facts import Definition, Facts, Note, PathKind
from understudy.define.installed import Unit, of_service, sockets, variables
from understudy.define.words import CHANGE_ME, Edit, Mention, literal, template
from understudy.derive import unit_name_specifiers
from understudy.errors import UsageError
from understudy.model import Transport
from understudy.services import TEMPLATE_NAMES

EPHEMERAL: Final = 32768
"""From here on a port may be one that the kernel chose (ip-sysctl.rst, ip_local_port_range)."""

_HIDDEN = ("/home/", "/root/", "/tmp/", "/var/tmp/")
_NOT_RUN = ("ExecCondition", "ExecStartPre", "ExecStartPost", "ExecStop", "ExecStopPost")
_COMMANDS = re.compile(r"Exec(?:Condition|StartPre|StartPost|Start|Reload|Stop|StopPost)")
_IN_SERVICE = re.compile(r"SetCredential(?:Encrypted)?")
_PLAIN_WORD = re.compile(r"[\w./:=,@%+{}$~\[\]-]+")
_WIDTH = 100
_TAKEN = TEMPLATE_NAMES | {"argv", "program", "root", "service"}
_DIRECTORYISH = re.compile(r"(?i)dir|path|folder|home|root|data|store|storage")
_CERTIFICATE = re.compile(r"\.(?:pem|crt|cer|key|p12|jks)$")


def service_name(unit: str) -> str:
    """The name that a definition of a unit has unless it is given another; "" if none is fit.

    Args:
        unit: The unit's name.
    """
    stem = unit.removesuffix(".service").lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")
    return name if names.valid_service_name(name) else ""


def define(facts: Facts, name: str) -> Definition:
    """Write the definition of an installed unit.

    Args:
        facts: What was found out of it.
        name: What the service is to be called.

    Raises:
        UsageError: The unit cannot have instances: it has no command.
    """
    return _Writer(facts, name).write()


@dataclass(kw_only=True)
class _Port:
    transport: Transport
    number: int
    address: str = ""
    name: str = ""
    keys: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    file: str = ""
    argument: bool = False
    where: list[str] = field(default_factory=list)
    passed: bool = False

    @property
    def told(self) -> bool:
        return bool(self.env or self.file or self.argument or self.passed)

    @property
    def value(self) -> str:
        """The template's expression."""
        return (
            f"{{{{ ports.{self.name} }}}}"
            if self.name.isidentifier()
            else (f'{{{{ ports["{self.name}"] }}}}')
        )


@dataclass(kw_only=True)
class _File:
    name: str
    path: str
    text: str = ""
    over: str = ""
    used: bool = True


class _Writer:
    def __init__(self, facts: Facts, name: str) -> None:
        self.facts = facts
        self.name = name
        self.unit = Unit(facts.unit, facts.text, facts.specifiers)
        self.values: dict[str, tuple[str, str]] = {}
        self.notes: list[Note] = []
        self.ports: list[_Port] = []
        self.files: dict[str, _File] = {}
        self.private: set[str] = set()
        self.secrets: set[str] = set()
        self.own: dict[str, str] = {}
        self.made: list[str] = []
        self.rows: list[str] = []
        self.environment: dict[str, str] = {}
        self.root = self._root()
        files = [source.text or "" for source in facts.environment_files.values()]
        self.from_files = {key: value for text in files for key, value in variables(text).items()}
        self.others = {**self.from_files, **of_service(facts.environ)}
        for key in self.unit.environment:
            self.others.pop(key, None)
        self.secrets |= {value for key, value in self.others.items() if words.secret_name(key)}

    def note(self, text: str, hint: str = "") -> None:
        if (one := Note(text=text, hint=hint)) not in self.notes:
            self.notes.append(one)

    # The whole.

    def write(self) -> Definition:
        if not self.unit.program:
            raise UsageError(
                f"Cannot define '{self.facts.unit}': it has no ExecStart=",
                hint="only a service with a command can have instances",
            )
        self._find_ports()
        self._find_own_paths()
        self._name_ports()
        base = self._base()
        command = self._command()
        self._environment()
        self._usual_files()
        self._last_words()
        unit_file = f"{self.facts.unit}.j2"
        toml = self._toml()  # before the drop-in: a second way to be told goes there
        instance = self._instance(command)
        files = {"service.toml": toml, unit_file: base}
        if instance:
            files["instance.conf"] = instance
        for unit, text in self._socket_units().items():
            files[f"{unit}.j2"] = text
        files |= {f"{one.name}.j2": one.text for one in self.files.values() if one.used}
        return Definition(
            name=self.name,
            files={name: self._safe(name, text) for name, text in files.items()},
            private=frozenset(self.private & files.keys()),
            notes=tuple(self.notes),
        )

    def _safe(self, name: str, text: str) -> str:
        """The last word on secrets: what was found to be one anywhere is nowhere."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            # A password that is a word like others says nothing, and stands in too many places.
            if len(secret) < 6 or (secret.isalpha() and len(secret) < 12):
                continue
            mention = re.compile(rf"(?<![\w/.-]){re.escape(secret)}(?![\w/.-])")
            if mention.search(text):
                text = mention.sub(CHANGE_ME, text)
                self.note(f"a secret was taken out of {name} where it had no name", "look there")
        return text

    def _root(self) -> str:
        """The folder that the service reads from, if it is not where it writes."""
        folder = self.unit.folder
        if not folder or len(PurePosixPath(folder).parts) < 3:
            return ""
        deployed = any(
            self.facts.kinds.get(self.unit.absolute(word)) is PathKind.FILE
            for word in self.unit.arguments
            if not word.startswith(("/", "-"))
        )
        return folder if deployed or not self.unit.is_state(folder) else ""

    # Ports.

    def _find_ports(self) -> None:
        for text in self.facts.sockets.values():
            for one in sockets(text):
                if one.number:
                    port = self._add(one.transport, one.number)
                    port.passed = True
                    port.name = one.name
                else:
                    self.note(
                        f"systemd listens on '{one.path}' for it",
                        "an instance gets TCP and UDP sockets only",
                    )
        if any(port.passed for port in self.ports):
            for own in self.facts.listeners:
                if self._port(own.transport, own.number) is None:
                    self.note(
                        f"it listens on {own.transport} {own.number} beside what it is given",
                        "a definition has sockets of one kind: [activation]",
                    )
            return
        for own in self.facts.listeners:
            self._add(own.transport, own.number, address=own.address)
        if self.ports:
            return
        network = self.unit.setting("PrivateNetwork") or self.unit.setting("NetworkNamespacePath")
        if self.facts.running and not network:
            self.note("it runs, and listens on no port")
            return
        self._guess()
        default = known.WITHOUT_CONFIG.get(self.unit.stem)
        if not self.ports and default is not None and self._unread():
            self._add(Transport.TCP, default.port)
        if self.facts.running:
            self.note("it runs in a network of its own: what it listens on there is not known")
        elif self.ports:
            found = ", ".join(f"{port.transport} {port.number}" for port in self.ports)
            self.note(
                f"not running: ports are only those that its words name ({found})",
                "start it and define it again with --force, or look through [ports]",
            )
        else:
            self.note(
                "not running: no ports are known",
                "start it and define it again with --force, or add them to [ports]",
            )

    def _guess(self) -> None:
        """Ports of one that does not run: what its own words declare."""
        texts = [self._argument_text(at) for at in range(len(self.unit.arguments))]
        texts += [f"{key}={value}" for key, value in self._variables().items()]
        paths = [*self.unit.told(self._variables().values()), *self._default_files()]
        texts += [text for path in dict.fromkeys(paths) for text in self._all_texts(path)]
        for text in texts:
            for one in words.mentions(text):
                if one.declares and one.number < 65536:
                    udp = any("udp" in key.lower() for key in one.keys)
                    self._add(Transport.UDP if udp else Transport.TCP, one.number)
        if not self.ports:
            pairs = pairwise(["", *self.unit.arguments])
            lone = [
                match[1]
                for before, word in pairs
                if (match := re.fullmatch(r"(?:-p)?(\d{2,5})", word))
                and not (before.startswith("-") and word.isdigit())
            ]
            if len(lone) == 1 and 80 <= int(lone[0]) <= 65535:
                self._add(Transport.TCP, int(lone[0]))

    def _all_texts(self, path: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
        """A configuration file's text and those that it includes."""
        source = self.facts.files.get(path)
        if source is None or source.text is None or path in seen:
            return
        text = words.without_comments(source.text)
        yield text
        for one in words.includes(text):
            for found in self.facts.matches.get(_beside(path, one.pattern), ()):
                yield from self._all_texts(found, seen | {path})

    def _add(self, transport: Transport, number: int, *, address: str = "") -> _Port:
        port = self._port(transport, number)
        if port is None:
            port = _Port(transport=transport, number=number, address=address)
            self.ports.append(port)
        return port

    def _port(self, transport: Transport, number: int) -> _Port | None:
        same = (one for one in self.ports if (one.transport, one.number) == (transport, number))
        return next(same, None)

    def _name_ports(self) -> None:
        """Give each a name: what it is called where it is told, or what its number is known as."""
        self.ports.sort(key=lambda one: (one.transport, one.number))
        texts = [self._argument_text(at) for at in range(len(self.unit.arguments))]
        texts += [f"{key}={value}" for key, value in self._variables().items()]
        told = [*self.unit.told(self._variables().values()), *self._default_files()]
        copied = [text for path in dict.fromkeys(told) for text in self._all_texts(path)]
        for text in [*texts, *copied]:
            for one in words.mentions(text):
                if (port := self._named(one)) is not None:
                    port.keys += one.keys[:1]
                    if text in copied:
                        port.keys.append(f"{words.section(text, one.start)}.port")
        taken: set[str] = set()
        own = {*re.split(r"\W", self.unit.name.lower()), self.unit.stem, self.name}
        for port in self.ports:
            wanted = [
                port.name,
                *(said for key in port.keys if (said := _qualifier(key)) and said not in own),
                *([known.PORT_NAMES[port.number]] if self._known_number(port) else []),
                *(["http"] if port.number in self.facts.answers else []),
                self.facts.known_as.get((port.transport, port.number), ""),
            ]
            wanted = [one for one in wanted if names.valid_port_name(one)]
            first = wanted[0] if wanted else str(port.transport)
            numbered = f"{first}-{port.number}"
            port.name = first if wanted and first not in taken else numbered
            if port.name in taken:
                port.name = f"{port.transport}-{port.number}"
            taken.add(port.name)

    def _known_number(self, port: _Port) -> bool:
        return port.transport is Transport.TCP and port.number in known.PORT_NAMES

    def _named(self, one: Mention, *, pure: bool = False) -> _Port | None:
        """The port that a number names; None if it is another's, or of TCP and UDP both."""
        found = [port for port in self.ports if port.number == one.number]
        if len(found) != 1:
            return None
        addresses = [port.address for port in found if port.address]
        return found[0] if pure or one.names(addresses) else None

    # Edits.

    def _port_edits(self, text: str, *, pure: bool = False) -> Iterator[tuple[Edit, _Port]]:
        for one in words.mentions(text):
            port = self._named(one, pure=pure)
            if port is None:
                continue
            why = f"production: {port.number}"
            if one.everywhere:
                put = f"{{{{ host }}}}:{port.value}"
                yield Edit(one.host_start, one.end, put, f"{why}, on every address"), port
            else:
                yield Edit(one.start, one.end, port.value, why), port

    def _secret_edits(self, text: str) -> Iterator[Edit]:
        for one in words.secrets(text):
            self.secrets.update(text[one.start : one.end].strip("\"'").splitlines())
            put = f"{{{{ {self._value(one.name)} }}}}"
            yield Edit(one.start, one.end, f'"{put}"' if one.block else put, "a secret, not taken")

    def _value(self, name: str, default: str = CHANGE_ME, why: str = "") -> str:
        """Declare a value for templates, and give the name it has."""
        name = re.sub(r"\W", "_", name) or "secret"
        name = f"{name}_" if name in _TAKEN and default == CHANGE_ME else name
        name = f"v{name}" if name[0].isdigit() else name
        self.values.setdefault(name, (default, why))
        return name

    def _path_edits(self, text: str) -> Iterator[Edit]:
        for start, end, path in words.paths(text):
            if (put := self.own.get(path.rstrip("/"))) is not None:
                yield Edit(start, end, put, f"its own, not {path}")

    def _file_edits(self, text: str) -> Iterator[Edit]:
        """Where a text names a configuration file of which an instance gets a copy."""
        for start, end, path in words.paths(self.unit.expand(text)):
            if self.unit.expand(text) == text and (one := self._file(path)) is not None:
                yield Edit(start, end, f"{{{{ files }}}}/{one.name}", f"a copy of {path}")

    # What is its own.

    def _find_own_paths(self) -> None:
        """See to it that whatever it writes has a place of the instance's."""
        texts = [self._argument_text(at) for at in range(len(self.unit.arguments))]
        texts += [f"{key}={value}" for key, value in self._variables().items()]
        told = [*self.unit.told(self._variables().values()), *self._default_files()]
        texts += [text for path in dict.fromkeys(told) for text in self._all_texts(path)]
        found: dict[str, bool] = dict.fromkeys(self.unit.made, True)
        for text in texts:
            for start, _end, path in words.paths(text):
                place = path.rstrip("/")
                if self._shared(place):
                    continue
                kind = self.facts.kinds.get(place, PathKind.ABSENT)
                if kind is PathKind.SOCKET and place in self.facts.others_sockets:
                    self.note(
                        f"it talks to '{place}', which is not its own",
                        "so do instances, unless its copy of the configuration says otherwise",
                    )
                    continue
                before = text[max(0, text.rfind("\n", 0, start)) : start][-40:]
                folder = kind is PathKind.DIRECTORY or path.endswith("/")
                if (
                    kind in (PathKind.ABSENT, PathKind.HIDDEN)
                    and "." not in place.rpartition("/")[2]
                ):
                    folder = folder or _DIRECTORYISH.search(before) is not None
                found[place] = found.get(place, False) or folder
        self._give_places(found)

    def _shared(self, place: str) -> bool:
        """Whether a path is one that instances may go on using."""
        if self.root and (place == self.root or place.startswith(f"{self.root}/")):
            return True
        if place in self.facts.files and self.facts.files[place].text is not None:
            return True
        kind = self.facts.kinds.get(place)
        if kind is PathKind.FILE and _CERTIFICATE.search(place):
            return True
        return not self.unit.is_state(place)

    def _give_places(self, found: Mapping[str, bool]) -> None:
        made = self.unit.made
        mentioned = {place: folder for place, folder in found.items() if place not in made}
        folders = [place for place, folder in found.items() if folder]
        several = len([place for place in folders if place in mentioned]) > 1
        taken: set[str] = set()
        for place in made:
            self.own[place] = "{{ directory }}"
        for place, folder in mentioned.items():
            parent = place.rpartition("/")[0]
            name = place.rpartition("/")[2]
            if folder and not several:
                self.own[place] = "{{ directory }}"
                continue
            if name in taken:
                name = f"{parent.rpartition('/')[2]}-{name}"
            while name in taken:
                name += "-"
            taken.add(name)
            self.own[place] = f"{{{{ directory }}}}/{name}"
            if folder:
                self.made.append(self.own[place])

    # Files.

    def _default_files(self) -> list[str]:
        default = known.CONFIG_DEFAULT.get(self.unit.stem)
        told = any(path in self.facts.files for path in self.unit.told(()))
        return [] if default is None or told else [default]

    def _file(self, path: str, *, main: bool = True) -> _File | None:
        """The instance's copy of a configuration file; None where production's will do."""
        path = str(PurePosixPath(path))
        if path in self.files:
            return self.files[path]
        source = self.facts.files.get(path)
        if source is None:
            return None
        if source.text is None:
            self.note(
                f"'{path}' {source.problem}: what it says is not known",
                f"sudo understudy define {self.facts.unit}"
                if source.private
                else "write a template for it, and name it in [instance.files]",
            )
            return None
        one = _File(name=self._file_name(path), path=path)
        self.files[path] = one  # before its includes: they may name it again
        text = words.without_comments(source.text)
        edits = [
            *known.adjusted(self.unit.stem, text, main=main),
            *self._include_edits(path, text),
            *self._secret_edits(text),
            *self._path_edits(text),
        ]
        for edit, port in self._port_edits(text):
            edits.append(edit)
            port.file = port.file or one.name
            port.where.append(path)
        if not edits and (not main or not path.startswith("/etc/")):
            del self.files[path]
            return None
        if source.private:
            self.private.add(f"{one.name}.j2")
            self.note(
                f"'{path}' is not for every user to read: {one.name}.j2 is for you alone (0600)",
                "look through it for what is secret, then chmod 644",
            )
        head = f"{{# {path}, without its comments, as an instance has it. #}}\n"
        one.text = head + template(text, edits, comments=True)
        return one

    def _file_name(self, path: str) -> str:
        taken = {one.name for one in self.files.values()}
        place = PurePosixPath(path)
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", place.name).lstrip(".-") or "file"
        if name in taken or f"{name}.j2" == f"{self.facts.unit}.j2":
            name = f"{re.sub(r'[^A-Za-z0-9_-]', '_', place.parent.name).lstrip('-')}-{name}"
        while name in taken:
            name = f"x{name}"
        return name

    def _include_edits(self, path: str, text: str) -> Iterator[Edit]:
        for one in words.includes(text):
            pattern = _beside(path, one.pattern)
            found = self.facts.matches.get(pattern, ())
            copies = {each: self._file(each, main=False) for each in found}
            line = text[one.start : one.end]
            inner = slice(one.path_start - one.start, one.path_end - one.start)
            if not any(copies.values()):
                if pattern != one.pattern:
                    yield Edit(one.path_start, one.path_end, literal(pattern), "")
                continue
            lines = [
                literal(line[: inner.start])
                + (f"{{{{ files }}}}/{copy.name}" if copy is not None else literal(each))
                + literal(line[inner.stop :])
                for each, copy in copies.items()
            ]
            yield Edit(one.start, one.end, "\n".join(lines), f"copies of {one.pattern}")

    def _usual_files(self) -> None:
        """Bind a copy over a file that nobody names, if it has a port not told otherwise."""
        for path in self.unit.usual():
            untold = [port for port in self.ports if not port.told]
            source = self.facts.files.get(path)
            if not untold or path in self.files or source is None:
                continue
            if source.text is not None:
                text = words.without_comments(source.text)
                if not any(port in untold for _, port in self._port_edits(text)):
                    continue
            one = self._file(path)
            if one is not None:
                one.over = path

    # The unit.

    def _argument_text(self, at: int) -> str:
        """A word of the command after the option that it may be the value of."""
        before = self.unit.arguments[at - 1] if at else ""
        word = self.unit.arguments[at]
        option = before.startswith("-") and not word.startswith("-") and "=" not in before
        return f"{before} {word}" if option else word

    def _argument(self, at: int) -> tuple[str, bool]:
        """A word of the command as an instance has it, as a template, and whether it differs."""
        word = self.unit.arguments[at]
        text = self._argument_text(at)
        offset = len(text) - len(word)
        edits = []
        if not word.startswith("-") or "=" in word:
            edits += list(self._secret_edits(text))
        path = self.unit.absolute(word)
        one = self._file(path) if path in self.facts.files and not word.startswith("-") else None
        if one is not None:
            edits.append(Edit(offset, len(text), f"{{{{ files }}}}/{one.name}"))
        if path in self.own:
            edits.append(Edit(offset, len(text), self.own[path]))
        edits += [*self._file_edits(text), *self._path_edits(text), *self._root_edits(text)]
        glued = re.fullmatch(r"-[A-Za-z](\d{2,5})", word)
        pure = word.isdigit() or glued is not None
        mentioned = word[2:] if glued else text
        shift = offset + 2 if glued else 0
        for edit, port in self._port_edits(mentioned, pure=pure):
            edits.append(edit._replace(start=edit.start + shift, end=edit.end + shift))
            if edit.start + shift >= offset:
                port.argument = True
                port.where.append("an argument")
        edits = [edit._replace(start=edit.start - offset, end=edit.end - offset) for edit in edits]
        edits = [edit for edit in edits if edit.start >= 0]
        if not edits and (shown := self._shown(word)):
            return f"{{{{ {shown} }}}}", True
        return template(word, edits), bool(edits)

    def _shown(self, word: str) -> str:
        """A value for a path that an instance could not see otherwise (``_HIDDEN`` of derive)."""
        if not word.startswith(_HIDDEN) or self.unit.is_state(word):
            return ""
        name = re.sub(r"\W", "_", PurePosixPath(word).stem.lower()).strip("_")
        return self._value(name or "path", word, "a path that instances are shown")

    def _root_edits(self, text: str) -> Iterator[Edit]:
        if self.root:
            for start, _end, path in words.paths(text):
                if path == self.root or path.startswith(f"{self.root}/"):
                    yield Edit(start, start + len(self.root), "{{ root }}")

    def _command(self) -> list[str]:
        """``ExecStart=`` of an instance, as lines of its drop-in; none if production's is right."""
        arguments = [self._argument(at) for at in range(len(self.unit.arguments))]
        default = next(iter(self._default_files()), "")
        main = self._file(default) if default else None
        if main is None:
            told = (self.unit.absolute(word) for word in self.unit.arguments)
            main = next((self.files[path] for path in told if path in self.files), None)
        config = f"{{{{ files }}}}/{main.name}" if main is not None else ""
        texts = [text for text, _ in arguments]
        special = known.command(self.unit.stem, texts, config)
        result = self._without_config(texts) if special is None else special
        changed = result != self.unit.arguments
        privileged = any(char in self.unit.prefix for char in "+!")
        if not changed and not privileged:
            return []
        kept = ":" if ":" in self.unit.prefix else ""
        line = " ".join(
            [f"ExecStart={kept}{{{{ argv[0] | quote }}}}", *(_word(one) for one in result)]
        )
        said = known.why(self.unit.stem) if special is not None else []
        if not said and changed:
            said = ["Its own ports, files and folders in the place of production's."]
        if privileged:
            said += [f"Without production's prefix '{self.unit.prefix}', which is root's right."]
        return [*(f"# {one}" for one in said), "ExecStart=", self._named_specifiers(line)]

    def _unread(self) -> set[str]:
        """The configuration files that it is told of and that the caller may not read."""
        told = {self.unit.absolute(word) for word in self.unit.arguments}
        return {
            path for path in told & self.facts.files.keys() if self.facts.files[path].text is None
        }

    def _without_config(self, arguments: list[str]) -> list[str]:
        """Arguments that say all that an unreadable configuration file would."""
        other = known.WITHOUT_CONFIG.get(self.unit.stem)
        unread = self._unread()
        if other is None or not unread or len(self.ports) != 1:
            return arguments
        [port] = self.ports
        port.argument = True
        port.where.append("an argument")
        told = [word.replace("{port}", port.value) for word in other.arguments]
        kept = [
            text
            for text, word in zip(arguments, self.unit.arguments, strict=True)
            if self.unit.absolute(word) not in unread
        ]
        self.note(
            f"instances have the defaults of {self.unit.stem}, not what '{min(unread)}' says",
            "what they need of it: more arguments in instance.conf",
        )
        return [*kept, *told]

    def _named_specifiers(self, line: str) -> str:
        """What stands for parts of production's name is an instance's name in its own drop-in."""
        own = unit_name_specifiers(self.facts.unit)
        return re.sub(r"%(.)", lambda match: own.get(match[1], match[0]), line)

    def _base(self) -> str:
        """Production's unit as a template: as it is, but for secrets and what can be set."""
        head = [
            f"{{# {self.facts.unit} as it is installed on this host.",
            "   What is different in an instance is in instance.conf. #}",
        ]
        lines = []
        first = True
        for line in self.unit.lines:
            if line.text.startswith("# /") and line.text.endswith((".service", ".conf")):
                if not first:
                    lines.append(literal(line.text))
                first = False
                continue
            lines.append(self._base_line(line))
        text = "\n".join(lines).strip("\n")
        if self.root:
            self.values["root"] = (self.root, "where it is read from; a checkout: --set root=$PWD")
        return "\n".join([*head, text, ""])

    def _base_line(self, line: unitfile.Line) -> str:
        if not line.name:
            leak = line.text.strip() and words.secrets(line.text.strip().lstrip("#; "))
            return "# left out: a secret" if leak else literal(line.text)
        if line.section == "Service" and _IN_SERVICE.fullmatch(line.name):
            self.secrets.add(line.value.partition(":")[2])
            return f"# left out, a secret: {line.name}={literal(line.value.partition(':')[0])}"
        if line.section == "Service" and line.name == "Environment" and line.value:
            return self._base_words(line, [(word, word) for word in unitfile.split(line.value)])
        if line.section == "Service" and _COMMANDS.fullmatch(line.name) and line.value:
            split = unitfile.split(line.value)
            pairs = []
            for before, word in zip(["", *split], split, strict=False):
                option = before.startswith("-") and not word.startswith("-") and "=" not in before
                pairs.append((f"{before} {word}" if option else word, word))
            return self._base_words(line, pairs)
        if words.secrets(f"{line.name}={line.value}"):
            return f"# left out, a secret: {line.name}="
        return self._base_places(literal(line.text), line)

    def _base_words(self, line: unitfile.Line, pairs: Iterable[tuple[str, str]]) -> str:
        """A line of words: as it was written, unless a secret has to go."""
        result = []
        leak = False
        for text, word in pairs:
            offset = len(text) - len(word)
            edits = []
            if not word.startswith("-") or "=" in word:
                edits = [
                    edit._replace(start=edit.start - offset, end=edit.end - offset)
                    for edit in self._secret_edits(text)
                    if edit.start >= offset
                ]
            leak = leak or bool(edits)
            result.append(_word(template(word, edits)))
        if leak:
            return self._base_places(f"{line.name}={' '.join(result)}", line)
        return self._base_places(literal(line.text), line)

    def _base_places(self, text: str, line: unitfile.Line) -> str:
        """A line with its program and its folder as values, so that both can be set."""
        if self.root and line.section == "Service":
            text = re.sub(rf"(?<![\w./-]){re.escape(self.root)}(?=[/\s\"':]|$)", "{{ root }}", text)
        if line.name == "ExecStart" and line.section == "Service":
            program = self.unit.program
            inside = self.root and program.startswith(f"{self.root}/")
            if not inside and re.fullmatch(r"/[\w./+-]+", program):
                at = text.find(program)
                if at >= 0 and "{" not in text[:at]:
                    self._program(program)
                    end = at + len(program)
                    text = f"{text[:at]}{{{{ program | quote }}}}{text[end:]}"
            text = self._base_shown(text)
        return text

    def _program(self, program: str) -> None:
        self.values["program"] = (program, "another build: --set program=…")

    def _base_shown(self, text: str) -> str:
        for word in self.unit.arguments:
            if not (self.root and word.startswith(f"{self.root}/")) and (
                shown := self._shown(word)
            ):
                text = text.replace(word, f"{{{{ {shown} }}}}")
        return text

    def _socket_units(self) -> dict[str, str]:
        if not any(port.passed for port in self.ports):
            return {}
        found = {}
        for unit, text in self.facts.sockets.items():
            lines = [line.text for line in unitfile.parse(text) if not line.text.startswith("# /")]
            found[unit] = literal("\n".join(lines).strip("\n")) + "\n"
        return found

    # Environment.

    def _variables(self) -> dict[str, str]:
        return {**self.unit.environment, **self.others}

    def _environment(self) -> None:
        for name, value in self._variables().items():
            declared = name in self.unit.environment
            text = f"{name}={value}"
            if self._port_variable(name, value, text):
                continue
            edits = [
                edit
                for edit in (*self._file_edits(text), *self._path_edits(text))
                if edit.start > len(name)
            ]
            several = [] if declared is False else list(self._port_edits(text))
            for edit, port in several:
                edits.append(edit)
                port.argument = True
                port.where.append(f"the variable {name}")
            if not edits:
                continue
            if declared:
                edits = [*self._secret_edits(text), *edits]
                self.environment[name] = template(text, edits)[len(name) + 1 :]
            elif len(edits) == 1 and edits[0].end - edits[0].start == len(value):
                # Of what an environment file says only our own word is taken.
                self.environment[name] = edits[0].put

    def _port_variable(self, name: str, value: str, text: str) -> bool:
        """Whether a variable is one port and nothing else that [ports] could not say."""
        found = list(self._port_edits(text, pure=value.isdigit()))
        if len(found) != 1:
            return False
        [(edit, port)] = found
        before = value[: max(0, edit.start - len(name) - 1)]
        after = value[max(0, edit.end - len(name) - 1) :]
        middle = "{host}:{port}" if "host" in edit.put else "{port}"
        whole = before + middle + after
        simple = re.fullmatch(r"(?:[a-z]+://)?(?:[\w.-]*|\[[0-9a-f:]*\])?:?/?", before) and (
            re.fullmatch(r"/?", after)
        )
        if not simple or (edit.start <= len(name)):
            if name not in self.unit.environment:
                self.note(
                    f"{name} of its environment has {port.number} among other things, not copied",
                    "say in [instance.environment] what an instance needs",
                )
                return True
            return False
        port.env[name] = whole
        port.where.append(f"the variable {name}")
        return True

    # What is said of it.

    def _last_words(self) -> None:
        untold = [port for port in self.ports if not port.told]
        if untold:
            listed = ", ".join(f"{port.name} ({port.number})" for port in untold)
            self.note(
                f"nothing that was looked at tells it {listed}: its instances get private networks",
                "if it can be told, say how in [ports], and leave out network",
            )
        for path, source in self.facts.environment_files.items():
            if source.text is None:
                self.note(f"'{path}' {source.problem}: what it sets is not known")
        missing = sorted(set(self.from_files) - self._given())
        secret = [name for name in missing if words.secret_name(name)]
        if plain := [name for name in missing if name not in secret]:
            self.note(
                f"an environment file sets {', '.join(plain)}; instances do not read it",
                "give them what they need in [instance.environment]",
            )
        if left := [name for name, (default, _) in self.values.items() if default == CHANGE_ME]:
            self.note(
                f"secrets are not taken: {', '.join(left)} is '{CHANGE_ME}' in instances",
                "--set NAME=…, or [values]",
            )
        if secret:
            self.note(
                f"secrets are not taken: {', '.join(secret)} is '{CHANGE_ME}' in instances",
                "--env NAME=…, or [instance.environment]",
            )
        self._of_processes()
        if self.unit.setting("Type") == "oneshot":
            self.note("it is of Type=oneshot: it ends by itself", "only what stays can be ready")
        if self.unit.commands > 1:
            self.note("it has several ExecStart=", "an instance has one: look at instance.conf")

        for path in sorted(self.facts.closed):
            if not self.unit.is_state(path) and path not in self.facts.environment_files:
                self.note(
                    f"an instance has another user, who may not read '{path}'",
                    "give it one of its own, or a right to this",
                )

    def _given(self) -> set[str]:
        return {*self.environment, *(name for port in self.ports for name in port.env)}

    def _of_processes(self) -> None:
        if not self.facts.running:
            return
        if not self.facts.seen:
            self.note(
                "its processes may not be looked at: what it has open is not known",
                f"sudo understudy define {self.facts.unit}",
            )
        for path in sorted(self.facts.written):
            below = any(path == one or path.startswith(f"{one}/") for one in self.own)
            if not below and self.unit.is_state(path):
                self.note(
                    f"it writes '{path}', which nothing that was looked at names",
                    "find out where it is told, or an instance cannot write or two meet",
                )

    def _instance(self, command: list[str]) -> str:
        rows = list(command)
        kind = self.unit.setting("Type")
        if kind == "forking" and known.foreground(self.unit.stem):
            rows = ["# Production forks.", "Type=exec", *rows]
        elif kind == "forking":
            rows += [
                "# It forks; systemd guesses which process is the main one, without a PID file.",
                "# If it has an option to stay in the foreground: Type=exec, and that option.",
                "GuessMainPID=yes",
            ]
            self.note(
                "it forks (Type=forking)",
                "if it can stay in the foreground, say so in instance.conf: Type=exec",
            )
        elif kind == "dbus":
            rows += ["# Its name on the bus is production's.", "Type=exec", "BusName="]
        if self.root:
            rows += [
                "# What is relative is read from here, as in production; nothing may be written.",
                "WorkingDirectory={{ root }}",
            ]
        if self.made:
            paths = " ".join(self.made)
            rows += [
                "# Folders of its own, which are empty at its start.",
                "ExecStartPre=/bin/mkdir -p " + paths,
            ]
            if "NoExecPaths" in self.unit.settings:
                rows.append("ExecPaths=-/bin/mkdir -/usr/bin/mkdir")
        told = {
            f"{directive.removesuffix('Directory').upper()}_DIRECTORY"
            for directive in self.unit.made.values()
            if directive != "RuntimeDirectory"
        }
        if told:
            rows.append("# What systemd tells of folders that are production's alone.")
            rows += [f"Environment={name}={{{{ directory }}}}" for name in sorted(told)]
        if self.environment:
            rows.append("# Its own files, folders and ports in the place of production's.")
            rows += [
                f"Environment={_word(f'{name}={value}')}"
                for name, value in sorted(self.environment.items())
            ]
        if not rows:
            return ""
        head = [f"# What an instance of {self.name} needs different from production."]
        around = [name for name in _NOT_RUN if name in self.unit.settings]
        if around:
            head.append(f"# What production does around it is not done: {', '.join(around)}.")
        head.append("[Service]")
        return "\n".join([*head, *rows, ""])

    # service.toml.

    def _toml(self) -> str:
        rows = [
            f"# Written from the installed unit by: understudy define {self.facts.unit}",
            "# It is yours now: edit it, and try it out with: understudy check",
            f"description = {_toml(self.unit.description or self.name)}",
            f"production = {_toml(self.facts.unit)}",
        ]
        if self.values:
            rows += ["", "[values]"]
            first = ("root", "program")
            for name, (default, why) in sorted(
                self.values.items(),
                key=lambda item: (item[0] not in first, item[1][0] == CHANGE_ME),
            ):
                said = why or ("a secret, not production's" if default == CHANGE_ME else "")
                rows.append(f"{name} = {_toml(default)}" + (f"    # {said}" if said else ""))
        rows += self._toml_ports()
        if any(port.passed for port in self.ports):
            rows += ["", "# Its socket units bind the ports.", "[activation]"]
            rows += ['production = "sockets"', 'instance = "sockets"']
        rows += self._toml_instance()
        rows += self._toml_ready()
        return "\n".join([*rows, ""])

    def _toml_ports(self) -> list[str]:
        if not self.ports:
            return ["", "# [ports]", '# http = { tcp = 8080, env = "PORT", value = "{port}" }']
        rows = ["", "[ports]"]
        for port in self.ports:
            entry = [f"{port.transport} = {port.number}"]
            by_value: dict[str, list[str]] = {}
            for name, value in port.env.items():
                by_value.setdefault(value, []).append(name)
            value, env = next(iter(by_value.items()), ("", []))
            for other, more in list(by_value.items())[1:]:
                for name in more:
                    put = other.replace("{host}", "{{ host }}").replace("{port}", port.value)
                    self.environment[name] = put
            if env:
                entry.append(f"env = {_toml(env[0]) if len(env) == 1 else _toml_list(env)}")
                if value != "{host}:{port}":
                    entry.append(f"value = {_toml(value)}")
            if port.file and not env:
                entry.append(f"file = {_toml(port.file)}")
            if url := self._url(port):
                entry.append(f"url = {_toml(url)}")
            where = ", ".join(dict.fromkeys(port.where)) or (
                "its sockets" if port.passed else "nothing that was found tells it"
            )
            rows.append(f"# Told by {where}." if port.told else f"# {where}.")
            rows.append(f"{port.name} = {{ {', '.join(entry)} }}")
        return rows

    def _url(self, port: _Port) -> str:
        if port.transport is not Transport.TCP:
            return ""
        kind = port.name.partition("-")[0]
        if port.number in self.facts.answers or kind in ("http", "https"):
            return f"{'https' if kind == 'https' else 'http'}://{{host}}:{{port}}"
        return f"{kind}://{{host}}:{{port}}" if kind in ("redis", "rtsp", "mqtt") else ""

    def _toml_instance(self) -> list[str]:
        files = [one for one in self.files.values() if one.used]
        untold = [port for port in self.ports if not port.told]
        rows: list[str] = []
        if untold:
            rows += [
                "",
                "# Its ports are written into it: each instance has a network of its own.",
                "[instance]",
                'network = "private"',
            ]
        plain = [one for one in files if not one.over]
        if plain:
            rows += ["", "[instance.files]"]
            rows += [f"{_toml(one.name)} = {_toml(f'{one.name}.j2')}" for one in plain]
        for one in files:
            if one.over:
                rows += ["", f"[instance.files.{_toml(one.name)}]"]
                rows += [f"from = {_toml(f'{one.name}.j2')}", f"over = {_toml(one.over)}"]
        missing = sorted(set(self.from_files) - self._given())
        if missing or self.facts.environment_files:
            rows += [
                "",
                "# What production has in environment files is its own: instances do not read",
            ]
            rows += [f"# {', '.join(self.facts.environment_files)}"]
            rows.append("[instance.environment]")
            for name in missing:
                secret = words.secret_name(name)
                rows.append(f"{name} = {_toml(CHANGE_ME)}" if secret else f'# {name} = ""')
        return rows

    def _toml_ready(self) -> list[str]:
        for port in self.ports:
            status = self.facts.answers.get(port.number)
            if port.transport is Transport.TCP and status is not None:
                said = "" if status == 200 else f", status = {status}"
                return ["", "[ready]", f'http = {{ port = {_toml(port.name)}, path = "/"{said} }}']
        http = [port for port in self.ports if port.name.startswith("http")]
        if http and not self.facts.running:
            return [
                "",
                "# It was not running. If it answers at /, this says when it is ready:",
                "# [ready]",
                f'# http = {{ port = {_toml(http[0].name)}, path = "/" }}',
            ]
        return []


def _beside(path: str, pattern: str) -> str:
    """A pattern of a file's include directive, absolute."""
    if pattern.startswith("/"):
        return pattern
    return str(PurePosixPath(path).parent / pattern)


def _word(text: str) -> str:
    """A template that gives a word, quoted where systemd would take it apart."""
    bare = re.sub(r"\{\{.*?\}\}", "", text)
    if text and (not bare or _PLAIN_WORD.fullmatch(bare)):
        return text
    pieces = re.split(r"(\{\{.*?\}\})", text)  # at odd places the expressions
    quoted = [unitfile.quote(one)[1:-1] if at % 2 == 0 else one for at, one in enumerate(pieces)]
    return f'"{"".join(quoted)}"'


def _qualifier(key: str) -> str:
    """What a key says of its port: ``admin`` of ``ADMIN_PORT``; "" of ``PORT``."""
    key = re.sub(r"([a-z0-9])([A-Z])", r"\1-\2", key.lstrip("-"))
    parts = re.split(r"[._-]+", key.lower())
    common = {"port", "ports", "listen", "listener", "bind", "address", "addr", "server", "p", "l"}
    common |= {"endpoint", "socket", "tcp", "udp", "virtualhost", "b", "host", "app", "d", "a", ""}
    left = [part for part in parts if part not in common]
    return left[-1] if len(left) == 1 and len(parts) > 1 else ""


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_list(items: Iterable[str]) -> str:
    return f"[{', '.join(_toml(one) for one in items)}]"
