"""A private network for each test: every port is free in it, and nobody else's is touched.

A holder process in a user and network namespace of its own hands sockets of that network to
the test, which connects or binds them as any others; programs are started inside by nsenter(1).
"""

# understudy: ignore-folder[A102, A103, A104, A106, A501] each test has a network of its own

from __future__ import annotations

import http.client
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

LIMIT_S = 30.0
"""How long anything may take before the test fails; nothing should come near it."""

_HOLDER = """
import socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
channel = socket.socket(fileno=int(sys.argv[1]))
channel.send(b"up")
while request := channel.recv(1):
    kind = socket.SOCK_STREAM if request == b"t" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as made:
        socket.send_fds(channel, [b"s"], [made.fileno()])
"""


class Program:
    """A program that runs in the private network."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._output = b""
        assert process.stdout is not None
        self._stdout = process.stdout
        os.set_blocking(self._stdout.fileno(), False)

    def wait_for(self, text: str) -> list[str]:
        """All lines up to the first one with this text."""
        return self._read(text)

    def end(self) -> tuple[int, list[str]]:
        """The exit code and every line, once the program has ended by itself."""
        self._read(None)
        return self._process.wait(LIMIT_S), self._output.decode().splitlines()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdout.close()

    def _read(self, text: str | None) -> list[str]:
        deadline = time.monotonic() + LIMIT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while True:
                lines = self._output.decode().splitlines(keepends=True)
                for at, line in enumerate(lines):
                    if text is not None and text in line and line.endswith("\n"):
                        return [known.rstrip("\n") for known in lines[: at + 1]]
                if not selector.select(deadline - time.monotonic()):
                    pytest.fail(f"no '{text}' in time, only:\n{''.join(lines)}")
                if not (chunk := self._stdout.read(65536)):
                    if text is None:
                        return []
                    pytest.fail(f"ended without '{text}':\n{''.join(lines)}")
                self._output += chunk


class Network:
    """A private network."""

    def __init__(self, pid: int, channel: socket.socket, folder: Path) -> None:
        self._pid = pid
        self._channel = channel
        self.folder = folder
        self._programs: list[Program] = []

    def make(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket of this network, neither bound nor connected."""
        self._channel.send(b"t" if kind == socket.SOCK_STREAM else b"u")
        _, [fd], _, _ = socket.recv_fds(self._channel, 1, 1)
        made = socket.socket(fileno=fd)
        made.settimeout(LIMIT_S)
        return made

    def connect(self, port: int) -> socket.socket:
        """A connection to a server in this network."""
        with ExitStack() as undo:
            made = undo.enter_context(self.make())
            made.connect(("127.0.0.1", port))
            undo.pop_all()
        return made

    def bind(
        self, port: int, kind: socket.SocketKind = socket.SOCK_STREAM, host: str = "0.0.0.0"
    ) -> socket.socket:
        """A socket that takes a port in this network."""
        with ExitStack() as undo:
            made = undo.enter_context(self.make(kind))
            made.bind((host, port))
            if kind == socket.SOCK_STREAM:
                made.listen()
            undo.pop_all()
        return made

    def start(
        self,
        *command: str,
        environment: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> Program:
        """Start a program in this network, in the test's folder; both its outputs are one."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MTX_", "CAMERA_SERVICE_", "LISTEN_", "UNDERSTUDY_"))
        }
        enter = ["nsenter", "-t", str(self._pid), "-U", "-n", "--preserve-credentials", "--"]
        program = Program(
            subprocess.Popen(
                [*enter, *command],
                cwd=self.folder,
                env={**clean, **(environment or {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
            )
        )
        self._programs.append(program)
        return program

    def close(self) -> None:
        for program in self._programs:
            program.kill()

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        port: int = 9997,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """Send one HTTP request into this network; status and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock = self.connect(port)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, dict(headers or {}))
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def request_until(self, wanted: int, path: str) -> str:
        """Ask until the answer has this status, as users of a real server must."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            status, body = self.request("GET", path)
            if status == wanted:
                return body
            assert time.monotonic() < deadline, f"{path} still answers {status}: {body}"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    ours, theirs = socket.socketpair()
    holder = subprocess.Popen(
        ["unshare", "-U", "-r", "-n", "--", sys.executable, "-c", _HOLDER, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE,
    )
    theirs.close()
    assert holder.stderr is not None
    with ours, holder.stderr:
        ours.settimeout(LIMIT_S)
        if ours.recv(2) != b"up":
            reason = holder.stderr.read().decode()
            holder.wait()
            message = f"no user and network namespace to be had here: {reason}"
            if os.environ.get("UNDERSTUDY_REQUIRE_ALL") == "1":
                pytest.fail(message)
            pytest.skip(message)
        made = Network(holder.pid, ours, tmp_path)
        try:
            yield made
        finally:
            made.close()
            ours.shutdown(socket.SHUT_RDWR)
            holder.wait(LIMIT_S)
