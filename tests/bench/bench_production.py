"""What it costs to share production: lease, path, fingerprint, a call of the control API.

Run it as ``python tests/bench/bench_production.py [ROUNDS]`` on a machine with a systemd manager
(a bed will do). It plays production itself, with the stand-in MediaMTX as a unit of the caller's
manager, and prints medians in milliseconds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from understudy import paths
from understudy.lead import production
from understudy.leases import holders

ROUNDS = 20
UNIT = "bench-lead-mediamtx.service"


def main(rounds: int = ROUNDS) -> None:
    """Measure and print.

    Args:
        rounds: How often each is done.
    """
    with ExitStack() as undo:
        _play_production(undo)
        lead = production("mediamtx", unit=UNIT, timeout_s=30)
        before = lead.fingerprint()

        def path() -> None:
            lead.path("cam0", test="bench").close()

        _print("GET of the control API", _medians(rounds, lead.api.info))
        _print("look at who has a lease", _medians(rounds, lambda: holders(lead.lease_key)))
        _print("shared lease, taken and given back", _medians(rounds, lambda: lead.lease().close()))
        _print(
            "exclusive lease, taken and given back",
            _medians(rounds, lambda: lead.lease(exclusive=True).close()),
        )
        _print("path, added and removed, with its lease", _medians(rounds, path))
        with lead.lease():
            _print("path, added and removed, under a lease", _medians(rounds, path))
            _print(
                "second lease of the same process", _medians(rounds, lambda: lead.lease().close())
            )
        _print("fingerprint", _medians(rounds, lead.fingerprint))
        _print("fingerprint, compared", _medians(rounds, lambda: str(lead.compare(before))))
        with lead.lease() as lease:
            counter = count()

            def reserve() -> None:
                name = f"{lease.id}/bench-{next(counter)}"
                paths.reserve(lead.api, lease, name, run=lease.id).remove()

            _print("prefix for an instance, reserved and removed", _medians(rounds, reserve))


def _play_production(undo: ExitStack) -> None:
    folder = Path(undo.enter_context(tempfile.TemporaryDirectory()))
    config = folder / "mediamtx.yml"
    config.write_text("api: yes\npaths:\n  all_others:\n")
    user = ["--user"] if os.geteuid() else []
    command = ["systemd-run", *user, "--quiet", "--collect", f"--unit={UNIT}"]
    program = [sys.executable, "-m", "understudy.standins.mediamtx", str(config)]
    subprocess.run([*command, "--property=Type=exec", *program], check=True)
    undo.callback(subprocess.run, ["systemctl", *user, "stop", UNIT], check=True)


def _medians(rounds: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def _print(name: str, milliseconds: float) -> None:
    print(f"{milliseconds:8.2f}  {name}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
