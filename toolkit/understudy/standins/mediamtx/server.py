"""The process: settings, listeners, signals, and one thread for each connection."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.standins.mediamtx import http, rtsp
from understudy.standins.mediamtx.api import Api
from understudy.standins.mediamtx.listeners import (
    TCP,
    Listen,
    ListenError,
    Server,
    open_socket,
    plan,
)
from understudy.standins.mediamtx.settings import (
    SEARCHED,
    Settings,
    SettingsError,
    find_file,
    load,
    parse_version,
)
from understudy.standins.mediamtx.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from understudy.standins.mediamtx.settings import Version

VERSION_VARIABLE = "UNDERSTUDY_STANDIN_MEDIAMTX_VERSION"
"""The environment variable that names the version to stand in for."""

DEFAULT_VERSION = "v1.20.1"

_HTTP = ("API", "metrics", "pprof", "playback", "HLS", "WebRTC")
_SETTLE_S = 0.01
"""How long the real one waits after its file changed, so that the writer is done."""


class Stopped(Exception):
    """The process is to end with this exit code, having said why."""

    def __init__(self, code: int) -> None:
        """End with this code."""
        super().__init__(code)
        self.code = code


class Open:
    """A server whose sockets are open."""

    def __init__(self, server: Server, sockets: list[socket.socket]) -> None:
        """Keep a server and its sockets together."""
        self.server = server
        self.sockets = sockets


class Process:
    """A running stand-in."""

    def __init__(self, version: Version, path: str | None, environment: Mapping[str, str]) -> None:
        """Read the settings; nothing is opened yet.

        Args:
            version: The version to stand in for.
            path: The settings file; None for none.
            environment: Where ``MTX_*`` are looked up.

        Raises:
            SettingsError: The real one would not start.
        """
        self._path = path
        self._environment = environment
        self._selector = selectors.DefaultSelector()
        self._opened: dict[tuple[object, ...], Open] = {}
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._folder: int | None = None
        self._seen = self._stamp()
        self.state = State(version, load(path, environment, version), self._wake_up)
        self._api = Api(self.state)

    def run(self) -> int:
        """Open everything, serve until told to end, and give the exit code."""
        try:
            self._start()
            while True:
                self._step()
        except Stopped as stopped:
            for opened in reversed(list(self._opened.values())):
                self._close(opened)
            return stopped.code

    def _start(self) -> None:
        state = self.state
        machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, "amd64")
        version = ".".join(map(str, state.version))
        state.log("info", f"MediaMTX v{version}, linux, {machine}")
        if self._path is not None:
            state.log("info", f"configuration loaded from {Path(self._path).absolute()}")
        else:
            looked = ", ".join(str(Path(path).absolute()) for path in SEARCHED)
            state.log(
                "warn",
                f"configuration file not found (looked in {looked}), using an empty configuration",
            )
        self._take_signals()
        try:
            self._open_all(state.settings)
        except (ListenError, SettingsError) as exc:
            state.log("error", str(exc))
            raise Stopped(1) from exc

    def _take_signals(self) -> None:
        """Have signals, and changes of the settings file's folder, wake the loop."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        handled = [signal.SIGINT, signal.SIGIO]
        if self.state.version >= (1, 14):
            handled.append(signal.SIGTERM)  # before, it dies of it without closing anything
        for number in handled:
            signal.signal(number, lambda *_: None)
        if self._path is not None:
            self._watch(Path(self._path).absolute().parent)

    def _watch(self, folder: Path) -> None:
        """Ask for SIGIO when something in the folder changes (fcntl(2), F_NOTIFY)."""
        import fcntl

        changes = fcntl.DN_MODIFY | fcntl.DN_CREATE | fcntl.DN_RENAME | fcntl.DN_MULTISHOT
        # A kernel may lack it: then there is no reload.
        with contextlib.suppress(OSError):
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.fcntl(self._folder, fcntl.F_NOTIFY, changes)

    def _wake_up(self) -> None:
        # A full buffer wakes the loop as well.
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"\0")

    def _step(self) -> None:
        """Wait for something and deal with it."""
        for key, _ in self._selector.select():
            if key.fileobj is self._wake:
                self._woken(set(self._wake.recv(4096)))
            elif isinstance(key.fileobj, socket.socket):
                key.data(key.fileobj)

    def _woken(self, numbers: set[int]) -> None:
        state = self.state
        if numbers & {signal.SIGINT, signal.SIGTERM}:
            state.log("info", "shutting down gracefully")
            raise Stopped(0)
        try:
            if signal.SIGIO in numbers and (stamp := self._stamp()) not in (None, self._seen):
                time.sleep(_SETTLE_S)
                self._seen = stamp
                state.log("info", "reloading configuration (file changed)")
                reloaded = load(self._path, self._environment, state.version)
                with state.lock:
                    state.settings = reloaded
                self._open_all(reloaded)
            elif 0 in numbers:
                state.log("info", "reloading configuration (API request)")
                with state.lock:
                    wanted = state.settings
                self._open_all(wanted)
        except (ListenError, SettingsError) as exc:
            # The real one ends with 0 here: Restart=on-failure would not bring it back.
            state.log("error", str(exc))
            raise Stopped(0) from exc

    def _stamp(self) -> tuple[int, int, int] | None:
        """What tells one version of the settings file from another; None if there is none."""
        if self._path is None:
            return None
        try:
            found = Path(self._path).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _open_all(self, settings: Settings) -> None:
        """Close what the settings no longer ask for, and open what they ask for anew."""
        servers = plan(settings, self.state.version)
        wanted = {server.key() for server in servers}
        for key in [key for key in self._opened if key not in wanted]:
            self._close(self._opened.pop(key))
        for server in servers:
            if server.key() not in self._opened:
                self._open(server)
        with self.state.lock:
            self.state.applied = settings

    def _open(self, server: Server) -> None:
        """Open one server: all of its sockets, or none."""
        if server.certificate is not None:
            self._certificate(server)
        with contextlib.ExitStack() as undo:
            sockets = [
                (listen, undo.enter_context(open_socket(listen)))
                for listen in server.in_opening_order()
            ]
            undo.pop_all()
        for listen, listening in sockets:
            listening.setblocking(False)
            accept = self._acceptor(server, listen) if listen.transport == TCP else _discard
            self._selector.register(listening, selectors.EVENT_READ, accept)
        self._opened[server.key()] = Open(server, [listening for _, listening in sockets])
        self.state.log("info", server.opened_line(self.state.version))

    def _close(self, opened: Open) -> None:
        for listening in opened.sockets:
            self._selector.unregister(listening)
            listening.close()
        self.state.log("info", opened.server.closed_line(self.state.version))

    def _certificate(self, server: Server) -> None:
        """MoQ makes its own in the working directory; the others want theirs to be there."""
        for path in server.certificate or ():
            if Path(path).exists():
                continue
            if server.label != "MoQ":
                raise ListenError(f"open {path}: no such file or directory")
            if path.endswith(".key"):
                self.state.log(
                    "warn", f"[MoQ] certificate {path} not found, generating it from scratch"
                )
            with contextlib.suppress(OSError):
                Path(path).write_text("A stand-in's: nothing is encrypted with it.\n")

    def _acceptor(self, server: Server, listen: Listen) -> Callable[[socket.socket], None]:
        """What to do when somebody connects to this socket."""
        if server.label == "RTSP":
            serve = self._serve_rtsp
        elif server.label in _HTTP and "HTTP" in listen.new and server.certificate is None:
            answer = self._api.answer if server.label == "API" else self._answerer(server.label)

            def serve(connection: socket.socket, ip: str, port: int) -> None:
                http.serve(connection, ip, answer)
        else:
            serve = _swallow

        def accept(listening: socket.socket) -> None:
            with contextlib.suppress(OSError):  # the client may be gone already
                connection, peer = listening.accept()
                connection.setblocking(True)
                ip, port = (str(peer[0]), int(peer[1])) if peer else ("127.0.0.1", 0)
                ip = ip.removeprefix("::ffff:")
                threading.Thread(
                    target=_guarded, args=(serve, connection, ip, port), daemon=True
                ).start()

        return accept

    def _serve_rtsp(self, connection: socket.socket, ip: str, port: int) -> None:
        rtsp.Connection(self.state, connection, ip, port).serve()

    def _answerer(self, label: str) -> Callable[[http.Request], http.Response]:
        """The answers of an HTTP listener other than the control API."""
        state = self.state

        def answer(request: http.Request) -> http.Response:
            if label != "metrics" or request.path != "/metrics":
                return http.not_found()
            if not state.allowed("metrics", request.ip, request.credentials()):
                return http.Response(401)
            with state.lock:
                names = sorted({*state.applied.fixed_paths(), *state.streams})
                lines = [
                    f'paths{{name="{name}",state="{_ready(name in state.streams)}"}} 1\n'
                    for name in names
                ]
            return http.Response(200, "".join(lines or ["paths 0\n"]).encode(), kind="text/plain")

        return answer


