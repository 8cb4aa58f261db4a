"""What is told to an instance in confidence, and who else can read it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest
from tests.systemd.support import (
    ACTIVATED,
    CAMERA_SERVICE,
    MEDIAMTX,
    ROOT,
    RUNTIME,
    SERVICES,
    SOON_S,
    UNIT_DIR,
    call,
    command_line,
    eventually,
    files,
    get,
    killed,
    require,
    require_throwaway,
    sets,
    show,
    systemctl,
    understudy,
)

from understudy import production
from understudy.api import Api
from understudy.errors import ProductionError, UsageError
from understudy.instance import Instance
from understudy.manager import connect
from understudy.model import Engine
from understudy.run import Run

SECRET = "hush-5f0c7e"
NASTY = {
    "PLAIN": SECRET,
    "EMPTY": "",
    "BLANKS": f"  {SECRET}\t ",
    "QUOTES": f"""{SECRET} a "b" 'c' `d`""",
    "BACKSLASHES": f"{SECRET}\\n \\\\ \\",
    "DOLLARS": f"{SECRET} $HOME ${{HOME}} $$ $(id)",
    "SPECIFIERS": f"{SECRET} %n %% %t %",
    "COMMENTS": f"# {SECRET} ; #",
    "LINES": f"-----BEGIN-----\n{SECRET}\n\n[Service]\nUser=root\n",
    "ALPHABETS": f"ä ☃ 𝄞 {SECRET}",
    "EQUALS": f"={SECRET}=",
    # What the definition, its ports and the toolkit itself say is overruled.
    "CONFIG": SECRET,
    "UNDERSTUDY_HOST": SECRET,
}
NOTHING = ["/bin/sh", "-c", "exec sleep 1000"]


def environment(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return {name: value for name, _, value in (row.partition("=") for row in text.split("\0"))}


def readable_by_others(where: Iterable[Path]) -> str:
    """All that somebody else could read of files."""
    found = ""
    for folder in where:
        for path in [folder, *folder.rglob("*")]:
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o044:
                found += path.read_text()
    return found


def told_to_others(instance: Instance, *, by_us: bool = False) -> str:
    """All that is said of an instance where anybody can look; what we say takes its time."""
    told = systemctl("show", "--all", instance.unit) + systemctl("cat", instance.unit)
    told += readable_by_others([*files(), instance.directory])
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        if process.parent.name != str(os.getpid()):
            told += process.read_text(errors="replace") if process.exists() else ""
    for command in ("list", "show", "logs") if by_us else ():
        which = [] if command == "list" else [instance.unit]
        told += understudy(command, *which).stdout
        told += "" if command == "logs" else understudy(command, *which, "--json").stdout
    journal = ["journalctl", "--no-pager", "--output=export", f"_PID={os.getpid()}"]
    journal += ["+", f"SYSLOG_IDENTIFIER={instance.unit}", "+", f"UNIT={instance.unit}"]
    told += subprocess.run(journal, capture_output=True, text=True, check=False).stdout
    return told + instance.reproduce() + repr(instance) + repr(vars(instance)["_derived"])


@pytest.mark.parametrize("prefer", ["dbus", "commands"])
@pytest.mark.parametrize("engine", Engine)
def test_what_was_asked_for_reaches_the_instance_and_nobody_else(
    engine: Engine, prefer: Literal["dbus", "commands"]
) -> None:
    with Run(manager=connect(prefer=prefer), engine=engine) as run:
        one = run.spawn(exec=NOTHING, env=NASTY)
        found = environment(one.pid)
        assert {name: found.get(name) for name in NASTY} == NASTY
        assert SECRET not in told_to_others(one, by_us=(engine, prefer) == ("files", "commands"))
        if engine is Engine.FILES:
            one.restart()
            assert environment(one.pid)["LINES"] == NASTY["LINES"]
        # What whoever looks for it finds: whose it is, and that.
        file = Path(f"{one.directory}.files/secrets.env")
        found_stat = file.stat()
        assert (stat.S_IMODE(found_stat.st_mode), found_stat.st_uid) == (0o600, os.geteuid())


def test_every_kind_of_instance_is_told_in_confidence() -> None:
    with Run(units=SERVICES) as run:
        instances = [
            *run.spawn_many([run.request("takes-udp", env=NASTY)] * 2),
            run.shared("takes-udp", env=NASTY),
            run.spawn(exec=NOTHING, env=NASTY, network="private"),
            # On a user manager this one's first process is one that enters the network.
            run.spawn(exec=NOTHING, env=NASTY, network="private:lab"),
            run.spawn(exec=NOTHING, env=NASTY, network="private:lab"),
        ]
        for one in instances:
            assert environment(one.pid)["LINES"] == NASTY["LINES"], one
        lazy = run.spawn("camera-service-activated", values=ACTIVATED, env=NASTY, lazy=True)
        get(f"{lazy.urls['health']}/health/ready")
        assert environment(lazy.pid)["LINES"] == NASTY["LINES"]
        for one in (instances[2], instances[-1]):
            assert SECRET not in told_to_others(one)


INSTALLED = f"""\
[Service]
Type=exec
ExecStart=/bin/sh -c 'exec sleep 1000'
Environment=KEPT=1 DB_PASSWORD={SECRET} "MAIL_TOKEN={SECRET} 2"
EnvironmentFile=/run/tests-of-understudy.env
PassEnvironment=container
LoadCredential=loaded:/run/tests-of-understudy.env
LoadCredentialEncrypted=encrypted:/run/tests-of-understudy.env
SetCredential=set:{SECRET}
SetCredentialEncrypted=sealed: aHVzaA==
# Environment=OLD_PASSWORD={SECRET}
"""


@pytest.mark.skipif(not ROOT, reason="only root can install a unit")
@pytest.mark.parametrize("engine", Engine)
def test_no_secret_of_what_is_installed_reaches_an_instance(engine: Engine) -> None:
    unit = "tests-confidential.service"
    with ExitStack() as undo:
        for path, text in (
            (UNIT_DIR / unit, INSTALLED),
            (RUNTIME / "tests-of-understudy.env", f"FROM_FILE={SECRET}\n"),
        ):
            path.touch(0o600, exist_ok=False)
            undo.callback(path.unlink)
            path.write_text(text)
        require("container" in environment(1), "PID 1 has no variable to pass on")
        with Run(engine=engine) as run:
            one = run.spawn(unit, installed=True)
            told = environment(one.pid)
            assert told["KEPT"] == "1"
            assert not {"CREDENTIALS_DIRECTORY", "FROM_FILE", "container"} & told.keys()
            assert SECRET not in "".join(told.values())
            assert not Path(f"/run/credentials/{one.unit}").exists()
            assert SECRET not in told_to_others(one)


def test_a_run_that_is_killed_leaves_no_secret(tmp_path: Path) -> None:
    options = ["--exec", shlex.join(NOTHING), "--env", "TOKEN"]
    process = subprocess.Popen(
        command_line("spawn", *options, "--", "sh", "-c", "echo up; exec sleep 1000"),
        stdout=subprocess.PIPE,
        env={**os.environ, "TOKEN": SECRET},
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    [file] = (RUNTIME / "understudy").glob("*/*.files/secrets.env")
    assert SECRET in file.read_text()
    killed(process)
    assert eventually(lambda: not file.parent.parent.exists())


def test_a_script_takes_secrets_from_its_own_environment(tmp_path: Path) -> None:
    command = "env > /dev/null; exec sleep 1000"
    file = tmp_path / "variables"
    file.write_text(f"# Variables\nFROM_FILE='{SECRET} 1'\nWINS=file\n")
    words: list[str | Path] = ["spawn", "--exec", f"/bin/sh -c '{command}'"]
    words += ["--env-file", file, "--env", "WINS=x"]
    words += [word for name in NASTY for word in ("--env", name)]
    script = understudy(*words, "--dry-run", env=NASTY).stdout
    assert SECRET not in script
    given = {**os.environ, **NASTY, "FROM_FILE": "1", "WINS": "2"}
    bare = {name: value for name, value in given.items() if name not in NASTY}
    refused = subprocess.run(["sh"], input=script, env=bare, capture_output=True, text=True)
    stop = script.rpartition("# The end: ")[2]
    assert refused.returncode
    assert "PLAIN" in refused.stderr
    subprocess.run(["sh"], input=script, env=given, text=True, check=True)
    try:
        [unit] = [name for name in systemctl("list-units", "--plain", "understudy-sh@*").split()
                  if name.endswith(".service")]  # fmt: skip
        found = environment(int(show(unit, "MainPID")["MainPID"]))
        assert {name: found.get(name) for name in NASTY} == NASTY
        assert (found["FROM_FILE"], found["WINS"]) == ("1", "2")
    finally:
        subprocess.run(["sh"], input=stop, text=True, check=True)


PASSWORD = f"{SECRET} ä\"'$%:\\"


def asked(url: str, password: str = "") -> int:
    """The status of a GET of MediaMTX's list of paths."""
    port = int(url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON_S)
    pair = base64.b64encode(f"understudy:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {pair}"} if password else {}
    connection.request("GET", "/v3/paths/list", headers=headers)
    with contextlib.closing(connection), connection.getresponse() as answer:
        return answer.status


