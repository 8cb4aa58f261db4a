"""Definitions: where they are found, and how strictly they are read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from understudy import services
from understudy.errors import DefinitionError, UsageError
from understudy.model import Activation, Transport, UsedPrefix

MINIMAL = 'description = "a server"\n'


def define(units: Path, name: str = "server", text: str = MINIMAL) -> Path:
    folder = units / name
    folder.mkdir(parents=True)
    (folder / "service.toml").write_text(text)
    return folder


def test_a_whole_definition_is_read(tmp_path: Path) -> None:
    folder = define(
        tmp_path,
        text="""
description = "a server"
production = "server.service"
singleton = true
[values]
root = "/opt/server"
[ports]
api = { tcp = 80, env = ["A", "B"], url = "http://{host}:{port}" }
rtp = { udp = 8000, env = "RTP", even = true, shares = true }
rtcp = { udp = 8001, env = "RTCP", value = "{port}", next-to = "rtp", optional = true }
admin = { tcp = 81, file = "server.conf" }
[uses.mediamtx]
api = { env = "MEDIAMTX" }
path-prefix = { env = "PREFIX", value = "{prefix}/" }
[activation]
production = "sockets"
[instance]
environment = { LEVEL = "debug" }
files = { "server.conf" = "server.conf.j2" }
[ready]
http = { port = "api", path = "/up", status = 204 }
""",
    )
    with pytest.raises(DefinitionError, match=r"instance\.files\.server\.conf: there is no templ"):
        services.load(folder, "here")
    (folder / "server.conf.j2").touch()

    service = services.load(folder, "here")

    assert (service.name, service.origin, service.production) == (
        "server",
        "here",
        "server.service",
    )
    assert service.singleton
    assert list(service.ports) == ["api", "rtp", "rtcp", "admin"]
    assert service.ports["api"].env == ("A", "B")
    assert service.ports["api"].value == "{host}:{port}"
    assert service.ports["rtp"].transport is Transport.UDP
    assert service.ports["rtp"].even
    assert service.ports["rtp"].shares
    assert service.ports["rtcp"].next_to == "rtp"
    assert service.ports["rtcp"].value == "{port}"
    assert service.ports["rtcp"].optional
    assert service.ports["admin"].file == "server.conf"
    assert service.uses["mediamtx"]["api"].value == "{port}"
    assert list(service.uses["mediamtx"]) == ["api"]
    assert service.prefixes["mediamtx"] == UsedPrefix(env=("PREFIX",), value="{prefix}/")
    assert service.production_activation is Activation.SOCKETS
    assert service.instance_activation is Activation.NONE
    assert service.environment == {"LEVEL": "debug"}
    assert service.files[0].over is None
    assert service.ready is not None
    assert (service.ready.port, service.ready.path, service.ready.status) == ("api", "/up", 204)


PROXY = "[activation]\nproduction = 'proxy'\n"
PORTS = "[ports]\napi = { tcp = 80 }\nrtp = { udp = 8000, even = true }\n"

WRONG = [
    ("", "description: missing", "a noun phrase"),
    ("description = 1", "description: wrong type integer", "a string"),
    (MINIMAL + "produktion = 'x.service'", "produktion: unknown key", "did you mean 'production'"),
    (MINIMAL + "production = 'x'", "production: 'x' is no unit name", "mediamtx.service"),
    (MINIMAL + "singleton = 'yes'", "singleton: wrong type string", "true or false"),
    (MINIMAL + "ports = 3", "ports: wrong type integer", "a table"),
    (MINIMAL + "[values]\nroot = 3", "values.root: wrong type integer", "a string"),
    (MINIMAL + "[values]\nroot = 'a\\\\b'", None, None),
    (MINIMAL + '[values]\nroot = "a\\nb"', "values.root: a control character", "one line"),
    (MINIMAL + "[values]\nro-ot = ''", "values.ro-ot: no name for a value", "underscores"),
    (MINIMAL + "[values]\nports = ''", "values.ports: this name is taken", "not one of"),
    (
        MINIMAL + '[instance.files]\n"secrets.env" = "x"',
        "instance.files.secrets.env: this name is taken",
        "network.env",
    ),
    (MINIMAL + "[secrets]\nkey = ''", "secrets.key: wrong type string", "environment = "),
    (MINIMAL + "[secrets.a-b]", "secrets.a-b: no name for a secret", "underscores"),
    (MINIMAL + "[secrets.ports]", "secrets.ports: this name is taken", "a name of its own"),
    (MINIMAL + "[values]\na = ''\n[secrets.a]", "secrets.a: this name is taken", "in no [values]"),
    (MINIMAL + "[secrets.a]\ndefault = ''", "secrets.a.default: unknown key", "environment"),
    (
        MINIMAL + "[secrets.a.environment]\nA = '{b}'",
        "secrets.a.environment.A: 'b' is no value or secret",
        "a",
    ),
    (
        MINIMAL + "[secrets.a.environment]\nA = '{a|md5}'",
        "secrets.a.environment.A: unknown placeholder",
        "sha256",
    ),
    (MINIMAL + "[secrets.a.environment]\n1 = ''", "'1' is no environment variable", "digits"),
    (
        MINIMAL + "[uses.mediamtx.secrets]\napi_password = {}",
        "uses.mediamtx.secrets.api_password.env: missing",
        "an environment variable",
    ),
    (
        MINIMAL + PORTS + "[ready]\nhttp = { port = 'api', password = '{x}' }",
        "ready.http.password: 'x' is no value or secret",
        "none",
    ),
    (MINIMAL + "[instance]\nnetwork = 'lab'", "instance.network: unknown network", "host, private"),
    (MINIMAL + "[instance]\nnetwork = true", "instance.network: wrong type boolean", "a string"),
    (MINIMAL + "[ports]\nAPI = { tcp = 1 }", "ports.API: no name for a port", "lower case"),
    (MINIMAL + "[ports]\napi = 80", "ports.api: wrong type integer", "tcp = 9997"),
    (MINIMAL + "[ports]\napi = {}", "ports.api: one transport", "tcp = NUMBER or udp"),
    (MINIMAL + "[ports]\napi = { tcp = 1, udp = 1 }", "ports.api: one transport", "udp = NUMBER"),
    (MINIMAL + "[ports]\napi = { sctp = 1 }", "ports.api.sctp: unknown key", "tcp, udp, env"),
    (MINIMAL + "[ports]\napi = { tcp = 0 }", "ports.api.tcp: 0 is out of range", "1 to 65535"),
    (MINIMAL + "[ports]\napi = { tcp = true }", "ports.api.tcp: wrong type boolean", "65535"),
    (MINIMAL + "[ports]\napi = { tcp = 1, env = 'A-B' }", "ports.api.env: 'A-B' is no", "digits"),
    (
        MINIMAL + "[ports]\napi = { tcp = 1, env = [1] }",
        "ports.api.env: wrong type integer",
        "list",
    ),
    (
        MINIMAL + "[ports]\napi = { tcp = 1, value = '{prot}' }",
        "ports.api.value: unknown placeholder",
        "{host} and {port}",
    ),
    (
        MINIMAL + "[ports]\napi = { tcp = 1, switch = 'yes' }",
        "ports.api.switch: an assignment",
        "NAME=VALUE",
    ),
    (MINIMAL + "[ports]\napi = { tcp = 1, url = '{' }", "ports.api.url: unknown", "{host}"),
    (
        MINIMAL + "[ports]\na = { tcp = 80 }\nb = { tcp = 80 }",
        "ports.b.tcp: 80 is the number of 'a' too",
        "a number of its own",
    ),
    (MINIMAL + "[ports]\na = { tcp = 80 }\nb = { udp = 80 }", None, None),
    (
        MINIMAL + "[ports]\na = { tcp = 80, env = 'P' }\nb = { tcp = 81, env = 'P' }",
        "ports.b.env: 'P' already tells the service port 'a'",
        "one port only",
    ),
    (
        MINIMAL + "[ports]\na = { udp = 81, even = true }",
        "ports.a.even: 81 is odd",
        "on an even number",
    ),
    (
        MINIMAL + PORTS + "x = { udp = 8001, next-to = 'rpt' }",
        "ports.x.next-to: unknown port 'rpt'",
        "an even port of the same transport: rtp",
    ),
    (
        MINIMAL + PORTS + "x = { tcp = 81, next-to = 'api' }",
        "ports.x.next-to: 'api' is not an even tcp port",
        "none is declared",
    ),
    (
        MINIMAL + PORTS + "x = { udp = 8003, next-to = 'rtp' }",
        "ports.x.next-to: production's 8003 is not beside 8000",
        "8001",
    ),
    (
        MINIMAL + PORTS + "x = { udp = 8001, next-to = 'rtp' }\ny = { udp = 1, next-to = 'rtp' }",
        "ports.x.next-to: 'rtp' has another neighbour",
        "one neighbour each",
    ),
    (
        MINIMAL + "[ports]\na = { tcp = 80, file = 'x' }",
        "ports.a.file: 'x' is no file",
        "there are no files",
    ),
    (MINIMAL + "[uses.Bad]\na = {}", "uses.Bad: no name for a service", "lower case"),
    (MINIMAL + "[uses.x]\na = { envv = 'A' }", "uses.x.a.envv: unknown key", "mean 'env'"),
    (MINIMAL + "[uses.x]\npath-prefix = 'A'", "uses.x.path-prefix: wrong type string", "env = 'NA"),
    (
        MINIMAL + "[uses.x]\npath-prefix = {}",
        "uses.x.path-prefix.env: missing",
        "the name of an env",
    ),
    (
        MINIMAL + "[uses.x]\npath-prefix = { env = 'A', value = '{port}' }",
        "uses.x.path-prefix.value: no prefix in '{port}'",
        "{prefix}",
    ),
    (
        MINIMAL + "[uses.x]\npath-prefix = { env = 'A', vaule = 'x' }",
        "uses.x.path-prefix.vaule: unknown key",
        "mean 'value'",
    ),
    (
        MINIMAL + "[activation]\ninstance = 'fd'",
        "activation.instance: unknown way",
        "none, sockets",
    ),
    (MINIMAL + "[activation]\nboth = 'none'", "activation.both: unknown key", "production, inst"),
    (
        MINIMAL + "[activation]\ninstance = 'proxy'",
        "activation.instance: 'proxy' is for production alone",
        'none, sockets; or: [instance] network = "private"',
    ),
    (
        MINIMAL + "[ports]\na = { tcp = 80, behind = 8080 }",
        "ports.a.behind: no proxy is in front of it",
        "activation.production = 'proxy'",
    ),
    (
        MINIMAL + "[activation]\nidle = 60",
        "activation.idle: no proxy could notice it",
        "activation.production = 'proxy'",
    ),
    (MINIMAL + PROXY, "activation.production: 'proxy' without a TCP port", "none, or a tcp"),
    (
        MINIMAL + PROXY + "idle = 0",
        "activation.idle: 0 is out of range",
        "a whole number from 1",
    ),
    (
        MINIMAL + PROXY + "[ports]\na = { tcp = 80 }\nrtp = { udp = 8000 }",
        "ports.rtp.udp: 8000 cannot stand behind a proxy, which passes on TCP alone",
        "optional = true",
    ),
    (
        MINIMAL + PROXY + "[ports]\na = { tcp = 80 }\nb = { udp = 1, behind = 2, optional = true }",
        "ports.b.udp: 1 cannot stand behind a proxy",
        "without behind: it is left out",
    ),
    (
        MINIMAL + PROXY + "[ports]\na = { tcp = 80, behind = 8080 }\nb = { tcp = 81 }",
        "ports.b.behind: missing, while 'a' has one",
        "behind for every TCP port, or for none",
    ),
    (
        MINIMAL + PROXY + "[ports]\na = { tcp = 80, behind = 80 }",
        "ports.a.behind: 80 is a number of 'a'",
        "a number of its own",
    ),
    (
        MINIMAL
        + PROXY
        + "[ports]\na = { tcp = 80, behind = 8080 }\nb = { tcp = 8080, behind = 8081 }",
        "ports.a.behind: 8080 is a number of 'b'",
        "a number of its own",
    ),
    (
        MINIMAL + PROXY + "[ports]\na = { tcp = 80, behind = 90 }\nb = { tcp = 81, behind = 90 }",
        "ports.b.behind: 90 is a number of 'a'",
        "a number of its own",
    ),
    (MINIMAL + "[instance]\nenv = {}", "instance.env: unknown key", "environment"),
    (
        MINIMAL + "[instance.environment]\nA-B = ''",
        "instance.environment.A-B: 'A-B' is no",
        "digits",
    ),
    (MINIMAL + "[instance.files]\n'../x' = 'y'", "instance.files.../x: no name for a file", "dots"),
    (
        MINIMAL + "[instance.files.x]\nover = '/x'",
        "instance.files.x.from: missing",
        "a template's name",
    ),
    (
        MINIMAL + "[instance.files.x]\nfrom = 'service.toml'\nover = '/x/../y'",
        "instance.files.x.over: '/x/../y' is no place",
        "a plain absolute path",
    ),
    (
        MINIMAL + "[ready]\nhttp = { port = 'api' }",
        "ready.http.port: 'api' is no TCP port",
        "none declared",
    ),
    (
        MINIMAL + "[ports]\nb = { tcp = 1, switch = 'B=1' }\n[ready]\nhttp = { port = 'b' }",
        "ready.http.port: 'b' is no TCP port of [ports] that every instance opens",
        "none declared",
    ),
    (
        MINIMAL + PORTS + "[ready]\nhttp = { port = 'rtp' }",
        "ready.http.port: 'rtp' is no TCP port",
        "allowed: api",
    ),
    (
        MINIMAL + PORTS + "[ready]\nhttp = { port = 'api', path = 'up' }",
        "ready.http.path: 'up' is no request path",
        "begins with a slash",
    ),
    (
        MINIMAL + PORTS + "[ready]\nhttp = { port = 'api', status = 1000 }",
        "ready.http.status: 1000 is out of range",
        "100 to 599",
    ),
    (MINIMAL + "[ready]\ntcp = 'api'", "ready.tcp: unknown key", "http"),
    ("description =", "not TOML", ""),
]


@pytest.mark.parametrize(("text", "problem", "allowed"), WRONG)
def test_a_mistake_names_file_key_and_what_is_allowed(
    tmp_path: Path, text: str, problem: str | None, allowed: str | None
) -> None:
    folder = define(tmp_path, text=text)
    if problem is None:
        services.load(folder, "here")
        return
    with pytest.raises(DefinitionError) as caught:
        services.load(folder, "here")
    assert str(folder / "service.toml") in caught.value.message
    assert problem in caught.value.message
    assert (allowed or "") in (caught.value.hint or "")


def test_ports_with_a_switch_are_opened_together_where_one_is_asked_for(tmp_path: Path) -> None:
    ports = """
