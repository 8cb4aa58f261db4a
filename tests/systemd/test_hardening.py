"""What systemd itself thinks of the units that are rendered for the system manager."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.systemd.support import ROOT, SERVICES

from understudy import services
from understudy.derive import derive, render_production
from understudy.model import ManagerKind, Part, PrivateNetwork, Service, Transport
from understudy.shared import linger_text

EXPOSURE_MAX = 1.5

NETWORKS = {
    "": None,
    " in a network of its own": PrivateNetwork(),
    " in one with a name": PrivateNetwork(
        name="lab", net_path="/proc/1/ns/net", holder="understudy-network@r7k2mq-lab.service"
    ),
}


def instance(service: Service, network: PrivateNetwork | None) -> Mapping[str, str]:
    service = services.opened(service)
    numbers = {name: 20000 + at for at, name in enumerate(service.ports)}
    tcp = {name for name, port in service.ports.items() if port.transport is Transport.TCP}
    part = Part(
        run="r7k2mq",
        number=1,
        kind=ManagerKind.SYSTEM,
        runtime_dir="/run",
        ports=numbers,
        published={name: number for name, number in numbers.items() if name in tcp},
        network=network,
    )
    return derive(service, part).units


def rendered() -> dict[str, Mapping[str, str]]:
    """All kinds of units that are rendered, but for what other people wrote."""
    found: dict[str, Mapping[str, str]] = {}
    for file in sorted(services.shipped_units().glob("*/service.toml")):
        service = services.load(file.parent, "shipped")
        found[f"production {service.name}"] = render_production(service, {})
        for where, network in NETWORKS.items():
            found[f"instance {service.name}{where}"] = instance(service, network)
    for name in ("on-demand", "on-demand-private"):
        units = render_production(services.load(SERVICES / name, "tests"), {})
        found[f"proxies {name}"] = {name: units[name] for name in units if "-proxy." in name}
    linger = linger_text(ManagerKind.SYSTEM, "r7k2mq", "understudy-shared@k1-r7k2mq.service", 1.0)
    found["shared"] = {"understudy-linger@r7k2mq-r1.service": linger}
    return found


def exposure(unit: Path) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        check=False,
        text=True,
    )
    found = re.search(r"exposure level for .*: ([0-9.]+)", done.stdout)
    assert found is not None, done.stderr
    return float(found[1])


@pytest.mark.skipif(not ROOT, reason="these are root's units")
def test_every_unit_on_the_system_manager_is_hardened(tmp_path: Path) -> None:
    levels = {}
    for number, (what, units) in enumerate(rendered().items()):
        for name, text in units.items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for path in sorted((tmp_path / str(number)).glob("*.service")):
            levels[f"{what}: {path.name}"] = exposure(path)
    print("\n".join(f"{level} {unit}" for unit, level in levels.items()))
    assert len(levels) > 30
    assert {unit: level for unit, level in levels.items() if level > EXPOSURE_MAX} == {}
