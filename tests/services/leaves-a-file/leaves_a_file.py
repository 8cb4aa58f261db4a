"""Bind the port, and leave a file where nobody cleans up."""

import os
import signal
import socket
from pathlib import Path

name = f"left-by-{os.environ.get('UNDERSTUDY_RUN', 'nobody')}-{os.getpid()}"
(Path(os.environ["PLACE"]) / name).write_text("a leftover\n")
listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
signal.pause()
