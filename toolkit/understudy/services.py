"""Service definitions: where they are found, and ``service.toml`` read strictly.

A mistake is a `DefinitionError` that names the file, the key and what is allowed there: a
definition that is silently half-read would start an instance on production's ports.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from understudy.confided import PLACEHOLDER
from understudy.errors import DefinitionError, UsageError, nearest_hint
from understudy.model import (
    IDLE_S,
    Activation,
    DeployDirectory,
    DeployFile,
    Deployment,
    HttpCheck,
    InstanceFile,
    Port,
    Secret,
    Service,
    Transport,
    UsedPort,
    UsedPrefix,
)
from understudy.names import RESERVED, valid_port_name, valid_service_name

SYSTEM_UNITS = Path("/etc/understudy/units")
"""Definitions of this host, for everybody."""

IDLE_LIMIT_S: Final = 365 * 24 * 3600

TEMPLATE_NAMES: Final = frozenset(
    {
        *("directory", "files", "host", "number", "ports", "run", "service", "unit", "used"),
        "secret_environment",
    }
)
"""What templates find beside the definition's values; no value may be called so."""

FILES_OF_OURS: Final = frozenset({"confided.json", "gate", "network.env", "secrets.env"})
"""What lies beside an instance's own files."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+\.service")
_PLACEHOLDER = re.compile(r"\{host\}|\{port\}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}")
_MODE = re.compile(r"0?[0-7]{3}")
_VALUE = re.compile(r"\{([^{}]*)\}")
_PLACE = re.compile(r"(/[A-Za-z0-9_@.+-]+)+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_T = TypeVar("_T")


@lru_cache
def shipped_units() -> Path:
    """The definitions that come with the toolkit: the package's, else the checkout's ``units/``."""
    package = Path(__file__).parent
    installed = package / "_units"
    return installed if installed.is_dir() else package.parent.parent / "units"


def find(
    name: str,
    *,
    units: Path | None = None,
    as_root: bool | None = None,
    cwd: Path | None = None,
    home: Path | None = None,
) -> Service:
    """Find a service by name and read its definition; the first place that has it wins.

    Args:
        name: The service's name, as its folder is called.
        units: A folder of definitions to look in before all others (``--units``).
        as_root: Whether root asks: then neither the working directory nor a home is looked in,
            for somebody else may write there. None: as this process is.
        cwd: The working directory; None: this process's.
        home: The home directory; None: the caller's.

    Raises:
        UsageError: There is no service of that name; the hint has the nearest one.
        DefinitionError: Its definition is wrong.
    """
    found = folders(units=units, as_root=as_root, cwd=cwd, home=home)
    if name in found:
        return load(*found[name])
    near = _passed_by((cwd or Path()) / "units" / name) + nearest_hint(name, found)
    known = ", ".join(sorted(found)) or "none"
    raise UsageError(
        f"Cannot find service '{name}': no definition of that name",
        hint=f"{near}known services: {known}; see: understudy services",
    )


def _passed_by(folder: Path) -> str:
    # Only root finds nothing in a working directory that has it.
    if not os.path.isfile(folder / "service.toml"):  # noqa: PTH113 - where one may not look: False
        return ""
    return "root takes ./units only when it is named: --units units; "


def folders(
    *,
    units: Path | None = None,
    as_root: bool | None = None,
    cwd: Path | None = None,
    home: Path | None = None,
) -> dict[str, tuple[Path, str]]:
    """Where each service is found, unread: its folder and its origin, by name.

    The arguments are those of `find`.

    Raises:
        UsageError: ``units`` is not a folder.
    """
    if units is not None and not units.is_dir():
        raise UsageError(
            f"Cannot read definitions from '{units}': not a folder",
            hint="--units takes a folder that holds one folder per service",
        )
    found: dict[str, tuple[Path, str]] = {}
    for place, origin in _places(units, as_root, cwd, home):
        # A home that is another user's (sudo -u keeps HOME) cannot be looked into: nothing there.
        with contextlib.suppress(PermissionError):
            for file in sorted(place.glob("*/service.toml")):
                found.setdefault(file.parent.name, (file.parent, origin))
    return found


def production_ports(*, units: Path | None = None) -> frozenset[tuple[Transport, int]]:
    """Every port number that a definition calls production's; one that is wrong has none.

    Every run asks for them, so what was read is kept until its file changes.

    Args:
        units: A folder of definitions to look in before all others (``--units``).

    Raises:
        UsageError: ``units`` is not a folder.
    """
    return frozenset(
        (port.transport, number)
        for service in every(units=units)
        for port in service.ports.values()
        for number in (port.number, port.behind)
        if number is not None
    )


def used_numbers(
    service: Service, *, units: Path | None = None, as_root: bool | None = None
) -> dict[str, dict[str, int]]:
    """Production's numbers of the services that a service talks to, by service and port name.

    Args:
        service: The definition.
        units: A folder of definitions to look in before all others (``--units``).
        as_root: As for `find`.

    Raises:
        UsageError: There is no definition of one of them.
        DefinitionError: The definition of one of them is wrong.
    """
    return {
        name: {
            port.name: port.number
            for port in find(name, units=units, as_root=as_root).ports.values()
            if port.number is not None
        }
        for name in service.uses
    }


def production_units(*, units: Path | None = None) -> list[str]:
    """The unit of each production that stays where it is put, not stopped whenever it is idle.

    Args:
        units: A folder of definitions to look in before all others (``--units``).

    Raises:
        UsageError: ``units`` is not a folder.
    """
    found = {
        service.production: None
        for service in every(units=units)
        if service.production is not None and service.production_activation is not Activation.PROXY
    }
    return list(found)


def every(*, units: Path | None = None) -> Iterator[Service]:
    """Every definition that is right.

    Args:
        units: A folder of definitions to look in before all others (``--units``).

    Raises:
        UsageError: ``units`` is not a folder.
    """
    for folder, _origin in folders(units=units).values():
        with contextlib.suppress(DefinitionError, OSError):
            yield _read(folder, (folder / "service.toml").stat().st_mtime_ns)


@lru_cache
def _read(folder: Path, _changed_ns: int) -> Service:
    return load(folder, "")


def _places(
    units: Path | None, as_root: bool | None, cwd: Path | None, home: Path | None
) -> Iterator[tuple[Path, str]]:
    if units is not None:
        yield units, str(units)
    if not (os.geteuid() == 0 if as_root is None else as_root):
        yield (cwd or Path.cwd()) / "units", "./units"
        yield (home or Path.home()) / ".config/understudy/units", "~/.config/understudy/units"
    yield SYSTEM_UNITS, str(SYSTEM_UNITS)
    yield shipped_units(), "shipped"


def opened(service: Service, asked: Collection[str] = ()) -> Service:
    """The definition with just the ports that an instance opens.

    Args:
        service: The definition.
        asked: Names of ports that are closed otherwise (``switch``); those with the same switch
            are opened with them.
    """
    switches = {service.ports[name].switch for name in asked} | {None}
    ports = {name: port for name, port in service.ports.items() if port.switch in switches}
    return replace(service, ports=ports)


def load(folder: Path, origin: str) -> Service:
    """Read one definition.

    Args:
        folder: The folder that holds ``service.toml``; its name is the service's.
        origin: Where it was found, for people.

    Raises:
        DefinitionError: It cannot be read or is wrong: names file, key and what is allowed.
    """
    file = folder / "service.toml"
    if not valid_service_name(folder.name):
        taken = " (reserved)" if folder.name in RESERVED else ""
        raise DefinitionError(
            f"Cannot read '{file}': '{folder.name}' is no name for a service{taken}",
            hint="a folder's name is lower case letters, digits and single dashes, but not "
            + " or ".join(sorted(RESERVED)),
        )
    try:
        with file.open("rb") as stream:
            content = tomllib.load(stream)
    except OSError as exc:
        raise DefinitionError(
            f"Cannot read '{file}': {exc.strerror}",
            hint="a definition is a folder with a service.toml in it",
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise DefinitionError(f"Cannot read '{file}': not TOML: {exc}") from exc
    return _service(_Table(file, "", content), folder, origin)


class _Table:
    """One TOML table, whose keys are taken one by one; what is left over is a mistake."""

    def __init__(self, file: Path, path: str, content: Mapping[str, object]) -> None:
        self.file = file
        self.path = path
        self._content = dict(content)
        self._asked: list[str] = []

    def where(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def fail(self, key: str, problem: str, allowed: str) -> NoReturn:
        raise DefinitionError(
            f"Cannot read '{self.file}': {self.where(key)}: {problem}", hint=f"allowed: {allowed}"
        )

    def _take(self, key: str, kind: type[_T], allowed: str) -> _T | None:
        self._asked.append(key)
        value = self._content.pop(key, None)
        if value is None:
            return None
        # A TOML boolean is no number, though Python's is one.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.fail(key, f"wrong type {_toml_type(value)}", allowed)
        return value

    def text(self, key: str) -> str | None:
        value = self._take(key, str, "a string")
        if value is not None:
            self.check_line(key, value)
        return value

    def check_line(self, key: str, value: str) -> None:
        if _CONTROL.search(value):
            self.fail(key, "a control character in a string", "one line of text")

    def number(self, key: str, first: int, last: int) -> int | None:
        allowed = f"a whole number from {first} to {last}"
        value = self._take(key, int, allowed)
        if value is not None and not first <= value <= last:
            self.fail(key, f"{value} is out of range", allowed)
        return value

    def flag(self, key: str) -> bool:
        return self._take(key, bool, "true or false") or False

    def table(self, key: str, allowed: str = "a table") -> _Table:
        value: dict[str, object] = self._take(key, dict, allowed) or {}
        return _Table(self.file, self.where(key), value)

    def tables(self, allowed: str) -> Iterator[tuple[str, _Table]]:
        """Every key of this table, each a table itself."""
        for key in list(self._content):
            yield key, self.table(key, allowed)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every key of this table, each a string."""
        for key in list(self._content):
            yield key, self.text(key) or ""

    def one_or_more(self, key: str) -> tuple[str, ...]:
        """A string, or a list of them."""
        allowed = "a string or a list of strings"
        value = self._take(key, object, allowed)
        entries = [] if value is None else value if isinstance(value, list) else [value]
        for entry in entries:
            if not isinstance(entry, str):
                self.fail(key, f"wrong type {_toml_type(entry)}", allowed)
        return tuple(entries)

    def text_or_table(self, key: str) -> str | _Table:
        if isinstance(self._content.get(key), str):
            return self.text(key) or ""
        return self.table(key, "a template's name, or a table with 'from' and 'over'")

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._content))

    def finish(self) -> None:
        """Demand that every key was asked for."""
        for key in self._content:
            near = nearest_hint(key, self._asked)
            self.fail(key, "unknown key", f"{', '.join(self._asked)}. {near}".rstrip(". "))


