from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("websockets")
import websockets

if TYPE_CHECKING:
    from tests.standins.conftest import Network, Program

ONLY_API = {
    "MTX_API": "yes",
    **{f"MTX_{name}": "no" for name in ["RTSP", "RTMP", "HLS", "WEBRTC", "SRT", "MOQ"]},
}

# The fixed file's place is a constant of the module, so that nothing else can change it.
_START = """
import sys
from understudy.standins import camera_service
fixed, *arguments = sys.argv[1:]
camera_service.FIXED_FILE = fixed
camera_service.SEARCHED = (*camera_service.SEARCHED[:-1], fixed)
sys.exit(camera_service.main(arguments))
"""


def start(
    network: Network,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    fixed: str = "fixed.yaml",
) -> Program:
    return network.start(
        sys.executable, "-W", "error", "-c", _START, fixed, *arguments, environment=environment
    )


def ready(
    network: Network,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    fixed: str = "fixed.yaml",
) -> Program:
    program = start(network, *arguments, environment=environment, fixed=fixed)
    program.wait_for("camera_service - INFO - ready")
    return program


def start_mediamtx(network: Network, port: int = 9997, version: str = "v1.20.1") -> Program:
    program = network.start(
        sys.executable,
        "-m",
        "understudy.standins.mediamtx",
        environment={
            **ONLY_API,
            "MTX_APIADDRESS": f"127.0.0.1:{port}",
            "UNDERSTUDY_STANDIN_MEDIAMTX_VERSION": version,
        },
    )
    program.wait_for("[API]")
    return program


def say(network: Network, *messages: str, path: str = "/ws", port: int = 8002) -> list[str]:
    """Send messages over one WebSocket; the answer to each."""

    async def converse() -> list[str]:
        # The library wants to open its own connection without blocking.
        connection = network.connect(port)
        connection.setblocking(False)
        async with websockets.connect(f"ws://127.0.0.1:{port}{path}", sock=connection) as client:
            answers = []
            for message in messages:
                await client.send(message)
                answers.append(str(await asyncio.wait_for(client.recv(), 30)))
            return answers

    return asyncio.run(converse())


