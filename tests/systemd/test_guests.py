"""Instances that talk to production's own server: a name for each, and others' are untouched."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.systemd.support import (
    ACTIVATED,
    ANY_MEDIAMTX,
    abstract_sockets,
    call,
    eventually,
    python,
    understudy,
)

from understudy.api import Api
from understudy.instance import Instance
from understudy.lead import Production
from understudy.lead import production as find
from understudy.leases import holders
from understudy.run import Run

SERVICE = "camera-service-activated"

OWNER = f"""
import json, sys
from understudy.lead import production
from understudy.run import Run
from tests.systemd.support import call
run = Run()
run.start()
lead = production("mediamtx", unit=sys.argv[1])
one = run.spawn({SERVICE!r}, values=json.loads(sys.argv[2]), uses={{"mediamtx": lead}})
call(one.urls["websocket"], "start_stream", name="camera0")
print(run.id, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def lead(production: dict[str, str]) -> Iterator[Production]:
    """Production; nothing of the test may be left on its server."""
    with closing(find("mediamtx", unit=production["mediamtx"])) as found:
        before = found.api.configured().keys()
        yield found
        assert found.api.configured().keys() == before


@pytest.fixture
def theirs(lead: Production) -> Iterator[str]:
    """A path of nobody's that comes while instances live: production's own camera's, say."""
    name = "camera7"
    lead.api.add(name)
    yield name
    assert name in lead.api.configured()
    lead.api.delete(name)


def spawn(run: Run, lead: Production) -> Instance:
    return run.spawn(SERVICE, values=ACTIVATED, uses={"mediamtx": lead})


def start(camera: Instance, name: str) -> None:
    call(camera.urls["websocket"], "start_stream", name=name)


def of(run: str, lead: Production) -> list[str]:
    return sorted(name for name in lead.api.configured() if name.startswith(f"{run}/"))


def test_what_an_instance_adds_goes_with_it_and_nothing_else(
    run: Run, lead: Production, theirs: str
) -> None:
    before = lead.fingerprint()
    first, second = spawn(run, lead), spawn(run, lead)
    for camera in (first, second):  # the same name, and they do not meet
        start(camera, "camera0")
    mine = [f"{run.id}/{SERVICE}-{number}" for number in (1, 2)]
    assert of(run.id, lead) == sorted([*mine, *(f"{one}/camera0" for one in mine)])
    assert lead.compare(before).untouched
    assert [one.exclusive for one in holders(lead.lease_key)] == [False]
    call(first.urls["websocket"], "stop_stream", name="camera0")  # as the real one: it stays
    first.stop()
    assert of(run.id, lead) == [mine[1], f"{mine[1]}/camera0"]
    run.stop()
    assert of(run.id, lead) == []
    assert not holders(lead.lease_key)
    assert before.values["API paths"].keys() >= {theirs}


def test_with_a_mediamtx_of_its_own_it_has_no_prefix(run: Run, lead: Production) -> None:
    own = run.spawn("mediamtx", values=ANY_MEDIAMTX)
    camera = run.spawn(SERVICE, values=ACTIVATED, uses={"mediamtx": own})
    start(camera, "camera0")
    assert "camera0" in Api(own.urls["api"]).configured()
    assert of(run.id, lead) == []


def test_what_a_killed_owner_left_is_known_as_its_and_removed(
    run: Run, lead: Production, theirs: str
) -> None:
    live = spawn(run, lead)
    start(live, "camera0")
    with python(OWNER, lead.unit, json.dumps(ACTIVATED)) as owner:
        assert owner.stdout is not None
        dead = owner.stdout.readline().strip()
        owner.send_signal(signal.SIGKILL)
    assert len(of(dead, lead)) == 2
    assert eventually(lambda: f"@understudy/run/{dead}" not in abstract_sockets())
    done = understudy("clean", "mediamtx", "--unit", lead.unit)
    assert done.stdout == f"removed {dead}/{SERVICE}-1, of run {dead}\n"
    assert of(dead, lead) == []
    assert len(of(run.id, lead)) == 2
    run.stop()


def test_a_path_of_nobodys_is_removed_by_its_name_alone(run: Run, lead: Production) -> None:
    lead.api.add("camera8")
    camera = spawn(run, lead)
    start(camera, "camera0")
    clean = ("clean", "mediamtx", "--unit", lead.unit)
    understudy(*clean)
    assert "camera8" in lead.api.configured()
    assert understudy(*clean, "--path", "camera8").stdout == "removed camera8\n"
    assert "camera8" not in lead.api.configured()
    name = f"{run.id}/{SERVICE}-1/camera0"
    said = understudy(*clean, "--path", name, code=1).stderr
    assert re.search(rf"Cannot remove path '{name}': run {run.id} of user \w+ has it", said)
    said = understudy(*clean, "--path", "camera8", code=1).stderr
    assert "Cannot remove path 'camera8': none of that name is configured" in said
    run.stop()
