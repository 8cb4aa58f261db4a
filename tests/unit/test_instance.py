"""An instance's files and its end, on a manager that is none."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.fakes import FakeManager, status

from understudy import envfile, instance
from understudy.errors import ManagerError
from understudy.instance import Instance
from understudy.model import Derived, Service

UNIT = "understudy-x@r1-1.service"
SOCKET = "understudy-x@r1-1.socket"


@pytest.fixture
def manager(tmp_path: Path) -> FakeManager:
    return FakeManager(tmp_path)


@pytest.fixture
def derived(tmp_path: Path) -> Derived:
    directory = tmp_path / "understudy/r1/x-1"
    return Derived(
        unit=UNIT,
        socket=SOCKET,
        units={UNIT: "[Service]\n", SOCKET: "[Socket]\n", f"{UNIT}.d/10.conf": "# é\n"},
        files={f"{directory}.files/x.yml": "a: 1\n"},
        directory=str(directory),
    )


def test_files_are_written_and_removed(manager: FakeManager, derived: Derived) -> None:
    instance.write_files(manager, derived)
    assert manager.files() == [UNIT, f"{UNIT}.d", f"{UNIT}.d/10.conf", SOCKET]
    assert (manager.unit_dir / f"{UNIT}.d/10.conf").read_text("utf-8") == "# é\n"
    assert Path(f"{derived.directory}.files/x.yml").read_text() == "a: 1\n"
    instance.remove_files(manager, derived)
    assert manager.files() == []
    assert not Path(f"{derived.directory}.files").exists()
    instance.remove_files(manager, derived)


def test_secrets_are_never_readable_by_others(manager: FakeManager, derived: Derived) -> None:
    secret = replace(derived, secrets={"A": 'a "b"\n', "B": ""})
    old = os.umask(0)
    try:
        instance.write_files(manager, secret, units=False)
    finally:
        os.umask(old)
    file = Path(f"{derived.directory}.files/secrets.env")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert envfile.read(file.read_text()) == secret.secrets
    with pytest.raises(FileExistsError):
        instance.write_files(manager, replace(secret, files={}), units=False)
    instance.remove_files(manager, derived)
    assert not file.exists()


def test_a_transient_unit_has_no_unit_files(manager: FakeManager, derived: Derived) -> None:
    instance.write_files(manager, derived, units=False)
    assert manager.files() == []
    assert Path(f"{derived.directory}.files/x.yml").exists()


def test_a_file_of_somebody_else_is_never_overwritten(
    manager: FakeManager, derived: Derived
) -> None:
    manager.unit_dir.mkdir(parents=True)
    (manager.unit_dir / UNIT).write_text("theirs")
    with pytest.raises(FileExistsError):
        instance.write_files(manager, derived)
    assert (manager.unit_dir / UNIT).read_text() == "theirs"


def test_a_second_stop_frees_nothing_that_is_anothers_by_then(
    manager: FakeManager, derived: Derived
) -> None:
    freed: list[str] = []
    service = Service(name="x", description="X")
    one = Instance(
        manager, service, derived, run="r1", number=1, ports={}, freed=lambda: freed.append(UNIT)
    )
    with one:
        one.stop()
    assert manager.stopped == [SOCKET]
    assert manager.reset == [UNIT, SOCKET]
    assert freed == [UNIT]


def test_one_that_does_not_stop_keeps_its_files_and_claims(
    manager: FakeManager, derived: Derived
) -> None:
    freed: list[str] = []
    service = Service(name="x", description="X")
    one = Instance(
        manager, service, derived, run="r1", number=1, ports={}, freed=lambda: freed.append(UNIT)
    )
    instance.write_files(manager, derived)
    manager.fails_to_stop = ManagerError("Cannot stop it")
    with pytest.raises(ManagerError, match="Cannot stop it"):
        one.stop()
    assert UNIT in manager.files()
    assert freed == []
    manager.fails_to_stop = None
    one.stop()
    assert manager.files() == []
    assert freed == [UNIT]


def test_what_was_told_to_end_is_collected_once_it_has_ended(
    manager: FakeManager, derived: Derived
) -> None:
    freed: list[str] = []
    service = Service(name="x", description="X")
    one = Instance(
        manager, service, derived, run="r1", number=1, ports={}, freed=lambda: freed.append(UNIT)
    )
    instance.write_files(manager, derived)
    instance.end_all([one])
    assert manager.stopped == [SOCKET]
    assert not one.is_stopped
    manager.units = {UNIT: status(UNIT, active_state="deactivating")}
    assert instance.collect([one]) == [one]
    assert UNIT in manager.files()
    manager.units = {UNIT: status(UNIT, active_state="failed")}
    assert instance.collect([one]) == []
    assert (manager.files(), manager.reset, freed) == ([], [UNIT], [UNIT])
    assert one.is_stopped
    assert instance.collect([one]) == []
    instance.end_all([one])
    one.stop()
    assert manager.stopped == [SOCKET]
