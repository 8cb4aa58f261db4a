"""What is settled while a definition is written, and what is changed in every text of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from understudy.define import known, words
from understudy.define.facts import Facts, Note, PathKind
from understudy.define.installed import Unit, variables
from understudy.define.words import CHANGE_ME, Edit, Mention
from understudy.model import ManagerKind, Transport
from understudy.services import TEMPLATE_NAMES

_TAKEN = TEMPLATE_NAMES | {"argv", "program", "root", "service"}


@dataclass(kw_only=True)
class Port:
    """A port in the making.

    Attributes:
        transport: TCP or UDP.
        number: Production's number.
        address: The address that it is bound to; "" if that is not known.
        name: What it is to be called.
        keys: What it is called where it is told.
        env: Variables that tell it, with what they are set to.
        file: The copy of a configuration file that tells it first; "" if none does.
        argument: Whether an argument tells it, or a variable of the drop-in.
        passed: Whether a socket unit binds it.
        where: Everything that tells it, for people.
    """

    transport: Transport
    number: int
    address: str = ""
    name: str = ""
    keys: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    file: str = ""
    argument: bool = False
    passed: bool = False
    where: list[str] = field(default_factory=list)

    @property
    def told(self) -> bool:
        """Whether an instance is told its own number."""
        return bool(self.env or self.file or self.argument or self.passed)

    @property
    def value(self) -> str:
        """The template's expression."""
        name = f".{self.name}" if self.name.isidentifier() else f'["{self.name}"]'
        return f"{{{{ ports{name} }}}}"


