"""The keeper of one bed: boots it, waits for its end or its owner's, removes what it left.

A process of its own, started by `understudy.bed` in a mount namespace of its own: whatever ends
it, no mount outlives it. While it lives it holds the bed's *claim*, an abstract unix socket, so
a folder in `BEDS` without a claim is what a killed keeper left, and `sweep` may take it away.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep

from understudy.errors import BedError
from understudy.procfs import Process

BEDS = Path("/run/understudy/beds")
"""One folder for each bed that is up: its state, its console, the mount point of its tree."""

POWER_OFF_S = 10.0
"""Seconds that a bed gets for an orderly power-off; then it is killed."""

_CONSOLE_LINES = 20
_DISK_FILESYSTEMS = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "xfs", "zfs"})
_NEVER_COPIED = ("/dev", "/proc", "/run", "/sys", "/tmp")  # a bed has its own


@dataclass(frozen=True, slots=True, kw_only=True)
class BedState:
    """What is known of a bed, as its ``state.json`` holds it.

    Attributes:
        name: The bed's name, its machine's name and host name.
        root: The OS tree it was booted from.
        binds: Folders and files bound into it, read-write, under their own paths.
        capabilities: Capabilities it has beyond nspawn's default (``CAP_BPF``).
        owner_pid: The process whose end is the bed's end; None for a bed nobody owns.
        keeper_pid: The keeper's PID.
        leader_pid: The PID, on the host, of the bed's own PID 1; 0 until it has one.
        systemd: The version of systemd in the tree: ``252.39-1~deb12u1``.
        cgroups: The bed's cgroup folders on the host, that of cgroup v2 first.
    """

    name: str
    root: str
    binds: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    owner_pid: int | None = None
    keeper_pid: int = 0
    leader_pid: int = 0
    systemd: str = ""
    cgroups: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> BedState:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        for name in ("binds", "capabilities", "cgroups"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def to_json(self) -> str:
        """This state as one line of JSON."""
        return json.dumps(asdict(self))

    def but(self, **changes: object) -> BedState:
        """A copy with other values in the named fields."""
        return BedState.from_json(json.dumps(asdict(self) | changes))


def booted() -> bool:
    """Whether PID 1 here is systemd (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def claim(name: str) -> socket.socket | None:
    """Claim a bed's name; the kernel frees it when the last copy of the socket is closed.

    Returns:
        The claim, or None if a keeper holds it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(_claim_address(name))
    except OSError:
        held.close()
        return None
    return held


def claimed(name: str) -> bool:
    """Whether a living keeper holds the bed's name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        return asking.connect_ex(_claim_address(name)) == 0


def _claim_address(name: str) -> str:
    return f"\0understudy/bed/{name}"


def read_state(name: str) -> BedState | None:
    """The state of a bed, also of one whose keeper is gone; None if there is none."""
    try:
        return BedState.from_json((BEDS / name / "state.json").read_text())
    except FileNotFoundError:
        return None


def sweep(name: str) -> None:
    """Remove what a bed left: its last processes, its cgroups, its folder.

    Only for who holds the bed's claim.
    """
    state = read_state(name)
    for folder in map(Path, state.cgroups if state else ()):
        # Of a scope only what nspawn made below it: the rest is systemd's, and the keeper is in it.
        ours = [folder / "payload", folder / "supervisor"] if booted() else [folder]
        for path in ours:
            _remove_cgroup(path)
    shutil.rmtree(BEDS / name, ignore_errors=True)


def join_cgroups(folders: Sequence[str]) -> list[str]:
    """The words before a command line that put it into these cgroups."""
    join = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'
    return ["sh", "-ec", join, "sh", *folders, "--"]


def main(arguments: list[str]) -> int:
    """Keep one bed until its end.

    Args:
        arguments: The wanted state as JSON, then the numbers of inherited descriptors: the
            socket to report on, the claim, the owner's pidfd (-1 if nobody owns the bed).

    Returns:
        The exit code: 0, also when the boot failed, which is reported on the socket.
    """
    wanted = BedState.from_json(arguments[0])
    report = socket.socket(fileno=int(arguments[1]))
    owner = int(arguments[3])
    keeper = _Keeper(wanted.but(keeper_pid=os.getpid()), report, owner)
    answer: dict[str, str | None]
    claimed_name = int(arguments[2])
    try:
        keeper.keep()
    except (BedError, OSError, subprocess.SubprocessError) as exc:
        answer = {"error": getattr(exc, "message", str(exc)), "hint": getattr(exc, "hint", None)}
    else:
        answer = {"error": "it was told to end"}
    finally:
        console = keeper.console_tail()
        keeper.clean_up()
        os.close(claimed_name)
    if not keeper.ready:
        with contextlib.suppress(OSError):  # nobody listens any more
            report.sendall(json.dumps(answer | {"console": console}).encode())
    return 0


class _Keeper:
    """One bed's boot, life and end. The steps of `keep` leave their traces to `clean_up`."""

    def __init__(self, state: BedState, report: socket.socket, owner: int) -> None:
        self.state = state
        self.report = report
        self.owner = owner
        self.ready = False
        self.folder = BEDS / state.name
        self.tree = self.folder / "tree"
        self.console = self.folder / "console"
        self.nspawn: subprocess.Popen[bytes] | None = None
        self.wakeup, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def keep(self) -> None:
        """Boot the bed and return when it has to end."""
        os.chdir("/")
        self.folder.mkdir(parents=True)
        self.tree.mkdir()
        with self.console.open("wb") as console:
            os.dup2(console.fileno(), 2)  # what our own helpers complain about belongs there too
        self._update(cgroups=tuple(map(str, _make_cgroups(self.state.name))))
        root = _mount_tree(Path(self.state.root), self.tree)
        self._update(systemd=_systemd_version(root, self.state.root))
        _make_quiet(root, self.state.name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(self.folder / "notify"))
            self.nspawn = self._start_nspawn(root)
            self._watch(self.nspawn, notify)

    def clean_up(self) -> None:
        """Power off what still runs and remove everything."""
        if self.nspawn is not None:
            for pid in children(self.nspawn.pid):  # unshare's: nspawn, for which it is a power-off
                os.kill(pid, signal.SIGTERM)
            try:
                self.nspawn.wait(POWER_OFF_S)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()
                self.nspawn.wait()
        if os.path.ismount(self.tree):
            _run("umount", "--lazy", "--recursive", str(self.tree))
        sweep(self.state.name)

    def console_tail(self) -> str:
        """The last lines of the bed's console."""
        try:
            text = self.console.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.replace("\r", "").rstrip().splitlines()[-_CONSOLE_LINES:])

    def _update(self, **changes: object) -> None:
        self.state = self.state.but(**changes)
        new = self.folder / "state.new"
        new.write_text(self.state.to_json())
        new.replace(self.folder / "state.json")

    def _start_nspawn(self, root: Path) -> subprocess.Popen[bytes]:
        # nspawn makes payload/ below the cgroup it was started in: that must be the bed's own.
        # Its locks and sockets go to a folder that only this mount namespace sees.
        hidden = Path("/run/systemd/nspawn")
        hidden.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(hidden))
        command = [
            *join_cgroups(self.state.cgroups),
            # Killed with the keeper, and all of the bed with it: nspawn alone would leave its
            # payload behind, but what lives in a PID namespace dies with the first process of it.
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
            *("systemd-nspawn", "--quiet", "--keep-unit", "--register=no", "--settings=no"),
            *("--private-network", "--link-journal=no", "--console=pipe", "--notify-ready=yes"),
            *(f"--machine={self.state.name}", f"--directory={root}"),
            *(f"--bind={_nspawn_path(path)}" for path in self.state.binds),
            *(f"--capability={name}" for name in self.state.capabilities),
            # Before 258 nspawn's own filter refuses bpf(2) whatever the capabilities.
            *(["--system-call-filter=bpf"] if "CAP_BPF" in self.state.capabilities else []),
            # Not graphical.target: it wants a display manager by name, enabled or not.
            *("--boot", "systemd.unit=multi-user.target"),
        ]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "NOTIFY_SOCKET": str(self.folder / "notify"),
            # nspawn gives a payload the host's cgroup layout; a bed has cgroup v2 everywhere.
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        }
        with self.console.open("ab") as console:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment
            )

    def _watch(self, nspawn: subprocess.Popen[bytes], notify: socket.socket) -> None:
        ended = os.pidfd_open(nspawn.pid)
        poll = select.poll()
        for descriptor in (self.wakeup, ended, notify.fileno(), self.report.fileno()):
            poll.register(descriptor, select.POLLIN)
        if self.owner >= 0:
            poll.register(self.owner, select.POLLIN)
        while True:
            happened = {descriptor for descriptor, _ in poll.poll()}
            if notify.fileno() in happened:
                self._notified(notify.recv(4096).decode(errors="replace").splitlines())
                if self.ready and self.report.fileno() >= 0:
                    poll.unregister(self.report)
                    self.report.close()
            elif ended in happened:
                self.nspawn = None
                code = nspawn.wait()
                if not self.ready:
                    raise BedError(f"systemd-nspawn ended with {code} during the boot")
                return
            elif happened:  # told to end, the owner's end, or nobody waits for the boot any more
                return

    def _notified(self, lines: list[str]) -> None:
        # sd_notify(3): nspawn tells its leader, and hands READY=1 of the bed's own PID 1 on.
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        if "X_NSPAWN_LEADER_PID" in told:
            self._update(leader_pid=self._leader(told["X_NSPAWN_LEADER_PID"]))
        if told.get("READY") == "1" and not self.ready:
            self.report.sendall(json.dumps({"state": self.state.to_json()}).encode())
            self.ready = True

    def _leader(self, pid_inside: str) -> int:
        """The leader's PID out here, from that in the PID namespace of nspawn."""
        assert self.nspawn is not None
        for nspawn in children(self.nspawn.pid):
            for pid in children(nspawn):
                status = Path(f"/proc/{pid}/status").read_text()
                if status.split("NSpid:")[1].split()[1] == pid_inside:
                    return pid
        raise BedError("systemd-nspawn's payload has ended")


