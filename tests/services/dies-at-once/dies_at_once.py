"""Say why on both outputs, and end with status 3."""

import sys

print("reading the settings", flush=True)
print("no camera is connected", file=sys.stderr)
sys.exit(3)
