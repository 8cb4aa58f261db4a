"""The owner's side of a run's guard: begin it, and hand it what must live as long as the run.

Three transient units make the frame of a run (docs/architecture.md has the picture):

- ``understudy-guard@RUN.service``: its main process (`guard_program`) waits for the owner's end;
- ``understudy-RUN.slice``: holds everything of the run; on the system manager there is an
  ``understudy-RUN-guarded.slice`` in it, which keeps its members from production's ports and
  starts with the first of them;
- ``understudy-clean@RUN.service``: stopped after the last instance, it removes the run's files.

The last two are bound to the first, and so is every instance: whatever ends the guard ends all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from understudy import names
from understudy.errors import RunError
from understudy.manager import Manager, Transient
from understudy.model import ManagerKind

DESCRIPTORS_PER_MESSAGE = 253
"""SCM_MAX_FD of unix(7): a message with more descriptors is refused."""

# No vowels, so no words; no 0, 1 or l, so nothing to misread.
RUN_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
"""What ids of runs are made of, after an ``r``."""

CLEAN_TIMEOUT_S = 20
ANSWER_TIMEOUT_S = 10


class Guard:
    """A run's guard, as its owner has it. Made by `Guard.start`."""

    def __init__(self, run: str, channel: socket.socket) -> None:
        self.run = run
        self.unit = names.guard_unit(run)
        self._channel = channel
        self._inode = os.fstat(channel.fileno()).st_ino
        self._asking = threading.Lock()

    @classmethod
    def start(
        cls,
        manager: Manager,
        run: str,
        *,
        owner_pid: int,
        lifetime_s: float | None,
        held: Mapping[str, int],
        timeout_s: float,
        part_of: str | None = None,
        bare: bool = False,
        denied: Sequence[str] = (),
        beside: Sequence[Transient] = (),
    ) -> Guard:
        """Begin a run: guard, slice and clean-up unit in one go.

        The owner's pidfd lies in the guard's channel before the guard exists, so an owner that is
        killed at any moment leaves nothing: either the manager was never asked, or the guard
        finds its owner dead.

        Args:
            manager: Where the run lives.
            run: Its id.
            owner_pid: The process whose end ends the run, until `detach`.
            lifetime_s: Seconds after which the run ends whatever happens; None for ever.
            held: Descriptors that live as long as the run, by name.
            timeout_s: Deadline in seconds for the whole call.
            part_of: A unit with whose stop the run ends as well.
            bare: Do without the clean-up unit: nothing of the run will be a file.
            denied: What members of the guarded slice may not bind: rules of SocketBindDeny=.
            beside: Further units of the run that start with it.

        Raises:
            RunError: The owner is gone already.
            ManagerError: The manager refused.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(ANSWER_TIMEOUT_S)
        guard = cls(run, ours)
        held_together = [_slice_unit(run)] if bare else frame(manager, run, denied)
        others = [*held_together, *beside]
        try:
            guard._own(owner_pid)
            guard.hold(held)
            manager.start_transient(
                _guard_unit(
                    manager,
                    run,
                    owner_pid=owner_pid,
                    lifetime_s=lifetime_s,
                    part_of=part_of,
                    # The clean-up unit brings the slice with it. Without one nothing would: systemd
                    # makes a slice of its own at the first use, and that stays for ever.
                    bare=bare,
                    wants=[one.unit for one in others if bare or not one.unit.endswith(".slice")],
                ),
                others,
                stdin=theirs.fileno(),
                timeout_s=timeout_s,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return guard

    def hold(self, descriptors: Mapping[str, int]) -> None:
        """Have copies of these descriptors kept open for as long as the run lives.

        Args:
            descriptors: By a name without a space.

        Raises:
            RunError: The guard is gone: the run has ended; or it does not answer.
        """
        keys = list(descriptors)
        for first in range(0, len(keys), DESCRIPTORS_PER_MESSAGE):
            part = keys[first : first + DESCRIPTORS_PER_MESSAGE]
            message = " ".join(["hold", *part]).encode()
            self._send(message, [descriptors[key] for key in part])

    def hurry(self) -> None:
        """Have the kernel ready for the start of a service, some milliseconds before it.

        Raises:
            RunError: The guard is gone: the run has ended; or it does not answer.
        """
        self._send(b"hurry", [])

    def free(self, keys: Sequence[str]) -> None:
        """Have these descriptors closed, and wait for it; after the run's end nothing is to do."""
        if keys:
            # One question at a time: each thread gets the answer to its own.
            with self._asking, contextlib.suppress(RunError, OSError):
                self._send(" ".join(["free", *keys]).encode(), [])
                self._channel.recv(16)

    def detach(self, *, lifetime_s: float | None = None) -> None:
        """Let the run live on without its owner.

        Args:
            lifetime_s: Seconds after which it ends whatever happens; None: as it was begun.

        Raises:
            RunError: The guard is gone: the run has ended; or it does not answer.
        """
        self._send(b"detach" if lifetime_s is None else f"detach {lifetime_s:.3f}".encode(), [])

    def close(self) -> None:
        """Give up the channel. An owned run goes on until its owner's end.

        An owner may have closed all of its descriptors, and opened others since.
        """
        if self.is_open():
            self._channel.close()
        else:
            self._channel.detach()

    def is_open(self) -> bool:
        """Whether this process still has the channel: it may have closed all its descriptors."""
        try:
            return os.fstat(self._channel.fileno()).st_ino == self._inode
        except OSError:
            return False

    def _own(self, owner_pid: int) -> None:
        try:
            pidfd = os.pidfd_open(owner_pid)
        except ProcessLookupError as exc:
            raise RunError(
                f"Cannot begin run '{self.run}': its owner (PID {owner_pid}) is gone"
            ) from exc
        try:
            self._send(b"own", [pidfd])
        finally:
            os.close(pidfd)

    def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        if not self.is_open():
            raise RunError(
                f"Cannot use run '{self.run}': the connection to its guard has been closed",
                hint="did this process close all of its descriptors? The run still ends with it",
            )
        try:
            socket.send_fds(self._channel, [message], list(descriptors))
        except OSError as exc:
            ended = isinstance(exc, (BrokenPipeError, ConnectionResetError))
            raise RunError(
                f"Cannot use run '{self.run}': "
                + ("it has ended" if ended else f"its guard cannot be told: {exc.strerror or exc}"),
                hint=f"See: journalctl -t {self.unit.removesuffix('.service')}",
            ) from exc


