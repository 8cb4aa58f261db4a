"""What private networks cost: 100 instances on one port, and what goes through a proxy.

Run it in a bed, as root and as a user: ``python tests/bench/bench_private.py [COUNT [ROUNDS]]``
(100 and 3 unless told). The service is a few lines of Perl, up in some milliseconds, that insist
on port 8003 and answer with the number of their process; on the host it is told a port. The sides
take turns.

After it, one instance that sends as much as it is asked for: requests and bytes a second to it on
the host, through the proxy that publishes it, and through the one by which it is let in elsewhere.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from understudy import network
from understudy.instance import Instance
from understudy.manager import connect
from understudy.netns import Namespace
from understudy.run import Run

COUNT = 100
ROUNDS = 3
LIMIT_S = 300.0
REQUESTS = 2000
MEGABYTES = 512

SERVER = (
    "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1); "
    "bind(S, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die; listen(S, 99); "
    "while (accept(C, S)) { sysread(C, $_, 99); syswrite(C, $$); close(C) }"
)
ECHO = """
import socket, sys, threading
def serve(connection):
    block = bytes(1 << 16)
    with connection:
        while asked := connection.recv(64):
            if asked == b"?":
                connection.sendall(b"!")
                continue
            for _ in range(int(asked) * 16):
                connection.sendall(block)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
CLIENT = """
import socket, statistics, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    took = []
    for _ in range(int(sys.argv[2])):
        began = time.perf_counter()
        connection.sendall(b"?")
        connection.recv(1)
        took.append(time.perf_counter() - began)
    megabytes = int(sys.argv[3])
    left = megabytes << 20
    began = time.perf_counter()
    connection.sendall(str(megabytes).encode())
    while left:
        left -= len(connection.recv(1 << 20))
    speed = megabytes / (time.perf_counter() - began)
opening = []
for _ in range(200):
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.sendall(b"?")
        connection.recv(1)
    opening.append(time.perf_counter() - began)
print(statistics.median(took) * 1e6, statistics.median(opening) * 1e6, speed)
"""


def ask(instance: Instance) -> str:
    """What one instance answers."""
    with socket.create_connection(("127.0.0.1", instance.ports["http"]), 30) as connection:
        connection.sendall(b"?")
        return connection.recv(99).decode()


def many(count: int, *, private: bool) -> float:
    """Milliseconds until all of them answer, each by itself."""
    port = "http:8003" if private else "http"
    with Run(timeout_s=LIMIT_S) as run:
        request = run.request(
            exec=["/usr/bin/perl", "-e", SERVER, "{port.http}"],
            ports=[port],
            network="private" if private else "host",
        )
        began = time.perf_counter()
        instances = run.spawn_many([request] * count)
        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(ask, instances))
        took = (time.perf_counter() - began) * 1000
    if len(set(answers)) != count:
        sys.exit(f"{len(set(answers))} of {count} answered")
    return took


def measure_many(count: int, rounds: int) -> None:
    """Private and host instances in turns."""
    took: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        for private in (True, False):
            took[private].append(many(count, private=private))
    private_ms, host_ms = (statistics.median(took[private]) for private in (True, False))
    print(f"{count} instances until all answer, {connect().kind} manager, {rounds} rounds, median")
    print(f"  private, all on port 8003: {private_ms:6.0f} ms, {private_ms / count:.1f} each")
    print(f"  in the host's network:     {host_ms:6.0f} ms, {host_ms / count:.1f} each")
    print(f"  ratio: {private_ms / host_ms:.2f}")


def client(enter: list[str], port: int) -> list[float]:
    """Round trip and connection in µs, and MB/s, to a port; in a network that is entered before."""
    command = [*enter, sys.executable, "-c", CLIENT, str(port), str(REQUESTS), str(MEGABYTES)]
    return [float(word) for word in subprocess.check_output(command, text=True).split()]


def measure_proxies(rounds: int) -> None:
    """The same server directly, published, and let in."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, Run(timeout_s=LIMIT_S) as run:
        script = Path(name, "echo.py")
        script.write_text(ECHO)
        script.parent.chmod(0o755)
        command = [sys.executable, str(script), "{port.tcp}"]
        host = run.spawn(exec=command, ports=["tcp"])
        private = run.spawn(exec=command, ports=["tcp:8003"], network="private")
        enter = ["nsenter", f"--target={private.pid}", "--net"]
        if os.geteuid():
            enter += ["--user", "--preserve-credentials"]
        with Namespace.of(private.pid) as space:
            target = {8004: f"127.0.0.1:{host.ports['tcp']}"}
            network.let_in(run.manager, run.id, space, target)
        sides: Mapping[str, Callable[[], list[float]]] = {
            "directly": lambda: client([], host.ports["tcp"]),
            "directly, inside": lambda: client(enter, 8003),
            "published": lambda: client([], private.ports["tcp"]),
            "let in": lambda: client(enter, 8004),
        }
        found: dict[str, list[list[float]]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, run_side in sides.items():
                found[side].append(run_side())
    print(f"{'':18}{'round trip':>12}{'connect and one':>18}{'throughput':>14}")
    for side, rows in found.items():
        trip, opening, speed = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{side:18}{trip:9.0f} µs{opening:15.0f} µs{speed:9.0f} MB/s")


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    wanted, repeated = (*given, *(COUNT, ROUNDS)[len(given) :])
    print(f"{os.cpu_count()} processors")
    measure_many(wanted, repeated)
    measure_proxies(repeated)
