"""The demo: production on its standard ports, and what tests need beside it, on one screen.

Production is made from the definitions: with the names that a host gives it in a bed, and as
``demo-….service`` on a user manager, which may have units of the usual names. MediaMTX is the
real one where there is one; the camera service is a stand-in.

A user manager cannot bind a file over the one that the camera service reads its health port from
unless that file is there, so the demo takes ``camera-service-activated`` there.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from understudy import derive, listing, ports, services, templates
from understudy.derive import urls_of
from understudy.errors import PortError, ProductionError, RunError, UnderstudyError, UsageError
from understudy.instance import Instance
from understudy.manager import Manager, UnitStatus, bus_variables
from understudy.model import ManagerKind, Service, Transport
from understudy.ready import HttpProbe
from understudy.run import Run

MEDIAMTX_VARIABLE = "UNDERSTUDY_MEDIAMTX"
"""The environment variable that names a real MediaMTX."""

SHARING = 8
"""Camera services that talk to production's MediaMTX."""
ALONE = 2
"""Camera services with a MediaMTX of their own."""
ABANDONED = 3
"""Instances of the run whose owner is killed."""

TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 10.0
PAUSE_MIN_S = 0.001
PAUSE_MAX_S = 0.05

FIXED_FILE = Path("/opt/camera-service/config/camera-service.yaml")
"""What the camera service reads its health port from; instances have theirs bound over it."""

HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
"""What production's ProtectHome= and PrivateTmp= hide from it."""

