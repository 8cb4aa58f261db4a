"""Values that a definition calls secret: who is told, and how."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from understudy import confided, control, envfile, services
from understudy.derive import derive, production_files, render_production, transient
from understudy.errors import RenderError
from understudy.model import ManagerKind, Part, Service
from understudy.plan import Request

SECRET = 'hush "1" %n'
TOML = """\
description = "a server"
production = "server.service"
[values]
program = "/usr/bin/server"
account = "me"
[secrets.token]
[secrets.password.environment]
MODE = "password"
ACCOUNT = "{account}"
PASSWORD = "sha256:{password|sha256}"
PAIR = "{account}:{password}"
[uses.other]
api = { env = "OTHER_API" }
[uses.other.secrets]
user = { env = "OTHER_USER" }
key = { env = ["OTHER_KEY", "OTHER_KEY_TOO"] }
[ports]
api = { tcp = 80, env = "PORT" }
[ready]
http = { port = "api", user = "{account}", password = "{password}" }
[deploy.files."/etc/server/secrets.env"]
from = "secrets.env.j2"
mode = "0600"
needs = "password"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "service.toml").write_text(TOML)
    (folder / "server.service.j2").write_text("[Service]\nExecStart={{ program }}\n")
    (folder / "secrets.env.j2").write_text("# {{ password }}\n{{ secret_environment }}")
    return folder


@pytest.fixture
def service(folder: Path) -> Service:
    return services.load(folder, "here")


def part(**secrets: str) -> Part:
    return Part(
        run="r1",
        number=1,
        kind=ManagerKind.SYSTEM,
        runtime_dir="/run",
        ports={"api": 20000},
        secrets=secrets,
    )


def test_what_is_not_set_changes_nothing(service: Service) -> None:
    derived = derive(service, part())
    assert not derived.secrets
    assert not derived.confided
    assert "MODE" not in "".join(derived.units.values())
    assert not [file for file in production_files(service, {}) if "secrets" in file.path]


def test_an_instance_is_told_in_a_file_what_is_secret_and_in_its_unit_what_is_not(
    service: Service,
) -> None:
    given = replace(part(password=SECRET), environment={"PAIR": "mine"})
    derived = derive(service, given)
    digest = base64.b64encode(hashlib.sha256(SECRET.encode()).digest()).decode()
    assert derived.secrets == {"PASSWORD": f"sha256:{digest}", "PAIR": "mine"}
    text = "".join([*derived.units.values(), *derived.files.values()])
    assert "hush" not in text + repr(derived) + repr(given)
    assert 'Environment="MODE=password"' in text
    assert 'Environment="ACCOUNT=me"' in text
    assert derived.confided["password"] == SECRET
    rows, _command = transient(derived, given)
    assert [value for name, value in rows if name == "EnvironmentFile"]


def test_production_has_a_file_for_root_alone(service: Service) -> None:
    files = {one.path: one for one in production_files(service, {"password": SECRET})}
    own = files["/etc/server/secrets.env"]
    assert (own.mode, own.owner, own.secret) == (0o600, "root", True)
    comment, _, rows = own.text.partition("\n")
    assert comment == f"# {SECRET}"
    assert envfile.read(rows)["PAIR"] == f"me:{SECRET}"
    assert envfile.read(rows)["MODE"] == "password"
    others = [one.text for one in files.values() if one is not own]
    assert "hush" not in "".join(
        [*others, *render_production(service, {"password": SECRET}).values()]
    )


@pytest.mark.parametrize(
    "use",
    [
        "{{ password }}",
        "{{ password | quote }}",
        "{{ 'x' ~ password }}",
        "{% if password %}{% endif %}",
        "{% if password == 'x' %}{% endif %}",
        "{{ password | length }}",
    ],
)
@pytest.mark.parametrize("where", ["server.service.j2", "instance.conf", "secrets.env.j2"])
def test_no_template_that_others_read_can_show_a_secret(folder: Path, use: str, where: str) -> None:
    (folder / where).write_text(f"[Service]\nExecStart=/bin/true\n{use}\n")
    (folder / "service.toml").write_text(TOML.replace('"0600"', '"0640"'))
    service = services.load(folder, "here")

    def make() -> object:
        if where == "instance.conf":
            return derive(service, part(password=SECRET))
        return production_files(service, {"password": SECRET})

    with pytest.raises(RenderError, match="'password' is a secret") as caught:
        make()
    assert caught.value.hint is not None
    assert "mode 0600" in caught.value.hint
    assert "hush" not in str(caught.value)


def test_whoever_uses_it_is_told_what_it_asks_for(service: Service) -> None:
    used = {"other": {"user": "u", "key": SECRET, "more": "not asked for"}, "third": {"key": "x"}}
    derived = derive(service, replace(part(), used_secrets=used))
    expected = {"OTHER_USER": "u", "OTHER_KEY": SECRET, "OTHER_KEY_TOO": SECRET}
    assert derived.secrets == expected
    with pytest.raises(RenderError, match="variable 'OTHER_KEY': its value holds"):
        derive(service, replace(part(), used_secrets={"other": {"key": "hush\x1b"}}))


def test_a_check_has_an_account_where_there_is_a_password(service: Service) -> None:
    known = confided.known(service, {"account": "you"}, {})
    assert confided.credentials(service, known) is None
    known = confided.known(service, {"account": "you"}, {"password": SECRET})
    assert confided.credentials(service, known) == ("you", SECRET)


def test_productions_secrets_come_from_the_environment(service: Service) -> None:
    variables = {"UNDERSTUDY_SERVER_ACCOUNT": "you", "UNDERSTUDY_SERVER_TOKEN": "", "PASSWORD": "x"}
    assert confided.from_environment(service, variables) == {}
    variables["UNDERSTUDY_SERVER_PASSWORD"] = SECRET
    found = confided.from_environment(service, variables)
    assert found == {"password": SECRET, "account": "you"}


def test_the_line_that_starts_the_same_asks_for_it(service: Service) -> None:
    request = Request(service=service, values={"account": "you"}, secrets={"password": SECRET})
    words = shlex.split(control.command_line(request, ManagerKind.USER))
    assert "--set=password=@-" in words
    assert "hush" not in " ".join(words) + repr(request)


def test_a_value_that_no_variable_can_hold_is_refused(service: Service) -> None:
    with pytest.raises(RenderError, match="variable 'PAIR': its value holds") as caught:
        derive(service, part(password="hush\x1b"))
    assert "hush" not in str(caught.value)


def test_mediamtx_asks_for_a_password_where_it_has_one() -> None:
    service = services.find("mediamtx", as_root=True)
    service = services.opened(service)
    numbers = {name: 20000 + at for at, name in enumerate(service.ports)}
    derived = derive(service, replace(part(api_password=SECRET), ports=numbers))
    assert list(derived.secrets) == ["MTX_AUTHINTERNALUSERS_1_PASS"]
    assert derived.secrets["MTX_AUTHINTERNALUSERS_1_PASS"].startswith("sha256:")
    assert json.loads(json.dumps(derived.confided))["api_user"] == "understudy"
