"""What bad input gets: a message, a hint, the right exit code, and nothing left."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.systemd.support import (
    MEDIAMTX,
    ROOT,
    SERVICES,
    SOON_S,
    command_line,
    left_since,
    require,
    sets,
    terminal,
    traces,
    understudy,
)

from understudy.errors import PortError, StartError
from understudy.run import Run

OURS = ("--units", str(SERVICES))


def refused(*arguments: str | Path, code: int = 1) -> tuple[str, str]:
    """The message and the hint of a command that fails, and that leaves nothing."""
    before = traces()
    done = understudy(*arguments, code=code)
    assert done.stdout == ""
    assert left_since(before) == set()
    return said(done.stderr)


def said(stderr: str) -> tuple[str, str]:
    """An error's message with its quoted log lines, and its hint."""
    assert "Traceback" not in stderr, stderr
    match = re.fullmatch(r"error: (.*?)\n  hint: (.*)\n", stderr, re.DOTALL)
    assert match is not None, f"no error with a hint: {stderr}"
    return match[1], match[2]


def test_unknown_service_names_the_nearest() -> None:
    message, hint = refused("spawn", "medimtx")
    assert message == "Cannot find service 'medimtx': no definition of that name"
    assert hint.startswith("did you mean 'mediamtx'? known services: camera-service, ")


def test_unknown_port_names_the_nearest() -> None:
    message, hint = refused("spawn", "nginx", *OURS, "--port", "htp=20000")
    assert message == "Cannot spawn 'nginx': it has no port 'htp'"
    assert hint == "did you mean 'http'? its ports: http, status"


def test_unknown_port_of_a_command_line() -> None:
    message, hint = refused("spawn", "--exec", "sleep {port.htp}", "--port", "http")
    assert message == "Cannot fill in '{port.htp}': there is no port 'htp'"
    assert hint.startswith("did you mean 'http'?")


def test_unknown_command_is_a_usage_error() -> None:
    done = understudy("spwan", "redis", code=2)
    assert "No such command 'spwan'. Did you mean 'spawn'?" in done.stderr


def test_unknown_command_of_beds_is_a_usage_error() -> None:
    done = understudy("bed", "statsu", code=2)
    assert "No such command 'statsu'. Did you mean 'status'?" in done.stderr


def test_unknown_option_before_a_command_is_not_the_command() -> None:
    done = understudy("bed", "--usr", "anna", "--", "true", code=2)
    assert "No such option: --usr" in done.stderr


def test_pair_without_a_value_says_what_the_two_are() -> None:
    done = understudy("spawn", "camera-service", "--uses", "mediamtx", code=2)
    assert "Invalid value for '--uses': 'mediamtx' is not SERVICE=INSTANCE" in done.stderr


