"""Testers of this host: users who run tests beside production, on their own managers.

None of them gets a right over the system manager, and no group that leads to one: every such right
turned out to be root's. What they get is a manager of their own that needs no login, and bounds.

What is done for whom is written down before it is done, so that `withdraw` undoes just that, also
after a `deploy` that was killed half-way.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from understudy.deploy import bounds, reserved
from understudy.deploy.files import Files, Found, digest
from understudy.deploy.outcome import Outcome, check_root
from understudy.deploy.plan import Action
from understudy.deploy.plan import Step as FileStep
from understudy.deploy.records import STATE
from understudy.deploy.transaction import attempt, lock, run, undisturbed
from understudy.errors import DeployError, PortError, nearest_hint
from understudy.model import HostFile
from understudy.netns import PROFILE
from understudy.ports.cgroups import mount
from understudy.ports.ranges import PortRange, host_range

RECORDS: Final = f"{STATE}/testers"
"""Where it is written down, for root alone."""

PROFILE_FILE: Final = "/etc/apparmor.d/understudy-tester"
UNIT_DIR: Final = "/etc/systemd/system"
DROP_IN: Final = "50-understudy.conf"
JOURNAL_GROUP: Final = "systemd-journal"
CALL_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 90.0

_HOST = "host"  # no user's record: theirs have another suffix
_FIRST_USER = 1000
_NOBODY = (65534, 65535)
_DYNAMIC_USERS = range(61184, 65520)
_MIGHTY = ("root", "sudo", "wheel", "admin", "docker", "lxd", "incus-admin", "disk", "libvirt")
"""Groups whose members are root by another name, where they are there."""

_NAME = re.compile(r"[^\s\x00-\x20\x7f/:-][^\s\x00-\x1f\x7f/:]{0,254}")
_GUARD = re.compile(r"understudy-(?:guard|lease)@(r[a-z0-9]+)\.service")


class Account(NamedTuple):
    """A user of this host."""

    name: str
    uid: int
    gid: int


@dataclass(slots=True, kw_only=True)
class TesterOutcome(Outcome):
    """What was done for one tester, or would be.

    Attributes:
        tester: The user's name.
        uid: The user's number.
        runs: The runs of this user's that were ended.
    """

    tester: str
    uid: int
    runs: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """The documented shape (docs/json.md); keys are only ever added."""
        return {
            "tester": self.tester,
            "uid": self.uid,
            "changed": self.changed,
            "files": [{"path": path, "action": action.value} for path, action in self.files],
            "steps": self.plan,
            "runs": self.runs,
            "notes": self.notes,
        }


@dataclass(slots=True, kw_only=True)
class _Record:
    """What was done for a tester, or for the host.

    Attributes:
        name: The user's name.
        uid: The user's number.
        lingering: Whether lingering was switched on; else it was on before.
        journal: Whether the user was put into the journal's group.
        reserved: The ports that were reserved, and had not been before.
        files: The digest of each file that was written, by path.
    """

    name: str = ""
    uid: int = -1
    lingering: bool = False
    journal: bool = False
    reserved: str = ""
    files: dict[str, str] = field(default_factory=dict)


class _Step(NamedTuple):
    words: str
    do: Callable[[], object]
    undo: Callable[[], object]


def _nothing() -> None:
    """What cannot be undone, or need not be."""


class Host:
    """What is changed, and by what means.

    Args:
        root: The root of its file system.
        owner: The user who alone may write to its folders.
        command: Runs a command to its end; takes its words and what it does.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        owner: int = 0,
        command: Callable[[Sequence[str], str], str] = run,
    ) -> None:
        self.root = root
        self.files = Files(root, owner=owner)
        self.command = command

    def read(self, path: str) -> str:
        """A file's content without its last newline; "" if it is not there."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return (self.root / path).exists()

    def settings(self) -> str:
        """The administrator's settings; "" for none.

        Raises:
            DeployError: Others than root may write to them.
        """
        found = self.files.look(bounds.SETTINGS)
        if found is None:
            return ""
        if found.uid not in (0, os.geteuid()) or found.mode & 0o022:
            raise DeployError(
                f"Cannot use '{bounds.SETTINGS}': others than root may write to it",
                hint=f"chown root: {bounds.SETTINGS} && chmod go-w {bounds.SETTINGS}",
            )
        return found.data.decode(errors="replace")

    def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Put a file in its place as a whole."""
        for folder in self.files.missing_folders(path):
            self.files.make_folder(folder, 0o700 if folder.startswith(STATE) else 0o755)
        self.files.stage(path, data, mode, os.geteuid(), os.getegid())
        self.files.swap(path)

    def put_back(self, path: str, found: Found | None) -> None:
        """Put back what was there, or nothing."""
        if found is None:
            self.remove(path)
        else:
            self.write(path, found.data, found.mode)

    def remove(self, path: str) -> None:
        """Remove a file, and its folder if that is one of drop-ins and empty now."""
        self.files.remove(path)
        folder = path.rpartition("/")[0]
        if folder.endswith(".d") and folder.startswith(f"{UNIT_DIR}/"):
            self.files.remove_folder(folder)

    def reserve(self, found: Iterable[int]) -> None:
        """Set what ports no client gets.

        Raises:
            DeployError: The kernel does not let us.
        """
        try:
            (self.root / reserved.KERNEL).write_text(f"{reserved.text_of(found)}\n")
        except OSError as exc:
            raise DeployError(
                f"Cannot reserve ports: '/{reserved.KERNEL}': {exc.strerror}",
                hint="in a container without a network of its own that is the host's affair",
            ) from exc

    def record(self, name: str) -> _Record | None:
        """What is written down of a tester, or of the host; None if nothing is.

        Raises:
            DeployError: It cannot be read.
        """
        path = _record_path(name)
        found = self.files.look(path)
        if found is None:
            return None
        try:
            return _Record(**json.loads(found.data))
        except (TypeError, ValueError) as exc:
            raise DeployError(
                f"Cannot read '{path}': it is damaged ({exc})",
                hint="it says what was done for a tester; restore it, or undo that by hand",
            ) from exc

    def keep(self, name: str, record: _Record) -> None:
        """Write down what is done for a tester, or for the host."""
        text = json.dumps(asdict(record), indent=2) + "\n"
        self.write(_record_path(name), text.encode(), 0o600)

    def forget(self, name: str) -> None:
        """Nothing is done for them any more."""
        self.files.remove(_record_path(name))
        self.files.remove_folder(RECORDS)

    def testers(self) -> list[str]:
        """Those for whom something is written down."""
        try:
            with self.files.opened(RECORDS) as folder:
                names = sorted(os.listdir(folder))  # noqa: PTH208 - of a descriptor
        except FileNotFoundError:
            return []
        return [name.removesuffix(".tester") for name in names if name.endswith(".tester")]

    def restricts_namespaces(self) -> bool:
        """Whether AppArmor keeps user namespaces from those that have no profile (Ubuntu)."""
        return self.read("proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1"


def deploy_testers(
    names: Iterable[str],
    *,
    journal: bool = False,
    pretend: bool = False,
    said: Callable[[str], None] = lambda _text: None,
    host: Host | None = None,
) -> list[TesterOutcome]:
    """Let users test on this host: all of it or nothing.

    Args:
        names: Their names.
        journal: Whether they may read the system's journal (group systemd-journal).
        pretend: Whether all is looked at, and nothing changed.
        said: Told when all is put back.
        host: What is changed; None: this host.

    Returns:
        What was done for each. What is done once for all is told with the first of them.

    Raises:
        DeployError: There is no such user, or one that cannot be a tester; a setting is wrong; or
            something could not be done: then all is as it was.
        PortError: The port range that is set will not do.
    """
    names = list(dict.fromkeys(names))
    words = [f"--tester {name}" for name in names]
    check_root("deploy", words)
    host = host or Host()
    accounts = [account(name) for name in names]
    settings = host.settings()
    given = {one.name: bounds.bounds_of(one.name, settings) for one in accounts}
    chosen = host_range()
    with lock(host.files, "deploy", words):
        plans = [_Deploying(host, one, given[one.name], journal=journal) for one in accounts]
        shared = _Sharing(host, chosen, plans[0].outcome)
        for plan in plans:
            plan.outcome.plan = [*(shared.words if plan is plans[0] else []), *plan.words]
            plan.outcome.changed = bool(plan.outcome.plan)
        if pretend:
            return [plan.outcome for plan in plans]
        with _undone_on_error(said) as undo:
            _write_down(host, _HOST, shared.record, undo)
            for plan in plans:
                _write_down(host, plan.account.name, plan.record, undo)
            _carry_out([shared, *plans], undo)
        return [plan.outcome for plan in plans]


def withdraw_testers(
    names: Iterable[str],
    *,
    pretend: bool = False,
    said: Callable[[str], None] = lambda _text: None,
    host: Host | None = None,
) -> list[TesterOutcome]:
    """Undo what `deploy_testers` did for users, and nothing else.

    Their live runs are ended first, by their own managers. What was theirs before they stay:
    lingering, the journal's group.

    Args:
        names: Their names; a user who is gone by now is no error.
        pretend: Whether all is looked at, and nothing changed.
        said: Told when all is put back.
        host: What is changed; None: this host.

    Raises:
        DeployError: One of them is no tester here, or something could not be done: then all but
            the runs is as it was.
    """
    names = list(dict.fromkeys(names))
    words = [f"--tester {name}" for name in names]
    check_root("withdraw", words)
    host = host or Host()
    with lock(host.files, "withdraw", words):
        known = host.testers()
        for name in names:
            if name not in known:
                raise DeployError(
                    f"Cannot withdraw tester '{name}': nothing was deployed for that user",
                    hint=f"{nearest_hint(name, known)}testers are: {', '.join(known) or 'none'}",
                )
        plans = [_Withdrawing(host, name) for name in names]
        for plan in plans:
            plan.outcome.plan = [*(f"end run {run}" for run in plan.outcome.runs), *plan.words]
            plan.outcome.changed = True
        shared = [] if set(known) - set(names) else [_NoLongerSharing(host, plans[-1].outcome)]
        plans[-1].outcome.plan += [words for each in shared for words in each.words]
        if pretend:
            return [plan.outcome for plan in plans]
        for plan in plans:
            plan.end_runs()
        with _undone_on_error(said) as undo:
            _carry_out([*plans, *shared], undo)
        for name in (*names, *(_HOST for _ in shared)):
            host.forget(name)
        return [plan.outcome for plan in plans]


def account(name: str) -> Account:
    """The user of that name, who can be a tester.

    Args:
        name: The name.

    Raises:
        DeployError: It is no name, there is no such user, or it is root or nobody in particular.
    """
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise DeployError(f"Cannot deploy tester {name!r}: that is no user's name")
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise DeployError(
            f"Cannot deploy tester '{name}': there is no such user",
            hint=f"sudo useradd --create-home --shell /bin/bash {shlex.quote(name)}",
        ) from None
    if entry.pw_uid == 0:
        raise DeployError(
            f"Cannot deploy tester '{name}': root needs nothing, and bounds do not hold root",
            hint="name the user who runs the tests",
        )
    if entry.pw_uid in _NOBODY or entry.pw_uid in _DYNAMIC_USERS:
        raise DeployError(
            f"Cannot deploy tester '{name}': user {entry.pw_uid} is nobody in particular",
            hint="name the user who runs the tests",
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def slice_text(tester: Account, limits: Mapping[str, str]) -> str:
    """The drop-in of a tester's slice: all that is the tester's is in it, logins too."""
    rows = "".join(f"{name}={value}\n" for name, value in limits.items())
    return f"{_header(tester, f'[testers] in {bounds.SETTINGS}')}[Slice]\n{rows}"


def manager_text(tester: Account) -> str:
    """The drop-in of a tester's manager where AppArmor restricts user namespaces.

    All that it starts has the profile with it; nobody else has.
    """
    why = "private networks need user namespaces"
    return f"{_header(tester, why)}[Service]\nAppArmorProfile=-{PROFILE}\n"


def profile_text() -> str:
    """The profile: as if there were none, but with user namespaces (apparmor.d(5)).

    It is attached to no program: an interpreter's would be everybody's.
    """
    return (
        "# Written by 'understudy deploy --tester': private networks need user namespaces.\n"
        "# The managers of testers have it, by AppArmorProfile= in user@UID.service.d.\n"
        "abi <abi/4.0>,\n"
        "include <tunables/global>\n"
        "\n"
        f"profile {PROFILE} flags=(unconfined) {{\n"
        "  userns,\n"
        "\n"
        f"  include if exists <local/{PROFILE}>\n"
        "}\n"
    )


def _header(tester: Account, why: str) -> str:
    return (
        f"# Written by 'understudy deploy --tester {tester.name}': {why}.\n"
        f"# 'understudy withdraw --tester {tester.name}' removes it.\n"
    )


def slice_path(uid: int) -> str:
    """Where the drop-in of a user's slice is."""
    return f"{UNIT_DIR}/user-{uid}.slice.d/{DROP_IN}"


def manager_path(uid: int) -> str:
    """Where the drop-in of a user's manager is."""
    return f"{UNIT_DIR}/user@{uid}.service.d/{DROP_IN}"


class _Plan:
    """Steps that are to be done, and what is written down of them."""

    def __init__(self, host: Host, record: _Record, outcome: TesterOutcome) -> None:
        self.host = host
        self.record = record
        self.outcome = outcome
        self.steps: list[_Step] = []

    def file(self, path: str, text: str) -> bool:
        """Have a file written, unless somebody has edited it; True if it is to be changed."""
        found, data = self.host.files.look(path), text.encode()
        if found is not None and found.digest not in (digest(data), self.record.files.get(path)):
            self.outcome.files.append((path, Action.KEEP))
            self.outcome.notes.append(
                f"'{path}' was edited and is kept; without it deploy writes it anew"
            )
            return False
        self.record.files[path] = digest(data)
        if found is not None and found.digest == digest(data):
            self.outcome.files.append((path, Action.SAME))
            return False
        action, verb = (Action.INSTALL, "install") if found is None else (Action.UPDATE, "update")
        self.outcome.files.append((path, action))
        self.outcome.texts[path] = text
        file = HostFile(path=path, text=text)
        self.outcome.diffs[path] = FileStep(file=file, action=action, found=found).diff()
        write, put_back = partial(self.host.write, path, data), partial(self.host.put_back, path)
        self.step(f"{verb} {path}", write, partial(put_back, found))
        return True

    def remove_files(self) -> bool:
        """Have the files removed that nobody has edited; True if there is one of systemd's."""
        of_systemd = False
        for path, ours in self.record.files.items():
            found = self.host.files.look(path)
            if found is None:
                continue
            if found.digest != ours:
                self.outcome.files.append((path, Action.KEEP))
                self.outcome.notes.append(f"'{path}' was edited and is kept")
                continue
            self.outcome.files.append((path, Action.REMOVE))
            of_systemd |= path.startswith(UNIT_DIR)
            put_back = partial(self.host.put_back, path, found)
            self.step(f"remove {path}", partial(self.host.remove, path), put_back)
        return of_systemd

    def step(
        self,
        words: str,
        do: Callable[[], object],
        undo: Callable[[], object] = _nothing,
    ) -> None:
        """Have something done."""
        self.steps.append(_Step(words, do, undo))

    def reload(self) -> None:
        """Have the system's manager read its files again."""
        reload = partial(self.host.command, ["systemctl", "daemon-reload"], "reload systemd")
        # What is undone is undone from the end: files first, and then they are read again.
        self.steps.insert(0, _Step("", _nothing, reload))
        self.step("reload systemd", reload)

    def reserve(self, now: frozenset[int], full: frozenset[int], words: str) -> None:
        """Have the kernel reserve these ports."""
        if now != full:
            self.step(words, partial(self.host.reserve, full), partial(self.host.reserve, now))

    @property
    def words(self) -> list[str]:
        """What is done, for people."""
        return [step.words for step in self.steps if step.words]


class _Sharing(_Plan):
    """What all testers have together: reserved ports, and a profile of AppArmor."""

    def __init__(self, host: Host, chosen: PortRange, outcome: TesterOutcome) -> None:
        super().__init__(host, host.record(_HOST) or _Record(), outcome)
        now = _reserved_now(host)
        others = (now - reserved.numbers(self.record.reserved)) | reserved.of_others(host.root)
        wanted = frozenset(range(chosen.first, chosen.last + 1))
        self.record.reserved = reserved.text_of(wanted - others)
        self.file(reserved.FILE, reserved.file_text(others | wanted))
        self.reserve(now, others | wanted, f"reserve ports {chosen}")
        if host.restricts_namespaces():
            changed = self.file(PROFILE_FILE, profile_text())
            if changed or f"{PROFILE} (" not in host.read("sys/kernel/security/apparmor/profiles"):
                self.step(f"load profile {PROFILE}", partial(_load, host), partial(_unload, host))


class _NoLongerSharing(_Plan):
    """The same, once there is no tester any more."""

    def __init__(self, host: Host, outcome: TesterOutcome) -> None:
        super().__init__(host, host.record(_HOST) or _Record(), outcome)
        if PROFILE_FILE in self.record.files and host.exists(PROFILE_FILE.lstrip("/")):
            self.step(f"unload profile {PROFILE}", partial(_unload, host), partial(_load, host))
        self.remove_files()
        now, ours = _reserved_now(host), reserved.numbers(self.record.reserved)
        # Others may have reserved the same meanwhile.
        left = (now - ours) | (now & reserved.of_others(host.root))
        self.reserve(now, left, f"reserve ports {self.record.reserved} no longer")


def _reserved_now(host: Host) -> frozenset[int]:
    try:
        return reserved.now(host.root)
    except (OSError, ValueError) as exc:
        raise DeployError(f"Cannot read '/{reserved.KERNEL}': {exc}") from exc


def _load(host: Host) -> None:
    path = str(host.root / PROFILE_FILE.lstrip("/"))
    host.command(["apparmor_parser", "--replace", path], f"load profile '{PROFILE}'")


def _unload(host: Host) -> None:
    path = str(host.root / PROFILE_FILE.lstrip("/"))
    with contextlib.suppress(DeployError):  # it was not loaded
        host.command(["apparmor_parser", "--remove", path], f"unload profile '{PROFILE}'")


class _Deploying(_Plan):
    """What is done for one tester."""

    def __init__(
        self, host: Host, tester: Account, limits: Mapping[str, str], *, journal: bool
    ) -> None:
        outcome = _outcome(tester.name, tester.uid)
        record = host.record(tester.name) or _Record()
        record.name, record.uid = tester.name, tester.uid
        super().__init__(host, record, outcome)
        self.account = tester
        self._warn(limits)
        changed = self.file(slice_path(tester.uid), slice_text(tester, limits))
        running = host.exists(f"run/user/{tester.uid}/systemd/private")
        if host.restricts_namespaces():
            confined = self.file(manager_path(tester.uid), manager_text(tester))
            changed |= confined
            if confined and running:
                outcome.notes.append(
                    f"the manager of {tester.name} runs without its profile until it is started "
                    f"anew, with all that it runs: systemctl restart user@{tester.uid}.service"
                )
        if changed:
            self.reload()
        if journal:
            self._read_journal()
        self._linger(running=running)

    def _warn(self, limits: Mapping[str, str]) -> None:
        name, notes = self.account.name, self.outcome.notes
        if self.account.uid < _FIRST_USER:
            notes.append(f"{name} is a system user (UID {self.account.uid})")
        mighty = [group for group in _MIGHTY if _is_member(self.account, group)]
        if mighty:
            notes.append(
                f"{name} is in group {', '.join(mighty)}, and so can be root: bounds and "
                "missing rights hold accidents only"
            )
        there = _controllers(self.host)
        lacking = [d for d in limits if bounds.CONTROLLERS[d] not in there]
        if lacking:
            names = dict.fromkeys(bounds.CONTROLLERS[directive] for directive in lacking)
            notes.append(
                f"accepted, and not enforced here: {', '.join(f'{d}=' for d in lacking)} (no "
                f"controller {', '.join(names)})"
            )

    def _read_journal(self) -> None:
        name = self.account.name
        try:
            grp.getgrnam(JOURNAL_GROUP)
        except KeyError:
            raise DeployError(
                f"Cannot deploy tester '{name}': there is no group '{JOURNAL_GROUP}'",
                hint="without --journal; or: sudo apt install systemd",
            ) from None
        if _is_member(self.account, JOURNAL_GROUP):
            return
        self.record.journal = True
        join, leave = partial(_join, self.host, name), partial(_leave, self.host, name)
        self.step(f"put {name} into group {JOURNAL_GROUP}", join, leave)
        self.outcome.notes.append(f"{name} can read the system's journal from the next login on")

    def _linger(self, *, running: bool) -> None:
        name, unit = self.account.name, f"user@{self.account.uid}.service"
        if not self.host.exists(f"var/lib/systemd/linger/{name}"):
            self.record.lingering = True
            linger = partial(_set_linger, self.host, name)
            words = f"let the manager of {name} live without a login"
            self.step(words, partial(linger, on=True), partial(linger, on=False))
        if not running:
            start = partial(self.host.command, ["systemctl", "start", unit], f"start '{unit}'")
            self.step(f"start {unit}", start)


class _Withdrawing(_Plan):
    """What is undone for one tester."""

    def __init__(self, host: Host, name: str) -> None:
        record = host.record(name) or _Record(name=name)
        super().__init__(host, record, _outcome(name, record.uid))
        self._account: Account | None = None
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            self._account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
        self._guards = self._live()
        self.outcome.runs = [found[1] for found in map(_GUARD.fullmatch, self._guards) if found]
        if self.remove_files():
            self.reload()
        if self._account is None:
            self.outcome.notes.append(f"there is no user '{name}' any more")
            return
        if record.journal and _is_member(self._account, JOURNAL_GROUP):
            leave, join = partial(_leave, host, name), partial(_join, host, name)
            self.step(f"take {name} out of group {JOURNAL_GROUP}", leave, join)
        if record.lingering and host.exists(f"var/lib/systemd/linger/{name}"):
            linger = partial(_set_linger, host, name)
            words = f"let the manager of {name} end with the last login"
            self.step(words, partial(linger, on=False), partial(linger, on=True))

    def end_runs(self) -> None:
        """End what the tester runs.

        Raises:
            DeployError: It does not end in time.
        """
        if not self._guards or self._account is None:
            return
        try:
            done = _as_user(self._account, ["stop", "--", *self._guards], STOP_TIMEOUT_S)
            failed = done.returncode != 0
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            raise DeployError(
                f"Cannot withdraw tester '{self._account.name}': run "
                f"{', '.join(self.outcome.runs)} did not end",
                hint=f"end all of that user's: loginctl terminate-user {self._account.name}",
            )

    def _live(self) -> list[str]:
        if self._account is None:
            return []
        if not self.host.exists(f"run/user/{self._account.uid}/systemd/private"):
            return []
        patterns = ["understudy-guard@*.service", "understudy-lease@*.service"]
        words = ["list-units", "--plain", "--no-legend", "--", *patterns]
        try:
            said = _as_user(self._account, words, CALL_TIMEOUT_S).stdout
        except subprocess.TimeoutExpired:
            self.outcome.notes.append(f"the manager of {self._account.name} does not answer")
            return []
        # It is the tester's own manager, which may say anything.
        found = [line.split()[0] for line in said.splitlines() if line.split()]
        return [unit for unit in found if _GUARD.fullmatch(unit)]


def _outcome(name: str, uid: int) -> TesterOutcome:
    return TesterOutcome(service=f"tester {name}", unit=f"user@{uid}.service", tester=name, uid=uid)


def _record_path(name: str) -> str:
    return f"{RECORDS}/{name}.{'json' if name == _HOST else 'tester'}"


def _is_member(tester: Account, group: str) -> bool:
    try:
        found = grp.getgrnam(group)
    except KeyError:
        return False
    return tester.name in found.gr_mem or tester.gid == found.gr_gid


def _join(host: Host, name: str) -> None:
    words = ["gpasswd", "--add", name, JOURNAL_GROUP]
    host.command(words, f"put {name} into group '{JOURNAL_GROUP}'")


def _leave(host: Host, name: str) -> None:
    words = ["gpasswd", "--delete", name, JOURNAL_GROUP]
    host.command(words, f"take {name} out of group '{JOURNAL_GROUP}'")


def _set_linger(host: Host, name: str, *, on: bool) -> None:
    verb = "enable-linger" if on else "disable-linger"
    host.command(["loginctl", verb, name], f"{verb.replace('-', ' ')} for '{name}'")


def _controllers(host: Host) -> list[str]:
    try:
        place = Path(mount()).relative_to("/")
    except PortError:
        return []
    return host.read(f"{place}/cgroup.controllers").split()


def _as_user(
    tester: Account, words: Sequence[str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Ask a user's manager as that user: root's word is not needed for it."""
    return subprocess.run(
        ["systemctl", "--user", "--no-pager", "--no-ask-password", *words],
        user=tester.uid,
        group=tester.gid,
        extra_groups=[],
        env={
            "PATH": os.defpath,
            "LC_ALL": "C.UTF-8",
            "XDG_RUNTIME_DIR": f"/run/user/{tester.uid}",
        },
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        start_new_session=True,
        check=False,
    )


def _write_down(host: Host, name: str, record: _Record, undo: list[Callable[[], object]]) -> None:
    """Write down what will be done, before it is."""
    before = host.record(name)
    if before != record:
        forget = partial(host.forget, name)
        undo.append(forget if before is None else partial(host.keep, name, before))
        host.keep(name, record)


def _carry_out(plans: Iterable[_Plan], undo: list[Callable[[], object]]) -> None:
    for step in (step for plan in plans for step in plan.steps):
        undo.append(step.undo)
        step.do()


@contextlib.contextmanager
def _undone_on_error(said: Callable[[str], None]) -> Iterator[list[Callable[[], object]]]:
    """Undo, the last first, what was collected by then, if anything goes wrong."""
    undo: list[Callable[[], object]] = []
    try:
        yield undo
    except BaseException as exc:
        said("putting back what was")
        notes: list[str] = []
        with undisturbed():
            for step in reversed(undo):
                attempt(notes, step)
        exc.add_note("all is as it was before" if not notes else "all is as it was before, but:")
        for note in notes:
            exc.add_note(note)
        raise
