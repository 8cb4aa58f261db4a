"""The definitions of tests/services are read and derived as anybody's would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy import derive, services, unitfile
from understudy.manager import words
from understudy.model import ManagerKind, Part

FOLDER = Path(__file__).parents[1] / "services"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/service.toml"))
ROW_FOLDERS = [
    *(path.parent for path in sorted(services.shipped_units().glob("*/service.toml"))),
    *(FOLDER / name for name in NAMES),
]


@pytest.mark.parametrize("kind", ManagerKind)
@pytest.mark.parametrize("name", NAMES)
def test_every_definition_gives_an_instance_that_knows_its_ports(
    name: str, kind: ManagerKind
) -> None:
    service = services.load(FOLDER / name, "tests")
    ports = {port: 20000 + number for number, port in enumerate(service.ports)}
    derived = derive.derive(
        service, Part(run="r7k2mq", number=1, kind=kind, runtime_dir="/run", ports=ports)
    )
    text = "\n".join([*derived.units.values(), *derived.files.values()])
    told = [line for line in text.splitlines() if "UNDERSTUDY_PORTS" not in line]
    assert all(any(str(number) in line for line in told) for number in ports.values())
    commands = [
        value
        for key, value in unitfile.effective(unitfile.parse("\n".join(derived.units.values())))
        if key == "ExecStart"
    ]
    assert len(commands) == 1


@pytest.mark.parametrize("kind", ManagerKind)
@pytest.mark.parametrize("folder", ROW_FOLDERS, ids=lambda folder: folder.name)
def test_every_row_of_an_instance_has_a_type_on_dbus(folder: Path, kind: ManagerKind) -> None:
    # One that has none would make a process of systemd-run of every instance's start.
    service = services.load(folder, "tests")
    ports = {port: 20000 + number for number, port in enumerate(service.ports)}
    part = Part(run="r7k2mq", number=1, kind=kind, runtime_dir="/run", ports=ports)
    derived = derive.derive(service, part)
    rows = [] if derived.socket else derive.transient(derived, part)[0]
    for directive, value in rows:
        assert words.typed(directive, value)


@pytest.mark.parametrize("name", NAMES)
def test_programs_of_instances_are_handed_over_as_they_are_written(name: str) -> None:
    service = services.load(FOLDER / name, "tests")
    ports = {port: 20000 + number for number, port in enumerate(service.ports)}
    derived = derive.derive(
        service,
        Part(run="r7k2mq", number=1, kind=ManagerKind.USER, runtime_dir="/run", ports=ports),
    )
    for path, text in derived.files.items():
        if path.endswith(".py"):
            assert text == (FOLDER / name / Path(path).name).read_text()
