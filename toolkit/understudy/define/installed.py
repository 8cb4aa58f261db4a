"""An installed unit, read: its command, its environment, where it may be told its ports. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from understudy import envfile, unitfile
from understudy.derive import unit_name_specifiers
from understudy.model import Transport

DIRECTORIES: Final = {
    "StateDirectory": "S",
    "CacheDirectory": "C",
    "LogsDirectory": "L",
    "RuntimeDirectory": "t",
    "ConfigurationDirectory": "E",
}
"""The directives of systemd.exec(5) that make folders, and the specifier of where."""

_EXEC_PREFIXES = "@-:+!|"
_SPECIFIER = re.compile(r"%(.)")
_STATE = ("/var/lib", "/var/log", "/var/cache", "/var/spool", "/var/tmp", "/var/run", "/run")
_STATE_HERE = (*_STATE, "/tmp", "/dev/shm")
_HOME_STATE = (".local/share", ".local/state", ".cache")
_NOT_ITS_OWN = re.compile(r"(?:/var)?/run/(?:systemd|dbus|udev|credentials|lock)(?:/|$)")
_INTERPRETERS = re.compile(
    r"python[\d.]*|node|ruby|perl|php[\d.]*|java|bash|sh|dash|env|uvicorn|gunicorn"
)
SUFFIXES: Final = ("conf", "cfg", "ini", "yaml", "yml", "toml", "json")
"""How configuration files are called."""

PROGRAMS: Final = (".py", ".pyc", ".js", ".mjs", ".rb", ".pl", ".sh", ".php", ".jar", ".lua", ".so")
"""How programs are called that are given to an interpreter."""
_BESIDE = ("config", "settings", "app", "server")
_MANAGERS = re.compile(
    r"SYSTEMD_\w+|LISTEN_\w+|MAINPID|INVOCATION_ID|JOURNAL_STREAM|NOTIFY_SOCKET|MANAGERPID|PATH"
    r"|HOME|PIDFILE|WATCHDOG_\w+|(?:STATE|CACHE|LOGS|CONFIGURATION|RUNTIME|CREDENTIALS)_DIRECTORY"
    r"|LANG|LC_\w+|USER|LOGNAME|SHELL|PWD|TERM|XDG_\w+|DBUS_\w+|MEMORY_PRESSURE_\w+"
)
_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


class Socket(NamedTuple):
    """What one ``Listen…=`` of a socket unit names.

    Attributes:
        transport: TCP or UDP.
        number: The port; 0 for a path.
        name: ``FileDescriptorName=``; "" if there is none.
        path: A unix socket's path; "" for a port.
    """

    transport: Transport
    number: int
    name: str
    path: str


class Unit:
    """An installed service unit.

    Args:
        name: Its name.
        text: Its file and drop-ins.
        specifiers: What the manager's specifiers mean.
    """

    def __init__(self, name: str, text: str, specifiers: Mapping[str, str]) -> None:
        self.name = name
        self.lines = list(unitfile.parse(text))
        self._specifiers = {**specifiers, **unit_name_specifiers(name), "%": "%"}
        self.settings: dict[str, list[str]] = {}
        service = [line for line in self.lines if line.section == "Service"]
        for key, value in unitfile.effective(service):
            self.settings.setdefault(key, []).append(value)
        self.description = next(
            (
                one.value
                for one in self.lines
                if one.section == "Unit" and one.name == "Description"
            ),
            "",
        )
        words = [unitfile.split(value) for value in self.settings.get("ExecStart", [])]
        self.commands = len(words)
        firsts = [command[0] for command in words if command]
        self.privilege = "".join(
            char for first in firsts for char in _prefix(first) if char in "+!"
        )
        """The prefixes of its commands that give rights of root."""
        first, *others = words[-1] if words and words[-1] else [""]
        self.prefix = _prefix(first)
        self.program = first.removeprefix(self.prefix)
        self.arguments = others[1 if "@" in self.prefix else 0 :]
        """Without the program; specifiers and variables as they are."""

    def setting(self, name: str) -> str:
        """The last value of a directive of ``[Service]``; "" if it has none."""
        return self.settings.get(name, [""])[-1]

    def expand(self, text: str) -> str:
        """A text with the specifiers that are known."""
        return _SPECIFIER.sub(lambda match: self._specifiers.get(match[1], match[0]), text)

    @cached_property
    def stem(self) -> str:
        """The program's name, without its folder."""
        return PurePosixPath(self.expand(self.program)).name

    @cached_property
    def folder(self) -> str:
        """``WorkingDirectory=`` as a path; "" if there is none, or only a home is meant."""
        path = self.expand(self.setting("WorkingDirectory").removeprefix("-"))
        return path.rstrip("/") if path.startswith("/") else ""

    @cached_property
    def environment(self) -> dict[str, str]:
        """``Environment=``, by name."""
        found: dict[str, str] = {}
        for value in self.settings.get("Environment", []):
            for word in unitfile.split(value):
                name, _, text = word.partition("=")
                found[name] = self.expand(text)
        return found

    @cached_property
    def environment_files(self) -> list[str]:
        """The paths of ``EnvironmentFile=``."""
        files = self.settings.get("EnvironmentFile", [])
        return [self.expand(value.removeprefix("-")) for value in files]

    @cached_property
    def made(self) -> dict[str, str]:
        """The folders that systemd makes for it, by path: the directive."""
        found = {}
        for directive, specifier in DIRECTORIES.items():
            for value in self.settings.get(directive, []):
                for word in self.expand(value).split():
                    root = self._specifiers.get(specifier, "")
                    found[f"{root}/{word.partition(':')[0]}"] = directive
        return found

    def is_state(self, path: str) -> bool:
        """Whether a path lies where a service has what is its own: state, logs, sockets."""
        if _NOT_ITS_OWN.match(path):
            return False
        home = self._specifiers.get("h", "")
        roots = [*_STATE_HERE, *(f"{home}/{place}" for place in _HOME_STATE if home)]
        return any(path.startswith(f"{root}/") for root in roots) or any(
            path == made or path.startswith(f"{made}/") for made in self.made
        )

    def absolute(self, word: str) -> str:
        """A word of its command as a path, where it can be one; else ""."""
        path = self.expand(word)
        if path.startswith("/"):
            return str(PurePosixPath(path))
        if self.folder and re.fullmatch(r"(?:\./)?[\w][\w./+-]*", path):
            return str(PurePosixPath(self.folder, path))
        return ""

    def told(self, environment: Iterable[str]) -> Iterator[str]:
        """The paths that its arguments and its environment name.

        Args:
            environment: The values of its variables.
        """
        for word in self.arguments:
            for part in (word, word.partition("=")[2], word.rpartition(":")[2]):
                if part and (path := self.absolute(part)):
                    yield path
        for value in environment:
            for part in (value, value.rpartition(":")[2]):
                if part.startswith("/"):
                    yield part

    def usual(self) -> list[str]:
        """Where such a service has its configuration, if nobody says where."""
        stem = self.name.removesuffix(".service").partition("@")[0]
        names = [stem, stem.removesuffix("-server")]
        if self.stem and not _INTERPRETERS.fullmatch(self.stem):
            names.append(self.stem)
        home = self._specifiers.get("h", "")
        roots = ["/etc", *([f"{home}/.config"] if home.startswith("/home/") else [])]
        found = []
        for name in dict.fromkeys(names):
            for root in roots:
                found += [f"{root}/{name}/{name}.{suffix}" for suffix in SUFFIXES]
                found += [
                    f"{root}/{name}/{other}.{suffix}" for other in _BESIDE for suffix in SUFFIXES
                ]
                found += [f"{root}/{name}.{suffix}" for suffix in SUFFIXES]
        if self.folder:
            beside = dict.fromkeys((*_BESIDE, *names))
            found += [f"{self.folder}/{one}.{suffix}" for one in beside for suffix in SUFFIXES]
        return found


