"""What a search for second copies costs: what a test run pays for it at its beginning.

Run it as ``python tests/bench/bench_strays.py``. It prints the median of many searches on this host
as it is, in milliseconds, and what the first one in a process takes with its imports.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 50


def main() -> None:
    """Measure and print."""
    begin = time.perf_counter()
    from understudy.strays import singletons_of, strays

    imported_ms = (time.perf_counter() - begin) * 1000
    first_ms = _timed(strays)
    known = singletons_of()
    searches = [_timed(lambda: strays(known)) for _ in range(ROUNDS)]
    wholes = [_timed(strays) for _ in range(ROUNDS)]
    processes = sum(1 for one in Path("/proc").iterdir() if one.name.isdigit())
    print(f"{'ms':>8}  among {processes} processes (median of {ROUNDS})")
    print(f"{statistics.median(searches):8.2f}  search")
    print(f"{statistics.median(wholes):8.2f}  search, definitions and installed units looked at")
    print(f"{first_ms:8.2f}  the first in a process: definitions read and rendered")
    print(f"{imported_ms:8.2f}  import")


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000


if __name__ == "__main__":
    main()
