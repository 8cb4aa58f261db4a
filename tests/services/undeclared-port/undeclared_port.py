"""Bind the port, and one more of the kernel's choice that nobody was told of."""

import os
import signal
import socket

second = socket.create_server(("127.0.0.1", 0))
print(f"second listener on port {second.getsockname()[1]}", flush=True)
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
signal.pause()
