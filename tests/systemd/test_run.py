"""Runs on a real manager: what spawn gives, beside what, and that it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.systemd.support import (
    ACTIVATED,
    CAMERA_SERVICE,
    MEDIAMTX,
    ROOT,
    SERVICES,
    TRANSIENT_DIR,
    TWELVE,
    UNIT_DIR,
    bound,
    bound_by,
    call,
    eventually,
    files,
    get,
    holders,
    killed,
    left_since,
    processes,
    python,
    require,
    show,
    systemctl,
    traces,
    units,
)

from understudy.errors import AccessDeniedError, NoSuchUnitError, RunError
from understudy.instance import Instance
from understudy.run import Run


def mediamtx(run: Run) -> Instance:
    return run.spawn("mediamtx", values=MEDIAMTX)


def expected_ports(instance: Instance) -> set[tuple[str, int]]:
    return {(transport, instance.ports[name]) for name, transport in TWELVE.items()}


def test_spawn_returns_a_ready_instance(run: Run) -> None:
    instance = mediamtx(run)
    assert show(instance.unit, "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "running",
    }
    assert instance.unit == f"understudy-mediamtx@{run.id}-1.service"
    # At once, without a second try.
    settings = json.loads(get(f"{instance.urls['api']}/v3/config/global/get"))
    assert settings["rtspAddress"] == f"127.0.0.1:{instance.ports['rtsp']}"
    with socket.create_connection(("127.0.0.1", instance.ports["rtsp"])) as rtsp:
        rtsp.sendall(f"OPTIONS {instance.urls['rtsp']} RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode())
        assert rtsp.recv(1024).startswith(b"RTSP/1.0 200 OK\r\n")


def test_an_instance_alone_holds_its_ports_and_no_others(run: Run) -> None:
    instance = mediamtx(run)
    assert bound_by(instance.unit) == expected_ports(instance)
    for transport, number in expected_ports(instance):
        assert holders(transport, number) == {instance.unit}
    assert instance.undeclared == ()
    assert instance.ports["rtp"] % 2 == 0
    assert instance.ports["rtcp"] == instance.ports["rtp"] + 1


def test_instances_of_twelve_ports_run_beside_each_other_and_production(
    run: Run, production: dict[str, str]
) -> None:
    instances = run.spawn_many([run.request("mediamtx", values=MEDIAMTX)] * 4)
    assert [one.number for one in instances] == [1, 2, 3, 4]
    ports = [expected_ports(one) for one in instances]
    assert sum(map(len, ports)) == len(set().union(*ports)) == 48
    for one, own in zip(instances, ports, strict=True):
        assert bound_by(one.unit) == own
        answer = json.loads(get(f"{one.urls['api']}/v3/config/global/get"))
        assert answer["apiAddress"] == f"127.0.0.1:{one.ports['api']}"
    for number in (9997, 8554, 8888, 8889):
        assert holders("tcp", number) == {production["mediamtx"]}


@pytest.fixture
def lead_started(production: dict[str, str]) -> str:
    """When production's MediaMTX started: what tells it from all others."""
    return str(json.loads(get("http://127.0.0.1:9997/v3/info"))["started"])


def test_camera_service_talks_to_production_by_default(run: Run, lead_started: str) -> None:
    camera = run.spawn("camera-service-activated", values=ACTIVATED)
    status = call(camera.urls["websocket"], "get_status")
    assert status["pid"] == camera.pid
    assert status["mediamtx"]["api"] == "http://127.0.0.1:9997"
    assert status["mediamtx"]["started"] == lead_started


def test_camera_service_talks_to_the_mediamtx_it_is_given(run: Run, lead_started: str) -> None:
    own = mediamtx(run)
    camera = run.spawn("camera-service-activated", values=ACTIVATED, uses={"mediamtx": own})
    call(camera.urls["websocket"], "start_stream", name=f"{run.id}/cam0")
    status = call(camera.urls["websocket"], "get_status")
    assert status["mediamtx"]["api"] == own.urls["api"]
    assert status["mediamtx"]["started"] != lead_started
    assert f"{run.id}/cam0" in get(f"{own.urls['api']}/v3/config/paths/list")
    assert f"{run.id}/cam0" not in get("http://127.0.0.1:9997/v3/config/paths/list")


