"""Beds: throwaway boots of this machine's own OS tree, under a real systemd.

A bed is a container (systemd-nspawn(1)) over an overlay of the tree: nothing that is done in it
stays, but what is done below the folders bound into it. It has a private network, cgroup v2, its
own journal, and starts nothing that is enabled on this machine. It is no security boundary.

    with Bed.up(owner_pid=os.getpid()) as bed:
        code = bed.run(["systemctl", "is-system-running", "--wait"])

Booting and entering need root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from understudy.bed_keeper import (
    BEDS,
    POWER_OFF_S,
    BedState,
    booted,
    children,
    claim,
    claimed,
    join_cgroups,
    read_state,
    sweep,
)
from understudy.errors import BedError
from understudy.foreground import Forwarding
from understudy.procfs import Process

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")

_SYSTEM = tuple(map(Path, ("/boot", "/dev", "/etc", "/proc", "/run", "/sys", "/usr")))
_SYSTEM_TOPS = tuple(
    map(Path, ("/", "/tmp", "/var", "/var/cache", "/var/lib", "/var/log", "/var/tmp"))
)
"""Folders of which a bed has its own: bound, its systemd would change this machine's."""

_OUTSIDE_ONLY = frozenset(
    {
        "DBUS_SESSION_BUS_ADDRESS",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
        "XDG_RUNTIME_DIR",
        "XDG_SESSION_ID",
    }
)
"""Variables that point at things of the caller's own systemd, which a bed cannot reach."""

_LOGIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"  # Debian's login.defs
_KEPT_AT_LOGIN = re.compile(r"TERM|COLORTERM|LANG|LC_.*|TZ|UNDERSTUDY_.*")


