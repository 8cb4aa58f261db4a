"""A command in the caller's terminal: it gets the signals that were meant for it, once each."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Self, TypeAlias

FORWARDED = (
    signal.SIGCONT,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
"""What stops a job that a shell then brings to the foreground again; SIGSTOP is for one process."""

FROM_KEYS = (signal.SIGINT, signal.SIGQUIT)

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Forwarding:
    """Passes the signals that this process gets on to a command, while the block lasts.

    A key of the terminal (Ctrl-C) reaches the command by itself and is not passed on. One that is
    ignored stays so (nohup(1)), and outside the main thread nothing is caught at all.

    Args:
        receivers: Which processes get what is meant for the process that `to` names; itself by
            default.
    """

    def __init__(self, receivers: Callable[[int], Iterable[int]] = lambda pid: [pid]) -> None:
        self._receivers = receivers
        self._pid: int | None = None
        self._early: list[int] = []
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in FORWARDED:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._got)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Have the signals wait while the block lasts: to a D-Bus call one is a failure (EINTR)."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def to(self, pid: int) -> None:
        """Say who gets the signals, those included that came already."""
        self._pid = pid
        for number in self._early:
            self._got(number, None)

    def _got(self, number: int, _: FrameType | None) -> None:
        if self._pid is None:
            self._early.append(number)
        elif number not in FROM_KEYS or not _in_foreground():
            for pid in self._receivers(self._pid):
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, number)


def end_of(child: int) -> int:
    """Wait for the end of a command, and stop with it where it is stopped (Ctrl-Z).

    So the shell that started this process sees a stopped job, and ``fg`` goes on with both.

    Args:
        child: The command's process, a child of this one.

    Returns:
        Its return code as subprocess has it: negative for a signal.
    """
    while True:
        _pid, status = os.waitpid(child, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        # The key's signal may have reached us as well, and have been answered in between.
        if os.WSTOPSIG(status) in STOPS and _is_stopped(child):
            os.kill(os.getpid(), os.WSTOPSIG(status))


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - pathlib is not imported here
        return stat.read().rpartition(b")")[2].split()[0] == b"T"


def _in_foreground() -> bool:
    """Whether a key of the terminal reaches us, and so the command itself too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)