class Plan:
    """A definition in the making.

    Args:
        facts: What was found out of the unit.
        name: What the service is to be called.
    """

    def __init__(self, facts: Facts, name: str) -> None:
        self.facts = facts
        self.name = name
        text = facts.text
        if facts.kind is ManagerKind.USER:
            # To whoever runs instances it is that user's home, and not the own one.
            text = re.sub(r"(?<!%)%h", lambda _: facts.specifiers.get("h", "%h"), text)
        self.unit = Unit(facts.unit, text, facts.specifiers)
        self.values: dict[str, tuple[str, str]] = {}
        """Default, and a word on it, by name."""
        self.notes: list[Note] = []
        self.ports: list[Port] = []
        self.secrets: set[str] = set()
        self.own: dict[str, str] = {}
        """What stands in an instance for each path that is production's own."""
        self.made: list[str] = []
        """Folders that an instance has to make for itself."""
        self.environment: dict[str, str] = {}
        """Variables of its drop-in, as templates."""
        self.root = self._root()
        """The folder that it reads from; "" if there is none."""
        files = [source.text or "" for source in facts.environment_files.values()]
        self.from_files = {key: value for text in files for key, value in variables(text).items()}
        """What environment files set."""
        self.others = {**self.from_files, **facts.environ}
        for key in self.unit.environment:
            self.others.pop(key, None)
        """Variables that the unit itself does not set."""
        self.secrets |= {value for key, value in self.others.items() if words.secret_name(key)}

    def note(self, text: str, hint: str = "") -> None:
        """Say something once: what it is, and what to edit."""
        if (one := Note(text=text, hint=hint)) not in self.notes:
            self.notes.append(one)

    def _root(self) -> str:
        # Where it writes it does not read from, unless its program lies there.
        folder = self.unit.folder
        if not folder or len(PurePosixPath(folder).parts) < 3:
            return ""
        deployed = any(
            self.facts.kinds.get(self.unit.absolute(word)) is PathKind.FILE
            for word in self.unit.arguments
            if not word.startswith(("/", "-"))
        )
        return folder if deployed or not self.unit.is_state(folder) else ""

    def value(self, name: str, default: str = CHANGE_ME, why: str = "") -> str:
        """Declare a value for templates, and give the name it has."""
        name = re.sub(r"\W", "_", name) or "secret"
        name = f"{name}_" if name in _TAKEN and default == CHANGE_ME else name
        name = f"v{name}" if name[0].isdigit() else name
        self.values.setdefault(name, (default, why))
        return name

    def port(self, transport: Transport, number: int) -> Port | None:
        """The port of that number; None if there is none."""
        same = (one for one in self.ports if (one.transport, one.number) == (transport, number))
        return next(same, None)

    def named(self, one: Mention, *, pure: bool = False) -> Port | None:
        """The port that a number names; None if it is another's, or of TCP and UDP both.

        Args:
            one: The number.
            pure: Whether it stands alone, as an argument or a variable: then it is a port unless
                its name says that something else is counted.
        """
        found = [port for port in self.ports if port.number == one.number]
        if len(found) != 1:
            return None
        addresses = [port.address for port in found if port.address]
        alone = pure and not any(words.is_measure(key) for key in one.keys)
        return found[0] if alone or one.names(addresses) else None

    def port_edits(self, text: str, *, pure: bool = False) -> Iterator[tuple[Edit, Port]]:
        """The instance's numbers in the place of production's (``pure`` as in `named`)."""
        for one in words.mentions(text):
            port = self.named(one, pure=pure)
            if port is None:
                continue
            why = f"production: {port.number}"
            if one.everywhere:
                put = f"{{{{ host }}}}:{port.value}"
                yield Edit(one.host_start, one.end, put, f"{why}, on every address"), port
            else:
                yield Edit(one.start, one.end, port.value, why), port

    def secret_edits(self, text: str, *, private: bool = False) -> Iterator[Edit]:
        """Values in the place of secrets, in a private file also of what merely looks like one."""
        for one in [*words.secrets(text), *(words.opaque(text) if private else ())]:
            self.secrets.update(text[one.start : one.end].strip("\"'").splitlines())
            put = f"{{{{ {self.value(one.name)} }}}}"
            yield Edit(one.start, one.end, f'"{put}"' if one.block else put, "a secret, not taken")

    def path_edits(self, text: str) -> Iterator[Edit]:
        """The instance's places in those of production."""
        for start, _end, path in words.paths(text):
            place = path.rstrip("/")
            if (put := self.own.get(place)) is not None:
                yield Edit(start, start + len(place), put, f"its own, not {place}")

    def root_edits(self, text: str) -> Iterator[Edit]:
        """The value ``root`` in the place of the folder that it reads from."""
        if self.root:
            for start, _end, path in words.paths(text):
                if path == self.root or path.startswith(f"{self.root}/"):
                    yield Edit(start, start + len(self.root), "{{ root }}")

    def variables(self) -> dict[str, str]:
        """All of its environment that is known."""
        return {**self.unit.environment, **self.others}

    def argument_text(self, at: int) -> str:
        """A word of the command after the option that it may be the value of."""
        before = self.unit.arguments[at - 1] if at else ""
        word = self.unit.arguments[at]
        option = before.startswith("-") and not word.startswith("-") and "=" not in before
        return f"{before} {word}" if option else word

    def words(self) -> list[str]:
        """Its arguments and its variables."""
        arguments = [self.argument_text(at) for at in range(len(self.unit.arguments))]
        return arguments + [f"{key}={value}" for key, value in self.variables().items()]

    def configuration(self) -> list[str]:
        """The texts of the files that it is told of, and of usual ones that name its ports."""
        told = [*self.unit.told(self.variables().values()), *self.default_files()]
        texts = {path: list(self._all_texts(path)) for path in told}
        for path, found in self.usual_configuration().items():
            mentioned = (one for text in found for one in words.mentions(text))
            if any(self.named(one) is not None for one in mentioned):
                texts.setdefault(path, found)
        return [text for found in texts.values() for text in found]

    def usual_configuration(self) -> dict[str, list[str]]:
        """The texts of files where such a service has its configuration, by path."""
        return {path: list(self._all_texts(path)) for path in self.unit.usual()}

    def _all_texts(self, path: str, seen: frozenset[str] = frozenset()) -> Iterator[str]:
        """A configuration file's text and those that it includes."""
        source = self.facts.files.get(path)
        if source is None or source.text is None or path in seen:
            return
        text = words.without_comments(source.text)
        yield text
        for one in words.includes(text):
            for found in self.facts.matches.get(words.beside(path, one.pattern), ()):
                yield from self._all_texts(found, seen | {path})

    def default_files(self) -> list[str]:
        """The file that its program reads where it is told of none."""
        default = known.CONFIG_DEFAULT.get(self.unit.stem)
        told = any(path in self.facts.files for path in self.unit.told(()))
        return [] if default is None or told else [default]

    def unread(self) -> set[str]:
        """The configuration files that it is told of and that the caller may not read."""
        told = {self.unit.absolute(word) for word in self.unit.arguments}
        return {
            path for path in told & self.facts.files.keys() if self.facts.files[path].text is None
        }

    def given(self) -> set[str]:
        """The variables that an instance is given."""
        return {*self.environment, *(name for port in self.ports for name in port.env)}
