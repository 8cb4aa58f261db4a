"""How the tests talk to what they have started: JSON-RPC over WebSocket, HTTP, RTSP, ffmpeg."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import websockets

TIMEOUT_S = 20


class RpcError(Exception):
    """A call that the camera service answers with an error."""


async def acall(url: str, method: str, **parameters: str) -> Any:
    """The result of one JSON-RPC call."""
    async with asyncio.timeout(TIMEOUT_S), websockets.connect(url) as connection:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        await connection.send(json.dumps(request))
        answer = json.loads(await connection.recv())
    if "error" in answer:
        raise RpcError(answer["error"]["message"])
    return answer["result"]


def call(url: str, method: str, **parameters: str) -> Any:
    """As `acall`, for those that wait."""
    return asyncio.run(acall(url, method, **parameters))


def http_json(url: str, method: str = "GET") -> tuple[int, Any]:
    """Status and JSON of an HTTP request."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        connection.request(method, parts.path)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


def rtsp_options(url: str) -> str:
    """What a server answers to RTSP's first question."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), TIMEOUT_S) as connection:
        connection.sendall(f"OPTIONS {url} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
        return connection.recv(4096).decode()


@contextmanager
def publishing(url: str, transport: str = "tcp") -> Iterator[None]:
    """A camera: ffmpeg's test picture, published for as long as the block takes."""
    command = "ffmpeg -nostdin -loglevel error -re -f lavfi -i testsrc=size=64x64:rate=10"
    with subprocess.Popen(
        [*command.split(), "-c:v", "mpeg4", "-rtsp_transport", transport, "-f", "rtsp", url]
    ) as process:
        try:
            yield
        finally:
            process.kill()


def codec_and_width(url: str, transport: str = "tcp") -> str:
    """What a viewer gets to see: ``mpeg4,64``."""
    command = "ffprobe -loglevel error -show_entries stream=codec_name,width -of csv=p=0"
    return subprocess.run(
        [*command.split(), "-rtsp_transport", transport, url],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    ).stdout.strip()
