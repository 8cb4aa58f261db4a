"""``python -m understudy.standins.mediamtx``."""

from __future__ import annotations

import sys

from understudy.standins.mediamtx.server import main

sys.exit(main(sys.argv[1:]))
