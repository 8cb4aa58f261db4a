"""What restarts of production cost whoever asks it meanwhile, with its sockets held by systemd.

Run it as root on a host to throw away (a bed will do), for it deploys the camera service there:
``python tests/bench/bench_restart.py [RESTARTS] [REQUESTS_A_SECOND]``. It restarts the stand-in of
a camera service that takes its sockets, one restart after the other, asks for its health at an even
rate all the while, a connection each, and prints what became of every request. Then the same of the
camera service as it is, which opens its ports by itself.
"""

from __future__ import annotations

import asyncio
import collections
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RESTARTS = 100
RATE = 200
LIMIT_S = 60.0
"""What is not answered then never will be."""

UNIT = "camera-service.service"
SOCKETS = ("camera-service-websocket.socket", "camera-service-health.socket")
PORT = 8003
STANDIN = "understudy.standins.camera_service"
ROOT = Path("/opt/camera-service")
VALUES = {
    "camera-service-activated": {"program": f"{sys.executable} -m {STANDIN} --activated"},
    "camera-service": {"python": sys.executable, "module": STANDIN},
}


def main(restarts: int = RESTARTS, rate: int = RATE) -> None:
    """Measure and print.

    Args:
        restarts: How often it is restarted.
        rate: Requests a second.
    """
    for service in VALUES:
        deploy(service)
        try:
            sockets = [_show(socket, "InvocationID") for socket in SOCKETS]
            began = time.monotonic()
            outcomes, times_s = asyncio.run(_both(restarts, rate))
            took_s = time.monotonic() - began
            print(f"{service}: {restarts} restarts, {took_s / restarts:.2f} s each")
            print(f"{service}: {rate} requests a second, {sum(outcomes.values())} sent")
            for outcome, count in outcomes.most_common():
                print(f"{service}: {outcome}: {count}")
            times_ms = [1000 * one for one in sorted(times_s)]
            print(
                f"{service}: answered in {statistics.median(times_ms):.1f} ms at the median, "
                f"{times_ms[-1]:.0f} ms at most"
            )
            if service == "camera-service-activated":
                same = sockets == [_show(socket, "InvocationID") for socket in SOCKETS]
                print(f"{service}: sockets {'the same all the while' if same else 'LOST'}")
        finally:
            withdraw(service)


def deploy(service: str) -> None:
    """Deploy one of them, with the stand-in in its place."""
    (ROOT / "config").mkdir(parents=True, exist_ok=True)
    (ROOT / "config/camera-service.yaml").write_text(f"health_port: {PORT}\n")
    words = [word for pair in VALUES[service].items() for word in ("--set", "=".join(pair))]
    _run(sys.executable, "-m", "understudy", "deploy", service, *words)


def withdraw(service: str) -> None:
    """Take it away again."""
    _run(sys.executable, "-m", "understudy", "withdraw", service, "--purge")


async def _both(restarts: int, rate: int) -> tuple[collections.Counter[str], list[float]]:
    """Restart and ask at the same time: outcomes by what they were, and the answers' times."""
    over = asyncio.Event()
    asking = asyncio.create_task(_ask_evenly(rate, over))
    try:
        for _ in range(restarts):
            process = await asyncio.create_subprocess_exec("systemctl", "restart", UNIT)
            assert await process.wait() == 0, f"cannot restart {UNIT}"
    finally:
        over.set()
    return await asking


async def _ask_evenly(
    rate: int, over: asyncio.Event
) -> tuple[collections.Counter[str], list[float]]:
    outcomes: collections.Counter[str] = collections.Counter()
    times_s: list[float] = []
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    began = loop.time()
    sent = 0
    while not over.is_set():
        # Those that are late because this process was busy are sent as well.
        while sent < (loop.time() - began) * rate:
            task = asyncio.create_task(_ask(outcomes, times_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        await asyncio.sleep(1 / rate)
    if tasks:
        await asyncio.wait(tasks)
    return outcomes, times_s


async def _ask(outcomes: collections.Counter[str], times_s: list[float]) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            try:
                writer.write(b"GET /health/ready HTTP/1.0\r\n\r\n")
                answer = await reader.read()
            finally:
                writer.close()
    except TimeoutError:
        outcomes["no answer in time"] += 1
    except OSError as exc:
        outcomes[exc.strerror or type(exc).__name__] += 1
    else:
        words = answer.split()
        if words:
            outcomes[f"HTTP {words[1].decode()}"] += 1
            times_s.append(loop.time() - began)
        else:
            outcomes["closed without an answer"] += 1


def _show(unit: str, name: str) -> str:
    return _run("systemctl", "show", "--value", f"--property={name}", unit)


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def _numbers(words: Sequence[str]) -> list[int]:
    return [int(word) for word in words]


if __name__ == "__main__":
    main(*_numbers(sys.argv[1:]))
