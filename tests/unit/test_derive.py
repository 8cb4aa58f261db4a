"""Instances as text: what production says, what is undone, what is added."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import services, unitfile
from understudy.derive import CREDENTIALS, bind_rules, derive, render_production, transient
from understudy.errors import RenderError
from understudy.model import (
    Derived,
    ManagerKind,
    Part,
    Port,
    PrivateNetwork,
    Service,
    Transport,
    UsedPrefix,
)

UNIT = """\
[Unit]
Description=a server
Wants=network-online.target

[Service]
# What it is.
Type=exec
ExecStart={{ program }} --root {{ root | quote }}
WorkingDirectory={{ root }}
EnvironmentFile=/etc/server/secrets
User=server
ProtectHome=yes

[Install]
WantedBy=multi-user.target
"""

DEFINITION = """\
description = "a server"
production = "server.service"
[values]
program = "/usr/bin/server"
root = "/opt/server"
[ports]
http = { tcp = 80, env = "PORT", value = "{port}" }
admin = { tcp = 81, env = ["ADMIN", "CONTROL"], url = "http://{host}:{port}" }
[uses.mediamtx]
api = { env = "MEDIAMTX_API" }
[instance]
environment = { LEVEL = "debug" }
files = { "server.conf" = "server.conf.j2" }
"""

# Whatever fits into one line: no control character but a tab, no surrogate, no noncharacter.
line_texts = st.text(
    st.characters(blacklist_categories=["Cc", "Cs", "Cn"], whitelist_characters="\t"), max_size=30
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder = tmp_path_factory.mktemp("units") / "server"
    folder.mkdir()
    (folder / "service.toml").write_text(DEFINITION)
    (folder / "server.service.j2").write_text(UNIT)
    (folder / "server.conf.j2").write_text("port {{ ports.http }} 100% {{ root }}\n")
    return services.load(folder, "here")


def part(
    service: Service,
    *,
    kind: ManagerKind = ManagerKind.SYSTEM,
    values: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Part:
    return Part(
        run="r7k2mq",
        number=2,
        kind=kind,
        runtime_dir="/run" if kind is ManagerKind.SYSTEM else "/run/user/1000",
        ports={name: 20000 + at for at, name in enumerate(service.ports)},
        values=values or {},
        environment=environment or {},
        used={"mediamtx": {"api": 20997}},
    )


def rows(derived: Derived) -> list[tuple[str, str]]:
    """What is in force: the unit file and its drop-ins in systemd's order."""
    texts = [derived.units[derived.unit]]
    texts += [text for path, text in sorted(derived.units.items()) if ".service.d/" in path]
    return unitfile.effective(line for text in texts for line in unitfile.parse(text))


def environment(derived: Derived) -> dict[str, str]:
    """The environment systemd would give it: specifiers are expanded, variables are not."""
    words = [w for name, value in rows(derived) if name == "Environment" for w in split(value)]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def split(value: str) -> Iterable[str]:
    assert "%" not in value.replace("%%", "")
    return [word.replace("%%", "%") for word in unitfile.split(value)]


def value_of(derived: Derived, name: str) -> list[str]:
    return [value for other, value in rows(derived) if other == name]


def test_production_is_rendered_with_its_values(service: Service) -> None:
    [(name, text)] = render_production(service, {"root": "/srv/100%"}).items()
    assert name == "server.service"
    found = dict(unitfile.effective(unitfile.parse(text)))
    assert found["WorkingDirectory"] == "/srv/100%%"
    assert found["ExecStart"] == '/usr/bin/server --root "/srv/100%%"'
    assert found["WantedBy"] == "multi-user.target"


def test_an_instance_is_productions_service_section_and_nothing_else_of_it(
    service: Service,
) -> None:
    derived = derive(service, part(service))
    assert derived.unit == "understudy-server@r7k2mq-2.service"
    assert derived.directory == "/run/understudy/r7k2mq/server-2"
    base = derived.units[derived.unit]
    assert "# What it is.\nType=exec\nExecStart=/usr/bin/server --root" in base
    assert {line.section for line in unitfile.parse(base) if line.name} == {"Service"}
    assert "network-online" not in "".join(derived.units.values())


