"""The command line that starts the same, and calls for asyncio that are given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from understudy import control
from understudy.awaiting import in_thread
from understudy.claimed import ClaimedPorts
from understudy.errors import ManagerError, UsageError
from understudy.model import ManagerKind, Port, Service, Transport
from understudy.plan import Request
from understudy.shared import differences

PORTS = {
    "http": Port(name="http", transport=Transport.TCP),
    "media": Port(name="media", transport=Transport.UDP),
}
SERVICE = Service(
    name="lead", description="a lead", folder=Path("/srv/u n/lead"), origin="/srv/u n"
)


def line(request: Request) -> str:
    return control.command_line(request, ManagerKind.USER)


def test_line_of_a_shipped_service_is_short() -> None:
    service = Service(name="mediamtx", description="", folder=Path("/x/mediamtx"), origin="shipped")
    assert line(Request(service=service)) == "understudy spawn mediamtx --manager=user"


def test_line_has_all_that_was_asked_for() -> None:
    request = Request(
        service=SERVICE,
        asked=("http", "media"),
        numbers={"media": 20500},
        values={"root": "/a b"},
        environment={"A": "$x"},
        uses={"mediamtx": "understudy-mediamtx@r7k2mq-1.service"},
        base="[Service]",
        lazy=True,
    )
    assert line(request) == (
        "understudy spawn '--units=/srv/u n' lead --port=http --port=media=20500 '--set=root=/a b' "
        "--env=A --from=installed --lazy --manager=user "
        "--uses=mediamtx=understudy-mediamtx@r7k2mq-1.service"
    )


def test_line_of_what_is_ad_hoc() -> None:
    service = Service(name="my", description="", ports=PORTS, command=("/bin/my", "{port.http}"))
    assert line(Request(service=service, numbers={"media": 1234})) == (
        "understudy spawn '--exec=/bin/my '\"'\"'{port.http}'\"'\"'' --port=http "
        "--port=media/udp=1234 --manager=user"
    )


@pytest.mark.parametrize("given", [15, "TERM", "SIGTERM", "sigterm"])
def test_signals_by_number_and_by_name(given: int | str) -> None:
    assert control.signal_number(given) == 15


def test_unknown_signal() -> None:
    with pytest.raises(UsageError, match="Cannot send 'SIGFOO': no such signal"):
        control.signal_number("SIGFOO")


def test_differences_are_said_by_name() -> None:
    there = {"env 'A'": "sha256:1", "files": "1", "value 'a'": "1", "env 'B'": "2"}
    here = {"env 'A'": "sha256:2", "files": "2", "value 'a'": "2", "env 'C'": "3"}
    assert differences(there, here) == [
        "env 'A' is not the same there and here",
        "value 'a' is '1' there and '2' here",
        "env 'B' is '2' there and not set here",
        "env 'C' is not set there and '3' here",
    ]
    assert differences({"files": "1"}, {"files": "2"}) == ["its definition has changed since"]
    assert differences(there, there) == []


def test_a_call_that_is_given_up_is_told_and_undone() -> None:
    begun = threading.Event()
    undone: list[str] = []

    def call(canceled: Callable[[], bool]) -> str:
        begun.set()
        while not canceled():
            pass
        return "too late"

    async def main() -> None:
        work = asyncio.ensure_future(in_thread(call, undo=undone.append))
        await asyncio.to_thread(begun.wait)
        work.cancel()
        await work

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert undone == ["too late"]


def test_a_call_that_cannot_be_undone_says_so() -> None:
    def undo(_result: object) -> None:
        raise ManagerError("Cannot stop it")

    async def main() -> None:
        begun = threading.Event()

        def call(canceled: Callable[[], bool]) -> None:
            begun.set()
            while not canceled():
                pass

        work = asyncio.ensure_future(in_thread(call, undo=undo))
        await asyncio.to_thread(begun.wait)
        work.cancel()
        await work

    with pytest.raises(asyncio.CancelledError) as caught:
        asyncio.run(main())
    assert caught.value.__notes__ == ["And then: Cannot stop it"]


def test_a_calls_result_and_its_error() -> None:
    async def main() -> int:
        return await in_thread(lambda _canceled: 7, undo=lambda _result: None)

    assert asyncio.run(main()) == 7

    async def fail() -> None:
        await in_thread(lambda _canceled: 1 // 0, undo=lambda _result: None)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(fail())


def test_claimed_ports_are_a_sequence_and_are_freed_once() -> None:
    freed = []
    ports = ClaimedPorts([20000, 20001], lambda: freed.append(True))
    with ports as (first, second):
        assert (first, second) == (20000, 20001)
        assert list(ports[:1]) == [20000]
        assert len(ports) == 2
        assert 20001 in ports
    ports.release()
    assert freed == [True]
