"""Production that its first connection starts, on the system's own manager."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.systemd.support import (
    ROOT,
    SERVICES,
    SOON_S,
    UNIT_DIR,
    bound,
    eventually,
    processes,
    require,
    show,
    systemctl,
    units,
)

from understudy import derive, services
from understudy.run import Run

pytestmark = pytest.mark.skipif(not ROOT, reason="production is the system manager's")

PROGRAM = SERVICES / "on-demand/on_demand.py"
UNIT = "tests-on-demand.service"
PORTS = {"http": 8301, "admin": 8302}
PROXIES = {name: f"tests-on-demand-{name}-proxy.service" for name in PORTS}
SOCKETS = [unit.replace(".service", ".socket") for unit in PROXIES.values()]
PARALLEL = 50
TRIES = 10

Install = Callable[..., None]


@pytest.fixture
def install() -> Iterator[Install]:
    """Put production's units on the host and start its sockets; all is gone afterwards."""
    taken = bound("tcp").keys() & {*PORTS.values(), 18301, 18302}
    require(not taken, f"ports are not free: {taken}")
    with ExitStack() as undo:

        def install(definition: str, **values: str) -> None:
            service = services.load(SERVICES / definition, "tests")
            texts = derive.render_production(service, {"program": str(PROGRAM), **values})
            undo.callback(remove, texts)
            for name, text in texts.items():
                (UNIT_DIR / name).parent.mkdir(exist_ok=True)
                (UNIT_DIR / name).write_text(text)
            systemctl("daemon-reload")
            systemctl("start", *SOCKETS)

        yield install
    assert units("tests-on-demand*") == set()
    assert not bound("tcp").keys() & {*PORTS.values(), 18301, 18302}
    assert processes(within="/tests-on-demand") == set()


def remove(names: Iterable[str]) -> None:
    systemctl("stop", *SOCKETS, UNIT, *PROXIES.values(), check=False)
    for name in names:
        (UNIT_DIR / name).unlink(missing_ok=True)
    (UNIT_DIR / f"{UNIT}.d").rmdir()
    systemctl("daemon-reload")
    systemctl("reset-failed", UNIT, *PROXIES.values(), check=False)


both = pytest.mark.parametrize("definition", ["on-demand", "on-demand-private"])


def ask(name: str = "http", word: str = "hello") -> str:
    """What a new connection is answered; "" where it is closed without an answer."""
    with socket.create_connection(("127.0.0.1", PORTS[name]), timeout=SOON_S) as connection:
        try:
            connection.sendall(f"{word}\n".encode())
            return connection.recv(100).decode()
        except ConnectionResetError:
            return ""


def answered_by(answer: str) -> tuple[int, str]:
    """The process that has answered, and with which word."""
    pid, _port, word = answer.split()
    return int(pid), word


def main_pid() -> int:
    return int(show(UNIT, "MainPID")["MainPID"])


def state(unit: str) -> str:
    return show(unit, "ActiveState")["ActiveState"]


def listening_again() -> bool:
    """Whether the sockets wait for the next connection, and no proxy has them."""
    return {show(unit, "SubState")["SubState"] for unit in SOCKETS} == {"listening"}


def idle() -> bool:
    """Whether they do, and the service has been stopped."""
    return listening_again() and state(UNIT) == "inactive"