@pytest.mark.parametrize("kind", ManagerKind)
def test_what_is_productions_alone_is_undone(service: Service, kind: ManagerKind) -> None:
    derived = derive(service, part(service, kind=kind))
    assert value_of(derived, "EnvironmentFile") == []
    assert value_of(derived, "WorkingDirectory") == [derived.directory]
    assert "server" not in value_of(derived, "User")


CONFIDENTIAL = """\
[Service]
Type=exec
ExecStart=/usr/bin/server
Environment=LEVEL=1 "DB_PASSWORD=hush 1" "NAME=a \\"b\\" %n"
Environment=API_KEY=hush2
Environment=KEYBOARD=de
# Environment=TOKEN=hush3
;SetCredential=old:hush4
Environment="TOKEN=hush5
EnvironmentFile=-/etc/server/hush
PassEnvironment=LANG
LoadCredential=a:/etc/server/a
LoadCredentialEncrypted=b:/etc/server/b
SetCredential=c:hush6 \\
  hush7
SetCredentialEncrypted=d: hush8
"""


def test_no_secret_of_production_is_in_an_instance(service: Service) -> None:
    derived = derive(service, replace(part(service), base=CONFIDENTIAL))
    texts = "".join([*derived.units.values(), *derived.files.values()])
    assert re.findall("hush[0-9]*", texts) == ["hush"]  # the path of a file that is not read
    found = environment(derived)
    assert found["NAME"] == 'a "b" %n'.replace("%n", "server.service")
    assert (found["LEVEL"], found["KEYBOARD"]) == ("debug", "de")
    assert not {"DB_PASSWORD", "API_KEY", "TOKEN"} & found.keys()
    assert "# left out: Environment= of DB_PASSWORD\n" in derived.units[derived.unit]
    for name in ("EnvironmentFile", "PassEnvironment", *CREDENTIALS):
        assert value_of(derived, name) == []


def test_a_system_instance_has_a_user_of_its_own(service: Service) -> None:
    derived = derive(service, part(service))
    assert value_of(derived, "User") == ["us-%i"]
    assert value_of(derived, "DynamicUser") == ["yes"]
    assert value_of(derived, "CapabilityBoundingSet") == [""]


def test_an_instance_of_a_user_manager_names_no_user(service: Service) -> None:
    derived = derive(service, part(service, kind=ManagerKind.USER))
    assert value_of(derived, "User") == []
    assert value_of(derived, "DynamicUser") == ["no"]
    assert value_of(derived, "ProtectHome") == ["no"]


def test_an_instance_ends_with_its_run(service: Service) -> None:
    derived = derive(service, part(service))
    bound = "understudy-guard@r7k2mq.service understudy-clean@r7k2mq.service"
    assert value_of(derived, "BindsTo") == [bound]
    assert value_of(derived, "After") == [bound]
    assert value_of(derived, "Slice") == ["understudy-r7k2mq.slice"]
    assert value_of(derived, "Restart") == ["no"]
    assert value_of(derived, "TimeoutStopSec") == ["5"]
    assert value_of(derived, "RuntimeDirectory") == ["understudy/r7k2mq/server-2"]
    assert value_of(derived, "SyslogIdentifier") == [derived.unit]


PRODUCTION = frozenset(
    {(Transport.TCP, number) for number in (80, 81, 82, 9997)} | {(Transport.UDP, 81)}
)


