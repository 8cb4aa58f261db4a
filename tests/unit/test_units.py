"""The definitions that are shipped, in systemd's own eyes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from understudy import services, unitfile
from understudy.derive import derive, render_production
from understudy.model import Activation, Derived, ManagerKind, Part, Service

PROGRAMS = {"program": "/bin/true", "python": "/bin/true"}
"""Values that name a program: verify demands that it is there."""

SHIPPED = [
    services.load(file.parent, "shipped")
    for file in sorted(services.shipped_units().glob("*/service.toml"))
]
shipped = pytest.mark.parametrize("service", SHIPPED, ids=lambda service: service.name)
kinds = pytest.mark.parametrize("kind", ManagerKind)


def here(service: Service) -> dict[str, str]:
    """Values with which its programs exist on this machine."""
    return {name: value for name, value in PROGRAMS.items() if name in service.values}


def instance(
    service: Service, kind: ManagerKind = ManagerKind.SYSTEM, *, asked: Collection[str] = ()
) -> Derived:
    service = services.opened(service, asked)
    part = Part(
        run="r7k2mq",
        number=1,
        kind=kind,
        runtime_dir="/run" if kind is ManagerKind.SYSTEM else "/run/user/1000",
        ports={name: 20000 + at for at, name in enumerate(service.ports)},
        values=here(service),
    )
    return derive(service, part)


def write(folder: Path, units: Mapping[str, str]) -> None:
    for name, text in units.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def verify(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``systemd-analyze verify`` on a folder's units; it needs no manager."""
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("UNDERSTUDY_REQUIRE_ALL") == "1":
            pytest.fail("systemd-analyze is missing")
        pytest.skip("systemd-analyze is missing")
    units = [str(path) for path in folder.iterdir() if path.is_file()]
    return subprocess.run(
        ["systemd-analyze", *options, "verify", "--man=no", "--recursive-errors=no", *units],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_verify_reads_drop_ins(tmp_path: Path) -> None:
    drop_in = {"x@1.service.d/90-x.conf": "[Service]\nBogus=1\n"}
    write(tmp_path, {"x@1.service": "[Service]\nExecStart=/bin/true\n", **drop_in})
    assert "Unknown key name 'Bogus'" in verify(tmp_path).stderr.replace("key '", "key name '")


@shipped
def test_systemd_finds_nothing_wrong_with_production(service: Service, tmp_path: Path) -> None:
    write(tmp_path, render_production(service, here(service)))
    result = verify(tmp_path)
    assert (result.stderr, result.returncode) == ("", 0)


@shipped
@kinds
def test_systemd_finds_nothing_wrong_with_an_instance(
    service: Service, kind: ManagerKind, tmp_path: Path
) -> None:
    write(tmp_path, instance(service, kind).units)
    result = verify(tmp_path, f"--{kind}")
    assert (result.stderr, result.returncode) == ("", 0)


def test_systemd_finds_nothing_wrong_with_the_slice(tmp_path: Path) -> None:
    write(
        tmp_path, {"understudy.slice": (services.shipped_units() / "understudy.slice").read_text()}
    )
    result = verify(tmp_path)
    assert (result.stderr, result.returncode) == ("", 0)


def find(name: str) -> Service:
    return next(service for service in SHIPPED if service.name == name)


def directives(text: str) -> dict[str, str]:
    """The last value of each directive."""
    return dict(unitfile.effective(unitfile.parse(text)))


def told(derived: Derived) -> dict[str, str]:
    """The environment that the instance's own drop-in gives it."""
    text = derived.units[f"{derived.unit}.d/90-understudy.conf"]
    words = [
        unitfile.split(line.value)[0] for line in unitfile.parse(text) if line.name == "Environment"
    ]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


@shipped
def test_production_is_restarted_for_ever(service: Service) -> None:
    units = render_production(service, {})
    for name, text in units.items():
        found = directives(text)
        assert found["StartLimitIntervalSec"] == "0"
        if name.endswith(".socket"):
            assert found["TriggerLimitIntervalSec"] == "0"
        else:
            assert found["Restart"] == "always"
            assert found["User"] not in ("", "root")
            assert found["StateDirectory"] == found["User"]


@shipped
def test_an_instance_is_told_each_of_its_ports(service: Service) -> None:
    derived = instance(service, asked=service.ports)
    everything = " ".join([*derived.units.values(), *derived.files.values()])
    for at, port in enumerate(service.ports.values()):
        if port.env:
            assert {told(derived)[name] for name in port.env} == {
                port.value.format(host="127.0.0.1", port=20000 + at)
            }
        assert str(20000 + at) in everything


@shipped
def test_an_instance_is_told_none_of_productions_ports(service: Service) -> None:
    derived = instance(service)
    values = [*told(derived).values(), *derived.files.values()]
    numbers = {number for text in values for number in re.findall(r"\b[0-9]{4,5}\b", text)}
    assert not numbers & {str(port.number) for port in service.ports.values()}


MEDIAMTX_LISTENERS = {
    *("tcp 9997", "tcp 9998", "tcp 9999", "tcp 9996", "tcp 8554", "tcp 8322", "tcp 1935"),
    *("tcp 1936", "tcp 8888", "tcp 8889", "tcp 8189", "tcp 8892"),
    *("udp 8000", "udp 8001", "udp 8002", "udp 8003", "udp 8004", "udp 8005", "udp 8006"),
    *("udp 8007", "udp 8189", "udp 8890", "udp 8892", "udp 8893"),
}


def test_every_listener_of_mediamtx_is_declared() -> None:
    ports = find("mediamtx").ports.values()
    assert {f"{port.transport} {port.number}" for port in ports} == MEDIAMTX_LISTENERS


def test_mediamtx_listens_on_the_loopback_address_alone() -> None:
    service = find("mediamtx")
    derived = instance(service, asked=service.ports)
    addresses = {name: text for name, text in told(derived).items() if name.endswith("ADDRESS")}
    assert len(addresses) > 20
    assert all(re.fullmatch(r"127\.0\.0\.1:20[0-9]{3}", text) for text in addresses.values())


def test_mediamtx_opens_no_more_than_it_does_by_default_and_its_api() -> None:
    derived = instance(find("mediamtx"))
    assert told(derived)["UNDERSTUDY_PORTS"].count("=") <= 16
    off = {"MTX_METRICS", "MTX_PPROF", "MTX_PLAYBACK", "MTX_RTSPENCRYPTION", "MTX_RTMPENCRYPTION"}
    assert {told(derived)[name] for name in off} == {"no"}
    assert "MTX_WEBRTCLOCALTCPADDRESS" not in told(derived)
    assert "multicast" not in told(derived)["MTX_RTSPTRANSPORTS"]


def test_a_listener_of_mediamtx_is_opened_where_it_is_asked_for() -> None:
    derived = instance(find("mediamtx"), asked=["metrics", "webrtc-tcp"])
    assert told(derived)["MTX_METRICS"] == "yes"
    assert re.fullmatch(r"127\.0\.0\.1:[0-9]+", told(derived)["MTX_WEBRTCLOCALTCPADDRESS"])
    assert told(derived)["MTX_PPROF"] == "no"


def test_mediamtx_deletes_no_recordings_of_others() -> None:
    assert told(instance(find("mediamtx")))["MTX_PATHDEFAULTS_RECORDDELETEAFTER"] == "0s"


def test_an_instance_of_mediamtx_reads_a_file_of_its_own() -> None:
    derived = instance(find("mediamtx"))
    [file] = derived.files
    [conf] = [text for path, text in derived.units.items() if path.endswith("10-instance.conf")]
    assert unitfile.split(directives(conf)["ExecStart"]) == ["/bin/true", file]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("/opt/mediamtx/mediamtx", ["/opt/mediamtx/mediamtx"]),
        ("python3 -m standin", ["python3", "-m", "standin"]),
    ],
)
def test_mediamtx_can_be_another_program(program: str, words: list[str]) -> None:
    service = find("mediamtx")
    part = Part(
        run="r1",
        number=1,
        kind=ManagerKind.SYSTEM,
        runtime_dir="/run",
        ports=dict.fromkeys(service.ports, 20000),
        values={"program": program},
    )
    derived = derive(service, part)
    conf = derived.units[f"{derived.unit}.d/10-instance.conf"]
    assert unitfile.split(directives(conf)["ExecStart"]) == [*words, *derived.files]


