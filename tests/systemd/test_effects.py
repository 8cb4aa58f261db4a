"""What is said to be not in force, against what the service itself finds out about its life."""

from __future__ import annotations

import json
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
    (folder / "instance.conf").write_text(INSTANCE)
    witness = tmp_path / "witness"
    witness.touch()
    tmp_path.chmod(0o755)
    own = Path("/proc/self/ns")
    outer = {f"OUTER_{kind.upper()}": str((own / kind).readlink()) for kind in NAMESPACES}
    with Run(manager=manager, units=tmp_path) as run:

        def start(service: str = SERVICE) -> Instance:
            (folder / "probed.service.j2").write_text(service)
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
