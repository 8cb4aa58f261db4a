"""What a running stand-in knows: settings, streams, sessions, and who may do what."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from understudy.standins.mediamtx.settings import Settings, Version
    from understudy.standins.plain_yaml import Json

_LEVELS = ("debug", "info", "warn", "error")
_TAGS = {"debug": "DEB", "info": "INF", "warn": "WAR", "error": "ERR"}


class Session:
    """One RTSP session (RFC 2326 section 3.4), as the control API shows it."""

    def __init__(self, remote: str, close: Callable[[], None]) -> None:
        """Begin a session of the client at ``remote``; ``close`` ends its connection."""
        import uuid

        self.id = str(uuid.uuid4())
        self.created = now()
        self.remote = remote
        self.close = close
        self.state = "idle"
        self.path = ""
        self.transport: str | None = None
        self.received = 0
        self.sent = 0

    def public(self) -> dict[str, Json]:
        """What ``rtspsessions/list`` shows of it."""
        return {
            "id": self.id,
            "created": self.created,
            "remoteAddr": self.remote,
            "state": self.state,
            "path": self.path,
            "query": "",
            "transport": self.transport,
            "bytesReceived": self.received,
            "bytesSent": self.sent,
        }


class Stream:
    """What one publisher sends to a path."""

    def __init__(self, path: str, settings_name: str, publisher: Session, sdp: bytes) -> None:
        """Begin the stream of ``path``, which the settings ``settings_name`` allow."""
        self.path = path
        self.settings_name = settings_name
        self.publisher = publisher
        self.sdp = sdp
        self.ready = now()
        self.readers: dict[Session, Callable[[bytes], None]] = {}

    def tracks(self) -> list[str]:
        """The names of its codecs, as its SDP's ``a=rtpmap`` lines say (RFC 8866)."""
        lines = self.sdp.decode("latin-1").splitlines()
        maps = [line.split()[-1] for line in lines if line.startswith("a=rtpmap:")]
        return [codec.partition("/")[0] for codec in maps]


class State:
    """Everything that the threads of a stand-in share. Take `lock` to read or change it."""

    def __init__(self, version: Version, settings: Settings, apply: Callable[[], None]) -> None:
        """Begin with these settings.

        Args:
            version: The version that is stood in for.
            settings: The first settings.
            apply: Called when `settings` was changed, to have it `applied`.
        """
        self.version = version
        self.settings = settings
        """The settings as the control API shows them: at once."""
        self.applied = settings
        """The settings that the servers run by: a little later."""
        self.started = now()
        self.lock = threading.RLock()
        self.streams: dict[str, Stream] = {}
        self.sessions: dict[str, Session] = {}
        self._apply = apply

    def change(self, settings: Settings) -> None:
        """Take new settings, and have them applied after the caller has answered."""
        self.settings = settings
        self._apply()

    def log(self, level: str, text: str) -> None:
        """Write a line to stdout, in the real one's form, if the settings want that level."""
        if _LEVELS.index(level) >= _LEVELS.index(self.settings.text("logLevel")):
            stamp = time.strftime("%Y/%m/%d %H:%M:%S")
            os.write(1, f"{stamp} {_TAGS[level]} {text}\n".encode())

    def allowed(self, action: str, ip: str, credentials: tuple[str, str], path: str = "") -> bool:
        """Whether a client may do something (``authInternalUsers``).

        Args:
            action: ``publish``, ``read``, ``playback``, ``api``, ``metrics`` or ``pprof``.
            ip: The client's address.
            credentials: User and password; both "" where it gave none.
            path: The path that it is about; "" for none.
        """
        return any(
            isinstance(user, dict) and _matches(user, action, ip, credentials, path)
            for user in self.settings.items("authInternalUsers")
        )


def now() -> str:
    """The time, in RFC 3339 as Go's JSON has it."""
    zone = time.strftime("%z")
    fraction = time.time_ns() % 1_000_000_000
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S')}.{fraction:09d}{zone[:3]}:{zone[3:]}"


def _matches(
    user: dict[str, Json], action: str, ip: str, credentials: tuple[str, str], path: str
) -> bool:
    permissions = user["permissions"]
    networks = user["ips"]
    if not isinstance(permissions, list) or not isinstance(networks, list):
        return False
    if not any(
        isinstance(permission, dict)
        and permission["action"] == action
        and permission["path"] in ("", path)
        for permission in permissions
    ):
        return False
    if user["user"] != "any" and not (
        _equal(user["user"], credentials[0]) and _equal(user["pass"], credentials[1])
    ):
        return False
    return not networks or any(_contains(str(network), ip) for network in networks)


def _equal(known: Json, given: str) -> bool:
    if isinstance(known, str) and known.startswith("sha256:"):
        import base64
        import hashlib

        digest = hashlib.sha256(given.encode()).digest()
        return known.removeprefix("sha256:") == base64.b64encode(digest).decode()
    return known == given


def _contains(network: str, ip: str) -> bool:
    if network == ip:
        return True
    import ipaddress

    return ipaddress.ip_address(ip) in ipaddress.ip_network(network, strict=False)
