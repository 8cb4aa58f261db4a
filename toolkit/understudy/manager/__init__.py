"""A systemd manager, behind one small Protocol.

`connect` gives the quickest `Manager` that works here: by D-Bus where pystemd is installed,
else by the ``systemctl``, ``systemd-run`` and ``busctl`` commands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from understudy.errors import AccessDeniedError, NoManagerError
from understudy.model import OURS, ManagerKind

NO_RIGHT_HINT = "The system manager is root's: as root, or on your own with --manager user"
"""What helps whoever is refused by a manager."""

_BED_HINT = "boot a throwaway one from this very machine, as root: understudy bed -- COMMAND"


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
        stdin: The descriptor that is its standard input; None: none.
        known: Units that the manager gets to know with it and does not start: it needs them
            ordered, so that they are not forgotten, and what needs them starts them.
    """

    unit: str
    properties: Sequence[tuple[str, str]] = ()
    command: Sequence[str] = ()
    stdin: int | None = None
    known: Sequence[Transient] = ()


class Jobs(Protocol):
    """Start jobs under way: who waits for them, and who is told of deaths meanwhile."""

    def wait(self, timeout_s: float) -> list[tuple[str, str]]:
        """Wait for news, at most so long.

        Args:
            timeout_s: Seconds to wait, from about 1 ms; 0 takes only what is already known.

        Returns:
            ``(unit, word)`` pairs as they come: a finished job's result (``done``, ``failed``,
            ``dependency``, ``timeout``, ``canceled``), or ``died`` when a unit of this batch
            whose job was done has since become failed or inactive. Empty if the time is over.

        Raises:
            ManagerError: The manager is gone.
        """

    def close(self) -> None:
        """Stop listening; the jobs go on. Closing twice does no harm."""

    @property
    def said(self) -> Mapping[str, str]:
        """What was said of a failure, by unit, where that is not in the journal."""


