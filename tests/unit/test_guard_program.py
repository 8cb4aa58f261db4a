"""The process of a guard, run without a manager: what ends it, and what it keeps."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from understudy import guard_program
from understudy.errors import RunError
from understudy.guard import Guard

TIMEOUT_MS = 10_000
QUIET_MS = 200

Process = subprocess.Popen[bytes]
Begin = Callable[[], Process]


@pytest.fixture
def undo() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(undo: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(TIMEOUT_MS / 1000)
    return undo.enter_context(ours), undo.enter_context(theirs)


@pytest.fixture
def channel(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[0]


@pytest.fixture
def begin(pair: tuple[socket.socket, socket.socket], undo: ExitStack) -> Begin:
    """Start the program; what was sent before waits for it."""

    def start() -> Process:
        command = [sys.executable, "-I", "-S", str(Path(guard_program.__file__))]
        process = undo.enter_context(subprocess.Popen(command, stdin=pair[1].fileno()))
        undo.callback(process.kill)
        pair[1].close()
        return process

    return start


@pytest.fixture
def owner(undo: ExitStack) -> Process:
    process = undo.enter_context(subprocess.Popen(["sleep", "infinity"]))
    undo.callback(process.kill)
    return process


def own(channel: socket.socket, pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    socket.send_fds(channel, [b"own"], [pidfd])
    os.close(pidfd)


def ended(process: Process, timeout_ms: int = TIMEOUT_MS) -> bool:
    pidfd = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(timeout_ms))
    finally:
        os.close(pidfd)


def is_taken(name: str) -> bool:
    with socket.socket(socket.AF_UNIX) as asking:
        return asking.connect_ex(name) == 0


def claim(name: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.bind(name)
    one.listen()
    return one


def test_it_ends_with_its_owner(channel: socket.socket, begin: Begin, owner: Process) -> None:
    own(channel, owner.pid)
    process = begin()
    assert not ended(process, QUIET_MS)
    owner.kill()
    assert ended(process)
    assert process.wait() == 0


def test_it_ends_at_once_with_an_owner_that_died_before(
    channel: socket.socket, begin: Begin, owner: Process
) -> None:
    own(channel, owner.pid)
    owner.kill()
    owner.wait()
    assert ended(begin())


def test_it_ends_without_an_owner_when_nobody_can_name_one(
    channel: socket.socket, begin: Begin
) -> None:
    process = begin()
    assert not ended(process, QUIET_MS)
    channel.close()
    assert ended(process)


def test_an_owner_that_closed_its_end_still_owns_it(
    channel: socket.socket, begin: Begin, owner: Process
) -> None:
    own(channel, owner.pid)
    process = begin()
    channel.close()
    assert not ended(process, QUIET_MS)
    owner.kill()
    assert ended(process)


def test_a_detached_one_ends_after_the_time_that_it_was_given(
    channel: socket.socket, begin: Begin, owner: Process
) -> None:
    guard = Guard("r1", channel)
    own(channel, owner.pid)
    process = begin()
    guard.detach(lifetime_s=QUIET_MS * 2 / 1000)
    guard.close()
    owner.kill()
    assert not ended(process, QUIET_MS)
    assert ended(process)


def test_the_last_words_of_a_dead_owner_are_heard(
    channel: socket.socket, begin: Begin, owner: Process
) -> None:
    # A guard that is slow to start finds all of this at once.
    name = f"\0understudy/test/{os.getpid()}/last"
    with closing(claim(name)) as held:
        own(channel, owner.pid)
        socket.send_fds(channel, [b"hold last"], [held.fileno()])
        channel.send(b"detach")
        owner.kill()
        owner.wait()
        process = begin()
        channel.close()
        assert not ended(process, QUIET_MS)
    assert is_taken(name)


def test_claims_are_kept_until_they_are_freed(
    channel: socket.socket, begin: Begin, owner: Process
) -> None:
    names = {word: f"\0understudy/test/{os.getpid()}/{word}" for word in ("one", "two")}
    own(channel, owner.pid)
    begin()
    guard = Guard("r1", channel)
    with closing(claim(names["one"])) as one, closing(claim(names["two"])) as two:
        guard.hold({"one": one.fileno(), "two": two.fileno()})
    guard.free(["one", "unknown"])  # returns when it is done
    assert not is_taken(names["one"])
    assert is_taken(names["two"])
    guard.free([])


def test_it_serves_on_after_a_hurry(channel: socket.socket, begin: Begin, owner: Process) -> None:
    # Wherever it runs, and whether or not it may move itself there.
    own(channel, owner.pid)
    process = begin()
    guard = Guard("r1", channel)
    guard.hurry()
    guard.free(["unknown"])  # returns when it has answered
    assert not ended(process, QUIET_MS)


def test_a_hurry_moves_it_to_where_it_is() -> None:
    before = Path("/proc/self/cgroup").read_text()
    guard_program.hurry()
    assert Path("/proc/self/cgroup").read_text() == before


def test_more_claims_than_one_message_takes_are_kept(
    channel: socket.socket, begin: Begin, owner: Process, undo: ExitStack
) -> None:
    own(channel, owner.pid)
    begin()
    name = f"\0understudy/test/{os.getpid()}/many"
    first = undo.enter_context(closing(claim(name)))
    copies = {f"copy/{number}": first.fileno() for number in range(300)}
    guard = Guard("r1", channel)
    guard.hold(copies)
    first.close()
    guard.free(list(copies)[:-1])
    assert is_taken(name)
    guard.free(list(copies)[-1:])
    assert not is_taken(name)


def test_a_run_whose_guard_is_gone_has_ended(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    guard = Guard("r1", pair[0])
    pair[1].close()
    with pytest.raises(RunError, match=r"Cannot use run 'r1': it has ended\n  hint: .*guard@r1"):
        guard.detach()
    guard.free(["anything"])  # nothing is to do
