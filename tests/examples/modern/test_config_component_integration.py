"""Configuration: each component takes the ports that it is given."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest
from clients import RpcError, call, http_json
from conftest import CHECKOUT

from understudy import Instance, SharedInstance, Understudy


@pytest.fixture
def broken_mediamtx(understudy: Understudy) -> Iterator[int]:
    """A server within the test's own process that answers every request with an error."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500, "disk full")

    (port,) = understudy.ports("tcp")  # nobody else's until the test ends
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield port
        server.shutdown()


def test_api_port_is_applied(understudy: Understudy, broken_mediamtx: int) -> None:
    camera = understudy.spawn(
        "camera-service",
        values=CHECKOUT,
        env={"CAMERA_SERVICE_MEDIAMTX_API_PORT": str(broken_mediamtx)},
    )
    with pytest.raises(RpcError, match="MediaMTX does not add 'camera0'"):
        call(camera.urls["websocket"], "start_stream", name="camera0")


def test_many_services_share_one_mediamtx(
    understudy: Understudy, shared_mediamtx: SharedInstance
) -> None:
    wanted = understudy.request(
        "camera-service", values=CHECKOUT, uses={"mediamtx": shared_mediamtx}
    )
    cameras = understudy.spawn_many([wanted] * 3)  # in parallel

    def asked(camera: Instance) -> tuple[int, str]:
        status = call(camera.urls["websocket"], "get_status")
        return status["pid"], status["mediamtx"]["api"]

    assert [asked(camera) for camera in cameras] == [
        (camera.pid, shared_mediamtx.urls["api"]) for camera in cameras
    ]


def test_a_server_with_a_port_written_into_it_has_a_network_of_its_own(
    understudy: Understudy,
) -> None:
    old = ["{python}", "{root}/old_health_server.py"]
    wanted = understudy.request(
        exec=[word.format(**CHECKOUT) for word in old], ports=["health:8003"], network="private"
    )
    first, second = understudy.spawn_many([wanted] * 2)
    assert first.inside_ports == second.inside_ports == {"health": 8003}
    assert first.ports["health"] != second.ports["health"]
    for server in (first, second):
        assert http_json(f"http://127.0.0.1:{server.ports['health']}/") == (
            200,
            {"status": "healthy"},
        )
