"""A definition from what was found out of an installed unit: what must differ, and no secrets."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import derive, services
from understudy.define import (
    Definition,
    Facts,
    Listener,
    PathKind,
    Source,
    define,
    place,
    service_name,
)
from understudy.define.placing import try_out
from understudy.define.words import mentions, secrets, template, without_comments
from understudy.errors import UsageError
from understudy.model import Derived, ManagerKind, Part, Transport

SECRET = "s3cret-of-production"
SYSTEM = {"t": "/run", "S": "/var/lib", "L": "/var/log", "C": "/var/cache", "E": "/etc"}


def facts(service: str, *, unit: str = "shop.service", **known: Any) -> Facts:
    """Facts of a unit with these lines in its [Service] section."""
    text = f"# /etc/systemd/system/{unit}\n[Unit]\nDescription=The shop\n\n[Service]\n{service}\n"
    ports = known.pop("tcp", ())
    known.setdefault("running", bool(ports))
    listeners = tuple(Listener(transport=Transport.TCP, number=number) for number in ports)
    known.setdefault("listeners", listeners)
    known["files"] = {path: Source(text=text) for path, text in known.pop("files", {}).items()}
    known["environment_files"] = {
        path: Source(text=text) for path, text in known.pop("environment_files", {}).items()
    }
    known.setdefault("kind", ManagerKind.SYSTEM)
    return Facts(unit=unit, text=text, specifiers=SYSTEM, **known)


def defined(found: Facts, name: str = "shop") -> Definition:
    """The definition, which must be one."""
    definition = define(found, name)
    try_out(definition)
    return definition


def toml(definition: Definition) -> Any:
    return tomllib.loads(definition.files["service.toml"])


def instance(definition: Definition, folder: Path, ports: Mapping[str, int]) -> Derived:
    """An instance of it, with these ports."""
    service = services.load(place(definition, folder), "here")
    part = Part(run="r1", number=1, kind=ManagerKind.SYSTEM, runtime_dir="/run", ports=ports)
    return derive.derive(service, part)


def said(definition: Definition) -> str:
    return "\n".join(map(str, definition.notes))


@pytest.mark.parametrize(
    ("arguments", "number", "expected"),
    [
        ("--port 7101", 7101, "--port 20016"),
        ("--port=7101", 7101, "--port=20016"),
        ("-p 7101 --max 7101x", 7101, "-p 20016 --max 7101x"),
        ("-p7101", 7101, "-p20016"),
        ("--listen 0.0.0.0:7101", 7101, "--listen 127.0.0.1:20016"),
        ("--bind :7101", 7101, "--bind :20016"),
        ("-b 127.0.0.1:7101 shop:app", 7101, "-b 127.0.0.1:20016 shop:app"),
        ("-m http.server 7101", 7101, "-m http.server 20016"),
        ("--addr [::1]:7101", 7101, "--addr [::1]:20016"),
        ("--url http://localhost:7101/", 7101, "--url http://localhost:20016/"),
        ("--peer other.example:7101 -p 7101", 7101, "--peer other.example:7101 -p 20016"),
        ('-c "listen 7101; next"', 7101, '-c "listen 20016; next"'),
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_an_argument_is_told_the_instance_s_port(
    tmp_path: Path, arguments: str, number: int, expected: str, running: bool
) -> None:
    tcp = [number] if running or "--url" in arguments else []
    definition = defined(facts(f"ExecStart=/usr/bin/shop {arguments}", tcp=tcp))
    [name] = toml(definition)["ports"]
    derived = instance(definition, tmp_path, {name: 20016})
    drop_in = derived.units[f"{derived.unit}.d/10-instance.conf"]
    assert f'ExecStart="/usr/bin/shop" {expected}\n' in drop_in
    assert "network" not in toml(definition).get("instance", {})


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("PORT=7101", "{port}"),
        ("SHOP_LISTEN=0.0.0.0:7101", "{host}:{port}"),
        ("BIND=:7101", ":{port}"),
        ("ADDR=http://127.0.0.1:7101", "http://127.0.0.1:{port}"),
    ],
)
def test_a_variable_that_carries_a_port_is_declared(assignment: str, value: str) -> None:
    for tcp in ([7101], []):
        found = facts(f"ExecStart=/usr/bin/shop\nEnvironment={assignment}", tcp=tcp)
        [port] = toml(defined(found))["ports"].values()
        assert port["tcp"] == 7101
        assert port["env"] == assignment.partition("=")[0]
        assert port.get("value", "{host}:{port}") == value


def test_a_variable_of_an_environment_file_is_named_and_nothing_else_of_it() -> None:
    definition = defined(
        facts(
            "ExecStart=/usr/bin/shop\nEnvironmentFile=-/etc/default/shop",
            environment_files={
                "/etc/default/shop": f'PORT=7101\nLEVEL=debug-a-lot\nAPI_TOKEN="{SECRET}"\n'
            },
            tcp=[7101],
        )
    )
    assert toml(definition)["ports"] == {
        "tcp-7101": {"tcp": 7101, "env": "PORT", "value": "{port}"}
    }
    assert toml(definition)["instance"]["environment"] == {"API_TOKEN": "change-me"}
    assert "# LEVEL = " in definition.files["service.toml"]
    assert "debug-a-lot" not in "".join(definition.files.values())
    assert "an environment file sets LEVEL" in said(definition)


def test_two_ports_in_one_variable_are_a_template() -> None:
    found = facts("ExecStart=/usr/bin/shop\nEnvironment=PORTS=7101,7102", tcp=[7101, 7102])
    conf = defined(found).files["instance.conf"]
    assert 'PORTS={{ ports["tcp-7101"] }},{{ ports["tcp-7102"] }}' in conf


def test_a_port_that_nothing_tells_gets_a_private_network() -> None:
    definition = defined(facts("ExecStart=/usr/bin/shop", tcp=[7101]))
    assert toml(definition)["instance"]["network"] == "private"
    assert "nothing that was looked at tells it tcp-7101 (7101)" in said(definition)


def test_one_that_does_not_run_and_names_no_port_is_told() -> None:
    definition = defined(facts("ExecStart=/usr/bin/shop --timeout 8080"))
    assert "ports" not in toml(definition)
    assert "not running: no ports are known" in said(definition)
    assert "add them to [ports]" in said(definition)


CONFIG = """\
server:
  http:
    port: 7101
    timeout: 7101
  upstream: http://other.example:7101
  admin:
    listen: "0.0.0.0:7102"
