"""A test host from its first deploy to the last withdraw: a tester, a stranger, and what they try.

It changes the host beyond what is understudy's: only where that is thrown away afterwards.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.systemd.hosts import User, made
from tests.systemd.support import (
    MEDIAMTX,
    ROOT,
    get,
    require_throwaway,
    sets,
    show,
    systemctl,
    understudy,
)

from understudy import services
from understudy.bed import Bed

pytestmark = pytest.mark.skipif(not ROOT, reason="hosts are root's to set up")

UNITS = Path("/etc/understudy/units")
LEAD = "mediamtx.service"
API = "http://127.0.0.1:9997/v3/paths/list"
SECRET = "hush-of-anna-41d2"
CANARY = Path("/var/tmp/understudy-smuggled")
PROTECTED = Path("/proc/sys/fs/protected_regular")
USERS = ("passwd", "group", "shadow", "gshadow", "subuid", "subgid")
SMUGGLED = f"\nExecStartPre=/bin/touch {CANARY}"


@dataclass(frozen=True)
class Host:
    """A test host with production, a tester and somebody for whom nothing was deployed."""

    tester: User
    stranger: User


def traces() -> dict[str, str]:
    """What deploys, and whatever runs beside them, could leave."""
    places = ("/etc", "/var/lib/understudy", "/var/lib/mediamtx", "/run/understudy", "/var/tmp")
    found = {}
    for place in places:
        for path in [*Path(place).parent.glob(Path(place).name), *Path(place).rglob("*")]:
            # Users are looked at by name; an empty .wants goes, whoever made it (systemctl(1)).
            # PrivateTmp= of what is the system's comes and goes.
            if "/systemd-private-" in str(path) or path.suffix == ".wants":
                continue
            if not path.name.startswith((".pwd", *USERS)):
                found[str(path)] = f"{path.lstat().st_mode:o} {path.lstat().st_uid}"
    found["users"] = " ".join(one.pw_name for one in pwd.getpwall())
    found["units"] = systemctl("list-units", "--all", "--plain", "--no-legend", "understudy-*")
    found["lead"] = str(show(LEAD, "LoadState", "ActiveState", "UnitFileState"))
    return found


def life() -> Mapping[str, str]:
    return show(LEAD, "ActiveState", "InvocationID", "MainPID", "NRestarts")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """Set up with one command each, and taken down again with nothing left."""
    require_throwaway()
    with made("utest-carla", "utest-dora") as (tester, stranger):
        before = traces()
        understudy("deploy", "mediamtx", *sets(MEDIAMTX))
        understudy("deploy", "--tester", tester.name)
        yield Host(tester, stranger)
        said = understudy("withdraw", "--tester", tester.name).stdout
        assert said.endswith(f"tester {tester.name}: withdrawn\n")
        understudy("withdraw", "mediamtx", "--purge")
        tester.end()
        stranger.end()
        assert set(traces().items()) ^ set(before.items()) == set()


@pytest.fixture(autouse=True)
def _untouched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever somebody tries, production does not notice, and nothing of theirs has run."""
    if request.node.get_closest_marker("bed"):
        yield
        return
    request.getfixturevalue("host")
    before = life()
    yield
    assert not CANARY.exists()
    assert show(LEAD, "ActiveState") == {"ActiveState": "active"}
    if "restart" not in request.node.name:
        assert life() == before


def started(user: User, *words: str, **variables: str) -> dict[str, object]:
    """What was told of an instance that this user has started."""
    done = user.understudy("spawn", *words, "--json", **variables)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)[0]
    return told


def ended(user: User) -> None:
    done = user.understudy("stop", "--all")
    assert done.returncode == 0, done.stderr
    assert user.guards() == ""


def test_a_tester_has_instances_and_shares_production(host: Host) -> None:
    anna = host.tester
    one = started(anna, "mediamtx", *sets(MEDIAMTX))
    ports: dict[str, int] = one["ports"]  # type: ignore[assignment]
    assert '"itemCount"' in get(f"http://127.0.0.1:{ports['api']}/v3/paths/list")
    assert (
        f"{LEAD}  active on the system manager" in anna.understudy("production", "mediamtx").stdout
    )
    ask = f"import urllib.request as r; print(r.urlopen({API!r}).status)"
    inside = ("run", "--network", "private", "--through", "mediamtx", "--")
    asked = anna.understudy(*inside, sys.executable, "-c", ask)
    assert (asked.returncode, asked.stdout) == (0, "200\n"), asked.stderr
    ended(anna)


def test_a_stranger_is_told_what_helps(host: Host) -> None:
    dora = host.stranger
    for words in (("spawn", "mediamtx"), ("run", "--network", "private", "--", "true")):
        refused = dora.understudy(*words)
        assert refused.returncode in (1, 125)
        assert refused.stderr.startswith("error: Cannot "), refused.stderr
        assert f"hint: sudo loginctl enable-linger {dora.name}" in refused.stderr
    # To look at production takes no manager of one's own.
    assert dora.understudy("production", "mediamtx").returncode == 0


