"""Bind twelve ports, one after the other as a media server does, and end with 1 if one is taken."""

import os
import signal
import socket
import sys

KINDS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}

# The last two of each share their port: UDP ones as SRT does, TCP ones as camera services do.
SHARING = {
    **dict.fromkeys(("TCP_5", "TCP_6"), socket.SO_REUSEPORT),
    **dict.fromkeys(("UDP_5", "UDP_6"), socket.SO_REUSEADDR),
}

opened = []
for name in (f"{kind}_{number}" for kind in KINDS for number in range(1, 7)):
    one = socket.socket(socket.AF_INET, KINDS[name[:3]])
    if name in SHARING:
        one.setsockopt(socket.SOL_SOCKET, SHARING[name], 1)
    try:
        one.bind(("127.0.0.1", int(os.environ[name])))
        if one.type == socket.SOCK_STREAM:
            one.listen()
    except OSError as exc:
        sys.exit(f"{name}: {exc}")
    opened.append(one)
signal.pause()
