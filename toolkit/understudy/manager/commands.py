"""A manager by the ``systemctl``, ``systemd-run`` and ``busctl`` commands.

Nothing here needs a compiled dependency. Each call costs a process or two (4 to 8 ms each), and
news of jobs is asked for instead of awaited. What is parsed is what these commands print for
programs: ``systemctl show`` and ``--output=json``.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import cast

from understudy.errors import (
    AccessDeniedError,
    ManagerError,
    NoManagerError,
    NoSuchUnitError,
    UnitExistsError,
)
from understudy.manager import NO_RIGHT_HINT, Transient, UnitStatus, bus_variables, ours
from understudy.manager.runner import RunnerJobs
from understudy.manager.words import (
    command,
    complete_types,
    environment,
    microseconds,
    typed,
)
from understudy.model import ManagerKind
from understudy.unitfile import split

_CREATE_TIMEOUT_S = 30.0
_FIRST_POLL_S = 0.001
_LAST_POLL_S = 0.05

_DEAD = ("failed", "inactive")

_STATUS = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Result",
    "ExecMainCode",
    "ExecMainStatus",
    "MainPID",
    "ControlGroup",
    "InvocationID",
    "Description",
    "Environment",
    "CPUUsageNSec",
    "NRestarts",
    "ActiveEnterTimestamp",
    "ExecMainStartTimestamp",
    "RuntimeMaxUSec",
)
_PROGRESS = (
    "Id",
    "LoadState",
    "ActiveState",
    "Job",
    "Result",
    "InactiveExitTimestampMonotonic",
    "ActiveEnterTimestampMonotonic",
)


def systemd_run(
    kind: ManagerKind,
    unit: str,
    properties: Iterable[tuple[str, str]],
    argv: Sequence[str],
    *,
    options: Sequence[str] = (),
) -> list[str]:
    """Build the command line that starts a transient unit: to run it, and to show it.

    Args:
        kind: Whose manager.
        unit: The unit's name.
        properties: Directives and values, in the words of unit files.
        argv: What the unit runs, literally: a ``$`` is doubled, for systemd would expand it.
        options: Further options of systemd-run(1), such as ``--collect``.

    Returns:
        The words; `shlex.join` makes a line of them.
    """
    rows = [f"--property={name}={value}" for name, value in properties]
    literal = [*argv[:1], *(word.replace("$", "$$") for word in argv[1:])]
    return ["systemd-run", f"--{kind}", f"--unit={unit}", *options, *rows, "--", *literal]


class CommandManager:
    """A `Manager` by commands.

    Args:
        kind: Whose manager.
        runtime_dir: Its ``%t`` (`understudy.manager.find_runtime_dir`).
        note: What people should know of the choice.
    """

    def __init__(self, kind: ManagerKind, runtime_dir: Path, *, note: str = "") -> None:
        self.kind = kind
        self.runtime_dir = runtime_dir
        self.unit_dir = runtime_dir / "systemd" / kind.value
        self.note = note

    def start_transient(
        self, unit: Transient, auxiliary: Sequence[Transient], *, stdin: int, timeout_s: float
    ) -> None:
        """See `Manager.start_transient`."""
        for each in (unit, *auxiliary):
            ours(each.unit)
        calls = [None if each.stdin is not None else _transient_call(each) for each in auxiliary]
        deadline = time.monotonic() + timeout_s
        guard, others = CommandJobs(self, [unit.unit]), [each.unit for each in auxiliary]
        self._create_with_stdin(unit, stdin, deadline)
        with self._stopped_on_error(unit.unit):
            _wait_for_start(guard, [unit.unit], deadline)
            jobs = CommandJobs(self, others)
            for each, words in zip(auxiliary, calls, strict=True):
                if words is None:
                    self._create_with_stdin(each, each.stdin, deadline)
                    continue
                done = self.run("busctl", "--quiet", "--", "call", *words)
                if done.returncode:
                    raise self._error("start", each.unit, done.stderr, creating=True)
            _wait_for_start(jobs, others, deadline)

    def _create_with_stdin(self, unit: Transient, stdin: int | None, deadline: float) -> None:
        """Create a unit through ``systemd-run --pipe``, which alone hands over a descriptor.

        It would stay for as long as the unit runs. Once it has said that the unit is there it
        has done its part and is ended, which leaves the unit as it is.
        """
        options = ("--pipe", "--no-ask-password")
        words = systemd_run(self.kind, unit.unit, unit.properties, unit.command, options=options)
        said = b""
        with subprocess.Popen(
            words,
            env=self._environment(),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the caller, who then stops the unit.
        ) as process:
            assert process.stderr is not None
            try:
                with self._stopped_on_error(unit.unit):
                    poll = select.poll()
                    poll.register(process.stderr, select.POLLIN)
                    while b"Running as unit" not in said:
                        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                            raise ManagerError(f"Cannot start '{unit.unit}': not done in time")
                        more = os.read(process.stderr.fileno(), 4096)
                        if not more:
                            break
                        said += more
            finally:
                process.kill()
        if b"Running as unit" not in said:
            raise self._error("start", unit.unit, said.decode(errors="replace"), creating=True)

    @contextlib.contextmanager
    def _stopped_on_error(self, unit: str) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.run("systemctl", "stop", "--no-block", "--", unit)
            raise

    def create(self, units: Sequence[Transient]) -> builtins.list[RunnerJobs | CommandJobs]:
        """See `Manager.create`; a property that is refused is a failed job."""
        lines = {
            unit.unit: systemd_run(
                self.kind, unit.unit, unit.properties, unit.command, options=["--quiet"]
            )
            for unit in units
            if unit.stdin is None
        }
        jobs: builtins.list[RunnerJobs | CommandJobs] = []
        if lines:
            jobs.append(RunnerJobs(self, lines))
        if given := [unit for unit in units if unit.stdin is not None]:
            jobs.append(CommandJobs(self, [ours(unit.unit) for unit in given]))
            deadline = time.monotonic() + _CREATE_TIMEOUT_S
            for unit in given:
                self._create_with_stdin(unit, unit.stdin, deadline)
        return jobs

    def start(self, units: Sequence[str]) -> CommandJobs:
        """See `Manager.start`."""
        return self._jobs("start", units, "fail")

    def restart(self, unit: str) -> CommandJobs:
        """See `Manager.restart`."""
        return self._jobs("restart", [unit], "replace")

    def _jobs(self, verb: str, units: Sequence[str], mode: str) -> CommandJobs:
        for unit in units:
            ours(unit)
        jobs = CommandJobs(self, units)
        done = self.run("systemctl", verb, "--no-block", f"--job-mode={mode}", "--", *units)
        if units and done.returncode:
            raise self._error(verb, self._missing(units) or units[0], done.stderr)
        return jobs

    def stop(self, units: Sequence[str], *, timeout_s: float, forget: Sequence[str] = ()) -> None:
        """See `Manager.stop`."""
        for unit in (*units, *forget):
            ours(unit)
        if not units:
            return
        try:
            done = self.run("systemctl", "stop", "--", *units, timeout_s=timeout_s)
            reason = done.stderr
        except subprocess.TimeoutExpired:
            reason = f"not stopped within {timeout_s:g} s"
        # The exit status does not tell a unit that is gone from one that cannot be stopped.
        for unit, state in zip(units, self.show(units, ("Id", "ActiveState")), strict=True):
            if state["ActiveState"] not in _DEAD:
                raise self._error("stop", unit, reason)
        self.reset_failed(forget)

    def begin_stop(self, units: Sequence[str]) -> None:
        """See `Manager.begin_stop`; whether it was refused is told by `stop`."""
        for unit in units:
            ours(unit)
        if units:
            self.run("systemctl", "stop", "--no-block", "--", *units)

    def reset_failed(self, units: Sequence[str]) -> None:
        """See `Manager.reset_failed`."""
        for unit in units:
            ours(unit)
        if not units:
            return
        done = self.run("systemctl", "reset-failed", "--", *units)
        if done.returncode:
            for unit, state in zip(units, self.show(units, ("Id", "ActiveState")), strict=True):
                if state["ActiveState"] == "failed":
                    raise self._error("reset", unit, done.stderr)

    def kill(self, unit: str, signal: int, *, whole: bool = False) -> None:
        """See `Manager.kill`."""
        whom = "all" if whole else "main"
        done = self.run(
            "systemctl", "kill", f"--kill-whom={whom}", f"--signal={signal}", "--", ours(unit)
        )
        if done.returncode:
            raise self._error("kill", unit, done.stderr)

    def status(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        """See `Manager.status`; its times are whole seconds."""
        return dict(zip(units, map(_status, self.show(units, _STATUS)), strict=True))

    def list(self, patterns: Sequence[str]) -> dict[str, UnitStatus]:
        """See `Manager.list`."""
        done = self.run("systemctl", "list-units", "--all", "--output=json", "--", *patterns)
        if done.returncode:
            raise self._error("list", " ".join(patterns), done.stderr)
        return self.status([row["unit"] for row in json.loads(done.stdout)])

    def properties(self, unit: str, names: Sequence[str]) -> dict[str, str]:
        """See `Manager.properties`."""
        return self.show([unit], names)[0]

    def cat(self, unit: str) -> str:
        """See `Manager.cat`."""
        found = self.properties(unit, ("FragmentPath", "DropInPaths"))
        if not found["FragmentPath"]:
            raise NoSuchUnitError(
                f"Cannot show '{unit}': it has no unit file",
                hint=f"those there are: systemctl --{self.kind} list-unit-files",
            )
        texts = []
        for path in (found["FragmentPath"], *split(found["DropInPaths"], relaxed=True)):
            try:
                texts.append(f"# {path}\n{Path(path).read_text()}")
            except PermissionError as exc:
                raise AccessDeniedError(f"Cannot read '{path}': {exc.strerror}") from exc
            except OSError as exc:
                raise ManagerError(f"Cannot read '{path}': {exc.strerror}") from exc
        return "\n".join(texts)

    def show(self, units: Sequence[str], names: Sequence[str]) -> builtins.list[dict[str, str]]:
        """Properties of each unit, as ``systemctl show`` prints them.

        Args:
            units: The units, each as often as it is wanted.
            names: The properties. Of several units none may have a value with an empty line.
        """
        if not units:
            return []
        done = self.run(
            "systemctl", "show", "--timestamp=unix", f"--property={','.join(names)}", "--", *units
        )
        if done.returncode:
            raise self._error("show", " ".join(units), done.stderr)
        blocks = parse_show(done.stdout, names, several=len(units) > 1)
        if len(blocks) != len(units):
            raise ManagerError(f"Cannot show '{' '.join(units)}': an answer is missing")
        return blocks

    def run(
        self, program: str, *words: str, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of systemd's commands for this manager.

        Args:
            program: ``systemctl`` or ``busctl``.
            words: Its arguments.
            timeout_s: Seconds after which it is ended.

        Raises:
            NoManagerError: The program is not there.
            subprocess.TimeoutExpired: The time is over.
        """
        try:
            return subprocess.run(
                [program, f"--{self.kind}", "--no-pager", *words],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError as exc:
            raise NoManagerError(
                f"Cannot run '{program}': {exc.strerror}", hint="apt install systemd"
            ) from exc

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **bus_variables(self),
            "LC_ALL": "C.UTF-8",
            "SYSTEMD_COLORS": "0",
            "SYSTEMD_LOG_LEVEL": "info",
            "SYSTEMD_LOG_TARGET": "console",
        }

    def _missing(self, units: Sequence[str]) -> str | None:
        """The first of these units that the manager does not know."""
        states = self.show(units, ("Id", "LoadState"))
        return next(
            (unit for unit, s in zip(units, states, strict=True) if s["LoadState"] == "not-found"),
            None,
        )

    def _error(self, verb: str, unit: str, said: str, *, creating: bool = False) -> ManagerError:
        """The error of a failed command, which gives no more of it than a text.

        So its kind is found by looking: at the unit, and for the two texts of a refusal.
        """
        text = next(iter(said.strip().splitlines()), "no reason is given")
        if text.startswith(("Failed to ", "Call failed: ")):
            text = text.partition(": ")[2] or text
        message = f"Cannot {verb} '{unit}': {text}"
        if "Access denied" in text or "authentication required" in text:
            return AccessDeniedError(message, hint=NO_RIGHT_HINT)
        missing = verb not in ("show", "list") and self._missing([unit]) is not None
        if creating:
            return ManagerError(message) if missing else UnitExistsError(message)
        return NoSuchUnitError(message) if missing else ManagerError(message)


