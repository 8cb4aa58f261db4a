"""Files that came, changed and went between two looks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from understudy import traces

OWN = {os.geteuid()}


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir()
    monkeypatch.setattr(traces, "SHARED", (str(folder),))
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    (folder / "deep").mkdir(parents=True)
    return folder


def test_new_changed_and_gone_files_are_told_apart(place: Path) -> None:
    (place / "changed").write_text("1")
    (place / "deep/gone").write_text("1")
    (place / "same").write_text("1")
    before = traces.look([place])
    (place / "changed").write_text("22")
    (place / "deep/gone").unlink()
    (place / "deep/new").write_text("1")
    assert traces.changes(before, traces.look([place]), owners=OWN) == [
        f"{place}/changed (changed)",
        f"{place}/deep/gone (gone)",
        f"{place}/deep/new (new)",
    ]


def test_what_is_left_out_is_left_out_with_all_below(place: Path) -> None:
    before = traces.look([place], without={f"{place}/deep"})
    (place / "deep/new").write_text("1")
    after = traces.look([place], without={f"{place}/deep"})
    assert traces.changes(before, after, owners=OWN) == []


def test_of_shared_folders_only_one_s_own_new_entries_count(shared: Path) -> None:
    (shared / "folder").mkdir()
    before = traces.look([])
    (shared / "new").write_text("1")
    (shared / "folder/below").write_text("1")
    after = traces.look([])
    assert traces.changes(before, after, owners=OWN) == [f"{shared}/new (new)"]
    assert traces.changes(before, after, owners={12345}) == []


def test_symbolic_links_are_not_followed(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (place / "link").symlink_to(elsewhere)
    before = traces.look([place])
    (elsewhere / "new").write_text("1")
    assert traces.changes(before, traces.look([place]), owners=OWN) == []


def test_a_folder_that_is_not_there_is_empty(place: Path) -> None:
    assert traces.look([place / "nowhere"]) == {}


def test_a_look_is_bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "FILES_MAX", 3)
    for number in range(9):
        (place / str(number)).touch()
    assert len(traces.look([place])) == 3