class Bed:
    """A bed that is up.

    Attributes:
        state: What is known of it: its name, tree, bound folders, PIDs.
    """

    def __init__(self, state: BedState) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<Bed {self.name} of {self.state.root}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.down()

    @property
    def name(self) -> str:
        """Its name."""
        return self.state.name

    @classmethod
    def up(
        cls,
        name: str | None = None,
        *,
        root: Path = Path("/"),
        binds: Sequence[Path] = (),
        capabilities: Sequence[str] = (),
        owner_pid: int | None = None,
        timeout_s: float = 60.0,
    ) -> Bed:
        """Boot a bed and return when its boot is done.

        Args:
            name: Lower-case letters, digits and dashes, at most 32; None for a random one.
            root: The OS tree to boot: this machine's, or a folder that holds another.
            binds: Folders and files bound into the bed, read-write, under their own paths,
                beside the working directory. One of the system's own folders (``/``, ``/etc``,
                ``/tmp``, …) is never bound.
            capabilities: Capabilities beyond nspawn's default, by name: ``CAP_BPF``, ``bpf``.
            owner_pid: The process whose end, by any means, ends the bed; None for a bed that
                stays until `down`.
            timeout_s: Seconds for the boot.

        Raises:
            BedError: The name is wrong or in use, a right or a program is missing, or the boot
                failed; the message has the last lines of the console. Nothing is left.
        """
        name = name if name is not None else f"bed-{secrets.token_hex(3)}"
        wanted = BedState(
            name=name,
            root=str(root.resolve()),
            binds=_binds(binds),
            capabilities=tuple(_capability(word) for word in capabilities),
            owner_pid=owner_pid,
        )
        _check(wanted)
        held = claim(name)
        if held is None:
            raise BedError(
                f"Cannot boot bed '{name}': it is up already",
                hint=f"Run: understudy bed down {name}  (or choose another name)",
            )
        with held:
            sweep(name)
            report = _start_keeper(wanted, held)
        with report:
            return cls(_await_boot(name, report, timeout_s))

    @classmethod
    def find(cls, name: str) -> Bed:
        """The bed of that name.

        Raises:
            BedError: It is not up; the hint names those that are.
        """
        state = read_state(name) if claimed(name) else None
        if state is None or not state.leader_pid:
            names = ", ".join(bed.name for bed in beds())
            raise BedError(
                f"Cannot find bed '{name}': it is not up",
                hint=f"Up are: {names}" if names else f"Run: understudy bed up {name}",
            )
        return cls(state)

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Run a command in the bed, on the caller's terminal and standard streams.

        It runs in a scope of its own below the bed's systemd. Signals that the caller gets
        meanwhile are passed on to it (where the caller is in its main thread).

        Args:
            argv: The command, looked up on PATH in the bed.
            user: A user of the bed. The command then has what a login gives: that user's groups
                and home, a user manager with lingering, ``XDG_RUNTIME_DIR``; of the caller's
                environment it keeps the terminal, the locale and ``UNDERSTUDY_*``. None for root
                with the caller's environment.
            cwd: The working directory in the bed; None for the caller's.
            env: Further environment.

        Returns:
            The exit code as a shell gives it: 128+n for an end by signal n, 126 and 127 for a
            command that cannot be executed or found.

        Raises:
            BedError: The bed is gone, the user or the directory does not exist in it.
        """
        entry, environment = self.command(argv, user=user, cwd=cwd, env=env)
        # nsenter forks for a new PID namespace and forwards nothing itself.
        with Forwarding(lambda nsenter: children(nsenter) or [nsenter]) as forwarding:
            process = subprocess.Popen(entry, env=environment)
            forwarding.to(process.pid)
            code = process.wait()
        return 128 - code if code < 0 else code

    def command(
        self,
        argv: Sequence[str],
        *,
        user: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> tuple[list[str], dict[str, str]]:
        """What `run` executes: a command line for the outside, and its whole environment.

        For who wants the output, or a process of one's own: ``subprocess.run(entry, env=…)``.
        Arguments and errors are those of `run`.
        """
        cwd = cwd or Path.cwd()
        tree = Path(f"/proc/{self.state.leader_pid}/root")
        _require_root("enter", self.name)
        if not claimed(self.name):
            raise BedError(f"Cannot enter bed '{self.name}': it is not up any more")
        if not (tree / str(cwd).lstrip("/")).is_dir():
            raise BedError(
                f"Cannot enter bed '{self.name}': it has no directory '{cwd}'",
                hint=f"Boot it with: understudy bed up --bind {cwd}",
            )
        scope = ["systemd-run", "--scope", "--quiet", "--collect"]
        if int(re.split(r"\D", self.state.systemd)[0]) >= 254:
            scope.append("--expand-environment=no")
        privileges = [f"--bounding-set={self._bounding_set()}"]
        environment = {
            name: value for name, value in os.environ.items() if name not in _OUTSIDE_ONLY
        }
        if user is not None:
            uid, gid, login = self._log_in(user)
            scope.append(f"--slice=user-{uid}.slice")
            privileges += [f"--reuid={uid}", f"--regid={gid}", "--init-groups", "--inh-caps=-all"]
            environment = {
                name: value for name, value in environment.items() if _KEPT_AT_LOGIN.fullmatch(name)
            } | login
        entry = [
            *self._entry(),
            *scope,
            "--",
            "setpriv",
            *privileges,
            *("--", "env", f"--chdir={cwd}", "--"),
            *argv,
        ]
        return entry, environment | dict(env or {})

    def down(self) -> None:
        """End the bed and return when nothing of it is left; one that is gone is no error.

        Raises:
            BedError: The caller is not root, or the bed does not end.
        """
        _require_root("end", self.name)
        try:
            keeper = os.pidfd_open(self.state.keeper_pid)
        except ProcessLookupError:
            keeper = -1
        if keeper >= 0:
            try:
                current = read_state(self.name) if claimed(self.name) else None
                if current is not None and current.keeper_pid == self.state.keeper_pid:
                    signal.pidfd_send_signal(keeper, signal.SIGTERM)
                    if not select.select([keeper], [], [], 3 * POWER_OFF_S)[0]:
                        signal.pidfd_send_signal(keeper, signal.SIGKILL)
                        select.select([keeper], [], [], POWER_OFF_S)
            finally:
                os.close(keeper)
        held = claim(self.name)
        if held is not None:
            with held:
                sweep(self.name)

    def _entry(self) -> list[str]:
        """The words that put what follows them into the bed: its cgroup, then its namespaces."""
        # The bed's own roots: in cgroup v2 only leaves hold processes, and PID 1's always exists.
        leaves = ("payload/init.scope", "payload", "payload")
        cgroups = [f"{top}/{leaf}" for top, leaf in zip(self.state.cgroups, leaves, strict=False)]
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        return [
            *join_cgroups(cgroups),
            *("nsenter", f"--target={self.state.leader_pid}", *namespaces, "--"),
        ]

    def _bounding_set(self) -> str:
        """The capabilities of the bed's PID 1 in setpriv's words.

        A process that enters keeps the host's; with these it could, say, set the host's clock.
        """
        status = Path(f"/proc/{self.state.leader_pid}/status").read_text()
        mask = int(status.split("CapBnd:")[1].split()[0], 16)
        bits = [number for number in range(mask.bit_length()) if mask >> number & 1]
        return ",".join(["-all", *(f"+cap_{number}" for number in bits)])

    def _log_in(self, user: str) -> tuple[int, int, dict[str, str]]:
        """Start a user's manager; give UID, GID and the environment of a login."""
        script = (
            'passwd=$(getent passwd "$1") || exit 67; uid=$(id -u "$1"); '
            'loginctl enable-linger "$1" && systemctl start "user@$uid.service" && echo "$passwd"'
        )
        done = subprocess.run(
            [*self._entry(), "sh", "-c", script, "sh", user],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode == 67:
            raise BedError(
                f"Cannot log in as '{user}': there is no such user in bed '{self.name}'",
                hint=f"Run: understudy bed -- useradd --create-home {user}",
            )
        if done.returncode != 0:
            raise BedError(
                f"Cannot log in as '{user}' in bed '{self.name}': {done.stderr.strip()}",
                hint="The bed needs the packages libpam-systemd and dbus-user-session",
            )
        name, _, uid, gid, _, home, shell = done.stdout.strip().split(":")
        runtime = f"/run/user/{uid}"
        return (
            int(uid),
            int(gid),
            {
                "USER": name,
                "LOGNAME": name,
                "HOME": home,
                "SHELL": shell or "/bin/sh",
                "PATH": _LOGIN_PATH,
                "XDG_RUNTIME_DIR": runtime,
                "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus",
            },
        )


def inside() -> bool:
    """Whether this process runs in a bed: the root of its file system is an overlay of ours."""
    return any(
        mount.point == "/" and option.startswith(f"upperdir={BEDS}/")
        for mount in Process(os.getpid()).mounts
        for option in mount.super_options
    )


def beds() -> list[Bed]:
    """The beds that are up, by name."""
    found = []
    for folder in sorted(BEDS.glob("*")):
        state = read_state(folder.name) if claimed(folder.name) else None
        if state is not None and state.leader_pid:
            found.append(Bed(state))
    return found


def _binds(further: Sequence[Path]) -> tuple[str, ...]:
    bound = []
    here = Path.cwd()
    if here not in _SYSTEM_TOPS and not any(here.is_relative_to(path) for path in _SYSTEM):
        bound.append(str(here))
    for path in further:
        resolved = path.resolve()
        if not resolved.exists():
            raise BedError(f"Cannot bind '{path}': there is no such file or folder")
        if resolved in (*_SYSTEM_TOPS, *_SYSTEM):
            raise BedError(
                f"Cannot bind '{path}': a bed has its own, and its systemd would change this one",
                hint="Bind a folder below it",
            )
        bound.append(str(resolved))
    return tuple(dict.fromkeys(bound))


def _capability(word: str) -> str:
    name = word.upper()
    return name if name.startswith("CAP_") else f"CAP_{name}"


def _require_root(verb: str, name: str) -> None:
    if os.geteuid() != 0:
        raise BedError(
            f"Cannot {verb} bed '{name}': only root may do that",
            hint="Run the same command with sudo",
        )


def _may_mount() -> bool:
    """Whether this process may, which root in most containers may not."""
    return "sys_admin" in Process(os.getpid()).capabilities("CapEff")


def _check(wanted: BedState) -> None:
    if not _NAME.fullmatch(wanted.name):
        raise BedError(
            f"Cannot boot bed '{wanted.name}': that is no name for a bed",
            hint="A name is of a-z, 0-9 and dashes within, at most 32 characters",
        )
    _require_root("boot", wanted.name)
    if not _may_mount():
        raise BedError(
            f"Cannot boot bed '{wanted.name}': this container may not mount (no CAP_SYS_ADMIN)",
            hint="Start the container privileged: docker run --privileged",
        )
    if shutil.which("systemd-nspawn") is None:
        raise BedError(
            f"Cannot boot bed '{wanted.name}': systemd-nspawn is not installed",
            hint="Run: apt install systemd-container",
        )
    if not Path(wanted.root).is_dir():
        raise BedError(f"Cannot boot bed '{wanted.name}': '{wanted.root}' is no folder")


def _start_keeper(wanted: BedState, held: socket.socket) -> socket.socket:
    """Start the keeper as nobody's child, and give the socket that it reports on."""
    name = wanted.name
    with contextlib.ExitStack() as kept:
        owner = -1
        if wanted.owner_pid is not None:
            try:
                owner = os.pidfd_open(wanted.owner_pid)
            except ProcessLookupError as exc:
                raise BedError(
                    f"Cannot boot bed '{name}': its owner, PID {wanted.owner_pid}, is gone"
                ) from exc
            kept.callback(os.close, owner)
        ours, theirs = socket.socketpair()
        kept.enter_context(theirs)
        inherited = [theirs.fileno(), held.fileno(), owner]
        scope = [
            *("systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes"),
            *(f"--unit=understudy-bed-{name}", f"--description=understudy bed {name}", "--"),
        ]
        command = [
            *("setsid", "--fork"),
            *(scope if booted() else ()),
            *("unshare", "--mount", "--propagation=slave"),
            *(sys.executable, "-P", "-m", "understudy.bed_keeper", wanted.to_json()),
            *map(str, inherited),
        ]
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
                pass_fds=[descriptor for descriptor in inherited if descriptor >= 0],
                check=True,
            )
        except BaseException:
            ours.close()
            raise
        return ours