def children(pid: int) -> list[int]:
    """The child processes of a process with one thread (proc(5)); none if it is gone."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def _make_cgroups(name: str) -> list[Path]:
    """A cgroup folder of the bed's own in each hierarchy that systemd uses, v2 first.

    Under systemd the keeper was started in a scope with ``Delegate=yes``, which is that folder
    already; the keeper moves down, as only leaves may hold processes (systemd's
    CGROUP_DELEGATION). Elsewhere the folder is made at the top.
    """
    mounts = _cgroup_mounts()
    if "" not in mounts:
        raise BedError(
            "no cgroup2 file system is mounted",
            hint="Run: mount -t cgroup2 cgroup2 /sys/fs/cgroup  (or at /sys/fs/cgroup/unified)",
        )
    folders = []
    if booted():
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in mounts:
                folders.append(mounts[controllers] / path.lstrip("/"))
        folders.sort(key=lambda folder: not folder.is_relative_to(mounts[""]))
        for folder in folders:
            leaf = folder / "keeper"
            leaf.mkdir()
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
    else:
        for controllers in sorted(mounts):
            folder = mounts[controllers] / f"understudy-bed-{name}"
            folder.mkdir(exist_ok=True)
            folders.append(folder)
    return folders


def _cgroup_mounts() -> dict[str, Path]:
    """Mount points of cgroup v2 ("") and of systemd's own v1 hierarchy ("name=systemd")."""
    mounts = {}
    for mount in Process(os.getpid()).mounts:
        if mount.kind == "cgroup2":
            mounts[""] = Path(mount.point)
        elif mount.kind == "cgroup" and "name=systemd" in mount.super_options:
            mounts["name=systemd"] = Path(mount.point)
    return mounts


