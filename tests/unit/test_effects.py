"""What is not in force, told from the text of a unit and of /proc."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from understudy import bpf
from understudy.effects import UNSEEN, Effect, not_shown, read_files, settings, taken_back
from understudy.model import ManagerKind
from understudy.procfs import CAPABILITIES, Mounts, Process
from understudy.seen import CHECKERS, Look, bounding_set
from understudy.unitfile import parse

STATUS = """\
Name:\tprobe
Umask:\t0022
PPid:\t1
Uid:\t1000\t1000\t1000\t1000
Gid:\t1000\t1000\t1000\t1000
Groups:\t44 1000
CapBnd:\t0000000000000400
CapAmb:\t0000000000000000
NoNewPrivs:\t0
Seccomp:\t0
Seccomp_filters:\t0
"""

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units     
Max open files            1024                 524288               files     
Max core file size        0                    unlimited            bytes     
"""  # noqa: W291

HOST = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
24 22 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw
25 22 0:6 / /proc rw,nosuid shared:3 - proc proc rw
26 22 0:7 / /tmp rw shared:4 - tmpfs tmpfs rw
27 26 254:0 /srv /tmp/bound rw shared:5 - ext4 /dev/vda rw
"""

# /tmp/bound lies on the host's /tmp, which another one hides.
SANDBOX = """\
32 1 254:0 / / ro,relatime shared:1 - ext4 /dev/vda rw
34 32 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw
35 32 0:6 / /proc rw,nosuid shared:3 - proc proc rw,hidepid=invisible
36 32 0:7 / /tmp rw shared:4 - tmpfs tmpfs rw
37 36 254:0 /srv /tmp/bound rw shared:5 - ext4 /dev/vda rw
38 36 0:7 /systemd-private-1/tmp /tmp rw shared:6 - tmpfs tmpfs rw
39 32 254:0 /with\\040space /var/tmp rw shared:7 - ext4 /dev/vda rw
"""

MakeProcess = Callable[..., Process]


@pytest.fixture
def make_process(tmp_path: Path) -> MakeProcess:
    def make(pid: int = 100, *, mounts: str = HOST, **fields: str) -> Process:
        folder = tmp_path / str(pid)
        (folder / "ns").mkdir(parents=True)
        lines = STATUS.splitlines()
        for name, value in fields.items():
            lines = [line for line in lines if not line.startswith(f"{name}:")]
            lines.append(f"{name}:\t{value}")
        (folder / "status").write_text("\n".join(lines))
        (folder / "limits").write_text(LIMITS)
        (folder / "mountinfo").write_text(mounts)
        (folder / "oom_score_adj").write_text("0\n")
        stat = ["S", "1", *["0"] * 14, "5", *["0"] * 21, str(os.SCHED_IDLE), "0"]
        (folder / "stat").write_text(f"{pid} (a) b) {' '.join(stat)}\n")
        for kind in ("net", "mnt", "user", "ipc", "uts", "pid", "cgroup"):
            (folder / "ns" / kind).symlink_to(f"{kind}:[1]")
        return Process(pid, proc=tmp_path)

    return make


@pytest.fixture
def make_look(make_process: MakeProcess, tmp_path: Path) -> Callable[..., Look]:
    def make(*, kind: ManagerKind = ManagerKind.USER, mounts: str = HOST, **fields: str) -> Look:
        cgroup = tmp_path / "cgroup"
        cgroup.mkdir()
        return Look(
            process=make_process(100, mounts=mounts, **fields),
            manager=make_process(1),
            kind=kind,
            cgroup=cgroup,
            specifiers={"t": "/run"},
        )

    return make


def cat(**files: str) -> str:
    """A unit's text as `Manager.cat` gives it."""
    return "\n".join(
        f"# /run/systemd/user/{name.replace('_', '-')}.conf\n[Service]\n{text}\n"
        for name, text in files.items()
    )


def undone(**files: str) -> list[tuple[str, str]]:
    return [(effect.setting, effect.reason) for effect in taken_back(read_files(cat(**files)))]


def test_an_emptied_setting_is_laid_to_the_drop_in_that_emptied_it() -> None:
    assert undone(base="User=redis", a50_user="User=", a90_understudy="OOMScoreAdjust=500") == [
        ("User=redis", "a50-user.conf undoes it")
    ]


def test_a_changed_setting_is_told_with_its_new_value() -> None:
    assert undone(base="ProtectHome=yes", a50_user="ProtectHome=read-only") == [
        ("ProtectHome=yes", "a50-user.conf makes it 'read-only'")
    ]


def test_what_drop_ins_only_add_is_not_taken_back() -> None:
    assert undone(base="ReadOnlyPaths=/srv", a10_instance="ReadOnlyPaths=/opt") == []


def test_a_list_that_is_given_anew_is_laid_to_the_drop_in_that_emptied_it() -> None:
    assert undone(
        base="IPAddressAllow=10.0.0.0/8",
        a05_reset="IPAddressAllow=",
        a90_understudy="IPAddressAllow=localhost",
    ) == [("IPAddressAllow=10.0.0.0/8", "a05-reset.conf undoes it")]


