"""What of beds needs no root: names, errors, state, the command line."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from understudy import bed as bed_module
from understudy.bed import Bed
from understudy.bed_keeper import BedState, _nspawn_path, _overlay_path
from understudy.cli import bed as commands
from understudy.errors import BedError


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_state_survives_json() -> None:
    state = BedState(name="b", root="/", binds=("/a b", "/c"), cgroups=("/x",), owner_pid=7)
    assert BedState.from_json(state.to_json()) == state


@pytest.mark.usefixtures("no_root")
def test_without_root_the_hint_is_sudo() -> None:
    with pytest.raises(BedError, match=r"only root may do that\n  hint: .*sudo"):
        Bed.up("b")


@pytest.mark.usefixtures("as_root")
def test_without_nspawn_the_hint_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BedError, match=r"not installed\n  hint: .*apt install systemd-container"):
        Bed.up("b")


@pytest.mark.parametrize("name", ["", "Bed", "a/b", "-a", "a-", "a" * 33, "a b"])
def test_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(BedError, match="no name for a bed"):
        Bed.up(name)


def test_missing_bind_is_named(tmp_path: Path) -> None:
    with pytest.raises(BedError, match=r"Cannot bind '.*nothing'"):
        Bed.up("b", binds=[tmp_path / "nothing"])


def test_working_directory_is_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bed_module._binds([Path("/usr/lib")]) == (str(tmp_path), "/usr/lib")


@pytest.mark.parametrize("path", ["/", "/tmp", "/var/tmp", "/etc", "/usr/bin", "/proc/self"])
def test_working_directory_of_the_system_is_not_bound(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path)
    assert bed_module._binds([]) == ()


@pytest.mark.parametrize("path", ["/", "/tmp", "/var/tmp", "/etc", "/usr", "/var", "/run"])
def test_folder_of_the_system_is_refused(path: str) -> None:
    with pytest.raises(BedError, match=r"a bed has its own.*\n  hint: "):
        bed_module._binds([Path(path)])


def test_separators_in_paths_are_escaped() -> None:
    assert _nspawn_path("/a:b") == r"/a\:b"
    assert _overlay_path("/a:b,c") == r"/a\:b\,c"


def test_find_names_what_helps() -> None:
    with pytest.raises(BedError, match=r"it is not up\n  hint: "):
        Bed.find("no-such-bed")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, tuple[str, ...]]]:
    calls: list[tuple[str | None, tuple[str, ...]]] = []

    def run(user: str | None, _: object, __: object, command: tuple[str, ...]) -> int:
        calls.append((user, command))
        return 7

    monkeypatch.setattr(commands, "_run", run)
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["--user", "anna", "--", "ls", "-l", "--", "up"],
        ["run", "--user", "anna", "--", "ls", "-l", "--", "up"],
    ],
)
def test_dashes_mean_run(
    ran: list[tuple[str | None, tuple[str, ...]]], arguments: list[str]
) -> None:
    assert CliRunner().invoke(commands.bed, arguments).exit_code == 7
    assert ran == [("anna", ("ls", "-l", "--", "up"))]


def test_failure_of_the_bed_is_125(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> int:
        raise BedError("Cannot boot bed 'b': no", hint="Try")

    monkeypatch.setattr(commands, "_run", run)
    result = CliRunner().invoke(commands.bed, ["--", "true"])
    assert result.exit_code == 125
    assert "Cannot boot bed 'b': no" in result.output


@pytest.mark.parametrize("command", ["up", "down", "status", "run"])
def test_help_has_examples(command: str) -> None:
    result = CliRunner().invoke(commands.bed, [command, "--help"])
    assert result.exit_code == 0
    assert "Examples:\n" in result.output