[ports]
http = { tcp = 80 }
https = { tcp = 443, switch = "TLS=yes" }
admin = { tcp = 444, switch = "TLS=yes" }
debug = { tcp = 81, switch = "DEBUG={port}" }
"""
    service = services.load(define(tmp_path, text=MINIMAL + ports), "here")
    assert list(services.opened(service).ports) == ["http"]
    assert list(services.opened(service, ["admin"]).ports) == ["http", "https", "admin"]


@pytest.mark.parametrize("name", ["guard", "clean", "Server", "a--b", "-a", "a_b", "1a", "a" * 65])
def test_a_folder_with_an_unfit_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DefinitionError, match="is no name for a service"):
        services.load(define(tmp_path, name), "here")


def test_a_missing_file_is_a_definition_error(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="No such file"):
        services.load(tmp_path / "server", "here")


class Places:
    """The folders in which definitions are looked for."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.named = root / "named"
        self.cwd = root / "cwd"
        self.home = root / "home"
        self.system = root / "etc"
        self.shipped = root / "shipped"
        self.of_cwd = self.cwd / "units"
        self.of_home = self.home / ".config/understudy/units"
        monkeypatch.setattr(services, "SYSTEM_UNITS", self.system)
        monkeypatch.setattr(services, "shipped_units", lambda: self.shipped)

    def origin(self, *, named: bool = False, as_root: bool = False) -> str:
        return services.find(
            "server",
            units=self.named if named else None,
            as_root=as_root,
            cwd=self.cwd,
            home=self.home,
        ).origin


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    return Places(tmp_path, monkeypatch)


