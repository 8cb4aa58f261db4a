"""What ``understudy --help`` costs beside a Python that imports click and nothing else.

Run it anywhere: ``python tests/bench/bench_help.py [ROUNDS]`` (40 unless told). The two take
turns, with the Python that runs this.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time

ROUNDS = 40
TARGET = 2.0

COMMANDS = {
    "python -c 'import click'": [sys.executable, "-c", "import click"],
    "understudy --help": [sys.executable, "-m", "understudy", "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def main(rounds: int) -> None:
    """Measure and print."""
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(rounds + 1):
        for name in random.sample([*COMMANDS], len(COMMANDS)):
            began = time.perf_counter()
            subprocess.run(COMMANDS[name], stdout=subprocess.DEVNULL, check=True)
            if round_:  # the first round only warms up
                took[name].append((time.perf_counter() - began) * 1000)
    base, *_ = medians = [statistics.median(times) for times in took.values()]
    print(f"{rounds} rounds{'median ms':>25}{'ratio':>8}")
    for name, median in zip(took, medians, strict=True):
        print(f"{name:26}{median:8.1f}{median / base:8.2f}")
    print(f"understudy --help / import click: {medians[1] / base:.2f} (target: at most {TARGET:g})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)