def take_id() -> tuple[str, socket.socket]:
    """A run id that no live run of this host has, and the name that says so to all users."""
    while True:
        run = "r" + "".join(RUN_ALPHABET[byte % len(RUN_ALPHABET)] for byte in os.urandom(5))
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(f"\0understudy/run/{run}")
            name.listen()
        except OSError as exc:
            name.close()
            if exc.errno != errno.EADDRINUSE:
                raise
        else:
            return run, name


def frame(manager: Manager, run: str, denied: Sequence[str] = ()) -> list[Transient]:
    """The units that hold a run together beside its guard: its slice, and what cleans up.

    Args:
        manager: Where the run lives.
        run: Its id.
        denied: What members of the guarded slice may not bind: rules of SocketBindDeny=.
    """
    by_slice = manager.kind is ManagerKind.SYSTEM and denied
    guarded = [_guarded_slice_unit(run, denied)] if by_slice else []
    return [_slice_unit(run), _clean_unit(manager, run, guarded)]


def few_rights(manager: Manager, *capabilities: str) -> list[tuple[str, str]]:
    """What takes no time to set and leaves a process of root's few rights.

    A sandbox of files and system calls would take 20 to 30 ms of each run.

    Args:
        manager: Where it runs; a user's manager has no capabilities that it could take away.
        capabilities: Those that are kept: ``CAP_KILL``.
    """
    if manager.kind is ManagerKind.USER:
        return []
    return [("CapabilityBoundingSet", " ".join(capabilities)), ("NoNewPrivileges", "yes")]


