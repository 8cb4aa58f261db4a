"""Debian's ffmpeg publishes to MediaMTX and reads from it."""

from __future__ import annotations

import pytest
from clients import codec_and_width, http_json, publishing
from conftest import REAL

from understudy import SharedInstance


def test_ffmpeg_integration(shared_mediamtx: SharedInstance, stream: str) -> None:
    url = f"{shared_mediamtx.urls['rtsp']}/{stream}"
    with publishing(url):
        shared_mediamtx.wait_for_log(f"is publishing to path '{stream}'")
        assert codec_and_width(url) == "mpeg4,64"


def test_published_stream_is_ready(shared_mediamtx: SharedInstance, stream: str) -> None:
    with publishing(f"{shared_mediamtx.urls['rtsp']}/{stream}"):
        shared_mediamtx.wait_for_log(f"is publishing to path '{stream}'")
        _, path = http_json(f"{shared_mediamtx.urls['api']}/v3/paths/get/{stream}")
        assert (path["ready"], len(path["tracks"])) == (True, 1)


@pytest.mark.mediamtx
@pytest.mark.skipif(not REAL, reason="UDP needs a real MediaMTX, named by UNDERSTUDY_MEDIAMTX")
def test_ffmpeg_over_udp(shared_mediamtx: SharedInstance, stream: str) -> None:
    url = f"{shared_mediamtx.urls['rtsp']}/{stream}"
    with publishing(url, "udp"):
        shared_mediamtx.wait_for_log(f"is publishing to path '{stream}'")
        assert codec_and_width(url, "udp") == "mpeg4,64"