def test_unchanged_camera_services_run_beside_each_other(run: Run, camera_file: Path) -> None:
    own = mediamtx(run)
    wanted = run.request("camera-service", values=CAMERA_SERVICE, uses={"mediamtx": own})
    before = camera_file.read_text()
    cameras = run.spawn_many([wanted] * 3)
    for camera in cameras:
        # The health port comes from a file bound over the one that all of them read.
        assert json.loads(get(f"{camera.urls['health']}/health/ready"))["status"] == "ready"
        assert call(camera.urls["websocket"], "get_status")["pid"] == camera.pid
        assert bound_by(camera.unit) == {("tcp", number) for number in camera.ports.values()}
    assert camera_file.read_text() == before


def test_root_value_runs_the_checkout(run: Run, open_directory: Path) -> None:
    package = open_directory / "src/camera_service"
    package.mkdir(parents=True)
    (package / "main.py").write_text(
        "import sys\n"
        "from understudy.standins.camera_service import main\n"
        "print('this is the checkout', flush=True)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    program = f"{sys.executable} -m src.camera_service.main --activated"
    values = {"root": open_directory, "program": program}
    camera = run.spawn("camera-service-activated", values=values)
    assert call(camera.urls["websocket"], "ping") == "pong"
    assert "this is the checkout" in camera.journal()


def test_stop_of_one_instance_leaves_the_others(run: Run) -> None:
    one, other = run.spawn_many(["redis"] * 2)
    before = show(other.unit, "InvocationID")
    one.stop()
    assert one.unit not in units()
    assert holders("tcp", one.ports["redis"]) == set()
    assert not {path for path in files() if path.name.startswith(one.unit)}
    assert not one.directory.exists()
    assert show(other.unit, "InvocationID") == before
    assert holders("tcp", other.ports["redis"]) == {other.unit}
    one.stop()


def test_instance_as_context_manager_ends_with_its_block(run: Run) -> None:
    with run.spawn("redis") as instance:
        assert instance.unit in units()
    assert instance.unit not in units()


def test_end_of_a_run_leaves_nothing() -> None:
    before = traces()
    with Run(units=SERVICES) as run:
        run.spawn_many(["redis", "redis", "nginx"])
        assert len(processes(f"/understudy-{run.id}.slice/")) >= 3
        slice_ = run.slice
        assert slice_ in units()
    # When stop returns, not some time after: the next run may be about to look.
    left = {path for path in files() if run.id in path.name and path.parent != TRANSIENT_DIR}
    assert left == set()
    assert processes(f"/{slice_}/") == set()
    assert left_since(before) == set()
    with pytest.raises(RunError, match=f"Cannot use run '{run.id}': it has ended"):
        run.spawn("redis")
    run.stop()


def test_a_stop_that_must_kill_ends_too(run: Run) -> None:
    stubborn = run.spawn("ignores-sigterm")
    stubborn.stop()
    assert stubborn.unit not in units()
    assert processes(f"/{stubborn.unit}/") == set()


def test_journal_has_what_a_live_instance_wrote(run: Run) -> None:
    instance = run.spawn("undeclared-port")
    assert instance.journal().startswith("second listener on port ")
    port = int(instance.journal().split()[-1])
    assert instance.undeclared == (f"tcp 127.0.0.1:{port}",)


def test_journal_outlives_the_instance() -> None:
    with Run(units=SERVICES) as run:
        instance = run.spawn("undeclared-port")
        said = instance.journal()
    assert said
    assert instance.journal() == said


def test_journal_gives_the_last_lines(run: Run) -> None:
    instance = mediamtx(run)
    lines = instance.journal().splitlines()
    assert len(lines) > 3
    assert instance.journal(lines=2).splitlines() == lines[-2:]


def test_death_is_seen_and_not_undone(run: Run) -> None:
    instance = run.spawn("redis")
    instance.kill()
    assert eventually(lambda: instance.status().active_state == "failed")
    assert instance.status().result == "signal"
    assert show(instance.unit, "NRestarts") == {"NRestarts": "0"}


OWNER = """
import os, signal, sys
from pathlib import Path
from understudy.run import Run

run = Run(units=Path(sys.argv[1]))
run.start()
instance = run.spawn("redis")
"""


def test_forked_child_does_not_end_the_run() -> None:
    owner = python(
        OWNER
        + """
if os.fork() == 0:
    run.stop()  # even if it says so
    sys.exit()
os.wait()
print(instance.unit, flush=True)
sys.stdin.read()
""",
        str(SERVICES),
    )
    assert owner.stdout is not None
    unit = owner.stdout.readline().strip()
    assert show(unit, "ActiveState") == {"ActiveState": "active"}
    killed(owner)
    assert eventually(lambda: unit not in units())


def test_forked_child_does_not_keep_the_run() -> None:
    before = traces()
    owner = python(
        OWNER
        + """
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
os._exit(0)
""",
        str(SERVICES),
    )
    assert owner.stdout is not None
    child = int(owner.stdout.readline())
    try:
        owner.wait()
        assert left_since(before) == set()
        assert Path(f"/proc/{child}").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        owner.communicate()


def test_run_that_nobody_owns_ends_with_its_lifetime() -> None:
    before = traces()
    owner = python(
        OWNER.replace("Run(", "Run(lifetime_s=3, ") + "run.detach(); print(instance.unit)",
        str(SERVICES),
    )
    unit, _ = owner.communicate()
    assert show(unit.strip(), "ActiveState") == {"ActiveState": "active"}
    assert left_since(before) == set()


def test_run_lives_on_for_as_long_as_its_owner_said_at_last() -> None:
    before = traces()
    owner = python(
        OWNER + "run.detach(lifetime_s=3); print(instance.unit)",
        str(SERVICES),
    )
    unit, _ = owner.communicate()
    assert show(unit.strip(), "ActiveState") == {"ActiveState": "active"}
    assert left_since(before) == set()


def test_some_of_its_instances_are_stopped_at_once(run: Run) -> None:
    first, second, third, other = run.spawn_many(["redis"] * 4)
    second.stop()
    run.stop_instances([first, second, third])
    assert units(f"understudy-redis@{run.id}-*") == {other.unit}
    assert not any(one.unit in path.name for path in files() for one in (first, second, third))
    assert not any(one.directory.exists() for one in (first, second, third))
    run.stop_instances([first])  # nothing is to do


def test_lost_directories_do_not_keep_a_run_from_ending(run: Run) -> None:
    before = traces()
    with Run(units=SERVICES) as run:
        instance = run.spawn("redis")
        shutil.rmtree(instance.directory.parent)
        run.spawn("redis")
    assert left_since(before) == set()


def test_daemon_reload_changes_nothing_for_a_run() -> None:
    before = traces()
    with Run(units=SERVICES) as run:
        first = run.spawn("redis")
        systemctl("daemon-reload")
        second = run.spawn("redis")
        assert show(run.guard, "LoadState") == {"LoadState": "loaded"}
        for one in (first, second):
            assert show(one.unit, "ActiveState") == {"ActiveState": "active"}
    assert left_since(before) == set()


def test_installed_derives_from_the_unit_on_the_host(
    run: Run, request: pytest.FixtureRequest
) -> None:
    unit = "redis-server.service"
    require(show_system(unit)["LoadState"] == "loaded", f"{unit} is not installed (redis-server)")
    if ROOT:
        drop_in = UNIT_DIR / f"{unit}.d/50-test.conf"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text("[Service]\nEnvironment=FROM=drop-in\n")
        request.addfinalizer(lambda: systemctl("daemon-reload") and None)
        request.addfinalizer(lambda: shutil.rmtree(drop_in.parent))
        systemctl("daemon-reload")
    state = show_system(unit)
    instance = run.spawn("redis", installed=True)
    text = systemctl("cat", instance.unit)
    # Of Debian's unit and of nothing here.
    assert "ReadWriteDirectories=-/etc/redis" in text
    assert ("FROM=drop-in" in show(instance.unit, "Environment")["Environment"]) == ROOT
    with socket.create_connection(("127.0.0.1", instance.ports["redis"])) as client:
        client.sendall(b"PING\r\n")
        assert client.recv(16) == b"+PONG\r\n"
    assert show_system(unit) == state


def show_system(unit: str) -> dict[str, str]:
    rows = subprocess.run(
        ["systemctl", "show", unit, "--property=LoadState,ActiveState,InvocationID,MainPID"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return dict(row.split("=", 1) for row in rows.splitlines())


@pytest.mark.skipif(not ROOT, reason="a unit of root's")
def test_installed_without_a_definition(run: Run) -> None:
    unit = UNIT_DIR / "tests-lead.service"
    unit.write_text("[Unit]\nWants=sshd.service\n[Service]\nExecStart=/bin/sleep 1234\n")
    try:
        instance = run.spawn("tests-lead.service", installed=True)
        assert instance.unit == f"understudy-tests-lead@{run.id}-1.service"
        assert "sshd" not in show(instance.unit, "Wants")["Wants"]
        assert show("tests-lead.service", "ActiveState") == {"ActiveState": "inactive"}
        # A Type=simple service is up before its program is executed, and named so only then.
        sleeping = {(instance.pid, "sleep")}
        assert eventually(lambda: processes(f"/{instance.unit}/") == sleeping)
    finally:
        unit.unlink()


def test_installed_names_a_unit_that_is_not_there(run: Run) -> None:
    with pytest.raises(NoSuchUnitError, match=r"nowhere\.service"):
        run.spawn("nowhere.service", installed=True)


def test_eager_sockets_are_the_managers_and_served(run: Run) -> None:
    camera = run.spawn("camera-service-activated", values=ACTIVATED)
    socket_unit = camera.unit.replace(".service", ".socket")
    assert show(socket_unit, "ActiveState", "SubState") == {
        "ActiveState": "active",
        "SubState": "running",
    }
    assert show(camera.unit, "ActiveState") == {"ActiveState": "active"}
    assert json.loads(get(f"{camera.urls['health']}/health/ready"))["status"] == "ready"
    assert call(camera.urls["websocket"], "ping") == "pong"
    camera.stop()
    assert units(socket_unit) == set()


def test_lazy_instance_starts_with_its_first_connection(run: Run) -> None:
    camera = run.spawn("camera-service-activated", values=ACTIVATED, lazy=True)
    assert show(camera.unit, "ActiveState") == {"ActiveState": "inactive"}
    assert camera.pid == 0
    assert set(camera.ports.values()) <= bound("tcp").keys()
    assert call(camera.urls["websocket"], "ping") == "pong"
    assert show(camera.unit, "ActiveState") == {"ActiveState": "active"}


def test_stopped_lazy_instance_does_not_come_back(run: Run) -> None:
    camera = run.spawn("camera-service-activated", values=ACTIVATED, lazy=True)
    with socket.create_connection(("127.0.0.1", camera.ports["health"])):
        camera.stop()
    assert processes(f"/{camera.unit}/") == set()
    assert not {unit for unit in units() if camera.unit.removesuffix(".service") in unit}


def test_units_of_others_are_refused(run: Run, production: dict[str, str]) -> None:
    for unit in production.values():
        for change in (
            lambda: run.manager.stop([unit], timeout_s=1),  # noqa: B023
            lambda: run.manager.kill(unit, 9),  # noqa: B023
            lambda: run.manager.restart(unit),  # noqa: B023
            lambda: run.manager.start([unit]),  # noqa: B023
            lambda: run.manager.reset_failed([unit]),  # noqa: B023
        ):
            with pytest.raises(AccessDeniedError, match="it is not a unit of understudy"):
                change()


def test_exec_gets_ports_and_directory(run: Run) -> None:
    instance = run.spawn(
        exec=[sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port.http}"],
        ports=["http"],
    )
    assert "Directory listing" in get(instance.urls["http"])
    assert bound_by(instance.unit) == {("tcp", instance.ports["http"])}


def test_exact_port_is_kept(run: Run) -> None:
    first = run.spawn("redis")
    number = first.ports["redis"]
    first.stop()
    again = run.spawn("redis", ports={"redis": number})
    assert again.ports == {"redis": number}
    assert holders("tcp", number) == {again.unit}
