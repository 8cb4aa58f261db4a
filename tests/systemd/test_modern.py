"""The suite of tests/examples/legacy as it is with the plugin's fixtures: beside production."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import pytest
from tests.systemd.suites import CHECKOUT, User, outcomes, pytest_words
from tests.systemd.support import ROOT, understudy

pytestmark = pytest.mark.skipif(not ROOT, reason="only root can be production and all its users")

MODERN = "tests/examples/modern"
REAL = "UNDERSTUDY_MEDIAMTX" in os.environ

PASSING = {
    "test_a_server_with_a_port_written_into_it_has_a_network_of_its_own",
    "test_api_port_is_applied",
    "test_camera_list_is_all_there_is",
    "test_camera_list_structure",
    "test_camera_service_talks_to_production",
    "test_ffmpeg_integration",
    "test_health_ready",
    "test_health_unknown_path",
    "test_life_cycle_over_websocket",
    "test_many_services_share_one_mediamtx",
    "test_path_of_ones_own",
    "test_published_stream_is_ready",
    "test_rtsp_options",
    "test_second_stream_of_that_name_is_refused",
    "test_service_outlives_a_mediamtx_that_dies",
    "test_service_waits_for_a_mediamtx_that_is_stuck",
    "test_stream_is_created_and_deleted",
    "test_stream_is_created_with_configured_endpoints",
}
EXPECTED = {
    **dict.fromkeys(PASSING, "passed"),
    "test_ffmpeg_over_udp": "passed" if REAL else "skipped",  # the stand-in has TCP alone
}


@pytest.mark.parametrize("options", [["-n4"], []], ids=["-n4", "alone"])
def test_it_is_green_beside_production(
    production: dict[str, str], user: User, options: Sequence[str]
) -> None:
    code, output = user.run(*pytest_words("--understudy-require", *options, MODERN))
    assert outcomes(output) == EXPECTED, output
    assert code == 0
    account = r"^understudy: \d+ instances started, slowest .*, 0 left over, production as before"
    unseen = "" if user.name == "root" else r" \(not seen: how much is in /var/lib/.*\)"
    assert re.search(f"{account}{unseen}$", output, re.MULTILINE), output
    if not REAL:
        assert "UDP needs a real MediaMTX, named by UNDERSTUDY_MEDIAMTX" in output


def test_the_audit_finds_nothing_in_it() -> None:
    understudy("audit", CHECKOUT / MODERN)