class Manager(Protocol):
    """One systemd manager.

    Each call is complete in itself: no connection to the manager is kept open between two, so
    an idle owner costs the manager nothing. Every method raises ManagerError or one of its kinds.
    Whatever changes a unit refuses, with AccessDeniedError, a name that does not begin with
    ``understudy-`` (`understudy.manager.ours`, the one place).
    """

    @property
    def kind(self) -> ManagerKind:
        """Whose manager it is."""

    @property
    def runtime_dir(self) -> Path:
        """``%t``: /run, or the user's /run/user/UID."""

    @property
    def unit_dir(self) -> Path:
        """Where unit files of this boot go: ``%t/systemd/system`` or ``%t/systemd/user``."""

    @property
    def note(self) -> str:
        """One line for people on what makes this manager slower than need be; "" if nothing."""

    def start_transient(
        self, unit: Transient, auxiliary: Sequence[Transient], *, stdin: int, timeout_s: float
    ) -> None:
        """Create and start a transient unit, with others beside it.

        What is begun is gone with ``unit`` if the caller dies half-way; if this call fails,
        nothing of it is left running.

        Args:
            unit: The unit to start.
            auxiliary: Units beside it that it wants (``Wants=``), or that such a one is in
                (``Slice=``); bind them to it (``BindsTo=``, ``After=``), so that they end with it.
                One comes after those that it needs.
            stdin: The descriptor that is its standard input.
            timeout_s: Seconds until all their jobs must be done.

        Raises:
            UnitExistsError: A unit of one of these names is loaded.
            ManagerError: A property is unknown, or a job did not end as ``done`` in time.
        """

    def create(self, units: Sequence[Transient]) -> Sequence[Jobs]:
        """Create transient services and queue a start job for each, all at once.

        Returns:
            Their jobs: of one or more kinds, each to be waited for and closed.

        Raises:
            UnitExistsError: A unit of one of these names is loaded; those before it have jobs.
            NoSuchUnitError: What one of them is bound to is gone.
            ManagerError: A property is refused.
        """

    def start(self, units: Sequence[str]) -> Jobs:
        """Queue a start job for each of them (mode ``fail``), all at once, and give the jobs.

        Raises:
            NoSuchUnitError: One of them has no unit file; those before it have their jobs.
        """

    def restart(self, unit: str) -> Jobs:
        """Queue a restart job (mode ``replace``) and give it.

        Raises:
            NoSuchUnitError: It has no unit file.
        """

    def stop(self, units: Sequence[str], *, timeout_s: float, forget: Sequence[str] = ()) -> None:
        """Stop each of them and return when their jobs are done; a unit that is gone is no error.

        Args:
            units: The units; their jobs are queued at once and run in parallel.
            timeout_s: Seconds until all must be stopped.
            forget: Units of which it is forgotten afterwards that they failed (`reset_failed`).

        Raises:
            ManagerError: One is still stopping then, or was started again meanwhile.
        """

    def begin_stop(self, units: Sequence[str]) -> None:
        """Queue a stop job for each of them and do not wait; a unit that is gone is no error."""

    def reset_failed(self, units: Sequence[str]) -> None:
        """Forget that they failed; a unit that is gone is no error."""

    def kill(self, unit: str, signal: int, *, whole: bool = False) -> None:
        """Send a signal to the main process.

        Args:
            unit: The unit.
            signal: The signal's number.
            whole: To all of its processes instead.

        Raises:
            NoSuchUnitError: The unit is not loaded.
            ManagerError: It has no main process.
        """

    def status(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        """What the manager says of each, by the name that was asked for.

        ``load_state`` is ``not-found`` for a unit that it does not know. A unit that has a file
        but is not loaded is loaded for the answer, as ``systemctl show`` does.
        """

    def list(self, patterns: Sequence[str]) -> dict[str, UnitStatus]:
        """`status` of every loaded unit whose name matches one of the glob patterns."""

    def properties(self, unit: str, names: Sequence[str]) -> dict[str, str]:
        """Properties as ``systemctl show`` prints them, by name; unknown names are left out."""

    def cat(self, unit: str) -> str:
        """The unit's text as it is installed: its file, then its drop-ins, each under a line
        with its path, as ``systemctl cat`` prints them.

        Raises:
            NoSuchUnitError: It has no file.
        """


def ours(unit: str) -> str:
    """Let a unit be changed only if its name says that it is the toolkit's own.

    Everything that starts, changes or stops a unit asks here: production, and whatever else the
    host runs, is out of reach of a slip.

    Args:
        unit: The name of the unit about to be changed.

    Returns:
        The name.

    Raises:
        AccessDeniedError: It does not begin with ``understudy-``.
    """
    if not unit.startswith(OURS):
        raise AccessDeniedError(
            f"Cannot change '{unit}': it is not a unit of understudy",
            hint=f"understudy starts, changes and stops only units named {OURS}…; "
            "for all others use systemctl",
        )
    return unit


def bus_variables(manager: Manager) -> dict[str, str]:
    """The environment in which systemd's commands find this manager, wherever the shell is.

    ``su -``, ``sudo -u`` and cron lose ``XDG_RUNTIME_DIR``.
    """
    if manager.kind is ManagerKind.SYSTEM:
        return {}
    return {
        "XDG_RUNTIME_DIR": str(manager.runtime_dir),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={manager.runtime_dir}/bus",
    }


def connect(
    kind: ManagerKind | None = None, *, prefer: Literal["dbus", "commands"] | None = None
) -> Manager:
    """Give a manager by the quickest means that works here.

    Args:
        kind: Which; None: root's is the system's, anybody else's the own user manager.
        prefer: How to talk to it; None: D-Bus if pystemd can be imported, else the commands.

    Raises:
        NoManagerError: There is no such manager in reach, or pystemd is asked for and missing.
    """
    if kind is None:
        kind = ManagerKind.USER if os.geteuid() else ManagerKind.SYSTEM
    runtime_dir = find_runtime_dir(kind)
    if prefer != "commands":
        try:
            from understudy.manager.dbus import DbusManager
        except ImportError as exc:
            if prefer == "dbus":
                raise NoManagerError(
                    f"Cannot reach the {kind} manager by D-Bus: {exc}",
                    hint="apt install python3-pystemd, or: pip install 'understudy[dbus]'",
                ) from exc
        else:
            return DbusManager(kind, runtime_dir)
    from understudy.manager.commands import CommandManager

    note = "pystemd is not installed: each call costs a process (apt install python3-pystemd)"
    return CommandManager(kind, runtime_dir, note="" if prefer == "commands" else note)


def find_runtime_dir(kind: ManagerKind, *, root: Path = Path("/")) -> Path:
    """Find the runtime directory (``%t``) of a manager that runs.

    ``XDG_RUNTIME_DIR`` is only a hint: ``su -``, ``sudo -u`` and cron lose it, and ``su`` and
    ``sudo -E`` bring that of another user along.

    Args:
        kind: Whose manager.
        root: The root of the file system.

    Raises:
        NoManagerError: No such manager runs; the hint says how to get one.
    """
    booted = (root / "run/systemd/system").is_dir()  # sd_booted(3)
    if kind is ManagerKind.SYSTEM:
        if not booted:
            raise NoManagerError(
                "Cannot reach the system manager: this machine was not booted with systemd",
                hint=_BED_HINT,
            )
        return root / "run"
    uid = os.geteuid()
    usual = root / f"run/user/{uid}"
    named = os.environ.get("XDG_RUNTIME_DIR")
    for path in (Path(named), usual) if named else (usual,):
        try:
            if path.stat().st_uid == uid and (path / "systemd/private").is_socket():
                return path
        except OSError:
            continue
    if not booted:
        hint = _BED_HINT
    elif usual.is_dir():
        hint = f"sudo systemctl start user@{uid}.service"
    else:
        hint = f"sudo loginctl enable-linger {_user_name(uid)}"
    raise NoManagerError(
        f"Cannot reach the user manager of {_user_name(uid)}: it does not run", hint=hint
    )


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
