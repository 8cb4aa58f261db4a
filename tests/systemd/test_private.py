"""Instances in private networks: on production's ports, beside it and never in its place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.systemd.support import (
    ACTIVATED,
    CAMERA_SERVICE,
    MEDIAMTX,
    ROOT,
    SERVICES,
    UNIT_DIR,
    bound,
    call,
    eventually,
    get,
    holders,
    left_since,
    python,
    show,
    systemctl,
    traces,
    understudy,
    units,
)

from understudy.errors import (
    NetworkError,
    PortError,
    ReadyTimeoutError,
    RenderError,
    StartError,
    UsageError,
)
from understudy.instance import Instance
from understudy.run import Run

STANDARD = {"websocket": 8002, "health": 8003}


@pytest.fixture
def _held_8003() -> Iterator[None]:
    """Somebody outside has the port that the service insists on: production, or this test."""
    with ExitStack() as stack:
        if 8003 not in bound("tcp"):
            stack.enter_context(socket.create_server(("127.0.0.1", 8003)))
        yield


@contextmanager
def drop_in(template: str, text: str) -> Iterator[None]:
    """A drop-in of this host for all instances of a template, which comes after all of ours."""
    folder = UNIT_DIR / f"{template}.d"
    folder.mkdir(parents=True)
    file = folder / "99-of-this-host.conf"
    file.write_text(text)
    try:
        yield
    finally:
        file.unlink()
        folder.rmdir()
        systemctl("daemon-reload")


def network_of(pid: int) -> str:
    return str(Path(f"/proc/{pid}/ns/net").readlink())


def main_pid(unit: str) -> int:
    return int(show(unit, "MainPID")["MainPID"])


def inside(instance: Instance, *command: str) -> str:
    """What a command prints in an instance's network."""
    enter = ["nsenter", f"--target={instance.pid}", "--net"]
    if not ROOT:
        enter += ["--user", "--preserve-credentials"]
    done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
    return done.stdout


@pytest.mark.usefixtures("_held_8003")
def test_many_insist_on_one_port_beside_somebody_who_has_it(run: Run) -> None:
    instances = run.spawn_many(["insists"] * 10)
    answers = {get(instance.urls["http"]) for instance in instances}
    assert answers == {str(instance.pid) for instance in instances}
    assert {instance.inside_ports["http"] for instance in instances} == {8003}
    assert len({instance.ports["http"] for instance in instances}) == 10
    assert {instance.network for instance in instances} == {"private"}
    networks = {network_of(instance.pid) for instance in instances}
    assert len(networks - {network_of(os.getpid())}) == 10


@pytest.mark.usefixtures("production")
def test_nobody_outside_is_touched(run: Run) -> None:
    before = {port: holders("tcp", port) for port in (8002, 8003, 8554, 9997)}
    run.spawn_many(
        [run.request("insists"), run.request("mediamtx", values=MEDIAMTX, network="private")]
    )
    assert {port: holders("tcp", port) for port in before} == before


def test_its_port_is_published_once_it_listens_and_not_before(run: Run) -> None:
    request = run.request("insists", values={"slowness": "0.3"}, ports={"http": 28003})
    script = (
        "import socket, sys, time\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    try:\n"
        "        found = socket.create_connection(('127.0.0.1', 28003), 5)\n"
        "    except ConnectionRefusedError:\n"
        "        time.sleep(0.001)\n"
        "        continue\n"
        "    found.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
        "    print(found.recv(15).decode().strip(), flush=True)\n"
        "    break\n"
    )
    with python(script) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        instance = run.spawn_many([request])[0]
        assert client.stdout.readline() == "HTTP/1.0 200 OK\n"
    assert instance.ports == {"http": 28003}


def test_an_instance_told_otherwise_is_in_the_hosts_network(run: Run) -> None:
    with pytest.raises((StartError, ReadyTimeoutError)):
        # There its port is not its own to choose, and it takes none of ours.
        run.spawn("insists", network="host", timeout_s=2)


def test_redis_on_its_own_port(run: Run) -> None:
    with ExitStack() as stack:
        if 6379 not in bound("tcp"):
            stack.enter_context(socket.create_server(("127.0.0.1", 6379)))
        many = run.spawn_many([run.request("redis", network="private") for _ in range(2)])
    for number, instance in enumerate(many):
        assert instance.inside_ports == {"redis": 6379}
        with socket.create_connection(("127.0.0.1", instance.ports["redis"])) as connection:
            connection.sendall(f"SET name {number}\r\nGET name\r\n".encode())
            answer = b""
            while answer.count(b"\n") < 3:
                answer += connection.recv(100)
        assert answer.split() == [b"+OK", b"$1", str(number).encode()]


