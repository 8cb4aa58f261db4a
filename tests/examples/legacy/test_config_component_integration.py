"""Configuration: which ports the components are given, and take."""

import asyncio
import http.server
import json
import threading

import pytest
from camera_service import MediaMTXController, MediaMTXError, ServiceManager
from conftest import find_free_port, get_json, is_port_taken


@pytest.fixture
def fake_mediamtx(free_port):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps({"pageCount": 1, "items": [{"name": "fake"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", free_port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield free_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_default_ports():
    manager = ServiceManager()
    assert (manager.websocket.port, manager.health_port) == (8002, 8003)
    assert manager.mediamtx.api_port == 9997


def test_default_config_starts():
    if is_port_taken(8003):
        pytest.skip("Service already running on port 8003")

    async def scenario():
        manager = ServiceManager()
        await manager.start()
        await manager.stop()

    asyncio.run(scenario())


def test_api_port_is_applied(fake_mediamtx):
    if is_port_taken(8003):
        pytest.skip("Service already running on port 8003")

    async def scenario():
        manager = ServiceManager({"api_port": fake_mediamtx})
        await manager.start()
        try:
            return await asyncio.to_thread(get_json, "/health/ready")
        finally:
            await manager.stop()

    code, body = asyncio.run(scenario())
    assert (code, body["status"]) == (200, "healthy")


def test_controller_uses_its_port(fake_mediamtx):
    assert MediaMTXController(api_port=fake_mediamtx).list_paths() == ["fake"]


def test_nothing_on_a_free_port():
    with pytest.raises(MediaMTXError, match="does not answer"):
        MediaMTXController(api_port=find_free_port()).list_paths()
