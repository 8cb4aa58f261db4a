"""A thief of ports: binds random ones of a range for a short time. Run by test_thief.py.

It writes a line for each port that it had: transport, number, the kind of its socket, when it
was bound and when it was let go (CLOCK_MONOTONIC seconds). SIGTERM ends it.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import signal
import socket
import sys
import time

KINDS = {
    "plain": (),
    "SO_REUSEADDR": (socket.SO_REUSEADDR,),
    "SO_REUSEPORT": (socket.SO_REUSEPORT,),
}
TRANSPORTS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
BRIEFLY_S = (0.005, 0.05)
LONG_S = (0.4, 1.0)


def main(first: int, last: int, pause_s: float) -> None:
    """Steal until told to end."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: ended.append(number))
    held: list[tuple[float, socket.socket, list[object]]] = []
    chance = random.Random(8003)
    print("ready", flush=True)
    while not ended:
        now = time.monotonic()
        for item in [item for item in held if item[0] <= now]:
            release(*item[1:])
            held.remove(item)
        transport = chance.choice(list(TRANSPORTS))
        kind = chance.choice(list(KINDS))
        number = chance.randint(first, last)
        one = socket.socket(socket.AF_INET, TRANSPORTS[transport])
        for option in KINDS[kind]:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        with contextlib.suppress(OSError):
            one.bind(("127.0.0.1", number))
            if transport == "tcp":
                one.listen()
            until = now + chance.uniform(*chance.choice((BRIEFLY_S, LONG_S)))
            held.append((until, one, [transport, number, kind, time.monotonic()]))
        select.select([], [], [], pause_s)
    for _until, one, record in held:
        release(one, record)


def release(one: socket.socket, record: list[object]) -> None:
    """Let a port go, and say that it was held."""
    one.close()
    print(json.dumps([*record, time.monotonic()]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
