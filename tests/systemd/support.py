"""What the tests on real managers look with: systemctl, ss, /proc and the file system.

Nothing here uses the toolkit, so what it gets wrong about itself is seen all the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from websockets import connect

_T = TypeVar("_T")

ROOT = os.geteuid() == 0
RUNTIME = Path("/run" if ROOT else f"/run/user/{os.geteuid()}")
UNIT_DIR = RUNTIME / "systemd" / ("system" if ROOT else "user")
TRANSIENT_DIR = RUNTIME / "systemd/transient"

HERE = Path(__file__).parent
SERVICES = HERE.parent / "services"

MEDIAMTX = {"program": f"{sys.executable} -m understudy.standins.mediamtx"}
"""Values that put the stand-in in MediaMTX's place."""
REAL = os.environ.get("UNDERSTUDY_MEDIAMTX")
ANY_MEDIAMTX = {"program": REAL} if REAL else MEDIAMTX
"""The real one where there is one; what production is, and what shares it is tested with."""
CAMERA_FILE = Path("/opt/camera-service/config/camera-service.yaml")
CAMERA_SERVICE = {
    "root": "/",
    "python": sys.executable,
    "module": "understudy.standins.camera_service",
}
ACTIVATED = {
    "root": "/",
    "program": f"{sys.executable} -m understudy.standins.camera_service --activated",
}

TWELVE = {
    **dict.fromkeys(("api", "rtsp", "rtmp", "hls", "webrtc", "moq"), "tcp"),
    **dict.fromkeys(("rtp", "rtcp", "webrtc-udp", "srt", "moq-udp", "moq-quic"), "udp"),
}
"""The ports that a MediaMTX instance opens, with their transports."""

SOON_S = 30.0
"""How long to wait for what happens by itself, before that is a failure."""


def require(met: bool, reason: str) -> None:
    """Skip where this machine lacks something; fail where it must not (CI)."""
    if not met:
        if os.environ.get("UNDERSTUDY_REQUIRE_ALL") == "1":
            pytest.fail(f"missing here, with UNDERSTUDY_REQUIRE_ALL=1: {reason}")
        pytest.skip(reason)


def require_throwaway() -> None:
    """Demand a host that is thrown away afterwards, as a bed is: the test changes it."""
    kind = subprocess.run(
        ["systemd-detect-virt", "--container"], capture_output=True, text=True, check=False
    ).stdout.strip()
    require(kind == "systemd-nspawn", f"this host is for keeps ({kind}); see: understudy bed")


def eventually(look: Callable[[], _T], *, timeout_s: float = SOON_S) -> _T:
    """The first true answer of `look`, or its last."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.001
    while not (answer := look()) and time.monotonic() < deadline:
        select.select([], [], [], pause_s)
        pause_s = min(2 * pause_s, 0.1)
    return answer


def systemctl(*arguments: str, check: bool = True) -> str:
    """What systemctl prints, of the manager that the tests use."""
    whose = [] if ROOT else ["--user"]
    done = subprocess.run(
        ["systemctl", *whose, "--no-pager", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "XDG_RUNTIME_DIR": str(RUNTIME)},
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"systemctl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def show(unit: str, *names: str) -> dict[str, str]:
    """Properties of a unit; all of them where none is named."""
    rows = systemctl("show", "--all", unit, *(f"--property={name}" for name in names))
    return dict(row.split("=", 1) for row in rows.splitlines() if "=" in row)


def units(pattern: str = "understudy-*") -> set[str]:
    """Every unit of that name that the manager has in memory, failed ones included."""
    rows = systemctl("list-units", "--all", "--plain", "--no-legend", pattern).splitlines()
    return {row.split()[0] for row in rows}


def files() -> set[Path]:
    """Unit files and directories of runs."""
    found = {path for where in (UNIT_DIR, TRANSIENT_DIR) for path in where.glob("understudy-*")}
    found |= set(UNIT_DIR.glob("*.wants/understudy-*"))
    for where in (RUNTIME / "understudy", RUNTIME / "private/understudy"):
        found |= set(where.glob("*"))
    return found


def processes(within: str = "/understudy.slice/") -> set[tuple[int, str]]:
    """Number and name of each process below the slice of all runs, or in another cgroup."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cgroup = (process / "cgroup").read_text().splitlines()[-1] + "/"
            name = (process / "comm").read_text().strip()
        except OSError:
            continue  # it has just ended
        if within in cgroup:
            found.add((int(process.name), name))
    return found


