"""Which sockets a MediaMTX with given settings opens, in which order, and how it says so.

The order is that of MediaMTX's ``internal/core`` (the control API last); within RTSP the UDP
sockets come first, as in gortsplib's ``Server.Start``. Log lines changed with v1.19.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from understudy.standins.mediamtx.settings import Settings, SettingsError

if TYPE_CHECKING:
    from understudy.standins.mediamtx.settings import Version

TCP = "tcp"
UDP = "udp"

_BACKLOG = 4096


class ListenError(Exception):
    """A socket could not be opened; the text is Go's (net.OpError)."""


class Listen:
    """One socket that is to be opened."""

    def __init__(
        self, transport: str, address: str, old: str, new: str, *, shares: bool = False
    ) -> None:
        """Describe a socket.

        Args:
            transport: `TCP` or `UDP`.
            address: Go's form: ``:8554``, ``127.0.0.1:8554``, ``[::1]:8554``, ``unix:///path``.
            old: What log lines before v1.19 add to the address; "" for nothing.
            new: What they add since.
            shares: Whether SO_REUSEADDR is set on a UDP socket.
        """
        self.transport = transport
        self.address = address
        self.old = old
        self.new = new
        self.shares = shares

    def key(self) -> tuple[str, str]:
        """What makes it the same socket after the settings changed."""
        return self.transport, self.address


