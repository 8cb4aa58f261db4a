"""How soon an instance of one's own gives its first right reply, and how soon others get there.

Run it in a bed, as root and as a user: ``python tests/bench/bench_spawn.py [ROUNDS]`` (20 unless
told). Every way starts the same program with the same settings on ports of its own, and the clock
runs until the same question was answered rightly. The ways take turns, in another order each
round, so that all meet the same noise. Stopping is not timed.

The first two programs are started as plain commands by every way, so these are like for like. The
other two have definitions: then understudy's instances have production's own settings, hardening
included, which no other way has.

What is compared:

- ``Popen, 1 ms``: a bare subprocess, asked every millisecond: the least that is possible.
- ``understudy, in a run``: ``run.spawn`` in a run that is there already.
- ``understudy, with its run``: a run begun for it.
- ``its unit, by hand``: the same unit files, written, started over D-Bus and asked every
  millisecond: what systemd needs for these very settings by files.
- ``bare unit, by D-Bus``: the command in a unit with nothing else, made by one StartTransientUnit
  and asked every millisecond: the least that is possible with systemd.
- ``systemd-run, 1 ms`` and ``systemd-run, 0.1 s``: the command in a unit without any of
  production's settings, asked that often.
- ``mirakuru``: its TCP or HTTP executor as it comes (``pip install mirakuru``), which looks every
  0.1 s. Left out where it is not installed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from understudy import derive, instance, ports, services
from understudy.manager import Transient
from understudy.model import HOST, Part, Service
from understudy.run import Run, ad_hoc

ROUNDS = 20
LIMIT_S = 30.0
SERVICES = Path(__file__).parent.parent / "services"

BARE, IN_RUN, WITH_RUN = "Popen, 1 ms", "understudy, in a run", "understudy, with its run"
BY_HAND, BARE_UNIT = "its unit, by hand", "bare unit, by D-Bus"
RUN_1MS, RUN_100MS, MIRAKURU = "systemd-run, 1 ms", "systemd-run, 0.1 s", "mirakuru"
TARGETS = ((BARE, 1.4), (BARE_UNIT, None), (BY_HAND, None), (RUN_100MS, 0.6), (MIRAKURU, 0.3))

Way = Callable[["Server"], AbstractContextManager[None]]


@dataclass(kw_only=True)
class Server:
    """A program to start, on ports of its own.

    Attributes:
        service: Its definition.
        values: Values for it.
        asked: The port that is asked.
        directory: Where it runs, for the ways that have no definition.
        question: What is sent there; an HTTP request where it begins with ``GET``.
        answer: What a right reply begins with.
        command: The command line for the ways that have no definition.
        environment: The environment for them.
        numbers: The ports of this start, for them.
    """

    service: Service
    values: Mapping[str, str]
    asked: str
    question: bytes
    answer: bytes
    directory: Path
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)

    def replies(self, number: int) -> bool:
        """Whether the first reply on this port is the right one."""
        try:
            with socket.create_connection((HOST, number), timeout=LIMIT_S) as connection:
                connection.sendall(self.question)
                return connection.recv(len(self.answer)) == self.answer
        except OSError:
            return False

    def wait(self, pause_s: float) -> None:
        """Ask until the reply is right, as often as said."""
        deadline = time.monotonic() + LIMIT_S
        while not self.replies(self.numbers[self.asked]):
            if time.monotonic() > deadline:
                sys.exit(f"{self.service.name} did not answer")
            time.sleep(pause_s)


def redis(directory: Path, numbers: Mapping[str, int]) -> Server:
    """Debian's redis-server: ready some milliseconds after its start."""
    return Server(
        service=services.find("redis", units=SERVICES),
        values={},
        asked="redis",
        question=b"PING\r\n",
        answer=b"+PONG",
        directory=directory,
        command=[
            *("/usr/bin/redis-server", "--bind", HOST, "--port", str(numbers.get("redis"))),
            *("--daemonize", "no", "--dir", str(directory), "--save", ""),
        ],
        numbers=numbers,
    )


