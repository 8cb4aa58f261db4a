"""Production put on a host and taken away again: as a whole or not at all, and nothing else.

It changes the host beyond what is understudy's: only where that is thrown away afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.systemd.support import (
    CAMERA_FILE,
    MEDIAMTX,
    ROOT,
    SOON_S,
    bound,
    command_line,
    eventually,
    get,
    holders,
    read_until,
    require_throwaway,
    sets,
    show,
    systemctl,
    understudy,
)

from understudy import leases
from understudy.cli import main

pytestmark = pytest.mark.skipif(not ROOT, reason="root's session deploys; see test_strangers")

UNITS = Path("/etc/understudy/units")
STATE = Path("/var/lib/understudy")
SYSTEM = Path("/etc/systemd/system")
UNIT = "tests-lead.service"
FILE = SYSTEM / UNIT
CONFIG = Path("/etc/tests-lead/lead.conf")
PORT = 18401

SERVER = """
import os, signal, socket, sys
words = open(sys.argv[1]).read().split()
if "die" in words:
    sys.exit("no camera")
listener = None
if "PASSED" in os.environ:
    listener = socket.socket(fileno=3)
elif "deaf" not in words:
    listener = socket.create_server(("127.0.0.1", 18401))
while listener:
    connection, _ = listener.accept()
    connection.recv(1000)
    connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + words[0].encode())
    connection.close()
