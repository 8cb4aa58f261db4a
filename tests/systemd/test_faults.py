"""Faults in the network of an instance, and nowhere else."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from tests.systemd.support import SERVICES, understudy

from understudy import Instance, Run
from understudy.errors import NetworkError, UsageError

NO_NETEM = "this kernel has no netem"


@pytest.fixture
def server(run: Run) -> Instance:
    return run.spawn("redis", network="private")


@pytest.fixture
def run() -> Iterator[Run]:
    with Run(units=SERVICES) as run:
        yield run


def ping(instance: Instance) -> bytes:
    address = ("127.0.0.1", instance.ports["redis"])
    with socket.create_connection(address, timeout=1) as client:
        client.sendall(b"PING\r\n")
        return client.recv(16)


def answers(instance: Instance) -> bool:
    try:
        return ping(instance) == b"+PONG\r\n"
    except (ConnectionError, TimeoutError):
        return False


def test_a_network_that_is_down_reaches_nothing_until_it_is_up(run: Run, server: Instance) -> None:
    other = run.spawn("redis", network="private")
    assert answers(server)
    server.network.down()
    assert not answers(server)
    assert answers(other)
    server.network.up()
    assert answers(server)


def test_an_instance_whose_network_is_down_ends_as_any_other(server: Instance) -> None:
    server.network.down()
    server.stop()
    with pytest.raises(NetworkError, match="does not run"):
        server.network.up()


def test_delay_is_felt_or_said_to_be_not_available(server: Instance) -> None:
    refused: NetworkError | None = None
    try:
        server.network.delay(0.05)
    except NetworkError as exc:
        refused = exc
    began = time.monotonic()
    assert answers(server)
    if refused is None:
        assert time.monotonic() - began >= 0.1
        server.network.disturb()
    else:
        assert refused.message.startswith(f"Cannot disturb a private network: {NO_NETEM}, which")
        assert str(refused.hint).startswith("modprobe sch_netem")
    assert answers(server)


def test_what_cannot_be_a_delay_or_a_loss_is_refused(server: Instance) -> None:
    with pytest.raises(UsageError, match="a delay of -1 s and a loss of 0"):
        server.network.delay(-1)
    with pytest.raises(UsageError, match="a delay of 0 s and a loss of 10"):
        server.network.loss(10)


def test_the_host_s_network_is_left_alone(run: Run) -> None:
    server = run.spawn("redis")
    for fault in (server.network.down, server.network.up, server.network.disturb):
        with pytest.raises(NetworkError, match="it is the one that this process is in") as caught:
            fault()
        assert "understudy spawn --network private" in str(caught.value.hint)
    assert answers(server)


def test_the_command_does_the_same(server: Instance) -> None:
    name = f"{server.run}-{server.number}"
    understudy("network", name, "--down")
    assert not answers(server)
    understudy("network", name, "--up")
    assert answers(server)
    done = understudy("network", name, code=2)
    assert "Say what to do: --down, --up, --delay MS, --loss PERCENT, --calm." in done.stderr
    done = understudy("network", name, "--delay", "50", code=None)
    assert done.returncode == 0 or NO_NETEM in done.stderr
    understudy("network", name, "--calm")
    done = understudy("network", name, "--calm", "--loss", "1", code=2)
    assert "--calm undoes --delay and --loss: one or the other." in done.stderr
    done = understudy("network", name, "--down", "--up", code=2)
    assert "--up undoes --down: one or the other." in done.stderr
