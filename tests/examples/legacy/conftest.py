import http.client
import json
import socket
import subprocess

import pytest
from camera_service import MediaMTXController


def find_free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def is_port_taken(port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


def get_json(url_path, port=8003, host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", url_path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.fixture
def free_port():
    return find_free_port()


@pytest.fixture(scope="session")
def systemd_mediamtx():
    """AD-001: tests use the one MediaMTX that systemd manages."""
    state = subprocess.run(["systemctl", "is-active", "mediamtx"], capture_output=True, text=True)
    if state.stdout.strip() != "active":
        pytest.skip("MediaMTX service is not running")
    controller = MediaMTXController()
    assert controller.health_check()
    return controller