def redis_command(directory: Path, numbers: Mapping[str, int]) -> Server:
    """The same, ad hoc: no definition, and no hardening but that of every instance."""
    server = redis(directory, numbers)
    command = [
        *("/usr/bin/redis-server", "--bind", "{host}", "--port", "{port.redis}"),
        *("--daemonize", "no", "--dir", "{dir}", "--save", ""),
    ]
    return replace(server, service=ad_hoc(command, ["redis"]))


def mediamtx(directory: Path, numbers: Mapping[str, int]) -> Server:
    """The stand-in MediaMTX: a Python program with twelve ports."""
    service = services.opened(services.find("mediamtx", units=services.shipped_units()))
    config = directory / "mediamtx.yml"
    config.write_text("paths:\n  all_others:\n")
    environment = dict(service.environment)
    for name, number in numbers.items():
        text = service.ports[name].value.format(host=HOST, port=number)
        environment.update(dict.fromkeys(service.ports[name].env, text))
    program = [sys.executable, "-m", "understudy.standins.mediamtx"]
    return Server(
        service=service,
        values={"program": " ".join(program)},
        asked="api",
        question=b"GET /v3/paths/list HTTP/1.0\r\n\r\n",
        answer=b"HTTP/1.1 200",
        directory=directory,
        command=[*program, str(config)],
        environment=environment,
        numbers=numbers,
    )


def http(directory: Path, numbers: Mapping[str, int]) -> Server:
    """Python's own HTTP server, ad hoc."""
    command = ["/usr/bin/python3", "-m", "http.server", "--bind"]
    return Server(
        service=ad_hoc([*command, "{host}", "{port.http}"], ["http"]),
        values={},
        asked="http",
        question=b"GET / HTTP/1.0\r\n\r\n",
        answer=b"HTTP/1.0 200",
        directory=directory,
        command=[*command, HOST, str(numbers.get("http"))],
        numbers=numbers,
    )