def _ready(ready: bool) -> str:
    return "ready" if ready else "notReady"


def _discard(listening: socket.socket) -> None:
    """Take a packet off a UDP socket: nobody here knows what to do with it."""
    with contextlib.suppress(OSError):
        listening.recv(65536)


def _swallow(connection: socket.socket, ip: str, port: int) -> None:
    """Read until the client is done, and answer nothing: a protocol that is not spoken here."""
    with connection:
        while connection.recv(65536):
            pass


def _guarded(
    serve: Callable[[socket.socket, str, int], None],
    connection: socket.socket,
    ip: str,
    port: int,
) -> None:
    """A client that goes away in the middle is nobody's error."""
    with connection, contextlib.suppress(OSError):
        serve(connection, ip, port)


def main(arguments: Sequence[str]) -> int:
    """Run as ``mediamtx`` does.

    Args:
        arguments: ``[FILE]`` or ``--version``.

    Returns:
        The exit code: 1 if it could not start, 0 after SIGINT or a reload that failed.
    """
    try:
        text = os.environ.get(VERSION_VARIABLE, DEFAULT_VERSION)
        version = parse_version(text)
        if "--version" in arguments:
            print(text)
            return 0
        if len(arguments) > 1 or any(word.startswith("-") for word in arguments):
            print(f"mediamtx: error: unexpected argument {arguments[-1]}", file=sys.stderr)
            return 80  # kong's exit code for a usage error
        process = Process(version, find_file(arguments[0] if arguments else None), os.environ)
    except SettingsError as exc:
        print(f"ERR: {exc}", flush=True)
        return 1
    return process.run()
