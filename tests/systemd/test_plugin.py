"""The plugin's fixtures on the real manager: what a test gets, and what is told of it.

Each test writes a suite and runs it in a pytest of its own, as its users do.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.systemd.support import (
    CAMERA_SERVICE,
    MEDIAMTX,
    ROOT,
    left_since,
    show,
    systemctl,
    traces,
    understudy,
    units,
)

pytest_plugins = ["pytester"]

SERVER = (
    r"use Socket; $| = 1; socket(S, PF_INET, SOCK_STREAM, 0);"
    r" setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);"
    r" bind(S, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die; listen(S, 50); print qq(up\n);"
    r" while (accept(C, S)) { print qq(asked\n); syswrite C, $$; close C }"
)
"""Answers each connection with its process number, and writes a line about it."""

CONFTEST = f'''
import os, socket, subprocess, sys
from pathlib import Path
import pytest

ONE = dict(exec=["/usr/bin/perl", "-e", {SERVER!r}, "{{port.main}}"], ports=["main"])


def ask(instance):
    """Who answers: the number of a process."""
    with socket.create_connection(("127.0.0.1", instance.ports["main"]), 10) as connection:
        return int(connection.recv(100))


@pytest.fixture
def one(understudy):
    return understudy.spawn(**ONE)
'''

HEAD = "import os, pytest, subprocess, sys\nfrom conftest import ONE, ask\n"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for a suite."""
    for name in ("UNDERSTUDY_NETWORK", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini(
        "[pytest]\nfilterwarnings = error\naddopts = -p no:cacheprovider -p no:asyncio\n"
    )
    pytester.makeconftest(CONFTEST)
    return pytester


def run(suite: pytest.Pytester, body: str, *options: str) -> pytest.RunResult:
    suite.makepyfile(test_it=HEAD + body)
    return suite.runpytest_subprocess("-ra", *options, timeout=120)


def account(result: pytest.RunResult) -> str:
    """The summary line."""
    (line,) = [one for one in result.outlines if re.match(r"understudy: \d+ instances? st", one)]
    return line


def test_a_test_has_an_instance_of_its_own(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
def test_first(one, understudy):
    other, = understudy.spawn_many([understudy.request(**ONE)])
    assert ask(one) == one.pid != ask(other) == other.pid
    assert understudy.instances == [one, other]

def test_second(understudy):
    assert understudy.instances == []
    listed = subprocess.run(LIST, shell=True, capture_output=True, text=True).stdout
    assert "perl@" not in listed
""".replace(
            "LIST",
            repr(f"systemctl {'' if ROOT else '--user'} list-units --all --plain understudy-*"),
        ),
    )
    result.assert_outcomes(passed=2)
    assert re.fullmatch(
        r"understudy: 2 instances started, slowest \d\.\d\d s \(perl@r\w+-[12]\), 0 left over"
        r"(, production as before)?",
        account(result),
    )


def test_the_sessions_instances_live_on_from_test_to_test(suite: pytest.Pytester) -> None:
    body = """
@pytest.fixture(scope="session")
def long_lived(understudy_session):
    return understudy_session.spawn(**ONE)

@pytest.mark.parametrize("number", range(3))
def test_it(long_lived, number, one):
    assert ask(long_lived) == long_lived.pid
    assert long_lived.run == one.run
"""
    result = run(suite, body)
    result.assert_outcomes(passed=3)
    assert "understudy: 4 instances started" in account(result)


@pytest.mark.newest
def test_one_instance_is_shared_by_all_workers(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = run(
        suite,
        """
@pytest.mark.parametrize("number", range(12))
def test_it(understudy, number):
    shared = understudy.shared(**ONE)
    assert ask(shared) == shared.pid
    with open("seen", "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], shared.unit, shared.pid, file=file)
""",
        "-n4",
    )
    result.assert_outcomes(passed=12)
    seen = [line.split() for line in (suite.path / "seen").read_text().splitlines()]
    assert len({tuple(words[1:]) for words in seen}) == 1
    assert "understudy: 1 instance started" in account(result)


@pytest.mark.parametrize("options", [["-n8"], ["-n2", "--dist=loadgroup"], []])
def test_no_port_is_shared(suite: pytest.Pytester, options: list[str]) -> None:
    if options:
        pytest.importorskip("xdist")
    result = run(
        suite,
        """
@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(24))
def test_it(understudy, number):
    many = understudy.spawn_many([understudy.request(**ONE)] * 2)
    claimed = understudy.ports("tcp", "udp")
    assert len({*claimed, *(one.ports["main"] for one in many)}) == 4
    for one in many:
        assert ask(one) == one.pid
"""
        if options
        else "def test_it(one): assert ask(one) == one.pid",
        *options,
    )
    result.assert_outcomes(passed=24 if options else 1)


def test_workers_in_private_networks_have_instances_too(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    result = run(
        suite,
        """
@pytest.mark.parametrize("number", range(4))
def test_it(one, understudy, number):
    assert os.environ["UNDERSTUDY_NETWORK"] == "private"
    assert ask(one) == one.pid
    mine, theirs = (os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", one.pid))
    assert mine == theirs
    assert len(understudy.ports("tcp", "udp")) == 2

def test_that_fails(one):
    assert False
""",
        "-n2",
        "--understudy-network=worker",
    )
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["state: active (running), PID *", "| up"])
    assert "understudy: 5 instances started" in account(result)
    assert "0 left over" in account(result)


def test_claimed_ports_are_given_back_with_the_test(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
import socket
from pathlib import Path

def names():
    lines = Path("/proc/net/unix").read_text().splitlines()
    return {line.split("@")[1] for line in lines if "@understudy/port/" in line}

def test_first(understudy):
    before = names()
    number, = understudy.ports("tcp")
    assert len(names() - before) == 1
    socket.create_server(("127.0.0.1", number)).close()
    Path("before").write_text(" ".join(before))

def test_second():
    assert names() <= set(Path("before").read_text().split())
""",
    )
    result.assert_outcomes(passed=2)


@pytest.mark.newest
def test_a_failing_test_shows_its_own_part_of_the_log(suite: pytest.Pytester) -> None:
    result = run(
        suite,
        """
@pytest.fixture(scope="session")
def server(understudy_session):
    return understudy_session.spawn(**ONE)

def test_first(server):
    ask(server)
    ask(server)

def test_second(server, one):
    ask(server)
    one.kill()
    assert server == one
""",
        "--junitxml=result.xml",
    )
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    sections = re.split(r"-+ understudy: perl \((understudy-perl@r\w+-\d\.service)\) -+\n", text)[
        1:
    ]
    told = dict(zip(sections[::2], sections[1::2], strict=True))
    first, second = (told[unit] for unit in sorted(told))
    assert "state: active (running), PID " in first
    assert first.count("| asked") == 1
    assert "| up" not in first
    assert "state: failed, result 'signal': it was ended by SIGKILL\n" in second
    assert re.search(r"^ports: main=\d+$", second, re.MULTILINE)
    assert re.search(r"^CPU: \d+\.\d{3} s$", second, re.MULTILINE)
    assert re.search(r"^start the same: understudy spawn '--exec=/usr/bin/perl -e ", second, re.M)
    assert "| up\n" in second

    failed = ElementTree.parse(suite.path / "result.xml").find(".//testcase[@name='test_second']")
    assert failed is not None
    found = {one.get("name"): one.get("value") for one in failed.findall("properties/property")}
    assert set(found) == {f"understudy {unit}" for unit in told}


@pytest.mark.usefixtures("camera_file")
def test_the_command_that_starts_the_same_does_so_when_all_has_ended(
    suite: pytest.Pytester,
) -> None:
    body = f"""
def test_it(understudy):
    lead = understudy.spawn("mediamtx", values={MEDIAMTX})
    understudy.spawn("camera-service", values={CAMERA_SERVICE}, uses={{"mediamtx": lead}})
    assert False
"""
    text = run(suite, body).stdout.str()
    before = traces()
    (command,) = re.findall("^start the same: (understudy spawn camera-service .*)", text, re.M)
    done = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    found = json.loads(understudy("list", "--json").stdout)
    try:
        ports = {one["service"]: one["ports"] for one in found}
        assert set(ports) == {"mediamtx", "camera-service"}
        (camera,) = [one["unit"] for one in found if one["service"] == "camera-service"]
        assert camera in done.stdout
        told = f"CAMERA_SERVICE_MEDIAMTX_API_PORT={ports['mediamtx']['api']}"
        assert told in show(camera, "Environment")["Environment"].split()
    finally:
        understudy("stop", *(one["run"] for one in found))
    assert left_since(before) == set()


@pytest.mark.newest
def test_the_sections_travel_from_a_worker(suite: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    body = "def test_it(one):\n    ask(one)\n    one.stop()\n    assert False"
    result = run(suite, body, "-n1", "--junitxml=result.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*- understudy: perl (understudy-perl@*.service) -*", "state: ended", "| up", "| asked"]
    )
    assert "| asked" in (suite.path / "result.xml").read_text()


@pytest.mark.parametrize("phase", ["setup", "teardown"])
def test_other_phases_show_the_log_too(suite: pytest.Pytester, phase: str) -> None:
    where = {"setup": "raise OSError; yield", "teardown": "yield; raise OSError"}[phase]
    result = run(
        suite,
        f"@pytest.fixture\ndef more(one):\n    ask(one)\n    {where}\ndef test_it(more): pass",
    )
    result.assert_outcomes(errors=1, passed=int(phase == "teardown"))
    result.stdout.fnmatch_lines(
        [f"*ERROR at {phase} of test_it*", "*- understudy: perl *", "| asked"]
    )


def test_a_long_log_is_shortened_in_the_middle(suite: pytest.Pytester) -> None:
    body = """
def test_it(understudy):
    words = "seq -f 'line %.0f' 1000; exec sleep 1000"  # what ends at once may not be ready in time
    one = understudy.spawn(exec=["/bin/sh", "-c", words])
    one.wait_for_log("line 1000")
    assert False
"""
    result = run(suite, body)
    result.stdout.fnmatch_lines(
        ["| line 1", "| line 20", "| … 920 lines left out …", "| line 941", "| line 1000"]
    )
    result.stdout.no_fnmatch_line("| line 21")


def test_whole_logs_are_written(suite: pytest.Pytester) -> None:
    body = "@pytest.mark.parametrize('n', range(3))\ndef test_it(one, n):\n    ask(one)\n"
    result = run(suite, body, "--understudy-logs=logs")
    result.assert_outcomes(passed=3)
    written = {path.name: path.read_text() for path in (suite.path / "logs").iterdir()}
    assert len(written) == 3
    for name, text in written.items():
        assert re.fullmatch(r"understudy-perl@r\w+-\d\.log", name)
        assert text.startswith("up\nasked\n")


ERRORS = {
    "'no-such-thing'": (
        "Cannot find service 'no-such-thing': no definition of that name",
        "hint: known services: *",
    ),
    "'wrong'": ("*units/wrong/service.toml*", "*"),
    "exec=['/bin/sh', '-c', 'echo why it died; exit 7'], ports=['a']": (
        "Cannot start 'understudy-sh@*': it exited with status 7 before it was ready",
        "| why it died",
    ),
    "exec=['/bin/sh', '-c', 'echo no port; exec sleep 60'], ports=['a'], timeout_s=0.5": (
        "Cannot start 'understudy-sh@*': not ready after 0.5 s: nothing of it holds a (tcp *)",
        "| no port",
    ),
}


@pytest.mark.newest
@pytest.mark.parametrize("asked", ERRORS)
def test_what_goes_wrong_in_set_up_is_said_shortly(suite: pytest.Pytester, asked: str) -> None:
    wrong = suite.mkdir("units") / "wrong"
    wrong.mkdir()
    (wrong / "service.toml").write_text("description = 3\n")
    body = f"""
@pytest.fixture
def it(understudy):
    return understudy.spawn({asked})

def test_it(it):
    pass
"""
    result = run(suite, body, "--understudy-units=units")
    result.assert_outcomes(errors=1)
    message, more = ERRORS[asked]
    result.stdout.fnmatch_lines(
        ["test_it.py:*: in it", f"E   understudy.errors.*: {message}", f"E     {more}"]
    )
    lines = result.outlines
    begin = next(number for number, line in enumerate(lines) if " ERRORS " in line)
    end = next(number for number, line in enumerate(lines) if "short test summary" in line)
    assert end - begin <= 14, "\n".join(lines)
    assert "toolkit" not in result.stdout.str()


def test_a_full_range_is_an_error_in_set_up(suite: pytest.Pytester) -> None:
    body = """
@pytest.fixture
def two(understudy):
    return understudy.spawn_many([understudy.request(**ONE)] * 2)

def test_first(one): pass
def test_it(two): pass
"""
    result = run(suite, body, "--understudy-ports=20000-20015")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["test_it.py:*: in two", "E   understudy.errors.PortError: *20000-20015*"]
    )
    assert "toolkit" not in result.stdout.str()


@pytest.mark.newest
@pytest.mark.parametrize("keep", ["failed", "always"])
def test_instances_can_be_kept(suite: pytest.Pytester, keep: str) -> None:
    before = traces()
    body = "def test_good(one): pass\ndef test_bad(one): assert False\n"
    result = run(suite, body, f"--understudy-keep={keep}")
    result.assert_outcomes(passed=1, failed=1)
    kept = re.findall(
        r"understudy: kept: (\S+) main=\d+ \(test_it.py::(\w+)\)", result.stdout.str()
    )
    assert [test for _, test in kept] == (
        ["test_bad"] if keep == "failed" else ["test_good", "test_bad"]
    )
    assert units("understudy-perl@*") == {unit for unit, _ in kept}
    for unit, _ in kept:
        assert show(unit, "ActiveState") == {"ActiveState": "active"}
    (told,) = [line for line in result.outlines if "stop it: " in line]
    understudy(*told.partition("stop it: understudy ")[2].split())
    assert left_since(before) == set()


def test_a_shared_instance_can_be_reused_by_the_next_session(suite: pytest.Pytester) -> None:
    before = traces()
    body = """
def test_it(understudy):
    shared = understudy.shared(**ONE)
    print("PID", ask(shared))
"""
    option = f"--understudy-reuse=tests-{suite.path.name}"
    first = run(suite, body, "-s", option)
    second = run(suite, body, "-s", option)
    pids = [re.findall(r"PID (\d+)", result.stdout.str()) for result in (first, second)]
    assert pids[0] == pids[1]
    assert "understudy: 1 instance started" in account(first)
    (told,) = [line for line in second.outlines if "stop it: " in line]
    understudy(*told.partition("stop it: understudy ")[2].split())
    assert left_since(before) == set()


def test_limits_and_background_reach_each_instance(suite: pytest.Pytester) -> None:
    body = """
def test_it(one):
    show = ["systemctl", *WHOSE, "show", one.unit, "-p", "MemoryMax", "-p", "TasksMax"]
    said = subprocess.run(show, capture_output=True, text=True).stdout
    assert set(said.split()) == {"MemoryMax=67108864", "TasksMax=10"}
    assert os.sched_getscheduler(one.pid) == os.SCHED_IDLE
""".replace("WHOSE", repr([] if ROOT else ["--user"]))
    limits = "--understudy-limits=memory=64M,tasks=10,cpu=50%"
    result = run(suite, body, limits, "--understudy-background")
    result.assert_outcomes(passed=1)
    in_force = "memory" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    said = [line for line in result.outlines if line.startswith("understudy: not in force here: ")]
    if not in_force:
        assert len(said) == 1
        assert "the limit of memory, tasks, cpu: " in said[0]


def test_the_engine_and_the_time_out_are_taken_over(suite: pytest.Pytester) -> None:
    body = "def test_it(understudy):\n    assert understudy.run.timeout_s == 7\n"
    body += "    assert understudy.run.engine == 'systemd-run'\n"
    run(suite, body, "--understudy-engine=systemd-run", "--understudy-timeout=7").assert_outcomes(
        passed=1
    )
    (suite.path / "tox.ini").write_text(
        "[pytest]\nunderstudy_engine = systemd-run\nunderstudy_timeout = 7\n"
    )
    run(suite, body).assert_outcomes(passed=1)


def test_absent_production_is_a_skip_or_a_failure(suite: pytest.Pytester) -> None:
    if show("mediamtx.service", "LoadState") != {"LoadState": "not-found"}:
        pytest.skip("mediamtx is installed here")
    body = "def test_it(understudy):\n    understudy.production('mediamtx')\n"
    result = run(suite, body)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED * test_it.py:4: Cannot use production's 'mediamtx': mediamtx.service is not *; *"]
    )
    result = run(suite, body, "--understudy-require")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E   understudy.errors.ProductionError: Cannot use production's *"]
    )