def smuggling(folder: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """What somebody may try to bring in, and what that is told."""
    say = ("spawn", "--exec", "sleep 999")
    yield ("spawn", "../../etc/mediamtx"), "Cannot find service"
    yield ("spawn", f"mediamtx{SMUGGLED}"), "Cannot find service"
    yield ("spawn", "mediamtx", "--set", f"program=/bin/true{SMUGGLED}"), "it holds a newline"
    yield (*say, "--name", f"x{SMUGGLED}"), "Cannot "
    yield (*say, "--name", "../x"), "Cannot "
    yield (*say, "--env", f"A{SMUGGLED}=x"), "Cannot "
    yield (*say, "--port", f"http{SMUGGLED}"), "Cannot "
    yield (*say, "--port", "../http"), "Cannot "
    yield ("spawn", "evil", "--units", str(folder)), "Cannot read '"
    yield ("stop", LEAD), "Cannot "
    yield ("stop", "../../mediamtx"), "Cannot "
    yield ("logs", f"x{SMUGGLED}"), "Cannot "
    yield ("run", "--network", f"private:lab{SMUGGLED}", "--", "true"), "Cannot "
    yield ("spawn", "mediamtx", "--manager", "system"), "Cannot "
    yield ("spawn", "mediamtx", "--uses", f"mediamtx={LEAD}"), "Cannot "


@contextmanager
def evil_definition(folder: Path) -> Iterator[None]:
    """A definition whose own words try it."""
    (folder / "evil").mkdir()
    (folder / "evil/service.toml").write_text(
        f'description = "x"\n[ports]\n"http{json.dumps(SMUGGLED)[1:-1]}" = {{ tcp = 7 }}\n'
    )
    (folder / "evil/evil.service.j2").write_text("[Service]\nExecStart=/bin/true\n")
    yield
    shutil.rmtree(folder / "evil")


def test_nothing_can_be_smuggled_in(host: Host, open_directory: Path) -> None:
    anna = host.tester
    with evil_definition(open_directory):
        for words, text in smuggling(open_directory):
            refused = anna.understudy(*words)
            assert refused.returncode in (1, 2, 125), f"{words}: {refused.stdout}"
            assert text in refused.stderr or refused.returncode == 2, f"{words}: {refused.stderr}"
            assert "Traceback" not in refused.stderr
            assert anna.guards() == "", words
    # Where a newline may be, it is one.
    told = started(anna, "--exec", "sleep 999", "--env", f"A=x{SMUGGLED}")
    assert SMUGGLED.encode() in Path(f"/proc/{told['pid']}/environ").read_bytes()
    ended(anna)


def test_a_stranger_reads_no_secret_of_a_tester_s(host: Host) -> None:
    anna, dora = host.tester, host.stranger
    one = started(anna, "--exec", "sleep 999", "--env", "TOKEN", TOKEN=SECRET)
    runtime = f"/run/user/{anna.uid}"
    tries: Sequence[Sequence[str]] = (
        ("cat", f"/proc/{one['pid']}/environ"),
        ("grep", "-rs", SECRET, runtime, "/run/understudy", "/run/systemd"),
        ("systemctl", "show", f"user@{anna.uid}.service"),
        ("journalctl", "--no-pager", "--quiet"),
    )
    for words in tries:
        assert SECRET not in (done := dora.run(*words)).stdout + done.stderr, words
    for words in (("list",), ("show", str(one["unit"])), ("logs", str(one["unit"]))):
        done = dora.understudy(*words, XDG_RUNTIME_DIR=runtime)
        assert done.returncode == 1
        assert SECRET not in done.stdout + done.stderr
    ended(anna)


def test_an_upgrade_and_a_restart_leave_a_tester_s_run_alone(host: Host) -> None:
    anna = host.tester
    one = started(anna, "mediamtx", *sets(MEDIAMTX))
    place = UNITS / "mediamtx"
    shipped = services.find("mediamtx").folder
    assert shipped is not None
    with ExitStack() as undo:
        for folder in (UNITS.parent, UNITS):
            if not folder.exists():
                folder.mkdir()
                undo.callback(folder.rmdir)
        undo.callback(shutil.rmtree, place)
        shutil.copytree(shipped, place)
        template = place / f"{LEAD}.j2"
        template.write_text(template.read_text().replace("RestartSec=2", "RestartSec=3"))
        before = life()
        upgraded = understudy("deploy", "mediamtx")
        assert "-RestartSec=2\n+RestartSec=3\n" in upgraded.stdout
        assert life() == before
        understudy("deploy", "mediamtx", "--restart")
        assert life()["MainPID"] != before["MainPID"]
        assert '"itemCount"' in get(API)
    # Back to what is shipped.
    understudy("deploy", "mediamtx", "--restart")
    listed = json.loads(anna.understudy("list", "--json").stdout)
    assert [(row["unit"], row["pid"]) for row in listed] == [(one["unit"], one["pid"])]
    ports: dict[str, int] = one["ports"]  # type: ignore[assignment]
    assert '"itemCount"' in get(f"http://127.0.0.1:{ports['api']}/v3/paths/list")
    ended(anna)


@contextmanager
def protected() -> Iterator[None]:
    """The kernel protects files in sticky folders, as Debian's hosts have it (procps).

    Beds share the machine's setting, which is put back.
    """
    before = PROTECTED.read_text()
    PROTECTED.write_text("2\n")
    try:
        yield
    finally:
        PROTECTED.write_text(before)


@pytest.mark.bed
def test_all_of_it_where_the_kernel_protects_files_in_sticky_folders() -> None:
    with protected(), Bed.up("understudy-tests-host", owner_pid=os.getpid()) as bed:
        words, variables = bed.command(
            [sys.executable, "-m", "pytest", "-q", "-m", "not bed", __file__], cwd=Path.cwd()
        )
        done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout
