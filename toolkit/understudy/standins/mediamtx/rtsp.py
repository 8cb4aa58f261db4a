"""RTSP (RFC 2326): enough for clients to ask, publish and read.

Media is relayed over interleaved TCP (section 10.12) as it comes. UDP is refused with 461, so
that clients which can do both, as ffmpeg, go on with TCP.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from understudy.standins.mediamtx.http import basic_credentials, read_headers
from understudy.standins.mediamtx.state import Session, State, Stream

if TYPE_CHECKING:
    from io import BufferedReader

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    454: "Session Not Found",
    461: "Unsupported Transport",
    501: "Not Implemented",
}

_METHODS = "DESCRIBE, ANNOUNCE, SETUP, PLAY, RECORD, GET_PARAMETER, TEARDOWN"

_LONGEST_LINE = 65536


class RtspError(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, text: str) -> None:
        """Answer with this status, and say this in the log."""
        super().__init__(text)
        self.status = status


class Connection:
    """One client's connection."""

    def __init__(self, state: State, connection: socket.socket, ip: str, port: int) -> None:
        """Serve the client at this address."""
        self._state = state
        self._connection = connection
        self._ip = ip
        self._remote = f"{ip}:{port}"
        self._writing = threading.Lock()
        self._session: Session | None = None
        self._sdp = b""
        self._stream: Stream | None = None

    def serve(self) -> None:
        """Answer until the client is done, is kicked out, or asks for the impossible."""
        self._log("opened")
        reason = "EOF"
        try:
            with self._connection.makefile("rb") as file:
                while self._one(file):
                    pass
        except RtspError as exc:
            reason = str(exc)
        except OSError as exc:
            reason = exc.strerror or str(exc)
        finally:
            self._end()
            self._connection.close()
            self._log(f"closed: {reason}")

    def _log(self, text: str) -> None:
        self._state.log("info", f"[RTSP] [conn {self._remote}] {text}")

    def _one(self, file: BufferedReader) -> bool:
        """Take one request or one piece of media; whether there may be more."""
        first = file.peek(1)[:1]
        if first == b"$":
            head = file.read(4)
            self._media(head + file.read(int.from_bytes(head[2:4], "big")))
            return True
        words = file.readline(_LONGEST_LINE).decode("latin-1").split()
        if len(words) != 3:
            return False
        method, url, _ = words
        headers = read_headers(file)
        length = headers.get("content-length", "0")
        body = file.read(int(length)) if length.isdigit() else b""
        try:
            answer, content = self._answer(method, url, headers, body)
        except RtspError as exc:
            extra = {"WWW-Authenticate": 'Basic realm="ipcam"'} if exc.status == 401 else {}
            self._send(exc.status, headers, extra)
            if exc.status == 461:
                return True  # the client may try another transport
            raise
        self._send(200, headers, answer, content)
        return method != "TEARDOWN"

    def _send(
        self,
        status: int,
        request: dict[str, str],
        headers: dict[str, str],
        body: bytes = b"",
    ) -> None:
        lines = [f"RTSP/1.0 {status} {_REASONS[status]}", f"CSeq: {request.get('cseq', '')}"]
        lines.append("Server: gortsplib")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self._write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def _write(self, content: bytes) -> None:
        """Send an answer, or media from the publisher's thread: whole, not one inside the other."""
        with self._writing:
            self._connection.sendall(content)

    def _answer(
        self, method: str, url: str, headers: dict[str, str], body: bytes
    ) -> tuple[dict[str, str], bytes]:
        """The headers and body of a success."""
        path = _path(url)
        session = {"Session": self._session.id if self._session else ""}
        match method:
            case "OPTIONS":
                return {"Public": _METHODS}, b""
            case "GET_PARAMETER":
                return (session if self._session else {}), b""
            case "DESCRIBE":
                stream = self._find(path, headers)
                return {"Content-Base": url + "/", "Content-Type": "application/sdp"}, stream.sdp
            case "ANNOUNCE":
                self._permitted("publish", path, headers)
                self._sdp = body
                self._begin(path)
                return {}, b""
            case "SETUP":
                return self._setup(path, headers), b""
            case "RECORD":
                self._record()
                return session, b""
            case "PLAY":
                self._play()
                return session, b""
            case "TEARDOWN":
                if self._session is None:
                    raise RtspError(454, "session not found")
                self._end()
                return {}, b""
        raise RtspError(501, f"unhandled request: {method}")

    def _permitted(self, action: str, path: str, headers: dict[str, str]) -> str:
        """The settings that the path goes by, if this client may use it so."""
        credentials = basic_credentials(headers.get("authorization", ""))
        if not self._state.allowed(action, self._ip, credentials, path):
            raise RtspError(401, "authentication failed")
        name = self._state.applied.path_for(path)
        if name is None:
            raise RtspError(400, f"path '{path}' is not configured")
        return name

    def _find(self, path: str, headers: dict[str, str]) -> Stream:
        self._permitted("read", path, headers)
        with self._state.lock:
            stream = self._state.streams.get(path)
        if stream is None:
            raise RtspError(404, f"no stream is available on path '{path}'")
        return stream

    def _begin(self, path: str) -> Session:
        if self._session is None:
            self._session = Session(self._remote, self._kick)
            with self._state.lock:
                self._state.sessions[self._session.id] = self._session
        self._session.path = path
        return self._session

    def _kick(self) -> None:
        """End the connection from another thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _setup(self, path: str, headers: dict[str, str]) -> dict[str, str]:
        transport = headers.get("transport", "")
        if "interleaved=" not in transport:
            raise RtspError(461, "transport is not TCP, the only one here")
        if self._sdp:
            session = self._begin(self._session.path if self._session else path)
        else:
            # The URL of a track is that of its stream, and then the track's own word.
            whole = path if path in self._state.streams else path.rpartition("/")[0]
            self._stream = self._find(whole, headers)
            session = self._begin(whole)
        session.transport = "TCP"
        return {"Session": session.id, "Transport": transport}

    def _record(self) -> None:
        session, state = self._session, self._state
        if session is None or not self._sdp:
            raise RtspError(454, "session not found")
        name = self._permitted("publish", session.path, {})
        stream = Stream(session.path, name, session, self._sdp)
        with state.lock:
            if (replaced := state.streams.get(session.path)) is not None:
                replaced.publisher.close()
            state.streams[session.path] = self._stream = stream
            session.state = "publish"
        tracks = stream.tracks()
        count = f"{len(tracks)} track{'s' * (len(tracks) != 1)} ({', '.join(tracks)})"
        state.log(
            "info",
            f"[RTSP] [session {session.id[:8]}] is publishing to path '{session.path}', {count}",
        )

    def _play(self) -> None:
        session, stream = self._session, self._stream
        if session is None or stream is None:
            raise RtspError(454, "session not found")
        with self._state.lock:
            stream.readers[session] = self._write
            session.state = "read"
        self._state.log(
            "info",
            f"[RTSP] [session {session.id[:8]}] is reading from path '{session.path}', with TCP",
        )

    def _media(self, frame: bytes) -> None:
        session, stream = self._session, self._stream
        if session is None or stream is None or session.state != "publish":
            return
        session.received += len(frame)
        with self._state.lock:
            readers = list(stream.readers.items())
        for reader, send in readers:
            try:
                send(frame)
            except OSError:
                reader.close()
            else:
                reader.sent += len(frame)

    def _end(self) -> None:
        session, stream, state = self._session, self._stream, self._state
        self._session = self._stream = None
        self._sdp = b""
        if session is None:
            return
        with state.lock:
            state.sessions.pop(session.id, None)
            if stream is None:
                return
            stream.readers.pop(session, None)
            if stream.publisher is session and state.streams.get(stream.path) is stream:
                del state.streams[stream.path]
                for reader in stream.readers:
                    reader.close()


def _path(url: str) -> str:
    """The path of an RTSP URL, without its slashes at the ends."""
    _, _, rest = url.partition("://")
    _, _, path = rest.partition("/")
    return path.partition("?")[0].strip("/")