def test_production_is_found_and_is_as_before(
    suite: pytest.Pytester, production: dict[str, str]
) -> None:
    unit = production["mediamtx"]
    body = f"""
def test_it(one, understudy):
    lead = understudy.production("mediamtx", unit={unit!r})
    assert lead.ports["api"] == 9997 and lead.urls["api"]
"""
    result = run(suite, body)
    result.assert_outcomes(passed=1)
    if ROOT:
        assert account(result).endswith("0 left over, production as before")


def test_changed_production_fails_the_session(suite: pytest.Pytester) -> None:
    definition = suite.mkdir("units") / "lead"
    definition.mkdir()
    name = "tests-plugin-lead.service"
    (definition / "service.toml").write_text(
        f'description = "a lead"\nproduction = "{name}"\n'
        '[ports]\nmain = { tcp = 8111, env = "PORT" }\n'
    )
    (definition / "tests-plugin-lead.service.j2").write_text("[Service]\nExecStart=/bin/sleep 60\n")
    whose = [] if ROOT else ["--user"]
    subprocess.run(
        ["systemd-run", *whose, "-q", f"--unit={name}", "-p", "CollectMode=inactive-or-failed",
         "-p", "Type=exec", "sleep", "1000"],
        check=True,
    )  # fmt: skip
    try:
        body = f"""
def test_it(one):
    assert os.system("systemctl {" ".join(whose)} restart {name}") == 0
"""
        result = run(suite, body, "--understudy-units=units")
        result.assert_outcomes(passed=1)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.stdout.fnmatch_lines(
            [
                f"understudy: production is not as it was: {name}: it was started anew on * "
                "(PID *, now *)"
            ]
        )
    finally:
        systemctl("stop", name, check=False)


