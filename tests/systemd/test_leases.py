"""Leases on production: readers and writers of several processes, users and networks."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.systemd import suites
from tests.systemd.support import (
    SOON_S,
    abstract_sockets,
    command_line,
    eventually,
    terminal,
    understudy,
    units,
)

from understudy import leases
from understudy.errors import ProductionError, UsageError
from understudy.leases import Lease, holders, lease

KEY = "tests-of-leases.service"

TAKER = """
import sys
from understudy.leases import lease
key, kind, timeout_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
print("asking", flush=True)
held = lease(key, service="it", exclusive=kind == "x", timeout_s=timeout_s, who=sys.argv[4])
print("held", held.id, flush=True)
for line in sys.stdin:
    break
held.close()
print("freed", flush=True)
"""


class Taker:
    """Another process that takes a lease and keeps it until it is told to give it back."""

    def __init__(self, kind: str, *, who: str = "taker", wrap: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrap, sys.executable, "-c", TAKER, KEY, kind, "60", who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self, word: str) -> None:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], SOON_S)
        assert readable, f"never said {word}"
        line = self.process.stdout.readline()
        assert line.startswith(word), line

    def give_back(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def takers() -> Iterator[list[Taker]]:
    made: list[Taker] = []
    yield made
    for one in made:
        one.end()


def take(takers: list[Taker], kind: str, **how: object) -> Taker:
    one = Taker(kind, **how)  # type: ignore[arg-type]
    takers.append(one)
    one.says("asking")
    return one


def waits(who: str) -> bool:
    """Whether one of this name stands in the queue, as every user sees it."""
    return any(one.who == who and not one.holds for one in holders(KEY))


def quick(*, exclusive: bool = False, timeout_s: float = SOON_S) -> Lease:
    return lease(KEY, service="it", exclusive=exclusive, timeout_s=timeout_s)


def test_readers_have_it_together(takers: list[Taker]) -> None:
    for _ in range(3):
        take(takers, "s")
    for one in takers:
        one.says("held")
    with quick() as own:
        assert not own.exclusive
        assert len(holders(KEY)) == 4
        assert all(one.holds and not one.exclusive for one in holders(KEY))


def test_a_writer_waits_for_readers_and_later_readers_for_the_writer(takers: list[Taker]) -> None:
    reader = take(takers, "s", who="reader")
    reader.says("held")
    writer = take(takers, "x", who="writer")
    assert eventually(lambda: waits("writer"))
    late = take(takers, "s", who="late")
    assert eventually(lambda: waits("late"))
    reader.give_back()
    writer.says("held")
    assert waits("late")
    assert [one.who for one in holders(KEY) if one.holds] == ["writer"]
    writer.give_back()
    late.says("held")


def test_writers_do_not_starve_among_readers_that_come_and_go(takers: list[Taker]) -> None:
    """At every moment a reader has it; the writer gets in before those that came later."""
    first = take(takers, "s", who="first")
    first.says("held")
    writer = take(takers, "x", who="writer")
    assert eventually(lambda: waits("writer"))
    crowd = [take(takers, "s", who=f"crowd{number}") for number in range(5)]
    assert eventually(lambda: all(waits(f"crowd{number}") for number in range(5)))
    first.give_back()
    writer.says("held")
    writer.give_back()
    for one in crowd:
        one.says("held")


def test_a_killed_holder_frees_it_at_once(takers: list[Taker]) -> None:
    holder = take(takers, "x")
    holder.says("held")
    waiting = take(takers, "x", who="next")
    assert eventually(lambda: waits("next"))
    began = time.monotonic()
    holder.process.send_signal(signal.SIGKILL)
    waiting.says("held")
    assert time.monotonic() - began < 2.0


def test_a_killed_one_that_waits_is_waited_for_by_nobody(takers: list[Taker]) -> None:
    with quick():
        writer = take(takers, "x", who="writer")
        assert eventually(lambda: waits("writer"))
        late = take(takers, "s", who="late")
        assert eventually(lambda: waits("late"))
        writer.process.send_signal(signal.SIGKILL)
        late.says("held")


@pytest.mark.parametrize("seed", range(3))
def test_kills_at_random_leave_nothing_and_never_two(takers: list[Taker], seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        one = take(takers, chance.choice("sx"))
        poll = select.poll()
        poll.register(one.process.stdout.fileno())  # type: ignore[union-attr]
        poll.poll(0)
        select.select([], [], [], chance.random() * 0.1)
        held = [one for one in holders(KEY) if one.holds]
        assert len(held) == 1 or not any(one.exclusive for one in held)
        if chance.random() < 0.7:
            one.process.send_signal(signal.SIGKILL)
    for one in takers:
        one.process.send_signal(signal.SIGKILL)
    quick(exclusive=True).close()


def test_a_forked_child_neither_keeps_nor_frees_it() -> None:
    held = quick(exclusive=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        held.close()
        os.write(writing, b"closed")
        signal.pause()
    try:
        assert os.read(reading, 6) == b"closed"
        assert [one.holds for one in holders(KEY)] == [True]
        held.close()
        assert holders(KEY) == []
        quick(exclusive=True).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_forked_child_lives_on_after_its_killed_parent(takers: list[Taker]) -> None:
    code = TAKER.replace(
        'print("held"', 'import os\nif os.fork() == 0:\n    os.read(0, 1)\nprint("held"'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, KEY, "x", "60", "parent"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert eventually(lambda: any(one.holds for one in holders(KEY)))
        process.kill()
        quick(exclusive=True).close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_one_that_has_closed_all_its_descriptors_still_has_it() -> None:
    code = (
        "import os, sys\nfrom understudy.leases import lease\n"
        "held = lease(sys.argv[1], service='it', exclusive=True, who='closer')\n"
        "os.closerange(3, 1000)\nprint('held', flush=True)\nsys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, KEY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert [one.who for one in holders(KEY)] == ["closer"]
    with pytest.raises(ProductionError, match="exclusively held by closer"):
        quick(timeout_s=0.2)
    process.communicate("")
    assert eventually(lambda: not holders(KEY))


def test_waiting_is_shown_and_bounded(takers: list[Taker]) -> None:
    user = pwd.getpwuid(os.getuid()).pw_name
    holder = take(takers, "x", who="pytest")
    holder.says("held")
    told: list[tuple[str, bool]] = []
    with pytest.raises(ProductionError) as caught:
        lease(KEY, service="it", timeout_s=1.5, waiting=lambda *words: told.append(words))
    name = f"exclusively held by pytest {holder.process.pid} of user {user}, since "
    assert re.fullmatch(rf"waiting for it: {name}\d s", told[0][0])
    # First as news, then each second to remind.
    assert [news for _, news in told][:2] == [True, False]
    assert re.fullmatch(rf"Cannot lease 'it': after 1\.5 s still {name}\d s", caught.value.message)
    assert caught.value.hint is not None
    assert "understudy production it" in caught.value.hint
    assert not waits("pytest")


def test_a_process_shares_its_lease_with_itself(takers: list[Taker]) -> None:
    with quick() as first:
        writer = take(takers, "x", who="writer")
        assert eventually(lambda: waits("writer"))
        # Otherwise it would wait for the writer, who waits for it.
        with quick(timeout_s=1.0) as second:
            assert second.id == first.id
            with pytest.raises(UsageError, match="this process shares it already"):
                quick(exclusive=True)
        assert [one.holds for one in holders(KEY)] == [True, False]
    writer.says("held")


def test_who_is_alone_may_share_with_itself() -> None:
    with quick(exclusive=True) as first, quick() as second:
        assert second.id == first.id
        assert second.exclusive
    assert holders(KEY) == []


def test_the_next_lease_of_a_process_takes_no_new_one() -> None:
    with quick() as first:
        keeping = units("understudy-lease@*")
    with quick(exclusive=True) as second:
        assert second.id != first.id
        assert second.exclusive
        assert units("understudy-lease@*") == keeping
        first.close()
        assert [one.holds for one in holders(KEY)] == [True]
    assert eventually(lambda: not units("understudy-lease@*"))
    # It has ended by itself; one that is needed now is started.
    with quick() as third:
        assert third.live_runs() == {third.id}


def test_it_is_seen_as_a_live_run_as_long_as_it_is_held() -> None:
    with quick() as held:
        assert held.id in held.live_runs()
        held.keep_run("rkept1")
        assert {"rkept1", held.id} <= held.live_runs()
        assert {"@understudy/run/rkept1"} <= abstract_sockets()
    assert eventually(lambda: not units("understudy-lease@*"))
    assert "@understudy/run/rkept1" not in abstract_sockets()


def test_a_lease_is_nothing_that_a_dead_run_has_left() -> None:
    rows = _left_overs()
    with quick():
        assert _left_overs() == rows
    # And while what keeps it rests.
    assert units("understudy-lease@*")
    assert _left_overs() == rows


def _left_overs() -> list[dict[str, object]]:
    rows = json.loads(understudy("doctor", "--only", "left-overs", "--json", code=None).stdout)
    assert isinstance(rows, list)
    return [{**row, "what": "none"} if row["level"] == "ok" else row for row in rows]


def test_two_users_at_once(takers: list[Taker], guest: suites.User) -> None:
    name, hers = guest.name, [*guest.prefix]
    with quick():
        reader = take(takers, "s", who="guests", wrap=hers)
        reader.says("held")
        assert {one.user for one in holders(KEY)} == {name, "root"}
        reader.give_back()
        reader.says("freed")
        writer = take(takers, "x", who="guests", wrap=hers)
        assert eventually(lambda: waits("guests"))
    writer.says("held")
    with pytest.raises(ProductionError, match=rf"exclusively held by guests \d+ of user {name}"):
        quick(timeout_s=0.3)
    # Runuser's child: the one that owns the lease.
    (holder,) = holders(KEY)
    os.kill(holder.pid, signal.SIGKILL)
    quick(exclusive=True).close()


def test_who_is_in_a_private_network_waits_for_those_outside(takers: list[Taker]) -> None:
    inside = command_line("run", "--network", "private", "--")
    with quick(exclusive=True):
        inner = take(takers, "x", who="inside", wrap=inside)
        assert eventually(lambda: waits("inside"))
    inner.says("held")
    with pytest.raises(ProductionError, match="exclusively held by inside"):
        quick(timeout_s=0.2)
    inner.give_back()
    inner.says("freed")
    quick(exclusive=True).close()
    inner.process.communicate()


def test_without_a_manager_it_is_kept_by_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, takers: list[Taker]
) -> None:
    from understudy.errors import NoManagerError

    def none() -> None:
        raise NoManagerError("there is none")

    monkeypatch.setattr(leases, "connect", none)
    leases.end_resting()
    assert eventually(lambda: not units("understudy-lease@*"))
    with quick(exclusive=True):
        assert not units("understudy-lease@*")
        other = [sys.executable, "-c", TAKER, KEY, "s", "0.2", "other"]
        done = subprocess.run(other, capture_output=True, text=True, check=False)
        assert "exclusively held by" in done.stderr
    assert holders(KEY) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    leases.end_resting()
    monkeypatch.setenv("UNDERSTUDY_NETWORK", "private")
    with pytest.raises(NoManagerError):
        quick()


def folder(tmp_path: Path) -> list[str | Path]:
    """Options that name a production of the tests, which need not run to be leased."""
    home = tmp_path / "it"
    home.mkdir()
    (home / "service.toml").write_text(f'description = "it"\nproduction = "{KEY}"\n')
    (home / "it.service.j2").write_text("[Service]\nExecStart=/bin/true\n")
    return ["--units", tmp_path, "--manager", "system"]


def test_a_command_runs_under_a_lease_and_gives_its_exit_code(tmp_path: Path) -> None:
    options = folder(tmp_path)
    done = understudy("lease", "it", *options, "--", "sh", "-c", "echo $UNDERSTUDY_LEASE; exit 7",
                      code=7)  # fmt: skip
    assert re.fullmatch(rf"r\w+:s:{re.escape(KEY)}\n", done.stdout)
    assert eventually(lambda: not holders(KEY))
    understudy("lease", "it", *options, "--", "no-such-command", code=127)
    understudy("lease", "it", *options, code=2)
    understudy("lease", "it", *options, "--", "sh", "-c", "kill -TERM $$", code=-15)


def test_a_command_that_cannot_have_it_is_not_run(tmp_path: Path) -> None:
    options = folder(tmp_path)
    with quick(exclusive=True):
        done = understudy("lease", "it", *options, "--timeout", "0.3", "--", "echo", "run",
                          code=125)  # fmt: skip
    assert done.stdout == ""
    assert "waiting for it: exclusively held by" in done.stderr
    assert "Cannot lease 'it': after 0.3 s still exclusively held by" in done.stderr


def test_what_a_command_starts_is_under_its_lease(tmp_path: Path) -> None:
    """Among themselves they share and exclude one another, and nobody waits for the parent."""
    options = folder(tmp_path)
    inner = [*command_line("lease", "it", *options, "--timeout", "5")]
    alone = [*inner, "--exclusive", "--", "echo", "inside"]
    shared = [*inner, "--", *inner, "--", "echo", "inside"]
    for command in (alone, shared):
        done = understudy("lease", "it", *options, "--exclusive", "--", *command)
        assert done.stdout == "inside\n"
    assert understudy("lease", "it", *options, "--", *shared).stdout == "inside\n"
    done = understudy("lease", "it", *options, "--", *alone, code=125)
    assert "this process shares it already" in done.stderr


def test_a_lease_that_has_ended_covers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_LEASE", f"rgone1:x:{KEY}")
    with quick():
        assert [one.holds for one in holders(KEY)] == [True]


def test_waiting_on_a_terminal_is_one_line_that_goes(tmp_path: Path) -> None:
    options = [str(one) for one in folder(tmp_path)]
    with (
        quick(exclusive=True),
        terminal("lease", "it", *options, "--timeout", "0.3", "--", "true") as (process, screen),
    ):
        said = b""
        with contextlib.suppress(OSError):
            while chunk := os.read(screen, 4096):
                said += chunk
        assert process.wait() == 125
    assert b"\r\x1b[Kwaiting for it: exclusively held by" in said
    assert said.index(b"\r\x1b[K", said.rindex(b"waiting for it")) < said.index(b"error:")


def test_who_has_it_is_shown(production: dict[str, str]) -> None:
    unit = production["mediamtx"]
    from understudy.lead import production as find

    lead = find("mediamtx", unit=unit, exclusive=True)
    try:
        rows = json.loads(understudy("production", "mediamtx", "--unit", unit, "--json").stdout)
        (row,) = rows
        assert row["state"] == "active"
        assert row["ports"]["api"] == 9997
        assert row["urls"]["rtsp"] == "rtsp://127.0.0.1:8554"
        (had,) = row["leases"]
        assert (had["pid"], had["exclusive"], had["holds"]) == (os.getpid(), True, True)
        text = understudy("production", "mediamtx", "--unit", unit).stdout
        assert f"lease      exclusively held by {had['who']} {os.getpid()}" in text
    finally:
        lead.close()
