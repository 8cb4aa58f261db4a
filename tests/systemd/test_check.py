"""A definition is tried with two instances, and what is wrong with it is told by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.systemd.support import MEDIAMTX, ROOT, SERVICES, require, sets, understudy

from understudy.check import Finding, Level, check
from understudy.manager import connect

UNITS = SERVICES.parents[1] / "units"

SERVER = '''
"""Bind the ports, say so, and wait; what else it does stands in its environment."""
import os, signal, socket, sys

def stop(*_):
    sys.exit(int(os.environ.get("CODE", 0)))

signal.signal(signal.SIGTERM, stop)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
if "WRITE" in os.environ:
    with open(os.environ["WRITE"] + "/" + str(os.getpid()), "w") as file:
        file.write("left")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
'''

Define = Callable[..., Path]


@pytest.fixture
def define(tmp_path: Path) -> Define:
    """Write a definition that is right but for what a test adds to it."""

    def write(*, toml: str = "", unit: str = "", instance: str = "") -> Path:
        folder = tmp_path / "tried"
        folder.mkdir()
        (folder / "service.toml").write_text(
            'description = "tried"\nproduction = "tried.service"\n'
            '[instance.files]\n"server.py" = "server.py"\n[ports]\n'
            'http = { tcp = 8199, env = "PORT", value = "{port}" }\n' + toml
        )
        (folder / "tried.service.j2").write_text(
            f"[Service]\nType=notify\nExecStart=/usr/bin/python3 /etc/tried/server.py\n{unit}"
        )
        (folder / "instance.conf").write_text(
            '[Service]\nExecStart=\nExecStart=/usr/bin/python3 -IS {{ files ~ "/server.py" }}\n'
            + instance
        )
        (folder / "server.py").write_text(SERVER)
        return folder

    return write


def found(folder: Path, *, timeout_s: float = 30.0) -> list[Finding]:
    return check(folder, connect(), timeout_s=timeout_s)


def rules(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level.value, finding.rule) for finding in findings]


def test_a_good_definition_has_nothing_wrong(define: Define) -> None:
    assert found(define()) == []


@pytest.mark.parametrize("name", ["nginx", "redis"])
def test_services_nobody_here_wrote_have_nothing_wrong(name: str) -> None:
    for program in ("/usr/sbin/nginx", "/usr/bin/redis-server"):
        require(Path(program).exists(), f"{program} is not installed")
    assert found(SERVICES / name) == []


@pytest.mark.parametrize(
    ("name", "level", "rule", "text"),
    [
        ("dies-at-once", "error", "start", "exited with status 3"),
        ("dies-fast", "error", "start", "exited with status 1"),
        ("ignores-sigterm", "error", "slow-stop", "had not stopped 5 s after"),
        ("leaves-a-file", "warning", "files-left", "/run/lock/left-by-"),
        ("undeclared-port", "error", "undeclared-socket", "listens on tcp 127.0.0.1:"),
    ],
)
def test_what_misbehaves_is_found_and_nothing_else(
    name: str, level: str, rule: str, text: str
) -> None:
    findings = found(SERVICES / name)
    for path in re.findall(r"/run/lock/left-by-[\w-]+", findings[0].text if findings else ""):
        Path(path).unlink()
    assert rules(findings) == [(level, rule)]
    assert text in findings[0].text


@pytest.mark.parametrize("name", ["never-ready", "listens-elsewhere"])
def test_one_that_is_never_ready_is_told_with_its_log(name: str) -> None:
    [finding] = found(SERVICES / name, timeout_s=2.0)
    assert (finding.level, finding.rule) == (Level.ERROR, "ready")
    assert finding.log


def test_the_log_of_one_that_dies_is_there() -> None:
    [finding] = found(SERVICES / "dies-fast")
    assert finding.log == "cannot open the camera"


def test_a_broken_definition_is_told_before_anything_starts(define: Define) -> None:
    [finding] = found(define(toml='https = { tcp = 99999, env = "TLS" }\n'))
    assert (finding.level, finding.rule) == (Level.ERROR, "definition")
    assert "https" in finding.text


def test_a_folder_without_a_definition_is_told(tmp_path: Path) -> None:
    assert rules(found(tmp_path)) == [("error", "definition")]


def test_a_key_that_systemd_ignores_is_told(define: Define) -> None:
    [finding] = found(define(instance="ProtectSytem=strict\n"))
    assert (finding.level, finding.rule) == (Level.ERROR, "verify")
    assert "10-instance.conf:4" in finding.text
    assert "ProtectSytem" in finding.text


def test_an_optional_port_that_stays_closed_is_told(define: Define) -> None:
    [finding] = found(define(toml='moq = { tcp = 8198, env = "MOQ", optional = true }\n'))
    assert (finding.level, finding.rule) == (Level.WARNING, "optional-port")
    assert "'moq'" in finding.text


def test_an_exit_code_at_the_stop_is_told(define: Define) -> None:
    [finding] = found(define(toml='[instance.environment]\nCODE = "4"\n'))
    assert (finding.level, finding.rule) == (Level.WARNING, "stop-status")
    assert "exit code 4" in finding.text


def test_files_in_a_folder_that_the_unit_names_are_told(
    define: Define, open_directory: Path
) -> None:
    open_directory.chmod(0o777)
    # A user of the system manager's making has a /var/tmp of its own.
    shown = f"BindPaths={open_directory}\n" if ROOT else ""
    place = f'[instance.environment]\nWRITE = "{open_directory}"\n'
    findings = found(define(toml=place, instance=shown))
    assert rules(findings) == [("warning", "files-left")]
    assert findings[0].text.count(f"{open_directory}/") == 2


def test_production_s_state_in_an_instance_is_an_error(define: Define) -> None:
    findings = found(
        define(unit="StateDirectory=tried\n", instance="Environment=STATE=/var/lib/tried/db\n")
    )
    assert rules(findings) == [("error", "production-path")]
    assert "'/var/lib/tried'" in findings[0].text


def test_production_s_configuration_in_an_instance_is_a_warning(define: Define) -> None:
    findings = found(define(instance="Environment=SERVER=/etc/tried/server.py\n"))
    assert rules(findings) == [("warning", "production-path")]


def test_the_command_prints_a_line_for_each_finding_and_a_summary() -> None:
    done = understudy("check", SERVICES / "undeclared-port", code=1)
    first, summary = done.stdout.splitlines()
    assert first.startswith("error:   undeclared-socket: ")
    assert summary == "undeclared-port: 1 error"


def test_the_command_gives_json(define: Define) -> None:
    done = understudy("check", define(toml='[instance.environment]\nCODE = "4"\n'), "--json")
    [row] = json.loads(done.stdout)
    assert list(row) == ["level", "rule", "text", "hint", "log"]
    assert (row["level"], row["rule"]) == ("warning", "stop-status")


def test_the_shipped_mediamtx_has_no_errors() -> None:
    done = understudy("check", UNITS / "mediamtx", *sets(MEDIAMTX))
    assert done.stdout.splitlines()[-1] == "mediamtx: nothing wrong"