def test_what_production_switches_off_is_not_taken_back() -> None:
    assert undone(base="PrivateTmp=no", a10_instance="PrivateTmp=yes") == []


def test_a_user_of_its_own_is_no_loss() -> None:
    drop_in = "DynamicUser=yes\nUser=us-%i\nGroup="
    assert undone(base="User=redis\nGroup=redis", a50_system=drop_in) == []


def test_an_empty_bounding_set_is_a_setting_that_can_be_undone() -> None:
    assert undone(base="CapabilityBoundingSet=", a50_user="CapabilityBoundingSet=~") == [
        ("CapabilityBoundingSet=", "a50-user.conf undoes it")
    ]


def test_comments_with_paths_do_not_begin_a_file() -> None:
    text = cat(base="# /etc/camera.yaml is read\nUMask=0027")
    assert [file.name for file in read_files(text)] == ["base.conf"]


@pytest.mark.parametrize(
    ("values", "left"),
    [
        ([], len(CAPABILITIES)),
        ([""], 0),
        (["~"], len(CAPABILITIES)),
        (["", "~"], len(CAPABILITIES)),
        (["CAP_CHOWN CAP_KILL"], 2),
        (["CAP_CHOWN", "CAP_KILL"], 2),
        (["CAP_CHOWN CAP_KILL", "~CAP_KILL"], 1),
        (["~CAP_SYS_ADMIN"], len(CAPABILITIES) - 1),
        (["CAP_CHOWN", "", "CAP_KILL"], 1),
    ],
)
def test_bounding_sets_add_up_as_systemd_adds_them(values: list[str], left: int) -> None:
    assert len(bounding_set(values)) == left


def test_mounts_are_followed_through_what_hides_them() -> None:
    mounts = Mounts(SANDBOX)
    assert mounts.at("/tmp/bound").number == 38
    assert mounts.at("/usr").number == 32
    assert mounts.identity("/var/tmp/x") == ("254:0", "/with space/x")
    assert Mounts(HOST).identity("/tmp/bound/x") == ("254:0", "/srv/x")


def reasons(look: Look, text: str) -> dict[str, str]:
    found = not_shown(look, settings(parse(f"[Service]\n{text}\n")))
    return {effect.setting: effect.reason for effect in found}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("NoNewPrivileges=yes", "the process has NoNewPrivs: 0"),
        ("SystemCallFilter=@system-service", "the process has no seccomp filter of its own"),
        ("PrivateNetwork=yes", "the process shares the manager's network"),
        ("PrivateTmp=yes", "'/tmp' is the manager's own"),
        ("ProtectSystem=strict", "'/' is writable"),
        ("ProtectProc=invisible", "/proc shows the processes of all users"),
        ("ReadOnlyPaths=-/tmp", "'/tmp' is writable"),
        ("TemporaryFileSystem=/usr:ro", "'/usr' is not a tmpfs of its own"),
        ("BindReadOnlyPaths=/etc:/usr", "nothing is bound over '/usr'"),
        ("CapabilityBoundingSet=", "the process can still get CAP_NET_BIND_SERVICE"),
        ("AmbientCapabilities=CAP_CHOWN", "the process lacks CAP_CHOWN"),
        ("User=0", "the process runs as user 1000"),
        ("DynamicUser=yes", "the process runs as its manager's user 1000"),
        ("SupplementaryGroups=44 45", "the process is not in group 45"),
        ("UMask=0077", "the process has 0022"),
        ("Nice=10", "the process has 5"),
        ("OOMScoreAdjust=500", "the process has 0"),
        ("LimitNOFILE=1M", "the process's hard limit is 524288"),
        ("MemoryMax=64M", "the memory controller is not on for this unit: no memory.max"),
        ("IPAddressDeny=any", "a user manager cannot load BPF programs"),
    ],
)
def test_a_setting_without_effect_is_told_with_what_was_seen(
    make_look: Callable[..., Look], setting: str, reason: str
) -> None:
    assert reasons(make_look(), setting) == {setting: reason}


@pytest.mark.parametrize(
    "setting",
    [
        "PrivateTmp=yes",
        "ProtectSystem=strict",
        "ProtectProc=invisible",
        "ReadOnlyPaths=/usr",
        "NoNewPrivileges=yes",
        "SystemCallFilter=@system-service",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_CHOWN",
        "User=1000",
        "SupplementaryGroups=44",
        "UMask=0022",
        "Nice=5",
        "LimitNOFILE=1024:512K",
        "LimitCORE=infinity",
        "MemoryMax=infinity",
        "PrivateNetwork=no",
        "PrivateUsers=0",
        "RuntimeMaxSec=60",
    ],
)
def test_a_setting_in_force_is_not_reported(make_look: Callable[..., Look], setting: str) -> None:
    look = make_look(mounts=SANDBOX, NoNewPrivs="1", Seccomp_filters="3")
    assert reasons(look, setting) == {}


