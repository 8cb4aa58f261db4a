"""The health endpoint: what it needs on 8003, it has on a port of its own."""

from __future__ import annotations

import pytest
from clients import http_json
from conftest import CHECKOUT, MEDIAMTX

from understudy import Instance, Understudy


@pytest.fixture
def camera(understudy: Understudy) -> Instance:
    mediamtx = understudy.shared("mediamtx", values=MEDIAMTX)  # one for all tests of all workers
    return understudy.spawn("camera-service", values=CHECKOUT, uses={"mediamtx": mediamtx})


def test_health_ready(camera: Instance) -> None:
    assert http_json(f"{camera.urls['health']}/health/ready") == (200, {"status": "ready"})


def test_health_unknown_path(camera: Instance) -> None:
    assert http_json(f"{camera.urls['health']}/health/live")[0] == 404