def _guard_unit(
    manager: Manager,
    run: str,
    *,
    owner_pid: int,
    lifetime_s: float | None,
    part_of: str | None,
    wants: Sequence[str],
    bare: bool,
) -> Transient:
    unit = names.guard_unit(run)
    properties = [
        ("Description", f"Guard of understudy run {run}, begun by process {owner_pid}"),
        ("Documentation", "man:understudy(1)"),
        # What starts after a bare run's guard need not wait until its program is there: the
        # program is the one that runs this, and its channel holds what was said already.
        ("Type", "simple" if bare else "exec"),
        ("Slice", "understudy.slice"),
        *([("Wants", " ".join(wants))] if wants else []),
        ("CollectMode", "inactive-or-failed"),
        ("TimeoutStopSec", "5"),
        ("SyslogIdentifier", unit.removesuffix(".service")),
        ("Environment", f"UNDERSTUDY_RUN={run}"),
        ("Environment", f"UNDERSTUDY_OWNER={owner_pid}"),
        # Its program may lie in somebody's home.
        *few_rights(manager, "CAP_DAC_READ_SEARCH"),
    ]
    if part_of is not None:
        properties.append(("PartOf", part_of))
    if lifetime_s is not None:
        properties.append(("RuntimeMaxSec", f"{lifetime_s:.3f}"))
    program = str(Path(__file__).resolve().with_name("guard_program.py"))
    return Transient(
        unit=unit, properties=properties, command=[sys.executable, "-I", "-S", program]
    )


def _slice_unit(run: str) -> Transient:
    # A slice that only Slice= made would stay for ever.
    guard = names.guard_unit(run)
    return Transient(
        unit=names.slice_unit(run),
        properties=[
            ("Description", f"Understudy run {run}"),
            ("BindsTo", guard),
            ("After", guard),
            ("CollectMode", "inactive-or-failed"),
        ],
    )


def _guarded_slice_unit(run: str, denied: Sequence[str]) -> Transient:
    # What lies on a slice holds for all that is in it, and the kernel takes it in once for all.
    guard = names.guard_unit(run)
    return Transient(
        unit=names.guarded_slice_unit(run),
        properties=[
            ("Description", f"Understudy run {run}, kept from production's ports"),
            ("BindsTo", guard),
            ("After", guard),
            ("CollectMode", "inactive-or-failed"),
            *(("SocketBindDeny", rule) for rule in denied),
        ],
    )


def _clean_unit(manager: Manager, run: str, guarded: Sequence[Transient]) -> Transient:
    guard = names.guard_unit(run)
    runtime = manager.runtime_dir
    systemctl = "systemctl --user" if manager.kind is ManagerKind.USER else "systemctl"
    # Only where an instance failed is there anything to reset; the glob is systemctl's own.
    # No quote and no semicolon: after a daemon-reload systemd 252 would read them as others.
    units = manager.unit_dir
    script = (
        f"rm -rf -- {units}/understudy-*@{run}-* {units}/understudy-*@{run}.*"
        f" {units}/{names.slice_unit(run)} {units}/{names.guarded_slice_unit(run)}"
        f" {runtime}/understudy/{run} {runtime}/private/understudy/{run}"
        f" && {systemctl} reset-failed understudy-*@{run}-*"
    )
    return Transient(
        unit=names.clean_unit(run),
        properties=[
            ("Description", f"Files of understudy run {run}"),
            ("Type", "oneshot"),
            ("RemainAfterExit", "yes"),
            ("Slice", names.slice_unit(run)),
            ("BindsTo", guard),
            ("After", " ".join([guard, *(one.unit for one in guarded)])),
            ("CollectMode", "inactive-or-failed"),
            ("TimeoutStopSec", str(CLEAN_TIMEOUT_S)),
            # What it removes is the instances' users'.
            *few_rights(manager, "CAP_DAC_OVERRIDE", "CAP_FOWNER"),
            ("ExecStop", f'/bin/sh -c "{script}"'),
        ],
        known=guarded,
    )