@contextmanager
def always_held() -> Iterator[None]:
    """Demand that the public ports are held by the manager all the time, as ss(8) tells."""
    seen: list[set[str]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            found = bound("tcp")
            seen.extend(found.get(port, set()) for port in PORTS.values())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
    assert seen
    assert all(holder and UNIT not in holder for holder in seen), seen


@both
def test_nothing_of_the_service_runs_before_the_first_connection(
    install: Install, definition: str
) -> None:
    install(definition)
    assert idle()
    assert {state(unit) for unit in PROXIES.values()} == {"inactive"}
    assert processes(within="/tests-on-demand") == set()


@both
def test_every_one_of_many_first_connections_is_answered_by_a_slow_service(
    install: Install, definition: str
) -> None:
    install(definition, slowness="0.3")
    names = [name for _ in range(PARALLEL // 2) for name in PORTS]
    with ThreadPoolExecutor(PARALLEL) as pool:
        answers = list(pool.map(ask, names))
    pid = main_pid()
    assert {answered_by(answer) for answer in answers} == {(pid, "hello")}
    assert state(UNIT) == "active"


@both
def test_an_idle_service_is_stopped_and_the_next_connection_starts_it_again(
    install: Install, definition: str
) -> None:
    install(definition, slowness="0.1")
    with always_held():
        pids = {answered_by(ask())[0]}
        for _ in range(2):
            assert eventually(idle)
            pids.add(answered_by(ask("admin"))[0])
    assert len(pids) == 3


@both
def test_an_open_connection_keeps_the_service(install: Install, definition: str) -> None:
    install(definition, slowness="0")
    with socket.create_connection(("127.0.0.1", PORTS["http"]), timeout=SOON_S) as connection:
        connection.sendall(b"first\n")
        pid, _ = answered_by(connection.recv(100).decode())
        ask("admin")
        assert eventually(lambda: state(PROXIES["admin"]) == "inactive")
        assert state(UNIT) == "active"
        connection.sendall(b"last\n")
        assert answered_by(connection.recv(100).decode()) == (pid, "last")
    assert eventually(idle)


@both
def test_a_restart_of_the_service_refuses_no_connection(install: Install, definition: str) -> None:
    install(definition, slowness="0.2")
    before, _ = answered_by(ask())
    restart = subprocess.Popen(["systemctl", "restart", UNIT])
    assert eventually(lambda: main_pid() not in (0, before))
    with always_held(), ThreadPoolExecutor(PARALLEL) as pool:
        answers = list(pool.map(ask, ["http"] * PARALLEL))
    assert restart.wait() == 0
    assert {answered_by(answer) for answer in answers} == {(main_pid(), "hello")}
    assert main_pid() != before


@both
def test_connections_during_restarts_are_queued_or_cut_and_never_refused(
    install: Install, definition: str
) -> None:
    install(definition, slowness="0.05")
    over = threading.Event()
    answers: list[str] = []

    def keep_asking() -> None:
        while not over.is_set():
            answers.append(ask())  # a refusal is an exception

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking) for _ in range(4)]
        for _ in range(5):
            systemctl("restart", UNIT)
            assert eventually(lambda: state(PROXIES["http"]) == "active")
        over.set()
        for one in asking:
            one.result()
    assert "hello" in answers[-1]


@both
def test_each_connection_tries_a_service_anew_that_dies_at_its_start(
    install: Install, definition: str
) -> None:
    install(definition, slowness="dies")
    lives = set()
    for _ in range(TRIES):
        assert ask() == ""
        lives.add(show(UNIT, "InvocationID")["InvocationID"])
        assert eventually(listening_again)
    assert len(lives) == TRIES
    assert show(UNIT, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "exit-code"}
    assert show(PROXIES["http"], "Result")["Result"] == "exit-code"


@both
def test_a_service_that_never_listens_has_its_clients_let_go(
    install: Install, definition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "PROXY_TIMEOUT_S", 1)
    install(definition, slowness="1000")
    with ThreadPoolExecutor(PARALLEL) as pool:
        assert set(pool.map(ask, ["http"] * PARALLEL)) == {""}
    assert eventually(idle)


def test_a_program_that_is_not_there_closes_the_connection_too(install: Install) -> None:
    install("on-demand")
    drop_in = UNIT_DIR / f"{UNIT}.d/90-broken.conf"
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/no/such/program\n")
    try:
        systemctl("daemon-reload")
        for _ in range(TRIES):
            assert ask() == ""
            assert eventually(listening_again)
    finally:
        drop_in.unlink()
    systemctl("daemon-reload")
    assert answered_by(ask())[1] == "hello"


@both
def test_a_service_that_has_died_is_started_by_the_next_connection(
    install: Install, definition: str
) -> None:
    install(definition, slowness="0.1")
    for _ in range(TRIES):
        pid, _ = answered_by(ask())
        assert ask(word="end") == ""
        assert eventually(listening_again)
        assert answered_by(ask())[0] != pid


def test_a_stranger_on_the_number_behind_gets_no_connection(install: Install) -> None:
    install("on-demand", slowness="0")
    with socket.create_server(("127.0.0.1", 18301)) as stranger:
        stranger.setblocking(False)
        assert ask() == ""
        with pytest.raises(BlockingIOError):
            stranger.accept()
    assert eventually(listening_again)
    assert answered_by(ask())[1] == "hello"


def test_a_service_with_a_network_of_its_own_reaches_nobody_else(install: Install) -> None:
    install("on-demand-private", slowness="0")
    pid, _ = answered_by(ask())
    networks = {Path(f"/proc/{one}/ns/net").readlink() for one in (pid, "self")}
    assert len(networks) == 2
    proxy = show(PROXIES["http"], "MainPID")["MainPID"]
    assert Path(f"/proc/{proxy}/ns/net").readlink() == Path(f"/proc/{pid}/ns/net").readlink()
    reached = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", sys.executable, "-c",
         "import socket; socket.create_connection(('127.0.0.1', 18301), 5)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Connection refused" in reached.stderr


@both
def test_an_instance_of_what_is_installed_has_no_proxy_and_no_network_of_its_own(
    install: Install, definition: str
) -> None:
    install(definition, slowness="0")
    before, _ = answered_by(ask())
    with Run(units=SERVICES) as run:
        values = {"program": str(PROGRAM), "slowness": "0"}
        instance = run.spawn(definition, values=values, installed=True)
        with socket.create_connection(("127.0.0.1", instance.ports["http"])) as connection:
            connection.sendall(b"hello\n")
            assert answered_by(connection.recv(100).decode()) == (instance.pid, "hello")
    assert eventually(idle)
    assert answered_by(ask())[0] != before


def test_at_boot_the_sockets_are_enabled_in_the_place_of_the_service(install: Install) -> None:
    install("on-demand")
    try:
        systemctl("enable", "--runtime", UNIT)
        wanted = {path.name for path in UNIT_DIR.glob("*.wants/tests-on-demand*")}
        assert wanted == set(SOCKETS)
        assert {path.parent.name for path in UNIT_DIR.glob("*.wants/tests-on-demand*")} == {
            "sockets.target.wants"
        }
    finally:
        systemctl("disable", "--runtime", *SOCKETS)
    assert not list(UNIT_DIR.glob("*.wants/tests-on-demand*"))
