"""Production looked at: found with its ports, or an error that says what is wrong."""

from __future__ import annotations

import datetime
import os
import pwd
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.systemd.support import (
    ROOT,
    UNIT_DIR,
    eventually,
    get,
    show,
    systemctl,
)

import understudy
from understudy.errors import NoManagerError, ProductionError, UsageError
from understudy.model import ManagerKind
from understudy.run import Run

KIND = ManagerKind.SYSTEM if ROOT else ManagerKind.USER
START = "sudo systemctl" if ROOT else "systemctl --user"

USER = pwd.getpwuid(os.getuid()).pw_name

Install = Callable[..., str]


@pytest.fixture
def install() -> Iterator[Install]:
    """Install units of nobody but the test; their names begin so that no others are meant."""
    names: list[str] = []

    def make(name: str, text: str) -> str:
        UNIT_DIR.mkdir(parents=True, exist_ok=True)
        (UNIT_DIR / name).write_text(text)
        names.append(name)
        systemctl("daemon-reload")
        return name

    yield make
    for name in names:
        systemctl("stop", name, check=False)
        (UNIT_DIR / name).unlink()
    systemctl("daemon-reload")
    systemctl("reset-failed", *names, check=False)


def definition(
    folder: Path, *, port: int, ready: str = "", unit: str = "tests-lead.service"
) -> Path:
    """A folder of definitions with one service, ``lead``."""
    home = folder / "lead"
    home.mkdir()
    (home / "service.toml").write_text(
        f'description = "lead of the tests"\nproduction = "{unit}"\n'
        f'[ports]\nhttp = {{ tcp = {port}, env = "PORT", url = "http://{{host}}:{{port}}" }}\n'
        f'other = {{ tcp = {port + 1}, env = "OTHER" }}\n{ready}'
    )
    (home / "lead.service.j2").write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    return folder


READY = '[ready]\nhttp = { port = "http", path = "/" }\n'


def serving(port: int) -> str:
    return f"[Service]\nExecStart={sys.executable} -m http.server --bind 127.0.0.1 {port}\n"


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_production_is_found_with_ports_and_urls(production: dict[str, str]) -> None:
    unit = production["mediamtx"]
    lead = understudy.production("mediamtx", unit=unit)
    known = show(unit, "MainPID", "InvocationID")
    assert (lead.service, lead.unit, lead.manager) == ("mediamtx", unit, KIND)
    assert str(lead.pid) == known["MainPID"]
    assert lead.invocation_id == known["InvocationID"]
    assert lead.active_since is not None
    assert lead.active_since < datetime.datetime.now(datetime.UTC)
    assert lead.ports["api"] == 9997
    assert lead.ports["rtsp"] == 8554
    assert lead.urls["api"] == "http://127.0.0.1:9997"
    assert lead.ready()
    # It listens on those that it has open, and a declared one that it has not is absent.
    assert "metrics" not in lead.ports


def test_production_is_what_an_instance_may_use(run: Run, production: dict[str, str]) -> None:
    lead = understudy.production("mediamtx", unit=production["mediamtx"])
    if not ROOT:
        pytest.skip("the camera service of a user writes where its own home is")
    cam = run.spawn(
        "camera-service",
        values={"root": "/", "python": sys.executable,
                "module": "understudy.standins.camera_service"},
        uses={"mediamtx": lead},
    )  # fmt: skip
    assert "9997" in show(cam.unit, "Environment")["Environment"]


def test_its_log_is_read_or_a_word_says_why_not(production: dict[str, str]) -> None:
    lead = understudy.production("mediamtx", unit=production["mediamtx"])
    assert eventually(lambda: "listener opened" in lead.journal().lower() or lead.journal() != "")
    assert len(lead.journal(lines=1).splitlines()) == 1


def test_a_user_looks_at_the_systems_production() -> None:
    """Whatever runs on the system manager may be looked at by everybody."""
    unit = "dbus.service"
    try:
        lead = understudy.production(_named(unit), manager=ManagerKind.SYSTEM)
    except NoManagerError as exc:
        pytest.skip(str(exc))
    assert lead.pid > 0
    assert lead.manager is ManagerKind.SYSTEM
    said = lead.journal(lines=2)
    if not ROOT:
        assert said == (
            f"(the log of dbus.service may not be read by {USER}: "
            f"sudo usermod -aG systemd-journal {USER})"
        )


def _named(unit: str) -> understudy.Service:
    return understudy.Service(name="lead", description="a lead", production=unit)


def test_not_installed(tmp_path: Path) -> None:
    with pytest.raises(ProductionError) as caught:
        understudy.production("lead", units=definition(tmp_path, port=8765, ready=READY))
    kind = "system"
    assert caught.value.message == (
        f"Cannot use production's 'lead': tests-lead.service is not installed on the {kind} manager"
    )
    assert caught.value.hint is not None
    assert "understudy render lead" in caught.value.hint


def test_inactive(tmp_path: Path, install: Install, port: int) -> None:
    install("tests-lead.service", serving(port))
    with pytest.raises(ProductionError, match=r"tests-lead\.service is inactive") as caught:
        understudy.production("lead", units=definition(tmp_path, port=port, ready=READY))
    assert caught.value.hint == f"{START} start tests-lead.service"


def test_inactive_and_somebody_else_is_in_its_place(
    tmp_path: Path, install: Install, port: int
) -> None:
    install("tests-lead.service", serving(port))
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ProductionError) as caught:
        understudy.production("lead", units=definition(tmp_path, port=port, ready=READY))
    assert re.search(
        rf"is inactive, and its port {port} \('http'\) is held by ", caught.value.message
    )


