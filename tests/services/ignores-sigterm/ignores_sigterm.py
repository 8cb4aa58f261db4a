"""Bind the port, and go on when told to end."""

import os
import signal
import socket

signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
while True:
    signal.pause()