def test_async_tests_have_instances_too(suite: pytest.Pytester) -> None:
    body = """
import asyncio

def test_it(understudy):
    async def both():
        beats = 0

        async def beat():
            nonlocal beats
            while True:
                await asyncio.sleep(0.002)
                beats += 1

        heart = asyncio.create_task(beat())
        async with asyncio.timeout(60):
            found = await asyncio.gather(*(understudy.aspawn(**ONE) for _ in range(3)))
            shared = await understudy.ashared(**ONE)
        heart.cancel()
        assert beats > 3
        return [*found, shared]

    for one in asyncio.run(both()):
        assert ask(one) == one.pid
    assert len(understudy.instances) == 3
"""
    result = run(suite, body)
    result.assert_outcomes(passed=1)
    assert "understudy: 4 instances started" in account(result)


@pytest.mark.newest
@pytest.mark.parametrize("plugin", ["pytest_asyncio", "anyio"])
def test_async_plugins_await_instances(suite: pytest.Pytester, plugin: str) -> None:
    pytest.importorskip(plugin)
    mark = {"pytest_asyncio": "asyncio", "anyio": "anyio"}[plugin]
    body = f"""
@pytest.mark.{mark}
async def test_it(understudy):
    one = await understudy.aspawn(**ONE)
    assert ask(one) == one.pid
"""
    (suite.path / "tox.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    if plugin == "anyio":
        body = "@pytest.fixture\ndef anyio_backend(): return 'asyncio'\n" + body
    result = run(suite, body)
    result.assert_outcomes(passed=1)


def test_a_spawned_service_is_measured_by_coverage(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    coverage = pytest.importorskip("coverage", "7.0")  # 6.5 writes nothing at SIGTERM
    if ROOT:
        pytest.skip("an instance of the system manager has a user of its own, who writes nowhere")
    monkeypatch.setenv("PYTHONPATH", str(Path(coverage.__file__).parent.parent))
    (suite.path / ".coveragerc").write_text("[run]\nsigterm = true\nparallel = true\n")
    (suite.path / "camera.py").write_text(
        "import http.server\nimport sys\n"
        "def answer(port):\n"
        "    handler = http.server.SimpleHTTPRequestHandler\n"
        "    http.server.HTTPServer(('127.0.0.1', port), handler).serve_forever()\n"
        "def never():\n"
        "    return 1\n"
        "answer(int(sys.argv[1]))\n"
    )
    body = """
from pathlib import Path

def test_it(understudy):
    here = Path.cwd()
    understudy.spawn(
        exec=[sys.executable, "-m", "coverage", "run", f"--rcfile={here}/.coveragerc",
              f"--data-file={here}/.coverage", f"{here}/camera.py", "{port.http}"],
        ports=["http"],
        env={"PYTHONPATH": os.environ["PYTHONPATH"]},
    )
"""
    run(suite, body).assert_outcomes(passed=1)
    suite.run(sys.executable, "-m", "coverage", "combine", timeout=60)
    said = suite.run(sys.executable, "-m", "coverage", "report", "-m", timeout=60)
    said.stdout.fnmatch_lines(["camera.py * 7"])


def test_a_debugger_listens_in_an_instance(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    debugpy = pytest.importorskip("debugpy")
    monkeypatch.setenv("PYTHONPATH", str(Path(debugpy.__file__).parent.parent))
    body = """
def test_it(understudy):
    import socket

    one = understudy.spawn(
        exec=[sys.executable, "-Xfrozen_modules=off", "-m", "debugpy", "--listen",
              "127.0.0.1:{port.debug}", "-m", "http.server", "--bind", "{host}", "{port.http}"],
        ports=["http", "debug"],
        env={"PYTHONPATH": os.environ["PYTHONPATH"], "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
    )
    with socket.create_connection(("127.0.0.1", one.ports["debug"]), 10) as debugger:
        debugger.settimeout(20)
        assert debugger.recv(100).startswith(b"Content-Length: ")  # its protocol's greeting
"""
    run(suite, body).assert_outcomes(passed=1)


def test_the_code_under_test_is_the_checkout(suite: pytest.Pytester, open_directory: Path) -> None:
    unit = suite.mkdir("units") / "camera"
    unit.mkdir()
    (unit / "service.toml").write_text(
        'description = "a camera"\n[values]\nroot = "/opt/camera"\n'
        '[ports]\nmain = { tcp = 8111, env = "PORT", value = "{port}" }\n'
    )
    (unit / "camera.service.j2").write_text(
        "[Service]\nExecStart=/bin/sh -c 'exec /usr/bin/perl {{ root }}/camera.pl $$PORT'\n"
    )
    (open_directory / "camera.pl").write_text(SERVER.replace("$$", '"checkout"'))
    body = f"""
def test_it(understudy):
    from pathlib import Path
    import socket

    one = understudy.spawn("camera", values={{"root": Path({str(open_directory)!r})}})
    with socket.create_connection(("127.0.0.1", one.ports["main"]), 10) as connection:
        assert connection.recv(100) == b"checkout"
"""
    run(suite, body, "--understudy-units=units").assert_outcomes(passed=1)
