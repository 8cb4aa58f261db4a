"""Paths of one's own on production's server: unique, removed, and never anybody else's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
from tests.systemd import suites
from tests.systemd.support import (
    MEDIAMTX,
    ROOT,
    SOON_S,
    abstract_sockets,
    command_line,
    eventually,
    get,
    understudy,
    units,
)

from understudy import paths
from understudy.api import Api
from understudy.errors import ProductionError, UsageError
from understudy.lead import Production
from understudy.lead import production as find
from understudy.leases import Holder, end_resting, holders, lease
from understudy.manager import connect
from understudy.run import Run

API = "http://127.0.0.1:9997"

SDP = (
    b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    b"m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n"
)

MORTAL = """
import os, signal, sys
from understudy import api, leases
from understudy.lead import production

last, steps = int(sys.argv[1]), 0

def step():
    global steps
    steps += 1
    if steps == last:
        os.kill(os.getpid(), signal.SIGKILL)

def mortal(owner, name):
    call = getattr(owner, name)
    def wrapped(*arguments, **words):
        step()
        answer = call(*arguments, **words)
        step()
        return answer
    setattr(owner, name, wrapped)

mortal(leases, "_start")
mortal(leases._Keeper, "send")
mortal(leases._Keeper, "receive")
mortal(api.Api, "add")
mortal(api.Api, "delete")
mortal(api.Api, "path")
mortal(api.Api, "sessions")
lead = production("mediamtx", unit=sys.argv[2])
with lead.path("cam0", test="mortal") as path:
    print(path.name, flush=True)
print("steps", steps)
"""

CROWD = """
import sys
from understudy.lead import production
unit, number = sys.argv[1], int(sys.argv[2])
for turn in range(4):
    if (turn + number) % 4 == 0:
        lead = production("mediamtx", unit=unit, exclusive=True, lease_timeout_s=100)
        others = [name for name in lead.api.configured() if "/crowd/" in name]
        assert not others, others
        lead.close()
        continue
    lead = production("mediamtx", unit=unit)
    with lead.path("a", test="crowd", timeout_s=100) as a, lead.path("b", test="crowd") as b:
        mine = {a.name, b.name}
        assert mine <= lead.api.configured().keys()
        print(*mine)