def _toml_type(value: object) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "float", list: "array"}
    return names.get(type(value), "table" if isinstance(value, dict) else type(value).__name__)


def _service(top: _Table, folder: Path, origin: str) -> Service:
    description = top.text("description")
    if not description:
        top.fail("description", "missing", "a noun phrase, for people")
    production = top.text("production")
    if production is not None and not _UNIT_NAME.fullmatch(production):
        top.fail(
            "production", f"'{production}' is no unit name", "a service unit: 'mediamtx.service'"
        )
    singleton = top.flag("singleton")
    values = _values(top.table("values"))
    secrets = _secrets(top.table("secrets"), values)
    port_table = top.table("ports")
    ports = _ports(port_table)
    uses, prefixes, uses_secrets = _uses(top.table("uses"))
    activation = top.table("activation")
    production_activation = _activation(activation, "production")
    instance_activation = _activation(activation, "instance")
    if instance_activation is Activation.PROXY:
        ways = f"{Activation.NONE}, {Activation.SOCKETS}"
        problem = "'proxy' is for production alone"
        activation.fail("instance", problem, f'{ways}; or: [instance] network = "private"')
    idle_s = activation.number("idle", 1, IDLE_LIMIT_S)
    _check_proxied(activation, port_table, ports, production_activation, idle_s)
    activation.finish()
    instance = top.table("instance")
    environment = _environment(instance.table("environment"))
    files = _files(instance.table("files"), folder)
    private = _private(instance)
    instance.finish()
    deploy = _deploy(top.table("deploy"), folder, values, secrets)
    ready = _ready(top.table("ready"), ports, [*values, *secrets])
    top.finish()
    _check_ports(port_table, ports, files)
    return Service(
        name=folder.name,
        description=description,
        production=production,
        singleton=singleton,
        folder=folder,
        origin=origin,
        values=values,
        secrets=secrets,
        ports=ports,
        uses=uses,
        uses_secrets=uses_secrets,
        prefixes=prefixes,
        production_activation=production_activation,
        instance_activation=instance_activation,
        idle_s=IDLE_S if idle_s is None else idle_s,
        files=files,
        environment=environment,
        private=private,
        ready=ready,
        deploy=deploy,
    )


