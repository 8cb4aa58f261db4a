"""Production of a host: what it is declared to need, and as what files that comes out."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy import derive, services
from understudy.errors import DefinitionError, RenderError
from understudy.model import HostFile

DEFINITION = """
description = "a server: small, 100 %"
production = "lead.service"
[values]
program = "/usr/bin/server"
config = "/etc/lead/lead.conf"
password = ""
[ports]
http = { tcp = 8080 }
"""
DEPLOY = """
[deploy.user]
name = "lead"
[deploy.files."{config}"]
from = "lead.conf.j2"
mode = "0640"
group = "lead"
[deploy.files."/etc/lead/password"]
from = "password.j2"
mode = "0600"
needs = "password"
[deploy.directories."/var/spool/lead"]
mode = "0750"
owner = "lead"
"""


def define(tmp_path: Path, deploy: str = DEPLOY) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "service.toml").write_text(DEFINITION + deploy)
    (folder / "lead.service.j2").write_text("[Service]\nExecStart={{ program }}\n")
    (folder / "lead.conf.j2").write_text("port {{ ports.http }} of {{ used.db.sql }} 5%\n")
    (folder / "password.j2").write_text("{{ password }}\n")
    return folder


def files_of(folder: Path, **values: str) -> dict[str, HostFile]:
    used = {"db": {"sql": 5432}}
    found = derive.production_files(services.load(folder, ""), values, used=used)
    return {file.path: file for file in found}


def test_all_that_production_needs_comes_as_files_of_the_host(tmp_path: Path) -> None:
    files = files_of(define(tmp_path))

    assert {path: file.text for path, file in files.items()} == {
        "/etc/systemd/system/lead.service": "[Service]\nExecStart=/usr/bin/server\n",
        "/etc/lead/lead.conf": "port 8080 of 5432 5%\n",
        "/etc/sysusers.d/understudy-server.conf": 'u lead - "a server  small, 100 %%"\n',
        "/etc/tmpfiles.d/understudy-server.conf": "d /var/spool/lead 0750 lead root -\n",
    }
    config = files["/etc/lead/lead.conf"]
    assert (config.mode, config.owner, config.group) == (0o640, "root", "lead")
    assert all(file.ours for file in files.values())


def test_a_file_that_needs_a_value_comes_with_it(tmp_path: Path) -> None:
    folder = define(tmp_path)
    assert "/etc/lead/password" not in files_of(folder)

    file = files_of(folder, password="s3cret")["/etc/lead/password"]

    assert (file.text, file.secret) == ("s3cret\n", True)
    assert not files_of(folder)["/etc/lead/lead.conf"].secret


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/etc/lead/other.conf", True),
        ("/opt/lead/lead.conf", False),
        ("/etc/leader/lead.conf", False),
        ("/etc/lead/../passwd", None),
        ("/etc/lead//x", None),
        ("lead.conf", None),
        ("/lead.conf", None),
        ("/etc/lead/a b", None),
        ("/etc/lead/", None),
    ],
)
def test_a_value_that_names_a_place_is_looked_at(
    tmp_path: Path, path: str, ours: bool | None
) -> None:
    folder = define(tmp_path)
    if ours is None:
        with pytest.raises(RenderError, match="is no place on a host") as caught:
            files_of(folder, config=path)
        assert "below a folder" in (caught.value.hint or "")
    else:
        assert files_of(folder, config=path)[path].ours is ours


@pytest.mark.parametrize(
    ("deploy", "problem", "allowed"),
    [
        ("[deploy]\nusers = 1", "deploy.users: unknown key", "did you mean 'user'"),
        ("[deploy.user]\nname = 'Lead'", "deploy.user.name: 'Lead' is no name", "lower case"),
        ("[deploy.user]\ngroup = 'x'", "deploy.user.name: missing", "the user's name"),
        ("[deploy.files.'/etc/lead/x']", "/etc/lead/x.from: missing", "a template"),
        ("[deploy.files.'/etc/lead/x']\nfrom = 'x'", "from: there is no template 'x'", "a file in"),
        ("[deploy.files.'etc/x']\nfrom = 'x'", "'etc/x' is no place on a host", "plain absolute"),
        ("[deploy.files.'/etc/../x']\nfrom = 'x'", "'/etc/../x' is no place", "plain absolute"),
        ("[deploy.files.'{conf}']\nfrom = 'x'", "'{conf}' is no value", "program, config"),
        ("[deploy.files.'{password}']\nfrom = 'x'", "'' is no place on a host", "plain absolute"),
        (
            "[deploy.files.'/etc/lead/x']\nfrom = 'lead.conf.j2'\nmode = '0660'",
            "mode: '0660' is no mode",
            "nobody else may write",
        ),
        (
            "[deploy.files.'/etc/lead/x']\nfrom = 'lead.conf.j2'\nmode = 'rw'",
            "mode: 'rw' is no mode",
            "octal",
        ),
        (
            "[deploy.files.'/etc/lead/x']\nfrom = 'lead.conf.j2'\nneeds = 'secret'",
            "needs: 'secret' is no value",
            "program, config, password",
        ),
        ("[deploy.directories.'/spool']", "'/spool' is no place on a host", "below a folder"),
        (
            "[deploy.directories.'/var/x']\ngroup = 'a b'",
            "group: 'a b' is no name",
            "lower case",
        ),
    ],
)
def test_a_wrong_deployment_is_named(
    tmp_path: Path, deploy: str, problem: str, allowed: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        services.load(define(tmp_path, deploy), "")
    assert problem in caught.value.message
    assert allowed in (caught.value.hint or "")
