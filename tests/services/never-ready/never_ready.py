"""Run, and never bind the port."""

import signal

print("waiting for a camera that never comes", flush=True)
signal.pause()