@pytest.mark.parametrize("kind", ManagerKind)
def test_an_instance_is_kept_from_productions_ports_and_from_other_hosts(
    service: Service, kind: ManagerKind
) -> None:
    derived = derive(service, replace(part(service, kind=kind), denied=PRODUCTION))
    rules = bind_rules(PRODUCTION)
    assert rules == ["tcp:80-82", "tcp:9997", "udp:81"]
    by_slice = kind is ManagerKind.SYSTEM
    slice_unit = "understudy-r7k2mq-guarded.slice" if by_slice else "understudy-r7k2mq.slice"
    assert value_of(derived, "Slice") == [slice_unit]
    assert derived.place == (f"{slice_unit}/{derived.unit}" if by_slice else derived.unit)
    assert value_of(derived, "SocketBindDeny") == ([] if by_slice else rules)
    assert value_of(derived, "SocketBindAllow") == []
    assert value_of(derived, "IPAddressDeny") == ["any"]
    assert value_of(derived, "IPAddressAllow") == ["localhost"]


def test_whom_production_may_talk_to_is_not_the_instances(tmp_path: Path) -> None:
    unit = f"{UNIT}\n[Service]\nIPAddressAllow=10.0.0.0/8\nSocketBindAllow=any\n"
    conf = "[Service]\nIPAddressAllow=192.0.2.7\n"
    derived = derive(own := define(tmp_path, conf=conf, unit=unit), part(own))
    assert value_of(derived, "IPAddressAllow") == ["192.0.2.7", "localhost"]
    assert value_of(derived, "SocketBindAllow") == []


def test_a_private_instance_may_bind_what_production_has(service: Service) -> None:
    private = replace(part(service), network=PrivateNetwork())
    derived = derive(service, replace(private, denied=PRODUCTION))
    assert value_of(derived, "Slice") == ["understudy-r7k2mq.slice"]
    assert derived.place == derived.unit
    assert value_of(derived, "SocketBindDeny") == value_of(derived, "IPAddressDeny") == []


def test_what_it_may_use_at_most_is_in_a_file_of_its_own(service: Service) -> None:
    limited = replace(part(service), limits={"MemoryMax": "512M", "TasksMax": "100"})
    derived = derive(service, limited)
    text = derived.units[f"{derived.unit}.d/92-limits.conf"]
    assert text.splitlines()[1:] == ["[Service]", "MemoryMax=512M", "TasksMax=100"]
    with pytest.raises(RenderError, match="limit 'MemoryMax'"):
        derive(service, replace(limited, limits={"MemoryMax": "1\nUser=root"}))
    assert not any("limits" in name for name in derive(service, part(service)).units)


def test_in_the_background_it_and_its_proxies_are_last_in_line(service: Service) -> None:
    drop_in = "93-background.conf"
    background = replace(part(service), background=True)
    derived = derive(service, background)
    assert value_of(derived, "CPUSchedulingPolicy")[-1:] == ["idle"]
    assert value_of(derived, "Nice")[-1:] == ["19"]
    network = PrivateNetwork()
    derived = derive(service, replace(background, network=network, published={"http": 20000}))
    assert [name for name in derived.units if name.endswith(drop_in)] == [
        f"{derived.unit}.d/{drop_in}",
        *(f"{proxy}.d/{drop_in}" for proxy in derived.proxies.values()),
    ]
    assert len(derived.proxies) == 1
    assert not any("background" in name for name in derive(service, part(service)).units)


def test_a_prefix_on_productions_server_reaches_the_instance(service: Service) -> None:
    told = replace(service, prefixes={"mediamtx": UsedPrefix(env=("A", "B"), value="{prefix}/%")})
    prefixed = replace(part(told), prefixes={"mediamtx": "r7k2mq/server-1"})
    found = environment(derive(told, prefixed))
    assert (found["A"], found["B"]) == ("r7k2mq/server-1/%", "r7k2mq/server-1/%")
    assert "A" not in environment(derive(told, part(told)))


