"""However a pytest run ends, nothing of its instances is left.

After each test here an autouse fixture demands that no unit, process, file, port or name is left
(conftest.py); what ends by itself, when its owner is gone, is waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from tests.systemd import suites
from tests.systemd.support import ROOT, eventually, left_since, traces, units
from tests.systemd.test_plugin import CONFTEST, HEAD

pytest_plugins = ["pytester"]

LIMIT_S = 120

ALL_ENDS = os.environ.get("UNDERSTUDY_ALL_ENDS") == "1"
"""Whether root and a user both try all."""

HANGING = """
@pytest.mark.parametrize("number", range(2))
def test_hangs(one, understudy, understudy_session, number):
    understudy_session.spawn(**ONE)
    understudy.shared(**ONE)
    understudy.ports("tcp")
    Path("hangs-%d" % os.getpid()).write_text(one.unit)
    HOW
""".replace("HOW", "subprocess.run(['sleep', '1000'])")


class Running:
    """A pytest run in a process group of its own, as a shell's foreground job is."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                # A shell has its background jobs ignore Ctrl-C, and so all that they start.
                ["env", "--default-signal=INT", sys.executable, "-m", "pytest", "-ra", *options],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed."""
        return (self.folder / "output").read_text()

    def hanging(self, count: int = 1) -> list[int]:
        """The processes whose tests hang by now, each with its instances."""

        def there() -> bool:
            return len([*self.folder.glob("hangs-*")]) >= count

        eventually(lambda: there() or self.process.poll() is not None, timeout_s=LIMIT_S)
        assert there(), self.output
        return [int(path.name.removeprefix("hangs-")) for path in self.folder.glob("hangs-*")]

    def end(self, *signals: int, group: bool = False) -> int:
        """Send signals, one after the other, and give the exit code."""
        for number in signals:
            if group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        return self.process.wait(LIMIT_S)


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for a suite; what still runs in it is killed afterwards."""
    for name in ("UNDERSTUDY_NETWORK", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:asyncio\n")
    pytester.makeconftest(CONFTEST)
    yield pytester.path
    for path in pytester.path.glob("hangs-*"):
        try:
            os.kill(int(path.name.removeprefix("hangs-")), signal.SIGKILL)
        except ProcessLookupError:
            continue


def write(folder: Path, body: str) -> Path:
    (folder / "test_it.py").write_text(f"from pathlib import Path\n{HEAD}{body}")
    return folder


def ended(folder: Path, body: str, *options: str) -> tuple[int, str]:
    """Exit code and output of a run that ends by itself, with nothing left of it by then."""
    before = traces()
    running = Running(write(folder, body), *options)
    code = running.process.wait(LIMIT_S)
    assert left_since(before) == set(), running.output
    return code, running.output


def alone_and_with_workers(ends: Iterable[str]) -> list[ParameterSet]:
    """All ends of a run; of those with workers one half is root's to try, the other a user's."""
    tried = slice(None) if ALL_ENDS else slice(int(ROOT), None, 2)
    return [
        *(pytest.param(end, [], id=f"{end}-alone") for end in ends),
        *(pytest.param(end, ["-n2"], id=f"{end}-workers") for end in [*ends][tried]),
    ]


ENDS = {
    "success": "def test_it(one, understudy_session): understudy_session.spawn(**ONE)",
    "failure": "def test_it(one): assert False",
    "error in set-up": (
        "@pytest.fixture\ndef more(one, understudy):\n    understudy.spawn(**ONE)\n"
        "    raise OSError\ndef test_it(more): pass"
    ),
    "error in tear-down": (
        "@pytest.fixture\ndef more(one):\n    yield\n    raise OSError\ndef test_it(more): pass\n"
        "@pytest.fixture(scope='session')\ndef last(understudy_session):\n"
        "    yield understudy_session.spawn(**ONE)\n    raise OSError\ndef test_last(last): pass"
    ),
    "exit": "def test_it(one): pytest.exit('enough', 3)",
    "interrupt": "def test_it(one): raise KeyboardInterrupt",
    "stopped by hand": "def test_it(one): one.stop(); one.stop()",
    "died": (
        "def test_it(one):\n    one.kill()\n    with pytest.raises(Exception):\n"
        "        one.wait_for_log('never')"
    ),
    "another directory and home": (
        "def test_it(understudy, tmp_path, monkeypatch):\n    os.chdir(tmp_path)\n"
        "    os.environ['HOME'] = str(tmp_path)\n    os.environ.pop('XDG_RUNTIME_DIR', None)\n"
        "    understudy.spawn(**ONE)\n    tmp_path.rename(tmp_path.with_name('elsewhere'))"
    ),
}


@pytest.mark.parametrize(("end", "workers"), alone_and_with_workers(ENDS))
def test_nothing_is_left_after(folder: Path, end: str, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    code, output = ended(folder, ENDS[end], *workers)
    expected = {"success": 0, "stopped by hand": 0, "died": 0, "another directory and home": 0}
    if end not in ("exit", "interrupt"):
        assert code == expected.get(end, 1), output
        assert "0 left over" in output


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "workers"])
def test_nothing_is_left_after_the_first_failure(folder: Path, workers: list[str]) -> None:
    body = "@pytest.mark.parametrize('n', range(6))\ndef test_it(one, n): assert n != 1\n"
    code, output = ended(folder, body, "-x", *workers)
    assert code != 0
    assert "1 failed" in output


