"""One instance while it lives: its log, signals, a restart, frozen and thawed, what it used."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.systemd.support import (
    ACTIVATED,
    MEDIAMTX,
    ROOT,
    RUNTIME,
    SERVICES,
    bound_by,
    eventually,
    get,
    left_since,
    processes,
    show,
    traces,
    understudy,
)

from understudy.errors import (
    InstanceError,
    LogTimeoutError,
    PortError,
    StartError,
    UsageError,
)
from understudy.instance import Instance
from understudy.run import Run

TALKER = """
import signal, sys, time
def say(word):
    print(word, flush=True)
signal.signal(signal.SIGUSR1, lambda *_: say("heard USR1"))
signal.signal(signal.SIGUSR2, lambda *_: sys.exit("last words"))
say("ready to talk")
while True:
    signal.pause()
"""


def talker(run: Run) -> Instance:
    instance = run.spawn(exec=[sys.executable, "-c", f"exec({TALKER!r})"])
    instance.wait_for_log("ready to talk", timeout_s=30)
    return instance


def state(pid: int) -> str:
    """The state of a process, as in /proc/PID/stat: ``S``, ``T``, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_wait_for_log_gives_the_match(run: Run) -> None:
    instance = run.spawn(exec=[sys.executable, "-c", f"exec({TALKER!r})"])
    found = instance.wait_for_log(re.compile(r"ready to (\w+)"))
    assert found[1] == "talk"
    assert found.string == "ready to talk"
    # What was written before the call is found too, and again.
    assert instance.wait_for_log("ready to talk", timeout_s=5)


def test_wait_for_log_from_now_on_finds_nothing_older(run: Run) -> None:
    instance = talker(run)
    with pytest.raises(LogTimeoutError, match=r"not written within 0\.3 s") as caught:
        instance.wait_for_log("ready to talk", since="now", timeout_s=0.3)
    assert caught.value.timeout_s == 0.3
    assert "ready to talk" in caught.value.journal
    assert caught.value.hint == f"See: understudy logs {instance.unit}"
    before = instance.journal_mark()
    instance.kill("SIGUSR1")
    assert instance.wait_for_log("heard (.*)", since=before)[1] == "USR1"


def test_wait_for_log_sees_a_line_soon(run: Run) -> None:
    instance = talker(run)
    took = []
    for _ in range(5):
        mark = instance.journal_mark()
        began = time.monotonic()
        instance.kill("USR1")
        instance.wait_for_log("heard USR1", since=mark, timeout_s=10)
        took.append(time.monotonic() - began)
    assert min(took) < 0.1, took


def test_wait_for_log_of_what_dies_is_an_error_at_once(run: Run) -> None:
    instance = talker(run)
    threading.Timer(0.3, instance.kill, ["SIGUSR2"]).start()
    began = time.monotonic()
    with pytest.raises(InstanceError, match=": it exited with status 1\n") as caught:
        instance.wait_for_log("never", timeout_s=60)
    assert time.monotonic() - began < 10
    assert caught.value.journal.endswith("last words")
    assert not isinstance(caught.value, LogTimeoutError)


def test_wait_for_log_finds_the_last_words_of_what_dies(run: Run) -> None:
    instance = talker(run)
    instance.kill(signal.SIGUSR2)
    assert instance.wait_for_log("last (words)", timeout_s=30)[1] == "words"


def test_wait_for_log_refuses_what_is_no_expression(run: Run) -> None:
    with pytest.raises(UsageError, match="Cannot look for 'a\\[': unterminated") as caught:
        talker(run).wait_for_log("a[")
    assert caught.value.hint == "For plain text: re.escape(text)"


def test_journal_since_a_mark_is_a_part_of_the_log(run: Run) -> None:
    instance = talker(run)
    first = instance.journal_mark()
    instance.kill("USR1")
    instance.wait_for_log("heard", since=first)
    second = instance.journal_mark()
    assert instance.journal(since=first) == "heard USR1"
    assert instance.journal(since=second) == ""
    instance.kill("USR1")
    instance.wait_for_log("heard", since=second)
    assert instance.journal(since=second) == "heard USR1"
    assert instance.journal(since=first) == "heard USR1\nheard USR1"
    assert instance.journal(since=first, lines=1) == "heard USR1"
    assert instance.journal().splitlines()[0] == "ready to talk"