def test_failed(tmp_path: Path, install: Install, port: int) -> None:
    install("tests-lead.service", "[Service]\nExecStart=/bin/sh -c 'exit 7'\n")
    systemctl("start", "tests-lead.service", check=False)
    assert eventually(lambda: show("tests-lead.service", "ActiveState")["ActiveState"] == "failed")
    with pytest.raises(ProductionError, match=r"has failed \(exit status 7\)") as caught:
        understudy.production("lead", units=definition(tmp_path, port=port, ready=READY))
    assert caught.value.hint is not None
    assert f"{START} restart tests-lead.service" in caught.value.hint
    assert "journalctl" in caught.value.hint


def test_activating(tmp_path: Path, install: Install, port: int) -> None:
    unit = install(
        "tests-lead.service",
        "[Service]\nType=notify\nExecStart=/bin/sleep 1000\nTimeoutStopSec=1\n",
    )
    systemctl("start", "--no-block", unit)
    assert eventually(lambda: show(unit, "ActiveState")["ActiveState"] == "activating")
    with pytest.raises(ProductionError, match=r"is still activating after 0\.3 s") as caught:
        understudy.production(
            "lead", units=definition(tmp_path, port=port, ready=READY), timeout_s=0.3
        )
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("status tests-lead.service")


def test_active_but_listening_nowhere(tmp_path: Path, install: Install, port: int) -> None:
    install("tests-lead.service", "[Service]\nExecStart=/bin/sleep 1000\n")
    systemctl("start", "tests-lead.service")
    with pytest.raises(ProductionError) as caught:
        understudy.production(
            "lead", units=definition(tmp_path, port=port, ready=READY), timeout_s=0.3
        )
    assert f"nothing of it listens on port {port} ('http')" in caught.value.message


def test_active_but_somebody_else_holds_its_port(
    tmp_path: Path, install: Install, port: int
) -> None:
    install("tests-lead.service", "[Service]\nExecStart=/bin/sleep 1000\n")
    systemctl("start", "tests-lead.service")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ProductionError) as caught:
        understudy.production("lead", units=definition(tmp_path, port=port, ready=READY))
    assert re.search(
        rf"its port {port} \('http'\) is held by .*, not by tests-lead\.service",
        caught.value.message,
    )
    assert caught.value.hint == f"understudy ports {port}"


def test_not_ready(tmp_path: Path, install: Install, port: int) -> None:
    install("tests-lead.service", serving(port))
    systemctl("start", "tests-lead.service")
    ready = READY.replace('"/"', '"/nowhere"')
    with pytest.raises(ProductionError) as caught:
        understudy.production(
            "lead", units=definition(tmp_path, port=port, ready=ready), timeout_s=3
        )
    assert f"it is not ready: GET /nowhere on port {port}: HTTP 404" in caught.value.message


def test_it_is_waited_for_until_it_is_ready(tmp_path: Path, install: Install, port: int) -> None:
    install("tests-lead.service", serving(port))
    systemctl("start", "--no-block", "tests-lead.service")
    assert eventually(lambda: show("tests-lead.service", "MainPID")["MainPID"] != "0")
    units = definition(tmp_path, port=port, ready=READY)
    lead = understudy.production("lead", units=units, timeout_s=30)
    assert lead.ports == {"http": port}
    assert "Directory listing" in get(lead.urls["http"])


def test_sockets_that_wait_for_it_are_its_ports(
    tmp_path: Path, install: Install, port: int
) -> None:
    install("tests-lead.service", "[Service]\nExecStart=/bin/sleep 1000\n")
    install("tests-lead.socket", f"[Socket]\nListenStream=127.0.0.1:{port}\n")
    systemctl("start", "tests-lead.socket")
    lead = understudy.production("lead", units=definition(tmp_path, port=port))
    assert lead.ports == {"http": port}
    assert lead.pid == 0
    assert lead.active_since is None
    assert show("tests-lead.service", "ActiveState") == {"ActiveState": "inactive"}


def test_looking_changes_nothing(production: dict[str, str]) -> None:
    unit = production["mediamtx"]
    before = show(unit)
    lead = understudy.production("mediamtx", unit=unit)
    lead.ready()
    lead.journal()
    changing = {
        "CPUUsageNSec",
        "MemoryCurrent",
        "TasksCurrent",
        "MemoryAvailable",
        "IPIngressBytes",
    }
    after = show(unit)
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }


def test_an_ad_hoc_service_has_no_production() -> None:
    with pytest.raises(UsageError, match="its definition names no unit"):
        understudy.production(understudy.Service(name="lead", description="a lead"))


def test_claimed_ports_are_nobody_elses(run: Run) -> None:
    with run.claim_ports("tcp", "udp", "tcp") as numbers:
        assert len(set(numbers)) == 3
        first, media, _last = numbers
        with socket.create_server(("127.0.0.1", first)):
            assert first in numbers
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", media))
        many = run.spawn_many(["redis"] * 5)
        assert not {number // 16 for number in numbers} & {one.ports["redis"] // 16 for one in many}
        claimed = {f"@understudy/port/{number - number % 16}" for number in numbers}
        names = Path("/proc/net/unix").read_text()
        assert all(name in names for name in claimed)
    assert not any(f"{name}\n" in Path("/proc/net/unix").read_text() for name in claimed)


def test_claimed_ports_end_with_their_run(run: Run) -> None:
    with Run() as other:
        numbers = other.claim_ports("tcp")
        name = f"@understudy/port/{numbers[0] - numbers[0] % 16}\n"
        assert name in Path("/proc/net/unix").read_text()
        assert repr(numbers) == f"<ClaimedPorts {numbers[0]}>"
    assert eventually(lambda: name not in Path("/proc/net/unix").read_text())
    numbers.release()
    with pytest.raises(UsageError, match="Cannot claim a port of 'sctp': no such transport"):
        run.claim_ports("sctp")