"""

OPENER = """
import sys
from understudy.lead import production
lead = production("mediamtx", unit=sys.argv[1])
names = [lead.path(name, test="opener") for name in sys.argv[2:]]
print(*(path.name for path in names), flush=True)
sys.stdin.read(1)
lead.close()
print("closed", flush=True)
"""


@pytest.fixture
def unit(production: dict[str, str]) -> str:
    return production["mediamtx"]


@pytest.fixture
def lead(unit: str) -> Iterator[Production]:
    """Production; nothing of the test may be left on its server."""
    before = names()
    with contextlib.closing(find("mediamtx", unit=unit)) as found:
        yield found
    assert names() == before


class Opener:
    """Another process that has paths of its own."""

    def __init__(self, unit: str, *wanted: str, wrap: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*wrap, sys.executable, "-c", OPENER, unit, *wanted],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], SOON_S)
        assert readable
        self.names = self.process.stdout.readline().split()
        assert len(self.names) == len(wanted)

    def close(self) -> None:
        said, _ = self.process.communicate("\n", timeout=SOON_S)
        assert said == "closed\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()
        owner = self.names[0].partition("/")[0]
        assert eventually(lambda: f"@understudy/run/{owner}" not in abstract_sockets())


def names() -> set[str]:
    """The configured paths, as the server itself says."""
    rows = json.loads(get(f"{API}/v3/config/paths/list"))
    return {row["name"] for row in rows["items"]}


class Publisher:
    """An RTSP client that announces and records."""

    def __init__(self, path: str) -> None:
        self.connection = socket.create_connection(("127.0.0.1", 8554), timeout=SOON_S)
        self.file = self.connection.makefile("rb")
        url = f"rtsp://127.0.0.1:8554/{path}"
        self._ask(f"ANNOUNCE {url} RTSP/1.0\r\nCSeq: 1\r\nContent-Type: application/sdp\r\n"
                  f"Content-Length: {len(SDP)}\r\n\r\n".encode() + SDP)  # fmt: skip
        self._ask(f"SETUP {url}/trackID=0 RTSP/1.0\r\nCSeq: 2\r\n"
                  "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n".encode())  # fmt: skip
        self._ask(f"RECORD {url} RTSP/1.0\r\nCSeq: 3\r\n\r\n".encode())

    def _ask(self, request: bytes) -> None:
        self.connection.sendall(request)
        assert b" 200 " in self.file.readline()
        while self.file.readline().strip():
            pass

    def ended(self) -> bool:
        """Whether the server has let it go."""
        with contextlib.suppress(TimeoutError):
            return self.file.read(1) == b""
        return False

    def close(self) -> None:
        self.file.close()
        self.connection.close()


def test_a_path_is_there_with_its_urls_and_goes_again(lead: Production) -> None:
    with lead.path("cam0") as path:
        assert re.fullmatch(
            r"r[a-z0-9]{5}/test_a_path_is_there_with_its_urls_and_goes_again/cam0", path.name
        )
        assert path.name in names()
        # It is not only configured but there.
        assert json.loads(get(f"{API}/v3/paths/get/{path.name}"))["name"] == path.name
        assert path.urls["rtsp"] == f"rtsp://127.0.0.1:8554/{path.name}"
        assert path.urls["hls"] == f"http://127.0.0.1:8888/{path.name}/index.m3u8"
        assert path.urls["webrtc"] == f"http://127.0.0.1:8889/{path.name}"
        assert not path.ready()
    assert path.name not in names()
    path.close()


def test_paths_of_two_are_two(lead: Production, unit: str) -> None:
    other = Opener(unit, "cam0")
    with lead.path("cam0", test="opener") as path:
        assert path.name != other.names[0]
        assert {path.name, *other.names} <= names()
    assert set(other.names) <= names()
    other.close()


def test_its_settings_are_the_servers(lead: Production) -> None:
    with lead.path("cam0", source="rtsp://127.0.0.1:1/x", sourceOnDemand=True) as path:
        got = json.loads(get(f"{API}/v3/config/paths/get/{path.name}"))
        assert (got["source"], got["sourceOnDemand"]) == ("rtsp://127.0.0.1:1/x", True)


def test_who_still_uses_it_is_sent_away(lead: Production) -> None:
    path = lead.path("cam0")
    publisher = Publisher(path.name)
    below = Publisher(f"{path.name}/low")
    with contextlib.closing(publisher), contextlib.closing(below):
        assert path.ready()
        assert {one.path for one in path.sessions()} == {path.name, f"{path.name}/low"}
        path.close()
        assert publisher.ended()
        assert below.ended()
    assert not [one for one in Api(API).sessions() if one.path.startswith(path.name)]


def test_what_cannot_be_called_so_is_refused(lead: Production) -> None:
    for name in ("", "/cam", "cam/", "cäm", "a b", "~^x"):
        with pytest.raises(UsageError, match="MediaMTX takes letters, digits"):
            lead.path(name)
    with pytest.raises(UsageError, match="it is how our paths are known"):
        lead.path("cam0", rpiCameraTextOverlay="mine")
    with pytest.raises(ProductionError, match=r'400 json: unknown field "nonsense"'):
        lead.path("cam0", nonsense=True)
    with lead.path("cam0"), pytest.raises(ProductionError, match="400 path already exists"):
        lead.path("cam0")
    assert eventually(lambda: not units("understudy-lease@*"))


def test_a_path_of_a_run_begins_with_the_runs_id(lead: Production, run: Run) -> None:
    with lead.path("cam0", run=run.id, test="a b/c[ü]") as path:
        assert path.name == f"{run.id}/a-b-c/cam0"


def test_what_a_killed_process_left_the_next_one_removes(lead: Production, unit: str) -> None:
    dead = Opener(unit, "cam0", "cam1")
    live = Opener(unit, "cam0")
    dead.kill()
    assert {*dead.names, *live.names} <= names()
    lead.path("mine").close()
    assert names() & {*dead.names, *live.names} == {*live.names}
    live.close()


def test_clean_removes_what_is_left_and_its_sessions_and_nothing_else(
    lead: Production, unit: str
) -> None:
    dead, live = Opener(unit, "cam0"), Opener(unit, "cam0")
    publisher, at_home = Publisher(dead.names[0]), Publisher(live.names[0])
    api = Api(API)
    # Others: called as ours are, or marked as ours but of another host.
    likely = "r7k2mq/test_x/cam0"
    api.add(likely)
    foreign = "rz9z9z/test_x/cam0"
    api.add(foreign, rpiCameraTextOverlay="understudy rz9z9z uid 0 on 00000000-4026531840")
    dead.kill()
    try:
        done = understudy("clean", "mediamtx", "--unit", unit)
        owner = dead.names[0].partition("/")[0]
        assert done.stdout == f"removed {dead.names[0]}, of run {owner}\n"
        assert publisher.ended()
        assert names() & {dead.names[0], live.names[0], likely, foreign} == {
            live.names[0],
            likely,
            foreign,
        }
        assert [one.path for one in api.sessions()] == [live.names[0]]
        again = understudy("clean", "mediamtx", "--unit", unit, "--json")
        assert json.loads(again.stdout) == []
    finally:
        for name in (likely, foreign):
            api.delete(name)
        publisher.close()
        at_home.close()
        live.close()


def test_a_live_run_keeps_its_paths_even_if_nobody_has_a_lease(
    lead: Production, run: Run, unit: str
) -> None:
    code = OPENER.replace("import sys", "import sys\nrun = sys.argv.pop()").replace(
        'test="opener"', 'test="opener", run=run'
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, unit, "cam0", run.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert name.startswith(f"{run.id}/")
    process.kill()
    process.communicate()
    assert eventually(lambda: not units("understudy-lease@*"))
    understudy("clean", "mediamtx", "--unit", unit)
    assert name in names()
    run.stop()
    understudy("clean", "mediamtx", "--unit", unit)
    assert name not in names()


def test_sigkill_in_every_phase_leaves_nothing_that_the_next_does_not_remove(
    lead: Production, unit: str
) -> None:
    killed = 0
    for last in range(1, 200):
        done = subprocess.run(
            [sys.executable, "-c", MORTAL, str(last), unit],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
    assert killed >= 20
    assert eventually(lambda: not units("understudy-lease@*"))
    lead.path("next").close()
    assert not [name for name in names() if "/mortal/" in name]


def test_a_forked_child_does_not_remove_its_parents_path(lead: Production) -> None:
    with lead.path("cam0") as path:
        child = os.fork()
        if child == 0:
            path.close()
            lead.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert path.name in names()


def test_two_users_at_once(lead: Production, unit: str, guest: suites.User) -> None:
    name, hers = guest.name, [*guest.prefix]
    dead, live = Opener(unit, "cam0", wrap=hers), Opener(unit, "cam0", wrap=hers)
    with lead.path("cam0", test="opener") as path:
        assert len({path.name, *dead.names, *live.names}) == 3
        first = min(one.pid for one in _holders(lead) if one.user == name)
        os.kill(first, signal.SIGKILL)  # runuser's child
        dead.process.communicate()
        owner = dead.names[0].partition("/")[0]
        assert eventually(lambda: f"@understudy/run/{owner}" not in abstract_sockets())
        understudy("clean", "mediamtx", "--unit", unit)
        assert names() & {path.name, *dead.names, *live.names} == {path.name, *live.names}
        # And hers removes nothing of root's.
        done = subprocess.run(
            [*hers, *command_line("clean", "mediamtx", "--unit", unit)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert path.name in names()
    live.close()


def test_who_is_alone_has_the_server_alone(lead: Production, unit: str) -> None:
    other = Opener(unit, "cam0")
    with pytest.raises(ProductionError, match=r"Cannot lease 'mediamtx' exclusively: after 0\.3 s"):
        find("mediamtx", unit=unit, exclusive=True, lease_timeout_s=0.3)
    other.close()
    with contextlib.closing(find("mediamtx", unit=unit, exclusive=True)) as alone:
        late = subprocess.Popen(
            [sys.executable, "-c", OPENER, unit, "cam0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert eventually(lambda: len(_holders(lead)) == 2)
        with alone.path("mine"):
            assert [name for name in names() if name.startswith("r")] != []
            assert not [name for name in names() if name.endswith("/opener/cam0")]
    assert late.stdout is not None
    assert late.stdout.readline().endswith("/opener/cam0\n")
    late.communicate("\n")


def test_many_of_two_users_never_meet(
    lead: Production, unit: str, request: pytest.FixtureRequest
) -> None:
    """Each adds paths and removes them; who is alone now and then sees nobody's."""
    wraps: list[list[str]] = [[]]
    if ROOT:
        wraps.append([*request.getfixturevalue("guest").prefix])
    crowd = [
        subprocess.Popen(
            [*wrap, sys.executable, "-c", CROWD, unit, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for wrap in wraps
        for number in range(4)
    ]
    said = [one.communicate(timeout=120) for one in crowd]
    assert [one.returncode for one in crowd] == [0] * len(crowd), said
    made = [name for out, _ in said for name in out.split()]
    assert len(made) == len({*made}) == 6 * len(crowd)


def test_as_a_context_manager_it_is_leased_and_cleaned_up_after(unit: str) -> None:
    with find("mediamtx", unit=unit) as lead:
        assert [one.exclusive for one in _holders(lead)] == [False]
        lead.path("a")
        lead.path("b")
        assert sum("/test_as_a_context" in name for name in names()) == 2
    assert not [name for name in names() if "/test_as_a_context" in name]
    assert _holders(lead) == []


def test_from_a_private_network(lead: Production, unit: str) -> None:
    """What is inside has its own abstract sockets; all the same nobody's path is taken away."""
    if not ROOT:
        pytest.skip("the production of a user's manager is not let in by its unit's name")
    outside = Opener(unit, "cam0")
    inside = Opener(unit, "cam0", wrap=command_line("run", "--through", "mediamtx", "--"))
    assert {*inside.names, *outside.names} <= names()
    lead.path("cam0").close()
    assert {*inside.names, *outside.names} <= names()
    inside.close()
    outside.close()


@pytest.mark.parametrize("version", ["v1.13.1", "v1.15.2", "v1.20.1"])
def test_servers_of_all_versions(run: Run, version: str) -> None:
    server = run.spawn(
        "mediamtx", values=MEDIAMTX, env={"UNDERSTUDY_STANDIN_MEDIAMTX_VERSION": version}
    )
    api = Api(server.urls["api"])
    info = api.info()
    assert (info.version if info else None) == (None if version == "v1.13.1" else version)
    assert api.settings()["api"] is True
    with lease("tests-of-paths.service", service="it") as held:
        path = paths.create(api, held, "cam0", test="x", run=None, urls=server.urls, settings={})
        assert path.name in api.configured()
        assert [one.name for one in paths.owned(api)] == [path.name]
        assert paths.sweep(api, held) == []
        path.close()
        assert "cam0" not in str(api.configured())


@pytest.mark.parametrize("prefer", ["dbus", "commands"])
def test_a_lease_by_either_way_to_the_manager(prefer: Literal["dbus", "commands"]) -> None:
    if prefer == "dbus":
        pytest.importorskip("pystemd")
    end_resting()
    manager = connect(prefer=prefer)
    with lease("tests-of-paths.service", service="it", manager=manager) as held:
        assert held.live_runs() >= {held.id}
        assert units(f"understudy-lease@{held.id}.service")


def test_a_server_without_an_api(tmp_path: Path, lead: Production) -> None:
    lead.urls = {name: url for name, url in lead.urls.items() if name != "api"}
    with pytest.raises(
        ProductionError, match="the control API of production's 'mediamtx': it is off"
    ):
        lead.path("cam0")


def _holders(lead: Production) -> list[Holder]:
    return holders(lead.lease_key)
