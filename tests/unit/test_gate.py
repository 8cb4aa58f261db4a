"""Instances in private networks as text: the gate, the network, the proxies, the numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.fakes import FakeManager, status
from tests.unit.test_plan import FakeAllocator
from tests.unit.test_units import verify, write

from understudy import control, gate, listing, services, unitfile
from understudy.derive import derive
from understudy.errors import RenderError, UsageError
from understudy.model import (
    Derived,
    Engine,
    ManagerKind,
    Part,
    Port,
    PrivateNetwork,
    Service,
    Transport,
)
from understudy.plan import Planner, Request
from understudy.run import network_named

GATE = "/run/understudy/r1/x-1.files/gate"
OWN = PrivateNetwork()
LAB = PrivateNetwork(
    name="lab",
    net_path="/proc/812/ns/net",
    user_path="/proc/812/ns/user",
    holder="understudy-network@r1-lab.service",
)
kinds = pytest.mark.parametrize("kind", ManagerKind)


@pytest.fixture(scope="module")
def camera() -> Service:
    return services.load(services.shipped_units() / "camera-service", "shipped")


def derived(service: Service, kind: ManagerKind, network: PrivateNetwork) -> Derived:
    sockets = service.instance_activation == "sockets"
    published = {name: 20000 + at for at, name in enumerate(service.ports)}
    standard = {name: port.number or 0 for name, port in service.ports.items()}
    return derive(
        service,
        Part(
            run="r1",
            number=1,
            kind=kind,
            runtime_dir="/run" if kind is ManagerKind.SYSTEM else "/run/user/1000",
            ports=published if sockets else standard,
            published=published,
            network=network,
            values={"python": sys.executable} if "python" in service.values else {},
        ),
    )


def rows(found: Derived, unit: str = "") -> dict[str, list[str]]:
    unit = unit or found.unit
    texts = [text for path, text in sorted(found.units.items()) if path.startswith(unit)]
    merged: dict[str, list[str]] = {}
    for name, value in unitfile.effective(line for t in texts for line in unitfile.parse(t)):
        merged.setdefault(name, []).append(value)
    return merged


def words(command: str) -> list[str]:
    """The words of a command as systemd has them: with its dollar signs and percent signs."""
    return [word.replace("$$", "$").replace("%%", "%") for word in unitfile.split(command)]


def test_a_command_waits_and_then_runs_as_it_is_written(tmp_path: Path) -> None:
    fifo = tmp_path / "a gate"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    command = gate.gated('/bin/echo "two words" 100%%', str(fifo), unit="x")
    with subprocess.Popen(words(command), stdout=subprocess.PIPE, text=True) as waiting:
        with fifo.open("w") as entrance:
            assert waiting.poll() is None
            entrance.write("\n")
        assert waiting.communicate()[0] == "two words 100%\n"


def test_who_finds_the_gate_shut_never_runs(tmp_path: Path) -> None:
    fifo = tmp_path / "gate"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    command = gate.gated("/bin/echo never", str(fifo), unit="x")
    with subprocess.Popen(words(command), stdout=subprocess.PIPE, text=True) as waiting:
        fifo.open("w").close()
        assert waiting.communicate()[0] == ""
    assert waiting.returncode == 1


@pytest.mark.parametrize(
    ("command", "before"),
    [
        ("-/bin/x a", '-/bin/sh -c "'),
        (":/bin/x $A", ':/bin/sh -c "'),
        ('"-/bin/a b" c', '-/bin/sh -c "'),
        ("/bin/x", '/bin/sh -c "'),
    ],
)
def test_prefixes_stay_before_everything(command: str, before: str) -> None:
    assert gate.gated(command, GATE, unit="x").startswith(before)


def test_dollars_are_doubled_where_systemd_expands_them() -> None:
    assert "$$0" in gate.gated("/bin/x", GATE, unit="x")
    assert "$$" not in gate.gated(":/bin/x", GATE, unit="x")


@pytest.mark.parametrize("prefix", ["@", "|", "-@"])
def test_a_prefix_that_no_gate_can_stand_for_is_refused(prefix: str) -> None:
    with pytest.raises(RenderError, match="Cannot derive 'x' for a private network: nothing can"):
        gate.gated(f"{prefix}/bin/x y", GATE, unit="x")


@kinds
def test_a_network_of_its_own_comes_with_a_user_namespace_where_it_must(
    camera: Service, kind: ManagerKind
) -> None:
    found = derived(camera, kind, OWN)
    settings = rows(found)
    assert settings["PrivateNetwork"] == ["yes"]
    if kind is ManagerKind.USER:
        assert settings["PrivateUsers"] == ["yes"]
    assert settings["ProtectSystem"] == ["strict"]
    assert found.gate is not None
    assert found.gate in settings["ExecStart"][0]


def test_a_system_manager_puts_it_into_a_shared_network(camera: Service) -> None:
    settings = rows(derived(camera, ManagerKind.SYSTEM, LAB))
    assert settings["NetworkNamespacePath"] == [LAB.net_path]
    assert "PrivateNetwork" not in settings
    assert LAB.holder in settings["BindsTo"]
    assert settings["SystemCallFilter"]


def test_a_users_service_enters_a_shared_network_by_itself(camera: Service) -> None:
    found = derived(camera, ManagerKind.USER, LAB)
    settings = rows(found)
    command = words(settings["ExecStart"][0])
    program = command[3]
    assert program.endswith("/enter_program.py")
    assert command[:3] == [sys.executable, "-I", "-S"]
    split = command.index("--")
    assert command[4:split] == [
        *(LAB.net_path, LAB.user_path, found.gate),
        "/run/user/1000/understudy/r1/camera-service-1.files/camera-service.yaml",
        "/opt/camera-service/config/camera-service.yaml",
    ]
    # With any of these systemd would put it elsewhere first, or forbid the way.
    for name in ("PrivateUsers", "PrivateNetwork", "PrivateTmp"):
        assert settings[name] == ["no"]
    undone = {"SystemCallFilter", "RestrictNamespaces", "BindReadOnlyPaths", "NetworkNamespacePath"}
    assert not undone & settings.keys()


@kinds
@pytest.mark.parametrize("network", [OWN, LAB], ids=str)
def test_each_tcp_port_has_a_socket_outside_and_a_proxy_inside(
    camera: Service, kind: ManagerKind, network: PrivateNetwork
) -> None:
    found = derived(camera, kind, network)
    assert list(found.proxies) == ["websocket", "health"]
    proxy = found.proxies["health"]
    assert proxy == "understudy-publish@r1-1-health.service"
    settings = rows(found, proxy)
    assert settings["ExecStart"][0].endswith('"127.0.0.1:8003"')
    assert settings["BindsTo"] == [found.unit]
    socket = rows(found, proxy.replace(".service", ".socket"))
    assert socket["ListenStream"] == ["127.0.0.1:20001"]
    if kind is ManagerKind.USER:
        assert settings["ExecStart"][0].startswith('"nsenter" "--preserve-credentials"')
        assert ("EnvironmentFile" in settings) == (network is OWN)
    elif network is OWN:
        assert settings["JoinsNamespaceOf"] == [found.unit]
        assert settings["PrivateNetwork"] == ["yes"]
    else:
        assert settings["NetworkNamespacePath"] == [network.net_path]


@kinds
def test_it_is_told_the_ports_inside_and_says_those_outside(
    camera: Service, kind: ManagerKind
) -> None:
    found = derived(camera, kind, OWN)
    pairs = [
        word.partition("=")[::2]
        for value in rows(found)["Environment"]
        for word in unitfile.split(value)
    ]
    told = dict(pairs)
    assert told["CAMERA_SERVICE_SERVER_PORT"] == "8002"
    assert told["UNDERSTUDY_PORTS"] == "websocket=20000,health=20001"
    assert told["UNDERSTUDY_URLS"].startswith("websocket=ws://127.0.0.1:20000/ws")
    assert told["UNDERSTUDY_NETWORK"] == "private"
    assert told["UNDERSTUDY_INSIDE_PORTS"] == "websocket=8002,health=8003"
    [text] = found.files.values()
    assert "8003" in text


@kinds
@pytest.mark.parametrize("network", [OWN, LAB], ids=str)
@pytest.mark.parametrize("name", ["camera-service", "camera-service-activated", "mediamtx"])
def test_systemd_finds_nothing_wrong_with_it(
    name: str, network: PrivateNetwork, kind: ManagerKind, tmp_path: Path
) -> None:
    service = services.opened(services.load(services.shipped_units() / name, "shipped"))
    if "program" in service.values:
        service = replace(service, values={**service.values, "program": "/bin/true"})
    found = derived(service, kind, network)
    write(tmp_path, found.units)
    done = verify(tmp_path, "--user" if kind is ManagerKind.USER else "--system")
    lines = [line for line in done.stderr.splitlines() if "not found" not in line]
    assert lines == []


def test_sockets_that_are_handed_in_have_no_proxy() -> None:
    folder = services.shipped_units() / "camera-service-activated"
    found = derived(services.load(folder, "shipped"), ManagerKind.SYSTEM, OWN)
    assert found.proxies == {}
    assert found.socket is not None
    assert "ListenStream=127.0.0.1:20000" in found.units[found.socket]
    assert found.gate is not None


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(manager=FakeManager(tmp_path), run="r1", allocator=FakeAllocator())


def request(*, engine_ports: dict[str, Port] | None = None, network: PrivateNetwork) -> Request:
    ports = engine_ports or {
        "http": Port(name="http", transport=Transport.TCP, number=8003),
        "media": Port(name="media", transport=Transport.UDP, number=8004),
        "free": Port(name="free", transport=Transport.TCP),
    }
    return Request(
        service=Service(name="x", description="X", ports=ports, command=("/bin/x",)),
        network=network,
    )


def test_standard_numbers_are_kept_inside_and_tcp_is_published(planner: Planner) -> None:
    [plan] = planner.plan([request(network=OWN)])
    assert plan.part.published == {"http": 20000, "free": 20001}
    assert plan.part.ports == {"http": 8003, "media": 8004, "free": 20001}
    assert plan.engine is Engine.FILES


def test_systemd_run_cannot_start_one(planner: Planner) -> None:
    planner.engine = Engine.SYSTEMD_RUN
    with pytest.raises(RenderError, match="in a private network by systemd-run"):
        planner.plan([request(network=OWN)])


def test_a_network_with_a_name_must_be_found_before(planner: Planner) -> None:
    with pytest.raises(UsageError, match="Cannot put 'x' into 'private:lab' here"):
        planner.plan([request(network=PrivateNetwork(name="lab"))])


def test_the_line_that_starts_the_same_has_its_network() -> None:
    line = control.command_line(request(network=LAB), ManagerKind.USER)
    assert "--port=http:8003 --port=media/udp:8004 --port=free" in line
    assert "--network=private:lab" in line


@pytest.mark.parametrize("text", ["", "lab", "Private", "private:", "private:A", "host:x"])
def test_words_that_are_no_network(text: str) -> None:
    with pytest.raises(UsageError, match=f"Cannot use network '{text}'"):
        network_named(text)


def test_networks_by_their_words() -> None:
    assert network_named("host") is None
    assert network_named("private") == OWN
    assert network_named("private:lab") == PrivateNetwork(name="lab")
    assert str(LAB) == "private:lab"


def test_the_list_reads_it_back(tmp_path: Path) -> None:
    told = {"UNDERSTUDY_NETWORK": "private:lab", "UNDERSTUDY_INSIDE_PORTS": "http=8003"}
    unit = status("understudy-x@r1-1.service", environment=told)
    [found] = listing.instances(FakeManager(tmp_path, [unit]))
    assert found.to_json()["network"] == "private:lab"
    assert found.to_json()["inside_ports"] == {"http": 8003}