log: /var/log/shop/shop.log
data: /var/lib/shop
pid: /run/shop.pid
format: "{{ time }} {% raw %} {# x #}"
"""


@pytest.mark.parametrize("tcp", [[7101, 7102], []])
def test_a_configuration_file_becomes_a_template(tmp_path: Path, tcp: list[int]) -> None:
    definition = defined(
        facts(
            "ExecStart=/usr/bin/shop --config /etc/shop.yaml\nStateDirectory=shop",
            files={"/etc/shop.yaml": CONFIG},
            kinds={"/var/lib/shop": PathKind.DIRECTORY},
            tcp=tcp,
        )
    )
    assert list(toml(definition)["ports"]) == ["http", "admin"]
    derived = instance(definition, tmp_path, {"http": 20016, "admin": 20017})
    [text] = derived.files.values()
    assert text.splitlines() == [
        "server:",
        "  http:",
        "    port: 20016",
        "    timeout: 7101",
        "  upstream: http://other.example:7101",
        "  admin:",
        '    listen: "127.0.0.1:20017"',
        f"log: {derived.directory}/shop.log",
        f"data: {derived.directory}",
        f"pid: {derived.directory}/shop.pid",
        'format: "{{ time }} {% raw %} {# x #}"',
    ]
    drop_in = derived.units[f"{derived.unit}.d/10-instance.conf"]
    assert f"--config {next(iter(derived.files))}\n" in drop_in
    assert f"Environment=STATE_DIRECTORY={derived.directory}\n" in drop_in


def test_included_files_are_copied_where_they_name_ports(tmp_path: Path) -> None:
    definition = defined(
        facts(
            "Type=forking\nExecStart=/usr/sbin/nginx -g 'daemon on; master_process on;'",
            unit="nginx.service",
            files={
                "/etc/nginx/nginx.conf": "user www;\npid /run/nginx.pid;\n"
                "error_log /var/log/nginx/error.log;\nhttp {\n"
                "  include mime.types;\n  include sites/*;\n}\n",
                "/etc/nginx/mime.types": "types { text/html html; }\n",
                "/etc/nginx/sites/a": "server { listen 80 default_server; }\n",
                "/etc/nginx/sites/b": "server { root /srv; }\n",
            },
            matches={
                "/etc/nginx/mime.types": ("/etc/nginx/mime.types",),
                "/etc/nginx/sites/*": ("/etc/nginx/sites/a", "/etc/nginx/sites/b"),
            },
            tcp=[80],
            answers={80: 404},
        ),
        "nginx",
    )
    assert toml(definition)["ready"] == {"http": {"port": "http", "path": "/", "status": 404}}
    derived = instance(definition, tmp_path, {"http": 20016})
    texts = {Path(path).name: text for path, text in derived.files.items()}
    files = str(Path(next(iter(derived.files))).parent)
    assert texts["a"] == "server { listen 20016 default_server; }\n"
    main = texts["nginx.conf"]
    assert f"  include {files}/a;\n  include /etc/nginx/sites/b;\n" in main
    assert "include /etc/nginx/mime.types;" in main
    assert "user www" not in main
    assert "error_log stderr;" in main
    assert f"pid {derived.directory}/nginx.pid;" in main
    assert f"client_body_temp_path {derived.directory}/client_body;" in main
    drop_in = derived.units[f"{derived.unit}.d/10-instance.conf"]
    assert "Type=exec\n" in drop_in
    assert f'-e stderr -c {files}/nginx.conf -g "daemon off;"\n' in drop_in


def test_a_file_that_may_not_be_read_is_named() -> None:
    hidden = Source(problem="may not be read", private=True)
    found = facts(
        "Type=notify\nExecStart=/usr/bin/redis-server /etc/redis/redis.conf --supervised systemd",
        unit="redis-server.service",
    )
    definition = defined(
        Facts(
            unit=found.unit,
            kind=found.kind,
            text=found.text,
            files={"/etc/redis/redis.conf": hidden},
        )
    )
    assert "'/etc/redis/redis.conf' may not be read" in said(definition)
    assert "sudo understudy define redis-server.service" in said(definition)
    assert (
        "ExecStart={{ argv[0] | quote }} --supervised systemd --bind {{ host }} "
        '--port {{ ports.redis }} --dir {{ directory }} --save ""\n'
    ) in definition.files["instance.conf"]


def test_sockets_of_its_socket_units_are_handed_over() -> None:
    definition = defined(
        facts(
            "ExecStart=/usr/bin/shop",
            sockets={
                "shop.socket": "# /etc/x\n[Socket]\nListenStream=7101\nFileDescriptorName=web\n",
                "shop-local.socket": "[Socket]\nListenStream=/run/shop.sock\n",
            },
        )
    )
    content = toml(definition)
    assert content["ports"] == {"web": {"tcp": 7101}}
    assert content["activation"] == {"production": "sockets", "instance": "sockets"}
    assert "ListenStream=7101" in definition.files["shop.socket.j2"]
    assert "systemd listens on '/run/shop.sock' for it" in said(definition)


def test_what_is_read_from_the_working_directory_can_be_set(tmp_path: Path) -> None:
    definition = defined(
        facts(
            "WorkingDirectory=/opt/shop\nExecStart=/opt/shop/venv/bin/python -m shop --port 7101",
            tcp=[7101],
        )
    )
    service = services.load(place(definition, tmp_path), "here")
    text = derive.render_production(service, {"root": "/src"})["shop.service"]
    assert "WorkingDirectory=/src\nExecStart=/src/venv/bin/python -m shop" in text
    assert "WorkingDirectory={{ root }}" in definition.files["instance.conf"]


def test_folders_of_its_own_are_made() -> None:
    conf = defined(
        facts(
            "ExecStart=/usr/bin/shop --data-dir /var/lib/shop/ --cache-dir /var/cache/shop "
            "--sock /run/shop/shop.sock",
            kinds={"/var/cache/shop": PathKind.DIRECTORY},
        )
    ).files["instance.conf"]
    assert "ExecStartPre=/bin/mkdir -p {{ directory }}/shop {{ directory }}/cache-shop\n" in conf
    assert "--data-dir {{ directory }}/shop --cache-dir {{ directory }}/cache-shop" in conf
    assert "--sock {{ directory }}/shop.sock" in conf


def test_a_socket_of_somebody_else_is_left_and_told() -> None:
    definition = defined(
        facts(
            "ExecStart=/usr/bin/shop --port 7101 --db /run/db/db.sock",
            kinds={"/run/db/db.sock": PathKind.SOCKET},
            others_sockets=frozenset({"/run/db/db.sock"}),
            tcp=[7101],
        )
    )
    assert "--db /run/db/db.sock" in definition.files["instance.conf"]
    assert "talks to '/run/db/db.sock'" in said(definition)


def test_specifiers_of_the_unit_s_name_keep_production_s_meaning() -> None:
    definition = defined(
        facts(
            "ExecStart=/usr/bin/shop -n %i -p 7101 --at %t/x", unit="shop@one.service", tcp=[7101]
        )
    )
    assert "-n one -p" in definition.files["instance.conf"]
    assert "-n %i -p 7101" in definition.files["shop@one.service.j2"]


SECRETS = [
    f"requirepass {SECRET}",
    f"masterauth {SECRET}",
    f"user default on >{SECRET} ~* +@all",
    f"password = {SECRET}",
    f'"db_password": "{SECRET}", "port": 7101',
    f'{{"token": "{SECRET}"}}',
    f"api-key: '{SECRET}'",
    f"secret: |\n  {SECRET}\n  {SECRET}\nport: 7101",
    f"tokens:\n  - {SECRET}\n  - {SECRET}\nport: 7101",
    f'"secrets": [\n "{SECRET}",\n "{SECRET}"\n]',
    f"<password>{SECRET}</password>",
    f'<db user="x" password="{SECRET}"/>',
    f"dsn = postgres://shop:{SECRET}@db.example/shop",
    f"  server x password {SECRET}",
    f"# password = {SECRET}",
    f"; token={SECRET}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    f"jwt_secret_key={SECRET};",
    f"aws_secret_access_key = {SECRET}",
    f"smtp.pass={SECRET}",
    f"dbPass: {SECRET}",
    f'password = """\n{SECRET}\n{SECRET}\n"""',
    f'<add key="DbPassword" value="{SECRET}"/>',
    f"env:\n- name: DB_PASSWORD\n  value: {SECRET}",
    f'{{"name": "API_TOKEN", "value": "{SECRET}"}}',
    f"conn = Server=x;Password={SECRET};Port=1",
    f"- password: {SECRET}",
    f"secret: &anchor {SECRET}",
    f"wpa.psk={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"cookie_key = '{SECRET}'",
    f"sessionKey: {SECRET}",
]


@pytest.mark.parametrize("line", SECRETS)
def test_a_secret_of_a_configuration_file_is_not_copied(line: str) -> None:
    found = facts(
        "ExecStart=/usr/bin/shop -c /etc/shop.conf",
        files={"/etc/shop.conf": f"port 7101\n{line}\nlast 1\n"},
        tcp=[7101],
    )
    definition = define(found, "shop")
    assert SECRET not in "".join(definition.files.values())
    assert SECRET not in said(definition)
    text = definition.files["shop.conf.j2"]
    assert "port {{ ports" in text
    assert "last 1" in text
    try_out(definition)


@pytest.mark.parametrize(
    "line",
    [
        f"Environment=DB_PASSWORD={SECRET} COLOR=red",
        f'Environment="DB_PASSWORD={SECRET}"',
        f"Environment=URL=http://me:{SECRET}@x/",
        f"SetCredential=key:{SECRET}",
        f"ExecStartPre=/bin/login --password {SECRET} --name x",
        f"ExecStop=/bin/shop-cli --token={SECRET} stop",
        f"#Environment=PASSWORD={SECRET}",
    ],
)
def test_a_secret_of_the_unit_is_not_copied(line: str) -> None:
    definition = defined(facts(f"ExecStart=/usr/bin/shop --port 7101\n{line}", tcp=[7101]))
    assert SECRET not in "".join(definition.files.values())
    assert SECRET not in said(definition)


@pytest.mark.parametrize(
    "option", ["--requirepass {}", "--password={}", "--db-password '{}'", "-u me:{}"]
)
def test_a_secret_argument_is_a_value(tmp_path: Path, option: str) -> None:
    command = f"/usr/bin/shop {option.format(SECRET)} --port 7101"
    definition = defined(facts(f"ExecStart={command}", tcp=[7101]))
    assert SECRET not in "".join(definition.files.values())
    derived = instance(definition, tmp_path, {"tcp-7101": 20016})
    assert "change-me --port 20016\n" in derived.units[f"{derived.unit}.d/10-instance.conf"]


@pytest.mark.parametrize(
    ("option", "path", "text"),
    [
        ("--token-file", "/etc/shop/token", f"{SECRET}\n"),
        ("--users", "/etc/shop/passwd", f"me:{SECRET}\n"),
        ("--key", "/etc/shop/id", f"{SECRET}\n{SECRET}\n"),
        ("--tls", "/etc/shop/shop.key", f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n"),
        ("--aclfile", "/etc/shop/users.acl", f"user me on >{SECRET} ~*\n"),
    ],
)
def test_a_file_that_is_a_secret_is_not_copied(option: str, path: str, text: str) -> None:
    found = facts(
        f"ExecStart=/usr/bin/shop -p 7101 {option} {path}", files={path: text}, tcp=[7101]
    )
    definition = defined(found)
    assert SECRET not in "".join(definition.files.values()) + said(definition)
    if not path.endswith(".key"):
        assert "secrets are not taken" in said(definition)
        assert f"{option} {{{{ files }}}}/" in definition.files["instance.conf"]


@pytest.mark.parametrize(
    "line",
    [
        "proxy_pass http://127.0.0.1:3000;",
        "server_tokens off;",
        "sort_key = name",
        "key: the name of a thing",
        "ssl_certificate_key /etc/ssl/private/shop.key;",
        "password_file /etc/shop/passwords",
        "max_token_length = 20",
        "password = ${PASSWORD}",
    ],
)
def test_what_only_sounds_like_a_secret_stays(line: str) -> None:
    assert secrets(line) == []


def test_a_number_is_a_port_only_where_it_can_be_one() -> None:
    words = "listen 80; timeout 80; x 80% 10.0.0.80 v80 80mb http://other.example:80"
    known = [one for one in mentions(words) if one.number == 80 and one.host is None]
    assert [one.keys[0] for one in known] == ["listen", "timeout"]
    assert [one.declares for one in mentions("port = 80")] == [True]
    assert [one.declares for one in mentions("upstream_port = 80")] == [False]
    assert [one.names() for one in mentions("x = other.example:80")] == [False]


@given(st.text(alphabet="{}%#\\n\\\"' a1:/\n"))
def test_any_text_is_a_template_that_gives_it(text: str) -> None:
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    assert environment.from_string(template(text, [])).render() == text


_WORDS = st.sampled_from([
    *("port", "listen", "password", "=", ":", "{", "}", "[", "]", '"', "'", "7101", SECRET, "\n"),
    *("/var/lib/x", "{{", "%}", "include", "/etc/*", "#", "0.0.0.0:7101", "-", "|", "%i", "user "),
    " ",
])  # fmt: skip


@settings(max_examples=40)
@given(st.lists(_WORDS, max_size=30))
def test_whatever_a_file_holds_there_is_a_definition(pieces: list[str]) -> None:
    found = facts(
        "ExecStart=/usr/bin/shop -c /etc/shop.conf",
        files={"/etc/shop.conf": "".join(pieces)},
        tcp=[7101],
    )
    try_out(define(found, "shop"))


def test_comments_and_their_blank_lines_go() -> None:
    assert without_comments("# a\n\nx 1\n\n\n  # b\n; c\ny 2\n\n") == "x 1\n\ny 2\n"


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("redis-server.service", "redis-server"),
        ("foo@bar_Baz.service", "foo-bar-baz"),
        ("guard.service", ""),
        ("-.service", ""),
    ],
)
def test_a_service_is_called_as_its_unit(unit: str, name: str) -> None:
    assert service_name(unit) == name


def test_without_a_command_there_is_nothing_to_define() -> None:
    with pytest.raises(UsageError, match="has no ExecStart="):
        define(facts("Type=oneshot"), "shop")


def test_a_folder_is_replaced_only_if_asked_for_and_a_definition(tmp_path: Path) -> None:
    definition = defined(facts("ExecStart=/usr/bin/shop --port 7101"))
    folder = place(definition, tmp_path / "units")
    with pytest.raises(UsageError, match="it is there already") as caught:
        place(definition, tmp_path / "units")
    assert caught.value.hint == "another --name, or --force"
    (folder / "mine").write_text("")
    assert place(definition, tmp_path / "units", force=True) == folder
    assert not (folder / "mine").exists()
    (folder / "service.toml").unlink()
    with pytest.raises(UsageError, match="it is no definition"):
        place(definition, tmp_path / "units", force=True)
    (tmp_path / "units/other").symlink_to(folder)
    with pytest.raises(UsageError, match="it is no definition"):
        place(define(facts("ExecStart=/bin/x"), "other"), tmp_path / "units", force=True)
    assert sorted(path.name for path in (tmp_path / "units").iterdir()) == ["other", "shop"]


def test_what_not_everybody_may_read_stays_so(tmp_path: Path) -> None:
    source = Source(text="port 7101\nx pa55wordOfProductionIsThis9\n", private=True)
    found = facts("ExecStart=/usr/bin/shop -c /etc/shop.conf", tcp=[7101])
    with_file = Facts(
        unit=found.unit,
        kind=found.kind,
        text=found.text,
        running=True,
        listeners=found.listeners,
        files={"/etc/shop.conf": source},
    )
    folder = place(defined(with_file), tmp_path)
    assert "x {{ secret }}" in (folder / "shop.conf.j2").read_text()
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes.pop("shop.conf.j2") == 0o600
    assert set(modes.values()) == {0o644}


def test_a_number_of_tcp_and_udp_both_cannot_be_told() -> None:
    both = tuple(Listener(transport=one, number=7101) for one in Transport)
    found = facts("ExecStart=/usr/bin/shop --port 7101", running=True, listeners=both)
    definition = defined(found)
    assert list(toml(definition)["ports"]) == ["tcp-7101", "udp-7101"]
    assert toml(definition)["instance"]["network"] == "private"


def test_what_it_writes_and_nothing_names_is_told() -> None:
    written = frozenset({"/var/lib/shop/db", "/var/log/shop.log", "/usr/share/x"})
    definition = defined(
        facts("ExecStart=/usr/bin/shop -p 7101\nStateDirectory=shop", tcp=[7101], written=written)
    )
    assert "it writes '/var/log/shop.log', which nothing that was looked at names" in said(
        definition
    )
    assert "/var/lib/shop/db" not in said(definition)


def test_what_an_instance_s_user_may_not_read_is_told() -> None:
    closed = frozenset({"/etc/ssl/private/shop.key"})
    definition = defined(facts("ExecStart=/usr/bin/shop -p 7101", tcp=[7101], closed=closed))
    assert "may not read '/etc/ssl/private/shop.key'" in said(definition)


def test_a_secret_of_the_environment_is_not_copied_from_elsewhere_either() -> None:
    definition = defined(
        facts(
            "ExecStart=/usr/bin/shop -c /etc/shop.conf",
            files={"/etc/shop.conf": f"port 7101\nhmac {SECRET}\n"},
            environ={"SHOP_SECRET": SECRET},
            tcp=[7101],
        )
    )
    assert "hmac change-me" in definition.files["shop.conf.j2"]
    assert "a secret was taken out of shop.conf.j2" in said(definition)


def test_rtp_stays_even_and_rtcp_beside_it() -> None:
    config = "rtpAddress: :8000\nrtcpAddress: :8001\nwebrtcLocalUDPAddress: :8189\n"
    for numbers in ((8000, 8001, 8189), ()):
        listeners = tuple(Listener(transport=Transport.UDP, number=number) for number in numbers)
        found = facts(
            "ExecStart=/usr/bin/shop /etc/shop.yml",
            files={"/etc/shop.yml": config},
            running=bool(numbers),
            listeners=listeners,
        )
        assert toml(defined(found))["ports"] == {
            "rtp": {"udp": 8000, "file": "shop.yml", "even": True},
            "rtcp": {"udp": 8001, "file": "shop.yml", "next-to": "rtp"},
            "webrtc": {"udp": 8189, "file": "shop.yml"},
        }


@pytest.mark.parametrize("tcp", [[7101], []])
def test_a_file_over_a_path_that_nobody_names(tcp: list[int]) -> None:
    text = "[web]\nport = 7101\nstore = '/var/lib/shop/db'\n"
    definition = defined(
        facts(
            "ExecStart=/usr/bin/shop",
            files={"/etc/shop/shop.toml": text, "/etc/shop.conf": "other 1\n"},
            tcp=tcp,
        )
    )
    assert "store = '{{ directory }}" in definition.files["shop.toml.j2"]
    assert toml(definition)["instance"]["files"] == {
        "shop.toml": {"from": "shop.toml.j2", "over": "/etc/shop/shop.toml"}
    }
    assert toml(definition)["ports"] == {"web": {"tcp": 7101, "file": "shop.toml"}}


def test_a_unit_of_a_user_s_names_that_user_s_home(tmp_path: Path) -> None:
    text = "WorkingDirectory=%h/shop\nExecStart=%h/shop/bin/shop -p 7101 %h/shop/x.py %%h"
    found = facts(text, tcp=[7101], kind=ManagerKind.USER)
    definition = defined(replace(found, specifiers={"h": "/home/anna"}))
    service = services.load(place(definition, tmp_path), "here")
    rendered = derive.render_production(service, {})["shop.service"]
    assert "ExecStart=/home/anna/shop/bin/shop -p 7101 /home/anna/shop/x.py %%h" in rendered
    rendered = derive.render_production(service, {"root": "/src"})["shop.service"]
    assert "WorkingDirectory=/src\nExecStart=/src/bin/shop -p 7101 /src/x.py" in rendered


def test_a_command_with_rights_of_root_loses_them() -> None:
    definition = defined(facts("Type=oneshot\nExecStart=+/bin/mkdir /x\nExecStart=/usr/bin/shop"))
    assert "ExecStart=\nExecStart={{ argv[0] | quote }}\n" in definition.files["instance.conf"]
    assert "several ExecStart=" in said(definition)


def test_an_environment_file_that_may_not_be_read_is_told() -> None:
    hidden = Source(problem="may not be read", private=True)
    absent = Source(problem="is not there")
    found = facts("ExecStart=/usr/bin/shop\nEnvironmentFile=/etc/a\nEnvironmentFile=-/etc/b")
    definition = defined(replace(found, environment_files={"/etc/a": hidden, "/etc/b": absent}))
    assert "'/etc/a' may not be read: what it sets is not known" in said(definition)
    assert "/etc/b" not in said(definition)


def test_a_program_that_lies_where_services_write_stays_there() -> None:
    path = "/var/tmp/shop/server.py"
    command = f"ExecStart=/usr/bin/python3 {path} -p 7101"
    definition = defined(facts(command, tcp=[7101], kinds={path: PathKind.FILE}))
    # As a value it is shown to an instance, which has a /var/tmp of its own.
    assert toml(definition)["values"]["server"] == path
    assert "{{ server }} -p {{ ports" in definition.files["instance.conf"]


@pytest.mark.parametrize("piece", ["a", "a.", "-a", "{", '"', "1,", "x:1 ", "/a", "[::", "pass=["])
def test_a_long_line_takes_no_long_time(piece: str) -> None:
    text = piece * (40_000 // len(piece))
    found = facts("ExecStart=/usr/bin/shop -c /etc/shop.conf", files={"/etc/shop.conf": text})
    assert "shop.conf" not in said(define(found, "shop"))
