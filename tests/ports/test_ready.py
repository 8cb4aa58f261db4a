"""Ready checks against small servers on loopback."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from understudy.model import HttpCheck
from understudy.ready import ANSWER_LIMIT_BYTES, HttpProbe

TIMEOUT_MS = 10_000


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_MS / 1000)
        yield listener


@pytest.fixture
def probe(server: socket.socket) -> Iterator[HttpProbe]:
    one = HttpProbe(HttpCheck(port="http", path="/ready", status=204), server.getsockname()[1])
    yield one
    one.close()


def wait(probe: HttpProbe) -> None:
    poll = select.poll()
    poll.register(probe, select.POLLOUT if probe.wants_to_write else select.POLLIN)
    assert poll.poll(TIMEOUT_MS)


def ask(probe: HttpProbe, server: socket.socket, *answer: bytes, close: bool = True) -> bool:
    """One whole try: the probe asks, the server gives this answer."""
    assert not probe.step()  # it has begun to connect
    while probe.wants_to_write:
        wait(probe)
        assert not probe.step()
    connection, _ = server.accept()
    with connection:
        assert connection.recv(4096).startswith(b"GET /ready HTTP/1.0\r\n")
        for part in answer:
            connection.sendall(part)
            wait(probe)
            if probe.step():
                return True
        if close and probe.fileno() >= 0:
            connection.shutdown(socket.SHUT_WR)
            wait(probe)
            return probe.step()
    return False


def test_the_right_status_says_ready(probe: HttpProbe, server: socket.socket) -> None:
    assert ask(probe, server, b"HTTP/1.1 204 No Content\r\n\r\n")
    assert probe.fileno() == -1


def test_another_status_is_asked_again(probe: HttpProbe, server: socket.socket) -> None:
    assert not ask(probe, server, b"HTTP/1.1 503 Not yet\r\n\r\n")
    assert probe.last == "HTTP 503"
    assert ask(probe, server, b"HTTP/1.1 204 No Content\r\n\r\n")


def test_an_answer_may_come_in_pieces(probe: HttpProbe, server: socket.socket) -> None:
    assert ask(probe, server, b"HTTP/1.0 2", b"04 No Content", b"\r\n")


@pytest.mark.parametrize(
    ("answer", "last"), [(b"hello\r\n", "no HTTP answer"), (b"", "the connection was closed")]
)
def test_what_is_no_answer_is_said(
    probe: HttpProbe, server: socket.socket, answer: bytes, last: str
) -> None:
    assert not ask(probe, server, *filter(None, [answer]))
    assert probe.last == last


def test_a_server_that_never_ends_its_line_is_given_up(
    probe: HttpProbe, server: socket.socket
) -> None:
    pieces = [b"x" * 1024] * (ANSWER_LIMIT_BYTES // 1024)
    assert not ask(probe, server, *pieces, close=False)
    assert (probe.last, probe.fileno()) == ("no HTTP answer", -1)


def test_a_refused_connection_is_no_end(probe: HttpProbe, server: socket.socket) -> None:
    server.close()
    while probe.last == "no answer yet":
        assert not probe.step()
        if probe.fileno() >= 0:
            wait(probe)
    assert probe.last == "Connection refused"
    assert probe.fileno() == -1