signal.pause()
"""
DEFINITION = """
description = "Server of the tests"
production = "tests-lead.service"
singleton = true
[values]
program = "/usr/bin/python3 -ISB /opt/tests-lead/server.py"
word = "first"
password = ""
[ports]
http = { tcp = 18401 }
[deploy.user]
name = "tests-lead"
[deploy.files."/etc/tests-lead/lead.conf"]
from = "lead.conf.j2"
mode = "0640"
group = "tests-lead"
[deploy.files."/etc/tests-lead/password"]
from = "password.j2"
mode = "0600"
needs = "password"
[deploy.directories."/var/spool/tests-lead"]
mode = "0750"
owner = "tests-lead"
[ready]
http = { port = "http" }
"""
TEMPLATE = """
[Unit]
Description=server of the tests
[Service]
ExecStart={{ program }} /etc/tests-lead/lead.conf
User=tests-lead
StateDirectory=tests-lead
[Install]
WantedBy=multi-user.target
"""


SOCKET = """
[Unit]
StartLimitIntervalSec=0
[Socket]
ListenStream=127.0.0.1:{{ ports.http }}
TriggerLimitIntervalSec=0
[Install]
WantedBy=sockets.target
"""
WITH_SOCKET = """
Requires=tests-lead.socket
After=tests-lead.socket
StartLimitIntervalSec=0
[Service]
Environment=PASSED=1
"""


@functools.cache
def content(path: Path, *_changed: int) -> str:
    """What tells a file's content from every other; it is read once for each change."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree(*tops: str) -> dict[str, str]:
    """Every file, folder and link below: what it is, whose, and what is in it."""
    found = {}
    for top in tops:
        for path in [*Path(top).parent.glob(Path(top).name), *Path(top).rglob("*")]:
            status = path.lstat()
            data = ""
            if path.is_symlink():
                data = str(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                data = content(path, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            found[str(path)] = f"{status.st_mode:o} {status.st_uid} {status.st_gid} {data}"
    return found


def host() -> dict[str, str]:
    """Whatever a deployment could leave on a host."""
    # Users are compared by name; what else changes in these files are times.
    found = tree("/etc", "/var/spool", "/opt/camera-service", "/opt/tests-lead")
    found = {
        path: what
        for path, what in found.items()
        if path.rstrip("-") not in {"/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"}
        and not path.startswith(("/etc/.pwd", str(UNITS)))
        and not path.endswith(".wants")  # systemctl removes an empty one, whoever made it
    }
    for folder in ("lib", "lib/private", "log", "log/private", "cache", "cache/private"):
        found |= {str(path): "" for path in Path("/var", folder).glob("*")}
    found |= {f"user {one.pw_name}": f"{one.pw_uid}" for one in pwd.getpwall()}
    for unit in (UNIT, "mediamtx.service", "camera-service.service"):
        state = show(unit, "ActiveState", "UnitFileState", "LoadState")
        found[unit] = " ".join(state.values())
    return found


def changed(before: dict[str, str]) -> set[tuple[str, str]]:
    """What is different now, on either side."""
    return set(host().items()) ^ set(before.items())


@pytest.fixture(scope="module", autouse=True)
def _throwaway() -> Iterator[None]:
    """A host that nobody needs any more, as it was in the end."""
    require_throwaway()
    Path("/var/spool").mkdir(exist_ok=True)
    before = host()
    yield
    assert changed(before) == set()


@pytest.fixture
def lead() -> Iterator[Path]:
    """A definition of this host, and the program that it is about."""
    before = host()
    folder = UNITS / "tests-lead"
    made = [path for path in reversed(folder.parents) if not path.exists()]
    folder.mkdir(parents=True)
    (folder / "service.toml").write_text(DEFINITION)
    (folder / f"{UNIT}.j2").write_text(TEMPLATE)
    (folder / "lead.conf.j2").write_text("{{ word }}\n")
    (folder / "password.j2").write_text("{{ password }}\n")
    program = Path("/opt/tests-lead/server.py")
    program.parent.mkdir()
    program.write_text(SERVER)
    yield folder
    here("withdraw", "tests-lead", "--purge")
    for path in (*folder.iterdir(), program):
        path.unlink()
    for path in (program.parent, folder, *reversed(made)):
        path.rmdir()
    systemctl("reset-failed", UNIT, check=False)
    assert changed(before) == set()
    assert not made or not made[0].exists()


def deploy(*options: str, code: int = 0) -> str:
    """What deploying the tests' own service says."""
    return here("deploy", "tests-lead", *options, code=code)


def here(*arguments: str, code: int = 0) -> str:
    """What the command says, in this very process: that is quicker by a half."""
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        main(arguments)
    leases.end_resting()  # as at the end of a process
    assert ended.value.code == code, said.getvalue()
    return said.getvalue()


def remove_camera_file() -> None:
    CAMERA_FILE.unlink()
    for folder in (CAMERA_FILE.parent, CAMERA_FILE.parent.parent):
        folder.rmdir()


def answer() -> str:
    return get(f"http://127.0.0.1:{PORT}/")


def invocation() -> str:
    return show(UNIT, "InvocationID")["InvocationID"]


def test_what_is_shipped_is_deployed_and_withdrawn() -> None:
    before = host()
    made = not CAMERA_FILE.exists()
    if made:
        CAMERA_FILE.parent.mkdir(parents=True)
        CAMERA_FILE.write_text("health_port: 8003\n")
    values = sets({**MEDIAMTX, "python": sys.executable,
                   "module": "understudy.standins.camera_service"})  # fmt: skip
    both = ("mediamtx", "camera-service")

    shown = here("deploy", *both, *values, "--dry-run")
    assert host().keys() - before.keys() <= {str(CAMERA_FILE.parent), str(CAMERA_FILE)} or not made
    assert "# /etc/mediamtx/mediamtx.yml\n" in shown
    assert "camera-service: start camera-service.service\n" in shown

    said = here("deploy", *both, *values)
    assert "mediamtx: exposure of mediamtx.service 1." in said
    for unit in ("mediamtx.service", "camera-service.service"):
        assert show(unit, "ActiveState", "UnitFileState") == {
            "ActiveState": "active",
            "UnitFileState": "enabled",
        }
    assert holders("tcp", 9997) == {"mediamtx.service"}
    assert {8002, 8003} <= {p for p, who in bound("tcp").items() if "camera-service.service" in who}
    assert '"itemCount"' in get("http://127.0.0.1:9997/v3/paths/list")
    config = Path("/etc/mediamtx/mediamtx.yml")
    assert (config.stat().st_mode & 0o777, config.group()) == (0o640, "mediamtx")
    assert Path("/opt/camera-service/recordings").owner() == "camera-service"
    environment = Path(f"/proc/{show('camera-service.service', 'MainPID')['MainPID']}/environ")
    assert b"CAMERA_SERVICE_MEDIAMTX_API_PORT=9997\0" in environment.read_bytes()

    # What was set is remembered, and there is nothing more to do.
    seen = host()
    assert here("deploy", *both) == "mediamtx: nothing to do\ncamera-service: nothing to do\n"
    assert changed(seen) == set()
    other = here("deploy", "camera-service-activated", code=1)
    assert "camera-service.service is deployed as 'camera-service'" in other
    assert "sudo understudy withdraw camera-service" in other

    kept = here("withdraw", *both)
    assert "user mediamtx; --purge removes them" in kept
    assert not Path("/etc/mediamtx").exists()
    assert not bound("tcp").keys() & {9997, 8002, 8003}
    here("withdraw", *both, "--purge")
    if made:
        remove_camera_file()
    assert changed(before) == set()


def test_restarts_of_production_with_sockets_leave_no_request_without_an_answer() -> None:
    before = host()
    made = not CAMERA_FILE.exists()
    done = subprocess.run(
        [sys.executable, "tests/bench/bench_restart.py", "4", "100"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^(\S+): (.+)", done.stdout, re.MULTILINE)
    rows = [row for service, row in said if service == "camera-service-activated"]
    assert rows[2:-2] == ["HTTP 200: " + rows[1].split()[-2]], rows
    assert rows[-1] == "sockets the same all the while"
    # Of a service that opens its ports by itself some were refused.
    assert "refused" in done.stdout or "Connect call failed" in done.stdout
    if made:
        remove_camera_file()
    assert changed(before) == set()


def test_sockets_take_over_from_a_service_and_outlive_one_that_cannot_start(
    lead: Path,
) -> None:
    deploy("--set", "word=plain")
    before = invocation()
    toml = lead / "service.toml"
    toml.write_text(DEFINITION + "[activation]\nproduction = 'sockets'\n")
    template = lead / "tests-lead.socket.j2"
    template.write_text(SOCKET)
    (lead / f"{UNIT}.j2").write_text(TEMPLATE.replace("[Service]", WITH_SOCKET))

    refused = deploy(code=1)
    assert f"port {PORT} (http) is still held by {UNIT}" in refused
    assert "with --restart it is stopped first" in refused
    assert (invocation(), answer()) == (before, "plain")
    deploy("--restart")
    assert answer() == "plain"
    assert bound("tcp")[PORT] <= {"tests-lead.socket", "init.scope"}

    # However often it dies, its socket stays, and who waits there is answered in the end.
    listening = show("tests-lead.socket", "InvocationID")
    CONFIG.write_text("die\n")
    systemctl("stop", UNIT)
    with socket.create_connection(("127.0.0.1", PORT), timeout=SOON_S) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        tries = set()

        def often() -> bool:
            tries.add(invocation())
            return len(tries) > 10

        assert eventually(often)
        CONFIG.write_text("again\n")
        assert connection.recv(100).endswith(b"again")
    assert show("tests-lead.socket", "InvocationID") == listening

    # Without sockets once more: what is not needed any more goes.
    CONFIG.write_text("plain\n")
    toml.write_text(DEFINITION)
    template.unlink()
    (lead / f"{UNIT}.j2").write_text(TEMPLATE)
    deploy("--restart")
    assert holders("tcp", PORT) == {UNIT}
    assert not Path(SYSTEM, "tests-lead.socket").exists()


@contextlib.contextmanager
def leased() -> Iterator[None]:
    """A lease on production that another process has."""
    words = ["bash", "-c", "echo leased; read"]
    with subprocess.Popen(
        command_line("lease", "tests-lead", "--", *words),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"leased\n"
        yield
        process.stdin.close()


def test_an_upgrade_is_shown_and_in_force_after_a_restart(lead: Path) -> None:
    assert "tests-lead: deployed" in deploy("--set", "word=second")
    assert answer() == "second"
    first = invocation()

    (lead / "lead.conf.j2").write_text("{{ word }} one more\n")
    (lead / f"{UNIT}.j2").write_text(TEMPLATE.replace("server of", "the server of"))
    diff = deploy("--diff")
    assert "-second\n+second one more\n" in diff
    assert "+Description=the server of the tests\n" in diff
    assert CONFIG.read_text() == "second\n"

    said = deploy()
    assert "+second one more\n" in said
    assert "still runs as it was started before, until it is restarted" in said
    assert CONFIG.read_text() == "second one more\n"
    assert invocation() == first
    assert "nothing to do" in (said := deploy())
    assert "sudo understudy deploy tests-lead --restart" in said
    [row] = json.loads(understudy("deploy", "tests-lead", "--json").stdout)
    assert (row["changed"], row["restart_needed"]) == (False, True)

    # Who has a lease on it is not disturbed, but for --now.
    with leased():
        said = deploy("--restart", "--timeout", "2", code=1)
        assert f"Cannot restart '{UNIT}': " in said
        assert "without regard for who has a lease: --now" in said
        assert invocation() == first
    assert "restart tests-lead.service" in deploy("--restart")
    assert invocation() != first
    assert show(UNIT, "Description")["Description"] == "the server of the tests"
    again = deploy("--restart")
    assert "nothing to do" in again
    assert "still runs" not in again


def test_edited_files_are_kept_and_named(lead: Path) -> None:
    deploy()
    CONFIG.write_text("mine\n")
    assert f"note: '{CONFIG}' was edited and is kept\n" in deploy()

    (lead / "lead.conf.j2").write_text("theirs\n")
    assert f"'{CONFIG}' is kept as it is; ours is in '{CONFIG}.new'" in deploy()
    beside = Path(f"{CONFIG}.new")
    assert (CONFIG.read_text(), beside.read_text()) == ("mine\n", "theirs\n")
    assert (beside.stat().st_mode & 0o777, beside.group()) == (0o640, "tests-lead")
    beside.unlink()
    assert "nothing to do" in deploy()
    assert not beside.exists()

    # What was edited even there is kept too; put in its place, it is ours again.
    beside.write_text("mine as well\n")
    (lead / "lead.conf.j2").write_text("newer\n")
    assert "what is new is nowhere" in deploy()
    assert beside.read_text() == "mine as well\n"
    beside.unlink()
    (lead / "lead.conf.j2").write_text("newest\n")
    deploy()
    beside.rename(CONFIG)
    assert "note: '/etc" not in deploy()

    CONFIG.write_text("mine for ever\n")
    said = here("withdraw", "tests-lead")
    assert f"'{CONFIG}' was edited and is kept" in said
    assert tree("/etc/tests-lead").keys() == {"/etc/tests-lead", str(CONFIG)}
    assert not FILE.exists()
    CONFIG.unlink()
    CONFIG.parent.rmdir()


def test_a_service_that_dies_again_and_again_is_not_taken_for_deployed(lead: Path) -> None:
    again = TEMPLATE.replace("[Service]", "[Service]\nRestart=always\nRestartSec=1h")
    (lead / f"{UNIT}.j2").write_text(again)
    deploy()
    CONFIG.write_text("die\n")
    systemctl("kill", "--signal=KILL", UNIT)
    for said in ("", f"{UNIT} has died"):
        if said:
            assert said in deploy(code=1)
        assert eventually(lambda: show(UNIT, "SubState")["SubState"] == "auto-restart")
    CONFIG.write_text("well\n")
    assert f"start {UNIT}" in deploy()
    assert answer() == "well"
    CONFIG.write_text("first\n")


def test_a_secret_is_written_for_root_alone_and_never_shown(lead: Path) -> None:
    said = deploy("--set", "password=s3cret", "--dry-run")
    said += deploy("--set", "password=s3cret", "--diff")
    said += deploy("--set", "password=s3cret")
    said += deploy("--set", "password=n3wer")
    said += here("deploy", "tests-lead", "--json")
    said += here("render", "tests-lead", "--all", "--set", "password=s3cret")
    assert "s3cret" not in said
    assert "n3wer" not in said
    file = Path("/etc/tests-lead/password")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("n3wer\n", 0o600)
    assert all(not path.stat().st_mode & 0o077 for path in (STATE / "deploy").rglob("*"))

    deploy("--set", "password=")
    assert not file.exists()


HAND_WRITTEN = """
[Service]
ExecStart=/usr/bin/python3 -ISB /opt/tests-lead/server.py /opt/tests-lead/own.conf
[Install]
WantedBy=multi-user.target
"""


def test_a_unit_that_is_there_is_taken_over_only_when_asked_and_comes_back(lead: Path) -> None:
    own = Path("/opt/tests-lead/own.conf")
    own.write_text("by-hand\n")
    FILE.write_text(HAND_WRITTEN)
    systemctl("daemon-reload")
    systemctl("enable", "--now", UNIT)
    assert eventually(lambda: PORT in bound("tcp"))
    before = host()
    first = invocation()

    refused = deploy(code=1)
    assert f"'{FILE}' is there and was not put there by understudy" in refused
    assert "--adopt takes it over and keeps a backup" in refused
    assert "+User=tests-lead\n" in deploy("--adopt", "--diff")
    assert changed(before) == set()

    said = deploy("--adopt")
    assert "still runs as it was started before" in said
    assert (invocation(), answer()) == (first, "by-hand")
    assert f"keep {FILE} as /var/lib/understudy/deploy/backup/tests-lead{FILE}" in said
    deploy("--restart")
    assert answer() == "first"

    assert f"tests-lead: restore {FILE}\n" in here("withdraw", "tests-lead")
    assert FILE.read_text() == HAND_WRITTEN
    assert eventually(lambda: PORT in bound("tcp"))
    assert answer() == "by-hand"
    here("withdraw", "tests-lead", "--purge")
    assert changed(before) == set()

    systemctl("disable", "--now", UNIT)
    FILE.unlink()
    own.unlink()
    FILE.symlink_to("/dev/null")
    assert f"{UNIT} is masked" in deploy("--adopt", code=1)
    FILE.unlink()
    systemctl("daemon-reload")
    elsewhere = Path("/usr/lib/systemd/system", UNIT)
    elsewhere.write_text(HAND_WRITTEN)
    assert f"'{elsewhere}' is there" in deploy(code=1)
    elsewhere.unlink()


def fail(*options: str, before: dict[str, str]) -> str:
    """What a deployment says that comes to nothing: all is as it was."""
    said = deploy(*options, code=1)
    assert changed(before) == set(), said
    assert not STATE.exists() or not list(STATE.glob("deploy/journal*"))
    return said


@contextlib.contextmanager
def running(program: str, *arguments: str) -> Iterator[None]:
    """A unit of somebody else's that runs a program, or code."""
    words = [program] if program.startswith("/") else ["-c", program]
    subprocess.run(
        [
            *("systemd-run", "--quiet", "--collect", "--unit=tests-other", "--service-type=exec"),
            *("/usr/bin/python3", "-ISB", *words, *arguments),
        ],
        check=True,
    )
    try:
        yield
    finally:
        systemctl("stop", "tests-other")


def test_whatever_goes_wrong_leaves_a_host_as_it_was(lead: Path) -> None:
    before = host()
    conf = lead / "lead.conf.j2"

    assert "it holds a newline" in fail("--set", "program=/bin/true\n[Service]", before=before)
    missing = fail("--set", "program=/nowhere/server", before=before)
    assert "Command /nowhere/server is not executable" in missing
    assert "say where it is, with --set" in missing
    (lead / f"{UNIT}.j2").write_text(TEMPLATE.replace("User=", "Usr="))
    assert "Usr" in fail(before=before)
    (lead / f"{UNIT}.j2").write_text(TEMPLATE)
    conf.write_text("die\n")
    died = fail(before=before)
    assert f"Cannot deploy 'tests-lead': {UNIT} has died (exit-code, status 1)" in died
    assert "  | no camera\n" in died
    assert "all is as it was before" in died
    conf.write_text("deaf\n")
    late = fail("--timeout", "0.5", before=before)
    assert f"{UNIT} was not ready in time: it does not listen on port {PORT} (http)" in late
    conf.write_text("{{ word }}\n")

    # A port that somebody has, and a second copy of what there may be one of.
    with running("import socket, signal; l = socket.create_server(('', 18401)); signal.pause()"):
        assert eventually(lambda: PORT in bound("tcp"))
        taken = fail(before=host())
    assert f"port {PORT} (http) is held by tests-other.service (user root, PID" in taken
    other = Path("/opt/tests-lead/other.conf")
    other.write_text("deaf\n")
    with running("/opt/tests-lead/server.py", str(other)):
        second = fail(before=host())
    other.unlink()
    assert "a host has one, and there is python3 /opt/tests-lead/server.py" in second
    assert "hint: systemctl stop tests-other.service" in second

    # No space where a file is to be, when others have been written.
    Path("/etc/tests-lead").mkdir(mode=0o755)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4k,mode=755", "none", "/etc/tests-lead"], check=True
    )
    conf.write_text("first " + "x" * 9000 + "\n")
    full = host()
    assert "No space left on device" in fail(before=full)
    subprocess.run(["umount", "/etc/tests-lead"], check=True)
    Path("/etc/tests-lead").rmdir()
    conf.write_text("{{ word }}\n")
    assert changed(before) == set()


def interrupted(*options: str, number: int) -> str:
    """What a deployment says that is sent a signal while it waits for the service."""
    process = subprocess.Popen(
        command_line("deploy", "tests-lead", *options), stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = read_until(process.stderr.fileno(), f"waiting for {UNIT}".encode()).decode()
    assert eventually(lambda: show(UNIT, "ActiveState")["ActiveState"] == "active")
    process.send_signal(number)
    said += process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() != 0
    return said


def test_an_interrupted_or_killed_upgrade_is_undone(lead: Path) -> None:
    deploy()
    before = host()
    (lead / "lead.conf.j2").write_text("deaf\n")

    said = interrupted("--restart", number=signal.SIGINT)
    assert "putting back what was" in said
    assert (changed(before), answer()) == (set(), "first")
    interrupted("--restart", number=signal.SIGHUP)
    assert (changed(before), answer()) == (set(), "first")

    interrupted("--restart", number=signal.SIGKILL)
    assert CONFIG.read_text() == "deaf\n"
    (lead / "lead.conf.j2").write_text("{{ word }}\n")
    said = deploy()
    assert "an earlier 'deploy tests-lead' was ended half-way" in said
    assert "nothing to do" in said
    assert (changed(before), eventually(answer)) == (set(), "first")

    # A first deployment that was killed is undone by whatever comes next.
    here("withdraw", "tests-lead", "--purge")
    fresh = host()
    (lead / "lead.conf.j2").write_text("deaf\n")
    interrupted(number=signal.SIGKILL)
    assert host() != fresh
    said = here("withdraw", "tests-lead")
    assert "what was before it is restored" in said
    assert "tests-lead is not deployed here" in said
    assert changed(fresh) == set()


def test_nobody_leads_root_astray(lead: Path) -> None:
    before = host()
    # Definitions that others may write, and those of a working directory.
    lead.chmod(0o775)
    assert f"others than root may write to '{lead}'" in deploy(code=1)
    lead.chmod(0o755)
    UNITS.rename("/etc/tests-units")
    UNITS.symlink_to("/etc/tests-units")
    assert f"'{UNITS}' is no folder, or a symbolic link" in deploy(code=1)
    UNITS.unlink()
    Path("/etc/tests-units").rename(UNITS)
    template = lead / f"{UNIT}.j2"
    os.chown(template, 1, 1)
    assert f"'{template}' is a symbolic link, or others than root may" in deploy(code=1)
    os.chown(template, 0, 0)
    assert "known services: " in here("deploy", "twelve-ports", code=1)

    # Places that lead elsewhere, or that others may write to.
    elsewhere = Path("/opt/tests-elsewhere")
    elsewhere.mkdir()
    Path("/etc/tests-lead").symlink_to(elsewhere)
    assert "'/etc/tests-lead' is no folder, or a symbolic link" in deploy(code=1)
    Path("/etc/tests-lead").unlink()
    Path("/etc/tests-lead").mkdir()
    os.chown("/etc/tests-lead", 1, 1)
    assert "others than root may write to '/etc/tests-lead'" in deploy(code=1)
    os.chown("/etc/tests-lead", 0, 0)
    Path("/opt/tests-lead/secret").write_text("secret\n")
    CONFIG.symlink_to("/opt/tests-lead/secret")
    Path(f"{CONFIG}.new").symlink_to("/etc/passwd")
    assert "what is new is nowhere" in deploy()
    assert CONFIG.is_symlink()
    assert Path(f"{CONFIG}.new").is_symlink()
    here("withdraw", "tests-lead", "--purge")
    CONFIG.unlink()
    Path(f"{CONFIG}.new").unlink()
    Path("/etc/tests-lead").rmdir()
    Path("/opt/tests-lead/secret").unlink()
    elsewhere.rmdir()
    assert changed(before) == set()

    # Somebody who is not root.
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    for verb in ("deploy", "withdraw"):
        done = subprocess.run(
            [*nobody, *command_line(verb, "mediamtx")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr == textwrap.dedent(f"""\
            error: Cannot {verb} 'mediamtx': only root may change what the host runs
              hint: sudo understudy {verb} mediamtx
            """)
