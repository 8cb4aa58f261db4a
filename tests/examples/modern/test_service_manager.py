"""The camera service with a MediaMTX that only this test has."""

from __future__ import annotations

import asyncio

import pytest
from clients import RpcError, acall, call, http_json

from understudy import Instance


def test_stream_is_created_with_configured_endpoints(
    camera: Instance, mediamtx: Instance, stream: str
) -> None:
    call(camera.urls["websocket"], "start_stream", name=stream)

    status, path = http_json(f"{mediamtx.urls['api']}/v3/config/paths/get/{stream}")
    assert (status, path["source"]) == (200, "publisher")
    (found,) = call(camera.urls["websocket"], "get_camera_list")["cameras"]
    assert found["streams"] == {"rtsp": f"{mediamtx.urls['rtsp']}/{stream}"}


def test_camera_list_structure(camera: Instance) -> None:
    url = camera.urls["websocket"]
    assert call(url, "get_camera_list") == {"cameras": [], "total": 0, "connected": 0}

    for name in ("camera0", "camera1"):
        call(url, "start_stream", name=name)
    found = call(url, "get_camera_list")
    assert (found["total"], found["connected"]) == (2, 0)
    assert [one["device"] for one in found["cameras"]] == ["camera0", "camera1"]
    assert all(one.keys() == {"device", "status", "streams"} for one in found["cameras"])


def test_life_cycle_over_websocket(camera: Instance) -> None:
    url = camera.urls["websocket"]
    camera.wait_for_log("ready")
    first = call(url, "get_status")
    assert (first["status"], first["pid"]) == ("running", camera.pid)

    camera.restart()  # on the same ports
    assert call(url, "get_status")["pid"] == camera.pid != first["pid"]

    camera.stop()
    with pytest.raises(ConnectionRefusedError):
        call(url, "ping")


def test_service_outlives_a_mediamtx_that_dies(
    camera: Instance, mediamtx: Instance, stream: str
) -> None:
    url = camera.urls["websocket"]
    mediamtx.kill()
    with pytest.raises(RpcError, match="does not answer"):
        call(url, "start_stream", name=stream)
    assert call(url, "ping") == "pong"

    mediamtx.restart()
    assert call(url, "start_stream", name=stream) == {"name": stream, "started": True}


def test_service_waits_for_a_mediamtx_that_is_stuck(
    camera: Instance, mediamtx: Instance, stream: str
) -> None:
    url = camera.urls["websocket"]

    async def scenario() -> None:
        mediamtx.freeze()
        starting = asyncio.create_task(acall(url, "start_stream", name=stream))
        assert await acall(url, "ping") == "pong"  # others are served meanwhile
        assert not starting.done()
        mediamtx.thaw()
        assert (await starting)["started"]

    asyncio.run(scenario())


def test_second_stream_of_that_name_is_refused(camera: Instance, stream: str) -> None:
    call(camera.urls["websocket"], "start_stream", name=stream)
    with pytest.raises(RpcError, match=f"does not add '{stream}': path already exists"):
        call(camera.urls["websocket"], "start_stream", name=stream)
