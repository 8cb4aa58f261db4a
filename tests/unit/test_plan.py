"""Instances on paper: numbers, ports, engines, and the script that would start them."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from tests.unit.fakes import FakeManager

from understudy import ports
from understudy.errors import RenderError
from understudy.model import Engine, ManagerKind, Port, Service, Transport
from understudy.plan import Plan, Planner, Request
from understudy.script import script


class FakeClaim(ports.Claim):
    """A claim of nothing that knows whether it was given back."""

    closed = False

    def close(self) -> None:
        self.closed = True


class FakeAllocator(ports.Allocator):
    """Gives numbers from 20000 on, and looks at no socket."""

    def __init__(self) -> None:
        self.claims: list[FakeClaim] = []
        self.asked: list[tuple[Sequence[Mapping[str, int]] | None, Collection[int]]] = []

    def claim_many(
        self,
        instances: Sequence[Iterable[Port]],
        *,
        exact: Sequence[Mapping[str, int]] | None = None,
        avoid: Collection[int] = frozenset(),
    ) -> list[tuple[ports.Claim, dict[str, int]]]:
        self.asked.append((exact, avoid))
        answers: list[tuple[ports.Claim, dict[str, int]]] = []
        for wanted in instances:
            first = 20000 + 16 * len(self.claims)
            self.claims.append(FakeClaim())
            numbers = {port.name: number for number, port in enumerate(wanted, first)}
            answers.append((self.claims[-1], numbers))
        return answers


def ad_hoc(*command: str) -> Request:
    port = Port(name="http", transport=Transport.TCP)
    return Request(
        service=Service(name="x", description="X", ports={"http": port}, command=command)
    )


@pytest.fixture
def allocator() -> FakeAllocator:
    return FakeAllocator()


@pytest.fixture
def planner(tmp_path: Path, allocator: FakeAllocator) -> Planner:
    return Planner(manager=FakeManager(tmp_path), run="r1", allocator=allocator)


SERVER = ad_hoc("/bin/server", "--port={port.http}", "it's $HOME")


def test_numbers_and_ports_are_never_given_twice(planner: Planner) -> None:
    plans = planner.plan([SERVER] * 2) + planner.plan([SERVER])
    assert [plan.part.number for plan in plans] == [1, 2, 3]
    assert [plan.part.ports["http"] for plan in plans] == [20000, 20016, 20032]
    assert [plan.to_start for plan in plans] == [f"understudy-x@r1-{n}.service" for n in (1, 2, 3)]


def test_what_is_asked_for_and_avoided_is_passed_on(
    planner: Planner, allocator: FakeAllocator
) -> None:
    exact = Request(service=SERVER.service, numbers={"http": 7000})
    planner.plan([SERVER, exact], avoid={20001})
    assert allocator.asked == [([{}, {"http": 7000}], {20001})]


def test_one_that_cannot_be_derived_gives_all_claims_back(
    planner: Planner, allocator: FakeAllocator
) -> None:
    with pytest.raises(RenderError, match=r"no port 'web'"):
        planner.plan([SERVER, ad_hoc("/bin/server", "{port.web}")])
    assert [claim.closed for claim in allocator.claims] == [True, True]


def test_what_is_ad_hoc_goes_by_systemd_run_unless_files_are_wanted(planner: Planner) -> None:
    assert planner.plan([SERVER])[0].engine is Engine.SYSTEMD_RUN
    planner.engine = Engine.FILES
    assert planner.plan([SERVER])[0].engine is Engine.FILES


def test_the_command_line_of_a_transient_unit_is_literal(planner: Planner) -> None:
    words = planner.plan([SERVER])[0].systemd_run()
    assert words[:3] == ["systemd-run", "--system", "--unit=understudy-x@r1-1.service"]
    assert words[-4:] == ["--", "/bin/server", "--port=20000", "it's $$HOME"]


def plans_of(planner: Planner, engine: Engine) -> list[Plan]:
    planner.engine = engine
    return planner.plan([SERVER] * 2)


@pytest.mark.parametrize("engine", Engine)
def test_the_script_is_a_script(planner: Planner, engine: Engine) -> None:
    text = script(planner.manager, plans_of(planner, engine), ["make", "a b"])
    done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert text.startswith("#!/bin/sh\n")


def test_the_script_ends_with_its_command(planner: Planner) -> None:
    text = script(planner.manager, plans_of(planner, Engine.FILES), ["make", "a b"])
    lines = text.splitlines()
    assert lines[-2:] == ["systemctl --system stop understudy-guard@r1.service", 'exit "$code"']
    words = shlex.split(lines[-3])
    assert words[words.index("--") + 1 : words.index("||")] == ["make", "a b"]
    assert "UNDERSTUDY_X_2_HTTP_PORT=20016" in words
    start = "systemctl --system start understudy-x@r1-1.service understudy-x@r1-2.service"
    assert start in lines


def test_without_a_command_the_script_says_how_to_end_it(tmp_path: Path) -> None:
    manager = FakeManager(tmp_path, kind=ManagerKind.USER)
    planner = Planner(manager=manager, run="r1", allocator=FakeAllocator())
    text = script(manager, planner.plan([SERVER]), lifetime_s=90)
    assert text.endswith("# The end: systemctl --user stop understudy-guard@r1.service\n")
    assert "sleep 90\n" in text