def _await_boot(name: str, report: socket.socket, timeout_s: float) -> BedState:
    """Wait for the keeper's word; on a time-out or Ctrl-C have it clean up first."""
    try:
        told = _read_all(report, timeout_s)
    except TimeoutError:
        told = _cancel(report) | {"error": f"the boot was not done after {timeout_s:g} s"}
    except BaseException:
        _cancel(report)
        raise
    if "state" in told:
        return BedState.from_json(str(told["state"]))
    lines = "".join(f"\n  | {line}" for line in (told.get("console") or "").splitlines())
    reason = told.get("error") or "its keeper ended without a word"
    raise BedError(f"Cannot boot bed '{name}': {reason}{lines}", hint=told.get("hint"))


def _cancel(report: socket.socket) -> dict[str, str | None]:
    with contextlib.suppress(OSError):
        report.shutdown(socket.SHUT_WR)
        return _read_all(report, 3 * POWER_OFF_S)
    return {}


def _read_all(report: socket.socket, timeout_s: float) -> dict[str, str | None]:
    """The JSON object that the keeper sends before it closes its end; {} if it sends none."""
    deadline = monotonic() + timeout_s
    data = b""
    while True:
        report.settimeout(max(deadline - monotonic(), 0.001))
        part = report.recv(65536)
        if not part:
            return dict(json.loads(data)) if data else {}
        data += part
