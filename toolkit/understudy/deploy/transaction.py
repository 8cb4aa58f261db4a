"""A change of the host that is done as a whole or not at all.

Before anything is changed it is written down how everything was. Whatever then goes wrong, all is
put back to that; and if this process is killed, the next one does it (`finish`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, ParamSpec

from understudy.deploy import records
from understudy.deploy.files import Files, digest, identity
from understudy.deploy.records import DONE, JOURNAL, STATE, Journal, UnitState
from understudy.deploy.units import HostUnits
from understudy.derive import SYSTEM_UNIT_DIR
from understudy.errors import DeployError
from understudy.manager import Manager

_P = ParamSpec("_P")

UNDO_TIMEOUT_S: Final = 120.0
"""Seconds that a unit has to stop or to start again when all is put back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A file that is written, or removed.

    Attributes:
        path: Its path.
        data: Its content; None: it is removed.
        mode: Its permission bits.
        owner: The user that it belongs to.
        group: The group that it belongs to.
        ids: The numbers of user and group that it belongs to, in the place of names.
        link: Whether it is a symbolic link, which leads to ``data``.
    """

    path: str
    data: bytes | None
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    ids: tuple[int, int] | None = None
    link: bool = False

    @property
    def after(self) -> str | None:
        """The digest of what is there afterwards."""
        if self.data is None:
            return None
        return f"link:{digest(self.data)}" if self.link else digest(self.data)


class Transaction:
    """One change of the host, from `begin` to `commit`, or to `undo`.

    Args:
        files: The host's files.
        units: The units that it may change.
        journal: How everything is, and what it is to be.
        changes: The files that are written and removed.
    """

    def __init__(
        self, files: Files, units: HostUnits, journal: Journal, changes: Sequence[Change]
    ) -> None:
        self._files = files
        self._units = units
        self._journal = journal
        self._changes = changes

    def begin(self) -> None:
        """Write down how everything is. Nothing has been changed before."""
        make_state_folder(self._files)
        self._files.stage(JOURNAL, self._journal.to_text().encode(), 0o600, *_us())
        self._files.swap(JOURNAL)

    def write(self) -> None:
        """Write all files. Until all are complete, none is in its place.

        Raises:
            DeployError: A place cannot be reached safely, or there is no such user or group.
            OSError: The disk is full, or read-only.
        """
        for folder in self._journal.folders:
            self._files.make_folder(folder, 0o700 if folder.startswith(STATE) else 0o755)
        for change in self._changes:
            if change.data is not None and change.link:
                self._files.stage_link(change.path, change.data)
            elif change.data is not None:
                access = change.ids or identity(change.owner, change.group)
                self._files.stage(change.path, change.data, change.mode, *access)
        for change in self._changes:
            if self._journal.files[change.path][0] is not None:
                self._files.keep(change.path)
        for change in self._changes:
            if change.data is None:
                self._files.remove(change.path)
            else:
                self._files.swap(change.path)

    def commit(self) -> None:
        """Say that it is complete: one renaming, after which nothing is taken back any more."""
        self._files.rename(JOURNAL, DONE)
        _tidy(self._files, self._journal)

    def undo(self) -> list[str]:
        """Put all back as it was (`undo`)."""
        return undo(self._files, self._units, self._journal)


def make_users(rows: Mapping[str, str]) -> None:
    """Make system users, each by its row for sysusers.d(5).

    Raises:
        DeployError: systemd-sysusers refuses.
    """
    if rows:
        run(
            ["systemd-sysusers", "-"],
            f"make user '{', '.join(rows)}'",
            stdin="".join(rows.values()),
        )


def remove_user(name: str) -> None:
    """Remove a system user, with the group of its name; one that is gone is no error.

    Raises:
        DeployError: userdel refuses.
    """
    if has_user(name):
        run(["userdel", "--", name], f"remove user '{name}'")


def has_user(name: str) -> bool:
    """Whether there is a user of that name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def run(command: Sequence[str], what: str, *, stdin: str = "") -> str:
    """Run a command to its end, and give what it printed.

    Args:
        command: Its words.
        what: What it does, for the message: ``make user 'mediamtx'``.
        stdin: What it reads.

    Raises:
        DeployError: It fails, or is not there.
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            start_new_session=True,
            check=False,
        )
    except FileNotFoundError as exc:
        raise DeployError(f"Cannot {what}: {command[0]} is missing") from exc
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DeployError(f"Cannot {what}: {said[-1]}")
    return done.stdout


def make_state_folder(files: Files) -> None:
    """Make the folder in which it is remembered what was deployed."""
    for folder in files.missing_folders(f"{STATE}/x"):
        files.make_folder(folder, 0o700 if folder == STATE else 0o755)


def remove_state_folder(files: Files) -> None:
    """Remove that folder where nothing is deployed any more."""
    backups = f"{STATE}/backup"
    for folder in (backups, STATE, STATE.rpartition("/")[0]):
        if not files.remove_folder(folder):
            return


def journal_of(
    verb: str,
    services: Sequence[str],
    changes: Sequence[Change],
    files: Files,
    *,
    units: Mapping[str, UnitState],
    users: Sequence[str] = (),
    directories: Mapping[str, Sequence[int] | None] | None = None,
    state: Sequence[str] = (),
) -> Journal:
    """What to write down before a change.

    Args:
        verb: ``deploy`` or ``withdraw``.
        services: Of what.
        changes: The files that are written and removed.
        files: The host's files.
        units: How the units are.
        users: The users that are made.
        directories: How directories are that are changed.
        state: Directories that the services make and that are not there.
    """
    before = {change.path: files.look(change.path) for change in changes}
    folders: dict[str, None] = {}
    for change in changes:
        if change.data is not None:
            folders |= dict.fromkeys(files.missing_folders(change.path))
    own = {STATE, STATE.rpartition("/")[0]}
    return Journal(
        verb=verb,
        services=services,
        files={
            change.path: (None if found is None else found.digest, change.after)
            for change, found in zip(changes, before.values(), strict=True)
        },
        folders=[folder for folder in folders if folder not in own],
        directories=directories or {},
        units=units,
        users=users,
        state=state,
    )


@contextlib.contextmanager
def lock(files: Files, verb: str, names: Sequence[str]) -> Iterator[None]:
    """Let nobody else deploy or withdraw meanwhile.

    Args:
        files: The host's files.
        verb: ``deploy`` or ``withdraw``.
        names: Of what.

    Raises:
        DeployError: Somebody is at it.
    """
    while True:
        make_state_folder(files)
        with files.opened(STATE) as folder:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DeployError(
                    f"Cannot {verb} '{' '.join(names)}': another deploy or withdraw is under way",
                    hint="wait until it is done",
                ) from None
            # Whoever was last may have removed it meanwhile.
            with contextlib.suppress(FileNotFoundError), files.opened(STATE) as now:
                if os.path.samestat(os.fstat(folder), os.fstat(now)):
                    try:
                        yield
                    finally:
                        remove_state_folder(files)
                    return


@contextlib.contextmanager
def undone_on_error(transaction: Transaction, said: Callable[[str], None]) -> Iterator[None]:
    """Put all back if anything goes wrong, whatever it is."""
    try:
        transaction.begin()
        yield
    except BaseException as exc:
        said("putting back what was")
        try:
            notes = transaction.undo()
        except Exception as failed:
            raise ExceptionGroup("Cannot deploy", [_as_error(exc), failed]) from exc
        if isinstance(exc, OSError):
            place = f"'{exc.filename}': " if exc.filename else ""
            full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
            error = DeployError(
                f"Cannot deploy: {place}{exc.strerror}", hint="df -h" if full else None
            )
            _tell(error, notes)
            raise error from exc
        _tell(exc, notes)
        raise


def _as_error(exc: BaseException) -> Exception:
    return exc if isinstance(exc, Exception) else DeployError("Cannot go on: interrupted")


def _tell(exc: BaseException, notes: Sequence[str]) -> None:
    exc.add_note("all is as it was before" if not notes else "all is as it was before, but:")
    for note in notes:
        exc.add_note(note)


def finish(files: Files, manager: Manager) -> list[str]:
    """Finish what an earlier deploy or withdraw was killed in: undo it, or tidy up after it.

    Returns:
        What was done, for people.

    Raises:
        DeployError: What is written of it cannot be read.
        ExceptionGroup: A file could not be put back.
    """
    done = records.journal(files, DONE)
    if done is not None:
        _tidy(files, done)
    journal = records.journal(files)
    if journal is None:
        return []
    notes = undo(files, HostUnits(manager, journal.units), journal)
    what = f"{journal.verb} {' '.join(journal.services)}"
    return [f"an earlier '{what}' was ended half-way: what was before it is restored", *notes]


def undo(files: Files, units: HostUnits, journal: Journal) -> list[str]:
    """Put all back as a journal says it was; may be done again where it was ended half-way.

    Returns:
        What could not be as it was, for people: a unit that does not start again.

    Raises:
        ExceptionGroup: A file could not be put back; then the journal stays.
    """
    with undisturbed():
        notes: list[str] = []
        errors: list[Exception] = []
        before = journal.units
        now = {unit: units.state(unit) for unit in before}
        begun = [unit for unit in before if now[unit].active and not before[unit].active]
        attempt(notes, units.stop, begun, timeout_s=UNDO_TIMEOUT_S)
        replaced = {path for path, (old, new) in journal.files.items() if old != new}
        for unit, state in before.items():
            changed = f"{SYSTEM_UNIT_DIR}/{unit}" in replaced
            if now[unit].enabled and (changed or not state.enabled):
                attempt(notes, units.disable, [unit])
        for path, (old, new) in reversed(list(journal.files.items())):
            try:
                notes += _put_back(files, path, old, new)
            except (DeployError, OSError) as exc:
                errors.append(exc)
        for path, access in journal.directories.items():
            attempt(notes, _put_access_back, files, path, access)
        for folder in reversed(journal.folders):
            attempt(notes, files.remove_folder, folder)
        attempt(notes, units.reload)
        lost = [unit for unit in before if before[unit].enabled and not units.enabled(unit)]
        attempt(notes, units.enable, lost)
        attempt(notes, _run_again, units, before)
        for path in journal.state:
            attempt(notes, files.remove_tree, path)
        for user in journal.users:
            attempt(notes, remove_user, user)
        units.forget(unit for unit in before if not before[unit].loaded)
        if errors:
            raise ExceptionGroup("Cannot restore all that was", errors)
        files.remove(JOURNAL)
        remove_state_folder(files)
        return notes


def attempt(
    notes: list[str], step: Callable[_P, object], *args: _P.args, **options: _P.kwargs
) -> None:
    """Do a step; what goes wrong with it is noted, and the others are done all the same.

    Args:
        notes: Where it is noted.
        step: The step.
        args: Its arguments.
        options: Its keyword arguments.
    """
    try:
        step(*args, **options)
    except (DeployError, OSError) as exc:
        notes.append(str(exc))


def _put_back(files: Files, path: str, old: str | None, new: str | None) -> list[str]:
    found = files.look(path)
    now = None if found is None else found.digest
    if now not in (old, new):
        return [f"'{path}' was changed meanwhile by somebody else, and is left as it is"]
    if now != old:
        if old is None:
            files.remove(path)
        elif not files.take_back(path):
            raise DeployError(f"Cannot restore '{path}': what was there is gone")
    files.tidy(path)
    return []


def _put_access_back(files: Files, path: str, access: Sequence[int] | None) -> None:
    if access is None:
        files.remove_folder(path)
    else:
        files.set_access(path, *access)


def _run_again(units: HostUnits, before: Mapping[str, UnitState]) -> None:
    """Start what ran, and restart what now runs as something else."""
    ran = [unit for unit, state in before.items() if state.active]
    now = {unit: units.state(unit) for unit in ran}
    other = [u for u in ran if now[u].active and now[u].invocation != before[u].invocation]
    # A socket cannot be started anew while its service runs: all in one go.
    units.restart(other, timeout_s=UNDO_TIMEOUT_S)
    units.start([u for u in ran if not now[u].active], timeout_s=UNDO_TIMEOUT_S)


def _tidy(files: Files, journal: Journal) -> None:
    for path in journal.files:
        files.tidy(path)
    files.remove(DONE)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal interrupt this; SIGKILL can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _us() -> tuple[int, int]:
    return os.geteuid(), os.getegid()