@pytest.mark.usefixtures("camera_file")
def test_the_camera_service_on_its_own_ports_talks_to_production(
    run: Run, production: dict[str, str]
) -> None:
    camera = run.spawn("camera-service", values=CAMERA_SERVICE, network="private")
    assert camera.inside_ports == STANDARD
    status = call(camera.urls["websocket"], "get_status")
    assert status["pid"] == camera.pid
    assert status["mediamtx"]["api"] == "http://127.0.0.1:9997"
    rows = inside(camera, "ss", "-Hltn")
    assert all(f":{port} " in rows for port in (8002, 8003, 9997, 8554))
    if ROOT:
        said = inside(camera, "systemctl", "is-active", production["mediamtx"])
    else:
        said = inside(camera, "systemctl", "--user", "is-active", production["mediamtx"])
    assert said == "active\n"


@pytest.mark.usefixtures("camera_file", "production")
def test_a_camera_service_and_its_own_mediamtx_share_a_network(run: Run) -> None:
    network = "private:lab"
    server = run.spawn("mediamtx", values=MEDIAMTX, network=network)
    camera = run.spawn(
        "camera-service", values=CAMERA_SERVICE, network=network, uses={"mediamtx": server}
    )
    assert camera.network == server.network == network
    assert network_of(camera.pid) == network_of(server.pid) != network_of(os.getpid())
    assert server.inside_ports["api"] == 9997
    assert camera.inside_ports == STANDARD
    call(camera.urls["websocket"], "start_stream", name="cam0")
    assert "cam0" in get(f"{server.urls['api']}/v3/config/paths/list")
    holder = f"understudy-network@{run.id}-lab.service"
    assert holder in units()
    run.stop()
    assert not units() & {holder, camera.unit, server.unit}


@pytest.mark.usefixtures("camera_file", "production")
def test_a_service_that_uses_an_instance_outside_finds_it_under_its_number(run: Run) -> None:
    server = run.spawn("mediamtx", values=MEDIAMTX)
    camera = run.spawn(
        "camera-service", values=CAMERA_SERVICE, network="private", uses={"mediamtx": server}
    )
    status = call(camera.urls["websocket"], "get_status")
    assert status["mediamtx"]["api"] == f"http://127.0.0.1:{server.ports['api']}"


def test_a_network_has_each_port_once(run: Run) -> None:
    first = run.spawn("insists", network="private:lab")
    with pytest.raises(
        PortError, match=r"port 8003 \('http'\) of its network 'private:lab' is"
    ) as c:
        run.spawn("insists", network="private:lab")
    assert first.unit in str(c.value)
    assert get(first.urls["http"]) == str(first.pid)


def test_another_run_finds_a_network_by_its_name_and_does_not_end_it(run: Run) -> None:
    first = run.spawn("insists", network="private:lab")
    with Run(units=SERVICES) as other:
        adhoc = other.spawn(
            exec=[sys.executable, "-m", "http.server", "{port.http}"],
            ports=["http:8010"],
            network="private:lab",
        )
        assert network_of(adhoc.pid) == network_of(first.pid)
        assert get(adhoc.urls["http"])
    assert get(first.urls["http"]) == str(first.pid)


@pytest.mark.parametrize("network", ["private", "private:lab"])
def test_sockets_that_are_handed_in_need_no_proxy(run: Run, network: str) -> None:
    service = "camera-service-activated"
    camera = run.spawn(service, values=ACTIVATED, network=network)
    assert network_of(camera.pid) != network_of(os.getpid())
    assert call(camera.urls["websocket"], "ping") == "pong"
    assert camera.inside_ports == {}
    assert not [unit for unit in units() if unit.startswith("understudy-publish@")]
    before = camera.ports
    camera.restart()
    assert camera.ports == before
    assert call(camera.urls["websocket"], "ping") == "pong"


def test_udp_comes_in_by_a_socket_that_is_handed_in(run: Run) -> None:
    instance = run.spawn("takes-udp", network="private")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(b"hello", ("127.0.0.1", instance.ports["media"]))
        assert client.recv(100) == b"hello"
    assert network_of(instance.pid) != network_of(os.getpid())


