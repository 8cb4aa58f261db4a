"""Why an instance did not start, in words: result, last lines, and what helps."""

from __future__ import annotations

import os
import re
import shutil
import signal

from understudy import journal, ports
from understudy.errors import PortError, ReadyTimeoutError, StartError
from understudy.gate import PROXY
from understudy.manager import UnitStatus
from understudy.model import Derived, ManagerKind
from understudy.plan import Plan
from understudy.ports.cgroups import cgroup_paths, unit_of
from understudy.ready import HttpProbe

JOURNAL_LINES = 20
JOURNAL_SETTLE_S = 0.5

EXIT_CHDIR = 200
EXIT_EXEC = 203
EXIT_NAMES = {
    EXIT_CHDIR: "its WorkingDirectory= cannot be entered",
    EXIT_EXEC: "its program cannot be executed",
    216: "its Group= cannot be taken",
    217: "its User= cannot be taken",
    218: "its capabilities cannot be set",
    226: "its mount namespace cannot be set up",
    228: "its system call filter cannot be set",
    233: "its runtime directory cannot be made",
    238: "its state directory cannot be made",
}
"""What the manager says before the program does (systemd.exec(5), "Process Exit Codes")."""

EXITS_OF_A_GATE = (126, 127)
"""What the gate of a private instance says where its program cannot be executed (exec(1p))."""

_IN_USE = re.compile(r"address (already )?in use|EADDRINUSE|\[Errno 98\]", re.IGNORECASE)
_NOT_PERMITTED = re.compile(r"operation not permitted|EPERM|\[Errno 1\]", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\d.])\d{1,5}(?![\d.])")


def died(plan: Plan, status: UnitStatus, word: str, *, said: str = "") -> StartError:
    """The error of an instance that ended before it was ready.

    Args:
        plan: The instance.
        status: What the manager says of it now.
        word: What its job came to (systemd.unit(5)), or ``died``.
        said: What was said beside the journal (systemd-run's own words).
    """
    unit = plan.derived.unit
    error = StartError(
        f"Cannot start '{unit}': {describe_end(status, word)}",
        unit=unit,
        result=status.result if status.result not in ("", "success") else word,
        exit_status=status.exit_status if status.exit_code else None,
        journal="\n".join(filter(None, [said, _last_lines(unit)])),
        hint=_hint(plan, status, word),
    )
    place = plan.part.network
    if speaks_of_a_taken_port(error) and place is not None and not place.here:
        error.hint = (
            f"it is in the network '{place}', where everything that it uses is let in "
            "under its own number, and every port is there once"
        )
    elif speaks_of_a_taken_port(error):
        given = ", ".join(f"{name}={number}" for name, number in plan.part.ports.items())
        error.hint = (
            f"the ports it was given were free ({given or 'none'}): one that is written into it "
            "and not declared is taken; who holds what: understudy ports"
        )
    elif plan.part.kind is ManagerKind.SYSTEM and plan.part.network is None:
        error.hint = _guards_hint(plan, error.journal) or error.hint
    return error


def speaks_of_a_taken_port(error: StartError) -> bool:
    """Whether the service's last lines say that an address was in use."""
    return _IN_USE.search(error.journal) is not None


def late(
    plan: Plan,
    check: ports.Check | None,
    probe: HttpProbe | None,
    *,
    timeout_s: float,
    waits_for: str = "",
) -> ReadyTimeoutError:
    """The error of an instance that was not ready in time: what of it is missing.

    Args:
        plan: The instance.
        check: How it stood to its ports when last looked at; None if it has not started yet.
        probe: Its ready check; None if it has none.
        timeout_s: The deadline that passed, in seconds.
        waits_for: What else it is known to wait for.
    """
    if waits_for:
        what = waits_for
    elif check is None:
        what = "its start job has not ended"
    elif check.missing:
        unheld = (f"{port.name} ({port.transport} {number})" for port, number in check.missing)
        what = f"nothing of it holds {', '.join(unheld)}"
        if check.undeclared:
            what += f"; it listens on {', '.join(map(str, check.undeclared))} instead"
    elif probe is not None:
        what = f"GET {probe.check.path} on port {probe.port}: {probe.last}"
    else:
        what = "its ports were held only just then"
    unit = plan.derived.unit
    return ReadyTimeoutError(
        f"Cannot start '{unit}': not ready after {timeout_s:g} s: {what}",
        unit=unit,
        timeout_s=timeout_s,
        journal=_last_lines(unit),
        hint="More time: --timeout S, in Python timeout_s=",
    )


def no_ports(plan: Plan, lost: set[int], conflict: str) -> PortError:
    """The error of an instance whose ports somebody else always had first.

    Args:
        plan: The instance as it was last tried.
        lost: The numbers that somebody else held then.
        conflict: Who, as far as it was seen at the time.
    """
    number = min(lost)
    name = next(name for name, held in plan.part.outside.items() if held == number)
    holder = ports.holder(plan.request.service.ports[name].transport, number)
    who = f"port {number} is held by {holder}" if holder else f"{conflict}, and is free again"
    return PortError(
        f"Cannot start '{plan.derived.unit}': {who}",
        port=number,
        owner=str(holder) if holder else None,
        hint="Another range: --ports-from FIRST-LAST; who holds what: understudy ports",
    )


