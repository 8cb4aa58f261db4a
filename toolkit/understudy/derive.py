"""From a definition to unit files: production's, and those of its instances.

An instance is production's ``[Service]`` section, verbatim, and drop-ins that say what is
different. Each is a file of its own, so ``systemctl cat`` shows production and every change:

====================== ========================== =======================================
``UNIT``               the definition's template, what production is
                       or the installed unit
``05-reset.conf``      ``units/reset.conf.j2``    what is production's alone, undone
``10-instance.conf``   the definition's own       what this service needs as an instance
``50-….conf``          ``units/user.conf`` or     what a user manager cannot do; or
                       ``units/system.conf``      a user of its own
``60-joined.conf``     ``units/joined-user.conf`` what keeps a user's service out of a
                                                  network that others made, undone
``90-understudy.conf`` ``units/instance.conf.j2`` run, lifetime, ports, environment
``92-limits.conf``     what the run was told      what it may use at most
``93-background.conf`` ``units/background.conf``  that it gets only what nobody else wants
``95-private.conf``    ``units/private.conf.j2``  a private network, and the gate before it
====================== ========================== =======================================

Nothing here touches the machine: text in, text out. Templates are the only files read.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from understudy import confided, envfile, gate, names, templates, unitfile
from understudy.errors import RenderError, nearest_hint
from understudy.model import (
    HOST,
    Activation,
    Derived,
    HostFile,
    ManagerKind,
    Part,
    Port,
    Service,
    Transport,
)
from understudy.services import filled, shipped_units, valid_place
from understudy.templates import UnitText
from understudy.unitfile import check_text, quote

LEFT_OUT: Final = frozenset({"BusName", "ImportCredential", "OpenFile", "Sockets"})
"""Directives of production that an instance must not have and no drop-in can undo on every
version: with ``Sockets=`` it would be handed production's own listening sockets."""

SYSTEM_UNIT_DIR: Final = "/etc/systemd/system"
"""Where an administrator's units are (systemd.unit(5))."""

CREDENTIALS: Final = frozenset(
    {"LoadCredential", "LoadCredentialEncrypted", "SetCredential", "SetCredentialEncrypted"}
)
"""Directives that are left out as well, and not repeated in a comment: some hold secrets."""

ON_DEMAND: Final = "50-on-demand.conf"
"""The drop-in that makes production one that its proxies start."""

BACKGROUND: Final = "93-background.conf"
"""The drop-in of an instance that gets only what nobody else wants of processors and disks."""

PROXY_TIMEOUT_S: Final = 60
"""Seconds that production behind a proxy has from its start until it listens."""

PROXY_CONNECTIONS_MAX: Final = 1024
"""Connections at a time through one proxy; further ones are closed."""

_PROXY: Final = "/usr/lib/systemd/systemd-socket-proxyd"
_PROXY_PROGRAM: Final = Path(__file__).resolve().with_name("proxy_program.py")

_TEMPORARY = ("/tmp", "/var/tmp")
_HIDDEN = ("/home", "/root", "/run/user", *_TEMPORARY)
"""What ProtectHome= and PrivateTmp= may hide from a service (systemd.exec(5))."""

_COMMENTED_OUT = re.compile(r"\s*[#;]\s*(?:Environment|SetCredential\w*)\s*=")

_PLACEHOLDER = re.compile(r"\{(host|dir|port\.([^{}]*))\}")
_SPECIFIER = re.compile(r"%(.)")
_ALONE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_BRACED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$\$")
_EXEC_PREFIXES = "@-:+!|"


def render_production(service: Service, values: Mapping[str, str]) -> dict[str, str]:
    """Render the units of the host's own copy.

    Args:
        service: The definition.
        values: Values that override the definition's (``--set``).

    Returns:
        Unit files by name: the service, and its sockets where production takes them; where it
        is started on demand, a socket and a proxy for each TCP port and the service's drop-in.

    Raises:
        RenderError: A value is unknown or unfit, or a template is missing or wrong.
    """
    context = _production_context(service, _merged_values(service, values))
    if service.production_activation is Activation.PROXY:
        context["ports"] = {name: _own_number(port) for name, port in service.ports.items()}
    template = _unit_template(service)
    files = {template.removesuffix(".j2"): _render(service, template, context)}
    if service.folder is not None and service.production_activation is Activation.SOCKETS:
        for path in sorted(service.folder.glob("*.socket.j2")):
            files[path.name.removesuffix(".j2")] = _render(service, path.name, context)
    if service.production_activation is Activation.PROXY:
        files |= _on_demand(service)
    return files


