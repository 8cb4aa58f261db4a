"""The camera service of this checkout. What it does is that of understudy's stand-in."""

import sys

from understudy.standins.camera_service import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
