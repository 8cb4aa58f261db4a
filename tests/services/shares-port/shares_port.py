"""Bind the port with SO_REUSEPORT: under one user ID it starts beside another holder."""

import os
import signal
import socket

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), reuse_port=True)
print(f"listening on port {listener.getsockname()[1]}", flush=True)
signal.pause()
