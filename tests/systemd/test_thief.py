"""Many processes start instances of twelve ports each, where a thief takes ports at random."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.systemd.support import SERVICES, eventually

PROCESSES = 8
STARTS = int(os.environ.get("UNDERSTUDY_THIEF_STARTS", "10"))
"""How many instances each of the processes starts, one after the other."""

RANGE = (20000, 20511)
"""Small enough for the thief to meet instances: 32 blocks, of which eight are in use at a time."""

THEFT_EVERY_S = 0.004

MARGIN_S = 0.3
"""A theft so long before an instance was found ready must have been seen."""

STARTER = """
import json, sys, time
from pathlib import Path
from tests.systemd.support import bound
from understudy.ports import PortRange
from understudy.run import Run

with Run(units=Path(sys.argv[1]), port_range=PortRange(int(sys.argv[2]), int(sys.argv[3]))) as run:
    for _ in range(int(sys.argv[4])):
        asked = time.monotonic()
        with run.spawn("twelve-ports", timeout_s=60) as instance:
            holders = {transport: bound(transport) for transport in ("tcp", "udp")}
            print(json.dumps({
                "unit": instance.unit,
                "number": instance.number,
                "ready": asked + instance.started_in_s,
                "holders": {
                    name: [name[:3], number, sorted(holders[name[:3]].get(number, ()))]
                    for name, number in instance.ports.items()
                },
            }), flush=True)
"""


class Theft(NamedTuple):
    """What the thief says of a port it had."""

    transport: str
    number: int
    kind: str
    bound_s: float
    released_s: float


def test_no_start_fails_and_no_shared_port_is_missed(tmp_path: Path) -> None:
    with thief(tmp_path / "thefts") as thefts:
        outputs = start_all(tmp_path)
    readings = [json.loads(row) for output in outputs for row in output.splitlines()]
    assert len(readings) == PROCESSES * STARTS
    for reading in readings:
        for name, (transport, number, units) in reading["holders"].items():
            assert reading["unit"] in units, f"{name} of {reading['unit']} is not its own"
            if units == [reading["unit"]]:
                continue
            # Somebody else is there: the thief, and only since the instance was found ready.
            since = reading["ready"] - MARGIN_S
            assert any(
                (theft.transport, theft.number) == (transport, number) and theft.bound_s > since
                for theft in thefts
            ), f"{name} of {reading['unit']} is shared with {units}"
            assert not any(
                (theft.transport, theft.number) == (transport, number)
                and theft.bound_s <= since < reading["ready"] < theft.released_s
                for theft in thefts
            ), f"{name} of {reading['unit']} was shared before it was found ready"
    # Every try takes the next number, so these say how often a port was lost and another one won.
    tries = sum(max(json.loads(row)["number"] for row in out.splitlines()) for out in outputs)
    lost = tries - len(readings)
    print(f"{len(readings)} instances, {len(thefts)} thefts, {lost} tries lost to them")
    assert lost > 0, "the thief met nobody: this has tested nothing"
    assert {theft.kind for theft in thefts} == {"plain", "SO_REUSEADDR", "SO_REUSEPORT"}


@contextmanager
def thief(log: Path) -> Iterator[list[Theft]]:
    """A thief at work; afterwards the list has all that it took."""
    thefts: list[Theft] = []
    program = Path(__file__).with_name("thief.py")
    # A file and no pipe: nobody reads before the end, and a full pipe would stop the thief.
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, str(program), *map(str, RANGE), str(THEFT_EVERY_S)], stdout=output
        )
    try:
        assert eventually(lambda: log.read_text())
        yield thefts
    finally:
        process.terminate()
        process.wait()
        thefts += [Theft(*json.loads(row)) for row in log.read_text().splitlines()[1:]]


def start_all(folder: Path) -> list[str]:
    """Let all processes start their instances, and give what each has seen of them."""
    starters = []
    for number in range(PROCESSES):
        with (
            (folder / f"{number}.out").open("w") as output,
            (folder / f"{number}.err").open("w") as errors,
        ):
            starters.append(
                subprocess.Popen(
                    [sys.executable, "-c", STARTER, str(SERVICES), *map(str, RANGE), str(STARTS)],
                    stdout=output,
                    stderr=errors,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                )
            )
    codes = [starter.wait() for starter in starters]
    said = "".join(path.read_text() for path in folder.glob("*.err"))
    assert codes == [0] * PROCESSES, said
    return [path.read_text() for path in folder.glob("*.out")]
