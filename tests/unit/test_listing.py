"""What lives, read back from units, and the one that a person means."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.fakes import FakeManager, status

from understudy import listing
from understudy.errors import UsageError

UNITS = [
    status("understudy-guard@r2.service"),
    status("understudy-guard@r1.service"),
    status("understudy-clean@r1.service"),
    status(
        "understudy-mediamtx@r1-10.service",
        main_pid=7,
        active_since_s=1.0,
        environment={
            "UNDERSTUDY_PORTS": "api=20016,rtsp=20017",
            "UNDERSTUDY_URLS": "api=http://h:1/?a=b",
        },
    ),
    status(
        "understudy-mediamtx@r1-9.service",
        active_state="failed",
        environment={"UNDERSTUDY_PORTS": ""},
    ),
    status("understudy-camera-service@r2-1.service"),
    status("mediamtx.service"),
]


@pytest.fixture
def manager(tmp_path: Path) -> FakeManager:
    return FakeManager(tmp_path, UNITS)


def test_instances_come_by_run_and_number(manager: FakeManager) -> None:
    found = listing.instances(manager)
    assert [(one.service, one.run, one.number) for one in found] == [
        ("mediamtx", "r1", 9),
        ("mediamtx", "r1", 10),
        ("camera-service", "r2", 1),
    ]
    assert found[0].ports == {}
    assert found[1].ports == {"api": 20016, "rtsp": 20017}
    assert found[1].urls == {"api": "http://h:1/?a=b"}


def test_json_says_none_of_what_is_not(manager: FakeManager) -> None:
    failed, up, _ = (one.to_json() for one in listing.instances(manager))
    assert (failed["pid"], failed["since"], failed["state"]) == (None, None, "failed")
    assert (up["pid"], up["since"]) == (7, "1970-01-01T00:00:01+00:00")


def test_runs_are_named_by_their_guards(manager: FakeManager) -> None:
    assert listing.runs(manager) == ["r1", "r2"]


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("understudy-mediamtx@r1-9.service", "understudy-mediamtx@r1-9.service"),
        ("understudy-mediamtx@r1-9.socket", "understudy-mediamtx@r1-9.service"),
        ("understudy-mediamtx@r1-9", "understudy-mediamtx@r1-9.service"),
        ("mediamtx@r1-10", "understudy-mediamtx@r1-10.service"),
        ("r1-10", "understudy-mediamtx@r1-10.service"),
        ("r2", "understudy-camera-service@r2-1.service"),
        ("camera-service", "understudy-camera-service@r2-1.service"),
    ],
)
def test_an_instance_is_found_by_every_name_it_has(
    manager: FakeManager, name: str, unit: str
) -> None:
    assert listing.find(listing.instances(manager), name).unit == unit


def test_a_name_of_several_is_refused_with_those_that_tell(manager: FakeManager) -> None:
    with pytest.raises(UsageError, match=r"'mediamtx' is: 2 are called so\n.*r1-9, r1-10"):
        listing.find(listing.instances(manager), "mediamtx")


def test_a_name_of_none_is_refused_with_what_lives(manager: FakeManager) -> None:
    with pytest.raises(UsageError, match=r"instance 'r3-1'.*\n.*r1-9, r1-10, r2-1"):
        listing.find(listing.instances(manager), "r3-1")
    with pytest.raises(UsageError, match="live instances: none"):
        listing.find([], "r1")