def test_mediamtx_has_a_password_that_whoever_uses_it_is_told(camera_file: Path) -> None:
    with Run() as run:
        values = {**MEDIAMTX, "api_password": PASSWORD}
        [mtx, other] = run.spawn_many([run.request("mediamtx", values=values)] * 2)
        for one in (mtx, other):
            assert asked(one.urls["api"]) == asked(one.urls["api"], "guess") == 401
            assert asked(one.urls["api"], PASSWORD) == 200
        camera = run.spawn("camera-service", values=CAMERA_SERVICE, uses={"mediamtx": mtx})
        status = call(camera.urls["websocket"], "get_status")
        assert status["mediamtx"]["api"] == mtx.urls["api"]
        # Another process of its owner finds it, and the restarted one is found to be ready.
        by_name = f"mediamtx={mtx.run}-{mtx.number}"
        options = [*sets(CAMERA_SERVICE), "--uses", by_name, "--json"]
        [found] = json.loads(understudy("spawn", "camera-service", *options).stdout)
        try:
            assert call(found["urls"]["websocket"], "get_status")["status"] == "running"
            for one in (mtx, camera):
                told = told_to_others(one, by_us=one is mtx)
                assert PASSWORD not in told
                assert SECRET not in told
        finally:
            understudy("stop", found["run"])
        mtx.restart()
        assert asked(mtx.urls["api"], PASSWORD) == 200
        assert asked(mtx.urls["api"]) == 401
        client = Api(mtx.urls["api"], credentials=("understudy", PASSWORD))
        client.add("cam0")
        assert "cam0" in client.configured()
        with pytest.raises(ProductionError, match="401") as caught:
            Api(mtx.urls["api"]).configured()
        assert "UNDERSTUDY_MEDIAMTX_API_PASSWORD" in (caught.value.hint or "")


