"""The host's MediaMTX as systemd runs it (AD-001), and a camera service of the test's beside it."""

from __future__ import annotations

from clients import call, http_json, rtsp_options
from conftest import StartCamera

from understudy import Production, Understudy


def test_rtsp_options(production: Production) -> None:
    answer = rtsp_options(production.urls["rtsp"])
    assert answer.startswith("RTSP/1.0 200")
    assert "DESCRIBE" in answer


def test_camera_service_talks_to_production(
    production: Production, start_camera: StartCamera
) -> None:
    camera = start_camera(production)
    status = call(camera.urls["websocket"], "get_status")
    assert status["mediamtx"]["api"] == production.urls["api"]


def test_stream_is_created_and_deleted(
    production: Production, start_camera: StartCamera, production_stream: str
) -> None:
    camera = start_camera(production)
    call(camera.urls["websocket"], "start_stream", name=production_stream)
    path = f"{production.urls['api']}/v3/config/paths"
    assert http_json(f"{path}/get/{production_stream}")[0] == 200
    assert http_json(f"{path}/delete/{production_stream}", "DELETE")[0] == 200


def test_path_of_ones_own(production: Production) -> None:
    path = production.path("cam0")  # r7k2mq/test_path_of_ones_own/cam0, and gone after the test
    assert path.urls["rtsp"].endswith("/test_path_of_ones_own/cam0")
    assert http_json(f"{production.urls['api']}/v3/paths/get/{path.name}")[0] == 200


def test_camera_list_is_all_there_is(understudy: Understudy, start_camera: StartCamera) -> None:
    alone = understudy.production("mediamtx", exclusive=True)  # else there are others' paths
    path = alone.path("cam0")
    camera = start_camera(alone)
    found = call(camera.urls["websocket"], "get_camera_list")
    assert [one["device"] for one in found["cameras"]] == [path.name]