@pytest.mark.parametrize("other", [("--dry-run",), ("--", "true")])
def test_json_goes_without_what_prints_something_else(other: tuple[str, ...]) -> None:
    done = understudy("spawn", "redis", *OURS, "--json", *other, code=2)
    assert "--json goes without" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_disk_is_an_error_without_a_traceback(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command_line("services"),
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: Cannot go on: No space left on device\n"


def test_port_of_production_is_not_given() -> None:
    message, hint = refused("spawn", "redis", *OURS, "--port", "redis=6379")
    assert message == "Cannot give tcp port 6379 to 'redis': it is production's"
    assert hint.startswith("Ask for another number")


def test_port_that_is_held_names_the_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        number = holder.getsockname()[1]
        message, hint = refused("spawn", "redis", *OURS, "--port", f"redis={number}")
    assert message.startswith(f"Cannot give tcp port {number} to 'redis': it is held by ")
    assert f"PID {os.getpid()}" in message
    assert hint.startswith("Ask for another number")


def test_port_that_is_no_number_is_a_usage_error() -> None:
    done = understudy("spawn", "redis", *OURS, "--port", "redis=70000", code=2)
    assert "'70000' is no port number (1 to 65535)" in done.stderr


def test_exhausted_range_says_who_has_it() -> None:
    message, hint = refused("spawn", "redis", *OURS, "--count", "3", "--ports-from", "20000-20031")
    assert re.fullmatch(
        r"Cannot find 1 free ports in 20000-20031 \(given\): "
        r"of its 2 blocks 2 are claimed \(2 by \w+\)",
        message,
    )
    assert "UNDERSTUDY_PORT_RANGE" in hint


def test_range_inside_the_ephemeral_ports() -> None:
    message, hint = refused("spawn", "redis", *OURS, "--ports-from", "40000-40999")
    assert message.startswith("Cannot use the port range 40000-40999 (given): the kernel gives ")
    assert "sysctl net.ipv4.ip_local_reserved_ports=40000-40999" in hint


@pytest.mark.parametrize(
    ("text", "why"),
    [("nonsense", "Cannot read the port range"), ("20001-20010", "no whole block of 16 ports")],
)
def test_range_that_is_none(text: str, why: str) -> None:
    message, hint = refused("spawn", "redis", *OURS, "--ports-from", text)
    assert why in message
    assert "20000-29999" in hint


def as_nobody() -> list[str]:
    """What runs a command without rights on the system manager."""
    if not ROOT:
        return []
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def test_no_manager_says_how_to_get_one() -> None:
    isolated = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    probe = subprocess.run([*isolated, "true"], capture_output=True, check=False)
    require(probe.returncode == 0, "user namespaces are denied here")
    script = 'mount -t tmpfs none /run && exec "$0" "$@"'
    done = subprocess.run(
        [*isolated, script, *command_line("spawn", "redis", *OURS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    message, hint = said(done.stderr)
    assert message.startswith("Cannot reach the system manager: this machine was not booted with")
    assert "understudy bed -- COMMAND" in hint


@pytest.mark.skipif(not ROOT, reason="only root can be somebody without a manager")
def test_no_user_manager_says_how_to_get_one() -> None:
    done = subprocess.run(
        [*as_nobody(), *command_line("spawn", "redis", *OURS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    message, hint = said(done.stderr)
    assert message == "Cannot reach the user manager of nobody: it does not run"
    assert hint == "sudo loginctl enable-linger nobody"


def test_no_right_on_the_system_manager() -> None:
    before = traces()
    done = subprocess.run(
        [*as_nobody(), *command_line("spawn", "redis", *OURS, "--manager", "system")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    message, hint = said(done.stderr)
    assert re.match(r"Cannot start 'understudy-guard@\w+\.service': .*authentication", message)
    assert "--manager user" in hint
    assert left_since(before) == set()


def test_missing_binary_is_named() -> None:
    message, hint = refused("spawn", "mediamtx", "--set", "program=/no/such/mediamtx")
    assert re.fullmatch(
        r"Cannot start 'understudy-mediamtx@\w+-1\.service': "
        r"its program cannot be executed \(exit status 203\)",
        message,
    )
    assert hint == (
        "there is no program '/no/such/mediamtx' here; --set names another one, "
        "its values: program, config, api_user"
    )


def test_binary_that_is_not_executable_is_named() -> None:
    message, hint = refused("spawn", "mediamtx", "--set", "program=/etc/passwd")
    assert "its program cannot be executed" in message
    assert hint == "is '/etc/passwd' executable, and may the instance's user reach it?"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("no-such-program", "Cannot run 'no-such-program': command not found"),
        ("/etc/passwd", "Cannot run '/etc/passwd': permission denied"),
    ],
)
def test_command_line_that_cannot_run(command: str, why: str) -> None:
    message, hint = refused("spawn", "--exec", command)
    assert message == why
    assert hint


def test_service_that_exits_says_status_and_last_lines() -> None:
    message, hint = refused("spawn", "dies-at-once", *OURS)
    first, *lines = message.splitlines()
    assert first.endswith("-1.service': it exited with status 3 before it was ready")
    # Of two streams there is no order.
    assert sorted(lines) == ["  | no camera is connected", "  | reading the settings"]
    unit = hint.removeprefix("See: understudy logs ")
    assert "no camera is connected" in understudy("logs", unit).stdout


@pytest.mark.parametrize("count", [40])
def test_service_that_is_dead_at_once_always_says_why(count: int) -> None:
    with Run(units=SERVICES) as run:
        for _ in range(count):
            with pytest.raises(StartError, match="it exited with status 1") as error:
                run.spawn("dies-fast")
            assert error.value.exit_status == 1
            assert error.value.result == "exit-code"
            assert error.value.journal == "cannot open the camera"


def test_service_that_is_never_ready() -> None:
    message, hint = refused("spawn", "never-ready", *OURS, "--timeout", "1")
    assert re.search(
        r"not ready after 1 s: nothing of it holds http \(tcp \d+\)\n"
        r"  \| waiting for a camera that never comes$",
        message,
    )
    assert hint.startswith("More time: --timeout S")


def test_service_that_listens_elsewhere() -> None:
    message, _hint = refused("spawn", "listens-elsewhere", *OURS, "--timeout", "1")
    assert re.search(
        r"nothing of it holds http \(tcp \d+\); it listens on tcp 127\.0\.0\.1:(\d+) instead\n"
        r"  \| listening on port \1$",
        message,
    )


def test_service_with_an_undeclared_port_is_warned_of() -> None:
    done = understudy("spawn", "undeclared-port", *OURS, "--", "true")
    assert re.fullmatch(
        r"warning: understudy-undeclared-port@\w+-1\.service listens on tcp 127\.0\.0\.1:\d+, "
        r"which its definition does not declare\n",
        done.stderr,
    )


PIRATE = """
import pathlib, socket, sys
number = int(sys.argv[1])
claim = f"@understudy/port/{number - number % 16}"
pirate = socket.socket()
pirate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
print("ready", flush=True)
# Once the port is claimed nobody looks any more, until the instance is up.
while claim not in pathlib.Path("/proc/net/unix").read_text():
    pass
pirate.bind(("127.0.0.1", number))
pirate.listen()
sys.stdin.read()
"""


@contextmanager
def pirate(number: int) -> Iterator[int]:
    """A process that takes the port as soon as it is claimed, and shares it; its PID."""
    process = subprocess.Popen(
        [sys.executable, "-c", PIRATE, str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate()


def test_service_that_shares_its_port_with_somebody() -> None:
    before = traces()
    with pirate(20007) as pid, Run(units=SERVICES) as run:
        with pytest.raises(PortError, match="port 20007 is held by") as error:
            run.spawn("shares-port", ports={"http": 20007})
        assert f"PID {pid}" in str(error.value.owner)
        assert error.value.port == 20007
        assert "understudy ports" in str(error.value.hint)
    assert left_since(before) == set()


def test_unknown_value_names_those_there_are() -> None:
    message, hint = refused("spawn", "redis", *OURS, "--set", "progam=/bin/true")
    assert message == "Cannot set 'progam': redis has no such value"
    assert hint == "did you mean 'program'? its values: program, config"


def test_lazy_is_refused_for_a_service_that_opens_its_ports_itself() -> None:
    message, hint = refused("spawn", "redis", *OURS, "--lazy")
    assert message.startswith("Cannot spawn 'redis' lazily: it opens its ports itself")
    assert '[activation] instance = "sockets"' in hint


def test_unit_with_a_definition_is_found_by_its_own_name(tmp_path: Path) -> None:
    folder = tmp_path / "units/dbus"
    folder.mkdir(parents=True)
    (folder / "service.toml").write_text(
        'description = "x"\nproduction = "dbus.service"\n[ports]\nhttp = { tcp = 8080 }\n'
    )
    arguments = ("spawn", "dbus.service", "--from", "installed", "--units", folder.parent)
    message, hint = refused(*arguments, "--port", "htp")
    assert message == "Cannot spawn 'dbus': it has no port 'htp'"
    assert hint == "did you mean 'http'? its ports: http"


def test_unit_that_is_not_installed() -> None:
    message, hint = refused("spawn", "no-such.service", "--from", "installed")
    assert message == "Cannot show 'no-such.service': it has no unit file"
    assert hint == "those there are: systemctl --system list-unit-files"


def test_neighbours_of_a_pair_are_named() -> None:
    message, hint = refused("spawn", "mediamtx", "--port", "rtcp=20504")
    assert message == "Cannot set port 'rtp' to 20503: it has to be even"
    assert hint == "'rtp', 'rtcp' have consecutive numbers"


@pytest.mark.skipif(not ROOT, reason="only root does not look in the working directory")
def test_root_is_told_that_it_does_not_look_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "units/mine"
    folder.mkdir(parents=True)
    (folder / "service.toml").touch()
    monkeypatch.chdir(tmp_path)
    _message, hint = refused("spawn", "mine")
    assert hint.startswith("root takes ./units only when it is named: --units units; ")


def test_undefined_variable_names_file_and_variable(tmp_path: Path) -> None:
    folder = tmp_path / "units/careless"
    folder.mkdir(parents=True)
    (folder / "service.toml").write_text('description = "a careless one"\n')
    (folder / "careless.service.j2").write_text("[Service]\nExecStart={{ programm }}\n")
    message, hint = refused("spawn", "careless", "--units", folder.parent)
    assert "'programm' is undefined" in message
    assert "careless.service.j2" in message
    assert hint


def test_newline_in_a_value_brings_no_directive_in() -> None:
    text = "config=a\nExecStartPre=/bin/touch /run/smuggled"
    message, hint = refused("spawn", "redis", *OURS, "--set", text)
    assert message == "Cannot render value 'config': it holds a newline"
    assert hint == "whatever goes into a unit file is one line of text"


def test_what_no_variable_can_hold_is_refused_without_its_value() -> None:
    message, hint = refused("spawn", "redis", *OURS, "--env", "A=hush\x1b")
    assert message == "Cannot set environment variable 'A': its value holds the character U+001B"
    assert hint.startswith("systemd hands on text with tabs and newlines")


@pytest.mark.parametrize("command", ["stop", "show", "logs"])
@pytest.mark.parametrize("name", ["r99999", "r99999-1", "mediamtx.service"])
def test_unknown_run_or_instance(command: str, name: str) -> None:
    message, hint = refused(command, name)
    assert f"'{name}'" in message
    assert message.startswith("Cannot find ")
    assert "understudy list" in hint


def test_mistake_in_a_definition_names_file_and_key(tmp_path: Path) -> None:
    folder = tmp_path / "units/careless"
    folder.mkdir(parents=True)
    (folder / "service.toml").write_text('description = "x"\n[ports]\na = { tpc = 1 }\n')
    message, hint = refused("spawn", "careless", "--units", folder.parent)
    assert str(folder / "service.toml") in message
    assert "tpc" in message
    assert "tcp" in hint


NEVER_READY = ("never-ready", *OURS)
THREE = ("mediamtx", *sets(MEDIAMTX), "--count", "3", "--", "sleep", "1000")
STUBBORN = ("ignores-sigterm", *OURS, "--", "sleep", "1000")
DELAYS_S = (0.15, 0.3, 0.45, 0.6, 0.8)


@pytest.mark.parametrize(
    ("arguments", "delay_s"),
    [
        *((NEVER_READY, delay_s) for delay_s in DELAYS_S),
        *((THREE, delay_s) for delay_s in DELAYS_S),
        (STUBBORN, DELAYS_S[-1]),  # it takes the whole of its stop time-out
    ],
    ids=lambda value: str(value[0] if isinstance(value, tuple) else value),
)
def test_ctrl_c_at_any_time_leaves_nothing(arguments: tuple[str, ...], delay_s: float) -> None:
    before = traces()
    with terminal("spawn", *arguments) as (process, screen):
        try:
            process.wait(delay_s)
        except subprocess.TimeoutExpired:
            os.write(screen, b"\x03")
        # Before the first line of ours has run, Python itself ends with the signal.
        assert process.wait(SOON_S) in (130, -signal.SIGINT)
    assert left_since(before) == set()