SIGNALS = {
    "Ctrl-C": ([signal.SIGINT], True),
    "Ctrl-C twice": ([signal.SIGINT, signal.SIGINT], True),
    "SIGTERM": ([signal.SIGTERM], False),
    "SIGKILL": ([signal.SIGKILL], False),
}


@pytest.mark.parametrize(("name", "workers"), alone_and_with_workers(SIGNALS))
def test_nothing_is_left_after_a_signal(folder: Path, name: str, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    before = traces()
    running = Running(write(folder, HANGING), *workers)
    running.hanging(2 if workers else 1)
    assert units("understudy-perl@*")
    signals, group = SIGNALS[name]
    assert running.end(*signals, group=group) != 0
    assert left_since(before) == set(), running.output


@pytest.mark.newest
def test_nothing_is_left_of_a_worker_that_was_killed(folder: Path) -> None:
    pytest.importorskip("xdist")
    before = traces()
    body = """
@pytest.mark.parametrize("number", range(6))
def test_it(one, understudy, number):
    shared = understudy.shared(**ONE)
    assert ask(shared) == shared.pid
    if number == 2:
        Path("killed").write_text(one.unit)
        os.kill(os.getpid(), 9)
"""
    code, output = ended(folder, body, "-n2")
    assert code == 1, output
    assert "1 failed, 5 passed" in output
    assert "0 left over" in output
    assert left_since(before) == set()


def test_nothing_is_left_after_a_time_out(folder: Path) -> None:
    pytest.importorskip("pytest_timeout")
    for method in ("signal", "thread"):
        code, output = ended(folder, HANGING, "--timeout=2", f"--timeout-method={method}")
        assert code != 0
        assert "Timeout" in output


FORKED = """
import json
from _pytest.runner import runtestprotocol


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    hook, config = item.config.hook, item.config
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        reports = runtestprotocol(item, log=False)
        told = [hook.pytest_report_to_serializable(config=config, report=one) for one in reports]
        with open(writing, "w") as pipe:
            json.dump(told, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        told = json.load(pipe)
    os.waitpid(child, 0)
    for one in told:
        report = hook.pytest_report_from_serializable(config=config, data=one)
        item.ihook.pytest_runtest_logreport(report=report)
    return True
"""
"""What ``--forked`` does: each test in a child that ends without a word to anybody."""


def test_forked_tests_end_their_own_instances(folder: Path) -> None:
    with (folder / "conftest.py").open("a") as conftest:
        conftest.write(FORKED)
    body = "@pytest.mark.parametrize('n', range(3))\n"
    body += "def test_it(one, n): assert ask(one) == one.pid\n"
    code, output = ended(folder, body)
    assert code == 0, output
    assert "understudy: 3 instances started" in output


def test_tests_under_forked_end_their_own_instances(folder: Path) -> None:
    pytest.importorskip("pytest_forked")
    body = """
@pytest.mark.parametrize("n", range(3))
def test_it(one, understudy, n):
    assert ask(one) == one.pid
    shared = understudy.shared(**ONE)
    assert ask(shared) == shared.pid

def test_that_fails(one):
    ask(one)
    assert False

def test_that_dies(one):
    os.kill(os.getpid(), 9)

def test_after(one):
    assert ask(one) == one.pid
"""
    for workers in ([], ["-n2"]):
        code, output = ended(folder, body, "--forked", *workers)
        assert code == 1, output
        assert "2 failed, 4 passed" in output
        assert output.count("| asked") == 1, output
        assert ", 0 left over" in output


FORKS = {
    "exits": "os._exit(0)",
    "runs through pytest": "sys.exit(0)",
    "spawns": "print(understudy.spawn(**ONE).unit); os._exit(0)",
    "stops": "one.stop(); understudy.run.stop(); os._exit(0)",
}


@pytest.mark.parametrize("child", FORKS)
def test_a_forked_child_does_not_end_its_parents_run(folder: Path, child: str) -> None:
    body = f"""
def test_first(one, understudy, understudy_session):
    longer = understudy_session.spawn(**ONE)
    child = os.fork()
    if child == 0:
        {FORKS[child]}
    os.waitpid(child, 0)
    assert ask(one) == one.pid
    assert ask(longer) == longer.pid

def test_second(one, understudy_session):
    assert ask(one) == one.pid
    assert ask(understudy_session.instances[0])
"""
    code, output = ended(folder, body, "-s")
    assert code == 0, output


def test_a_forked_child_does_not_keep_its_parents_run_alive(folder: Path) -> None:
    body = """
def test_it(one):
    child = os.fork()
    if child == 0:
        os.setsid()
        Path("hangs-%d" % os.getpid()).write_text(one.unit)
        os.execvp("sleep", ["sleep", "1000"]) if sys.argv[-1] == "exec" else None
        while True:
            subprocess.run(["sleep", "1000"])
    while not Path("hangs-%d" % child).exists():
        pass
    os.kill(os.getpid(), 9)
"""
    code, _ = ended(folder, body)
    assert code == -signal.SIGKILL
    (child,) = folder.glob("hangs-*")
    assert Path(f"/proc/{child.name.removeprefix('hangs-')}").exists()


def test_a_test_that_closes_all_descriptors_leaves_nothing(folder: Path) -> None:
    body = """
def test_first(one, understudy_session):
    understudy_session.spawn(**ONE)
    os.closerange(3, 4096)

def test_second(one):
    assert ask(one) == one.pid
"""
    code, output = ended(folder, body, "-s", "-p", "no:faulthandler", "-p", "no:logging")
    assert code == 0, output


BUSY = """
@pytest.mark.parametrize("number", range(8))
def test_it(one, understudy, number):
    shared = understudy.shared(**ONE)
    assert ask(one) == one.pid
    assert ask(shared) == shared.pid
"""


def test_two_checkouts_run_at_once(folder: Path) -> None:
    before = traces()
    runs = []
    for name in ("first", "second"):
        checkout = folder / name
        checkout.mkdir()
        (checkout / "pytest.ini").write_text((folder / "tox.ini").read_text())
        (checkout / "conftest.py").write_text(CONFTEST)
        runs.append(Running(write(checkout, BUSY)))
    for running in runs:
        assert running.process.wait(LIMIT_S) == 0, running.output
        assert "understudy: 9 instances started" in running.output
    assert left_since(before) == set()


@pytest.mark.skipif(not ROOT, reason="only root can be two users")
def test_two_users_run_at_once(open_directory: Path) -> None:
    (open_directory / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    (open_directory / "conftest.py").write_text(CONFTEST)
    write(open_directory, BUSY)
    with suites.users() as users:
        before = [user.traces() for user in users.values()]
        command = [sys.executable, "-m", "pytest"]
        runs = [user.start(*command, cwd=open_directory) for user in users.values()]
        for running in runs:
            with running:
                output, _ = running.communicate(timeout=LIMIT_S)
            assert running.returncode == 0, output
            assert "understudy: 9 instances started" in output
        assert [user.traces() for user in users.values()] == before