def test_a_secret_value_is_read_from_stdin_and_shared_unseen() -> None:
    words = ["spawn", "mediamtx", *sets(MEDIAMTX), "--json", "--set"]
    [found] = json.loads(understudy(*words, "api_password=@-", stdin=PASSWORD).stdout)
    try:
        assert asked(found["urls"]["api"], PASSWORD) == 200
    finally:
        understudy("stop", found["run"])
    refused = understudy(*words, "api_password=@/nowhere", code=2).stderr
    assert "api_password=@/nowhere: No such file or directory" in refused
    values = {**MEDIAMTX, "api_password": PASSWORD}
    with Run() as run, Run() as second:
        run.shared("mediamtx", values=values)
        with pytest.raises(UsageError, match="value 'api_password' is set there") as caught:
            second.shared("mediamtx", values=MEDIAMTX)
        assert SECRET not in caught.value.message
        one = second.shared("mediamtx", values=values)
        assert asked(one.urls["api"], PASSWORD) == 200
        assert one.confided["api_password"] == PASSWORD


@pytest.mark.skipif(not ROOT, reason="only root can deploy")
def test_production_has_a_password_that_root_alone_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_throwaway()
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    settings = [*sets(MEDIAMTX), "--set", f"api_password=@{file}"]
    with ExitStack() as undo:
        undo.callback(understudy, "withdraw", "mediamtx", "--purge")
        assert SECRET not in understudy("deploy", "mediamtx", *settings, "--dry-run").stdout
        assert SECRET not in understudy("deploy", "mediamtx", *settings).stdout
        path = Path("/etc/mediamtx/secrets.env")
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, 0)
        told = systemctl("show", "--all", "mediamtx.service")
        told += systemctl("cat", "mediamtx.service") + readable_by_others([Path("/etc/mediamtx")])
        assert SECRET not in told
        assert asked("http://127.0.0.1:9997") == 401
        with pytest.raises(ProductionError, match="401") as caught:
            production("mediamtx").api.settings()
        assert "UNDERSTUDY_MEDIAMTX_API_PASSWORD=" in (caught.value.hint or "")
        monkeypatch.setenv("UNDERSTUDY_MEDIAMTX_API_PASSWORD", PASSWORD)
        lead = production("mediamtx")
        assert lead.ready()
        assert lead.api.settings()["rtspAddress"] == ":8554"
        with Run() as run:
            # Nothing of it reaches an instance, and who uses production is told.
            copy = run.spawn("mediamtx", values=MEDIAMTX, installed=True)
            assert asked(copy.urls["api"]) == 200
            assert "sha256:" not in "".join(environment(copy.pid).values())
            service = run.request("camera-service", values=CAMERA_SERVICE)
            assert service.used_secrets["mediamtx"]["api_password"] == PASSWORD


FAILING = """
import os

import pytest


def test_one_that_runs(understudy):
    understudy.spawn(exec={nothing!r}, env={{"TOKEN": os.environ["GIVEN"]}})
    assert False


def test_one_with_a_password(understudy):
    password = os.environ["GIVEN"]
    understudy.spawn("mediamtx", values={{"program": "/bin/false", "api_password": password}})
"""


def test_no_report_of_a_failure_has_it(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING.format(nothing=NOTHING))
    options = ["-p", "no:cacheprovider", "--junitxml=junit.xml", "-v", "test_failing.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env={**os.environ, "GIVEN": SECRET},
        capture_output=True,
        text=True,
        check=False,
    )
    report = done.stdout + done.stderr + (tmp_path / "junit.xml").read_text()
    assert "--env=TOKEN" in report
    assert "2 failed" in report
    assert SECRET not in report