def abstract_sockets() -> set[str]:
    """The names that say to all users which runs live and which ports are claimed."""
    return set(re.findall(r"@understudy/\S+", Path("/proc/net/unix").read_text()))


def traces() -> set[str]:
    """All that there is of runs, each with a word on what it is."""
    return {
        *(f"unit {unit}" for unit in units()),
        *(f"file {path}" for path in files()),
        *(f"process {number} {name}" for number, name in processes()),
        *(f"socket {name}" for name in abstract_sockets()),
    }


def left_since(before: set[str], *, timeout_s: float = SOON_S) -> set[str]:
    """What there is now that was not there before; waits for what is just ending."""
    eventually(lambda: not traces() - before, timeout_s=timeout_s)
    return traces() - before


def bound(transport: str) -> dict[int, set[str]]:
    """By port: the units in whose cgroups somebody has bound it, as ss(8) tells."""
    option = {"tcp": "-Hltn", "udp": "-Hlun"}[transport]
    for _ in range(5):
        rows = subprocess.run(
            ["ss", option, "--cgroup"], capture_output=True, text=True, check=True
        ).stdout
        # Its walk through the cgroups can miss one while others come and go.
        if "cgroup:unreachable" not in rows:
            break
    found: dict[int, set[str]] = {}
    for row in rows.splitlines():
        port = int(row.split()[3].rpartition(":")[2])
        cgroup = re.search(r"cgroup:(\S+)", row)
        unit = cgroup[1].rpartition("/")[2] if cgroup else "(no cgroup)"
        found.setdefault(port, set()).add(unit)
    return found


def bound_by(unit: str) -> set[tuple[str, int]]:
    """The ports that a unit has bound."""
    return {
        (transport, port)
        for transport in ("tcp", "udp")
        for port, holders in bound(transport).items()
        if unit in holders
    }


def holders(transport: str, port: int) -> set[str]:
    """The units that have bound a port."""
    return bound(transport).get(port, set())


def get(url: str) -> str:
    """The body of a GET, through no proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=SOON_S) as answer:
        return str(answer.read().decode())


def call(url: str, method: str, **parameters: str) -> Any:
    """The result of one JSON-RPC call over a WebSocket."""

    async def exchange() -> str | bytes:
        async with asyncio.timeout(SOON_S), connect(url) as connection:
            request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
            await connection.send(json.dumps(request))
            return await connection.recv()

    answer = json.loads(asyncio.run(exchange()))
    assert "result" in answer, answer
    return answer["result"]


def understudy(
    *arguments: str | Path,
    code: int | None = 0,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; `code` is the exit code that it must have, None for any."""
    done = subprocess.run(
        command_line(*arguments),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=120,
        check=False,
    )
    if code is not None:
        said = f"{' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}"
        assert done.returncode == code, said
    return done


def command_line(*arguments: str | Path) -> list[str]:
    """The command's argv, in the environment that the tests run in."""
    return [sys.executable, "-m", "understudy", *map(str, arguments)]


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process that can import the toolkit, with its output in a pipe."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def sets(values: Mapping[str, str]) -> Sequence[str]:
    """Values as options: ``--set NAME=VALUE``."""
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def killed(process: subprocess.Popen[str]) -> None:
    """SIGKILL a process, and take its end."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


@contextmanager
def terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command in the foreground of a terminal of its own, and what is behind its screen."""
    screen, tty = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *command_line(*arguments)], stdin=tty, stdout=tty, stderr=tty
    )
    os.close(tty)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def read_until(descriptor: int, mark: bytes) -> bytes:
    """Read until this has come."""
    said = b""
    while mark not in said:
        readable, _, _ = select.select([descriptor], [], [], SOON_S)
        assert readable, f"waited in vain for {mark!r} after {said!r}"
        try:
            chunk = os.read(descriptor, 4096)
        except OSError:  # how a terminal says that nobody is left
            chunk = b""
        assert chunk, f"ended before {mark!r}: {said!r}"
        said += chunk
    return said
