"""Ready checks that never block: many instances are watched by one loop."""

from __future__ import annotations

import errno
import os
import socket

from understudy.model import HOST, HttpCheck

ANSWER_LIMIT_BYTES = 4096


class HttpProbe:
    """One GET at a time against one port, asked again until the status is right.

    Args:
        check: What to ask, and which status says ready.
        port: The instance's number of ``check.port``.
        credentials: User and password that are sent along; None for none.
    """

    def __init__(
        self, check: HttpCheck, port: int, credentials: tuple[str, str] | None = None
    ) -> None:
        self.check = check
        self._authorization = "" if credentials is None else basic(*credentials)
        self.port = port
        self.last = "no answer yet"
        """What the last finished try gave, for people."""
        self._socket: socket.socket | None = None
        self._sent = False
        self._answer = b""

    def fileno(self) -> int:
        """The descriptor of the try under way, or -1 between two."""
        return self._socket.fileno() if self._socket else -1

    @property
    def wants_to_write(self) -> bool:
        """Whether the try under way waits for its connection."""
        return self._socket is not None and not self._sent

    def step(self) -> bool:
        """Do what can be done without waiting; True once the service has said that it is ready."""
        if self._socket is None:
            self._begin()
        if self._socket is None:
            return False
        try:
            if not self._sent:
                self._send(self._socket)
            else:
                self._receive(self._socket)
        except BlockingIOError:
            return False
        except OSError as exc:
            self.close()
            self.last = exc.strerror or str(exc)
            return False
        return self.last == f"HTTP {self.check.status}"

    def close(self) -> None:
        """Give up the try under way."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._sent, self._answer = None, False, b""

    def _begin(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = self._socket.connect_ex((HOST, self.port))
        if code not in (0, errno.EINPROGRESS):
            self.close()
            self.last = os.strerror(code)

    def _send(self, connection: socket.socket) -> None:
        failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise OSError(failure, os.strerror(failure))
        # HTTP/1.0 and Connection: close (RFC 9112, 9.6): the end of the answer is the end.
        request = (
            f"GET {self.check.path} HTTP/1.0\r\nHost: {HOST}:{self.port}\r\n"
            f"User-Agent: understudy\r\nConnection: close\r\n{self._authorization}\r\n"
        )
        connection.send(request.encode())
        self._sent = True

    def _receive(self, connection: socket.socket) -> None:
        chunk = connection.recv(ANSWER_LIMIT_BYTES)
        self._answer += chunk
        if chunk and b"\r\n" not in self._answer and len(self._answer) < ANSWER_LIMIT_BYTES:
            return
        status_line = self._answer.split(b"\r\n", 1)[0].decode("latin-1")
        fields = status_line.split()
        self.close()
        if len(fields) >= 2 and fields[0].startswith("HTTP/"):
            self.last = f"HTTP {fields[1]}"
        else:
            self.last = "no HTTP answer" if status_line else "the connection was closed"


def basic(user: str, password: str) -> str:
    """The header line of basic authentication (RFC 7617), with its end.

    Args:
        user: The user, without a colon.
        password: The password.
    """
    from base64 import b64encode

    return f"Authorization: Basic {b64encode(f'{user}:{password}'.encode()).decode()}\r\n"