def _values(table: _Table) -> dict[str, str]:
    values = dict(table.texts())
    for name in values:
        if not (name.isidentifier() and name.isascii()):
            table.fail(name, "no name for a value", "letters, digits and underscores")
        if name in TEMPLATE_NAMES:
            table.fail(
                name, "this name is taken", f"not one of {', '.join(sorted(TEMPLATE_NAMES))}"
            )
    return values


def _secrets(table: _Table, values: Mapping[str, str]) -> dict[str, Secret]:
    entries = dict(table.tables("a table: { environment = { PASSWORD = '{password}' } }"))
    for name in entries:
        if not (name.isidentifier() and name.isascii()):
            table.fail(name, "no name for a secret", "letters, digits and underscores")
        if name in TEMPLATE_NAMES or name in values:
            table.fail(name, "this name is taken", "a name of its own, which is in no [values]")
    secrets = {}
    for name, entry in entries.items():
        environment = entry.table("environment")
        variables = _environment(environment)
        for variable, text in variables.items():
            _check_filled(environment, variable, text, [*values, *entries])
        entry.finish()
        secrets[name] = Secret(environment=variables)
    return secrets


def _check_filled(table: _Table, key: str, text: str, known: Collection[str]) -> None:
    """Check a text that has values and secrets in it."""
    for match in PLACEHOLDER.finditer(text):
        if match[1] not in known:
            table.fail(key, f"'{match[1]}' is no value or secret", ", ".join(known) or "none")
    if re.search(r"[{}]", PLACEHOLDER.sub("", text)):
        table.fail(key, f"unknown placeholder in '{text}'", "{name} and {name|sha256}")


