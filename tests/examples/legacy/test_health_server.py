"""The health endpoint on its port."""

import pathlib
import signal
import subprocess
import sys

import pytest
from camera_service import HealthServer, MediaMTXController
from conftest import get_json, is_port_taken

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def health_server(systemd_mediamtx):
    try:
        server = HealthServer("0.0.0.0", 8003, systemd_mediamtx)
    except OSError as e:
        pytest.skip(f"Service already running on port 8003: {e}")
    server.start()
    yield server
    server.stop()


def test_health_ready(health_server):
    code, body = get_json("/health/ready")
    assert code == 200
    assert body == health_server.status()


def test_health_ready_on_localhost(health_server):
    code, body = get_json("/health/ready", host="localhost")
    assert (code, body["status"]) == (200, "healthy")


def test_health_unknown_path(health_server):
    code, body = get_json("/health/live")
    assert (code, body) == (404, {"error": "not found"})


def test_health_unhealthy_without_mediamtx(free_port):
    server = HealthServer("127.0.0.1", 8003, MediaMTXController(api_port=free_port))
    server.start()
    try:
        code, body = get_json("/health/ready")
    finally:
        server.stop()
    assert (code, body["status"]) == (503, "unhealthy")


def test_health_server_as_a_process(systemd_mediamtx):
    if is_port_taken(8003):
        pytest.skip("Service already running on port 8003")
    process = subprocess.Popen(
        [sys.executable, str(HERE / "camera_service.py"), "--health-only"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        code, body = get_json("/health/ready")
        assert (code, body["pid"]) == (200, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 0