_CONFIG = "# MediaMTX of the demo.\napi: yes\npaths:\n  all_others:\n"
_IN_USE = re.compile(r".*address already in use.*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One instance of the demo, up and asked.

    Attributes:
        unit: Its unit name.
        service: Its service's name.
        ports: The number of each port, by name.
        urls: The URL of each port that has one, by name.
        talks_to: The unit of the MediaMTX that it talks to, as its answer shows; None for a
            MediaMTX.
        started_in_s: Seconds from the request until it was ready.
    """

    unit: str
    service: str
    ports: Mapping[str, int]
    urls: Mapping[str, str]
    talks_to: str | None
    started_in_s: float

    def to_json(self) -> dict[str, object]:
        """The instance for programs, in the words of ``understudy spawn --json``."""
        return {
            "unit": self.unit,
            "service": self.service,
            "ports": dict(self.ports),
            "urls": dict(self.urls),
            "talks_to": self.talks_to,
            "started_in_s": round(self.started_in_s, 4),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that has to hold.

    Attributes:
        name: What: ``Production never noticed``.
        held: Whether it did.
        measured: What was seen, or what went wrong; for people.
        took_s: Seconds that it took.
        rows: The instances that came up in it and answered.
    """

    name: str
    held: bool
    measured: str
    took_s: float
    rows: Sequence[Row] = ()

    def to_json(self) -> dict[str, object]:
        """The step for programs."""
        return {
            "name": self.name,
            "held": self.held,
            "measured": self.measured,
            "took_s": round(self.took_s, 4),
        }


class Demo:
    """The demo on one manager. As a context manager it leaves nothing behind.

    Args:
        manager: Where to play: a bed's system manager, or a user's.

    Attributes:
        mediamtx: The real MediaMTX's program; None for the stand-in.
        camera: The definition of the camera service that it uses.
        rows: The instances, once they were asked.
    """

    def __init__(self, manager: Manager) -> None:
        self.mediamtx = real_mediamtx()
        self.rows: list[Row] = []
        self._manager = manager
        self._on_user_manager = manager.kind is ManagerKind.USER
        self.camera = "camera-service-activated" if self._on_user_manager else "camera-service"
        self._services = {
            name: services.opened(services.find(name, units=services.shipped_units()))
            for name in ("mediamtx", self.camera)
        }
        self._mediamtx, self._camera = self._services.values()
        self._home = manager.runtime_dir / "understudy-demo"
        self._values = self._all_values()
        self._units: dict[str, str] = {}
        self._before: dict[str, UnitStatus] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        if not self._on_user_manager:
            self._check_reach()
        self._check_ports()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    @property
    def production(self) -> list[dict[str, object]]:
        """Production for programs: its units, their ports and their InvocationIDs."""
        return [
            {
                "unit": self._units[_unit(service)],
                "invocation_id": self._before[self._units[_unit(service)]].invocation_id,
                "ports": _standard_ports(service),
            }
            for service in self._services.values()
            if self._before
        ]

    def steps(self, begun: Callable[[str], None] = lambda _name: None) -> Iterator[Step]:
        """Play it, step by step; without production there is only the first.

        Args:
            begun: Called with the name of each step when it begins.
        """
        play: list[tuple[str, Callable[[], str]]] = [
            ("Production runs on its standard ports", self._start_production),
            ("A second camera service in its place dies", self._second_dies),
            (f"{SHARING + 2 * ALONE} instances run beside it", self._run_beside),
            ("A run ends with its owner, killed by SIGKILL", self._kill_owner),
            ("Production never noticed", self._unchanged),
        ]
        for name, do in play:
            begun(name)
            known = len(self.rows)
            began = time.monotonic()
            try:
                measured, held = do(), True
            except UnderstudyError as exc:
                measured, held = str(exc), False
            yield Step(
                name=name,
                held=held,
                measured=measured,
                took_s=time.monotonic() - began,
                rows=self.rows[known:],
            )
            if not self._before:
                return

    def _all_values(self) -> dict[str, dict[str, str]]:
        root = str(self._home)
        stand_in = f"{sys.executable} -m understudy.standins"
        return {
            "mediamtx": {
                "program": self.mediamtx
                or f"/usr/bin/env PYTHONPATH={root}/src {stand_in}.mediamtx",
                "config": f"{root}/mediamtx.yml",
            },
            "camera-service": {
                "root": root,
                "python": sys.executable,
                "module": "understudy.standins.camera_service",
            },
            "camera-service-activated": {
                "root": root,
                "program": f"{stand_in}.camera_service --activated",
            },
        }

    def _check_reach(self) -> None:
        """Programs that production's units hide from it cannot be run by it."""
        for path in filter(None, (sys.executable, str(Path(__file__).resolve()), self.mediamtx)):
            if any(Path(path).is_relative_to(top) for top in HIDDEN):
                raise UsageError(
                    f"Cannot run production from '{path}': its unit has ProtectHome=yes and "
                    "PrivateTmp=yes, so it sees nothing there",
                    hint=f"{MEDIAMTX_VARIABLE}=/usr/local/bin/mediamtx"
                    if path == self.mediamtx
                    else "sudo packaging/install puts understudy where every service may read it",
                )

    def _check_ports(self) -> None:
        for service in self._services.values():
            for port in service.ports.values():
                if port.number is None or port.optional:
                    continue
                if (held := ports.holder(port.transport, port.number)) is not None:
                    raise PortError(
                        f"Cannot start production: port {port.number} is held by {held}",
                        port=port.number,
                        owner=str(held),
                        hint="Play it in a bed, as root: understudy bed -- understudy demo",
                    )

    def _start_production(self) -> str:
        texts: dict[str, str] = {}
        for service in self._services.values():
            texts |= derive.render_production(service, self._values[service.name])
        known = self._manager.status([*texts])
        # In a bed of a host that has production installed, its unit files are there as well.
        taken = any(status.load_state != "not-found" for status in known.values())
        self._units = {name: _demo_name(name) if self._on_user_manager or taken else name
                       for name in texts}  # fmt: skip
        self._write_files(self._renamed(texts))
        self._undo.callback(self._systemctl, "stop", *self._units.values())
        names = [self._units[_unit(service)] for service in self._services.values()]
        began = time.monotonic()
        done = self._systemctl("start", *names)
        if done.returncode != 0:
            raise ProductionError(f"Cannot start production: {done.stderr.strip()}")
        for service in self._services.values():
            self._await_ready(service)
        ready_ms = (time.monotonic() - began) * 1000
        before = self._manager.status(names)
        mediamtx, camera = names
        answer = self._ask_all({camera: urls_of(self._camera, _standard_ports(self._camera))})
        self._check_answer(answer[camera], before[camera], _standard_ports(self._mediamtx))
        self._before = before
        return (
            f"{mediamtx} on {_numbers(self._mediamtx, 'api', 'rtsp', 'hls', 'webrtc')}, "
            f"{camera} on {_numbers(self._camera, 'websocket', 'health')}: "
            f"ready in {ready_ms:.0f} ms"
        )

    def _renamed(self, texts: Mapping[str, str]) -> dict[str, str]:
        """The unit files under the names they get here; on a user manager with its drop-ins."""
        units = re.compile("|".join(map(re.escape, texts)))
        files = {
            self._units[name]: units.sub(lambda found: self._units[found[0]], text)
            for name, text in texts.items()
        }
        if not self._on_user_manager:
            return files
        # Bound to the guard of a run of its own: that ends with this process, whatever ends it.
        run = self._undo.enter_context(Run(manager=self._manager))
        bound = f"[Unit]\nBindsTo={run.guard}\nAfter={run.guard}\nCollectMode=inactive-or-failed\n"
        shipped = services.shipped_units()
        context = {"directory": str(self._home)}
        reset = templates.render(shipped, "reset.conf.j2", context, unit=True)
        for unit in list(files):
            files[f"{unit}.d/90-demo.conf"] = bound
            if unit.endswith(".service"):
                files[f"{unit}.d/05-reset.conf"] = reset
                files[f"{unit}.d/50-user.conf"] = (shipped / "user.conf").read_text("utf-8")
        return files

    def _write_files(self, units: Mapping[str, str]) -> None:
        files = {self._manager.unit_dir / name: text for name, text in units.items()}
        files[self._home / "mediamtx.yml"] = _CONFIG
        self._undo.callback(shutil.rmtree, self._home, ignore_errors=True)
        for name in self._units.values():
            self._undo.callback((self._manager.unit_dir / name).unlink, missing_ok=True)
            folder = self._manager.unit_dir / f"{name}.d"
            self._undo.callback(shutil.rmtree, folder, ignore_errors=True)
        if not self._on_user_manager and not FIXED_FILE.exists():
            files[FIXED_FILE] = f"health_port: {_standard_ports(self._camera)['health']}\n"
            self._undo.callback(FIXED_FILE.unlink)
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        # The camera service's checkout, so to speak: its PYTHONPATH= is src/ below its root.
        source = self._home / "src"
        source.unlink(missing_ok=True)
        source.symlink_to(Path(__file__).resolve().parent.parent)

    def _systemctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        # Not by the toolkit's own manager: that refuses, rightly, whatever is not an instance.
        user = ["--user"] if self._on_user_manager else []
        return subprocess.run(
            ["systemctl", *user, *words],
            env=os.environ | bus_variables(self._manager),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def _await_ready(self, service: Service) -> None:
        assert service.ready is not None
        unit = self._units[_unit(service)]
        number = _standard_ports(service)[service.ready.port]
        probe = HttpProbe(service.ready, number)

        def ready() -> bool:
            if self._manager.status([unit])[unit].sub_state in ("auto-restart", "failed"):
                raise ProductionError(f"Cannot start '{unit}': it ended\n{self._log(unit)}")
            return probe.step()

        try:
            if not _within(TIMEOUT_S, ready):
                raise ProductionError(
                    f"Cannot start '{unit}': GET {service.ready.path} on port {number}: "
                    f"{probe.last}\n{self._log(unit)}"
                )
        finally:
            probe.close()

    def _log(self, unit: str) -> str:
        """The last lines of a production unit: it has no SyslogIdentifier= as instances have."""
        option = "--user-unit" if self._on_user_manager else "--unit"
        return subprocess.run(
            ["journalctl", "--quiet", "--output=cat", "--lines=5", f"{option}={unit}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()

    def _second_dies(self) -> str:
        """What a test does that starts the server itself."""
        # Such a server outlives its killed test, but not this demo.
        mortal = ["setpriv", "--pdeathsig", "KILL", "--"]
        try:
            done = subprocess.run(
                [*mortal, sys.executable, "-m", "understudy.standins.camera_service"],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=ANSWER_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as exc:
            raise ProductionError("Cannot show the conflict: the second one runs") from exc
        found = _IN_USE.search(done.stderr)
        if found is None or done.returncode == 0:
            raise ProductionError(
                f"Cannot show the conflict: exit code {done.returncode}: {done.stderr.strip()}"
            )
        return found[0].rpartition("service: ")[2]

    def _run_beside(self) -> str:
        with Run(manager=self._manager, units=services.shipped_units()) as run:
            began = time.monotonic()
            own = run.spawn_many(
                [run.request("mediamtx", values=self._instance_values("mediamtx"))] * ALONE
            )
            values = self._instance_values(self.camera)
            requests = [run.request(self.camera, values=values)] * SHARING
            requests += [
                run.request(self.camera, values=values, uses={"mediamtx": one}) for one in own
            ]
            cameras = run.spawn_many(requests)
            ready_s = time.monotonic() - began
            self._ask_instances(own, cameras)
        return f"all ready in {ready_s:.2f} s, and each answered a request"

    def _ask_instances(self, own: Sequence[Instance], cameras: Sequence[Instance]) -> None:
        """Ask each camera service who it is, and which MediaMTX answers it."""
        production = (self._units[_unit(self._mediamtx)], _standard_ports(self._mediamtx))
        partners = [production] * SHARING + [(one.unit, one.ports) for one in own]
        self.rows = [_row(one, None) for one in own]
        answers = self._ask_all({one.unit: one.urls for one in cameras})
        for one, (partner, numbers) in zip(cameras, partners, strict=True):
            self._check_answer(answers[one.unit], one.status(), numbers)
            self.rows.append(_row(one, partner))

    def _check_answer(
        self, answer: Mapping[str, object], status: UnitStatus, partner: Mapping[str, int]
    ) -> None:
        """The process that answered is the unit's, and the MediaMTX behind it is its partner's.

        MediaMTX itself says on which address it serves RTSP, so its word is the proof.
        """
        if answer.get("pid") != status.main_pid:
            raise ProductionError(
                f"Cannot believe '{status.unit}': process {answer.get('pid')} answered, and its "
                f"own is {status.main_pid}"
            )
        mediamtx = answer.get("mediamtx")
        address = mediamtx.get("rtsp_address") if isinstance(mediamtx, dict) else None
        if str(address).rpartition(":")[2] != str(partner["rtsp"]):
            raise ProductionError(
                f"Cannot believe '{status.unit}': it talks to the MediaMTX with RTSP on {address}, "
                f"not to that on {partner['rtsp']}"
            )

    def _ask_all(self, urls: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, object]]:
        """The answer of each unit's camera service to ``get_status``, by the unit's name."""
        try:
            import websockets
        except ImportError as exc:
            raise UsageError(
                f"Cannot ask a camera service: {exc}",
                hint="apt install python3-websockets, or: pip install 'understudy[standins]'",
            ) from exc

        async def ask(unit: str, url: str) -> tuple[str, dict[str, object]]:
            question = {"jsonrpc": "2.0", "id": 1, "method": "get_status"}
            try:
                async with (
                    asyncio.timeout(ANSWER_TIMEOUT_S),
                    websockets.connect(url) as connection,
                ):
                    await connection.send(json.dumps(question))
                    return unit, dict(json.loads(await connection.recv())["result"])
            except (OSError, KeyError, ValueError, websockets.WebSocketException) as exc:
                raise ProductionError(f"Cannot ask '{unit}' at {url}: {exc}") from exc

        async def ask_all() -> dict[str, dict[str, object]]:
            asked = (ask(unit, known["websocket"]) for unit, known in urls.items())
            return dict(await asyncio.gather(*asked))

        return asyncio.run(ask_all())

    def _kill_owner(self) -> str:
        script = 'echo "$UNDERSTUDY_RUN" && exec sleep infinity'
        settings = self._instance_values(self.camera).items()
        command = [
            *(sys.executable, "-m", "understudy", "spawn", self.camera),
            f"--count={ABANDONED}",
            f"--units={services.shipped_units()}",
            f"--manager={self._manager.kind}",
            *(f"--set={name}={value}" for name, value in settings),
            *("--", "sh", "-c", script),
        ]
        with subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as owner:
            try:
                assert owner.stdout is not None
                assert owner.stderr is not None
                run = owner.stdout.readline().strip()
                if not run:
                    raise RunError(f"Cannot begin the second run: {owner.stderr.read().strip()}")
                numbers = self._ports_of(run)
                had = self._left(run, numbers)
                owner.send_signal(signal.SIGKILL)
                began = time.monotonic()
                if not _within(TIMEOUT_S, lambda: not self._left(run, numbers)):
                    left = ", ".join(self._left(run, numbers))
                    raise RunError(f"Cannot end run '{run}' by killing its owner: {left} is left")
                gone_ms = (time.monotonic() - began) * 1000
            finally:
                owner.kill()
        units = sum(name.startswith("understudy-") for name in had)
        bound = sum(name.startswith("port ") for name in had)
        files = len(had) - units - bound
        return (
            f"of {units} units, {bound} bound ports, {files} files and folders nothing is left "
            f"after {gone_ms:.0f} ms"
        )

    def _ports_of(self, run: str) -> set[int]:
        found = listing.instances(self._manager)
        return {number for one in found if one.run == run for number in one.ports.values()}

    def _left(self, run: str, numbers: Iterable[int]) -> list[str]:
        """What there is of a run: units, files, bound ports."""
        found = [*self._manager.list([f"understudy-*{run}*"])]
        for folder in (*self._manager.unit_dir.glob(f"understudy-*@{run}-*"),
                       self._manager.runtime_dir / "understudy" / run):  # fmt: skip
            found += [str(path) for path in (folder, *folder.rglob("*")) if path.exists()]
        sockets = ports.snapshot()
        return found + [
            f"port {number}" for number in numbers if sockets.bound(Transport.TCP, number)
        ]

    def _unchanged(self) -> str:
        after = self._manager.status([*self._before])
        for unit, before in self._before.items():
            now = after[unit]
            if (now.invocation_id, now.main_pid) != (before.invocation_id, before.main_pid):
                raise ProductionError(
                    f"Cannot vouch for '{unit}': its InvocationID was {before.invocation_id}, and "
                    f"is {now.invocation_id} ({now.active_state}, {now.n_restarts} restarts)"
                )
        ids = ", ".join(f"{unit} {now.invocation_id[:8]}…" for unit, now in after.items())
        return f"the same InvocationIDs, no restart: {ids}"

    def _instance_values(self, service: str) -> dict[str, str]:
        # An instance of MediaMTX has a file of its own.
        return {name: text for name, text in self._values[service].items() if name != "config"}


def real_mediamtx() -> str | None:
    """The real MediaMTX's program: what UNDERSTUDY_MEDIAMTX names, else PATH's; None if neither.

    Raises:
        UsageError: The variable names no program.
    """
    named = os.environ.get(MEDIAMTX_VARIABLE)
    found = shutil.which(named or "mediamtx")
    if named and found is None:
        raise UsageError(
            f"Cannot run '{named}': it is no program",
            hint=f"{MEDIAMTX_VARIABLE} names a MediaMTX; without it a stand-in is used",
        )
    return str(Path(found).resolve()) if found else None


def _unit(service: Service) -> str:
    assert service.production is not None
    return service.production


def _demo_name(unit: str) -> str:
    return f"demo-{unit}"


def _standard_ports(service: Service) -> dict[str, int]:
    return {
        port.name: port.number
        for port in service.ports.values()
        if port.number is not None and not port.optional
    }


def _numbers(service: Service, *names: str) -> str:
    return ", ".join(str(service.ports[name].number) for name in names)


def _row(one: Instance, talks_to: str | None) -> Row:
    return Row(
        unit=one.unit,
        service=one.service,
        ports=one.ports,
        urls=one.urls,
        talks_to=talks_to,
        started_in_s=one.started_in_s,
    )


def _within(timeout_s: float, look: Callable[[], bool]) -> bool:
    """Look again and again until the answer is True, or the time is over."""
    deadline = time.monotonic() + timeout_s
    pause_s = PAUSE_MIN_S
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
    return True