SHARED = "[Service]\nPrivateNetwork=no\nPrivateUsers=no\n"


def test_a_service_that_is_not_isolated_never_runs(run: Run) -> None:
    before = bound("tcp").get(8003)
    with (
        drop_in("understudy-insists@.service", SHARED),
        pytest.raises(NetworkError, match="Cannot isolate 'understudy-insists@") as caught,
    ):
        run.spawn("insists")
    assert "runs in the host's network; the service itself was not run" in str(caught.value)
    assert "systemctl" in str(caught.value.hint)
    said = understudy("logs", run.id, code=None).stdout
    assert "started" not in said
    assert bound("tcp").get(8003) == before


def test_without_a_user_namespace_a_users_service_is_isolated_or_never_runs(run: Run) -> None:
    with drop_in("understudy-insists@.service", "[Service]\nPrivateUsers=no\n"):
        try:
            instance = run.spawn("insists")
        except NetworkError as error:
            assert not ROOT
            assert "was not run" in str(error)  # noqa: PT017 - either is right, by version
        else:
            assert network_of(instance.pid) != network_of(os.getpid())


def test_a_proxy_that_is_not_inside_is_an_error(run: Run) -> None:
    away = "PrivateNetwork=no\n" if ROOT else (
        "ExecStart=\nExecStart=/usr/lib/systemd/systemd-socket-proxyd 127.0.0.1:8003\n"
    )  # fmt: skip
    with (
        drop_in("understudy-publish@.service", f"[Service]\n{away}"),
        pytest.raises(NetworkError, match="Cannot publish port 'http' of 'understudy-insists@"),
    ):
        run.spawn("insists")
    assert not [unit for unit in units() if "insists" in unit or "publish" in unit]


def test_an_exact_number_that_is_taken_names_its_holder(run: Run) -> None:
    with (
        socket.create_server(("127.0.0.1", 28004)),
        pytest.raises(PortError, match="28004") as caught,
    ):
        run.spawn("insists", ports={"http": 28004})
    assert caught.value.port == 28004
    assert caught.value.owner


def test_a_port_that_is_taken_meanwhile_is_another_in_the_next_round(run: Run) -> None:
    stolen: list[socket.socket] = []
    file = UNIT_DIR / f"understudy-publish@{run.id}-1-http.socket"

    def steal() -> None:
        text = eventually(lambda: file.exists() and file.read_text()) or ""
        number = int(text.partition("ListenStream=127.0.0.1:")[2].split()[0])
        stolen.append(socket.create_server(("127.0.0.1", number)))

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        instance = run.spawn("insists", values={"slowness": "0.3"})
        thief.join()
        assert instance.number == 2
        assert instance.ports["http"] != stolen[0].getsockname()[1]
    finally:
        for one in stolen:
            one.close()


def test_it_starts_again_in_a_new_network_on_the_same_ports(run: Run) -> None:
    instance = run.spawn("insists")
    before = instance.pid
    instance.restart()
    assert instance.pid != before
    assert network_of(instance.pid) != network_of(os.getpid())
    assert get(instance.urls["http"]) == str(instance.pid)
    proxy = f"understudy-publish@{run.id}-1-http.service"
    assert network_of(main_pid(proxy)) == network_of(instance.pid)


def test_stopping_one_takes_its_proxies_and_files_and_no_other(run: Run) -> None:
    first, second = run.spawn_many(["insists"] * 2)
    first.stop()
    assert not [unit for unit in units() if unit.startswith(f"understudy-publish@{run.id}-1-")]
    assert not list(UNIT_DIR.glob(f"understudy-publish@{run.id}-1-*"))
    assert get(second.urls["http"]) == str(second.pid)
    understudy("stop", f"{run.id}-2", "--manager", "system" if ROOT else "user")
    assert not list(UNIT_DIR.glob(f"understudy-publish@{run.id}-*"))


OWNER = """
import os, signal, sys
from understudy import network, private
from understudy.manager.dbus import DbusManager
from understudy.run import Run
from pathlib import Path
when, name = sys.argv[1].split()
def step(frame, event, argument):
    code = frame.f_code
    if (event, code.co_name) == (when, name) and 'understudy/private.py' in code.co_filename:
        os.kill(os.getpid(), signal.SIGKILL)
with Run(units=Path(sys.argv[2])) as run:
    sys.setprofile(step)
    run.spawn('insists')
    sys.setprofile(None)
    print('ready', flush=True)
"""


