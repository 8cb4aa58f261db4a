"""Beds, on the machine itself: what they give, and that nothing of them is left."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from understudy.bed import Bed, beds
from understudy.bed_keeper import BEDS, claimed
from understudy.errors import BedError

pytestmark = [
    pytest.mark.bed,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("systemd-nspawn") is None,
        reason="needs root and systemd-nspawn",
    ),
]

SOON_S = 30.0


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert [bed for bed in beds() if str(tmp_path) in bed.state.binds] == []


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("work"))
        up = Bed.up(owner_pid=os.getpid())
    with up:
        yield up


@pytest.fixture
def workdir(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = Path(bed.state.binds[0])
    monkeypatch.chdir(path)
    return path


def output(bed: Bed, *argv: str, user: str | None = None) -> str:
    # A user may not enter pytest's folders.
    entry, env = bed.command(argv, user=user, cwd=Path("/") if user else None)
    return subprocess.run(entry, env=env, check=True, capture_output=True, text=True).stdout


def traces(bed: Bed) -> list[str]:
    """What there is of a bed on the machine: folders, cgroups, mounts, processes."""
    found = [
        str(path) for path in (BEDS / bed.name, *map(Path, bed.state.cgroups)) if path.exists()
    ]
    if claimed(bed.name):
        found.append("claim")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cgroups, mounts = (process / "cgroup").read_text(), (process / "mounts").read_text()
        except OSError:
            continue
        if f"understudy-bed-{bed.name}" in cgroups or f"/{bed.name}/tree" in mounts:
            found.append(f"{process} {(process / 'comm').read_text().strip()}")
    return found


def gone(bed: Bed) -> bool:
    """Whether everything of a bed goes away, within a bounded time."""
    with os.fdopen(os.pidfd_open(bed.state.leader_pid)) as leader:
        select.select([leader], [], [], SOON_S)
    deadline = monotonic() + SOON_S
    while traces(bed):
        if monotonic() > deadline:
            return False
        select.select([], [], [], 0.01)
    return True


def owned_by_another(tmp_path: Path, then: str = "") -> tuple[subprocess.Popen[str], Bed]:
    """A bed that another process owns: the process, and the bed."""
    code = (
        "import os, signal; from understudy.bed import Bed; "
        f"bed = Bed.up(owner_pid=os.getpid()); print(bed.name, flush=True); {then}; signal.pause()"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "toolkit")}
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    return owner, Bed.find(owner.stdout.readline().strip())


def test_runs_a_real_systemd_with_cgroup_v2(bed: Bed, workdir: Path) -> None:
    assert output(bed, "cat", "/proc/1/comm") == "systemd\n"
    assert output(bed, "stat", "-fc", "%T", "/sys/fs/cgroup") == "cgroup2fs\n"
    assert output(bed, "systemctl", "is-system-running") == "running\n"


def test_command_has_a_scope_of_its_own(bed: Bed, workdir: Path) -> None:
    unified = output(bed, "cat", "/proc/self/cgroup").splitlines()[-1]
    assert unified.startswith("0::/system.slice/run-")
    assert unified.endswith(".scope")


def test_network_is_private(bed: Bed, workdir: Path) -> None:
    outside = str(Path("/proc/self/ns/net").readlink())
    assert output(bed, "readlink", "/proc/self/ns/net").strip() != outside


def test_starts_nothing_that_is_enabled_here(bed: Bed, workdir: Path) -> None:
    wants = output(bed, "sh", "-c", "ls -d /etc/systemd/system/*.wants/* 2>/dev/null || true")
    assert wants == ""


def test_what_is_done_in_the_tree_does_not_stay(bed: Bed, workdir: Path) -> None:
    assert bed.run(["touch", "/usr/understudy-was-here"]) == 0
    assert output(bed, "ls", "/usr/understudy-was-here") == "/usr/understudy-was-here\n"
    assert not Path("/usr/understudy-was-here").exists()


def test_working_directory_is_written_through(bed: Bed, workdir: Path) -> None:
    assert bed.run(["sh", "-c", "pwd >where"]) == 0
    assert (workdir / "where").read_text() == f"{workdir}\n"


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_exit_code_is_as_a_shell_gives_it(
    bed: Bed, workdir: Path, argv: list[str], code: int
) -> None:
    assert bed.run(argv) == code


def test_arguments_are_literal(bed: Bed, workdir: Path) -> None:
    odd = ["$HOME", "%n", "a b", "${X}", "*"]
    assert output(bed, "printf", "%s\n", *odd).splitlines() == odd


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(bed: Bed, workdir: Path, number: signal.Signals) -> None:
    script = (
        f"import os, signal\n"
        f"def got(*_): print('got', flush=True); os._exit(42)\n"
        f"signal.signal({int(number)}, got)\n"
        f"print('waiting', flush=True)\n"
        f"while True: signal.pause()\n"
    )
    code = (
        "import sys; from understudy.bed import Bed; "
        "sys.exit(Bed.find(sys.argv[1]).run(['python3', '-c', sys.argv[2]]))"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code, bed.name, script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "toolkit")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no terminal: the signal is for the caller alone
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "waiting\n"
    caller.send_signal(number)
    assert caller.communicate(timeout=SOON_S)[0] == "got\n"
    assert caller.returncode == 42


def test_user_has_a_manager_of_their_own(bed: Bed, workdir: Path) -> None:
    output(bed, "useradd", "--create-home", "--groups", "audio", "understudy-guest")
    session = (
        'systemctl --user is-system-running; echo "$XDG_RUNTIME_DIR"; id -nG; '
        "systemd-run --user --scope --quiet cat /proc/self/cgroup"
    )
    state, runtime, groups, *cgroups = output(
        bed, "sh", "-c", session, user="understudy-guest"
    ).splitlines()
    uid = output(bed, "id", "-u", "understudy-guest").strip()
    assert state == "running"
    assert runtime == f"/run/user/{uid}"
    assert groups.split() == ["understudy-guest", "audio"]
    assert f"/user@{uid}.service/" in cgroups[-1]


def test_user_keeps_only_the_tools_variables(
    bed: Bed, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_MEDIAMTX", "/m")
    monkeypatch.setenv("AWS_SECRET", "s")
    printed = output(bed, "env", user="nobody").splitlines()
    assert "UNDERSTUDY_MEDIAMTX=/m" in printed
    assert not any(line.startswith("AWS_") for line in printed)


def test_entering_gives_no_right_over_the_hosts_clock(bed: Bed, workdir: Path) -> None:
    time_bit = 25  # CAP_SYS_TIME, capability.h
    mask = output(bed, "sh", "-c", "sed -n s/CapBnd://p /proc/self/status").strip()
    assert not int(mask, 16) >> time_bit & 1


def test_a_capability_that_is_asked_for_can_be_used(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bed = Bed.up(owner_pid=os.getpid(), capabilities=["bpf"])
    request.addfinalizer(bed.down)
    run = "systemd-run --wait --pipe --quiet --property=IPAddressDeny=any"
    send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))"
    caught = f"try:\n {send}\nexcept PermissionError:\n print('refused')"
    assert output(bed, *run.split(), "/usr/bin/python3", "-c", caught) == "refused\n"


def test_unknown_user_is_named(bed: Bed, workdir: Path) -> None:
    with pytest.raises(BedError, match=r"no such user.*\n  hint: .*useradd"):
        bed.run(["true"], user="no-such-user")


def test_missing_directory_is_named(bed: Bed) -> None:
    with pytest.raises(BedError, match=r"no directory '/no/such'\n  hint: .*--bind"):
        bed.run(["true"], cwd=Path("/no/such"))


def test_systemd_never_empties_a_bound_folder(bed: Bed, workdir: Path) -> None:
    # tmpfiles.d(5): at boot --remove empties what is below a "D", later --clean does by age.
    setup = output(bed, "systemctl", "show", "--property=ExecStart", "systemd-tmpfiles-setup")
    assert "systemd-tmpfiles --create" in setup
    assert "--remove" not in setup
    assert bed.run(["systemctl", "start", "--quiet", "systemd-tmpfiles-clean.service"]) != 0


def test_working_directory_tmp_is_not_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/tmp")
    with Bed.up() as up:
        assert up.run(["touch", "/tmp/understudy-was-here"]) == 0
    assert not Path("/tmp/understudy-was-here").exists()


def test_name_in_use_is_named(bed: Bed) -> None:
    with pytest.raises(BedError, match=f"'{bed.name}': it is up already\n  hint: .*down"):
        Bed.up(bed.name)


def test_two_at_a_time_and_none_after_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Bed.up() as one, Bed.up() as two:
        start = ["systemd-run", "--quiet", "--unit=same", "sleep", "infinity"]
        assert (one.run(start), two.run(start)) == (0, 0)
        assert one.run(["systemctl", "stop", "same"]) == 0
        assert two.run(["systemctl", "is-active", "--quiet", "same"]) == 0
        assert output(one, "sh", "-c", "ls /proc | grep -c '^[0-9]'") != ""
    assert traces(one) == []
    assert traces(two) == []


def test_down_twice_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    up = Bed.up()
    up.down()
    up.down()
    with pytest.raises(BedError, match="not up any more"):
        up.run(["true"])


def test_killed_owner_leaves_nothing(tmp_path: Path) -> None:
    owner, up = owned_by_another(tmp_path, then="os.fork()")  # a forked child lives on
    try:
        owner.kill()
        assert gone(up), traces(up)
    finally:
        children = subprocess.run(
            ["pgrep", "-f", f"^{sys.executable} -c import os, signal; from understudy.bed"],
            capture_output=True,
            text=True,
        ).stdout
        for pid in children.split():
            os.kill(int(pid), signal.SIGKILL)
        owner.communicate()


@pytest.mark.parametrize(
    "victim",
    [lambda bed: bed.state.leader_pid, lambda bed: _parent(bed.state.leader_pid)],
    ids=["leader", "nspawn"],
)
def test_killed_container_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: Callable[[Bed], int]
) -> None:
    monkeypatch.chdir(tmp_path)
    up = Bed.up()
    os.kill(victim(up), signal.SIGKILL)
    assert gone(up), traces(up)


def test_killed_keeper_ends_the_bed_and_the_next_one_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = Bed.up("swept")
    with os.fdopen(os.pidfd_open(first.state.leader_pid)) as leader:
        os.kill(first.state.keeper_pid, signal.SIGKILL)
        # Nothing of the bed runs on; its folders stay until somebody uses the name again.
        assert select.select([leader], [], [], SOON_S)[0]
    with pytest.raises(BedError, match="it is not up"):
        Bed.find("swept")
    with Bed.up("swept") as second:
        assert second.run(["true"]) == 0
    assert traces(second) == []


def test_tree_without_systemd_is_named(tmp_path: Path) -> None:
    with pytest.raises(BedError, match="Cannot boot bed 'empty': there is no systemd in"):
        Bed.up("empty", root=tmp_path)
    assert not (BEDS / "empty").exists()


def test_boot_that_takes_too_long_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BedError, match=r"not done after 0\.05 s"):
        Bed.up("late", timeout_s=0.05)
    assert not claimed("late")
    assert not (BEDS / "late").exists()


def test_failed_boot_shows_the_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BedError, match=r"ended with 1 during the boot\n  \| .*CAP_NONSENSE"):
        Bed.up(capabilities=["nonsense"])


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_all_of_pytest_runs_in_a_bed_if_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "def test_inside(understudy):\n"
        "    one = understudy.spawn(exec=['/bin/sleep', '60'])\n"
        "    assert os.environ['UNDERSTUDY_INSIDE_BED'] and one.pid\n"
        "def test_fails(): assert False\n"
    )
    before = {bed.name for bed in beds()}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--understudy-bed",
         "--junitxml=result.xml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "understudy: 1 instance started" in done.stdout
    assert (tmp_path / "result.xml").exists()
    assert {bed.name for bed in beds() if str(tmp_path) in bed.state.binds} - before == set()
