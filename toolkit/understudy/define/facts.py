"""What was found out of an installed unit, and the definition that is written from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from understudy.model import ManagerKind, Transport


class PathKind(StrEnum):
    """What lies at a path."""

    DIRECTORY = "directory"
    FILE = "file"
    SOCKET = "socket"
    ABSENT = "absent"
    HIDDEN = "hidden"
    """The caller may not look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A socket that the service, or a socket unit for it, listens on.

    Attributes:
        transport: TCP or UDP.
        number: The port.
        address: The address it is bound to: ``0.0.0.0``, ``127.0.0.1``, ``::``.
    """

    transport: Transport
    number: int
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that the service is told by.

    Attributes:
        text: Its content; None where it cannot be read. It may hold secrets.
        private: Whether not every user may read it.
        problem: Why there is no text, for people.
    """

    text: str | None = field(default=None, repr=False)
    private: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that was found out of an installed unit.

    Attributes:
        unit: Its name, an alias followed.
        kind: Whose manager has it.
        text: Its file and its drop-ins, as ``systemctl cat`` prints them.
        running: Whether it runs.
        listeners: What it listens on; empty if it does not run.
        sockets: The text of each socket unit that starts it, by name.
        specifiers: What the manager's specifiers mean (``S``: ``/var/lib``).
        files: Files it is told of, or that lie where such services have theirs, by path.
        matches: The files that a pattern of an include directive stands for.
        kinds: What lies at the paths that are named somewhere.
        environment_files: What its ``EnvironmentFile=`` hold, by path.
        environ: The environment of its main process, without what its manager puts there; empty
            where that may not be seen.
        others_sockets: Unix sockets that are named and that somebody else listens on.
        closed: Paths that are named and that not every user may read.
        written: Files that it has open for writing, and unix sockets that it listens on.
        seen: Whether its processes could be looked at.
        answers: HTTP status of ``GET /``, by TCP port.
        known_as: The name of a port in services(5).
    """

    unit: str
    kind: ManagerKind
    text: str = field(repr=False)
    running: bool = False
    listeners: tuple[Listener, ...] = ()
    sockets: Mapping[str, str] = field(default_factory=dict)
    specifiers: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Source] = field(default_factory=dict)
    matches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kinds: Mapping[str, PathKind] = field(default_factory=dict)
    environment_files: Mapping[str, Source] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    others_sockets: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    seen: bool = True
    answers: Mapping[int, int] = field(default_factory=dict)
    known_as: Mapping[tuple[Transport, int], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What could not be found out, or has to be decided by whoever the definition is for.

    Attributes:
        text: What it is.
        hint: What to edit.
    """

    text: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.hint}" if self.hint else self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A definition that is not written yet.

    Attributes:
        name: The service's name.
        files: The folder's files, by name.
        private: Those of them that come from files which not every user may read.
        notes: What to look at.
    """

    name: str
    files: Mapping[str, str]
    private: frozenset[str] = frozenset()
    notes: tuple[Note, ...] = ()
