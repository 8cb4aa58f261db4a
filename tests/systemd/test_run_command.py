"""`understudy run`: a command as if by itself, in a network of its own where that is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.systemd import suites
from tests.systemd.support import (
    ROOT,
    SERVICES,
    command_line,
    eventually,
    killed,
    processes,
    read_until,
    systemctl,
    terminal,
    traces,
    understudy,
    units,
)

API = 9997
RTSP = 8554

PRIVATE = ("run", "--network", "private", "--")

HOLD = "import signal, sys; print('up', flush=True); signal.pause()"


class Lead:
    """A server on one of production's ports that says its name to whoever connects."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.said = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = self._socket.accept()
                with connection:
                    connection.sendall(b"lead")
                    self.said += 1

    def stop(self) -> None:
        if self._thread.is_alive():
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._socket.close()


@pytest.fixture
def lead() -> Iterator[Lead]:
    """Production's API, on its own port."""
    server = Lead(API)
    yield server
    server.stop()


def inside(code: str, *options: str) -> str:
    """What Python code prints that runs in a private network."""
    prelude = "import errno, os, socket, subprocess, sys\n"
    line = [*options, "--", sys.executable, "-c", prelude + code]
    return understudy("run", "--network", "private", *line).stdout.strip()


def ask(port: int, host: str = "127.0.0.1") -> str:
    return f"print(socket.create_connection(('{host}', {port}), timeout=20).recv(16).decode())"


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    """The command in the background, with its output in a pipe."""
    return subprocess.Popen(command_line(*arguments), stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_command_is_as_if_by_itself(open_directory: Path) -> None:
    script = "pwd; echo $GIVEN; id -un; cat; exit 3"
    done = subprocess.run(
        command_line("run", "--env", "GIVEN=7", "--", "sh", "-c", script),
        cwd=open_directory, input="from stdin\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    assert done.stdout.splitlines() == [str(open_directory), "7", user, "from stdin"]
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("options", [(), ("--network", "private")], ids=["host", "private"])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
    ids=str,
)
def test_its_exit_code_is_a_shells(options: tuple[str, ...], command: list[str], code: int) -> None:
    understudy("run", *options, "--", *command, code=code)


def test_a_script_that_names_no_shell_is_run_by_one(open_directory: Path) -> None:
    script = open_directory / "script"
    script.write_text("echo ran by $0 with $1\n")
    script.chmod(0o755)
    done = understudy("run", "--", script, "this")
    assert done.stdout == f"ran by {script} with this\n"


def test_it_is_told_where_it_runs() -> None:
    script = (
        "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if 'STUDY' in k}))"
    )
    told = json.loads(understudy(*PRIVATE, sys.executable, "-c", script).stdout)
    assert told["UNDERSTUDY_NETWORK"] == "private"
    assert told["UNDERSTUDY_RUN"].startswith("r")
    told = json.loads(understudy("run", "--", sys.executable, "-c", script).stdout)
    assert "UNDERSTUDY_NETWORK" not in told


@pytest.mark.parametrize("options", [(), ("--network", "private")], ids=["host", "private"])
def test_what_it_leaves_behind_ends_with_it(options: tuple[str, ...]) -> None:
    script = "setsid sleep 1000 >/dev/null 2>&1 & setsid sh -c 'trap : TERM; sleep 1000' & exit 5"
    understudy("run", *options, "--", "sh", "-c", f"({script}) >/dev/null 2>&1", code=5)
    assert not {name for _pid, name in processes() if name == "sleep"}


def test_every_port_is_free_inside_and_loopback_is_as_tests_expect_it(lead: Lead) -> None:
    said = inside(
        f"for port in (8002, 8003, {API}, {RTSP}):\n"
        "    for host, family in (('', socket.AF_INET), ('::', socket.AF_INET6)):\n"
        "        with socket.socket(family) as server:\n"
        "            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "            server.bind((host, port)); server.listen()\n"
        "            name = '::1' if host else 'localhost'\n"
        "            socket.create_connection((name, port)).close()\n"
        "print(errno.errorcode[socket.socket().connect_ex(('192.0.2.1', 80))])\n"
        "ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)\n"
        "ping.settimeout(5)\n"
        "ping.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]), ('localhost', 0))\n"
        "print(ping.recv(64)[0])\n"
    )
    assert said.splitlines() == ["ENETUNREACH", "0"]
    assert lead.said == 0


def test_there_is_no_name_service_inside_and_it_says_so_at_once() -> None:
    said = inside(
        "import time\n"
        "began = time.monotonic()\n"
        "try:\n"
        "    socket.getaddrinfo('understudy.invalid', 80)\n"
        "except OSError as exc:\n"
        "    print(type(exc).__name__, time.monotonic() - began < 2)\n"
    )
    assert said == "gaierror True"


def test_systemd_answers_inside_as_outside() -> None:
    words = ["systemctl", "is-active", "dbus.socket", "no-such.service"]
    outside = subprocess.run(words, capture_output=True, text=True, check=False)
    done = understudy(*PRIVATE, *words, code=None)
    assert (done.stdout, done.returncode) == (outside.stdout, outside.returncode)
    own = ["systemctl", *([] if ROOT else ["--user"]), "is-active", "--", "-.slice"]
    assert understudy(*PRIVATE, *own).stdout == "active\n"
    assert understudy(*PRIVATE, "journalctl", "-n", "1", "--no-pager", "-q", code=None).stderr == ""


def test_the_callers_files_are_the_callers(open_directory: Path) -> None:
    file = open_directory / "file"
    understudy(*PRIVATE, "sh", "-c", f"echo written > {file}; stat -c %u {file}")
    assert file.read_text() == "written\n"
    assert file.stat().st_uid == os.geteuid()


def test_production_is_reached_on_its_own_port(lead: Lead) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        assert inside(ask(API, host), "--through", "mediamtx") == "lead"
    assert inside(ask(API), "--through", "mediamtx:api") == "lead"
    assert inside(ask(API), "--through", f"mediamtx:{API}") == "lead"
    assert lead.said == 5


def test_through_alone_means_a_private_network(lead: Lead) -> None:
    script = f"import socket; {ask(API)}; socket.create_server(('', {RTSP}))"
    done = understudy("run", "--through", "mediamtx", "--", sys.executable, "-c", script)
    assert done.stdout == "lead\n"
    assert lead.said == 1


def test_many_connections_at_once_are_all_let_in(lead: Lead) -> None:
    script = (
        f"made = [socket.create_connection(('localhost', {API})) for _ in range(100)]\n"
        "print({one.recv(16).decode() for one in made})\n"
    )
    assert inside(script, "--through", "mediamtx:api") == "{'lead'}"
    assert lead.said == 100


def test_what_is_bound_to_ipv6_only_is_found_there() -> None:
    server = Lead(API, "::1")
    try:
        assert inside(ask(API), "--through", "mediamtx:api") == "lead"
    finally:
        server.stop()


def test_production_may_stop_and_come_back_meanwhile(lead: Lead) -> None:
    code = (
        "import socket, sys\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        f"        said = socket.create_connection(('127.0.0.1', {API}), timeout=20).recv(16)\n"
        "    except OSError as exc:\n"
        "        said = b''\n"
        "    print(said.decode() or 'closed', flush=True)\n"
    )
    process = start(
        "run", "--through", "mediamtx:api", "--", sys.executable, "-c", code, stdin=subprocess.PIPE
    )

    def answer() -> str:
        assert process.stdin is not None
        process.stdin.write("?\n")
        process.stdin.flush()
        return line_of(process)

    assert answer() == "lead"
    lead.stop()
    assert answer() == "closed"
    again = Lead(API)
    try:
        assert answer() == "lead"
        process.communicate()
        assert process.returncode == 0
    finally:
        again.stop()


@pytest.mark.parametrize(
    ("through", "message", "hint"),
    [
        ("mediamtx", "none of its ports listens: api 9997, rtsp 8554", "start mediamtx.service"),
        ("mediamtx:rtsp", "its port rtsp 8554 does not listen", "systemctl start mediamtx.service"),
        ("mediamtx:rtps", "it has no port 'rtps'", "did you mean 'rtsps'?"),
        ("mediamtx:8555", "it has no port '8555'", "did you mean '8554'?"),
        ("mediamtx:rtp", "it is UDP, which no proxy carries", "--service or --join"),
        ("mediamtxx", "mediamtxx", "did you mean 'mediamtx'?"),
    ],
)
def test_what_cannot_be_let_in_is_an_error_by_name(through: str, message: str, hint: str) -> None:
    done = understudy("run", "--through", through, "--", "true", code=125)
    assert message in done.stderr
    assert hint in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name the command to run: understudy run -- CMD…"),
        (("--",), "After '--' comes the command to run."),
        (("--network", "host", "--through", "mediamtx", "--", "true"), "--through goes with"),
        (("--join", "x", "--network", "private", "--", "true"), "--join goes without"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(arguments: tuple[str, ...], message: str) -> None:
    assert message in understudy("run", *arguments, code=2).stderr


@pytest.mark.parametrize("network", ["", "public", "private:", "private:Lab", "private:a--b"])
def test_a_network_of_no_such_kind_is_an_error(network: str) -> None:
    done = understudy("run", "--network", network, "--", "true", code=125)
    assert f"Cannot use network '{network}'" in done.stderr


def test_a_network_that_one_is_in_already_is_an_error() -> None:
    words = command_line("run", "--network", "private:lab", "--", "true")
    done = understudy("run", "--network", "private:lab", "--", *words, code=125)
    assert "Cannot enter network 'lab': this process is in it already" in done.stderr


def test_production_is_let_into_a_shared_network_once(lead: Lead) -> None:
    words = ("run", "--network", "private:lab", "--through", "mediamtx:api", "--")
    first = start(*words, "sh", "-c", "echo here; exec sleep 1000")
    try:
        assert line_of(first) == "here"
        second = understudy(*words, "true", code=125)
    finally:
        killed(first)
    assert f"Cannot listen on port {API} of a private network" in second.stderr
    assert "hint: something in that network has it, or lets it in already" in second.stderr


def test_a_network_with_a_name_is_shared_and_ends_with_the_run_that_made_it() -> None:
    server = (
        "import socket, sys\n"
        "server = socket.create_server(('', 8003))\n"
        "print('up', flush=True)\n"
        "server.accept()[0].sendall(b'lab')\n"
        "sys.stdin.read()\n"
    )
    lab = ("run", "--network", "private:lab", "--", sys.executable, "-c")
    first = start(*lab, server, stdin=subprocess.PIPE)
    assert line_of(first) == "up"
    [holder] = units("understudy-network@*")
    assert holder.endswith("-lab.service")
    code = f"import os, socket; print(os.environ['UNDERSTUDY_NETWORK']); {ask(8003)}"
    assert understudy(*lab, code).stdout == "private:lab\nlab\n"
    assert units("understudy-network@*") == {holder}
    assert ask_outside(8003) == "ECONNREFUSED"
    first.communicate()
    assert first.returncode == 0
    assert not units("understudy-network@*")


def ask_outside(port: int) -> str:
    import errno

    with socket.socket() as one:
        return errno.errorcode.get(one.connect_ex(("127.0.0.1", port)), "")


def test_the_network_of_an_instance_can_be_joined_if_it_has_one() -> None:
    spawned = understudy("spawn", "redis", "--units", SERVICES, "--json")
    [one] = json.loads(spawned.stdout)
    try:
        done = understudy("run", "--join", one["unit"], "--", "true", code=125)
        assert f"Cannot join '{one['unit']}': it has no network of its own" in done.stderr
    finally:
        understudy("stop", one["run"])
    assert (
        "there is none of that name"
        in understudy("run", "--join", one["unit"], "--", "true", code=125).stderr
    )


PING_REDIS = (
    "import os, socket\n"
    "number = int(os.environ['UNDERSTUDY_REDIS_REDIS_PORT'])\n"
    "with socket.create_connection(('127.0.0.1', number), timeout=20) as redis:\n"
    "    redis.sendall(b'PING\\r\\n')\n"
    "    print(number, redis.recv(16))\n"
)


def test_an_instance_is_started_for_the_command_on_the_host() -> None:
    words = ["--service", "redis", "--units", str(SERVICES), "--", sys.executable, "-c", PING_REDIS]
    port, said = understudy("run", *words).stdout.split(maxsplit=1)
    assert int(port) != 6379
    assert "PONG" in said


def test_an_instance_is_on_its_standard_ports_in_the_commands_network() -> None:
    words = ["--service", "redis", "--units", str(SERVICES), "--", sys.executable, "-c", PING_REDIS]
    done = understudy("run", "--network", "private", *words)
    assert done.stdout == "6379 b'+PONG\\r\\n'\n"


def test_the_network_of_a_private_instance_can_be_joined() -> None:
    spawned = understudy("spawn", "redis", "--network", "private", "--units", SERVICES, "--json")
    [one] = json.loads(spawned.stdout)
    try:
        code = PING_REDIS.replace("os.environ['UNDERSTUDY_REDIS_REDIS_PORT']", "6379")
        done = understudy("run", "--join", one["unit"], "--", sys.executable, "-c", code)
        assert done.stdout == "6379 b'+PONG\\r\\n'\n"
    finally:
        understudy("stop", one["run"])


@pytest.mark.parametrize("victim", ["command", "guard", "scope"])
def test_whatever_ends_it_nothing_is_left(victim: str, lead: Lead) -> None:
    code = f"import socket, time\n{ask(API)}\nprint(flush=True)\ntime.sleep(1000)"
    process = start("run", "--through", "mediamtx", "--", sys.executable, "-c", code)
    assert line_of(process) == "lead"
    run = next(iter(units("understudy-guard@*"))).partition("@")[2].partition(".")[0]
    if victim == "command":
        process.kill()
        process.communicate()
    else:
        unit = {"guard": f"guard@{run}.service", "scope": f"command-{run}.scope"}[victim]
        systemctl("stop", f"understudy-{unit}")
        process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
    assert eventually(lambda: not [trace for trace in traces() if run in trace])


def test_sigkill_at_any_moment_of_the_start_leaves_nothing(lead: Lead) -> None:
    before = traces()
    for pause_ms in range(20, 220, 12):
        process = start("run", "--through", "mediamtx", "--", "sleep", "1000")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(pause_ms / 1000)
        process.kill()
        process.communicate()
    assert eventually(lambda: not traces() - before), traces() - before
    assert lead.said == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_reaches_the_command_once(number: signal.Signals) -> None:
    code = (
        "import os, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: os.write(1, b'got\\n'))\n"
        "print('up', flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = start(*PRIVATE, sys.executable, "-c", code, stdin=subprocess.PIPE)
    assert line_of(process) == "up"
    process.send_signal(number)
    assert line_of(process) == "got"
    rest, _ = process.communicate()
    assert (rest, process.returncode) == ("", 0)


def test_ctrl_c_reaches_the_command_once_and_it_decides() -> None:
    code = (
        "import os, signal, time\n"
        "got = []\n"
        "def hear(*_):\n"
        "    got.append(1)\n"
        "    os.write(1, b'got %d\\n' % len(got))\n"
        "    if len(got) == 2: raise SystemExit(9)\n"
        "signal.signal(signal.SIGINT, hear)\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(100)\n"
    )
    with terminal(*PRIVATE, sys.executable, "-c", code) as (process, screen):
        read_until(screen, b"up")
        os.write(screen, b"\x03")
        read_until(screen, b"got 1")
        os.write(screen, b"\x03")
        read_until(screen, b"got 2")
        assert process.wait() == 9


def test_ctrl_c_ends_a_command_that_takes_it() -> None:
    with terminal(*PRIVATE, sys.executable, "-c", HOLD) as (process, screen):
        read_until(screen, b"up")
        os.write(screen, b"\x03")
        assert process.wait() == 128 + signal.SIGINT


def test_the_command_has_the_terminal_its_size_and_its_colours() -> None:
    import fcntl
    import struct
    import termios

    script = "test -t 0 && test -t 1 && test -t 2 && stty size && read -r line && echo $TERM $line"
    with terminal(*PRIVATE, "sh", "-c", f"read -r x; {script}") as (process, screen):
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 123, 0, 0))
        os.write(screen, b"go\n")
        read_until(screen, b"33 123")
        os.write(screen, b"typed\n")
        read_until(screen, f"{os.environ.get('TERM', '')} typed".strip().encode())
        assert process.wait() == 0


def test_pdb_works_in_it(open_directory: Path) -> None:
    script = open_directory / "broken.py"
    script.write_text("answer = 6 * 7\nbreakpoint()\nprint('went on')\n")
    with terminal(*PRIVATE, sys.executable, str(script)) as (process, screen):
        read_until(screen, b"(Pdb) ")
        os.write(screen, b"p 'it is', answer\n")
        read_until(screen, b"('it is', 42)\r\n(Pdb) ")
        os.write(screen, b"c\n")
        read_until(screen, b"went on")
        assert process.wait() == 0


def test_a_shell_stops_it_and_brings_it_back() -> None:
    line = " ".join([*command_line(*PRIVATE), "sh", "-c", "'echo u''p; cat; exit 6'"])
    with shell() as (bash, screen):
        os.write(screen, f"{line}\n".encode())
        read_until(screen, b"up\r\n")
        os.write(screen, b"\x1a")
        read_until(screen, b"Stopped")
        os.write(screen, b"echo in between $((40 + 2))\n")
        read_until(screen, b"in between 42")
        os.write(screen, b"fg\n")
        read_until(screen, b"exit 6'")
        os.write(screen, b"typed\n")
        read_until(screen, b"typed\r\ntyped")
        os.write(screen, b"\x04")
        os.write(screen, b"echo code $?\n")
        read_until(screen, b"code 6")
        os.write(screen, b"exit\n")
        assert bash.wait() == 0


@contextlib.contextmanager
def shell() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """An interactive shell in a terminal of its own."""
    import pty

    screen, tty = pty.openpty()
    words = ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"]
    process = subprocess.Popen(
        words, stdin=tty, stdout=tty, stderr=tty, env={**os.environ, "PS1": "$ ", "HISTFILE": ""}
    )
    os.close(tty)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def test_a_terminal_that_goes_away_ends_it() -> None:
    with terminal(*PRIVATE, sys.executable, "-c", HOLD) as (process, screen):
        read_until(screen, b"up")
        away = os.dup(screen)
        os.close(screen)
        os.close(away)
        assert process.wait() == 128 + signal.SIGHUP
        os.dup2(os.open(os.devnull, os.O_RDONLY), screen)  # for the block to close


def test_an_error_that_nobody_can_be_told_has_its_exit_code_all_the_same() -> None:
    with Path("/dev/full").open("w") as full:
        words = command_line("run", "--join", "r00000-1", "--", "true")
        assert subprocess.run(words, stderr=full, check=False).returncode == 125


def test_a_closed_standard_input_stays_closed() -> None:
    script = "test -e /proc/self/fd/0 && echo open || echo closed"
    words = command_line("run", "--network", "private", "--", "sh", "-c", script)
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *words], capture_output=True, text=True, check=True
    )
    assert done.stdout == "closed\n"