def test_ports_uses_and_own_environment_reach_the_instance(service: Service) -> None:
    derived = derive(service, part(service, environment={"LEVEL": "info", "OWN": "1"}))
    assert environment(derived) == {
        "UNDERSTUDY_RUN": "r7k2mq",
        "UNDERSTUDY_SERVICE": "server",
        "UNDERSTUDY_HOST": "127.0.0.1",
        "UNDERSTUDY_PORTS": "http=20000,admin=20001",
        "UNDERSTUDY_URLS": "admin=http://127.0.0.1:20001",
        "LEVEL": "debug",
        "PORT": "20000",
        "ADMIN": "127.0.0.1:20001",
        "CONTROL": "127.0.0.1:20001",
        "MEDIAMTX_API": "20997",
    }
    [file] = value_of(derived, "EnvironmentFile")  # wins over all of Environment=
    assert file == "/run/understudy/r7k2mq/server-2.files/secrets.env"
    assert derived.secrets == {"LEVEL": "info", "OWN": "1"}
    assert not value_of(derive(service, part(service)), "EnvironmentFile")


def test_an_instance_file_is_text_of_its_own_format(service: Service) -> None:
    derived = derive(service, part(service, values={"root": "/srv/50%"}))
    assert derived.files == {
        "/run/understudy/r7k2mq/server-2.files/server.conf": "port 20000 100% /srv/50%\n"
    }


@settings(deadline=None)
@given(text=line_texts)
def test_a_variable_that_was_asked_for_is_in_no_unit_and_no_file(
    service: Service, text: str
) -> None:
    given_part = part(service, environment={"OWN": f"a {text}\n[Service]"})
    derived = derive(service, given_part)
    plain = derive(service, part(service, environment={"OWN": "x"}))
    assert (derived.units, derived.files) == (plain.units, plain.files)
    for shown in (repr(derived), repr(given_part)):
        assert "[Service]" not in shown.replace(repr(dict(derived.units)), "")


@given(text=line_texts.filter(lambda text: not text.endswith("\\")))
def test_no_value_smuggles_in_a_directive(service: Service, text: str) -> None:
    plain = derive(service, part(service))
    derived = derive(service, part(service, values={"root": text}))
    shown = {
        "ProtectHome",
        "TemporaryFileSystem",
        "BindReadOnlyPaths",
    }  # what a path below /home adds
    assert [n for n, _ in rows(derived) if n not in shown] == [
        n for n, _ in rows(plain) if n not in shown
    ]
    [command] = value_of(derived, "ExecStart")
    assert split(command) == ["/usr/bin/server", "--root", text]


def test_a_value_cannot_swallow_the_next_line(service: Service) -> None:
    with pytest.raises(RenderError, match="ends with a backslash"):
        derive(service, part(service, values={"root": "/srv\\"}))


@pytest.mark.parametrize("text", ["a\nExecStart=/bin/sh", "a\rUser=root", "a\0b"])
def test_a_line_end_in_a_value_is_refused_by_name(service: Service, text: str) -> None:
    with pytest.raises(RenderError, match="Cannot render value 'root': it holds"):
        derive(service, part(service, values={"root": text}))
    with pytest.raises(RenderError, match="Cannot render value 'root'"):
        render_production(service, {"root": text})


@pytest.mark.parametrize("text", ["hush\r", "hush\0", "hush\x1b", "hush\ud800", "hush\x7f"])
def test_a_value_that_systemd_would_leave_out_is_refused_and_not_shown(
    service: Service, text: str
) -> None:
    message = "^Cannot set environment variable 'OWN': its value holds the character U"
    with pytest.raises(RenderError, match=message) as caught:
        derive(service, part(service, environment={"OWN": text}))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "A B", "A=B", "1A", "A\n", "Ä"])
def test_an_unfit_variable_is_refused(service: Service, name: str) -> None:
    with pytest.raises(RenderError, match="is no environment variable"):
        derive(service, part(service, environment={name: ""}))


def test_an_unknown_value_is_answered_with_the_nearest(service: Service) -> None:
    with pytest.raises(RenderError, match="Cannot set 'rot'") as caught:
        derive(service, part(service, values={"rot": "/"}))
    assert caught.value.hint == "did you mean 'root'? its values: program, root"