def test_the_camera_service_reads_its_health_port_from_a_file_bound_for_it() -> None:
    service = find("camera-service")
    derived = instance(service)
    [text] = derived.files.values()
    assert "health_port: 20001" in text
    assert service.files[0].over == "/opt/camera-service/config/camera-service.yaml"


def test_a_checkout_of_the_camera_service_is_run_in_the_place_of_what_is_deployed() -> None:
    [text] = render_production(find("camera-service"), {"root": "/src/my camera"}).values()
    found = directives(text)
    assert found["WorkingDirectory"] == "/src/my camera"
    assert unitfile.split(found["ExecStart"])[0] == "/src/my camera/venv/bin/python"
    assert "PYTHONPATH=/src/my camera/src" in unitfile.split(found["Environment"])


def test_the_activated_camera_service_has_a_socket_for_each_port() -> None:
    service = find("camera-service-activated")
    assert service.production_activation is service.instance_activation is Activation.SOCKETS
    sockets = {
        found["FileDescriptorName"]: found["ListenStream"]
        for name, text in render_production(service, {}).items()
        if name.endswith(".socket")
        for found in [directives(text)]
    }
    assert sockets == {"websocket": "8002", "health": "8003"}
    assert told(instance(service))["LISTEN_FDNAMES"] == "websocket:health"