@pytest.mark.parametrize(
    ("setting", "file", "content", "reason"),
    [
        ("MemoryMax=64M", "memory.max", "67108864\n", ""),
        ("MemoryMax=64M", "memory.max", "max\n", "memory.max is 'max'"),
        ("MemoryHigh=50%", "memory.high", "123456789\n", ""),
        ("TasksMax=5", "pids.max", "5\n", ""),
        ("TasksMax=5", "pids.max", "6\n", "pids.max is '6'"),
        ("CPUQuota=150%", "cpu.max", "150000 100000\n", ""),
        ("CPUQuota=20%", "cpu.max", "max 100000\n", "cpu.max is 'max 100000'"),
        ("IOWeight=200", "io.weight", "default 200\n", ""),
    ],
)
def test_limits_of_a_control_group_are_read_from_it(
    make_look: Callable[..., Look], setting: str, file: str, content: str, reason: str
) -> None:
    look = make_look()
    (look.cgroup / file).write_text(content)
    assert reasons(look, setting) == ({setting: reason} if reason else {})


def test_the_scheduling_policy_is_the_kernels(make_look: Callable[..., Look]) -> None:
    look = make_look()
    assert not_shown(look, {"CPUSchedulingPolicy": ["idle"], "Nice": ["5"]}) == []
    found = not_shown(look, {"CPUSchedulingPolicy": ["other"], "Nice": ["19"]})
    assert [one.reason for one in found] == ["the process has idle", "the process has 5"]
    assert Process(os.getpid()).io_class in range(4)


def test_memory_is_protected_where_all_slices_above_are(make_look: Callable[..., Look]) -> None:
    look = make_look()
    inner = look.cgroup / "system.slice" / "lead.service"
    inner.mkdir(parents=True)
    (inner / "memory.low").write_text("1048576\n")
    (inner.parent / "memory.low").write_text("0\n")
    look = replace(look, cgroup=inner)
    assert [one.reason for one in not_shown(look, {"MemoryLow": ["1M"]})] == [
        "memory.low of system.slice is 0, which bounds what is below"
    ]
    (inner.parent / "memory.low").write_text("2097152\n")
    assert not_shown(look, {"MemoryLow": ["1M"]}) == []


FIREWALL = {bpf.INGRESS: ["sd_fw_ingress"], bpf.EGRESS: ["sd_fw_egress"]}
INTERFACES = {bpf.INGRESS: ["sd_restrictif_i"], bpf.EGRESS: ["sd_restrictif_e"]}
NO_PROGRAM = "no BPF program is attached to the unit's control group"


@pytest.mark.parametrize(
    ("setting", "attached", "in_force"),
    [
        ("IPAddressDeny=any", FIREWALL, True),
        ("IPAddressDeny=any", INTERFACES, False),
        ("IPAddressDeny=any", {bpf.EGRESS: ["sd_fw_egress"]}, False),
        ("IPAddressDeny=any", {bpf.INGRESS: [""], bpf.EGRESS: [""]}, True),
        ("RestrictNetworkInterfaces=lo", FIREWALL, False),
        ("RestrictNetworkInterfaces=lo", INTERFACES, True),
        ("SocketBindDeny=tcp:80", FIREWALL, False),
        (
            "SocketBindDeny=tcp:80",
            {bpf.INET4_BIND: ["sd_bind4"], bpf.INET6_BIND: ["sd_bind6"]},
            True,
        ),
        ("SocketBindAllow=tcp:81", {}, True),
        ("IPAddressAllow=localhost", {}, True),
    ],
)
def test_programs_are_told_apart_by_where_they_are_and_by_name(
    make_look: Callable[..., Look],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    attached: dict[int, list[str]],
    in_force: bool,
) -> None:
    monkeypatch.setattr(bpf, "programs", lambda _cgroup, number: attached.get(number, []))
    found = reasons(make_look(kind=ManagerKind.SYSTEM), setting)
    assert found == ({} if in_force else {setting: NO_PROGRAM})


def test_what_the_caller_may_not_see_is_said_to_be_unseen(
    make_look: Callable[..., Look], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_process: Process, _kind: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Process, "namespace", refuse)
    assert reasons(make_look(), "PrivateNetwork=yes") == {"PrivateNetwork=yes": UNSEEN}


def test_a_process_that_is_gone_is_no_finding(make_look: Callable[..., Look]) -> None:
    look = make_look()
    gone = Look(
        process=Process(1, proc=look.cgroup),
        manager=look.manager,
        kind=look.kind,
        cgroup=look.cgroup,
        specifiers={},
    )
    with pytest.raises(FileNotFoundError):
        reasons(gone, "NoNewPrivileges=yes")


def test_every_checker_is_documented() -> None:
    page = Path(__file__).parents[2] / "docs/not-in-force.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in CHECKERS if f"`{name}=`" not in text] == []


def test_effects_have_the_documented_shape() -> None:
    effect = Effect(setting="PrivateTmp=yes", reason="'/tmp' is the manager's own")
    assert effect.to_json() == {
        "setting": "PrivateTmp=yes",
        "reason": "'/tmp' is the manager's own",
    }