def test_a_part_of_the_log_outlives_the_instance(run: Run) -> None:
    instance = talker(run)
    mark = instance.journal_mark()
    instance.kill("USR1")
    instance.wait_for_log("heard", since=mark)
    instance.stop()
    assert instance.journal(since=mark) == "heard USR1"


@pytest.mark.parametrize("service", ["mediamtx", "exec", "activated"])
def test_restart_is_ready_again_on_the_same_ports(run: Run, service: str) -> None:
    if service == "mediamtx":
        instance = run.spawn("mediamtx", values=MEDIAMTX)
        url = f"{instance.urls['api']}/v3/paths/list"
    elif service == "exec":
        line = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port.http}"]
        instance = run.spawn(exec=line, ports=["http"])
        url = instance.urls["http"]
    else:
        instance = run.spawn("camera-service-activated", values=ACTIVATED)
        url = f"{instance.urls['health']}/health/ready"
    ports, pid = dict(instance.ports), instance.pid
    held = bound_by(instance.unit)
    instance.restart()
    assert get(url)  # at once
    assert instance.pid not in (0, pid)
    assert instance.ports == ports
    assert bound_by(instance.unit) == held


def test_restart_in_a_private_network_is_ready_again(run: Run) -> None:
    instance = run.spawn("redis", network="private")
    pid = instance.pid
    instance.restart()
    assert instance.pid not in (0, pid)
    with socket.create_connection(("127.0.0.1", instance.ports["redis"])) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(16) == b"+PONG\r\n"


def test_restart_brings_back_what_has_died(run: Run) -> None:
    instance = run.spawn("redis")
    instance.kill()
    assert eventually(lambda: instance.status().active_state == "failed")
    instance.restart()
    with socket.create_connection(("127.0.0.1", instance.ports["redis"])) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(16) == b"+PONG\r\n"


def test_restart_that_fails_says_why(run: Run, open_directory: Path) -> None:
    program = open_directory / "program.py"
    program.write_text("import sys, http.server as h\nh.test(port=int(sys.argv[1]))\n")
    instance = run.spawn(exec=[sys.executable, str(program), "{port.http}"], ports=["http"])
    program.write_text("raise SystemExit('no more')\n")
    with pytest.raises(StartError, match="it exited with status 1 before it was ready") as caught:
        instance.restart()
    assert caught.value.journal.endswith("no more")
    assert show(instance.unit, "ActiveState") == {"ActiveState": "failed"}


def test_restart_names_who_took_its_port(run: Run) -> None:
    instance = run.spawn("redis")
    number = instance.ports["redis"]
    instance.kill()
    assert eventually(lambda: instance.status().active_state == "failed")
    with socket.create_server(("127.0.0.1", number)):
        with pytest.raises(PortError, match=f"port {number} is held by") as caught:
            instance.restart()
        assert str(os.getpid()) in str(caught.value)


def test_stopped_instance_is_not_restarted(run: Run) -> None:
    instance = run.spawn("redis")
    instance.stop()
    with pytest.raises(InstanceError, match="it has been stopped, and its ports given back"):
        instance.restart()


def test_signals_reach_the_service(run: Run) -> None:
    instance = talker(run)
    with pytest.raises(UsageError, match="Cannot send 'SIGNOTHING': no such signal"):
        instance.kill("SIGNOTHING")
    instance.kill(signal.SIGTERM)
    ended = {"ActiveState": "inactive", "Result": "success"}
    assert eventually(lambda: show(instance.unit, *ended) == ended)


def test_frozen_instance_stands_still_and_goes_on(run: Run) -> None:
    instance = run.spawn("redis")
    with socket.create_connection(("127.0.0.1", instance.ports["redis"])) as client:
        client.settimeout(0.3)
        instance.freeze()
        client.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            client.recv(16)
        instance.thaw()
        client.settimeout(30)
        assert client.recv(16) == b"+PONG\r\n"
    instance.thaw()  # once more does no harm


