"""Production let into a private network, and networks that have a name."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tests.systemd.support import ROOT, eventually, show, systemctl, units

from understudy.errors import NetworkError, UsageError
from understudy.netns import Namespace
from understudy.network import LettingIn, Network, check_outside, let_in
from understudy.ports import snapshot
from understudy.run import Run


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace.create(user=not ROOT) as made:
        yield made


@pytest.fixture
def lead() -> Iterator[int]:
    """The port of a server outside that says where it is."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _address = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"outside")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield int(server.getsockname()[1])
    server.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.close()


def said_inside(namespace: Namespace, port: int) -> str:
    """What a connection to a port gets that is made inside."""
    user = namespace.user_path
    words = ["nsenter", f"--net={namespace.net_path}"]
    words += [f"--user={user}", "--preserve-credentials"] if user else []
    code = (
        f"import socket; print(socket.create_connection(('localhost', {port})).recv(16).decode())"
    )
    done = subprocess.run(
        [*words, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_port_inside_leads_outside(run: Run, namespace: Namespace, lead: int) -> None:
    [unit] = let_in(run.manager, run.id, namespace, {8003: f"127.0.0.1:{lead}"})
    assert unit in units("understudy-through@*")
    assert said_inside(namespace, 8003) == "outside"
    seen = show(unit, "BindsTo", "Slice", "MainPID", "ActiveState")
    assert (seen["BindsTo"], seen["Slice"]) == (run.guard, run.slice)
    with Namespace.of(int(seen["MainPID"])) as found:
        assert found.is_ours()


@pytest.mark.skipif(not ROOT, reason="the system manager's")
def test_what_lets_in_is_no_process_of_roots(run: Run, namespace: Namespace, lead: int) -> None:
    [unit] = let_in(run.manager, run.id, namespace, {8003: f"127.0.0.1:{lead}"})
    pid = show(unit, "MainPID")["MainPID"]
    assert os.stat(f"/proc/{pid}").st_uid not in (0, 65534)  # noqa: PTH116 - of a process


def test_two_ports_of_two_networks_do_not_meet(run: Run, lead: int) -> None:
    with Namespace.create(user=not ROOT) as one, Namespace.create(user=not ROOT) as other:
        for namespace in (one, other):
            let_in(run.manager, run.id, namespace, {8003: f"127.0.0.1:{lead}"})
        assert said_inside(one, 8003) == said_inside(other, 8003) == "outside"
        assert len(units("understudy-through@*")) == 2


def test_a_port_that_is_taken_inside_is_an_error_and_starts_nothing(
    run: Run, namespace: Namespace
) -> None:
    taken = pytest.raises(NetworkError, match=r"listen on port 8003 .* Address already in use")
    with namespace.listen([8003])[8003], taken:
        let_in(run.manager, run.id, namespace, {8003: "127.0.0.1:1"})
    assert not units("understudy-through@*")


def test_what_runs_inside_is_not_let_in_but_stopped(run: Run) -> None:
    network = Network.find_or_make(run.manager, run.id, "lab")
    with (
        network.namespace() as namespace,
        pytest.raises(NetworkError, match=f"'{network.unit}' runs in the private network"),
    ):
        check_outside(run.manager, [network.unit], namespace)
    assert network.unit not in units("understudy-network@*")


def test_ports_that_nobody_uses_start_no_process(run: Run, namespace: Namespace, lead: int) -> None:
    targets = {8002: f"127.0.0.1:{lead}", 8003: f"127.0.0.1:{lead}"}
    with LettingIn(run.manager, run.id, namespace, targets) as letting:
        assert not units("understudy-through@*")
        assert said_inside(namespace, 8003) == "outside"
        assert len(units("understudy-through@*")) == 1
    assert letting.errors == []


def test_a_port_that_cannot_be_let_in_any_more_is_remembered(namespace: Namespace) -> None:
    with Run() as ended:
        manager, run = ended.manager, ended.id
    with LettingIn(manager, run, namespace, {8003: "127.0.0.1:1"}) as letting:
        with pytest.raises(subprocess.CalledProcessError):
            said_inside(namespace, 8003)
        assert eventually(lambda: letting.errors)
    assert "guard" in str(letting.errors[0])


def test_who_connects_when_descriptors_have_run_out_is_not_kept_waiting(
    run: Run, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("understudy.network.start", out)
    with LettingIn(run.manager, run.id, namespace, {8003: "127.0.0.1:1"}) as letting:
        with pytest.raises(subprocess.CalledProcessError):
            said_inside(namespace, 8003)
        assert eventually(lambda: letting.errors)
    assert str(letting.errors[0]).startswith("Cannot let port 8003 in: Too many open files")
    assert "ulimit -n" in str(letting.errors[0].hint)


def test_a_named_network_is_private_and_found_again(run: Run) -> None:
    assert Network.find(run.manager, "lab") is None
    made = Network.find_or_make(run.manager, run.id, "lab")
    found = Network.find(run.manager, "lab")
    assert found is not None
    assert (found.unit, found.run, found.pid) == (made.unit, run.id, made.pid)
    assert Network.find(run.manager, "ab") is None
    with made.namespace() as one, found.namespace() as same:
        assert not one.is_ours()
        assert one.same_as(same)
        assert bool(one.user_path) == (not ROOT)
        with one.listen([8003])[8003]:
            assert said_of(same) == {8003}


def said_of(namespace: Namespace) -> set[int]:
    """The ports that are bound inside."""
    with namespace.sock_diag() as netlink:
        return {one.port for one in snapshot(netlink=netlink)}


def test_those_who_ask_at_once_get_the_same_network(run: Run) -> None:
    found: list[int] = []

    def ask() -> None:
        found.append(Network.find_or_make(run.manager, run.id, "lab").pid)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_named_network_ends_with_its_run() -> None:
    with Run() as run:
        made = Network.find_or_make(run.manager, run.id, "lab")
        assert units("understudy-network@*") == {made.unit}
    assert not units("understudy-network@*")
    with pytest.raises(NetworkError, match=f"of process {made.pid}: it is gone"):
        made.namespace()


def test_a_network_that_shares_the_hosts_is_no_private_one(run: Run) -> None:
    pid = int(show(run.guard, "MainPID")["MainPID"])
    with pytest.raises(NetworkError, match="runs in the host's network"):
        Network("lab", run.id, pid).namespace()


@pytest.mark.parametrize("name", ["", "Lab", "a b", "-a", "a--b"])
def test_a_name_that_is_none_is_an_error(run: Run, name: str) -> None:
    with pytest.raises(UsageError, match="as a network's name"):
        Network.find_or_make(run.manager, run.id, name)


def test_production_is_left_alone(run: Run, namespace: Namespace, lead: int) -> None:
    before = systemctl("list-units", "--plain", "--no-legend", "--type=service", "--state=active")
    let_in(run.manager, run.id, namespace, {8003: f"127.0.0.1:{lead}"})
    run.stop()
    after = systemctl("list-units", "--plain", "--no-legend", "--type=service", "--state=active")
    ours = {line.split()[0] for line in before.splitlines() if "understudy-" not in line}
    assert ours <= {line.split()[0] for line in after.splitlines()}