ON_DEMAND = [
    services.load(Path(__file__).parents[1] / "services" / name, "tests")
    for name in ("on-demand", "on-demand-private")
]
on_demand = pytest.mark.parametrize("service", ON_DEMAND, ids=lambda service: service.name)


@on_demand
def test_systemd_finds_nothing_wrong_with_production_on_demand(
    service: Service, tmp_path: Path
) -> None:
    write(tmp_path, render_production(service, here(service)))
    result = verify(tmp_path)
    assert (result.stderr, result.returncode) == ("", 0)


@on_demand
def test_production_on_demand_has_a_socket_and_a_proxy_for_each_port(service: Service) -> None:
    units = render_production(service, {})
    unit = "tests-on-demand.service"
    proxies = [f"tests-on-demand-{name}-proxy" for name in ("http", "admin")]
    assert units.keys() == {
        *(unit, f"{unit}.d/50-on-demand.conf"),
        *(f"{proxy}.{kind}" for proxy in proxies for kind in ("socket", "service")),
    }
    for proxy, port in zip(proxies, service.ports.values(), strict=True):
        found = directives(units[f"{proxy}.socket"])
        assert found["ListenStream"] == str(port.number)
        assert found["StartLimitIntervalSec"] == found["TriggerLimitIntervalSec"] == "0"
        found = directives(units[f"{proxy}.service"])
        assert found["StartLimitIntervalSec"] == "0"
        assert found["Wants"] == found["PartOf"] == unit
        _python, *words = unitfile.split(found["ExecStart"])
        assert words[:2] == ["-I", "-S"]
        assert Path(words[2]).is_file()
        assert words[3:5] == [unit, str(port.behind or port.number)]
        assert "--exit-idle-time=1s" in words
    found = directives(units[f"{unit}.d/50-on-demand.conf"])
    assert found["StopWhenUnneeded"] == "yes"
    assert found["Restart"] == "no"
    assert found["Also"].split() == [f"{proxy}.socket" for proxy in proxies]


def test_production_is_told_the_numbers_behind_its_proxies() -> None:
    service = ON_DEMAND[0]
    units = render_production(service, {})
    drop_in = units["tests-on-demand.service.d/50-on-demand.conf"]
    assert "PrivateNetwork" not in drop_in
    told = [
        unitfile.split(line.value)[0]
        for line in unitfile.parse(drop_in)
        if line.name == "Environment"
    ]
    assert told == ["HTTP=127.0.0.1:18301", "ADMIN=127.0.0.1:18302"]


def test_production_without_numbers_behind_has_a_network_of_its_own() -> None:
    units = render_production(ON_DEMAND[1], {})
    assert directives(units["tests-on-demand.service.d/50-on-demand.conf"])["PrivateNetwork"]
    found = directives(units["tests-on-demand-http-proxy.service"])
    assert found["JoinsNamespaceOf"] == "tests-on-demand.service"
    assert found["PrivateNetwork"] == "yes"


@on_demand
def test_an_instance_knows_nothing_of_a_proxy(service: Service) -> None:
    derived = instance(service)
    text = "\n".join([*derived.units.values()])
    assert derived.socket is None
    assert not re.search(r"proxy|1830[12]|StopWhenUnneeded|PrivateNetwork=yes", text)


def test_a_template_finds_the_numbers_behind_only_in_production(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "service.toml").write_text(
        'description = "a server"\n[ports]\nhttp = { tcp = 80, behind = 8080 }\n'
        'rtp = { udp = 90, optional = true }\n[activation]\nproduction = "proxy"\n'
    )
    (folder / "server.service.j2").write_text(
        "[Service]\nExecStart=/bin/true {{ ports.http }} {{ ports.rtp }}\n"
    )
    service = services.load(folder, "here")
    units = render_production(service, {})
    assert directives(units["server.service"])["ExecStart"] == "/bin/true 8080 90"
    assert not [name for name in units if "rtp" in name]
    derived = instance(service)
    assert directives(derived.units[derived.unit])["ExecStart"] == "/bin/true 80 90"


@on_demand
def test_an_instance_of_what_is_installed_knows_nothing_of_a_proxy(service: Service) -> None:
    units = render_production(service, {})
    folder = "/etc/systemd/system"
    names = ["tests-on-demand.service", "tests-on-demand.service.d/50-on-demand.conf"]
    texts = [f"# {folder}/{name}\n{units[name]}" for name in names]
    other = f"# {folder}/{names[0]}.d/60-other.conf\n[Service]\nEnvironment=OTHER=kept\n"
    part = Part(
        run="r7k2mq",
        number=1,
        kind=ManagerKind.SYSTEM,
        runtime_dir="/run",
        ports={name: 20000 + at for at, name in enumerate(service.ports)},
        base="\n".join([*texts, other]),
    )
    derived = derive(service, part)
    base = derived.units[derived.unit]
    assert "OTHER=kept" in base
    assert not re.search(r"proxy|1830[12]|PrivateNetwork|Restart=no", base)