def _check_port_name(table: _Table, name: str) -> None:
    if not valid_port_name(name):
        table.fail(name, "no name for a port", "lower case letters, digits and single dashes")


def _ports(table: _Table) -> dict[str, Port]:
    ports: dict[str, Port] = {}
    for name, entry in table.tables("a table: { tcp = 9997, env = 'NAME' }"):
        _check_port_name(table, name)
        numbers = {
            transport: number
            for transport in Transport
            if (number := entry.number(transport.value, 1, 65535)) is not None
        }
        env = _port_env(entry)
        value = _template(entry, "value")
        url = _template(entry, "url")
        file = entry.text("file")
        even = entry.flag("even")
        next_to = entry.text("next-to")
        shares = entry.flag("shares")
        optional = entry.flag("optional")
        switch = _switch(entry)
        behind = entry.number("behind", 1, 65535)
        entry.finish()
        if len(numbers) != 1:
            table.fail(
                name, "one transport and production's number", "tcp = NUMBER or udp = NUMBER"
            )
        [(transport, number)] = numbers.items()
        ports[name] = Port(
            name=name,
            transport=transport,
            number=number,
            env=env,
            value="{host}:{port}" if value is None else value,
            url=url,
            file=file,
            even=even,
            next_to=next_to,
            shares=shares,
            optional=optional,
            switch=switch,
            behind=behind,
        )
    return ports


def _switch(entry: _Table) -> str | None:
    switch = _template(entry, "switch")
    if switch is not None:
        name, equals, _ = switch.partition("=")
        if not equals:
            entry.fail("switch", "an assignment to an environment variable", "NAME=VALUE")
        _check_variable(entry, "switch", name)
    return switch