def call(network: Network, method: str, *, port: int = 8002, **parameters: object) -> object:
    """The result of a call, or its error as a dictionary."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    [answer] = say(network, json.dumps(request), port=port)
    answered = json.loads(answer)
    assert (answered["jsonrpc"], answered["id"]) == ("2.0", 1)
    return answered.get("result", answered.get("error"))


def test_a_call_carries_what_its_mediamtx_says(network: Network) -> None:
    start_mediamtx(network)
    start_mediamtx(network, port=9995, version="v1.13.1")
    ready(network)
    settings = {
        "CAMERA_SERVICE_MEDIAMTX_API_PORT": "9995",
        "CAMERA_SERVICE_MEDIAMTX_RTSP_PORT": "8559",
        "CAMERA_SERVICE_SERVER_PORT": "8012",
    }
    folder = network.folder
    (folder / "other.yaml").write_text("health_port: 8013\n")
    ready(network, environment=settings, fixed="other.yaml")

    assert call(network, "ping") == "pong"
    own = call(network, "get_status")
    other = call(network, "get_status", port=8012)
    assert isinstance(own, dict)
    assert isinstance(other, dict)
    assert (own["mediamtx"]["api"], own["mediamtx"]["version"]) == (
        "http://127.0.0.1:9997",
        "v1.20.1",
    )
    # v1.13.1 has no /v3/info.
    assert (other["mediamtx"]["api"], other["mediamtx"]["version"]) == (
        "http://127.0.0.1:9995",
        None,
    )
    assert own["pid"] != other["pid"]

    assert call(network, "start_stream", port=8012, name="cam0") == {
        "name": "cam0",
        "started": True,
    }
    deadline = time.monotonic() + 30
    while not (cameras := call(network, "get_camera_list", port=8012))["total"]:  # type: ignore[index]
        assert time.monotonic() < deadline
    assert cameras == {
        "cameras": [
            {
                "device": "cam0",
                "status": "DISCONNECTED",
                "streams": {"rtsp": "rtsp://127.0.0.1:8559/cam0"},
            }
        ],
        "total": 1,
        "connected": 0,
    }
    assert call(network, "get_streams") == []


def test_a_path_it_removes_stays(network: Network) -> None:
    start_mediamtx(network)
    program = ready(network)
    call(network, "start_stream", name="cam0")
    network.request_until(200, "/v3/paths/get/cam0")
    assert call(network, "stop_stream", name="cam0") == {"name": "cam0", "stopped": True}
    program.wait_for("MediaMTX answers 404 to the removal of 'cam0'")
    assert network.request("GET", "/v3/config/paths/get/cam0")[0] == 200


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", -32700),
        ("[]", -32600),
        ('{"id": 1, "method": "ping"}', -32600),
        ('{"jsonrpc": "2.0", "id": 1, "method": "dance"}', -32601),
        ('{"jsonrpc": "2.0", "id": 1, "method": "start_stream"}', -32602),
        ('{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [1]}', -32602),
        ('{"jsonrpc": "2.0", "id": 1, "method": "get_status"}', -32001),
    ],
)
def test_impossible_calls_are_answered_with_their_code(
    network: Network, message: str, code: int
) -> None:
    ready(network)
    [answer] = say(network, message)
    assert json.loads(answer)["error"]["code"] == code


def test_a_notification_is_not_answered(network: Network) -> None:
    ready(network)
    notification = '{"jsonrpc": "2.0", "method": "ping"}'
    request = '{"jsonrpc": "2.0", "id": 7, "method": "ping"}'

    async def converse() -> str:
        connection = network.connect(8002)
        connection.setblocking(False)
        async with websockets.connect("ws://127.0.0.1:8002/ws", sock=connection) as client:
            await client.send(notification)
            await client.send(request)
            return str(await asyncio.wait_for(client.recv(), 30))

    assert json.loads(asyncio.run(converse()))["id"] == 7


def test_another_path_than_ws_is_closed(network: Network) -> None:
    ready(network)
    with pytest.raises(websockets.ConnectionClosedError, match="the path is /ws"):
        say(network, "{}", path="/other")


def test_it_is_healthy_even_when_mediamtx_is_away(network: Network) -> None:
    ready(network)
    assert network.request("GET", "/health/ready", port=8003) == (200, '{"status": "ready"}')
    assert network.request("GET", "/health/live", port=8003)[0] == 404


def test_it_binds_every_interface_whatever_its_host_says(network: Network) -> None:
    ready(network, environment={"CAMERA_SERVICE_SERVER_HOST": "127.0.0.1"})
    for port in (8002, 8003):
        with pytest.raises(OSError, match="Address already in use"):
            network.bind(port, host="127.0.0.2")


def test_the_health_port_comes_from_one_file_alone(network: Network) -> None:
    folder = network.folder
    (folder / "config").mkdir()
    (folder / "config/default.yaml").write_text("server:\n  port: 8012\nhealth_port: 8099\n")
    (folder / "fixed.yaml").write_text("server:\n  port: 8022\nhealth_port: 8013\n")
    ready(network, environment={"CAMERA_SERVICE_HEALTH_PORT": "8098"})
    assert network.request("GET", "/health/ready", port=8013)[0] == 200
    # Of the other settings the first file that is there counts.
    assert call(network, "ping", port=8012) == "pong"
    with pytest.raises(ConnectionRefusedError):
        network.connect(8022)


def test_the_environment_wins_over_files(network: Network) -> None:
    (network.folder / "fixed.yaml").write_text("server:\n  port: 8022\n")
    ready(network, environment={"CAMERA_SERVICE_SERVER_PORT": "8032"})
    assert call(network, "ping", port=8032) == "pong"


@pytest.mark.parametrize("port", [8002, 8003])
def test_a_taken_port_ends_it_with_1_and_pythons_own_words(network: Network, port: int) -> None:
    with network.bind(port):
        code, lines = start(network).end()
    assert code == 1
    words = f"[Errno 98] error while attempting to bind on address ('0.0.0.0', {port}): "
    assert words in lines[-1]
    assert "address already in use" in lines[-1]


def test_a_second_copy_under_the_same_user_shares_the_websocket_port(network: Network) -> None:
    """The habit that makes "it started" prove nothing."""
    first = ready(network)
    (network.folder / "other.yaml").write_text("health_port: 8013\n")
    second = ready(network, fixed="other.yaml")
    assert first.running()
    assert second.running()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_0_when_told_to(network: Network, number: int) -> None:
    program = ready(network)
    program.signal(number)
    assert program.end()[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("health_port: high\n", "health_port: 'high' is no number"),
        ("server:\n  port: high\n", "server.port: 'high' is no number"),
        ("server: |\n", "fixed.yaml: [line 1] cannot be read"),
    ],
)
def test_a_bad_file_ends_it_with_1(network: Network, text: str, message: str) -> None:
    (network.folder / "fixed.yaml").write_text(text)
    code, lines = start(network).end()
    assert code == 1
    assert message in lines[-1]


# What systemd does: the sockets from descriptor 3 on, in the variables' order.
_ACTIVATE = """
import os, sys
first, second, names, program, *arguments = sys.argv[1:]
for target, fd in ((3, int(first)), (4, int(second))):
    os.dup2(fd, target)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES=names)
