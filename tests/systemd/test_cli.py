"""The commands on a real manager: output, exit codes, and that what they began ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.systemd.support import (
    MEDIAMTX,
    ROOT,
    SERVICES,
    SOON_S,
    UNIT_DIR,
    bound_by,
    command_line,
    eventually,
    get,
    holders,
    left_since,
    processes,
    read_until,
    sets,
    show,
    systemctl,
    terminal,
    traces,
    understudy,
    units,
)

REDIS = ("redis", "--units", str(SERVICES))
KIND = "system" if ROOT else "user"


def rows(*arguments: str) -> list[dict[str, Any]]:
    """What a command prints with --json."""
    found = json.loads(understudy(*arguments, "--json").stdout)
    assert isinstance(found, list)
    return found


@pytest.fixture
def spawned() -> Iterator[dict[str, Any]]:
    """One Redis, as `spawn --json` tells of it."""
    [one] = rows("spawn", *REDIS)
    yield one
    understudy("stop", one["run"], code=None)


def test_spawn_says_what_it_started_and_how_to_end_it() -> None:
    done = understudy("spawn", *REDIS, "--count", "2")
    header, *table = done.stdout.splitlines()
    assert header.split() == ["UNIT", "READY", "IN", "PORTS"]
    found = [re.fullmatch(r"(\S+) +\d+ ms +redis=(\d+)", row) for row in table]
    assert len(found) == 2
    for match in found:
        assert match is not None
        assert holders("tcp", int(match[2])) == {match[1]}
    stop = re.search(r"Ends in 60 min, or now with: understudy (stop \S+)", done.stderr)
    assert stop is not None
    ended = understudy(*stop[1].split())
    assert ended.stdout == f"Ended run {stop[1].split()[1]} with 2 instances.\n"


def test_a_short_lifetime_is_said_in_seconds() -> None:
    done = understudy("spawn", *REDIS, "--lifetime", "90")
    stop = re.search(r"Ends in 90 s, or now with: understudy (stop \S+)", done.stderr)
    assert stop is not None
    understudy(*stop[1].split())


def test_json_has_the_documented_keys(spawned: dict[str, Any]) -> None:
    keys = {"unit", "run", "service", "number", "manager", "state", "result", "pid", "since"}
    keys |= {"network", "inside_ports"}
    assert spawned.keys() == keys | {"ports", "urls", "started_in_s"}
    assert {key: spawned[key] for key in ("service", "number", "manager", "state")} == {
        "service": "redis",
        "number": 1,
        "manager": KIND,
        "state": "active",
    }
    assert str(spawned["pid"]) == show(spawned["unit"], "MainPID")["MainPID"]
    assert bound_by(spawned["unit"]) == {("tcp", spawned["ports"]["redis"])}
    assert spawned["urls"] == {"redis": f"redis://127.0.0.1:{spawned['ports']['redis']}"}
    del spawned["started_in_s"]
    assert [one for one in rows("list") if one["run"] == spawned["run"]] == [spawned]
    [shown] = rows("show", spawned["unit"])
    assert shown.keys() >= keys | {"not_in_force"}
    assert {key: shown[key] for key in spawned} == spawned


def test_list_and_show_for_people(spawned: dict[str, Any]) -> None:
    header, *table = understudy("list").stdout.splitlines()
    assert header.split() == ["UNIT", "STATE", "PID", "PORTS"]
    ports = f"redis={spawned['ports']['redis']}"
    row = [spawned["unit"], "active", str(spawned["pid"]), ports]
    assert row in [line.split() for line in table]
    shown = understudy("show", f"{spawned['run']}-1").stdout
    assert f"unit     {spawned['unit']}\n" in shown
    assert "not in force on this manager:" in shown
    # What it says to type does work.
    cat = re.search(r"^text +(systemctl .*)$", shown, re.MULTILINE)
    assert cat is not None
    assert "90-understudy.conf" in systemctl(*cat[1].split()[-2:])


def test_logs_of_an_instance_and_of_a_run_also_after_its_end(spawned: dict[str, Any]) -> None:
    last = "Ready to accept connections"
    assert last in understudy("logs", spawned["unit"]).stdout
    assert last in understudy("logs", f"{spawned['run']}-1").stdout
    [line] = understudy("logs", spawned["run"], "-n", "1").stdout.splitlines()
    assert spawned["unit"] in line
    understudy("stop", spawned["run"])
    for name in (spawned["run"], f"{spawned['run']}-1", f"redis@{spawned['run']}-1"):
        assert last in understudy("logs", name).stdout


def test_logs_follow_until_ctrl_c(spawned: dict[str, Any]) -> None:
    with subprocess.Popen(
        command_line("logs", "--follow", spawned["unit"]),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as follower:
        assert follower.stdout is not None
        read_until(follower.stdout.fileno(), b"Ready to accept connections")
        systemctl("stop", spawned["unit"])
        read_until(follower.stdout.fileno(), b"ready to exit")
        os.killpg(follower.pid, signal.SIGINT)
        assert follower.wait(SOON_S) == 0


def test_stop_takes_instances_and_runs_and_all() -> None:
    before = traces()
    first, second = rows("spawn", *REDIS, "--count", "2")
    [other] = rows("spawn", *REDIS)
    assert understudy("stop", f"{first['run']}-1").stdout == f"Stopped {first['unit']}.\n"
    assert {first["unit"], second["unit"], other["unit"]} & units() == {
        second["unit"],
        other["unit"],
    }
    ended = understudy("stop", "--all").stdout
    assert {f"Ended run {one['run']} with 1 instance." for one in (second, other)} <= set(
        ended.splitlines()
    )
    assert left_since(before) == set()
    assert understudy("stop", "--all").stderr == "No runs.\n"


def test_ports_names_unit_and_user(spawned: dict[str, Any]) -> None:
    number = spawned["ports"]["redis"]
    held, claimed = rows("ports", str(number))
    assert held["state"] == "listening"
    assert held["unit"] == spawned["unit"]
    assert held["pid"] == spawned["pid"]
    assert claimed["state"] == "claimed"
    assert claimed["port"] <= number <= claimed["last"]
    if not ROOT:
        assert held["user"] == claimed["user"] == os.environ.get("USER")


def test_services_and_render() -> None:
    names = {one["service"]: one["origin"] for one in rows("services", "--units", str(SERVICES))}
    assert names["mediamtx"] in ("shipped", "./units")  # the very same, from a checkout
    assert str(SERVICES) in names["redis"] or names["redis"] == "--units"
    text = understudy("render", "mediamtx", *sets(MEDIAMTX)).stdout
    assert text.startswith("# /etc/systemd/system/mediamtx.service\n")
    assert f"ExecStart={MEDIAMTX['program']} " in text
    assert "MTX_RTSPADDRESS=127.0.0.1:" in understudy("render", "mediamtx", "--instance").stdout


def test_services_are_a_line_each() -> None:
    header, *table = understudy("services").stdout.splitlines()
    assert header.split() == ["SERVICE", "ORIGIN", "PRODUCTION", "DESCRIPTION", "PORTS"]
    [row] = [row for row in table if row.startswith("mediamtx ")]
    assert row.endswith(" api 9997, rtsp 8554, rtp 8000, rtcp 8001 and 20 more")


@pytest.mark.parametrize(
    ("variable", "value", "coloured"),
    [("NO_COLOR", "1", False), ("TERM", "dumb", False), ("TERM", "xterm", True)],
)
def test_colour_only_where_it_is_wanted(
    variable: str, value: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(variable, value)
    with terminal("services") as (process, screen):
        table = read_until(screen, b"mediamtx ")
        assert process.wait(SOON_S) == 0
    with terminal("spawn", "nosuch") as (process, screen):
        error = read_until(screen, b"Cannot find service")
        assert process.wait(SOON_S) == 1
    assert [b"\x1b[" in text for text in (table, error)] == [coloured, coloured]


def test_uses_is_told_by_instance_name() -> None:
    [own] = rows("spawn", "mediamtx", *sets(MEDIAMTX))
    try:
        text = understudy(
            *("spawn", "camera-service", "--dry-run"),
            *("--uses", f"mediamtx={own['run']}-1"),
        ).stdout
        assert f"CAMERA_SERVICE_MEDIAMTX_API_PORT={own['ports']['api']}" in text
    finally:
        understudy("stop", own["run"])


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (0, ["true"]),
        (3, ["sh", "-c", "exit 3"]),
        (126, ["/etc/passwd"]),
        (126, ["/etc"]),
        (127, ["no-such-program-anywhere"]),
        (128 + signal.SIGTERM, ["sh", "-c", "kill -TERM $$"]),
        (128 + signal.SIGKILL, ["sh", "-c", "kill -KILL $$"]),
    ],
)
def test_exit_code_is_the_commands(code: int, command: list[str]) -> None:
    before = traces()
    done = understudy("spawn", *REDIS, "--", *command, code=code)
    assert done.stdout == ""
    said = {126: "permission denied", 127: "command not found"}
    assert said.get(code, "") in done.stderr
    assert left_since(before) == set()


def test_command_is_told_ports_and_urls_and_has_the_callers_world(tmp_path: Path) -> None:
    script = "cat; pwd; echo $OF_THE_CALLER; env | grep ^UNDERSTUDY_ | sort; cat /proc/self/cgroup"
    done = subprocess.run(
        command_line("spawn", *REDIS, "--count", "2", "--", "sh", "-c", script),
        input="from stdin\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OF_THE_CALLER": "kept"},
        check=True,
    )
    first, where, kept, *rest = done.stdout.splitlines()
    assert (first, where, kept) == ("from stdin", str(tmp_path), "kept")
    told = dict(row.split("=", 1) for row in rest if row.startswith("UNDERSTUDY_"))
    assert told.keys() >= {
        "UNDERSTUDY_RUN",
        "UNDERSTUDY_HOST",
        "UNDERSTUDY_REDIS_REDIS_PORT",
        "UNDERSTUDY_REDIS_REDIS_URL",
        "UNDERSTUDY_REDIS_2_REDIS_PORT",
        "UNDERSTUDY_REDIS_2_REDIS_URL",
    }
    port = told["UNDERSTUDY_REDIS_REDIS_PORT"]
    assert told["UNDERSTUDY_REDIS_REDIS_URL"] == f"redis://127.0.0.1:{port}"
    assert port != told["UNDERSTUDY_REDIS_2_REDIS_PORT"]
    assert f"/understudy-{told['UNDERSTUDY_RUN']}.slice/" in rest[-1]


def test_what_the_command_leaves_ends_with_the_run() -> None:
    before = traces()
    script = "setsid sleep 4321 > /dev/null 2>&1 & echo $!"
    done = understudy("spawn", *REDIS, "--", "sh", "-c", script)
    assert left_since(before) == set()
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def test_sigterm_is_passed_on_to_the_command() -> None:
    before = traces()
    script = "trap 'echo asked to end; exit 7' TERM; echo up; while :; do sleep 0.02; done"
    with subprocess.Popen(
        command_line("spawn", *REDIS, "--", "sh", "-c", script), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        read_until(process.stdout.fileno(), b"up\n")
        process.terminate()
        assert process.stdout.read() == b"asked to end\n"
        assert process.wait(SOON_S) == 7
    assert left_since(before) == set()


def test_ctrl_c_ends_the_command_and_the_run() -> None:
    before = traces()
    # Not a shell: dash loses a Ctrl-C that comes between two of its commands.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "print('up', flush=True); signal.pause()"
    )
    with terminal("spawn", *REDIS, "--", sys.executable, "-c", script) as (process, screen):
        read_until(screen, b"up\r\n")
        os.write(screen, b"\x03")
        assert process.wait(SOON_S) == 128 + signal.SIGINT
    assert left_since(before) == set()


def test_ctrl_c_while_starting_leaves_nothing() -> None:
    before = traces()
    with terminal("spawn", "never-ready", "--units", str(SERVICES)) as (process, screen):
        assert eventually(lambda: any(name == "python3" for _, name in processes("never-ready@")))
        os.write(screen, b"\x03")
        assert process.wait(SOON_S) == 130
        assert b"Interrupted." in read_until(screen, b"Interrupted.")
    assert left_since(before) == set()


def test_command_has_the_callers_terminal() -> None:
    with terminal("spawn", *REDIS, "--", "sh", "-c", "tty; stty size") as (process, screen):
        read_until(screen, b"/dev/pts/")
        assert process.wait(SOON_S) == 0


def test_dry_run_prints_a_script_that_does_it() -> None:
    before = traces()
    script = understudy("spawn", "mediamtx", *sets(MEDIAMTX), "--dry-run").stdout
    assert traces() - before == set()
    subprocess.run(["sh"], input=script, text=True, check=True)
    [one] = [one for one in rows("list") if f"Run {one['run']}:" in script]
    assert one["service"] == "mediamtx"
    assert eventually(lambda: ("tcp", one["ports"]["api"]) in bound_by(one["unit"]))
    assert "rtspAddress" in get(f"{one['urls']['api']}/v3/config/global/get")
    # Its last line says how to end it.
    end = script.splitlines()[-1].removeprefix("# The end: ")
    subprocess.run(end.split(), check=True)
    assert left_since(before) == set()


def test_dry_run_with_a_command_returns_its_exit_code() -> None:
    before = traces()
    command = ["sh", "-c", 'test -n "$UNDERSTUDY_REDIS_REDIS_PORT" && exit 5']
    script = understudy("spawn", *REDIS, "--dry-run", "--", *command).stdout
    assert subprocess.run(["sh"], input=script, text=True, check=False).returncode == 5
    assert left_since(before) == set()


def test_completion_knows_commands_services_and_instances(spawned: dict[str, Any]) -> None:
    assert "spawn" in completed("understudy sp")
    assert "mediamtx" in completed("understudy spawn med")
    assert f"{spawned['run']}-1" in completed(f"understudy stop {spawned['run'][:3]}")
    assert f"{spawned['run']}-1" in completed(f"understudy logs {spawned['run'][:3]}")


def completed(line: str) -> set[str]:
    """What bash would be offered after this."""
    words = line.split(" ")
    answer = understudy(
        env={
            "_UNDERSTUDY_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
    ).stdout
    return {row.partition(",")[2] for row in answer.splitlines()}


def test_nothing_of_the_commands_is_written_beside_the_units() -> None:
    before = set(UNIT_DIR.iterdir()) if UNIT_DIR.exists() else set()
    [one] = rows("spawn", *REDIS)
    written = {path.name for path in set(UNIT_DIR.iterdir()) - before}
    assert written == {one["unit"], f"{one['unit']}.d"}
    understudy("stop", one["run"])
    assert set(UNIT_DIR.iterdir()) == before