def _port_env(entry: _Table) -> tuple[str, ...]:
    names = entry.one_or_more("env")
    for name in names:
        _check_variable(entry, "env", name)
    return names


def _check_variable(table: _Table, key: str, name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        table.fail(key, f"'{name}' is no environment variable", "letters, digits and underscores")


def _template(entry: _Table, key: str) -> str | None:
    text = entry.text(key)
    if text is not None and re.search(r"[{}]", _PLACEHOLDER.sub("", text)):
        entry.fail(key, f"unknown placeholder in '{text}'", "{host} and {port}")
    return text


def _check_ports(table: _Table, ports: Mapping[str, Port], files: Iterable[InstanceFile]) -> None:
    """Check what ports say of each other and of the instance's files."""
    seen: dict[tuple[Transport, int | None], str] = {}
    told: dict[str, str] = {}
    known_files = {file.name for file in files}
    for name, port in ports.items():
        other = seen.setdefault((port.transport, port.number), name)
        if other != name:
            table.fail(
                f"{name}.{port.transport}",
                f"{port.number} is the number of '{other}' too",
                "a number of its own per transport",
            )
        for variable in port.env:
            if told.setdefault(variable, name) != name:
                table.fail(
                    f"{name}.env",
                    f"'{variable}' already tells the service port '{told[variable]}'",
                    "a variable for one port only",
                )
        if port.even and port.number is not None and port.number % 2:
            table.fail(f"{name}.even", f"{port.number} is odd", "even = true on an even number")
        if port.next_to is not None:
            _check_next_to(table, ports, port)
        if port.file is not None and port.file not in known_files:
            table.fail(
                f"{name}.file",
                f"'{port.file}' is no file of [instance.files]",
                ", ".join(sorted(known_files)) or "nothing, for there are no files",
            )


def _check_next_to(table: _Table, ports: Mapping[str, Port], port: Port) -> None:
    key = f"{port.name}.next-to"
    pair = ports.get(port.next_to or "")
    evens = [p.name for p in ports.values() if p.even and p.transport is port.transport]
    allowed = f"an even port of the same transport: {', '.join(evens) or 'none is declared'}"
    if pair is None:
        table.fail(key, f"unknown port '{port.next_to}'", allowed)
    if not pair.even or pair.transport is not port.transport:
        table.fail(key, f"'{pair.name}' is not an even {port.transport} port", allowed)
    if any(p.next_to == pair.name and p.name != port.name for p in ports.values()):
        table.fail(key, f"'{pair.name}' has another neighbour already", "one neighbour each")
    if pair.number is not None and port.number != pair.number + 1:
        table.fail(
            key, f"production's {port.number} is not beside {pair.number}", f"{pair.number + 1}"
        )


def _check_proxied(
    activation: _Table,
    table: _Table,
    ports: Mapping[str, Port],
    way: Activation,
    idle_s: int | None,
) -> None:
    """Check what is said of a service that production starts on demand, behind a proxy."""
    if way is not Activation.PROXY:
        only = "activation.production = 'proxy', to which it belongs"
        for name, port in ports.items():
            if port.behind is not None:
                table.fail(f"{name}.behind", "no proxy is in front of it", only)
        if idle_s is not None:
            activation.fail("idle", "no proxy could notice it", only)
        return
    for name, port in ports.items():
        if port.transport is Transport.UDP and (port.behind is not None or not port.optional):
            problem = f"{port.number} cannot stand behind a proxy, which passes on TCP alone"
            table.fail(
                f"{name}.udp", problem, "tcp; or optional = true, without behind: it is left out"
            )
    proxied = [port for port in ports.values() if port.transport is Transport.TCP]
    if not proxied:
        activation.fail("production", "'proxy' without a TCP port", "none, or a tcp in [ports]")
    told = {port.name: port.behind for port in proxied if port.behind is not None}
    taken = {port.number: port.name for port in proxied}
    for name, behind in told.items():
        if taken.setdefault(behind, name) != name or behind == ports[name].number:
            table.fail(
                f"{name}.behind",
                f"{behind} is a number of '{taken[behind]}'",
                "a number of its own, which nobody else on the host has",
            )
    for port in proxied:
        if told and port.name not in told:
            problem = f"missing, while '{next(iter(told))}' has one"
            table.fail(f"{port.name}.behind", problem, "behind for every TCP port, or for none")


def _uses(
    table: _Table,
) -> tuple[
    dict[str, dict[str, UsedPort]],
    dict[str, UsedPrefix],
    dict[str, dict[str, tuple[str, ...]]],
]:
    uses: dict[str, dict[str, UsedPort]] = {}
    secrets: dict[str, dict[str, tuple[str, ...]]] = {}
    prefixes: dict[str, UsedPrefix] = {}
    for service, ports in table.tables("a table of that service's ports"):
        if not valid_service_name(service):
            table.fail(service, "no name for a service", "lower case letters, digits, dashes")
        uses[service] = {}
        if "path-prefix" in ports:
            prefixes[service] = _prefix(ports.table("path-prefix", "a table: { env = 'NAME' }"))
        if "secrets" in ports:
            secrets[service] = _used_secrets(ports.table("secrets"))
        for name, entry in ports.tables("a table: { env = 'NAME', value = '{port}' }"):
            _check_port_name(ports, name)
            env = _port_env(entry)
            value = _template(entry, "value")
            entry.finish()
            uses[service][name] = UsedPort(env=env, value="{port}" if value is None else value)
    return uses, prefixes, secrets


def _used_secrets(table: _Table) -> dict[str, tuple[str, ...]]:
    secrets = {}
    for name, entry in table.tables("a table: { env = 'NAME' }"):
        secrets[name] = _port_env(entry)
        if not secrets[name]:
            entry.fail("env", "missing", "the name of an environment variable, or a list of them")
        entry.finish()
    return secrets


def _prefix(entry: _Table) -> UsedPrefix:
    env = _port_env(entry)
    if not env:
        entry.fail("env", "missing", "the name of an environment variable, or a list of them")
    value = entry.text("value")
    entry.finish()
    value = "{prefix}" if value is None else value
    if "{prefix}" not in value or re.search(r"[{}]", value.replace("{prefix}", "")):
        entry.fail("value", f"no prefix in '{value}'", "a text with {prefix} in it, and no other")
    return UsedPrefix(env=env, value=value)


def _activation(table: _Table, key: str) -> Activation:
    word = table.text(key)
    if word is None:
        return Activation.NONE
    try:
        return Activation(word)
    except ValueError:
        table.fail(key, f"unknown way '{word}'", ", ".join(Activation))


def _private(table: _Table) -> bool:
    word = table.text("network")
    if word not in (None, "host", "private"):
        table.fail("network", f"unknown network '{word}'", "host, private")
    return word == "private"


def _environment(table: _Table) -> dict[str, str]:
    environment = dict(table.texts())
    for name in environment:
        _check_variable(table, name, name)
    return environment


def _files(table: _Table, folder: Path) -> tuple[InstanceFile, ...]:
    files = []
    for name in table:
        if not _FILE_NAME.fullmatch(name):
            table.fail(name, "no name for a file", "letters, digits, dots, dashes, underscores")
        if name in FILES_OF_OURS:
            table.fail(name, "this name is taken", f"not one of {', '.join(sorted(FILES_OF_OURS))}")
        entry = table.text_or_table(name)
        if isinstance(entry, str):
            template, over = entry, None
        else:
            template = entry.text("from") or entry.fail("from", "missing", "a template's name")
            over = entry.text("over")
            entry.finish()
            if over is not None and (not over.startswith("/") or os.path.normpath(over) != over):
                entry.fail("over", f"'{over}' is no place for a file", "a plain absolute path")
        if not (_FILE_NAME.fullmatch(template) and (folder / template).is_file()):
            table.fail(name, f"there is no template '{template}'", f"a file in {folder}")
        files.append(InstanceFile(name=name, template=template, over=over))
    return tuple(files)


def _deploy(
    table: _Table, folder: Path, values: Mapping[str, str], secrets: Collection[str]
) -> Deployment:
    user = table.table("user", "a table: { name = 'my-server' }")
    name = user.text("name")
    if name is None and list(user):
        user.fail("name", "missing", "the user's name")
    if name is not None:
        _check_user(user, "name", name)
    user.finish()
    file_table = table.table("files")
    files = []
    for path, entry in file_table.tables("a table: { from = 'server.conf.j2' }"):
        _check_place(file_table, path, values)
        template = entry.text("from") or entry.fail("from", "missing", "a template's name")
        if not (_FILE_NAME.fullmatch(template) and (folder / template).is_file()):
            entry.fail("from", f"there is no template '{template}'", f"a file in {folder}")
        needs = entry.text("needs")
        if needs is not None and needs not in {*values, *secrets}:
            known = ", ".join([*values, *secrets]) or "none is declared"
            entry.fail("needs", f"'{needs}' is no value of [values] or [secrets]", known)
        mode, owner, group = _access(entry, 0o644)
        entry.finish()
        files.append(
            DeployFile(
                path=path, template=template, mode=mode, owner=owner, group=group, needs=needs
            )
        )
    directory_table = table.table("directories")
    directories = []
    for path, entry in directory_table.tables("a table: { mode = '0750' }"):
        _check_place(directory_table, path, values)
        mode, owner, group = _access(entry, 0o755)
        entry.finish()
        directories.append(DeployDirectory(path=path, mode=mode, owner=owner, group=group))
    table.finish()
    return Deployment(user=name, files=tuple(files), directories=tuple(directories))


def _access(entry: _Table, default: int) -> tuple[int, str, str]:
    """The mode, owner and group of a file of the host."""
    mode = entry.text("mode")
    if mode is not None and (not _MODE.fullmatch(mode) or int(mode, 8) & 0o022):
        entry.fail("mode", f"'{mode}' is no mode", "octal, nobody else may write: '0640'")
    names = []
    for key in ("owner", "group"):
        name = entry.text(key) or "root"
        _check_user(entry, key, name)
        names.append(name)
    return default if mode is None else int(mode, 8), names[0], names[1]


def _check_user(table: _Table, key: str, name: str) -> None:
    if not _USER.fullmatch(name):
        table.fail(key, f"'{name}' is no name for it", "lower case letters, digits, _ and -")


def _check_place(table: _Table, path: str, values: Mapping[str, str]) -> None:
    for name in _VALUE.findall(path):
        if name not in values:
            known = ", ".join(values) or "none is declared"
            table.fail(path, f"'{{{name}}}' is no value of [values]", known)
    if not valid_place(filled(path, values)):
        problem = f"'{filled(path, values)}' is no place on a host"
        table.fail(path, problem, "a plain absolute path below a folder; {name} is a value's")


def valid_place(path: str) -> bool:
    """Whether a path can be that of a file or directory which a deployed service has.

    Args:
        path: An absolute path, in plain words: no ``..``, no white space, nothing at the top.
    """
    return (
        _PLACE.fullmatch(path) is not None
        and os.path.normpath(path) == path
        and path.count("/") > 1
    )


def filled(path: str, values: Mapping[str, str]) -> str:
    """A path of ``[deploy]`` with its values in it.

    Args:
        path: The path as it is declared.
        values: All of the definition's values.
    """
    return _VALUE.sub(lambda match: values[match[1]], path)


def _ready(table: _Table, ports: Mapping[str, Port], known: Collection[str]) -> HttpCheck | None:
    asked = "http" in list(table)
    http = table.table("http", "a table: { port = 'api', path = '/' }")
    table.finish()
    if not asked:
        return None
    port = http.text("port")
    path = http.text("path")
    status = http.number("status", 100, 599)
    user, password = http.text("user") or "", http.text("password") or ""
    _check_filled(http, "user", user, known)
    _check_filled(http, "password", password, known)
    http.finish()
    fit = [
        name
        for name, entry in ports.items()
        if entry.transport is Transport.TCP and entry.switch is None
    ]
    if port not in fit:
        problem = f"'{port}' is no TCP port of [ports] that every instance opens"
        http.fail("port", problem, ", ".join(fit) or "none declared")
    if path is not None and not re.fullmatch(r"/[!-~]*", path):
        http.fail("path", f"'{path}' is no request path", "a path that begins with a slash")
    return HttpCheck(
        port=port, path=path or "/", status=status or 200, user=user, password=password
    )
