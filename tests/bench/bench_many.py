"""What many instances at once cost beside a bare loop over D-Bus, and their end beside a slice's.

Run it in a bed, as root and as a user: ``python tests/bench/bench_many.py [COUNT [ROUNDS]]`` (200
and 5 unless told; needs pystemd). Both sides start the same units on the same manager:

- ``spawn_many``: claims ports, derives and writes the files, starts, looks whether each instance
  holds its port, it alone. Its end is ``Run.stop``: guard, units, slice, files, directories.
- ``by hand``: a StartUnit for each of files that lie there already, and waiting for the jobs. Its
  end is stopping the slice that they are in, with a wait for its job; no file is removed.

The service is a Perl one-liner that holds one TCP port, up in some milliseconds, and once more
``sleep``, which has no port at all. The sides take turns.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
import time
from collections.abc import Sequence

from understudy import derive, instance, ports
from understudy.manager import Manager, connect
from understudy.model import Engine, Part
from understudy.run import Run, ad_hoc

COUNT = 200
ROUNDS = 5
LIMIT_S = 300.0
BY_HAND_FROM = 1_000_000

HOLDER = (
    "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); "
    "bind(S, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die; listen(S, 9); sleep"
)
HOLDS_A_PORT = (["/usr/bin/perl", "-e", HOLDER, "{port.tcp}"], ["tcp"])
SLEEPS: tuple[list[str], list[str]] = (["/bin/sleep", "infinity"], [])
START_TARGET, STOP_TARGET = 1.4, 1.5


def spawn_many(manager: Manager, command: list[str], names: list[str], count: int) -> list[float]:
    """Milliseconds of start and end, by the toolkit."""
    with Run(manager=manager, engine=Engine.FILES, timeout_s=LIMIT_S) as run:
        request = run.request(exec=command, ports=names)
        began = time.perf_counter()
        run.spawn_many([request] * count)
        started = time.perf_counter()
        run.stop()
        return [(started - began) * 1000, (time.perf_counter() - started) * 1000]


def by_hand(manager: Manager, command: list[str], names: list[str], count: int) -> list[float]:
    """Milliseconds of start and end, of files that lie there already."""
    service = ad_hoc(command, names)
    allocator = ports.Allocator(ports.configured_range())
    claimed = allocator.claim_many([service.ports.values()] * count)
    with Run(manager=manager) as run:  # for its guard, to which the units are bound, and its slice
        units = []
        for number, (_claim, numbers) in enumerate(claimed, start=BY_HAND_FROM):
            part = Part(
                run=run.id,
                number=number,
                kind=manager.kind,
                runtime_dir=str(manager.runtime_dir),
                ports=numbers,
            )
            derived = derive.derive(service, part)
            instance.write_files(manager, derived)
            units.append(derived.unit)
        began = time.perf_counter()
        start_and_wait(manager, units)
        started = time.perf_counter()
        manager.stop([run.slice], timeout_s=LIMIT_S)
        ended = time.perf_counter()
    for claim, _numbers in claimed:
        claim.close()
    return [(started - began) * 1000, (ended - started) * 1000]


def start_and_wait(manager: Manager, units: Sequence[str]) -> None:
    """A StartUnit for each, then the end of each job."""
    jobs = manager.start(units)
    waiting = set(units)
    deadline = time.monotonic() + LIMIT_S
    while waiting:
        for unit, word in jobs.wait(1.0):
            if word != "done":
                sys.exit(f"{unit}: {word}")
            waiting.discard(unit)
        if time.monotonic() > deadline:
            sys.exit(f"{len(waiting)} units did not start")
    jobs.close()


def measure(title: str, command: list[str], names: list[str], count: int, rounds: int) -> None:
    """Let the sides take turns, and print."""
    manager = connect(prefer="dbus")
    sides = {"spawn_many": spawn_many, "by hand": by_hand}
    took: dict[str, list[list[float]]] = {side: [] for side in sides}
    for round_ in range(rounds + 1):
        for side in random.sample([*sides], len(sides)):
            times = sides[side](manager, command, names, count)
            if round_:  # the first round only warms up
                took[side].append(times)
    print(f"\n{count} x {title}, {manager.kind} manager, {rounds} rounds")
    print(f"{'median ms':12}{'start':>10}{'each':>8}{'end':>10}")
    medians = {}
    for side, pairs in took.items():
        start, end = (statistics.median(column) for column in zip(*pairs, strict=True))
        medians[side] = start, end
        print(f"{side:12}{start:10.0f}{start / count:8.2f}{end:10.0f}")
    start, end = (ours / theirs for ours, theirs in zip(*medians.values(), strict=True))
    print(f"start: {start:.2f} (target: at most {START_TARGET})")
    print(f"end: {end:.2f} (target: under {STOP_TARGET})")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    wanted, repeated = (*given, *(COUNT, ROUNDS)[len(given) :])
    print(f"{os.cpu_count()} processors")
    measure("a holder of one port", *HOLDS_A_PORT, wanted, repeated)
    measure("sleep", *SLEEPS, wanted, repeated)