@pytest.mark.parametrize("network", ["private", "private:lab"])
def test_closed_standard_streams_stay_closed(network: str) -> None:
    script = "test -e /proc/self/fd/0 || test -e /proc/self/fd/1 || echo closed >&2"
    words = command_line("run", "--network", network, "--", "sh", "-c", script)
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- >&-', "sh", *words], capture_output=True, text=True, check=True
    )
    assert done.stderr == "closed\n"


def test_a_list_that_nobody_can_read_is_no_error() -> None:
    words = ["sh", "-c", '"$@" >&-', "sh", *command_line("services")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.parametrize("options", [(), ("--network", "private"), ("--network", "private:lab")])
def test_further_descriptors_are_handed_down(options: tuple[str, ...]) -> None:
    words = command_line("run", *options, "--", "sh", "-c", "echo seven >&7")
    done = subprocess.run(
        ["sh", "-c", '"$@" 7>&1', "sh", *words], capture_output=True, text=True, check=True
    )
    assert done.stdout == "seven\n"


@pytest.mark.parametrize("network", ["host", "private", "private:lab"])
def test_a_path_that_leads_nowhere_is_the_commands_alone(network: str) -> None:
    caller = {"SUDO_UID": "65534"} if ROOT else {}
    words = ["run", "--network", network, "--env", "PATH=/nowhere", "--", "/bin/sh", "-c"]
    assert understudy(*words, "echo $PATH", env=caller).stdout == "/nowhere\n"


def test_who_reads_no_more_ends_it() -> None:
    process = start(*PRIVATE, "yes")
    assert line_of(process) == "y"
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE


def test_a_full_pipe_only_makes_it_wait() -> None:
    process = start(*PRIVATE, "sh", "-c", "yes | head -c 300000; exit 4")
    assert line_of(process) == "y"
    rest, _ = process.communicate()
    assert (len(rest), process.returncode) == (300000 - 2, 4)


def test_under_sudo_the_command_is_the_calling_users(lead: Lead, guest: suites.User) -> None:
    user, _, number, group, _, home, _ = pwd.getpwnam(guest.name)
    uid, gid = str(number), str(group)
    script = f'id -un; id -G; echo $HOME $USER $LOGNAME; exec {sys.executable} -c "$1"'
    groups = subprocess.run(["id", "-G", user], capture_output=True, text=True, check=True).stdout
    done = understudy(
        "run", "--through", "mediamtx", "--", "sh", "-c", script, "sh",
        f"import socket\n{ask(API)}\nsocket.create_server(('', 8003))",
        env={"SUDO_UID": uid, "SUDO_GID": gid, "SUDO_USER": user},
    )  # fmt: skip
    assert done.stdout == f"{user}\n{groups}{home} {user} {user}\nlead\n"
    found = understudy(
        "run", "--", "cat", "/proc/self/status", env={"SUDO_UID": uid, "SUDO_GID": gid}
    ).stdout
    rows = dict(row.split(":\t", 1) for row in found.splitlines() if ":\t" in row)
    assert {int(rows[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}


@pytest.mark.skipif(not ROOT, reason="what root does under sudo")
def test_a_user_whom_nobody_knows_is_an_error() -> None:
    done = understudy("run", "--", "true", code=125, env={"SUDO_UID": "54321"})
    assert "Cannot run the command as user 54321: there is no such user" in done.stderr