def _remove_cgroup(folder: Path) -> None:
    """Kill what lives in a cgroup and remove its folders, the deepest first."""
    if (folder / "cgroup.kill").exists():  # Linux 5.14, cgroup v2
        (folder / "cgroup.kill").write_text("1")
    deadline = monotonic() + POWER_OFF_S
    pause_s = 0.001
    while folder.exists():
        for path, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # EBUSY while the last process is going
                os.rmdir(path)  # noqa: PTH106
        if monotonic() > deadline:
            return
        if folder.exists():
            sleep(pause_s)
            pause_s = min(2 * pause_s, 0.1)


def _mount_tree(source: Path, place: Path) -> Path:
    """Mount the OS tree with all changes in memory, and give the mount point.

    Of this machine's own tree that includes the disks mounted below ``/``, each under an overlay
    of its own.
    """
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(place))
    root = place / "root"
    below = []
    if source == Path("/"):
        below = sorted(
            mount.point
            for mount in Process(os.getpid()).mounts
            if mount.kind in _DISK_FILESYSTEMS
            and mount.point != "/"
            and not any(Path(mount.point).is_relative_to(path) for path in _NEVER_COPIED)
            and Path(mount.point).is_dir()
        )
    for number, point in enumerate([str(source), *below]):
        target = root / point.lstrip("/") if number else root
        upper, work = place / f"upper{number}", place / f"work{number}"
        for folder in (upper, work):
            folder.mkdir()
        target.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={_overlay_path(point)},upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "-o", options, "overlay", str(target))
    return root


def _overlay_path(path: str) -> str:
    return "".join(f"\\{char}" if char in "\\:," else char for char in path)


def _nspawn_path(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")


def _systemd_version(root: Path, source: str) -> str:
    try:
        told = _run("chroot", str(root), "systemctl", "--version")
    except BedError as exc:
        raise BedError(f"there is no systemd in '{source}': {exc.message}") from exc
    # "systemd 252 (252.39-1~deb12u1)", and only a number in some distributions
    first = told.splitlines()[0].split(maxsplit=2)
    return first[-1].strip("()")


def _make_quiet(root: Path, name: str) -> None:
    """Take from the tree what is this machine's own business, in the overlay only.

    Units enabled here (production among them), lingering users and network mounts must not start
    a second time, and the bed's journal is its own. The unit files themselves stay.
    """
    for pattern in (
        "etc/systemd/system/*.wants/*",
        "etc/systemd/system/*.requires/*",
        "etc/systemd/user/*.wants/*",
        "etc/rc?.d/*",
        "var/lib/systemd/linger/*",
        "etc/fstab",
    ):
        for path in root.glob(pattern):
            path.unlink()
    # tmpfiles.d(5) empties folders such as /tmp at boot and by age: never those of this machine
    # that are bound into the bed.
    units = root / "etc/systemd/system"
    setup = units / "systemd-tmpfiles-setup.service.d"
    setup.mkdir(parents=True, exist_ok=True)
    (setup / "zz-bed.conf").write_text(
        "[Service]\nExecStart=\nExecStart=systemd-tmpfiles --create --boot --exclude-prefix=/dev\n"
    )
    for unit in ("systemd-tmpfiles-clean.service", "systemd-tmpfiles-clean.timer"):
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    with (root / "etc/hosts").open("a") as hosts:
        hosts.write(f"\n127.0.1.1 {name}\n")


def _run(*command: str) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise BedError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