def taken_inside(plan: Plan, conflict: ports.Conflict) -> PortError:
    """The error of an instance whose port somebody else has in its private network.

    Args:
        plan: The instance.
        conflict: The port, and the sockets of others on it.
    """
    paths = cgroup_paths({one.cgroup for one in conflict.others})
    held = ", ".join(sorted({unit_of(path) or path for path in paths.values()}))
    who = f"held by {held}" if held else "held by another process"
    return PortError(
        f"Cannot start '{plan.derived.unit}': port {conflict.number} ('{conflict.port.name}') of "
        f"its network '{plan.part.network}' is {who}",
        port=conflict.number,
        owner=held or None,
        hint="In one network each port is there once: another name, --network private, or no "
        "--through",
    )


def unpublished(plan: Plan, port: str, proxy: str, word: str) -> StartError:
    """The error of a private instance, one of whose proxies did not start.

    Args:
        plan: The instance.
        port: The port's name.
        proxy: The proxy's unit.
        word: What its job came to.
    """
    return StartError(
        f"Cannot start '{plan.derived.unit}': the proxy of its port '{port}' did not start "
        f"(job: {word})",
        unit=plan.derived.unit,
        result=word,
        journal=_last_lines(proxy),
        hint=f"See: journalctl -t {proxy}; is {PROXY} there (package systemd)?",
    )


def not_let_in(plan: Plan, unit: str, word: str) -> StartError:
    """The error of a private instance for which something could not be let in.

    Args:
        plan: The instance.
        unit: The unit that was to do it.
        word: What its job came to.
    """
    return StartError(
        f"Cannot start '{plan.derived.unit}': what it uses cannot be let into its network: "
        f"'{unit}' did not start (job: {word})",
        unit=plan.derived.unit,
        result=word,
        journal=_last_lines(unit.removesuffix(".service")),
        hint=f"See: journalctl -t {unit.removesuffix('.service')}",
    )


def describe_end(status: UnitStatus, word: str, *, moment: str = " before it was ready") -> str:
    """How a unit ended, for people.

    Args:
        status: What the manager says of it.
        word: What its job came to, or ``died``.
        moment: When, for people; "" where that goes without saying.
    """
    if status.exit_code == os.CLD_EXITED and status.exit_status in EXIT_NAMES:
        return f"{EXIT_NAMES[status.exit_status]} (exit status {status.exit_status})"
    if status.exit_code == os.CLD_EXITED:
        return f"it exited with status {status.exit_status}{moment}"
    if status.exit_code in (os.CLD_KILLED, os.CLD_DUMPED):
        try:
            name = signal.Signals(status.exit_status).name
        except ValueError:
            name = f"signal {status.exit_status}"
        return f"it was ended by {name}{moment}"
    if status.result not in ("", "success"):
        return f"the manager says '{status.result}' (job: {word})"
    return f"its start job came to '{word}'"


def _hint(plan: Plan, status: UnitStatus, word: str) -> str:
    derived = plan.derived
    if word == "assert":
        over = ", ".join(file.over for file in plan.request.service.files if file.over)
        return f"these must exist, a file of the instance is bound over them: {over}"
    program = _program(derived)
    missing = (EXIT_EXEC,) if derived.gate is None else EXITS_OF_A_GATE
    if status.exit_status in missing and program:
        found = shutil.which(program)
        if found is None and shutil.which(program, mode=os.F_OK) is None:
            values = ", ".join(plan.request.service.values)
            other = f"; --set names another one, its values: {values}" if values else ""
            return f"there is no program '{program}' here{other}"
        return f"is '{found or program}' executable, and may the instance's user reach it?"
    if status.exit_status == EXIT_CHDIR:
        return (
            "may the instance's user enter it? A checkout below a home of mode 0700 cannot be "
            "entered by others: use --manager user"
        )
    return f"See: understudy logs {derived.unit}"


def _guards_hint(plan: Plan, said: str) -> str:
    """What helps where the kernel guards may have refused a socket; "" where nothing says so."""
    if not _NOT_PERMITTED.search(said):
        return ""
    production = {number for _, number in plan.part.denied}
    words = {int(word) for word in _NUMBER.findall(said)}
    named = ", ".join(map(str, sorted(words & production)))
    why = f"{named} is production's" if named else "if that was a socket"
    return (
        f"{why}: the kernel keeps instances from production's ports and from other hosts; "
        "docs/service-definition.md, Kernel guards"
    )


def _program(derived: Derived) -> str:
    for line in derived.units.get(derived.unit, "").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ExecStart" and value.split():
            return value.split()[0].strip('"').lstrip("@-:+!|")
    return ""


def _last_lines(unit: str) -> str:
    lines = journal.read(unit, lines=JOURNAL_LINES, settle_s=JOURNAL_SETTLE_S)
    return "\n".join(line.text for line in lines)