def test_a_port_without_a_number_and_a_number_without_a_port_are_refused(
    service: Service,
) -> None:
    with pytest.raises(RenderError, match="port 'admin' has no number"):
        derive(service, replace(part(service), ports={"http": 1}))
    with pytest.raises(RenderError, match="has no port 'htp'") as caught:
        derive(service, replace(part(service), ports={"http": 1, "admin": 2, "htp": 3}))
    assert "did you mean 'http'?" in (caught.value.hint or "")


def test_an_unfit_run_id_is_refused(service: Service) -> None:
    with pytest.raises(RenderError, match="'a-b' is no run id"):
        derive(service, replace(part(service), run="a-b"))


def define(tmp_path: Path, *, conf: str = "", toml: str = "", unit: str = UNIT) -> Service:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "service.toml").write_text(DEFINITION.replace("files = ", "#") + toml)
    (folder / "server.service.j2").write_text(unit)
    (folder / "instance.conf").write_text(conf)
    return services.load(folder, "here")


def test_the_definitions_own_drop_in_wins_over_what_is_undone(tmp_path: Path) -> None:
    conf = "[Service]\nWorkingDirectory={{ root }}\nEnvironmentFile=/etc/test/secrets\n"
    service = define(tmp_path, conf=conf)
    derived = derive(service, part(service))
    assert value_of(derived, "WorkingDirectory") == ["/opt/server"]
    assert value_of(derived, "EnvironmentFile") == ["/etc/test/secrets"]


def test_an_undefined_variable_names_the_file_and_what_is_defined(tmp_path: Path) -> None:
    service = define(tmp_path, conf="[Service]\nNice={{ nicenes }}\n")
    with pytest.raises(RenderError, match=r"server/instance\.conf': 'nicenes' is undefined") as c:
        derive(service, part(service))
    assert "directory, files, host" in (c.value.hint or "")


def test_a_template_that_is_wrong_names_its_line(tmp_path: Path) -> None:
    service = define(tmp_path, conf="[Service]\n{% if %}\n")
    with pytest.raises(RenderError, match=r"instance\.conf': line 2"):
        derive(service, part(service))


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    service = define(tmp_path)
    (tmp_path / "server/server.service.j2").unlink()
    with pytest.raises(RenderError, match=r"server\.service\.j2': there is no such template"):
        render_production(service, {})


INSTALLED = """\
# /etc/systemd/system/server.service
[Unit]
After=network.target
[Service]
ExecStartPre=+/bin/mkdir /run/%N
ExecStart=/usr/bin/server --old
Environment=A=1 HOST=%H B=%%n
Sockets=server.socket \\
  other.socket
ExecStop=/bin/kill-production

# /etc/systemd/system/server.service.d/override.conf
[Service]
ExecStart=
ExecStart="/opt/new server" --name %n $OPTIONS
SyslogFacility=%p
"""


def test_an_instance_can_be_derived_from_the_installed_unit_and_its_drop_ins(
    tmp_path: Path,
) -> None:
    service = define(
        tmp_path, conf="[Service]\nExecStart=\nExecStart={{ argv | quote }} -p {{ ports.http }}\n"
    )
    derived = derive(service, replace(part(service), base=INSTALLED))
    # What stands for production's own name keeps its meaning; the rest is the manager's.
    assert value_of(derived, "ExecStart") == [
        '"/opt/new server" "--name" "server.service" "$OPTIONS" -p 20000'
    ]
    assert value_of(derived, "SyslogFacility") == ["server"]
    assert value_of(derived, "Environment")[0] == "A=1 HOST=%H B=%%n"
    assert value_of(derived, "ExecStartPre") == []
    assert value_of(derived, "ExecStop") == []
    assert value_of(derived, "After") == value_of(derived, "BindsTo")


def test_productions_sockets_never_reach_an_instance(tmp_path: Path) -> None:
    service = define(tmp_path)
    derived = derive(service, replace(part(service), base=INSTALLED))
    assert value_of(derived, "Sockets") == []
    assert (
        "# left out: Sockets=server.socket \\\n# left out:   other.socket"
        in (derived.units[derived.unit])
    )


