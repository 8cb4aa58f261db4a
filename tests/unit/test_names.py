"""Unit names: built, and parsed from the right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy import names
from understudy.model import OURS

service_names = st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,5}){0,3}", fullmatch=True).filter(
    names.valid_service_name
)
run_ids = st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True)


@given(service=service_names, run=run_ids, number=st.integers(1, 10**6))
def test_a_built_name_is_parsed_into_what_it_was_built_of(
    service: str, run: str, number: int
) -> None:
    for build in (names.instance_unit, names.socket_unit):
        unit = build(service, run, number)
        assert unit.startswith(OURS)
        assert names.parse(unit) == (service, run, number)


@pytest.mark.parametrize(
    "unit",
    [
        names.guard_unit("r1"),
        names.clean_unit("r1"),
        names.slice_unit("r1"),
        names.guarded_slice_unit("r1"),
        "mediamtx.service",
        "understudy-guard@r1-1.service",
        "understudy-mediamtx@r1.service",
        "understudy-mediamtx@r1-0.service",
        "understudy-mediamtx@r1-1.timer",
        "understudy-mediamtx@r-1-1.service",
        "understudy-mediamtx@r1-1.service\n",
    ],
)
def test_what_is_no_instance_is_not_parsed(unit: str) -> None:
    assert names.parse(unit) is None


@pytest.mark.parametrize("run", ["", "a-b", "R1", "1r", "r" * 17, "r\n"])
def test_an_unfit_run_id_is_refused(run: str) -> None:
    assert not names.valid_run_id(run)


def test_what_holds_a_network_says_whose_it_is_and_what_it_is_called() -> None:
    unit = names.network_unit("r1", "my-lab")
    assert unit == "understudy-network@r1-my-lab.service"
    assert names.parse_network(unit) == ("r1", "my-lab")
    assert names.parse_network("understudy-redis@r1-1.service") is None
    assert names.parse(names.through_unit("r1", 2)) is None
