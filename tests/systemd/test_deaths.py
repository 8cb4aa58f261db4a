"""A service that dies at its start is an error at once, with what it said: every time."""

from __future__ import annotations

import time
from typing import Literal

import pytest
from tests.systemd.support import SERVICES

from understudy.errors import StartError
from understudy.manager import connect
from understudy.run import Run


@pytest.mark.parametrize(("means", "count"), [("dbus", 100), ("commands", 10)])
def test_a_death_within_five_milliseconds_is_told_every_time(
    means: Literal["dbus", "commands"], count: int
) -> None:
    with Run(manager=connect(prefer=means), units=SERVICES, timeout_s=60) as run:
        for _ in range(count):
            with pytest.raises(StartError) as caught:
                run.spawn("dies-fast")
            assert caught.value.result == "exit-code"
            assert caught.value.exit_status == 1
            assert caught.value.journal == "cannot open the camera"
            assert "it exited with status 1 before it was ready" in str(caught.value)


def test_a_death_does_not_wait_for_the_deadline() -> None:
    with Run(units=SERVICES, timeout_s=3600) as run:
        began = time.monotonic()
        with pytest.raises(StartError, match="exited with status"):
            run.spawn("dies-at-once")
        assert time.monotonic() - began < 60


def test_of_many_that_die_the_first_is_named_and_none_is_left() -> None:
    with Run(units=SERVICES) as run:
        with pytest.raises(StartError) as caught:
            run.spawn_many(["redis", "dies-fast", "dies-fast"])
        assert "understudy-dies-fast@" in str(caught.value)
        assert caught.value.__notes__ == ["2 of 3 instances failed; this is the first of them."]
        assert run.instances == []