@pytest.mark.parametrize("when", ["call", "return"])
@pytest.mark.parametrize(
    "step",
    ["_at_gate", "_pass", "_let_in", "_holds", "_start", "told", "up", "_published", "close"],
)
def test_an_owner_that_is_killed_on_the_way_leaves_nothing(step: str, when: str) -> None:
    before = traces()
    with python(OWNER, f"{when} {step}", str(SERVICES)) as owner:
        owner.communicate()
    assert owner.returncode == -signal.SIGKILL
    assert left_since(before) == set()


def test_what_dies_inside_is_told_with_its_last_words(run: Run) -> None:
    with pytest.raises(StartError, match="it exited with status 1") as caught:
        run.spawn("insists", values={"slowness": "soon"})
    assert "could not convert string to float" in caught.value.journal


def test_a_program_that_is_not_there_is_told_at_once(run: Run) -> None:
    with pytest.raises(StartError, match="status 127") as caught:
        run.spawn("redis", values={"program": "/opt/no/redis"}, network="private")
    assert "there is no program '/opt/no/redis' here" in str(caught.value.hint)


def test_what_never_listens_says_which_port_inside(run: Run) -> None:
    with pytest.raises(ReadyTimeoutError, match=r"nothing of it holds http \(tcp 8003\)"):
        run.spawn("insists", values={"slowness": "60"}, timeout_s=1)


def test_what_makes_no_sense_is_refused(run: Run) -> None:
    for refused, words in WRONG:
        with pytest.raises((UsageError, RenderError), match=words):
            refused(run)


WRONG: list[tuple[Callable[[Run], object], str]] = [
    (lambda run: run.spawn("insists", network="lab"), "Cannot use network 'lab'"),
    (lambda run: run.spawn("insists", network="private:"), "Cannot use network 'private:'"),
    (lambda run: run.spawn("insists", network="private:La b"), "Cannot use network"),
    (
        lambda run: run.spawn(
            "camera-service-activated", values=ACTIVATED, network="private", lazy=True
        ),
        "lazily in a private network",
    ),
    (
        lambda run: run.spawn("mediamtx", values=MEDIAMTX, network="private", ports={"rtp": 28000}),
        "Cannot publish UDP port 'rtp' of 'mediamtx' as 28000",
    ),
    (
        lambda run: run.spawn(exec=["/bin/sleep", "9"], ports=["http:80"]),
        "Cannot spawn 'sleep' with port 'http:80'",
    ),
]


@pytest.mark.usefixtures("_held_8003")
def test_the_command_and_the_list_say_it() -> None:
    [row] = json.loads(
        understudy("spawn", "insists", "--units", SERVICES, "--network", "private", "--json").stdout
    )
    try:
        assert (row["network"], row["inside_ports"]) == ("private", {"http": 8003})
        shown = understudy("show", row["unit"]).stdout
        assert "network  private" in shown
        assert "inside   http 8003" in shown
        [listed] = [
            one
            for one in json.loads(understudy("list", "--json").stdout)
            if one["unit"] == row["unit"]
        ]
        assert listed["network"] == "private"
        assert listed["ports"] == row["ports"]
    finally:
        understudy("stop", row["run"])


@pytest.mark.usefixtures("_held_8003")
def test_the_printed_script_does_the_same() -> None:
    script = understudy("spawn", "insists", "--units", SERVICES, "--dry-run").stdout
    started = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=False)
    guard = next(unit for unit in units() if unit.startswith("understudy-guard@"))
    try:
        assert (started.returncode, started.stderr) == (0, "")
        [row] = json.loads(understudy("list", "--json").stdout)
        assert get(row["urls"]["http"]) == str(row["pid"])
        assert network_of(row["pid"]) != network_of(os.getpid())
    finally:
        systemctl("stop", guard)


def test_the_printed_script_runs_nothing_that_is_not_isolated() -> None:
    script = understudy("spawn", "insists", "--units", SERVICES, "--dry-run").stdout
    with drop_in("understudy-insists@.service", SHARED):
        started = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=False)
    assert started.returncode == 1
    assert "is not isolated: it was not run" in started.stderr


def test_a_network_with_a_name_cannot_be_printed() -> None:
    line = ("spawn", "insists", "--units", SERVICES, "--network", "private:lab", "--dry-run")
    assert "is found or made when an instance is spawned" in understudy(*line, code=1).stderr