def test_the_first_place_that_has_a_service_wins(places: Places) -> None:
    define(places.shipped)
    assert places.origin() == "shipped"
    define(places.system)
    assert places.origin() == str(places.system)
    define(places.of_home)
    assert places.origin() == "~/.config/understudy/units"
    define(places.of_cwd)
    assert places.origin() == "./units"
    define(places.named)
    assert places.origin(named=True) == str(places.named)


def test_root_reads_no_definition_of_the_working_directory_or_a_home(places: Places) -> None:
    define(places.of_cwd)
    define(places.of_home)
    define(places.shipped)
    assert places.origin(as_root=True) == "shipped"


def test_a_broken_definition_is_no_obstacle_to_another(places: Places) -> None:
    define(places.shipped)
    define(places.shipped, "broken", "description = 1")
    assert places.origin() == "shipped"
    with pytest.raises(DefinitionError):
        services.find("broken", as_root=True)


def test_productions_ports_are_those_of_every_sound_definition(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # who looks in no home and no working directory
    file = define(places.shipped, text=MINIMAL + PORTS) / "service.toml"
    define(places.shipped, "broken", "description = 1")
    both = {(Transport.TCP, 80), (Transport.UDP, 8000)}
    assert services.production_ports() == both
    assert services.production_ports() == both
    before = file.stat().st_mtime_ns
    file.write_text(MINIMAL + "[ports]\napi = { tcp = 81 }\n")
    os.utime(file, ns=(before + 1, before + 1))
    assert services.production_ports() == {(Transport.TCP, 81)}


def test_an_unknown_service_is_answered_with_the_nearest(places: Places) -> None:
    define(places.shipped)
    with pytest.raises(UsageError, match="Cannot find service 'sever'") as caught:
        services.find("sever", as_root=True)
    assert caught.value.hint is not None
    assert "did you mean 'server'?" in caught.value.hint
    assert "known services: server" in caught.value.hint


def test_a_named_folder_has_to_be_there(places: Places) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        services.folders(units=places.named, as_root=True)


def test_a_definition_on_demand_has_a_number_behind_each_of_its_own(tmp_path: Path) -> None:
    text = MINIMAL + PROXY + "idle = 60\n[ports]\na = { tcp = 80, behind = 8080 }\n"
    text += "rtp = { udp = 8000, optional = true }\n"
    service = services.load(define(tmp_path, text=text), "here")
    assert service.production_activation is Activation.PROXY
    assert (service.ports["a"].number, service.ports["a"].behind) == (80, 8080)
    assert service.idle_s == 60
    numbers = {number for _, number in services.production_ports(units=tmp_path)}
    assert {80, 8080, 8000} <= numbers
