"""A command beside instances: what it is told, and how it is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.unit.fakes import FakeManager

from understudy import command
from understudy.cli.run import in_order
from understudy.errors import UsageError
from understudy.model import ManagerKind, Port, Service, Transport

TWO = Service(
    name="camera-service",
    description="X",
    ports={
        "web-socket": Port(name="web-socket", transport=Transport.TCP, url="ws://{host}:{port}/ws"),
        "rtp": Port(name="rtp", transport=Transport.UDP),
    },
)


def test_a_command_is_told_every_port_and_url() -> None:
    told = command.environment("r1", [(TWO, {"web-socket": 20016, "rtp": 20018})])
    assert told == {
        "UNDERSTUDY_RUN": "r1",
        "UNDERSTUDY_HOST": "127.0.0.1",
        "UNDERSTUDY_CAMERA_SERVICE_WEB_SOCKET_PORT": "20016",
        "UNDERSTUDY_CAMERA_SERVICE_WEB_SOCKET_URL": "ws://127.0.0.1:20016/ws",
        "UNDERSTUDY_CAMERA_SERVICE_RTP_PORT": "20018",
    }


def test_the_second_of_a_service_has_its_number_in_the_name() -> None:
    other = Service(name="other", description="X", ports=TWO.ports)
    told = command.environment("r1", [(TWO, {"rtp": 1}), (other, {"rtp": 2}), (TWO, {"rtp": 3})])
    assert told["UNDERSTUDY_CAMERA_SERVICE_RTP_PORT"] == "1"
    assert told["UNDERSTUDY_OTHER_RTP_PORT"] == "2"
    assert told["UNDERSTUDY_CAMERA_SERVICE_2_RTP_PORT"] == "3"


@pytest.mark.parametrize("kind", ManagerKind)
def test_its_scope_ends_with_the_run(tmp_path: Path, kind: ManagerKind) -> None:
    words = command.scope_argv(FakeManager(tmp_path, kind=kind), "r1", ["make", "-p", "test"])
    assert words[-4:] == ["--", "make", "-p", "test"]
    assert ("--user" in words) == (kind is ManagerKind.USER)
    assert {"--unit=understudy-command-r1.scope", "--slice=understudy-r1.slice"} <= set(words)
    assert "BindsTo=understudy-guard@r1.service" in words


def test_a_program_that_cannot_run_has_the_code_of_a_shell(tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("")
    silent.chmod(0o644)
    assert command.program_fault("sh") == 0
    assert command.program_fault(str(tmp_path / "none")) == 127
    assert command.program_fault(str(silent)) == 126


def test_the_command_has_its_code_and_its_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A systemd-run that just runs what comes after "--".
    runner = tmp_path / "systemd-run"
    runner.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n')
    runner.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(shutil.which('sh') or '/bin/sh').parent}")
    manager = FakeManager(tmp_path)

    def run(script: str) -> int:
        return command.run_command(manager, "r1", ["sh", "-c", script], {"CODE": "7"})

    assert run("exit $CODE") == 7
    assert run("kill -TERM $$") == 128 + 15


def test_a_place_is_entered_before_the_user_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    caller = command.Caller(uid=1001, gid=1002, name="anna", home="/home/anna")
    place = command.Place(net_path="/proc/1/fd/3", user_path="/proc/1/fd/4", caller=caller)
    assert place.argv(["make", "-p"]) == [
        *("/usr/bin/nsenter", "--net=/proc/1/fd/3", "--user=/proc/1/fd/4"),
        *("--preserve-credentials", "--"),
        *(
            "/usr/bin/setpriv",
            "--reuid=1001",
            "--regid=1002",
            "--init-groups",
            "--inh-caps=-all",
            "--",
        ),
        *("make", "-p"),
    ]
    assert command.Place().argv(["make"]) == ["make"]
    assert place.variables()["HOME"] == "/home/anna"


def test_sudo_names_the_calling_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for text in ("", "0", "x"):
        monkeypatch.setenv("SUDO_UID", text)
        assert command.calling_user() is None
    monkeypatch.setenv("SUDO_UID", "987654321")
    with pytest.raises(UsageError, match="as user 987654321: there is no such user"):
        command.calling_user()
    monkeypatch.setattr("os.geteuid", lambda: 1001)
    assert command.calling_user() is None


@pytest.mark.parametrize(
    ("named", "started"),
    [
        (["camera-service", "mediamtx"], ["mediamtx", "camera-service"]),
        (["mediamtx", "camera-service"], ["mediamtx", "camera-service"]),
        (["camera-service", "mediamtx", "mediamtx"], ["mediamtx", "mediamtx", "camera-service"]),
        (["camera-service"], ["camera-service"]),
    ],
)
def test_what_others_use_is_started_before_them(named: list[str], started: list[str]) -> None:
    assert in_order(named, None) == started