class CommandJobs:
    """`Jobs` that asks for each unit's state, at first every millisecond, then less often.

    Args:
        manager: Where the units are.
        units: The units. What they did before this moment is of no interest.
    """

    said: Mapping[str, str] = MappingProxyType({})

    def __init__(self, manager: CommandManager, units: Sequence[str]) -> None:
        self._manager = manager
        self._waiting = list(units)
        self._up: builtins.list[str] = []
        self._begun_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._interval_s = _FIRST_POLL_S
        self._next = time.monotonic()

    def wait(self, timeout_s: float) -> builtins.list[tuple[str, str]]:
        """See `Jobs.wait`."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if self._next > deadline:
                time.sleep(max(0.0, deadline - now))
                return []
            time.sleep(max(0.0, self._next - now))
            asked = time.monotonic()
            news = self._look()
            answered = time.monotonic()
            self._interval_s = _FIRST_POLL_S if news else min(self._interval_s * 2, _LAST_POLL_S)
            # Asking about many units keeps the manager from starting them.
            self._next = answered + max(self._interval_s, answered - asked)
            if news or answered >= deadline:
                return news

    def close(self) -> None:
        """See `Jobs.close`."""
        self._waiting.clear()
        self._up.clear()

    def _look(self) -> builtins.list[tuple[str, str]]:
        news = []
        units = [*self._waiting, *self._up]
        for unit, state in zip(units, self._manager.show(units, _PROGRESS), strict=True):
            if unit in self._waiting and (result := job_result(state, self._begun_usec)):
                news.append((unit, result))
                self._waiting.remove(unit)
                if result == "done":
                    self._up.append(unit)
            if unit in self._up and state["ActiveState"] in _DEAD:
                news.append((unit, "died"))
                self._up.remove(unit)
        return news


def job_result(state: Mapping[str, str], begun_usec: int) -> str | None:
    """What a start job came to, by what is left of it: a unit's state and times.

    Args:
        state: The properties ``_PROGRESS`` of the unit.
        begun_usec: CLOCK_MONOTONIC in microseconds at which the job was not yet queued.

    Returns:
        The result; None as long as there is a job.
    """
    if state["Job"]:
        return None
    active = state["ActiveState"]
    left_inactive = int(state["InactiveExitTimestampMonotonic"])
    became_active = int(state["ActiveEnterTimestampMonotonic"])
    if (
        active in ("active", "reloading", "refreshing")
        or became_active >= left_inactive >= begun_usec
    ):
        return "done"
    if state["LoadState"] == "not-found":
        return "failed"  # It was forgotten at its end (CollectMode=).
    if left_inactive < begun_usec:
        return "dependency"  # It was never tried.
    finished = active == "inactive" and state.get("Result", "success") == "success"
    return "done" if finished else "failed"  # A oneshot goes from activating to inactive.


def parse_show(text: str, names: Iterable[str], *, several: bool = True) -> list[dict[str, str]]:
    """Read what ``systemctl show --property=…`` prints.

    A value may have several lines: a line is a property only if it begins with a name that was
    asked for.

    Args:
        text: The output.
        names: The names asked for.
        several: Whether an empty line may part two units.

    Returns:
        The properties of each unit, in the order asked for.
    """
    known = frozenset(names)
    blocks: list[dict[str, str]] = [{}]
    name = ""
    lines = text.removesuffix("\n").split("\n") if text else []
    for at, line in enumerate(lines):
        key, equals, value = line.partition("=")
        if equals and key in known:
            if several and name and lines[at - 1] == "":
                blocks[-1][name] = blocks[-1][name].removesuffix("\n")
                blocks.append({})
            name = key
            blocks[-1][name] = value
        elif name:
            blocks[-1][name] += f"\n{line}"
    return blocks


def _status(shown: Mapping[str, str]) -> UnitStatus:
    """A `UnitStatus` of the properties ``_STATUS``."""
    active = shown["ActiveState"] == "active"
    cpu = shown.get("CPUUsageNSec", "")
    limit = shown.get("RuntimeMaxUSec", "infinity")
    return UnitStatus(
        unit=shown["Id"],
        load_state=shown["LoadState"],
        active_state=shown["ActiveState"],
        sub_state=shown["SubState"],
        result=shown.get("Result", "") if shown["LoadState"] != "not-found" else "",
        exit_code=int(shown.get("ExecMainCode", 0)),
        exit_status=int(shown.get("ExecMainStatus", 0)),
        main_pid=int(shown.get("MainPID", 0)),
        control_group=shown.get("ControlGroup", ""),
        invocation_id=shown.get("InvocationID", ""),
        description=shown["Description"],
        environment=environment(split(shown.get("Environment", ""), relaxed=True)),
        cpu_usage_nsec=int(cpu) if cpu.isdecimal() else None,
        n_restarts=int(shown.get("NRestarts", 0)),
        active_since_s=_seconds(shown.get("ActiveEnterTimestamp", "")) if active else 0.0,
        exec_main_start_s=_seconds(shown.get("ExecMainStartTimestamp", "")),
        runtime_max_s=None if limit == "infinity" else microseconds(limit) / 1e6,
    )


def _seconds(timestamp: str) -> float:
    """A time that ``--timestamp=unix`` printed."""
    return float(timestamp.removeprefix("@")) if timestamp.startswith("@") else 0.0


def _wait_for_start(jobs: CommandJobs, units: Sequence[str], deadline: float) -> None:
    """Return when the start jobs of these units are done."""
    waiting = set(units)
    while waiting:
        for unit, word in jobs.wait(max(0.0, deadline - time.monotonic())):
            if word != "done":
                raise ManagerError(f"Cannot start '{unit}': job {word}")
            waiting.discard(unit)
        if waiting and time.monotonic() >= deadline:
            raise ManagerError(f"Cannot start '{min(waiting)}': not done in time")


def _transient_call(unit: Transient) -> list[str]:
    """The words of busctl(1) for the StartTransientUnit call of a unit."""
    signature = "ssa(sv)a(sa(sv))"
    others = [(ours(each.unit), _rows(each)) for each in unit.known]
    manager = "org.freedesktop.systemd1"
    path = "/org/freedesktop/systemd1"
    call = [manager, path, f"{manager}.Manager", "StartTransientUnit", signature]
    return [*call, *busctl_words(signature, [unit.unit, "fail", _rows(unit), others])]


def _rows(unit: Transient) -> list[tuple[str, tuple[str, object]]]:
    properties = [each for name, value in unit.properties for each in typed(name, value)]
    if unit.command:
        properties.append(command(unit.command))
    return [(each.name, (each.signature, each.value)) for each in properties]


def busctl_words(signature: str, values: Iterable[object]) -> list[str]:
    """D-Bus values as busctl(1) takes them: arrays with their length, variants with their type."""
    words: list[str] = []
    for each, value in zip(complete_types(signature), values, strict=True):
        items = cast("Sequence[object]", value)
        if each == "v":
            words += [str(items[0]), *busctl_words(str(items[0]), items[1:])]
        elif each[0] == "a":
            words.append(str(len(items)))
            words += [word for item in items for word in busctl_words(each[1:], [item])]
        elif each[0] == "(":
            words += busctl_words(each[1:-1], items)
        else:
            words.append(str(value).lower() if each == "b" else str(value))
    return words
