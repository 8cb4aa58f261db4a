"""A stand-in for a camera service that was not written with a second copy in mind.

``python -m understudy.standins.camera_service`` has the real one's habits: its WebSocket listener
sets SO_REUSEPORT and binds every interface whatever ``server.host`` says; its health port is read
from one fixed file and from nowhere else; ``/health/ready`` says 200 even when MediaMTX is away;
it removes paths from MediaMTX with a POST, which MediaMTX answers with 404.

With ``--activated`` it stands in for a better build: it takes its two listeners, ``websocket``
and ``health``, from systemd where they are passed, and says when it is ready (Type=notify). When it
is stopped it answers every HTTP request that it has accepted; those that it has not wait in the
socket for the next process, so a restart costs no answer.

JSON-RPC 2.0 on ``/ws``: ``ping``, ``get_status``, ``get_camera_list``, ``get_streams``,
``start_stream`` and ``stop_stream`` (``{"name": …}``). All but ``ping`` ask MediaMTX. Unlike the
real one it puts ``CAMERA_SERVICE_MEDIAMTX_PATH_PREFIX`` before the names of streams there.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from websockets import ConnectionClosed, serve

from understudy import activation
from understudy.standins import plain_yaml

if TYPE_CHECKING:
    from websockets import ServerConnection

    from understudy.standins.plain_yaml import Json

FIXED_FILE = "/opt/camera-service/config/camera-service.yaml"
"""The only place that the health port is read from."""

SEARCHED = ("config/default.yaml", "/etc/camera-service/config.yaml", FIXED_FILE)
"""Where the other settings are looked for, in this order; the first file that is there counts."""

DEFAULTS: dict[str, dict[str, str | int]] = {
    "server": {"host": "0.0.0.0", "port": 8002},
    "mediamtx": {
        "host": "127.0.0.1",
        "api_port": 9997,
        "rtsp_port": 8554,
        "webrtc_port": 8889,
        "hls_port": 8888,
        "path_prefix": "",
        "api_user": "",
        "api_password": "",
    },
}
"""Section, key, value; ``CAMERA_SERVICE_<SECTION>_<KEY>`` of the environment wins over files."""

HEALTH_PORT = 8003

_EVERYWHERE = "0.0.0.0"
_API_TIMEOUT_S = 5.0
_LAST_ANSWERS_S = 4.0
_LONGEST_ANSWER = 1 << 24

_log = logging.getLogger("camera_service")


class SettingsError(Exception):
    """A settings file or variable that makes no sense."""


class RpcError(Exception):
    """A call that is answered with an error (JSON-RPC 2.0, section 5.1)."""

    def __init__(self, code: int, text: str) -> None:
        """Answer with this code and message."""
        super().__init__(text)
        self.code = code


def load_settings(environment: Mapping[str, str]) -> dict[str, dict[str, str | int]]:
    """Read the settings: defaults, the first file that is there, the environment.

    Args:
        environment: Where ``CAMERA_SERVICE_…`` are looked up.

    Raises:
        SettingsError: The file cannot be read, or a number is none.
    """
    settings = {section: dict(values) for section, values in DEFAULTS.items()}
    found = next((path for path in map(Path, SEARCHED) if path.exists()), None)
    document = _read(found) if found else {}
    for section, values in settings.items():
        listed = document.get(section)
        for key, known in values.items():
            name = f"CAMERA_SERVICE_{section}_{key}".upper()
            given = listed.get(key) if isinstance(listed, dict) else None
            text = environment.get(name, given)
            if text is None:
                continue
            try:
                values[key] = type(known)(str(text))
            except ValueError as exc:
                raise SettingsError(f"{name} or {section}.{key}: '{text}' is no number") from exc
    return settings


def load_health_port() -> int:
    """The health port, from `FIXED_FILE` alone; `HEALTH_PORT` if that says nothing.

    Raises:
        SettingsError: The file cannot be read, or the port is no number.
    """
    fixed = Path(FIXED_FILE)
    port = _read(fixed).get("health_port", HEALTH_PORT) if fixed.exists() else HEALTH_PORT
    if not isinstance(port, int):
        raise SettingsError(f"{FIXED_FILE}: health_port: '{port}' is no number")
    return port


def _read(path: Path) -> dict[str, Json]:
    try:
        document = plain_yaml.load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{path}: {exc}") from exc
    return document if isinstance(document, dict) else {}


class MediaMtx:
    """The MediaMTX that this service works with, through its control API."""

    def __init__(self, host: str, api_port: int, rtsp_port: int, account: str = "") -> None:
        """Work with the one whose listeners are there; ``USER:PASSWORD`` is its account."""
        self._authorization = ""
        if account:
            encoded = base64.b64encode(account.encode()).decode()
            self._authorization = f"Authorization: Basic {encoded}\r\n"
        self._host = host
        self._port = api_port
        self.url = f"http://{host}:{api_port}"
        self.rtsp_url = f"rtsp://{host}:{rtsp_port}"

    async def ask(self, method: str, path: str, body: Json = None) -> tuple[int, Json]:
        """Send one request; give the HTTP status and the JSON of the answer.

        Raises:
            RpcError: MediaMTX does not answer.
        """
        try:
            async with asyncio.timeout(_API_TIMEOUT_S):
                return await self._ask(method, path, body)
        except (OSError, ValueError, EOFError) as exc:
            reason = str(exc) or "no answer in time"
            raise RpcError(-32001, f"MediaMTX at {self.url} does not answer: {reason}") from exc

    async def get(self, path: str) -> Json:
        """The JSON of a GET.

        Raises:
            RpcError: MediaMTX does not answer, or answers with an error.
        """
        status, answer = await self.ask("GET", path)
        if status != 200:
            raise RpcError(-32001, f"MediaMTX at {self.url} answers {status} to {path}")
        return answer

    async def _ask(self, method: str, path: str, body: Json) -> tuple[int, Json]:
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Length: {len(content)}\r\nConnection: close\r\n{self._authorization}\r\n"
        )
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(head.encode("latin-1") + content)
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            answer = await reader.read(_LONGEST_ANSWER)
        except IndexError as exc:
            raise EOFError("no answer") from exc
        finally:
            writer.close()
        return status, json.loads(answer) if answer[:1] in (b"{", b"[") else None


class CameraService:
    """The service itself: what it answers."""

    def __init__(self, mediamtx: MediaMtx, prefix: str = "") -> None:
        """Work with this MediaMTX; not ready until `ready` is set."""
        self.ready = False
        self._mediamtx = mediamtx
        self._prefix = f"{prefix}/" if prefix else ""
        self._methods: dict[str, Callable[[dict[str, Json]], Awaitable[Json]]] = {
            "ping": self._ping,
            "get_status": self._get_status,
            "get_camera_list": self._get_camera_list,
            "get_streams": self._get_streams,
            "start_stream": self._start_stream,
            "stop_stream": self._stop_stream,
        }

    async def _ping(self, parameters: dict[str, Json]) -> Json:
        return "pong"

    async def _get_status(self, parameters: dict[str, Json]) -> Json:
        """Which process this is, and which MediaMTX it talks to."""
        settings = await self._mediamtx.get("/v3/config/global/get")
        status, info = await self._mediamtx.ask("GET", "/v3/info")  # since v1.15.2
        return {
            "status": "running",
            "pid": os.getpid(),
            "mediamtx": {
                "api": self._mediamtx.url,
                "rtsp_address": settings.get("rtspAddress") if isinstance(settings, dict) else None,
                "started": info.get("started") if isinstance(info, dict) else None,
                "version": info.get("version")
                if status == 200 and isinstance(info, dict)
                else None,
            },
        }

    async def _get_camera_list(self, parameters: dict[str, Json]) -> Json:
        streams = await self._streams()
        cameras: list[Json] = [
            {
                "device": stream["name"],
                "status": "CONNECTED" if stream["ready"] else "DISCONNECTED",
                "streams": {"rtsp": f"{self._mediamtx.rtsp_url}/{stream['name']}"},
            }
            for stream in streams
        ]
        connected = sum(stream["ready"] is True for stream in streams)
        return {"cameras": cameras, "total": len(cameras), "connected": connected}

    async def _get_streams(self, parameters: dict[str, Json]) -> Json:
        return [*await self._streams()]

    async def _streams(self) -> list[dict[str, Json]]:
        answer = await self._mediamtx.get("/v3/paths/list")
        items = answer.get("items") if isinstance(answer, dict) else None
        return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []

    async def _start_stream(self, parameters: dict[str, Json]) -> Json:
        name = _name(parameters)
        status, answer = await self._mediamtx.ask(
            "POST", f"/v3/config/paths/add/{self._prefix}{name}", {"source": "publisher"}
        )
        if status != 200:
            error = answer.get("error") if isinstance(answer, dict) else answer
            raise RpcError(-32001, f"MediaMTX does not add '{name}': {error}")
        return {"name": name, "started": True}

    async def _stop_stream(self, parameters: dict[str, Json]) -> Json:
        """Try to remove a path, with the wrong method: it stays."""
        name = _name(parameters)
        status, _ = await self._mediamtx.ask(
            "POST", f"/v3/config/paths/delete/{self._prefix}{name}"
        )
        if status != 200:
            _log.warning("MediaMTX answers %d to the removal of '%s'", status, name)
        return {"name": name, "stopped": True}

    async def converse(self, connection: ServerConnection) -> None:
        """Answer the calls of one WebSocket client."""
        if _request_path(connection) != "/ws":
            await connection.close(1008, "the path is /ws")
            return
        try:
            async for message in connection:
                answer = await self.call(message)
                if answer is not None:
                    await connection.send(answer)
        except ConnectionClosed:
            pass

    async def call(self, message: str | bytes) -> str | None:
        """Answer one JSON-RPC message; None for a notification, which has no answer."""
        id_: Json = None
        answered = True
        try:
            request = _parsed(message)
            id_ = request.get("id")
            answered = "id" in request
            method, parameters = request.get("method"), request.get("params", {})
            if request.get("jsonrpc") != "2.0" or not isinstance(method, str):
                answered = True
                raise RpcError(-32600, "Invalid Request")
            if not isinstance(parameters, dict):
                raise RpcError(-32602, "Invalid params: named ones were expected")
            if method not in self._methods:
                raise RpcError(-32601, f"Method not found: {method}")
            outcome: dict[str, Json] = {"result": await self._methods[method](parameters)}
        except RpcError as exc:
            outcome = {"error": {"code": exc.code, "message": str(exc)}}
        return json.dumps({"jsonrpc": "2.0", **outcome, "id": id_}) if answered else None

    async def health(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one HTTP request, and close."""
        try:
            words = (await reader.readline()).split()
            while (await reader.readline()).strip():
                pass
            status, body = 404, '{"error":"not found"}'
            if words[1:2] == [b"/health/ready"]:
                status = 200 if self.ready else 503
                body = json.dumps({"status": "ready" if self.ready else "starting"})
            reason = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}[status]
            writer.write(
                f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
            )
            await writer.drain()
        except OSError:
            pass  # the client went away
        finally:
            writer.close()


