"""Why an instance did not start, in words."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.fakes import status

from understudy import failure, journal, ports
from understudy.errors import StartError
from understudy.manager import UnitStatus
from understudy.model import (
    Derived,
    Engine,
    HttpCheck,
    InstanceFile,
    ManagerKind,
    Part,
    Port,
    Service,
    Transport,
)
from understudy.plan import Plan, Request
from understudy.ready import HttpProbe

UNIT = "understudy-x@r1-1.service"
HTTP = Port(name="http", transport=Transport.TCP)


def ended(code: int = 0, number: int = 0, *, result: str = "") -> UnitStatus:
    return status(UNIT, active_state="failed", exit_code=code, exit_status=number, result=result)


def plan(program: str = "/bin/true", *, files: tuple[InstanceFile, ...] = ()) -> Plan:
    service = Service(name="x", description="X", ports={"http": HTTP}, files=files)
    return Plan(
        request=Request(service=service),
        part=Part(
            run="r1", number=1, kind=ManagerKind.SYSTEM, runtime_dir="/run", ports={"http": 20016}
        ),
        derived=Derived(
            unit=UNIT,
            socket=None,
            units={UNIT: f"[Service]\nExecStart={program} --flag\n"},
            files={},
            directory="/run/understudy/r1/x-1",
        ),
        claim=ports.Claim(),
        engine=Engine.FILES,
    )


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the service wrote."""
    written: list[str] = []

    def read(unit: str, **_: object) -> list[journal.Line]:
        assert unit == UNIT
        return [journal.Line(text=text, time_s=0) for text in written]

    monkeypatch.setattr(journal, "read", read)
    return written


@pytest.mark.parametrize(
    ("found", "word", "text"),
    [
        (ended(os.CLD_EXITED, 3), "failed", "it exited with status 3 before it was ready"),
        (ended(os.CLD_EXITED, 203), "failed", "its program cannot be executed (exit status 203)"),
        (ended(os.CLD_KILLED, signal.SIGKILL), "died", "it was ended by SIGKILL"),
        (ended(os.CLD_DUMPED, signal.SIGSEGV), "died", "it was ended by SIGSEGV"),
        (ended(os.CLD_KILLED, 63), "died", "it was ended by signal 63"),
        (ended(result="resources"), "failed", "(job: failed)"),
        (ended(result="success"), "dependency", "its start job came to 'dependency'"),
    ],
)
def test_an_end_is_told_by_what_systemd_says(found: UnitStatus, word: str, text: str) -> None:
    assert text in failure.describe_end(found, word)


def test_the_error_has_result_status_and_last_lines(log: list[str]) -> None:
    log += ["one", "two"]
    found = ended(os.CLD_EXITED, 3, result="exit-code")
    error = failure.died(plan(), found, "failed", said="systemd-run: no")
    assert (error.unit, error.result, error.exit_status) == (UNIT, "exit-code", 3)
    assert error.journal == "systemd-run: no\none\ntwo"
    assert error.hint == f"See: understudy logs {UNIT}"
    never_ran = failure.died(plan(), ended(result="success"), "dependency")
    assert (never_ran.result, never_ran.exit_status) == ("dependency", None)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    found = ended(os.CLD_EXITED, failure.EXIT_EXEC)
    missing, silent = tmp_path / "missing", tmp_path / "silent"
    silent.write_text("")
    silent.chmod(0o644)
    said = failure.died(plan(f'"{missing}"'), found, "failed").hint or ""
    assert said.startswith(f"there is no program '{missing}' here")
    assert f"is '{silent}' executable" in (failure.died(plan(f"-{silent}"), found, "x").hint or "")


def test_a_missing_place_to_bind_over_is_named() -> None:
    file = InstanceFile(name="a.yml", template="a.yml.j2", over="/opt/a.yml")
    error = failure.died(plan(files=(file,)), ended(), "assert")
    assert (error.hint or "").endswith("/opt/a.yml")


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("[Errno 98] error while attempting to bind", True),
        ("ERR listen tcp :9997: bind: address already in use", True),
        ("EADDRINUSE: 8002", True),
        ("Address in use", True),
        ("[Errno 99] cannot assign requested address", False),
        ("", False),
    ],
)
def test_words_of_a_taken_port_are_known(line: str, taken: bool) -> None:
    error = StartError("Cannot start", unit=UNIT, result="exit-code", journal=line)
    assert failure.speaks_of_a_taken_port(error) is taken


@pytest.mark.parametrize(
    ("kind", "line", "hint"),
    [
        (ManagerKind.SYSTEM, "listen tcp :9997: bind: operation not permitted", "9997 is product"),
        (ManagerKind.SYSTEM, "PermissionError: [Errno 1] Operation not", "if that was a socket: "),
        (ManagerKind.SYSTEM, "[Errno 13] Permission denied: 9997", "See: understudy logs"),
        (ManagerKind.USER, "listen tcp :9997: bind: operation not permitted", "See: understudy"),
    ],
)
def test_one_that_a_kernel_guard_refused_is_told_of_it(
    log: list[str], kind: ManagerKind, line: str, hint: str
) -> None:
    log.append(line)
    one = plan()
    part = replace(one.part, kind=kind, denied=frozenset({(Transport.TCP, 9997)}))
    error = failure.died(replace(one, part=part), ended(os.CLD_EXITED, 1), "failed")
    assert (error.hint or "").startswith(hint)


def test_one_that_is_late_is_told_what_is_missing() -> None:
    def late(check: ports.Check | None, probe: HttpProbe | None = None) -> str:
        return failure.late(plan(), check, probe, timeout_s=2).message

    probe = HttpProbe(HttpCheck(port="http", path="/up"), 20016)
    assert late(None).endswith("not ready after 2 s: its start job has not ended")
    missing = ports.Check(holds={}, missing=((HTTP, 20016),))
    assert late(missing).endswith("nothing of it holds http (tcp 20016)")
    assert late(ports.Check(holds={}), probe).endswith("GET /up on port 20016: no answer yet")
    assert late(ports.Check(holds={})).endswith("its ports were held only just then")
