"""A systemd manager, behind one small Protocol.

`connect` gives the quickest `Manager` that works here: by D-Bus where pystemd is installed,
else by the ``systemctl``, ``systemd-run`` and ``busctl`` commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from understudy.model import ManagerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitStatus:
    """What a manager says of one unit, at one time.

    Attributes:
        unit: Its name.
        load_state: ``loaded``, ``not-found``, …
        active_state: ``active``, ``activating``, ``failed``, … (systemctl(1)).
        sub_state: The state of its kind: ``running``, ``listening``, …
        result: ``success``, ``exit-code``, ``signal``, ``timeout``, … ("" where it has none).
        exit_code: ``si_code`` of the main process's end (1 exited, 2 killed, 3 dumped; 0 none).
        exit_status: Its exit status or signal number.
        main_pid: 0 if none.
        control_group: Path of its cgroup in the manager's view; "" if none.
        invocation_id: 32 hex digits; "" if it never ran.
        description: Its description.
        environment: Its ``Environment=``, by name.
        cpu_usage_nsec: CPU time used; None where it is not counted.
        n_restarts: How often systemd restarted it.
        active_since_s: CLOCK_REALTIME seconds at which it became active; 0 if it is not.
        exec_main_start_s: CLOCK_REALTIME seconds at which its main process started; 0 if never.
        runtime_max_s: ``RuntimeMaxSec=`` in seconds; None if infinite or not applicable.
    """

    unit: str
    load_state: str
    active_state: str
    sub_state: str
    result: str = ""
    exit_code: int = 0
    exit_status: int = 0
    main_pid: int = 0
    control_group: str = ""
    invocation_id: str = ""
    description: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    cpu_usage_nsec: int | None = None
    n_restarts: int = 0
    active_since_s: float = 0.0
    exec_main_start_s: float = 0.0
    runtime_max_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transient:
    """A transient unit, in the words of unit files.

    Attributes:
        unit: Its name.
        properties: Directive and value (``("RuntimeMaxSec", "3600")``), in order; without
            ExecStart. Specifiers are not expanded in transient units.
        command: The argv of ``ExecStart=``, taken literally ($ and % stay); empty if it has none.
    """

    unit: str
    properties: Sequence[tuple[str, str]] = ()
    command: Sequence[str] = ()


class Jobs(Protocol):
    """Start jobs under way: who waits for them, and who is told of deaths meanwhile."""

    def wait(self, timeout_s: float) -> Iterable[tuple[str, str]]:
        """Wait for news, at most so long.

        Gives ``(unit, word)`` pairs as they come: a finished job's result (``done``, ``failed``,
        ``dependency``, ``timeout``, ``canceled``), or ``died`` when a unit of this batch whose
        job was done has since become failed or inactive. An empty answer means that the time
        is over.
        """

    def close(self) -> None:
        """Stop listening; the jobs go on."""


class Manager(Protocol):
    """One systemd manager.

    Each call is complete in itself: no connection to the manager is kept open between two, so
    an idle owner costs the manager nothing. Every method raises ManagerError or one of its kinds.
    Whatever changes a unit refuses, with AccessDeniedError, a name that does not begin with
    ``understudy-`` (`understudy.manager.ours`, the one place).
    """

    kind: ManagerKind
    runtime_dir: Path
    """``%t``: /run, or $XDG_RUNTIME_DIR."""
    unit_dir: Path
    """Where unit files of this boot go: ``%t/systemd/system`` or ``%t/systemd/user``."""

    def start_transient(
        self, unit: Transient, auxiliary: Sequence[Transient], *, stdin: int, timeout_s: float
    ) -> None:
        """Create and start ``unit``, with descriptor ``stdin`` as its standard input, and load
        ``auxiliary`` beside it (they are started where ``unit`` needs them); return when all
        their jobs are done. What is begun is gone with ``unit`` if the caller dies half-way.
        """

    def start(self, units: Sequence[str]) -> Jobs:
        """Queue a start job for each of them (mode ``fail``), all at once, and give the jobs."""

    def stop(self, units: Sequence[str], *, timeout_s: float) -> None:
        """Stop each of them and return when their jobs are done; a unit that is gone is no error."""

    def reset_failed(self, units: Sequence[str]) -> None:
        """Forget that they failed; a unit that is gone is no error."""

    def kill(self, unit: str, signal: int) -> None:
        """Send a signal to the main process."""

    def restart(self, unit: str) -> Jobs:
        """Queue a restart job."""

    def status(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        """What the manager says of each (``load_state`` is ``not-found`` for one it does not know)."""

    def list(self, patterns: Sequence[str]) -> dict[str, UnitStatus]:
        """`status` of every loaded unit whose name matches one of the glob patterns."""

    def properties(self, unit: str, names: Sequence[str]) -> dict[str, str]:
        """Properties as ``systemctl show`` prints them, by name; unknown names are left out."""

    def cat(self, unit: str) -> str:
        """The unit's text as it is installed: its file, then its drop-ins (``systemctl cat``)."""