def _parsed(message: str | bytes) -> dict[str, Json]:
    try:
        request = json.loads(message)
    except ValueError as exc:
        raise RpcError(-32700, f"Parse error: {exc}") from exc
    if not isinstance(request, dict):
        raise RpcError(-32600, "Invalid Request")
    return request


def _name(parameters: dict[str, Json]) -> str:
    name = parameters.get("name")
    if not isinstance(name, str) or not name:
        raise RpcError(-32602, "Invalid params: name is missing")
    return name


def _request_path(connection: ServerConnection) -> str | None:
    """The path that the client asked for; websockets before 13 keeps it elsewhere."""
    request = getattr(connection, "request", None)
    path = request.path if request is not None else getattr(connection, "path", None)
    return path if isinstance(path, str) else None


def _inherited(*, activated: bool) -> tuple[socket.socket | None, socket.socket | None]:
    """The passed sockets for WebSocket and health; None where there are none."""
    if not activated or "LISTEN_FDS" not in os.environ:
        return None, None
    return activation.socket_named("websocket"), activation.socket_named("health")


def _accepting(
    listener: socket.socket,
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> Callable[[], Awaitable[None]]:
    """Accept connections, and give what ends that and answers the last of them.

    asyncio's own server accepts many at a time and forgets those that it has not come to.
    """
    loop = asyncio.get_running_loop()
    under_way: set[asyncio.Task[None]] = set()

    async def converse(connection: socket.socket) -> None:
        await answer(*await asyncio.open_connection(sock=connection))

    def accept() -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it went away meanwhile
        connection.setblocking(False)
        task = asyncio.create_task(converse(connection))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    async def end() -> None:
        loop.remove_reader(listener)
        listener.close()
        if under_way:
            await asyncio.wait(under_way, timeout=_LAST_ANSWERS_S)

    listener.setblocking(False)
    loop.add_reader(listener, accept)
    return end


async def run(*, activated: bool) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        activated: Whether to take the sockets that systemd passes, and to say when it is ready.

    Raises:
        OSError: A port is taken; the text is asyncio's.
        SettingsError: A settings file or variable makes no sense.
        ActivationError: Sockets were passed, but not both by their names.
    """
    settings = load_settings(os.environ)
    mediamtx = settings["mediamtx"]
    user, password = mediamtx["api_user"], mediamtx["api_password"]
    service = CameraService(
        MediaMtx(
            str(mediamtx["host"]),
            int(mediamtx["api_port"]),
            int(mediamtx["rtsp_port"]),
            f"{user}:{password}" if password else "",
        ),
        str(mediamtx["path_prefix"]),
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    websocket, health = _inherited(activated=activated)
    async with AsyncExitStack() as opened:
        if health is None:
            port = load_health_port()
            listener = await asyncio.start_server(service.health, _EVERYWHERE, port)
            opened.callback(listener.close)
        if websocket is None:
            port = int(settings["server"]["port"])
            served = serve(service.converse, _EVERYWHERE, port, reuse_port=True)
        else:
            served = serve(service.converse, sock=websocket)
        await opened.enter_async_context(served)
        service.ready = True
        if health is not None:
            opened.push_async_callback(_accepting(health, service.health))
        _log.info("ready")
        if activated:
            activation.notify("READY=1")
        await ended.wait()
        if activated:
            activation.notify("STOPPING=1")


def main(arguments: Sequence[str]) -> int:
    """Run the service; give its exit code."""
    parser = argparse.ArgumentParser(prog="camera_service", description="A stand-in.")
    parser.add_argument("--activated", action="store_true", help="take sockets from systemd")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s"
    )
    try:
        asyncio.run(run(activated=options.activated))
    except (OSError, SettingsError, activation.ActivationError) as exc:
        _log.error("Cannot start the camera service: %s", exc)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
