"""What the tests start. No number of a port is written here: each instance has its own."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clients import http_json

from understudy import Instance, Production, SharedInstance, Understudy

CHECKOUT = {"root": Path(__file__).parent, "python": sys.executable}
"""The camera service is the one of this checkout, not what is deployed on the host."""

REAL = os.environ.get("UNDERSTUDY_MEDIAMTX")
MEDIAMTX = {"program": REAL or f"{sys.executable} -m understudy.standins.mediamtx"}

StartCamera = Callable[[Instance | Production], Instance]


@pytest.fixture
def mediamtx(understudy: Understudy) -> Instance:
    """A MediaMTX of the test's own, which it may stop, freeze and kill."""
    return understudy.spawn("mediamtx", values=MEDIAMTX)


@pytest.fixture
def shared_mediamtx(understudy: Understudy) -> SharedInstance:
    """One for all tests of all workers; a test must use names of its own there."""
    return understudy.shared("mediamtx", values=MEDIAMTX)


@pytest.fixture
def production(understudy: Understudy) -> Production:
    """The host's MediaMTX (AD-001), shared until the test's end; not there, it is skipped."""
    return understudy.production("mediamtx")


@pytest.fixture
def start_camera(understudy: Understudy) -> StartCamera:
    """Starts a camera service that talks to the given MediaMTX."""

    def start(mediamtx: Instance | Production) -> Instance:
        return understudy.spawn("camera-service", values=CHECKOUT, uses={"mediamtx": mediamtx})

    return start


@pytest.fixture
def camera(start_camera: StartCamera, mediamtx: Instance) -> Instance:
    """A camera service and a MediaMTX, both the test's own."""
    return start_camera(mediamtx)


@pytest.fixture
def stream() -> str:
    """A name that no other test has."""
    return f"test-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def production_stream(production: Production, stream: str) -> Iterator[str]:
    """The same for production, where it must be removed again."""
    yield stream
    http_json(f"{production.urls['api']}/v3/config/paths/delete/{stream}", "DELETE")
