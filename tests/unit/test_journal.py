"""Reading the journal, with a ``journalctl`` that prints what the test wants."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy import journal

UNIT = "understudy-x@r1-1.service"

Journal = Callable[..., Path]


@pytest.fixture
def printing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    """Give a ``journalctl`` that prints these entries; the file has the words of its calls."""

    def make(*entries: dict[str, object], marked_at_call: int = 0) -> Path:
        calls, rows = tmp_path / "calls", tmp_path / "rows"
        rows.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
        mark = json.dumps({"UNDERSTUDY_MARK": "x", "__REALTIME_TIMESTAMP": "9"})
        program = tmp_path / "journalctl"
        program.write_text(
            f'#!/bin/sh\necho "$*" >> {calls}\ncat {rows}\n'
            f"if [ \"$(wc -l < {calls})\" -ge {marked_at_call or 99} ]; then echo '{mark}'; fi\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(journal, "JOURNAL_SOCKET", str(tmp_path / "socket"))
        return calls

    return make


def entry(message: object, **further: object) -> dict[str, object]:
    return {"MESSAGE": message, "__REALTIME_TIMESTAMP": "1500000", **further}


def test_lines_are_read_with_time_and_priority(printing: Journal) -> None:
    calls = printing(entry("one"), entry("two", PRIORITY="3"))
    assert journal.read(UNIT) == [
        journal.Line(text="one", time_s=1.5),
        journal.Line(text="two", time_s=1.5, priority=3),
    ]
    assert f"SYSLOG_IDENTIFIER={UNIT}" in calls.read_text()
    assert "--lines" not in calls.read_text()


def test_what_is_no_text_does_no_harm(printing: Journal) -> None:
    printing(entry([0xFF, 0x41]), entry(None))
    assert [line.text for line in journal.read(UNIT)] == ["\ufffdA", ""]


@pytest.mark.parametrize(("lines", "texts"), [(2, ["b", "c"]), (9, ["a", "b", "c"]), (0, [])])
def test_only_the_last_lines_are_given(printing: Journal, lines: int, texts: list[str]) -> None:
    printing(entry("a"), entry("b"), entry("c"))
    assert [line.text for line in journal.read(UNIT, lines=lines)] == texts


def test_it_is_read_again_until_our_own_word_is_there(tmp_path: Path, printing: Journal) -> None:
    calls = printing(entry("late"), marked_at_call=3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "socket"))
        assert [line.text for line in journal.read(UNIT, lines=5, settle_s=60)] == ["late"]
        sent = dict(row.split("=", 1) for row in receiver.recv(4096).decode().splitlines())
    asked = calls.read_text().splitlines()
    assert len(asked) == 3
    assert all(f"+ UNDERSTUDY_MARK={sent['UNDERSTUDY_MARK']}" in row for row in asked)
    assert all("--lines=6 " in row for row in asked)  # ours is one of them
    assert sent["SYSLOG_IDENTIFIER"] != UNIT


def test_without_a_journal_nothing_is_waited_for(printing: Journal) -> None:
    calls = printing(entry("early"))
    assert [line.text for line in journal.read(UNIT, settle_s=60)] == ["early"]
    assert len(calls.read_text().splitlines()) == 1


def test_a_runs_writers_are_its_instances(tmp_path: Path, printing: Journal) -> None:
    printing()
    units = [
        "understudy-a@r1-2.service",
        "understudy-a@r2-1.service",
        "sshd",
        "understudy-guard@r1",
    ]
    (tmp_path / "rows").write_text("\n".join(units))
    assert journal.writers("r1") == ["understudy-a@r1-2.service"]


def test_the_command_line_of_one_instance_and_of_a_run() -> None:
    one = journal.journalctl([UNIT], lines=3)
    assert one[-3:] == ["--lines=3", "--output=cat", f"SYSLOG_IDENTIFIER={UNIT}"]
    whole = journal.journalctl([UNIT], run="r1", follow=True)
    assert whole[-3:] == [f"SYSLOG_IDENTIFIER={UNIT}", "+", "UNDERSTUDY_RUN=r1"]
    assert {"--follow", "--no-tail", "--output=short-iso-precise"} <= set(whole)
