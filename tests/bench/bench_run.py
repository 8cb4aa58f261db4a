"""What ``understudy run --network private`` costs, with four of production's ports let in.

Run it where there is a systemd, as root for the system manager, as anybody else for the own user
manager: ``python tests/bench/bench_run.py [ROUNDS]`` (30 unless told). It plays production itself,
on four of MediaMTX's ports, which have to be free. All take turns, with the Python that runs this.

What Python takes to import is what the very command has imported, in a process of its own.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

ROUNDS = 30
PORTS = {"api": 9997, "rtsp": 8554, "hls": 8888, "webrtc": 8889}
WHOLE_TARGET = 2.5
REST_TARGET = 2.0

ROOT = os.geteuid() == 0
RUN = ["run", "--network", "private", "--through", "mediamtx", "--", "true"]
SCOPE = ["systemd-run", *([] if ROOT else ["--user"]), "--scope", "--quiet", "--collect"]

LIST = """
import atexit, pathlib, sys
at_start = set(sys.modules)
from understudy.cli import main
def names():
    own = {name: module for name, module in sys.modules.items() if name not in at_start}
    return [name for name, module in own.items() if getattr(module, "__spec__", None)]
atexit.register(lambda: pathlib.Path(sys.argv[1]).write_text("\\n".join(names())))
main(sys.argv[2:])
"""


def imported() -> list[str]:
    """The modules that the command has imported when it ends, in order."""
    with tempfile.NamedTemporaryFile("r") as file:
        subprocess.run([sys.executable, "-c", LIST, file.name, *RUN], check=True)
        return [
            name
            for name in Path(file.name).read_text().splitlines()
            # pystemd's package is imported around its __init__ (manager/dbus.py).
            if not name.startswith("pystemd")
        ]


def alternatives(modules: Sequence[str]) -> dict[str, list[str]]:
    """What is compared, as command lines by name."""
    imports = "; ".join(f"import {name}" for name in modules)
    own_user = [] if ROOT else ["--map-current-user"]
    return {
        "understudy --help": [sys.executable, "-m", "understudy", "--help"],
        "python -c (its imports)": [sys.executable, "-c", imports],
        "systemd-run --scope unshare": [*SCOPE, "unshare", "--net", *own_user, "true"],
        "understudy run -- true": [sys.executable, "-m", "understudy", "run", "--", "true"],
        "… --network private, 4 ports": [sys.executable, "-m", "understudy", *RUN],
        "python -c pass": [sys.executable, "-c", "pass"],
    }


def main(rounds: int) -> None:
    """Measure and print."""
    with ExitStack() as undo:
        for port in PORTS.values():
            undo.enter_context(socket.create_server(("127.0.0.1", port)))
        commands = alternatives(imported())
        took: dict[str, list[float]] = {name: [] for name in commands}
        for round_ in range(rounds + 1):
            for name in random.sample([*commands], len(commands)):
                began = time.perf_counter()
                subprocess.run(commands[name], stdout=subprocess.DEVNULL, check=True)
                if round_:  # the first round only warms up
                    took[name].append((time.perf_counter() - began) * 1000)
    median = {name: statistics.median(times) for name, times in took.items()}
    shown, imports, scope, _host, private, _python = median.values()
    manager = "system" if ROOT else "user"
    print(f"{rounds} rounds, {manager} manager{'median ms':>24}{'/ --help':>10}")
    for name, value in median.items():
        print(f"{name:32}{value:12.1f}{value / shown:10.2f}")
    print(f"private / --help: {private / shown:.2f} (target: at most {WHOLE_TARGET:g})")
    rest = private - imports
    print(
        f"private without its imports: {rest:.1f} ms, {rest / scope:.2f} x systemd-run --scope "
        f"unshare (target: at most {REST_TARGET:g})"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)
