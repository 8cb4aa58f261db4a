"""What a unit wrote: read from the journal, complete also for one that has just died.

A service that dies within milliseconds leaves lines that the journal never ties to its unit, so
instances carry ``SyslogIdentifier=<unit>`` and their lines are found by it (docs/architecture.md).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from understudy import names

_UNITS_PER_QUERY = 200

JOURNAL_SOCKET = "/run/systemd/journal/socket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a unit's log.

    Attributes:
        text: The line, without its end.
        time_s: When the journal got it, CLOCK_REALTIME seconds.
        priority: syslog(3) level, 6 for a plain line on stdout.
    """

    text: str
    time_s: float
    priority: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place in the journal from which on a log is read. Made by `mark`.

    Attributes:
        token: What is written at that place; "" where nothing could be written.
        time_s: When, CLOCK_REALTIME seconds.
    """

    token: str
    time_s: float


def mark(unit: str) -> Mark:
    """Mark the end of a unit's log as it is now: one datagram, no process.

    A word of our own is sent to the journal, which takes in what was written before it first.

    Args:
        unit: The instance's unit name, for people who read the journal.
    """
    time_s = time.time()
    return Mark(token=_send_mark(unit) or "", time_s=time_s)


def read(
    unit: str,
    *,
    lines: int | None = None,
    since_s: float | None = None,
    since: Mark | None = None,
    settle_s: float = 0.0,
) -> list[Line]:
    """Read what an instance wrote, oldest line first.

    Args:
        unit: The instance's unit name, which is its SyslogIdentifier.
        lines: At most so many of the last lines; None for all.
        since_s: Only what came after this time, CLOCK_REALTIME seconds.
        since: Only what came after this mark.
        settle_s: Wait at most so many seconds until the journal has taken in what was written
            before this call. A word of our own is sent after it, and waited for.
    """
    end = _send_mark(unit) if settle_s > 0 else None
    if since is not None:
        since_s = since.time_s
    deadline = time.monotonic() + settle_s
    pause_s = 0.002
    while True:
        found, marked = _query(unit, end, lines=lines, since_s=since_s, since=since)
        if end is None or marked or time.monotonic() > deadline:
            return found
        time.sleep(pause_s)
        pause_s *= 2


def settle(timeout_s: float) -> None:
    """Wait until the journal has taken in what anybody wrote before this call.

    Args:
        timeout_s: Seconds that this may take.
    """
    read("", settle_s=timeout_s)


class Reader:
    """Reads a log on and on: each time what has come since the last.

    Args:
        unit: The instance's unit name.
        since: Begin at this mark; None for the beginning of the log.
    """

    def __init__(self, unit: str, *, since: Mark | None = None) -> None:
        self._unit = unit
        self._since = since
        self._cursor = ""

    def more(self) -> list[str]:
        """The lines that have come since the last call, oldest first; it waits for none."""
        options = []
        if self._cursor:
            options = [f"--after-cursor={self._cursor}"]
        elif self._since is not None:
            options = [f"--since=@{self._since.time_s:.6f}"]
        found: list[str] = []
        for entry in _query_entries(self._unit, options, _tokens(self._since)):
            self._cursor = str(entry["__CURSOR"])
            if "UNDERSTUDY_MARK" in entry:
                found.clear()
            else:
                found.append(_text(entry.get("MESSAGE")))
        return found


def texts(units: Sequence[str]) -> dict[str, str]:
    """All that these instances have written, each one's log by its unit; also of those gone.

    Args:
        units: Unit names of instances.
    """
    found: dict[str, list[str]] = {unit: [] for unit in units}
    for first in range(0, len(units), _UNITS_PER_QUERY):
        command = ["journalctl", "--quiet", "--no-pager", "--output=json"]
        command.append("--output-fields=MESSAGE,SYSLOG_IDENTIFIER")
        command += [f"SYSLOG_IDENTIFIER={unit}" for unit in units[first : first + _UNITS_PER_QUERY]]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True
        )
        for row in done.stdout.splitlines():
            entry = json.loads(row)
            found[entry["SYSLOG_IDENTIFIER"]].append(_text(entry.get("MESSAGE")))
    return {unit: "".join(f"{line}\n" for line in lines) for unit, lines in found.items()}


def writers(run: str) -> list[str]:
    """The units of a run's instances that have written something, also after its end.

    Args:
        run: The run's id.
    """
    command = ["journalctl", "--quiet", "--no-pager", "--field=SYSLOG_IDENTIFIER"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True
    )
    found = [(unit, names.parse(unit)) for unit in done.stdout.splitlines()]
    return sorted(unit for unit, parsed in found if parsed is not None and parsed[1] == run)


def journalctl(
    units: Sequence[str], *, run: str | None = None, follow: bool = False, lines: int | None = None
) -> list[str]:
    """The command line that prints an instance's log, or a whole run's with unit names.

    Args:
        units: The unit names of the instances: one, or all of the run.
        run: The run's id if it is about all of it: what starts later is followed too, on the
            system manager, the only one whose units' own fields (LogExtraFields=) are kept.
        follow: Go on with new lines.
        lines: At most so many of the last lines; None for all.
    """
    command = ["journalctl", "--quiet", "--no-pager"]
    if follow:
        command.append("--follow")
    if lines is not None:
        command.append(f"--lines={lines}")
    elif follow:
        command.append("--no-tail")
    matches = [f"SYSLOG_IDENTIFIER={unit}" for unit in units]
    if run is None:
        return [*command, "--output=cat", *matches]
    matches += ["+", f"UNDERSTUDY_RUN={run}"]
    return [*command, "--output=short-iso-precise", "--no-hostname", *matches]


def _send_mark(unit: str) -> str | None:
    mark = os.urandom(8).hex()
    fields = {
        "MESSAGE": f"Reading the log of {unit}",
        "PRIORITY": "7",
        "SYSLOG_IDENTIFIER": "understudy",
        "UNDERSTUDY_MARK": mark,
    }
    datagram = "".join(f"{name}={value}\n" for name, value in fields.items()).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.sendto(datagram, JOURNAL_SOCKET)
        except OSError:
            return None
    return mark


def _query(
    unit: str,
    end: str | None,
    *,
    lines: int | None,
    since_s: float | None,
    since: Mark | None,
) -> tuple[list[Line], bool]:
    options = []
    if lines is not None and since is None:
        options.append(f"--lines={lines + (end is not None)}")
    if since_s is not None:
        options.append(f"--since=@{since_s:.6f}")
    tokens = [*_tokens(since), *([end] if end is not None else [])]
    found: list[Line] = []
    marked = False
    for entry in _query_entries(unit, options, tokens):
        token = entry.get("UNDERSTUDY_MARK")
        if token is None:
            found.append(
                Line(
                    text=_text(entry.get("MESSAGE")),
                    time_s=int(str(entry["__REALTIME_TIMESTAMP"])) / 1e6,
                    priority=int(str(entry.get("PRIORITY", 6))),
                )
            )
        elif since is not None and token == since.token:
            found.clear()
        else:
            marked = True
    if lines is not None:
        found = found[-lines:] if lines else []
    return found, marked


def _tokens(since: Mark | None) -> list[str]:
    return [since.token] if since is not None and since.token else []


def _query_entries(
    unit: str, options: Sequence[str], tokens: Sequence[str]
) -> Iterator[dict[str, object]]:
    command = ["journalctl", "--quiet", "--no-pager", "--output=json"]
    command += ["--output-fields=MESSAGE,PRIORITY,UNDERSTUDY_MARK", *options]
    command.append(f"SYSLOG_IDENTIFIER={unit}")
    for token in tokens:
        command += ["+", f"UNDERSTUDY_MARK={token}"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True
    )
    for row in done.stdout.splitlines():
        yield json.loads(row)


def _text(message: object) -> str:
    # journalctl gives what is not UTF-8 as a list of bytes, and what is too long as null.
    if isinstance(message, list):
        return bytes(message).decode(errors="replace")
    return message if isinstance(message, str) else ""