def production_files(
    service: Service,
    values: Mapping[str, str],
    *,
    used: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[HostFile, ...]:
    """Everything that the host's own copy needs, as files of the host.

    Args:
        service: The definition.
        values: Values that override the definition's (``--set``).
        used: By service name, by port name: production's numbers of the services it talks to.

    Returns:
        Its units (`render_production`), its configuration, its user for sysusers.d(5) and its
        directories for tmpfiles.d(5), in this order.

    Raises:
        RenderError: A value is unknown or unfit, or a template is missing or wrong.
    """
    merged = _merged_values(service, values)
    told = confided.known(service, {}, values)
    units = render_production(service, values)
    files = [HostFile(path=f"{SYSTEM_UNIT_DIR}/{name}", text=text) for name, text in units.items()]
    context = {**_production_context(service, merged), "used": used or {}}
    plain, secret = confided.environment(service, told)
    own = {"secret_environment": envfile.write({**plain, **secret})}
    own |= {name: told[name] for name in service.secrets}
    for file in service.deploy.files:
        if file.needs is None or told[file.needs]:
            secrets = {} if file.mode & 0o077 else own
            path = _place(service, file.path, merged)
            files.append(
                HostFile(
                    path=path,
                    text=_render(service, file.template, context | secrets, unit=False),
                    mode=file.mode,
                    owner=file.owner,
                    group=file.group,
                    ours=path.startswith(f"{configuration_directory(service)}/"),
                )
            )
    if service.deploy.user is not None:
        # A colon would begin the next field of passwd(5).
        words = service.description.replace(":", " ").replace("%", "%%")
        text = f"u {service.deploy.user} - {quote(words)}\n"
        files.append(HostFile(path=f"/etc/sysusers.d/understudy-{service.name}.conf", text=text))
    if service.deploy.directories:
        rows = [
            f"d {_place(service, one.path, merged)} {one.mode:04o} {one.owner} {one.group} -\n"
            for one in service.deploy.directories
        ]
        path = f"/etc/tmpfiles.d/understudy-{service.name}.conf"
        files.append(HostFile(path=path, text="".join(rows)))
    return tuple(files)


def configuration_directory(service: Service) -> str:
    """Where the files of a deployed service are: ``/etc/mediamtx``, after its unit.

    Args:
        service: The definition.
    """
    return f"/etc/{_production_name(service).removesuffix('.service')}"


def _place(service: Service, path: str, values: Mapping[str, str]) -> str:
    place = filled(path, values)
    if not valid_place(place):
        raise RenderError(
            f"Cannot deploy '{service.name}': '{place}' is no place on a host",
            hint=f"{path} is a plain absolute path, below a folder",
        )
    return place


def derive(service: Service, part: Part) -> Derived:
    """Derive one instance.

    Args:
        service: The definition.
        part: What makes this instance different.

    Returns:
        Its unit files and its own files, nothing of them written yet.

    Raises:
        RenderError: A value or port is unknown or missing, a text would not fit into a unit
            file, or a template is wrong.
    """
    _check_part(service, part)
    unit = names.instance_unit(service.name, part.run, part.number)
    directory = names.instance_directory(part.runtime_dir, service.name, part.run, part.number)
    files = names.files_directory(directory)
    values = _merged_values(service, part.values)
    told = confided.known(service, part.values, part.secrets)
    plain, secret = confided.environment(service, told)
    secret = {**secret, **confided.used(service, part.used_secrets), **part.environment}
    if service.command:
        base = _Base(_adhoc_unit(service, part, directory), (), "")
    else:
        text = part.base or _render(
            service, _unit_template(service), _production_context(service, values)
        )
        base = _service_section(text, _production_name(service))
    context = {
        **values,
        **_hidden(service),
        "argv": base.argv,
        "service": service.name,
        "host": HOST,
        "ports": part.ports,
        "used": part.used,
        "run": part.run,
        "number": part.number,
        "unit": unit,
        "directory": directory,
        "files": files,
    }
    instance_conf = _instance_conf(service, context)
    if part.kind is ManagerKind.SYSTEM and base.privilege:
        _check_privilege(service, base.privilege, instance_conf)
    shown = _hidden_paths((*values.values(), *service.command))
    by_sockets = service.instance_activation is Activation.SOCKETS
    user_manager = part.kind is ManagerKind.USER
    guarded = part.network is None
    # A user manager can load no BPF: there the rules are in the unit for `show` to list them.
    by_slice = guarded and not user_manager and bool(part.denied)
    inner_slice = names.guarded_slice_unit(part.run) if by_slice else ""
    joined_by_itself = user_manager and part.network is not None and bool(part.network.net_path)
    bound = [file for file in service.files if file.over]
    drop_ins = {
        "05-reset.conf": _render_shared("reset.conf.j2", context),
        "10-instance.conf": instance_conf,
        f"50-{part.kind}.conf": _shared_text(f"{part.kind}.conf"),
        "60-joined.conf": _shared_text("joined-user.conf") if joined_by_itself else "",
        "90-understudy.conf": _render_shared(
            "instance.conf.j2",
            {
                **context,
                "production": service.production or service.name,
                "guard": names.guard_unit(part.run),
                "clean": names.clean_unit(part.run),
                "slice": inner_slice or names.slice_unit(part.run),
                "socket": _socket_name(service, part) if by_sockets else None,
                "environment": _environment(service, part, plain),
                "secrets": names.secrets_path(files) if secret else "",
                "over": bound,
                # One that enters its network by itself binds its files there.
                "bound": [] if joined_by_itself else bound,
                "user_manager": user_manager,
                "guarded": guarded,
                "denied": bind_rules(part.denied) if user_manager else [],
                "shown": shown,
                "home_hidden": any(not path.startswith(_TEMPORARY) for path in shown),
                "start_timeout_s": _seconds(part.start_timeout_s),
                "stop_timeout_s": _seconds(part.stop_timeout_s),
            },
        ),
    }
    if part.limits:
        drop_ins["92-limits.conf"] = _limits(part.limits)
    if part.background:
        drop_ins[BACKGROUND] = _shared_text("background.conf")
    if part.network is not None:
        command = _command([base.text, *drop_ins.values()], unit)
        drop_ins["95-private.conf"] = _private(service, part, unit, files, command)
    units = {unit: base.text} | {
        f"{unit}.d/{name}": text for name, text in drop_ins.items() if text
    }
    if by_sockets:
        units[_socket_name(service, part)] = _socket(service, part, unit)
    proxies = _proxies(service, part)
    for port, proxy in proxies.items():
        units |= _publication(part, port, proxy, unit, files)
    return Derived(
        unit=unit,
        socket=_socket_name(service, part) if by_sockets else None,
        units=units,
        files={
            f"{files}/{file.name}": _render(service, file.template, context, unit=False)
            for file in service.files
        },
        directory=directory,
        secrets=secret,
        confided=told if any(told[name] for name in service.secrets) else {},
        gate=None if part.network is None else gate.gate_path(files),
        proxies=proxies,
        slice=inner_slice,
    )


def _limits(limits: Mapping[str, str]) -> str:
    for name, value in limits.items():
        check_text(f"limit '{name}'", value)
    rows = [f"{name}={value}" for name, value in limits.items()]
    return "\n".join(["# What each instance of its run may use at most.", "[Service]", *rows, ""])


def inside_number(port: Port, published: int) -> int:
    """The number that a port has in a private network: production's, where it has one.

    Args:
        port: The port.
        published: The number that it has outside.
    """
    return published if port.number is None else port.number


def bind_rules(numbers: Iterable[tuple[Transport, int]]) -> list[str]:
    """Port numbers as rules of SocketBindDeny=.

    Neighbours are put together: beyond 128 rules systemd enforces none
    (systemd.resource-control(5)).

    Args:
        numbers: The ports, by transport and number.
    """
    spans: list[tuple[Transport, int, int]] = []
    for transport, number in sorted(numbers):
        if spans and spans[-1][0] is transport and spans[-1][2] + 1 == number:
            spans[-1] = (transport, spans[-1][1], number)
        else:
            spans.append((transport, number, number))
    return [
        f"{transport}:{first}" if first == last else f"{transport}:{first}-{last}"
        for transport, first, last in spans
    ]


def transient(derived: Derived, part: Part) -> tuple[list[tuple[str, str]], list[str]]:
    """An instance as a transient unit: the same rows, for ``systemd-run -p``.

    Transient units expand no specifier, so that is done here.

    Args:
        derived: The instance, as `derive` gave it.
        part: What it was derived from.

    Returns:
        Directive and value in order, without ``ExecStart=``; and the command to run, literally.

    Raises:
        RenderError: It has what no transient unit can have: sockets bound by the manager, a
            prefix of ``ExecStart=``, or a specifier whose meaning is not known here.
    """
    if derived.socket is not None:
        raise RenderError(
            f"Cannot make '{derived.unit}' a transient unit: its sockets are bound by the manager",
            hint="--engine files",
        )
    text = "\n".join(derived.units.values())
    specifiers = _specifiers(derived.unit, part)
    rows: list[tuple[str, str]] = []
    commands: list[str] = []
    for name, value in unitfile.effective(unitfile.parse(text)):
        expanded = _expand(value, specifiers, derived.unit)
        if name == "ExecStart":
            commands.append(expanded)
        else:
            rows.append((name, expanded))
    if len(commands) != 1:
        raise RenderError(
            f"Cannot make '{derived.unit}' a transient unit: it has {len(commands)} ExecStart=",
            hint="--engine files",
        )
    return rows, _literal_command(commands[0], rows, derived.unit, derived.secrets)


def urls_of(service: Service, ports: Mapping[str, int]) -> dict[str, str]:
    """The URL of each port that has one, by name.

    Args:
        service: The definition.
        ports: The number of each port, by name.
    """
    return {
        name: _address(port.url, ports[name])
        for name, port in service.ports.items()
        if port.url is not None and name in ports
    }


def _merged_values(service: Service, overrides: Mapping[str, str]) -> dict[str, str]:
    """The values that templates find: those of the definition, overridden, without secrets."""
    merged = dict(service.values)
    for name, value in overrides.items():
        if name in service.secrets:
            continue
        if name not in service.values:
            names_ = [*service.values, *service.secrets]
            raise RenderError(
                f"Cannot set '{name}': {service.name} has no such value",
                hint=f"{nearest_hint(name, names_)}its values: {', '.join(names_) or 'none'}",
            )
        check_text(f"value '{name}'", value)
        merged[name] = value
    return merged


def _hidden(service: Service) -> dict[str, confided.Hidden]:
    return {name: confided.Hidden(name) for name in service.secrets}


def _production_context(service: Service, values: Mapping[str, str]) -> dict[str, object]:
    numbers = {name: port.number for name, port in service.ports.items()}
    return {**values, **_hidden(service), "service": service.name, "ports": numbers}


def _own_number(port: Port) -> int | None:
    """The number that production itself listens on."""
    return port.number if port.behind is None else port.behind


def _on_demand(service: Service) -> dict[str, str]:
    """What holds production's public ports, and starts it at the first connection."""
    unit = _production_name(service)
    proxied = [port for port in service.ports.values() if port.transport is Transport.TCP]
    proxies = {port: f"{unit.removesuffix('.service')}-{port.name}-proxy" for port in proxied}
    private = all(port.behind is None for port in proxied)
    told = {
        name: _address(port.value, port.behind)
        for port in proxied
        if port.behind is not None
        for name in port.env
    }
    context = {
        "unit": unit,
        "private": private,
        "environment": _assignments(told),
        "sockets": [f"{proxy}.socket" for proxy in proxies.values()],
        "start_timeout_s": PROXY_TIMEOUT_S,
        "connections_max": PROXY_CONNECTIONS_MAX,
    }
    files = {}
    for port, proxy in proxies.items():
        number = _own_number(port)
        own = {
            "port": port.name,
            "number": port.number,
            "socket": f"{proxy}.socket",
            "argv": [
                *(sys.executable, "-I", "-S", str(_PROXY_PROGRAM)),
                *(unit, str(number), str(PROXY_TIMEOUT_S)),
                _PROXY,
                f"--exit-idle-time={service.idle_s}s",
                f"--connections-max={PROXY_CONNECTIONS_MAX}",
            ],
        }
        for kind in ("socket", "service"):
            text = _render_shared(f"production-proxy.{kind}.j2", context | own)
            files[f"{proxy}.{kind}"] = text
    drop_in = _render_shared("production-proxy.conf.j2", context)
    return {f"{unit}.d/{ON_DEMAND}": drop_in, **files}


def _production_name(service: Service) -> str:
    return service.production or f"{service.name}.service"


def _unit_template(service: Service) -> str:
    return f"{_production_name(service)}.j2"


def _render(
    service: Service, template: str, context: Mapping[str, object], *, unit: bool = True
) -> str:
    if service.folder is None:
        raise RenderError(f"Cannot render '{template}': {service.name} has no definition")
    return templates.render(service.folder, template, context, unit=unit)


def _render_shared(template: str, context: Mapping[str, object]) -> str:
    return templates.render(shipped_units(), template, context, unit=True)


@lru_cache
def _shared_text(name: str) -> str:
    return (shipped_units() / name).read_text(encoding="utf-8")


def _command(texts: Iterable[str], unit: str) -> str:
    """What stands after ``ExecStart=`` in the end."""
    lines = (line for text in texts for line in unitfile.parse(text))
    commands = [value for name, value in unitfile.effective(lines) if name == "ExecStart"]
    if len(commands) != 1:
        raise RenderError(
            f"Cannot derive '{unit}' for a private network: it has {len(commands)} ExecStart="
        )
    return commands[0]


def _private(service: Service, part: Part, unit: str, files: str, command: str) -> str:
    """The drop-in of an instance in a private network."""
    network = part.network
    assert network is not None
    by_itself = part.kind is ManagerKind.USER and bool(network.net_path)
    waiting = gate.gate_path(files)
    if by_itself:
        over = [(f"{files}/{file.name}", file.over) for file in service.files if file.over]
        gated = gate.entering(command, waiting, network, over, unit=unit)
    else:
        gated = gate.gated(command, waiting, unit=unit)
    return _render_shared(
        "private.conf.j2",
        {
            "holder": network.holder,
            "joined_by_itself": by_itself,
            "net_path": network.net_path,
            "user_manager": part.kind is ManagerKind.USER,
            "command": gated,
        },
    )


def _proxies(service: Service, part: Part) -> dict[str, str]:
    """The proxies of a private instance's TCP ports; sockets that are handed in need none."""
    if part.network is None or service.instance_activation is Activation.SOCKETS:
        return {}
    return {name: names.publish_unit(part.run, part.number, name) for name in part.published}


def _publication(part: Part, port: str, proxy: str, unit: str, files: str) -> dict[str, str]:
    """The units that publish one port of a private instance."""
    network = part.network
    assert network is not None
    socket = f"{proxy.removesuffix('.service')}.socket"
    user_manager = part.kind is ManagerKind.USER
    own = not network.net_path
    context = {
        "host": HOST,
        "number": part.published[port],
        "port": port,
        "unit": unit,
        "proxy": proxy,
        "socket": socket,
        "slice": names.slice_unit(part.run),
        "joins": own and not user_manager,
        "net_path": "" if user_manager else network.net_path,
        "pid_file": gate.pid_path(files) if own and user_manager else "",
        "command": gate.proxy_command(part.ports[port], network=network, user_manager=user_manager),
        "connections_max": gate.CONNECTIONS_MAX,
        "start_timeout_s": _seconds(part.start_timeout_s),
        "user_manager": user_manager,
    }
    units = {
        socket: _render_shared("publish.socket.j2", context),
        proxy: _render_shared("publish.service.j2", context),
    }
    if part.background:
        units[f"{proxy}.d/{BACKGROUND}"] = _shared_text("background.conf")
    return units


def _instance_conf(service: Service, context: Mapping[str, object]) -> str:
    if service.folder is None or not (service.folder / "instance.conf").is_file():
        return ""
    return _render(service, "instance.conf", context)


def _check_privilege(service: Service, prefix: str, instance_conf: str) -> None:
    """Demand that an instance does not inherit a command which is run with root's rights."""
    own = (line for line in unitfile.parse(instance_conf) if line.name == "ExecStart")
    if not any(line.value == "" for line in own):
        raise RenderError(
            f"Cannot derive from '{_production_name(service)}': its ExecStart= has the prefix "
            f"'{prefix}', with which an instance would have rights of root",
            hint="an instance.conf in the definition that resets ExecStart= and gives its own",
        )


def _check_part(service: Service, part: Part) -> None:
    if not names.valid_run_id(part.run):
        raise RenderError(
            f"Cannot derive '{service.name}': '{part.run}' is no run id",
            hint="a letter, then at most 15 letters and digits, lower case",
        )
    for name in part.ports:
        if name not in service.ports:
            known = ", ".join(service.ports) or "none"
            raise RenderError(
                f"Cannot derive '{service.name}': it has no port '{name}'",
                hint=f"{nearest_hint(name, service.ports)}its ports: {known}",
            )
    for name in service.ports:
        if name not in part.ports:
            raise RenderError(f"Cannot derive '{service.name}': port '{name}' has no number")
    if part.network is not None and part.lazy:
        raise RenderError(
            f"Cannot derive '{service.name}' for a private network and its first connection: its "
            "network cannot be looked at before"
        )
    for name, value in part.environment.items():
        envfile.check(name, value)


class _Base(NamedTuple):
    """What an instance starts from.

    Attributes:
        text: The unit file.
        argv: The words of its ``ExecStart=``, without a prefix.
        privilege: The prefix that gives the command rights of root: ``+`` or ``!``.
    """

    text: str
    argv: tuple[UnitText, ...]
    privilege: str


@lru_cache
def _service_section(text: str, production: str) -> _Base:
    """Production's ``[Service]``, for an instance.

    Args:
        text: Production's unit, and the drop-ins it has on the host.
        production: Its name, which its specifiers stand for.
    """
    own = unit_name_specifiers(production)

    def named(text: str) -> str:
        return _SPECIFIER.sub(lambda match: own.get(match[1], match[0]), text)

    kept = []
    lines = []
    on_demand = False
    for line in unitfile.parse(text):
        if line.text.startswith("# /"):  # what systemctl cat begins each file with
            on_demand = line.text.endswith(f"/{production}.d/{ON_DEMAND}")
        if on_demand:
            continue
        if line.section != "Service" or line.text.strip() == "[Service]":
            continue
        if _COMMENTED_OUT.match(line.text):
            continue
        if line.name in LEFT_OUT:
            kept.append("\n".join(f"# left out: {part}" for part in line.text.split("\n")))
        elif line.name in CREDENTIALS:
            kept.append(f"# left out: {line.name}=")
        elif line.name == "Environment" and (known := _without_secrets(line.value)) is not None:
            kept += [named(row) for row in known]
        else:
            kept.append(named(line.text))
            lines.append(line._replace(value=named(line.value)))
    if not lines:
        raise RenderError(f"Cannot derive from '{production}': it has no [Service] section")
    body = "\n".join(kept).strip("\n")
    argv: list[str] = []
    prefixes = ""
    for name, value in unitfile.effective(lines):
        if name == "ExecStart":
            first, *others = unitfile.split(value) or [""]
            program = first.lstrip(_EXEC_PREFIXES)
            prefix = first.removesuffix(program)
            argv = [program, *others[1 if "@" in prefix else 0 :]]
            prefixes += prefix
    return _Base(
        text=f"# What {production} is.\n[Service]\n{body}\n",
        argv=tuple(map(UnitText, argv)),
        privilege=next((char for char in prefixes if char in "+!"), ""),
    )


def _without_secrets(assignments: str) -> list[str] | None:
    """Lines with the variables of a row that tell no secret; None where none of them tells one."""
    try:
        words = unitfile.split(assignments)
    except RenderError:  # systemd would ignore it, or a part of it
        return ["# left out: Environment= with a line that cannot be read"]
    secret = [
        name for name, _, _ in (word.partition("=") for word in words) if confided.secret_name(name)
    ]
    if not secret:
        return None
    others = [quote(word) for word in words if word.partition("=")[0] not in secret]
    rows = [f"Environment={' '.join(others)}"] if others else []
    return [f"# left out: Environment= of {' '.join(secret)}", *rows]


def _adhoc_unit(service: Service, part: Part, directory: str) -> str:
    """The unit of a service that is nothing but a command."""

    def fill(match: re.Match[str]) -> str:
        if match[1] in ("host", "dir"):
            return HOST if match[1] == "host" else directory
        if match[2] not in part.ports:
            known = ", ".join(f"{{port.{name}}}" for name in part.ports) or "none"
            raise RenderError(
                f"Cannot fill in '{match[0]}': there is no port '{match[2]}'",
                hint=f"{nearest_hint(match[2], part.ports)}ports: {known}",
            )
        return str(part.ports[match[2]])

    words = [_PLACEHOLDER.sub(fill, word) for word in service.command]
    for word in words:
        check_text(f"argument '{word}'", word)
    if not words[0] or words[0][0] in _EXEC_PREFIXES:
        raise RenderError(
            f"Cannot run '{words[0]}': a command's name cannot begin like that",
            hint="give its absolute path",
        )
    # The colon keeps systemd from expanding variables: what stands here is literal.
    words[0] = ":" + words[0]
    command = " ".join(quote(word).replace("%", "%%") for word in words)
    return f"# A command, and no production.\n[Service]\nType=exec\nExecStart={command}\n"


def _environment(service: Service, part: Part, own: Mapping[str, str]) -> list[UnitText]:
    """An instance's environment as quoted assignments; of two for one name the later counts."""
    environment = {
        "UNDERSTUDY_RUN": part.run,
        "UNDERSTUDY_SERVICE": service.name,
        "UNDERSTUDY_HOST": HOST,
        "UNDERSTUDY_PORTS": _list(part.outside),
        "UNDERSTUDY_URLS": _list(urls_of(service, part.outside)),
    }
    if part.network is not None:
        by_sockets = service.instance_activation is Activation.SOCKETS
        environment |= gate.environment(part.network, part.ports, by_sockets=by_sockets)
    environment |= {**service.environment, **own}
    if service.instance_activation is Activation.SOCKETS:
        # One socket unit gives all of its sockets one name; the service needs each by its own.
        environment["LISTEN_FDNAMES"] = ":".join(service.ports)
    for name, port in service.ports.items():
        text = _address(port.value, part.ports[name])
        environment.update(dict.fromkeys(port.env, text))
        if port.switch is not None:
            variable, _, value = port.switch.partition("=")
            environment[variable] = _address(value, part.ports[name])
    for used, ports in part.used.items():
        for name, used_port in service.uses.get(used, {}).items():
            if name in ports:
                text = _address(used_port.value, ports[name])
                environment.update(dict.fromkeys(used_port.env, text))
    for used, prefix in part.prefixes.items():
        told = service.prefixes[used]
        environment.update(dict.fromkeys(told.env, told.value.replace("{prefix}", prefix)))
    return _assignments(environment)


def _assignments(environment: Mapping[str, str]) -> list[UnitText]:
    return [
        UnitText(quote(f"{name}={value}").replace("%", "%%")) for name, value in environment.items()
    ]


def _list(items: Mapping[str, object]) -> str:
    return ",".join(f"{name}={item}" for name, item in items.items())


def _address(template: str, number: int) -> str:
    return template.replace("{host}", HOST).replace("{port}", str(number))


def _socket_name(service: Service, part: Part) -> str:
    return names.socket_unit(service.name, part.run, part.number)


def _socket(service: Service, part: Part, unit: str) -> str:
    return _render_shared(
        "instance.socket.j2",
        {
            "production": service.production or service.name,
            "run": part.run,
            "number": part.number,
            "host": HOST,
            "unit": unit,
            "guard": names.guard_unit(part.run),
            "clean": names.clean_unit(part.run),
            "slice": names.slice_unit(part.run),
            "ports": [(service.ports[name].transport, part.ports[name]) for name in service.ports],
        },
    )


@lru_cache
def _hidden_paths(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The paths in values that ProtectHome= and PrivateTmp= would hide from the instance.

    A program in a ``bin`` folder brings along what lies beside that: a virtual environment.
    """
    found: dict[str, None] = {}
    for text in texts:
        for word in (text, *text.split()):
            path = PurePosixPath(word)
            if not word.startswith("/") or ".." in path.parts:
                continue
            hidden = next((top for top in _HIDDEN if path.is_relative_to(top)), None)
            if hidden is None:
                continue
            below = len(path.parts) - len(PurePosixPath(hidden).parts)
            if path.parent.name == "bin" and below > 3:
                path = path.parent.parent
            found[str(path)] = None
    return tuple(found)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


def unit_name_specifiers(unit: str) -> dict[str, str]:
    """The specifiers that stand for parts of the unit's own name (systemd.unit(5)).

    Instance names with escaped characters are no concern of ours: ``%I`` is given as ``%i``.

    Args:
        unit: The unit's name.
    """
    stem = unit.rpartition(".")[0]
    prefix, _, instance = stem.partition("@")
    return {
        "n": unit,
        "N": stem,
        "p": prefix,
        "P": prefix,
        "i": instance,
        "I": instance,
        "j": prefix.rpartition("-")[2],
        "J": prefix.rpartition("-")[2],
    }


def _specifiers(unit: str, part: Part) -> dict[str, str]:
    """What specifiers mean on the manager, as far as that is the same everywhere."""
    known = {**unit_name_specifiers(unit), "%": "%", "t": part.runtime_dir}
    if part.kind is ManagerKind.SYSTEM:
        known |= {"S": "/var/lib", "C": "/var/cache", "L": "/var/log", "E": "/etc"}
        known |= {"u": "root", "U": "0", "g": "root", "G": "0", "h": "/root", "T": "/tmp"}
    return known


def _expand(text: str, specifiers: Mapping[str, str], unit: str) -> str:
    def meaning(match: re.Match[str]) -> str:
        if match[1] not in specifiers:
            raise RenderError(
                f"Cannot make '{unit}' a transient unit: nothing but the manager knows what "
                f"'{match[0]}' means",
                hint="--engine files",
            )
        return specifiers[match[1]]

    return _SPECIFIER.sub(meaning, text)


def _literal_command(
    text: str, rows: Iterable[tuple[str, str]], unit: str, secrets: Collection[str]
) -> list[str]:
    """The words of ``ExecStart=``, with variables filled in from ``Environment=``.

    ``$NAME`` as a word of its own becomes as many words as its value has, ``${NAME}`` stays one
    word (systemd.service(5), Command lines).
    """
    words = unitfile.split(text)
    if not words:
        raise RenderError(f"Cannot make '{unit}' a transient unit: ExecStart= is empty")
    if words[0].startswith(":"):
        return [words[0][1:], *words[1:]]
    if words[0][0] in _EXEC_PREFIXES:
        raise RenderError(
            f"Cannot make '{unit}' a transient unit: systemd-run has no prefix "
            f"'{words[0][0]}' of ExecStart=",
            hint="--engine files",
        )
    environment: dict[str, str] = {}
    for name, value in rows:
        if name == "Environment":
            environment.update(word.partition("=")[::2] for word in unitfile.split(value))

    def value_of(name: str) -> str:
        if name in secrets:
            raise RenderError(
                f"Cannot make '{unit}' a transient unit: '${name}' in ExecStart= is a secret, and "
                "everybody can read the command of a transient unit",
                hint="--engine files",
            )
        if name not in environment:
            raise RenderError(
                f"Cannot make '{unit}' a transient unit: '${name}' in ExecStart= is not in its "
                "Environment=",
                hint="--engine files",
            )
        return environment[name]

    result = [words[0]]
    for word in words[1:]:
        if alone := _ALONE.fullmatch(word):
            result += value_of(alone[1]).split()
        else:
            result.append(_BRACED.sub(lambda m: value_of(m[1]) if m[1] else "$", word))
    return result