def test_a_unit_without_a_service_section_is_refused(tmp_path: Path) -> None:
    service = define(tmp_path)
    with pytest.raises(RenderError, match=r"'server\.service': it has no \[Service\] section"):
        derive(service, replace(part(service), base="[Unit]\n"))


@pytest.mark.parametrize("prefix", ["+", "!", "-!!", ":+"])
def test_an_instance_inherits_no_command_that_runs_as_root(tmp_path: Path, prefix: str) -> None:
    service = define(tmp_path, unit=f"[Service]\nExecStart={prefix}/usr/bin/server\n")
    with pytest.raises(RenderError, match=r"would have rights of root"):
        derive(service, part(service))
    conf = "[Service]\nExecStart=\nExecStart={{ argv | quote }}\n"
    (tmp_path / "server/instance.conf").write_text(conf)
    assert value_of(derive(service, part(service)), "ExecStart") == ['"/usr/bin/server"']


SOCKETS = '[activation]\ninstance = "sockets"\n'


def test_sockets_are_bound_by_the_manager_and_told_by_name(tmp_path: Path) -> None:
    service = define(tmp_path, toml=SOCKETS)
    derived = derive(service, part(service))
    assert derived.socket == "understudy-server@r7k2mq-2.socket"
    socket = unitfile.effective(unitfile.parse(derived.units[derived.socket]))
    assert [value for name, value in socket if name == "ListenStream"] == [
        "127.0.0.1:20000",
        "127.0.0.1:20001",
    ]
    assert dict(socket)["BindsTo"] == value_of(derived, "BindsTo")[0]
    assert dict(socket)["TriggerLimitIntervalSec"] == "0"
    assert value_of(derived, "Requires") == [derived.socket]
    assert derived.socket in value_of(derived, "After")
    assert environment(derived)["LISTEN_FDNAMES"] == "http:admin"
    assert value_of(derived, "IPAddressDeny") == ["any"]
    assert value_of(derived, "SocketBindAllow") == []
    with pytest.raises(RenderError, match="its sockets are bound by the manager"):
        transient(derived, part(service))


BOUND = '[instance.files."x.conf"]\nfrom = "service.toml"\nover = "/etc/x.conf"\n'


@pytest.mark.parametrize("kind", ManagerKind)
def test_a_file_is_bound_over_a_fixed_path(tmp_path: Path, kind: ManagerKind) -> None:
    service = define(tmp_path, toml=BOUND)
    derived = derive(service, part(service, kind=kind))
    [bound] = value_of(derived, "BindReadOnlyPaths")
    assert bound == f'"{derived.directory}.files/x.conf":"/etc/x.conf"'
    assert value_of(derived, "AssertPathExists") == ["/etc/x.conf"]
    user = kind is ManagerKind.USER
    assert value_of(derived, "PrivateUsers") == (["yes"] if user else [])


@pytest.mark.parametrize(
    ("root", "shown"),
    [
        ("/opt/server", []),
        ("/homework", []),
        ("/home/anna/server", ["-/home/anna/server"]),
        ("/home/anna/server/venv/bin/python", ["-/home/anna/server/venv"]),
        ("/home/anna/bin/server", ["-/home/anna/bin/server"]),
        ("/root/server", ["-/root/server"]),
        ("/tmp/pytest-1/server", ["-/tmp/pytest-1/server"]),
        ("/run/user/1000/x", ["-/run/user/1000/x"]),
        ("/home/anna/../../etc", []),
    ],
)
def test_a_hidden_value_is_shown_to_a_system_instance(
    service: Service, root: str, shown: list[str]
) -> None:
    derived = derive(service, part(service, values={"root": root}))
    assert [unitfile.split(value) for value in value_of(derived, "BindReadOnlyPaths")] == [
        [path] for path in shown
    ]
    in_home = any(not path.startswith("-/tmp") for path in shown)
    assert value_of(derived, "ProtectHome") == (["tmpfs"] if in_home else ["yes"])


