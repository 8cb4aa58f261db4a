"""What is done to one instance while it lives: watch its log, signal, freeze and measure it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from understudy import failure, journal
from understudy.errors import InstanceError, LogTimeoutError, UsageError
from understudy.journal import Mark
from understudy.manager import Manager, UnitStatus
from understudy.model import ManagerKind, Transport
from understudy.plan import Request
from understudy.ports.cgroups import mount, processes

FREEZE_TIMEOUT_S = 5.0

LOG_LINES = 20
"""How many last lines an error about a log shows."""

SETTLE_S = 0.5
PAUSE_MIN_S = 0.002
PAUSE_MAX_S = 0.1

_LIVES = ("active", "activating", "reloading", "deactivating")


class Controls:
    """The part of an `understudy.Instance` that looks at its service and acts on it."""

    unit: str
    _manager: Manager

    def status(self) -> UnitStatus:
        """What the manager says of it now.

        Raises:
            ManagerError: The manager cannot be reached.
        """
        return self._manager.status([self.unit])[self.unit]

    @property
    def pid(self) -> int:
        """The main process's PID, or 0 while it does not run."""
        return self.status().main_pid

    @property
    def cpu_s(self) -> float | None:
        """Seconds of CPU time that it has used; None where that is not counted."""
        nsec = self.status().cpu_usage_nsec
        return None if nsec is None else nsec / 1e9

    @property
    def memory_peak_bytes(self) -> int | None:
        """The most memory that it has used so far.

        None where the system has no such figure: without a memory controller, or once the
        service has ended under a systemd before 255.
        """
        with contextlib.suppress(OSError, ValueError):
            group = self.status().control_group
            return int(Path(f"{mount()}{group}/memory.peak").read_text())
        known = self._manager.properties(self.unit, ["MemoryPeak"]).get("MemoryPeak", "")
        return int(known) if known.isdecimal() and int(known) < 2**64 - 1 else None

    def journal(self, *, lines: int | None = None, since: Mark | None = None) -> str:
        """What it has written, stdout and stderr, oldest line first; also after its end.

        Args:
            lines: At most so many of the last lines; None for all.
            since: Only what came after this `journal_mark`.
        """
        found = journal.read(self.unit, lines=lines, since=since, settle_s=SETTLE_S)
        return "\n".join(line.text for line in found)

    def journal_mark(self) -> Mark:
        """Mark the end of its log as it is now, for ``journal(since=…)`` and `wait_for_log`.

        A test that shares an instance takes one at its start, and shows only its own part.
        """
        return journal.mark(self.unit)

    def wait_for_log(
        self,
        pattern: str | re.Pattern[str],
        *,
        timeout_s: float = 30.0,
        since: Literal["start", "now"] | Mark = "start",
    ) -> re.Match[str]:
        """Wait until it has written a line in which the pattern is found.

        A line that comes between two calls is missed by ``since="now"``: take a `journal_mark`
        before whatever makes the service write.

        Args:
            pattern: A regular expression, searched for in each line.
            timeout_s: Deadline in seconds.
            since: ``start``: whatever it has written since its start; ``now``: only what comes
                from now on; or what came after a `journal_mark`.

        Returns:
            The first match; ``match.string`` is the line.

        Raises:
            UsageError: The pattern is not a regular expression.
            InstanceError: It does not run any more, and will not write it.
            LogTimeoutError: It did not write it in time; the error has its last lines.
        """
        try:
            expression = re.compile(pattern)
        except re.error as exc:
            raise UsageError(
                f"Cannot look for '{pattern!s}': {exc}", hint="For plain text: re.escape(text)"
            ) from exc
        if since == "now":
            since = self.journal_mark()
        begin = None if since == "start" else since
        reader = journal.Reader(self.unit, since=begin)
        deadline = time.monotonic() + timeout_s
        for ended in self._watched(deadline):
            if ended is not None:
                # What it wrote last may still be on its way into the journal.
                lines = journal.read(self.unit, since=begin, settle_s=SETTLE_S)
                found = _first(expression, [line.text for line in lines])
            else:
                found = _first(expression, reader.more())
            if found is not None:
                return found
            if ended is not None:
                raise InstanceError(
                    f"Cannot find '{expression.pattern}' in the log of '{self.unit}': "
                    f"{failure.describe_end(ended, ended.active_state, moment='')}",
                    unit=self.unit,
                    journal=self.journal(lines=LOG_LINES),
                    hint=f"See: understudy logs {self.unit}",
                )
        raise LogTimeoutError(
            f"Cannot find '{expression.pattern}' in the log of '{self.unit}': "
            f"not written within {timeout_s:g} s",
            unit=self.unit,
            timeout_s=timeout_s,
            journal=self.journal(lines=LOG_LINES),
            hint=f"See: understudy logs {self.unit}",
        )

    def kill(self, sent: int | str = signal.SIGKILL, *, whole: bool = False) -> None:
        """Send a signal to the main process.

        Args:
            sent: A number, or a name: ``SIGTERM``.
            whole: To all of its processes instead.

        Raises:
            UsageError: There is no such signal.
            ManagerError: It is gone.
        """
        self._manager.kill(self.unit, signal_number(sent), whole=whole)

    def freeze(self, *, timeout_s: float = FREEZE_TIMEOUT_S) -> None:
        """Stop all of its processes where they are (SIGSTOP), until `thaw`.

        It ends with its run all the same, at once: systemd continues what it ends. What is frozen
        by ``cgroup.freeze`` would not hear that (257), and what is frozen by systemd's own
        FreezeUnit would stay for ever.

        Args:
            timeout_s: Seconds until all must stand still.

        Raises:
            InstanceError: Some went on: it forks faster than it can be stopped.
            ManagerError: It is gone.
        """
        group = self.status().control_group
        deadline = time.monotonic() + timeout_s
        pause_s = PAUSE_MIN_S
        while True:
            self._manager.kill(self.unit, signal.SIGSTOP, whole=True)
            if all(_stands_still(pid) for pid in processes(group)):
                return
            if time.monotonic() >= deadline:
                raise InstanceError(
                    f"Cannot freeze '{self.unit}': some of it still runs after {timeout_s:g} s",
                    unit=self.unit,
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def thaw(self) -> None:
        """Let its processes go on; those that are not frozen are none the worse.

        Raises:
            ManagerError: It is gone.
        """
        self._manager.kill(self.unit, signal.SIGCONT, whole=True)

    def _watched(self, deadline: float) -> Iterator[UnitStatus | None]:
        """Give None again and again until the deadline; its status, once and last, if it ended."""
        pause_s = PAUSE_MIN_S
        while True:
            status = self.status()
            if status.active_state not in _LIVES:
                yield status
                return
            yield None
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            _wait_for_end(status.main_pid, min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, PAUSE_MAX_S)


def command_line(request: Request, kind: ManagerKind) -> str:
    """The shell command that starts the same instance, for a person to try it by hand.

    What it talks to is started by it, too, by a command in its own: that may be gone by then.

    Args:
        request: What was asked for. Ports that were not are chosen anew; variables are taken from
            the environment of whoever runs it, and secrets are asked for: their values are nobody
            else's to read.
        kind: Whose manager it was for.
    """
    service = request.service
    words = ["understudy", "spawn"]
    if service.command:
        words.append(f"--exec={shlex.join(service.command)}")
        for port in service.ports.values():
            number = f"={request.numbers[port.name]}" if port.name in request.numbers else ""
            udp = "/udp" * (port.transport is Transport.UDP)
            inside = "" if port.number is None else f":{port.number}"
            words.append(f"--port={port.name}{udp}{inside}{number}")
    else:
        if service.folder is not None and service.origin != "shipped":
            words.append(f"--units={service.folder.parent}")
        words.append(service.name)
        words += [f"--port={name}" for name in request.asked if name not in request.numbers]
        words += [f"--port={name}={number}" for name, number in request.numbers.items()]
    words += [f"--set={name}={value}" for name, value in request.values.items()]
    words += [f"--set={name}=@-" for name in request.secrets]
    words += [f"--env={name}" for name in request.environment]
    if request.base is not None:
        words.append("--from=installed")
    if request.lazy:
        words.append("--lazy")
    if request.network is not None or service.private:
        words.append(f"--network={request.network or 'host'}")
    if request.background:
        words.append("--background")
    words.append(f"--manager={kind}")
    used = [f"--uses={name}={word}" for name, word in request.uses.items()]
    return " ".join([shlex.join(words), *used])


def _first(expression: re.Pattern[str], lines: list[str]) -> re.Match[str] | None:
    return next(filter(None, map(expression.search, lines)), None)


def signal_number(given: int | str) -> int:
    """The number of a signal.

    Args:
        given: That, or its name, with or without ``SIG``.

    Raises:
        UsageError: There is no such signal.
    """
    if isinstance(given, int):
        return given
    name = given.upper()
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise UsageError(
            f"Cannot send '{given}': no such signal", hint="a name as in kill -l: SIGTERM"
        ) from None


def _stands_still(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # it has ended
        return True
    return state in "TtZX"


def _wait_for_end(pid: int, timeout_s: float) -> None:
    """Wait for so long, or until a process ends."""
    poll = select.poll()
    try:
        pidfd = os.pidfd_open(pid) if pid > 0 else -1
    except OSError:  # it has ended already; the manager may not know yet
        pidfd = -1
    try:
        if pidfd >= 0:
            poll.register(pidfd, select.POLLIN)
        poll.poll(timeout_s * 1000)
    finally:
        if pidfd >= 0:
            os.close(pidfd)