os.execv(sys.executable, [sys.executable, "-c", program, *arguments])
"""


def activate(network: Network, names: str, environment: Mapping[str, str]) -> Program:
    """Start it with two passed sockets, bound to 127.0.0.1: 8102 and 8103."""
    with network.bind(8102, host="127.0.0.1") as one, network.bind(8103, host="127.0.0.1") as two:
        # Out of the way of the descriptors that they are to become.
        fds = tuple(os.dup(made.fileno()) for made in (one, two))
        high = tuple(fd + 100 for fd in fds)
        for fd, target in zip(fds, high, strict=True):
            os.dup2(fd, target)
            os.close(fd)
        try:
            return network.start(
                sys.executable,
                "-c",
                _ACTIVATE,
                *map(str, high),
                names,
                _START,
                "fixed.yaml",
                "--activated",
                environment=environment,
                pass_fds=high,
            )
        finally:
            for fd in high:
                os.close(fd)


def test_activated_it_serves_on_the_passed_sockets_and_says_when(
    network: Network, tmp_path: Path
) -> None:
    notify = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        manager.settimeout(30)
        program = activate(network, "websocket:health", {"NOTIFY_SOCKET": str(notify)})
        assert manager.recv(100) == b"READY=1"
        assert call(network, "ping", port=8102) == "pong"
        assert network.request("GET", "/health/ready", port=8103)[0] == 200
        for port in (8002, 8003):
            with pytest.raises(ConnectionRefusedError):
                network.connect(port)
        program.signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert program.end()[0] == 0


def test_activated_it_goes_by_names_not_by_order(network: Network) -> None:
    program = activate(network, "health:websocket", {})
    program.wait_for("INFO - ready")
    assert network.request("GET", "/health/ready", port=8102)[0] == 200
    assert call(network, "ping", port=8103) == "pong"


def test_activated_it_names_the_socket_that_is_missing(network: Network) -> None:
    code, lines = activate(network, "websocket:admin", {}).end()
    assert code == 1
    assert "Cannot take socket 'health': passed were 'websocket', 'admin'" in lines[-1]


def test_activated_without_sockets_it_binds_its_own(network: Network) -> None:
    ready(network, "--activated")
    assert call(network, "ping") == "pong"