def test_run_ends_promptly_while_frozen() -> None:
    before = traces()
    with Run(units=SERVICES) as run:
        instance = run.spawn("redis")
        instance.freeze()
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert left_since(before, timeout_s=3) == set()


def test_freezing_reaches_every_process(run: Run) -> None:
    instance = run.spawn(exec=["/bin/sh", "-c", "sleep 1000 & sleep 1001 & wait"])
    assert eventually(lambda: len(processes(f"/{instance.unit}/")) == 3)
    pids = [pid for pid, _ in processes(f"/{instance.unit}/")]
    instance.freeze()
    assert {state(pid) for pid in pids} == {"T"}
    instance.thaw()
    assert eventually(lambda: "T" not in {state(pid) for pid in pids})


def test_what_it_used_is_told(run: Run) -> None:
    line = "sum(range(3_000_000)); print('done', flush=True); import signal; signal.pause()"
    instance = run.spawn(exec=[sys.executable, "-c", line])
    instance.wait_for_log("done")
    used = instance.cpu_s
    assert used is not None
    assert 0.01 < used < 30
    peak = instance.memory_peak_bytes
    known = show(instance.unit, "MemoryPeak").get("MemoryPeak", "")
    assert peak is None or peak > 1_000_000
    if known.isdecimal() and int(known) < 2**60:
        assert peak is not None


def test_reproduce_starts_the_same(run: Run) -> None:
    instance = run.spawn("redis", env={"A": "b c"})
    line = instance.reproduce()
    kind = "system" if ROOT else "user"
    assert line == (f"understudy spawn --units={SERVICES} redis --env=A --manager={kind}")
    words = line.split()[1:]
    refused = understudy(*words, code=2, env={}).stderr
    assert "Invalid value for '--env': 'A' is not set in your own environment" in refused
    printed = json.loads(understudy(*words, "--json", env={"A": "b c"}).stdout)[0]
    try:
        [file] = (RUNTIME / "understudy" / printed["run"]).glob("*.files/secrets.env")
        assert file.read_text() == 'A="b c"\n'
    finally:
        understudy("stop", printed["run"])


def test_reproduce_names_ports_and_what_it_uses(run: Run) -> None:
    mtx = run.spawn("mediamtx", values=MEDIAMTX, ports=["metrics"])
    assert "--port=metrics" in mtx.reproduce()
    assert "'--set=program=" in mtx.reproduce()
    line = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port.http}"]
    adhoc = run.spawn(exec=line, ports=["http"])
    assert "'--exec=" in adhoc.reproduce()
    assert "--port=http" in adhoc.reproduce()


def test_forked_child_does_not_stop_its_parents_instance(run: Run) -> None:
    instance = run.spawn("redis")
    child = os.fork()
    if child == 0:
        try:
            instance.stop()
            with instance:
                pass
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert show(instance.unit, "ActiveState") == {"ActiveState": "active"}


def test_logs_of_a_gone_instance_are_found_by_name() -> None:
    with Run(units=SERVICES) as run:
        instance = talker(run)
    assert instance.journal() == "ready to talk"
    assert "ready to talk" in understudy("logs", instance.unit).stdout
    assert "ready to talk" in understudy("logs", run.id).stdout


def test_a_run_ends_although_its_owner_closed_everything_and_moved() -> None:
    """A process of its own: closes every descriptor, moves, changes HOME, and ends its run."""
    before = traces()
    code = f"""
import os, sys
from pathlib import Path
from understudy.errors import RunError
from understudy.run import Run
run = Run(units=Path({str(SERVICES)!r}))
run.start()
one = run.spawn("redis")
two = run.spawn("redis")
shared = run.shared("redis", group="closed")
os.closerange(3, 4096)
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
os.chdir("/")
os.environ.update(HOME="/nowhere", XDG_RUNTIME_DIR="/nowhere", DBUS_SESSION_BUS_ADDRESS="x:")
try:
    run.spawn("redis")
except RunError as exc:
    assert "the connection to its guard has been closed" in str(exc), exc
one.stop()
run.stop()
for descriptor in taken:
    os.fstat(descriptor)
    os.close(descriptor)
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert left_since(before, timeout_s=5) == set()
