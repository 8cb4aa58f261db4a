"""What is said to be not in force, against what the service itself finds out about its life."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.systemd.support import ROOT

from understudy import effects, listing
from understudy.errors import InstanceError
from understudy.instance import Instance
from understudy.manager import Manager, connect
from understudy.run import Run
from understudy.seen import CHECKERS

SERVICE = """
[Service]
Type=notify
ExecStart=/usr/bin/false
CapabilityBoundingSet=
InaccessiblePaths=/srv
LimitNOFILE=77
MemoryMax=64M
NoNewPrivileges=yes
OOMScoreAdjust=300
PrivateIPC=yes
PrivateNetwork=yes
PrivateTmp=yes
ProtectHome=yes
ProtectHostname=yes
ProtectSystem=strict
ReadOnlyPaths=/var
SystemCallFilter=~sched_getparam
SystemCallErrorNumber=EXDEV
UMask=0027
"""

INSTANCE = """
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -IS {{ (files ~ "/probe.py") | quote }}
"""

PROBE = r'''
"""Find out by trying what is in force here, and say so in one line of JSON."""
import ctypes, errno, json, os, resource, signal, socket

libc = ctypes.CDLL(None, use_errno=True)

def read_only(path):
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)

def hidden(path):
    return os.stat(path).st_mode & 0o777 == 0

def filtered():
    libc.sched_getparam(0, ctypes.create_string_buffer(64))
    return ctypes.get_errno() == errno.EXDEV

def memory_limit():
    group = open("/proc/self/cgroup").read().rpartition("0::")[2].strip()
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        try:
            return int(open(f"{root}{group}/memory.max").read())
        except (OSError, ValueError):
            pass

status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines())
facts = {
    "CapabilityBoundingSet": int(status["CapBnd"], 16) == 0,
    "InaccessiblePaths": hidden("/srv"),
    "LimitNOFILE": resource.getrlimit(resource.RLIMIT_NOFILE)[1] == 77,
    "MemoryMax": memory_limit() == 64 << 20,
    "NoNewPrivileges": libc.prctl(39, 0, 0, 0, 0) == 1,
    "OOMScoreAdjust": open("/proc/self/oom_score_adj").read() == "300\n",
    "PrivateIPC": os.readlink("/proc/self/ns/ipc") != os.environ["OUTER_IPC"],
    "PrivateNetwork": os.readlink("/proc/self/ns/net") != os.environ["OUTER_NET"],
    "PrivateTmp": not os.path.exists(os.environ["WITNESS"]),
    "ProtectHome": hidden("/root") and hidden("/home"),
    "ProtectHostname": os.readlink("/proc/self/ns/uts") != os.environ["OUTER_UTS"],
    "ProtectSystem": all(map(read_only, ("/", "/usr", "/etc"))),
    "ReadOnlyPaths": read_only("/var"),
    "SystemCallFilter": filtered(),
    "UMask": os.umask(0o27) == 0o27,
}
print("FACTS", json.dumps(facts), flush=True)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
'''

NAMESPACES = ("ipc", "net", "uts")

Spawn = Callable[..., Instance]


@pytest.fixture(scope="module")
def manager() -> Manager:
    return connect()


@pytest.fixture
def spawn(manager: Manager, tmp_path: Path) -> Iterator[Spawn]:
    """Start the probe as an instance of a production with these settings."""
    folder = tmp_path / "probed"
    folder.mkdir()
    (folder / "service.toml").write_text(
        'description = "probe"\nproduction = "probed.service"\n'
        '[instance.files]\n"probe.py" = "probe.py"\n'
    )
    (folder / "probe.py").write_text(PROBE)
    witness = tmp_path / "witness"
    witness.touch()
    tmp_path.chmod(0o755)
    own = Path("/proc/self/ns")
    outer = {f"OUTER_{kind.upper()}": str((own / kind).readlink()) for kind in NAMESPACES}
    with Run(manager=manager, units=tmp_path) as run:

        def start(service: str = SERVICE, instance: str = INSTANCE) -> Instance:
            (folder / "probed.service.j2").write_text(service)
            (folder / "instance.conf").write_text(instance)
            return run.spawn("probed", env={"WITNESS": str(witness), **outer})

        yield start


def reported(manager: Manager, instance: Instance) -> dict[str, str]:
    one = listing.find(listing.instances(manager), instance.unit)
    found = effects.not_in_force(manager, one)
    return {effect.setting.partition("=")[0]: effect.reason for effect in found}


def test_reports_exactly_what_the_service_finds_missing(manager: Manager, spawn: Spawn) -> None:
    instance = spawn()
    said = next(line for line in instance.journal().splitlines() if line.startswith("FACTS "))
    facts = json.loads(said.removeprefix("FACTS "))
    missing = {name for name, in_force in facts.items() if not in_force}
    assert set(reported(manager, instance)) & set(facts) == missing


def test_no_new_privileges_is_never_reported_missing(manager: Manager, spawn: Spawn) -> None:
    assert "NoNewPrivileges" not in reported(manager, spawn())


def test_names_the_drop_in_that_took_a_setting_back(manager: Manager, spawn: Spawn) -> None:
    assert reported(manager, spawn())["OOMScoreAdjust"] == "90-understudy.conf makes it '500'"


def test_a_unit_without_settings_has_nothing_to_report(manager: Manager, spawn: Spawn) -> None:
    plain = "[Service]\nType=notify\nExecStart=/usr/bin/false\n"
    production = {line.partition("=")[0] for line in SERVICE.splitlines()}
    assert not production & set(reported(manager, spawn(plain)))


EVERY_SERVICE = """
[Service]
Type=notify
ExecStart=/usr/bin/false
User=probed
DynamicUser=yes
UMask=0027
NoNewPrivileges=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
PrivateDevices=yes
PrivateIPC=yes
PrivateMounts=yes
PrivateNetwork=yes
PrivateTmp=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
ProtectSystem=strict
InaccessiblePaths=/srv
ReadOnlyPaths=/var
CapabilityBoundingSet=
LimitAS=16G
LimitCORE=0
LimitDATA=8G
LimitFSIZE=1G
LimitMEMLOCK=64K
LimitMSGQUEUE=1000
LimitNOFILE=77
LimitNPROC=4000
LimitRSS=8G
LimitRTPRIO=0
LimitSIGPENDING=500
LimitSTACK=16M
AllowedCPUs=0
AllowedMemoryNodes=0
CPUQuota=50%
MemoryHigh=200M
MemoryMax=256M
MemorySwapMax=16M
TasksMax=50
"""

EVERY_INSTANCE = """
SupplementaryGroups=audio
TemporaryFileSystem=/mnt
BindPaths=/var/tmp:/media
BindReadOnlyPaths=/usr/share:/opt
Nice=5
CPUSchedulingPolicy=batch
IOSchedulingClass=idle
CPUWeight=50
IOWeight=50
MemoryLow=1M
MemoryMin=1M
"""

UNWITNESSED = {
    # No instance can have them: its own drop-ins take them, or what they need.
    *("AmbientCapabilities", "Group", "RootDirectory", "RootImage"),
    "PrivatePIDs",  # since 257
    # BPF: what it does is tried by test_guards.py, and others have no account of it.
    *("DeviceAllow", "DevicePolicy", "IPAddressAllow", "IPAddressDeny"),
    *("RestrictNetworkInterfaces", "SocketBindAllow", "SocketBindDeny"),
}

FILTERS = (
    *("LockPersonality", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime"),
    *("RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallFilter"),
)

LIMITS = {
    "AS": ("address space", 16 << 30),
    "CORE": ("core file size", 0),
    "DATA": ("data size", 8 << 30),
    "FSIZE": ("file size", 1 << 30),
    "MEMLOCK": ("locked memory", 64 << 10),
    "MSGQUEUE": ("msgqueue size", 1000),
    "NOFILE": ("open files", 77),
    "NPROC": ("processes", 4000),
    "RSS": ("resident set", 8 << 30),
    "RTPRIO": ("realtime priority", 0),
    "SIGPENDING": ("pending signals", 500),
    "STACK": ("stack size", 16 << 20),
}

CONTROLLED = {
    "AllowedCPUs": ("cpuset.cpus", "0"),
    "AllowedMemoryNodes": ("cpuset.mems", "0"),
    "CPUQuota": ("cpu.max", "50000 100000"),
    "CPUWeight": ("cpu.weight", "50"),
    "IOWeight": ("io.weight", "default 50"),
    "MemoryHigh": ("memory.high", str(200 << 20)),
    "MemoryLow": ("memory.low", str(1 << 20)),
    "MemoryMax": ("memory.max", str(256 << 20)),
    "MemoryMin": ("memory.min", str(1 << 20)),
    "MemorySwapMax": ("memory.swap.max", str(16 << 20)),
    "TasksMax": ("pids.max", "50"),
}


def witnessed(pid: int) -> dict[str, bool]:
    """What the kernel says of a process, by the directive that would have it so."""
    proc = Path(f"/proc/{pid}")
    status = _status(proc)
    starter = Path(f"/proc/{1 if ROOT else int(status['PPid'])}")
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    options = next(m[-1] for m in reversed(mounts) if m[4] == "/proc")
    bounding = int(status["CapBnd"], 16)
    filters = int(status["Seccomp_filters"]) > int(_status(starter)["Seccomp_filters"])
    row = re.compile(r"Max (\S+(?: \S+)*?) {2,}\S+ +(\S+)")
    limits = dict(row.findall((proc / "limits").read_text()))
    group = (proc / "cgroup").read_text().rpartition("0::")[2].strip()

    def own(kind: str) -> bool:
        return (proc / "ns" / kind).readlink() != (starter / "ns" / kind).readlink()

    def seen(path: str) -> os.stat_result:
        return (proc / f"root{path}").stat()

    def exists(path: str) -> bool:
        return Path(f"{proc}/root{path}").exists()

    def hidden(*paths: str) -> bool:
        return all(seen(path).st_mode & 0o777 == 0 for path in paths)

    def read_only(*paths: str) -> bool:
        return all(os.statvfs(f"{proc}/root{path}").f_flag & os.ST_RDONLY for path in paths)

    def controlled(name: str, value: str) -> bool:
        for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            with contextlib.suppress(OSError):
                return Path(f"{root}{group}/{name}").read_text().strip() == value
        return False

    def without(*bits: int) -> bool:
        return not any(bounding >> bit & 1 for bit in bits)

    uid = int(status["Uid"].split()[1])
    return {
        **dict.fromkeys(FILTERS, status["Seccomp"] == "2" and filters),
        **{f"Limit{key}": limits[text] == str(value) for key, (text, value) in LIMITS.items()},
        **{key: controlled(*value) for key, value in CONTROLLED.items()},
        "NoNewPrivileges": status["NoNewPrivs"] == "1",
        "CapabilityBoundingSet": bounding == 0,
        "ProtectClock": without(25, 35),  # CAP_SYS_TIME, CAP_WAKE_ALARM
        "ProtectKernelLogs": without(34),  # CAP_SYSLOG
        "ProtectKernelModules": without(16),  # CAP_SYS_MODULE
        "User": 61184 <= uid < 65520,
        "DynamicUser": 61184 <= uid < 65520,
        "SupplementaryGroups": str(grp.getgrnam("audio").gr_gid) in status["Groups"].split(),
        "UMask": status["Umask"] == "0027",
        "Nice": (proc / "stat").read_text().rpartition(")")[2].split()[16] == "5",
        "CPUSchedulingPolicy": os.sched_getscheduler(pid) == os.SCHED_BATCH,
        "IOSchedulingClass": subprocess.check_output(["ionice", "-p", str(pid)]) == b"idle\n",
        "OOMScoreAdjust": (proc / "oom_score_adj").read_text() == "500\n",
        "PrivateIPC": own("ipc"),
        "PrivateMounts": own("mnt"),
        "PrivateNetwork": own("net"),
        "PrivateUsers": own("user"),
        "ProtectHostname": own("uts"),
        "PrivateDevices": seen("/dev").st_dev != Path("/dev").stat().st_dev,
        "PrivateTmp": not os.path.samestat(seen("/tmp"), Path("/tmp").stat()),
        "ProtectControlGroups": read_only("/sys/fs/cgroup"),
        "ProtectHome": hidden("/home", "/root", "/run/user"),
        "ProtectKernelTunables": not exists("/proc/sys") or read_only("/proc/sys"),
        "ProtectProc": "hidepid=" in options,
        "ProcSubset": "subset=pid" in options,
        "ProtectSystem": read_only("/", "/usr", "/etc"),
        "InaccessiblePaths": hidden("/srv"),
        "ReadOnlyPaths": read_only("/var"),
        "TemporaryFileSystem": any(m[4] == "/mnt" and "tmpfs" in m for m in mounts),
        "BindPaths": os.path.samestat(seen("/media"), Path("/var/tmp").stat()),
        "BindReadOnlyPaths": read_only("/opt")
        and os.path.samestat(seen("/opt"), seen("/usr/share")),
    }


def _status(proc: Path) -> dict[str, str]:
    rows = (line.partition(":") for line in (proc / "status").read_text().splitlines())
    return {name: value.strip() for name, _, value in rows}


def test_every_row_that_is_claimed_to_be_in_force_is_so_by_the_kernels_account(
    manager: Manager, spawn: Spawn
) -> None:
    instance = spawn(EVERY_SERVICE, INSTANCE + EVERY_INSTANCE)
    files = effects.read_files(manager.cat(instance.unit))
    asking = [file for file in files if not file.name.startswith(effects.CONCESSIONS)]
    asked = {line.name for file in asking for line in file.lines}
    final = effects.settings(line for file in files for line in file.lines)
    rows = asked & final.keys() & CHECKERS.keys()
    said = reported(manager, instance)
    claimed = rows - said.keys()
    kernel = witnessed(instance.pid)
    assert CHECKERS.keys() - UNWITNESSED == kernel.keys()
    for name in sorted(rows & kernel.keys()):
        print(f"{name}: {said.get(name, 'in force')}; seen: {kernel[name]}")
    false = {name for name in claimed & kernel.keys() if not kernel[name]}
    assert false == set(), "claimed, and not so"
    assert len(rows & kernel.keys()) >= (50 if ROOT else 40)
    lost = {name for name in rows & kernel.keys() - claimed if kernel[name]}
    assert lost == set(), "said not to be in force, and it is"


@pytest.mark.skipif(not ROOT, reason="only root can be somebody else")
def test_what_somebody_else_may_not_see_is_not_taken_for_granted(spawn: Spawn) -> None:
    code = f"""
from understudy import effects, listing
from understudy.manager import connect
from understudy.model import ManagerKind
manager = connect(ManagerKind.SYSTEM)
one = listing.find(listing.instances(manager), {spawn().unit!r})
print(*(e.reason for e in effects.not_in_force(manager, one) if "PrivateIPC" in e.setting))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], user=65534, capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == effects.UNSEEN


def test_an_instance_that_died_is_an_error_that_says_so(manager: Manager, spawn: Spawn) -> None:
    instance = spawn()
    one = listing.find(listing.instances(manager), instance.unit)
    manager.stop([instance.unit], timeout_s=30)
    with pytest.raises(InstanceError, match="is gone"):
        effects.not_in_force(manager, one)