@contextlib.contextmanager
def by_popen(server: Server) -> Iterator[None]:
    """A bare subprocess."""
    with subprocess.Popen(
        server.command,
        cwd=server.directory,
        env=os.environ | server.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            server.wait(0.001)
            yield
        finally:
            process.terminate()


def by_systemd_run(pause_s: float) -> Way:
    """The command, and asking that often."""

    @contextlib.contextmanager
    def start(server: Server) -> Iterator[None]:
        user = ["--user"] if os.geteuid() else []
        unit = f"bench-{uuid.uuid4().hex[:8]}.service"
        settings = [f"--setenv={name}={value}" for name, value in server.environment.items()]
        command = ["systemd-run", *user, "--quiet", "--collect", f"--unit={unit}", *settings]
        command.append(f"--working-directory={server.directory}")
        subprocess.run([*command, "--", *server.command], check=True)
        try:
            server.wait(pause_s)
            yield
        finally:
            subprocess.run(["systemctl", *user, "stop", unit], check=True)

    return start


def by_spawn(run: Run) -> Way:
    """An instance in a run that is there already."""

    @contextlib.contextmanager
    def start(server: Server) -> Iterator[None]:
        with run.spawn(server.service, values=server.values) as instance:
            if not server.replies(instance.ports[server.asked]):
                sys.exit(f"{instance.unit} was not ready")
            yield

    return start


@contextlib.contextmanager
def by_run(server: Server) -> Iterator[None]:
    """An instance, and a run for it."""
    with Run() as run, by_spawn(run)(server):
        yield


def by_hand(run: Run) -> Way:
    """The unit files that an instance has, and nothing else of what spawn does."""
    numbers = itertools.count(1_000_000)  # far above those of the run's own instances

    @contextlib.contextmanager
    def start(server: Server) -> Iterator[None]:
        part = Part(
            run=run.id,
            number=next(numbers),
            kind=run.manager.kind,
            runtime_dir=str(run.manager.runtime_dir),
            ports=server.numbers,
            values=server.values,
        )
        derived = derive.derive(server.service, part)
        instance.write_files(run.manager, derived)
        jobs = run.manager.start([derived.unit])
        try:
            server.wait(0.001)
            yield
        finally:
            jobs.close()
            instance.discard(run.manager, [derived], timeout_s=LIMIT_S)

    return start


def by_bare_unit(run: Run) -> Way:
    """The command in a unit without any setting, and none of what spawn does."""

    @contextlib.contextmanager
    def start(server: Server) -> Iterator[None]:
        properties = [("WorkingDirectory", str(server.directory))]
        properties += [
            ("Environment", f"{key}={value}") for key, value in server.environment.items()
        ]
        unit = f"understudy-bench-{uuid.uuid4().hex[:8]}.service"
        made = Transient(unit=unit, properties=properties, command=server.command)
        jobs = run.manager.create([made])
        try:
            server.wait(0.001)
            yield
        finally:
            for each in jobs:
                each.close()
            run.manager.stop([unit], timeout_s=LIMIT_S, forget=[unit])

    return start


def by_mirakuru() -> Way | None:
    """mirakuru's executors as they come; None where it is not installed."""
    try:
        import mirakuru  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None

    @contextlib.contextmanager
    def start(server: Server) -> Iterator[None]:
        number = server.numbers[server.asked]
        settings: dict[str, Any] = {
            "envvars": server.environment,
            "stdout": subprocess.DEVNULL,
            "timeout": LIMIT_S,
            "cwd": server.directory,
        }
        executor: AbstractContextManager[object]
        if server.question.startswith(b"GET"):
            url = f"http://{HOST}:{number}{server.question.split()[1].decode()}"
            executor = mirakuru.HTTPExecutor(server.command, url=url, method="GET", **settings)
        else:
            executor = mirakuru.TCPExecutor(server.command, host=HOST, port=number, **settings)
        with executor:
            server.wait(0.001)
            yield

    return start


def measure(title: str, make: Callable[[Path, Mapping[str, int]], Server], rounds: int) -> None:
    """Time every way so often, and print."""
    with Run() as run, tempfile.TemporaryDirectory() as folder:
        declared = make(Path(folder), {}).service.ports.values()
        ways: dict[str, Way | None] = {
            BARE: by_popen,
            IN_RUN: by_spawn(run),
            WITH_RUN: by_run,
            BY_HAND: by_hand(run),
            BARE_UNIT: by_bare_unit(run),
            RUN_1MS: by_systemd_run(0.001),
            RUN_100MS: by_systemd_run(0.1),
            MIRAKURU: by_mirakuru(),
        }
        present = {name: way for name, way in ways.items() if way is not None}
        took: dict[str, list[float]] = {name: [] for name in present}
        allocator = ports.Allocator(ports.configured_range())
        for count in range(rounds + 1):
            for name in random.sample([*present], len(present)):
                ((claim, numbers),) = allocator.claim_many([declared])
                directory = Path(tempfile.mkdtemp(dir=folder))
                server = make(directory, numbers)
                began = time.perf_counter()
                with present[name](server):
                    if count:  # the first round only warms up
                        took[name].append((time.perf_counter() - began) * 1000)
                claim.close()
                shutil.rmtree(directory)
    report(title, took)


def report(title: str, took: Mapping[str, list[float]]) -> None:
    """Print medians, ratios and targets."""
    medians = {name: statistics.median(times) for name, times in took.items()}
    manager = "user" if os.geteuid() else "system"
    print(f"\n{title}, {manager} manager, {len(took[BARE])} rounds")
    print(f"{'first right reply':26}{'median ms':>10}{'quartiles':>16}{'x Popen':>9}")
    for name, times in took.items():
        low, _, high = statistics.quantiles(times, n=4)
        ratio = medians[name] / medians[BARE]
        print(f"{name:26}{medians[name]:10.1f}{f'{low:.1f}-{high:.1f}':>16}{ratio:9.2f}")
    for other, target in TARGETS:
        if other in medians:
            ratio = medians[IN_RUN] / medians[other]
            goal = f" (target: at most {target})" if target else ""
            print(f"{IN_RUN} / {other}: {ratio:.2f}{goal}")


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if sys.argv[1:] else ROUNDS
    measure("redis-server as a command", redis_command, wanted)
    measure("python3 -m http.server as a command", http, wanted)
    measure("redis by its definition", redis, wanted)
    measure("mediamtx by its definition", mediamtx, wanted)