class Server:
    """One server of MediaMTX's: a name in the log, and its sockets."""

    def __init__(
        self,
        label: str,
        listens: list[Listen],
        *,
        several: bool = False,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        """Describe a server.

        Args:
            label: Its name in the log: ``RTSP``.
            listens: Its sockets, in the order in which the log names them.
            several: Whether its log line since v1.19 says ``listeners``.
            certificate: The files of its key and certificate; None if it does not encrypt.
        """
        self.label = label
        self.listens = listens
        self.several = several
        self.certificate = certificate

    def key(self) -> tuple[object, ...]:
        """What makes it the same server after the settings changed."""
        return (self.label, *(listen.key() for listen in self.listens))

    def in_opening_order(self) -> list[Listen]:
        """Its sockets as they are opened: of RTSP, UDP first."""
        if self.label.startswith("RTSP"):
            return sorted(self.listens, key=lambda listen: listen.transport == TCP)
        return self.listens

    def opened_line(self, version: Version) -> str:
        """What the log says when all its sockets are open."""
        if version >= (1, 19):
            listed = ", ".join(f"{listen.address} ({listen.new})" for listen in self.listens)
            return f"[{self.label}] started with listener{'s' * self.several} on {listed}"
        listed = ", ".join(
            f"{listen.address} ({listen.old})" if listen.old else listen.address
            for listen in self.listens
        )
        return f"[{self.label}] listener opened on {listed}"

    def closed_line(self, version: Version) -> str:
        """What the log says when it is closed."""
        return f"[{self.label}] {'closing' if version >= (1, 19) else 'listener is closing'}"


def plan(settings: Settings, version: Version) -> list[Server]:
    """The servers that these settings ask for, in the order in which they are opened.

    Raises:
        SettingsError: The settings contradict themselves; the text is MediaMTX's own.
    """
    servers = []
    for name, label in (("metrics", "metrics"), ("pprof", "pprof"), ("playback", "playback")):
        if settings.flag(name):
            servers.append(_http(settings, name, label))
    if settings.flag("rtsp"):
        servers += _rtsp(settings)
    if settings.flag("rtmp"):
        encryption = settings.text("rtmpEncryption")
        if encryption != "strict":
            listen = Listen(TCP, settings.text("rtmpAddress"), "", "TCP/RTMP")
            servers.append(Server("RTMP", [listen]))
        if encryption != "no":
            listen = Listen(TCP, settings.text("rtmpsAddress"), "", "TCP/RTMPS")
            servers.append(Server("RTMPS", [listen], certificate=_files(settings, "rtmp")))
    if settings.flag("hls"):
        servers.append(_http(settings, "hls", "HLS"))
    if settings.flag("webrtc"):
        web = _http(settings, "webrtc", "WebRTC")
        web.several = True
        web.listens[0].old = "HTTP"
        if settings.text("webrtcLocalUDPAddress"):
            address = settings.text("webrtcLocalUDPAddress")
            web.listens.append(Listen(UDP, address, "ICE/UDP", "UDP/ICE"))
        if settings.text("webrtcLocalTCPAddress"):
            address = settings.text("webrtcLocalTCPAddress")
            web.listens.append(Listen(TCP, address, "ICE/TCP", "TCP/ICE"))
        servers.append(web)
    if settings.flag("srt"):
        listen = Listen(UDP, settings.text("srtAddress"), "UDP", "UDP/SRT", shares=True)
        servers.append(Server("SRT", [listen]))
    if version >= (1, 19) and settings.flag("moq"):
        listens = [
            Listen(TCP, settings.text("moqHTTP2Address"), "", "TCP/HTTP2"),
            Listen(UDP, settings.text("moqHTTP3Address"), "", "UDP/HTTP3"),
        ]
        if version >= (1, 20):
            listens.append(Listen(UDP, settings.text("moqQUICAddress"), "", "UDP/QUIC"))
        servers.append(Server("MoQ", listens, several=True, certificate=_files(settings, "moq")))
    if settings.flag("api"):
        servers.append(_http(settings, "api", "API"))
    return servers


def _http(settings: Settings, name: str, label: str) -> Server:
    encrypted = settings.flag(f"{name}Encryption")
    listen = Listen(
        TCP, settings.text(f"{name}Address"), "", "TCP/HTTPS" if encrypted else "TCP/HTTP"
    )
    return Server(label, [listen], certificate=_files(settings, name) if encrypted else None)


def _files(settings: Settings, name: str) -> tuple[str, str]:
    return settings.text(f"{name}ServerKey"), settings.text(f"{name}ServerCert")


def _rtsp(settings: Settings) -> list[Server]:
    encryption = settings.text("rtspEncryption")
    transports = settings.items("rtspTransports")
    servers = []
    for secure in (False, True):
        if encryption == ("no" if secure else "strict"):
            continue
        s = "s" if secure else ""
        listens = [
            Listen(TCP, settings.text(f"rtsp{s}Address"), "TCP", "TCP/RTSP" + s.upper()),
        ]
        if "udp" in transports:
            rtp, rtcp = ("srtp", "srtcp") if secure else ("rtp", "rtcp")
            _check_pair(
                _port(UDP, settings.text(f"{rtp}Address")),
                _port(UDP, settings.text(f"{rtcp}Address")),
                "",
            )
            for name in (rtp, rtcp):
                listens.append(
                    Listen(
                        UDP,
                        settings.text(f"{name}Address"),
                        f"UDP/{name.upper()}",
                        f"UDP/{name.upper()}",
                    )
                )
        if "multicast" in transports:
            rtp, rtcp = ("SRTP", "SRTCP") if secure else ("RTP", "RTCP")
            _check_pair(
                settings.number(f"multicast{rtp}Port"),
                settings.number(f"multicast{rtcp}Port"),
                "multicast ",
            )
        servers.append(
            Server(
                "RTSPS" if secure else "RTSP",
                listens,
                several=True,
                certificate=_files(settings, "rtsp") if secure else None,
            )
        )
    return servers


def _check_pair(rtp: int, rtcp: int, which: str) -> None:
    if rtp % 2:
        raise SettingsError(f"{which}RTP port must be even")
    if rtcp != rtp + 1:
        raise SettingsError(f"{which}RTP and RTCP ports must be consecutive")


def open_socket(listen: Listen) -> socket.socket:
    """Open one socket, as Go's net package does.

    Raises:
        ListenError: It cannot be had: ``listen tcp :9997: bind: address already in use``.
    """
    if listen.address.startswith("unix://"):
        return _open_unix(listen.address.removeprefix("unix://"))
    stream = listen.transport == TCP
    host, _ = _split(listen.transport, listen.address)
    port = _port(listen.transport, listen.address)
    family, bound = _resolve(host, port)
    opened = socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            # Without a host one socket takes both, as Go's does.
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(bool(host)))
        if stream or listen.shares:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(bound)
        if stream:
            opened.listen(_BACKLOG)
    except OSError as exc:
        opened.close()
        reason = os.strerror(exc.errno or 0).lower()
        prefix = "listen: " if listen.shares else ""
        raise ListenError(
            f"{prefix}listen {listen.transport} {listen.address}: bind: {reason}"
        ) from exc
    return opened


def _open_unix(path: str) -> socket.socket:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        Path(path).unlink(missing_ok=True)
        opened.bind(path)
        Path(path).chmod(0o755)
        opened.listen(_BACKLOG)
    except OSError as exc:
        opened.close()
        reason = os.strerror(exc.errno or 0).lower()
        raise ListenError(f"listen unix {path}: bind: {reason}") from exc
    return opened


def _split(transport: str, address: str) -> tuple[str, str]:
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ListenError(f"listen {transport}: address {address}: missing port in address")
    return host.removeprefix("[").removesuffix("]"), port


def _port(transport: str, address: str) -> int:
    _, port = _split(transport, address)
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ListenError(f"listen {transport}: lookup {transport}/{port}: unknown port")
    return int(port)


def _resolve(host: str, port: int) -> tuple[int, tuple[str, int]]:
    if not host:
        return (socket.AF_INET6, ("::", port)) if _has_ipv6() else (socket.AF_INET, ("", port))
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ListenError(f"listen tcp: lookup {host}: no such host") from exc
    family, *_, bound = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return family, (str(bound[0]), port)


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
