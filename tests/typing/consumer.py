"""What a consumer's test may say, as mypy --strict reads it. Never run."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

from understudy import (
    ClaimedPorts,
    Instance,
    LogTimeoutError,
    Mark,
    Production,
    ProductionError,
    Run,
    SharedInstance,
    UnderstudyError,
    production,
)


def spawns(run: Run, root: Path) -> Instance:
    mtx = run.spawn("mediamtx", env={"MTX_LOGLEVEL": "debug"}, ports=["metrics"])
    assert_type(mtx, Instance)
    assert_type(mtx.ports["api"], int)
    assert_type(mtx.urls["api"], str)
    assert_type(run.spawn_many(["mediamtx"] * 2), list[Instance])
    return run.spawn("camera-service", uses={"mediamtx": mtx}, values={"root": root})


def looks(instance: Instance) -> None:
    assert_type(instance.pid, int)
    assert_type(instance.cpu_s, float | None)
    assert_type(instance.memory_peak_bytes, int | None)
    mark = instance.journal_mark()
    assert_type(mark, Mark)
    assert_type(instance.journal(since=mark, lines=5), str)
    assert_type(instance.wait_for_log("ready", since="now"), re.Match[str])
    assert_type(instance.wait_for_log(re.compile("ready"), since=mark), re.Match[str])
    assert_type(instance.reproduce(), str)
    instance.kill("SIGTERM")
    instance.freeze()
    instance.thaw()
    instance.restart(timeout_s=5)


def shares(run: Run, group: str) -> SharedInstance:
    mtx = run.shared("mediamtx", group=group, keep_s=600, env={"MTX_LOGLEVEL": "debug"})
    run.spawn("camera-service", uses={"mediamtx": mtx})
    return mtx


def claims(run: Run) -> Sequence[int]:
    with run.claim_ports("tcp", "udp") as numbers:
        assert_type(numbers, ClaimedPorts)
        http, _media = numbers
        assert_type(http, int)
    return numbers


async def awaits(run: Run) -> None:
    assert_type(await run.aspawn("mediamtx", values={"config": "/dev/null"}), Instance)
    assert_type(await run.ashared("mediamtx", group="x"), SharedInstance)


def leads(run: Run) -> Production | None:
    try:
        lead = production("mediamtx")
    except ProductionError as exc:
        assert_type(exc.hint, str | None)
        return None
    assert_type(lead.active_since, datetime.datetime | None)
    assert_type(lead.journal(lines=5), str)
    run.spawn("camera-service", uses={"mediamtx": lead})
    return lead


def fails(instance: Instance) -> str:
    try:
        instance.wait_for_log("never", timeout_s=0.1)
    except LogTimeoutError as exc:
        return exc.journal
    except UnderstudyError as exc:
        return exc.message
    return ""