def _prefix(word: str) -> str:
    return word[: len(word) - len(word.lstrip(_EXEC_PREFIXES))]


def variables(text: str) -> dict[str, str]:
    """The variables of an environment file, by name, as far as they are called like ones.

    Args:
        text: Its content; a line of a key, say, is no variable.
    """
    return {name: value for name, value in envfile.read(text).items() if _NAME.fullmatch(name)}


def of_service(environ: Mapping[str, str]) -> dict[str, str]:
    """A process's environment without what a manager puts there."""
    return {name: value for name, value in environ.items() if not _MANAGERS.fullmatch(name)}


def sockets(text: str) -> list[Socket]:
    """What a socket unit listens on (systemd.socket(5)).

    Args:
        text: Its file and drop-ins.
    """
    lines = [line for line in unitfile.parse(text) if line.section == "Socket"]
    rows = unitfile.effective(lines)
    name = next((value for key, value in rows[::-1] if key == "FileDescriptorName"), "")
    found = []
    for key, value in rows:
        if key not in ("ListenStream", "ListenDatagram"):
            continue
        transport = Transport.TCP if key == "ListenStream" else Transport.UDP
        port = value.rpartition(":")[2]
        if value.startswith(("/", "@", "%", "vsock:")) or not port.isdigit():
            found.append(Socket(transport, 0, name, value))
        else:
            found.append(Socket(transport, int(port), name, ""))
    return found
