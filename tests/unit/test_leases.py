"""Leases without processes: names, and who waits for whom under every interleaving."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import leases
from understudy.lease_program import (
    CHOOSING,
    EXCLUSIVE,
    HOLDING,
    NAME_BYTES,
    SHARED,
    WAITING,
    Ticket,
    name_of,
    parse,
    stand_before,
)
from understudy.leases import Holder, key_of
from understudy.model import ManagerKind

KEY = "mediamtx.service"
ASCII = "".join(chr(number) for number in range(1, 128) if chr(number) != "/")


class Client:
    """One that wants a lease, in the steps of the program that keeps it; killed at any of them."""

    def __init__(self, number: int, kind: str, names: dict[str, int]) -> None:
        self.id = f"r{number}"
        self.kind = kind
        self.names = names
        self.mine: list[str] = []
        self.holds = False
        self.done = False
        self.queued_after: set[str] = set()
        self.steps = self._steps()

    def _bind(self, phase: str, number: int) -> str:
        name = name_of(KEY, self.id, phase, number, self.kind, 1, 2, "test")
        assert name not in self.names
        self.names[name] = 1000
        self.mine.append(name)
        return name

    def _drop(self, name: str) -> None:
        del self.names[name]
        self.mine.remove(name)

    def _seen(self) -> list[Ticket]:
        found = [parse(name, uid) for name, uid in self.names.items()]
        return [one for one in found if one is not None]

    def _steps(self) -> Iterator[None]:
        choosing = self._bind(CHOOSING, 0)
        yield
        number = 1 + max((one.number for one in self._seen()), default=0)
        yield
        name = self._bind(WAITING, number)
        yield
        self._drop(choosing)
        ticket = parse(name, 1000)
        assert ticket is not None
        yield
        while stand_before(ticket, self._seen()):
            yield
        self.holds = True
        yield
        self._bind(HOLDING, number)
        yield
        self.holds = False
        for each in [*self.mine]:
            self._drop(each)

    def step(self) -> None:
        if not self.done:
            try:
                next(self.steps)
            except StopIteration:
                self.done = True

    def kill(self) -> None:
        """The kernel takes back all at once."""
        for each in [*self.mine]:
            self._drop(each)
        self.holds, self.done = False, True
        self.steps = iter(())


@settings(max_examples=400)
@given(
    kinds=st.lists(st.sampled_from([SHARED, EXCLUSIVE]), min_size=2, max_size=6),
    moves=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 19)), max_size=150),
)
def test_nobody_is_with_one_who_is_alone_and_everybody_gets_in(
    kinds: list[str], moves: list[tuple[int, int]]
) -> None:
    names: dict[str, int] = {}
    clients = [Client(number, kind, names) for number, kind in enumerate(kinds)]
    for index, fate in moves:
        client = clients[index % len(clients)]
        client.kill() if fate == 0 else client.step()
        holding = [one.kind for one in clients if one.holds]
        assert EXCLUSIVE not in holding or len(holding) == 1
    # Whoever has not been killed gets in, if all are given their turns.
    for _ in range(20 * len(clients)):
        for client in clients:
            client.step()
            holding = [one.kind for one in clients if one.holds]
            assert EXCLUSIVE not in holding or len(holding) == 1
    assert all(one.done for one in clients)
    assert names == {}


@given(
    kinds=st.lists(st.sampled_from([SHARED, EXCLUSIVE]), min_size=1, max_size=8),
)
def test_first_come_first_served(kinds: list[str]) -> None:
    """One after the other they take a number; nobody overtakes one who wants something else."""
    names: dict[str, int] = {}
    clients = [Client(number, kind, names) for number, kind in enumerate(kinds)]
    for client in clients:
        for _ in range(4):
            client.step()
    order = []
    while not all(one.done for one in clients):
        for client in clients:
            before = client.holds
            client.step()
            if client.holds and not before:
                order.append(client.id)
    for index, client in enumerate(clients):
        if client.kind == EXCLUSIVE:
            earlier = {one.id for one in clients[:index]}
            assert set(order[: order.index(client.id)]) == earlier


def test_who_shares_waits_behind_one_who_wants_to_be_alone() -> None:
    reader = ticket("r1", 1, SHARED, HOLDING)
    writer = ticket("r2", 2, EXCLUSIVE, WAITING)
    late = ticket("r3", 3, SHARED, WAITING)
    assert stand_before(late, [reader, writer, late]) == [writer]
    assert stand_before(writer, [reader, writer, late]) == [reader]
    assert stand_before(reader, [reader, writer, late]) == []


def test_leases_of_other_things_do_not_matter() -> None:
    mine = ticket("r2", 2, EXCLUSIVE, WAITING)
    assert stand_before(mine, [mine, mine._replace(key="x.service", id="r1", number=1)]) == []


@given(
    pid=st.integers(0, 2**22),
    number=st.integers(0, 10**6),
    who=st.text(ASCII, max_size=40),
    key=st.text("abc.-", min_size=1, max_size=40),
)
def test_names_are_read_as_they_were_made(pid: int, number: int, who: str, key: str) -> None:
    name = name_of(key, "r7k2mq", WAITING, number, SHARED, pid, 123456789, who)
    assert len(name.encode()) <= NAME_BYTES
    found = parse(name, 7)
    assert found is not None
    assert (found.key, found.id, found.number, found.pid) == (key, "r7k2mq", number, pid)
    assert found.uid == 7
    assert who.startswith(found.who)


@given(st.text())
def test_names_of_others_are_passed_over(text: str) -> None:
    parse(text, 0)
    parse(f"understudy/lease/{text}", 0)
    assert parse("understudy/run/r7k2mq", 0) is None
    assert parse("understudy/lease/a/b/c/d/e/f/g/h", 0) is None
    assert parse("understudy/lease/a/b/w/²/s/1/1/h", 0) is None


def test_a_users_unit_is_another_than_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    assert key_of("mediamtx.service", ManagerKind.SYSTEM) == "mediamtx.service"
    assert key_of("mediamtx.service", ManagerKind.USER) == "1001+mediamtx.service"
    long = key_of("a-very-long-name-of-a-unit-of-somebody-elses-host.service", ManagerKind.SYSTEM)
    assert len(long) == 40
    assert long != key_of(
        "a-very-long-name-of-a-unit-of-somebody-elses-hosts.service", ManagerKind.SYSTEM
    )


def test_holders_in_words() -> None:
    one = Holder(who="pytest", pid=4711, user="anna", exclusive=True, holds=True, since_s=12.3)
    assert str(one) == "exclusively held by pytest 4711 of user anna, since 12 s"
    assert leases.describe([one, one, one]) == f"{one}, and 2 others"
    assert leases.describe([one, one]) == f"{one}, and 1 other"
    assert leases.describe([]) == ""


def ticket(id_: str, number: int, kind: str, phase: str) -> Ticket:
    found = parse(name_of(KEY, id_, phase, number, kind, 1, 2, "test"), 1000)
    assert found is not None
    return found