def test_a_value_below_tmp_is_seen_by_an_instance_of_a_user_manager(service: Service) -> None:
    derived = derive(service, part(service, kind=ManagerKind.USER, values={"root": "/tmp/x"}))
    assert value_of(derived, "PrivateTmp") == ["no"]
    assert value_of(derived, "BindReadOnlyPaths") == []


def adhoc(*command: str) -> Service:
    ports = {"http": Port(name="http", transport=Transport.TCP)}
    return Service(name="adhoc", description="a command", ports=ports, command=command)


def test_an_ad_hoc_service_is_a_literal_command(service: Service) -> None:
    own = adhoc("srv", "--port={port.http}", "--at", "{host}", "{dir}/x", "$HOME 100%", "{a}", "")
    derived = derive(own, replace(part(own), used={}))
    [command] = value_of(derived, "ExecStart")
    assert split(command) == [
        ":srv",
        "--port=20000",
        "--at",
        "127.0.0.1",
        "/run/understudy/r7k2mq/adhoc-2/x",
        "$HOME 100%",
        "{a}",
        "",
    ]
    assert value_of(derived, "Type") == ["exec"]


@given(st.lists(line_texts, max_size=5))
def test_arguments_of_a_command_stay_what_they_are(arguments: list[str]) -> None:
    own = adhoc("srv", *arguments)
    expected = [a.replace("{host}", "127.0.0.1") for a in own.command]
    the_part = part(own)
    derived = derive(own, the_part)
    [command] = value_of(derived, "ExecStart")
    assert split(command) == [":srv", *expected[1:]]
    assert transient(derived, the_part)[1] == expected


def test_an_unknown_port_in_a_command_is_answered_with_the_nearest() -> None:
    own = adhoc("srv", "{port.htp}")
    with pytest.raises(RenderError, match=r"Cannot fill in '\{port\.htp\}'") as caught:
        derive(own, part(own))
    assert "did you mean 'http'?" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["", "-srv", "@srv", "+srv", "!srv", ":srv"])
def test_a_command_that_systemd_would_read_otherwise_is_refused(name: str) -> None:
    own = adhoc(name)
    with pytest.raises(RenderError, match="command's name cannot begin like that"):
        derive(own, part(own))


def test_a_transient_unit_has_the_same_rows_without_specifiers(tmp_path: Path) -> None:
    unit = "[Service]\nExecStart=/bin/x ${A} $B $$C %%d \"%t\"\nEnvironment=A=1 'B=2 3' C=%%%N\n"
    service = define(tmp_path, unit=unit)
    derived = derive(service, part(service))
    found, argv = transient(derived, part(service))
    assert argv == ["/bin/x", "1", "2", "3", "$C", "%d", "/run"]
    assert ("User", "us-r7k2mq-2") in found
    assert ("CapabilityBoundingSet", "") in found
    assert ("Environment", "A=1 'B=2 3' C=%server") in found
    assert ("WorkingDirectory", derived.directory) in found
    assert [name for name, _ in found] == [n for n, _ in rows(derived) if n != "ExecStart"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ExecStart=-/bin/x", "no prefix '-'"),
        ("ExecStart=/bin/x $UNSET", r"'\$UNSET' in ExecStart= is not in its Environment="),
        ("ExecStart=/bin/x %m", "knows what '%m' means"),
        ("ExecStart=/bin/x\nExecStart=/bin/y\nType=oneshot", "it has 2 ExecStart="),
    ],
)
def test_what_no_transient_unit_can_have_is_refused(
    tmp_path: Path, line: str, problem: str
) -> None:
    service = define(tmp_path, unit=f"[Service]\n{line}\n")
    with pytest.raises(RenderError, match=problem):
        transient(derive(service, part(service)), part(service))


def test_many_instances_differ_in_nothing_but_number_and_ports(service: Service) -> None:
    first, second = part(service), replace(part(service), number=3)
    one, other = derive(service, first), derive(service, second)
    assert {path.replace("-2.", "-3.") for path in one.units} == set(other.units)
    assert not set(one.units) & set(other.units)
    assert not set(one.files) & set(other.files)
