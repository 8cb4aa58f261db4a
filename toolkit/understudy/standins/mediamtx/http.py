"""As much of HTTP/1.1 as the stand-in's listeners need."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader
    from socket import socket

    from understudy.standins.plain_yaml import Json

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
}

_LONGEST_LINE = 65536


class Request:
    """One request."""

    def __init__(
        self, method: str, target: str, headers: dict[str, str], body: bytes, ip: str
    ) -> None:
        """Take a request apart.

        Args:
            method: ``GET``.
            target: Path and query, still quoted.
            headers: By name in lower case.
            body: The whole body.
            ip: The client's address.
        """
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body
        self.ip = ip

    def parameter(self, name: str) -> str:
        """A parameter of the query; "" if it is not there."""
        for pair in self.query.split("&"):
            key, _, value = pair.partition("=")
            if key == name:
                return value
        return ""

    def credentials(self) -> tuple[str, str]:
        """User and password of basic authentication (RFC 7617); both "" without it."""
        return basic_credentials(self.headers.get("authorization", ""))


class Response:
    """One response."""

    def __init__(
        self,
        status: int,
        body: bytes = b"",
        *,
        kind: str = "application/json; charset=utf-8",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Make a response; ``kind`` is its Content-Type where it has a body."""
        self.status = status
        self.body = body
        self.headers = dict(headers or {})
        if body:
            self.headers["Content-Type"] = kind

    def encoded(self) -> bytes:
        """The bytes to send."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS[self.status]}"]
        self.headers.setdefault("Access-Control-Allow-Origin", "*")
        self.headers["Server"] = "mediamtx"
        self.headers["Content-Length"] = str(len(self.body))
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body


def json_response(status: int, value: Json) -> Response:
    """A response that carries JSON."""
    return Response(status, json.dumps(value, separators=(",", ":")).encode())


def not_found() -> Response:
    """What the real one's router says of an unknown path or a wrong method."""
    return Response(404, b"404 page not found", kind="text/plain")


def basic_credentials(header: str) -> tuple[str, str]:
    """User and password of an ``Authorization`` header; both "" where there are none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    import binascii

    try:
        user, _, password = binascii.a2b_base64(encoded).decode().partition(":")
    except ValueError:
        return "", ""
    return user, password


def read_headers(file: BufferedReader) -> dict[str, str]:
    """Header lines up to the empty one, by name in lower case."""
    headers = {}
    while line := file.readline(_LONGEST_LINE).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def serve(connection: socket, ip: str, answer: Callable[[Request], Response]) -> None:
    """Answer the requests of one connection until the client is done."""
    with connection, connection.makefile("rb") as file:
        while request := _read(file, ip):
            connection.sendall(answer(request).encoded())
            if request.headers.get("connection", "").lower() == "close":
                return


def _read(file: BufferedReader, ip: str) -> Request | None:
    words = file.readline(_LONGEST_LINE).decode("latin-1").split()
    if len(words) != 3:
        return None
    headers = read_headers(file)
    length = headers.get("content-length", "0")
    body = file.read(int(length)) if length.isdigit() else b""
    return Request(words[0], words[1], headers, body, ip)
