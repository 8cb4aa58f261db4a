"""Tests on real systemd managers: root's is the system's, anybody else's the own user manager.

After every test nothing of it may be left: no unit, unit file, directory, process or socket.
"""

# understudy: ignore-folder[A101, A102, A103, A201] in a bed: production is theirs

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.systemd import suites
from tests.systemd.support import (
    ANY_MEDIAMTX,
    CAMERA_FILE,
    CAMERA_SERVICE,
    ROOT,
    RUNTIME,
    SERVICES,
    UNIT_DIR,
    bound,
    eventually,
    left_since,
    require,
    sets,
    show,
    systemctl,
    traces,
    understudy,
)

from understudy.leases import end_resting
from understudy.run import Run


def pytest_sessionstart() -> None:
    """Let signals reach what tests start: nohup(1) and jobs in the background ignore some."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            ours = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, ours)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is here; a bed is booted from outside, where no systemd need be."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("bed"):
            item.add_marker(pytest.mark.systemd)


@pytest.fixture(scope="session")
def _manager() -> None:
    """A manager to test on."""
    try:
        state = systemctl("is-system-running", check=False).strip()
    except OSError as exc:
        state = str(exc)
    whose = "the system's systemd" if ROOT else "a systemd user manager"
    require(state in ("running", "degraded", "starting"), f"{whose} is not in reach: {state}")


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Demand, with systemctl and the kernel as witnesses, that a test leaves nothing."""
    if request.node.get_closest_marker("bed"):
        yield
        return
    request.getfixturevalue("_manager")
    before = traces()
    yield
    end_resting()  # what keeps leases would wait a little for the next
    assert left_since(before) == set()


@pytest.fixture
def run() -> Iterator[Run]:
    """A run that knows the definitions of the tests too."""
    with Run(units=SERVICES) as run:
        yield run


@pytest.fixture(scope="module")  # others take its ports for a production of their own
def _production() -> Iterator[dict[str, str]]:
    """MediaMTX and camera service on their standard ports, units of nobody but the host.

    As root they are the shipped units, rendered; a user's own manager has a plain one of
    another name, since what the system's would be is not for that user to install.
    """
    taken = sorted(bound("tcp").keys() & {9997, 8554, 8888, 8889, 8002, 8003})
    require(not taken, f"the standard ports are not free: {taken}")
    with ExitStack() as undo:
        yield _install_production(undo) if ROOT else _imitate_production(undo)


@pytest.fixture
def production(_production: dict[str, str]) -> Iterator[dict[str, str]]:
    """Production's unit names by service; they must come through the test untouched."""
    before = {unit: _life(unit) for unit in _production.values()}
    yield _production
    assert {unit: _life(unit) for unit in _production.values()} == before


@pytest.fixture(scope="module")
def _users() -> Iterator[Mapping[str, suites.User]]:
    """Who runs the suites of tests/examples."""
    with suites.users() as found:
        yield found


@pytest.fixture
def guest(request: pytest.FixtureRequest) -> suites.User:
    """Somebody else than root."""
    if not ROOT:
        pytest.skip("only root can be two users")
    users: Mapping[str, suites.User] = request.getfixturevalue("_users")
    return users["user"]


@pytest.fixture(params=["root", "user"])
def user(
    request: pytest.FixtureRequest, _users: Mapping[str, suites.User]
) -> Iterator[suites.User]:
    """Root, and somebody who is nobody in particular; nothing of their runs may be left."""
    user = _users[request.param]
    before = user.traces()
    yield user
    eventually(lambda: user.traces() <= before)
    assert user.traces() - before == set()


@pytest.fixture
def camera_file() -> Iterator[Path]:
    """The file that the camera service has its health port from; an instance's is bound over it."""
    if CAMERA_FILE.exists():
        yield CAMERA_FILE
        return
    require(ROOT, f"{CAMERA_FILE} is not there, and only root can make it")
    with ExitStack() as undo:
        _make_file(undo, CAMERA_FILE, "health_port: 8003\n")
        yield CAMERA_FILE


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user may read: instances of the system manager have their own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="understudy-test-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def _life(unit: str) -> tuple[str, ...]:
    seen = show(unit, "ActiveState", "InvocationID", "MainPID", "NRestarts")
    return tuple(seen.values())


def _install_production(undo: ExitStack) -> dict[str, str]:
    for unit in ("mediamtx.service", "camera-service.service"):
        require(show(unit, "LoadState") == {"LoadState": "not-found"}, f"{unit} is installed here")
    if not CAMERA_FILE.exists():
        _make_file(undo, CAMERA_FILE, "health_port: 8003\n")
    config = RUNTIME / "tests-of-understudy.yml"
    _make_file(undo, config, "api: yes\npaths:\n  all_others:\n")
    for service, values in (
        ("mediamtx", {**ANY_MEDIAMTX, "config": str(config)}),
        ("camera-service", CAMERA_SERVICE),
    ):
        text = understudy("render", service, *sets(values)).stdout
        _make_file(undo, UNIT_DIR / f"{service}.service", text)
    undo.callback(_forget, "camera-service.service", "mediamtx.service")
    systemctl("daemon-reload")
    systemctl("start", "mediamtx.service", "camera-service.service")
    assert eventually(lambda: {9997, 8554, 8002, 8003} <= bound("tcp").keys())
    return {"mediamtx": "mediamtx.service", "camera-service": "camera-service.service"}


def _imitate_production(undo: ExitStack) -> dict[str, str]:
    unit = "tests-lead-mediamtx.service"
    config = RUNTIME / "tests-of-understudy.yml"
    _make_file(undo, config, "api: yes\npaths:\n  all_others:\n")
    undo.callback(systemctl, "stop", unit)
    subprocess.run(
        ["systemd-run", "--user", "--quiet", "--collect", f"--unit={unit}", "--property=Type=exec",
         *ANY_MEDIAMTX["program"].split(), str(config)],
        check=True,
    )  # fmt: skip
    assert eventually(lambda: {9997, 8554} <= bound("tcp").keys())
    return {"mediamtx": unit}


def _forget(*names: str) -> None:
    systemctl("stop", *names)
    systemctl("clean", "--what=all", *names)  # what is left would be a deployed one's
    for name in names:
        (UNIT_DIR / name).unlink(missing_ok=True)
    systemctl("daemon-reload")
    systemctl("reset-failed", *names, check=False)


def _make_file(undo: ExitStack, path: Path, text: str) -> None:
    """Write a file that is not there, and take it and the folders made for it away again."""
    for folder in reversed(path.parents):
        if not folder.exists():
            folder.mkdir()
            undo.callback(folder.rmdir)
    path.write_text(text)
    undo.callback(path.unlink, missing_ok=True)
