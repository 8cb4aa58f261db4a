"""A change of a host that is ended at any point, and files that cannot be led astray."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.unit.fakes import FakeManager, status

from understudy.deploy import records
from understudy.deploy.files import Files, Kind, digest
from understudy.deploy.plan import Action, Step, steps
from understudy.deploy.records import Manifest, UnitState
from understudy.deploy.transaction import Change, Transaction, finish, journal_of, lock, undo
from understudy.deploy.units import HostUnits
from understudy.errors import AccessDeniedError, DeployError
from understudy.model import HostFile, Service

ME = (os.geteuid(), os.getegid())
UNIT = "lead.service"
FILE = f"/etc/systemd/system/{UNIT}"


class FakeUnits(HostUnits):
    """Units of a host that only remember what was done with them."""

    def __init__(self, states: dict[str, UnitState]) -> None:
        self.states = states
        self.done: list[str] = []

    def state(self, unit: str) -> UnitState:
        return self.states[unit]

    def enabled(self, unit: str) -> bool:
        return self.states[unit].enabled

    def reload(self) -> None:
        self.done.append("reload")

    def stop(self, units: Sequence[str], *, timeout_s: float) -> None:
        self._set(units, active=False)

    def start(self, units: Sequence[str], *, timeout_s: float) -> None:
        self._set(units, active=True)

    def restart(self, units: Sequence[str], *, timeout_s: float) -> None:
        self._set(units, active=True)

    def enable(self, units: Sequence[str], *, anew: bool = False) -> None:
        self._set(units, enabled=True)

    def disable(self, units: Sequence[str]) -> None:
        self._set(units, enabled=False)

    def forget(self, units: object) -> None:
        pass

    def _set(
        self, units: Sequence[str], *, active: bool | None = None, enabled: bool | None = None
    ) -> None:
        for unit in units:
            old = self.states[unit]
            self.states[unit] = UnitState(
                active=old.active if active is None else active,
                enabled=old.enabled if enabled is None else enabled,
                invocation=f"{old.invocation}+" if active else old.invocation,
                loaded=old.loaded,
            )


def tree(top: Path) -> dict[str, tuple[str, str]]:
    """Every file, folder and link below: what it is, and what is in it."""
    found = {}
    for path in sorted(top.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            content = str(path.readlink())
        else:
            content = path.read_text() if stat.S_ISREG(mode) else ""
        found[str(path.relative_to(top))] = (f"{mode:o}", content)
    return found


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's file system, with one unit and one link."""
    for folder in ("etc/systemd/system", "var/lib"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / FILE[1:]).write_text("as it was")
    (tmp_path / "etc/link").symlink_to("/nowhere")
    (tmp_path / "etc/old").write_text("goes")
    (tmp_path / "etc/old").chmod(0o640)
    return tmp_path


CHANGES = (
    Change(path=FILE, data=b"as it is to be", ids=ME),
    Change(path="/etc/lead/lead.conf", data=b"new", mode=0o600, ids=ME),
    Change(path="/etc/link", data=b"a file", ids=ME),
    Change(path="/etc/old", data=None),
    Change(path="/etc/other", data=b"/else", link=True),
)


class Stop(BaseException):
    """An end at some point, from outside."""


def changed(host: Path, units: FakeUnits, *, ended_at: int) -> tuple[Files, bool]:
    """Change the host, and be ended before the so-manieth thing is done to a file."""
    files = _Counting(host, owner=ME[0])
    journal = journal_of("deploy", ["lead"], CHANGES, files, units=dict(units.states))
    transaction = Transaction(files, units, journal, CHANGES)
    files.left = ended_at
    try:
        transaction.begin()
        transaction.write()
        units.enable([UNIT])
        units.restart([UNIT], timeout_s=1)
        transaction.commit()
    except Stop:
        return Files(host, owner=ME[0]), False
    return Files(host, owner=ME[0]), True


class _Counting(Files):
    left = -1

    def __getattribute__(self, name: str) -> object:
        found = object.__getattribute__(self, name)
        changing = ("make_folder", "stage", "stage_link", "keep", "swap", "remove", "rename")
        if name not in changing or self.left < 0:
            return found
        self.left -= 1
        if self.left < 0:
            raise Stop
        return found


def states() -> dict[str, UnitState]:
    return {UNIT: UnitState(active=True, enabled=False, invocation="1", loaded=True)}


def test_a_change_that_is_ended_anywhere_is_undone_by_whoever_comes_next(host: Path) -> None:
    before = tree(host)
    for ended_at in range(100):
        units = FakeUnits(states())
        files, complete = changed(host, units, ended_at=ended_at)
        if complete or records.journal(files, records.DONE) is not None:
            # That was the last renaming. What comes next only tidies up.
            assert finish(files, FakeManager(host)) == []
            break
        journal = records.journal(files)
        if journal is not None:
            assert undo(files, units, journal) == []
        now = tree(host)
        left = {path for path in now if path.startswith("var/lib/understudy")}
        assert {path: what for path, what in now.items() if path not in left} == before, ended_at
        # What was begun and not yet written down is nothing but an empty folder or a staged name.
        assert all("journal" in path or now[path][1] == "" for path in left)
        assert (units.state(UNIT).active, units.state(UNIT).enabled) == (True, False)
    assert ended_at > 15
    assert (host / FILE[1:]).read_text() == "as it is to be"
    assert os.readlink(host / "etc/other") == "/else"  # noqa: PTH115 - one of the tests' own
    assert not (host / "etc/old").exists()
    assert not [path for path in tree(host) if "understudy-old" in path or "journal" in path]


def test_what_somebody_edits_meanwhile_is_left_alone(host: Path) -> None:
    units = FakeUnits(states())
    files, _ = changed(host, units, ended_at=14)
    (host / FILE[1:]).write_text("mine")
    journal = records.journal(files)
    assert journal is not None
    [note] = undo(files, units, journal)
    assert note == f"'{FILE}' was changed meanwhile by somebody else, and is left as it is"
    assert (host / FILE[1:]).read_text() == "mine"
    assert records.journal(files) is None


@pytest.mark.parametrize("prepare", ["link", "writable", "file"])
def test_nothing_is_reached_by_way_of_what_others_can_change(host: Path, prepare: str) -> None:
    outside = host / "outside"
    outside.mkdir()
    place = host / "etc/lead"
    if prepare == "link":
        place.symlink_to(outside)
    elif prepare == "file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o775)
    files = Files(host, owner=ME[0])
    path = "/etc/lead/lead.conf"
    calls: list[Callable[[], object]] = [
        lambda: files.look(path),
        lambda: files.missing_folders(path),
        lambda: files.stage(path, b"x", 0o644, *ME),
        lambda: files.swap(path),
        lambda: files.keep(path),
        lambda: files.take_back(path),
        lambda: files.remove(path),
        lambda: files.remove_tree(path),
        lambda: files.make_folder(path),
    ]
    for call in calls:
        with pytest.raises(DeployError, match=r"Cannot reach '/etc/lead/lead\.conf': ") as caught:
            call()
        assert "'/etc/lead'" in str(caught.value)
    assert list(outside.iterdir()) == []


def test_links_are_seen_and_not_followed(host: Path) -> None:
    files = Files(host, owner=ME[0])
    found = files.look("/etc/link")
    assert found is not None
    assert (found.kind, found.data) == (Kind.LINK, b"/nowhere")
    (host / "precious").mkdir()
    (host / "precious/file").touch()
    (host / "etc/state").symlink_to(host / "precious")
    files.remove_tree("/etc/state")
    assert (host / "precious/file").exists()
    os.mkfifo(host / "etc/fifo")
    fifo = files.look("/etc/fifo")
    assert fifo is not None
    assert fifo.kind is Kind.OTHER
    for path in ("/etc/../etc/link", "/", "/etc/.."):
        with pytest.raises(DeployError, match="it is not a plain path"):
            files.look(path)


def decided(host: Path, old: Manifest | None, *, adopt: bool = False) -> dict[str, Action]:
    """What is to be done with a unit and a configuration file."""
    service = Service(name="lead", description="x", production=UNIT)
    wanted = [HostFile(path=FILE, text="new"), HostFile(path="/etc/lead.conf", text="new")]
    found: list[Step] = steps(service, wanted, Files(host, owner=ME[0]), old, adopt=adopt)
    return {Path(step.file.path).name: step.action for step in found}


def manifest(*, unit: str = "", conf: str = "", offered: str = "") -> Manifest:
    """What is remembered: the contents that were put there, and what was put beside."""
    given = {FILE: unit, "/etc/lead.conf": conf}
    return Manifest(
        service="lead",
        unit=UNIT,
        units=(UNIT,),
        files={path: digest(text.encode()) for path, text in given.items() if text},
        kept={"/etc/lead.conf": digest(offered.encode())} if offered else {},
    )


def test_each_file_is_dealt_with_as_its_history_says(host: Path) -> None:
    unit, conf = host / FILE[1:], host / "etc/lead.conf"
    unit.unlink()
    both = manifest(unit="old", conf="old")
    assert decided(host, None) == {UNIT: "installed", "lead.conf": "installed"}
    for there, expected in {
        "new": ("unchanged", "unchanged"),
        "old": ("updated", "updated"),
        "mine": ("kept", "kept"),
    }.items():
        unit.write_text(there)
        conf.write_text(there)
        assert tuple(decided(host, both).values()) == expected
    # Edited, and nothing that is newer; what was offered beside it is not offered again.
    same = manifest(unit="new", conf="new")
    assert decided(host, same) == {UNIT: "edited", "lead.conf": "edited"}
    offered = manifest(unit="new", conf="old", offered="new")
    assert decided(host, offered)["lead.conf"] == "edited"
    # What was there before: a unit is taken over when that is asked for, a configuration never.
    with pytest.raises(DeployError, match="was not put there by understudy") as caught:
        decided(host, None)
    assert "--adopt takes it over and keeps a backup" in (caught.value.hint or "")
    assert decided(host, None, adopt=True) == {UNIT: "adopted", "lead.conf": "kept"}
    # What is no longer needed goes, unless it was edited.
    extra = Manifest(
        service="lead", unit=UNIT, units=(UNIT,), files={"/etc/old": digest(b"goes"), **same.files}
    )
    assert decided(host, extra)["old"] == "removed"
    (host / "etc/old").write_text("mine")
    assert "old" not in decided(host, extra)


def test_what_is_remembered_is_read_back_as_it_was() -> None:
    one = manifest(unit="a", conf="b", offered="c")
    text = one.to_text()
    assert Manifest.from_text(text, "x").to_text() == text
    for damaged in ("", "{}", "[]", '{"version": 1, "unit": "x"}', '{"version": 1, "x": 1}'):
        with pytest.raises(DeployError, match="Cannot read 'x': it is damaged"):
            Manifest.from_text(damaged, "x")
    with pytest.raises(DeployError, match=r"another version of understudy \(2\)"):
        Manifest.from_text(text.replace('"version": 1', '"version": 2'), "x")


def test_two_at_a_time_are_one_too_many(host: Path) -> None:
    files = Files(host, owner=ME[0])
    with lock(files, "deploy", ["lead"]):
        with (
            pytest.raises(DeployError, match="another deploy or withdraw is under way"),
            lock(files, "withdraw", ["lead"]),
        ):
            pass
        assert (host / "var/lib/understudy/deploy").stat().st_mode & 0o777 == 0o700
    with lock(files, "withdraw", ["lead"]):
        pass
    assert not (host / "var/lib/understudy").exists()


@pytest.mark.parametrize("unit", ["ssh.service", "understudy-x.service", "understudy.slice", ""])
def test_only_the_units_of_what_is_deployed_are_changed(tmp_path: Path, unit: str) -> None:
    # A definition cannot name a unit of a run's as its production either.
    units = HostUnits(FakeManager(tmp_path, [status(UNIT)]), {UNIT, "understudy-x.service"})
    calls: list[Callable[[], object]] = [
        lambda: units.start([UNIT, unit], timeout_s=1),
        lambda: units.stop([unit, UNIT], timeout_s=1),
        lambda: units.restart([unit], timeout_s=1),
        lambda: units.enable([unit]),
        lambda: units.enable([unit], anew=True),
        lambda: units.disable([unit]),
        lambda: units.forget([unit]),
    ]
    for call in calls:
        with pytest.raises(AccessDeniedError, match=f"Cannot change '{unit}'"):
            call()
