"""The host's MediaMTX, as systemd runs it: nothing here may start another (AD-001)."""

import asyncio
import socket
import subprocess

import pytest
from camera_service import MediaMTXError, WebSocketJsonRpcServer


def rtsp_options(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
        s.sendall(f"OPTIONS rtsp://127.0.0.1:{port}/ RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
        return s.recv(4096).decode()


def test_mediamtx_is_managed_by_systemd():
    subprocess.run(["systemctl", "is-active", "--quiet", "mediamtx"], check=True)


def test_stream_is_created_and_deleted(systemd_mediamtx):
    systemd_mediamtx.create_stream("legacy_camera0")
    try:
        assert "legacy_camera0" in systemd_mediamtx.list_paths()
    finally:
        systemd_mediamtx.delete_stream("legacy_camera0")
    assert "legacy_camera0" not in systemd_mediamtx.list_paths()


def test_unknown_stream_is_an_error(systemd_mediamtx):
    with pytest.raises(MediaMTXError, match="404"):
        systemd_mediamtx.delete_stream("legacy_no_such_camera")


def test_rtsp_options(systemd_mediamtx):
    answer = rtsp_options(8554)
    assert answer.startswith("RTSP/1.0 200")
    assert "DESCRIBE" in answer


def test_ffmpeg_integration(systemd_mediamtx):
    async def scenario():
        server = WebSocketJsonRpcServer("127.0.0.1", 8002, systemd_mediamtx)
        await server.start()
        try:
            return await asyncio.to_thread(rtsp_options, 8554)
        finally:
            await server.stop()

    assert asyncio.run(scenario()).startswith("RTSP/1.0 200")


def test_host_answers_ping():
    subprocess.run(["ping", "-c1", "localhost"], check=True, stdout=subprocess.DEVNULL)
