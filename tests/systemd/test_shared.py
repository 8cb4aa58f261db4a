"""One instance for many: started once, ended after the last who uses it, whatever ends them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.systemd.support import (
    RUNTIME,
    SERVICES,
    SOON_S,
    eventually,
    left_since,
    show,
    traces,
    units,
)

from understudy.errors import InstanceError, RunError, StartError, UsageError
from understudy.run import Run

STRIDE = int(os.environ.get("UNDERSTUDY_SHARED_STRIDE", "4"))
"""A creator is killed at every so-manieth step, a newcomer comes every so many ms; 1 for each."""

USER = Path(__file__).with_name("sharer.py")


@contextmanager
def users(
    count: int, *arguments: str, prefer: str = "any"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that share an instance, each with a line of JSON when it has it."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, str(USER), str(SERVICES), prefer, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            found.append(process)
        yield found


def answer(process: subprocess.Popen[str]) -> dict[str, object]:
    """What a user says once it has the instance, or why it has not."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], SOON_S)[0], "it says nothing"
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def write(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def leave(process: subprocess.Popen[str]) -> None:
    """Have a user end as one does."""
    process.communicate("\n", timeout=SOON_S)
    assert process.returncode == 0


def pong(port: object) -> bool:
    assert isinstance(port, int)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"PING\r\n")
        return client.recv(16) == b"+PONG\r\n"


def instances(service: str = "redis") -> set[str]:
    return units(f"understudy-{service}@*.service")


@pytest.mark.parametrize("prefer", ["any", "commands"])
def test_eight_processes_at_once_share_one(prefer: str) -> None:
    before = traces()
    with users(8, "group", prefer=prefer) as processes:
        answers = [answer(process) for process in processes]
        assert all("unit" in each for each in answers), answers
        assert len({str(each["unit"]) for each in answers}) == 1
        assert len({str(each["ports"]) for each in answers}) == 1
        assert len({str(each["pid"]) for each in answers}) == 1
        assert instances() == {answers[0]["unit"]}
        ports = answers[0]["ports"]
        assert isinstance(ports, dict)
        for process in processes[:-1]:
            leave(process)
        assert pong(ports["redis"])
        leave(processes[-1])
        # Whoever ends it sees it end.
        assert instances() == set()
    assert left_since(before) == set()


def test_the_creators_death_ends_nothing() -> None:
    before = traces()
    with users(1, "group") as [creator]:
        first = answer(creator)
        with users(2, "group") as others:
            assert [answer(other)["unit"] for other in others] == [first["unit"]] * 2
            creator.kill()
            creator.wait()
            guard = f"understudy-guard@{first['user']}.service"
            assert eventually(lambda: guard not in units())
            ports = first["ports"]
            assert isinstance(ports, dict)
            assert pong(ports["redis"])
            assert show(str(first["unit"]), "MainPID") == {"MainPID": str(first["pid"])}
            for other in others:
                assert pong(ports["redis"])
                other.kill()
                other.wait()
    assert left_since(before) == set()


def steps(prefer: str) -> int:
    """How many steps a creator has until its instance is shared."""
    with users(1, "steps", "0", prefer=prefer) as [process]:
        count = answer(process)["steps"]
        assert isinstance(count, int)
        leave(process)
    return count


@pytest.mark.parametrize("prefer", ["any", "commands"])
def test_a_creator_killed_at_any_step_leaves_nothing_and_keeps_nobody_waiting(prefer: str) -> None:
    before = traces()
    count = steps(prefer)
    assert count > 20
    assert left_since(before) == set()
    for last in range(1, count + 1, STRIDE):
        with (
            users(2, "wait") as others,
            users(1, "steps", str(last), prefer=prefer) as [creator],
        ):
            for other in others:
                answer(other)  # it is at the door
            assert eventually(lambda: creator.poll() or units("understudy-making@*"))
            for other in others:
                write(other, "0")
            answers = [answer(other) for other in others]
            creator.kill()  # where it is asked again and again, a step more or less is chance
            creator.wait(SOON_S)
            assert all("unit" in each for each in answers), (last, answers)
            assert len({str(each["unit"]) for each in answers}) == 1, (last, answers)
            ports = answers[0]["ports"]
            assert isinstance(ports, dict)
            assert pong(ports["redis"])
            others[0].kill()
            leave(others[1])
        assert left_since(before) == set(), f"creator killed at step {last}"


def test_users_killed_at_random_leave_nothing_and_never_end_it_for_others() -> None:
    before = traces()
    chance = random.Random(65)
    with Run(units=SERVICES) as run:
        instance = run.shared("redis")
        pid = instance.pid
        with users(12, "group") as processes:
            for _ in range(12):
                select.select([], [], [], chance.uniform(0, 0.15))
                chance.choice(processes[:6]).kill()
                assert instance.pid == pid
            for process in processes[6:]:
                assert answer(process)["pid"] == pid
                process.kill()
        assert pong(instance.ports["redis"])
    assert left_since(before) == set()


def test_coming_while_it_is_ending_gets_another_or_the_same_but_never_a_dead_one() -> None:
    before = traces()
    for delay_ms in range(0, 60, STRIDE):
        with users(1, "wait") as [newcomer], Run(units=SERVICES) as run:
            answer(newcomer)  # it is at the door
            run.shared("redis")
            poll = select.poll()
            write(newcomer, str(delay_ms))
            poll.poll(20)
            run.stop()
            found = answer(newcomer)
            ports = found["ports"]
            assert isinstance(ports, dict), found
            assert pong(ports["redis"])
            leave(newcomer)
    assert left_since(before) == set()


def test_each_user_of_what_fails_gets_the_error_and_nothing_is_left() -> None:
    before = traces()
    with users(4, "dies-fast") as processes:
        for process in processes:
            said = answer(process)
            assert said["error"] == "StartError"
            assert "it exited with status" in str(said["message"])
            leave(process)
    assert left_since(before) == set()


def test_a_run_that_asks_twice_has_one_and_gives_it_up_twice(run: Run) -> None:
    first = run.shared("redis")
    assert run.shared("redis") is first
    first.stop()
    assert pong(first.ports["redis"])
    first.stop()
    assert instances() == set()
    assert run.shared("redis").unit != first.unit


def test_stopping_several_only_gives_up_what_is_shared(run: Run) -> None:
    shared, own = run.shared("redis"), run.spawn("redis")
    with Run(units=SERVICES) as other:
        other.stop_instances([other.shared("redis"), other.spawn("redis")])
        assert instances() == {shared.unit, own.unit}
    assert pong(shared.ports["redis"])


@pytest.mark.parametrize("network", ["private", "private:lab"])
def test_sharing_in_a_private_network(run: Run, network: str) -> None:
    if network == "private:lab":
        with pytest.raises(UsageError, match="'private:lab' ends with the run that made it"):
            run.shared("redis", network=network)
        return
    first = run.shared("redis", network=network)
    with Run(units=SERVICES) as other:
        second = other.shared("redis", network=network)
        assert second.ports == first.ports
        assert second.inside_ports == first.inside_ports
        assert pong(second.ports["redis"])
        with pytest.raises(UsageError, match="network is 'private' there and 'host' here"):
            other.shared("redis")
    assert pong(first.ports["redis"])


def test_groups_and_services_do_not_meet(run: Run) -> None:
    found = [run.shared("redis"), run.shared("redis", group="other"), run.shared("nginx")]
    assert len({one.unit for one in found}) == 3


def test_other_settings_are_an_error_that_says_what_differs(run: Run) -> None:
    run.shared("redis", group="g", env={"A": "1"})
    with Run(units=SERVICES) as other:
        with pytest.raises(UsageError) as caught:
            other.shared("redis", group="g", env={"A": "2", "B": "3"})
        assert "Cannot share 'redis' in group 'g': run r" in caught.value.message
        assert "env 'A' is not the same there and here" in caught.value.message
        assert "env 'B' is not set there and set here" in caught.value.message
        assert caught.value.hint is not None
        assert "another group=" in caught.value.hint
        with pytest.raises(UsageError, match="env 'A' is set there and not set here"):
            run.shared("redis", group="g")
        assert other.shared("redis", group="g", env={"A": "1"}).ports


def test_one_that_has_died_is_an_error_for_newcomers(run: Run) -> None:
    instance = run.shared("redis")
    instance.kill()
    assert eventually(lambda: instance.status().active_state == "failed")
    with Run(units=SERVICES) as other, pytest.raises(InstanceError) as caught:
        other.shared("redis")
    assert f"'{instance.unit}' has died while others use it" in caught.value.message
    assert caught.value.hint is not None
    assert f"understudy stop {instance.run}" in caught.value.hint
    instance.restart()
    with Run(units=SERVICES) as other:
        assert other.shared("redis").pid == instance.pid


def test_what_is_waited_for_too_long_is_an_error_that_names_who_is_busy() -> None:
    with users(1, "never-ready") as [creator]:
        assert eventually(lambda: instances("never-ready"))
        with Run(units=SERVICES) as run, pytest.raises(RunError) as caught:
            run.shared("never-ready", timeout_s=0.5)
        assert "Cannot share 'never-ready': not ready after 0.5 s: run r" in caught.value.message
        assert "is still starting it" in caught.value.message
        creator.kill()


def test_kept_one_is_found_again_and_ends_in_the_end() -> None:
    before = traces()
    with Run(units=SERVICES) as run:
        first = run.shared("redis", group="kept", keep_s=3)
        pid = first.pid
    assert pong(first.ports["redis"])
    with Run(units=SERVICES) as run:
        again = run.shared("redis", group="kept", keep_s=3)
        assert (again.unit, again.pid, again.ports) == (first.unit, pid, first.ports)
        ended = time.monotonic()
    assert pong(first.ports["redis"])
    assert left_since(before) == set()
    assert 2 < time.monotonic() - ended < 15


def test_kept_one_outlives_a_killed_user() -> None:
    before = traces()
    with users(1, "group", "2") as [user]:
        said = answer(user)
        user.kill()
        user.wait()
        guard = f"understudy-guard@{said['user']}.service"
        # In memory it stays as long as what keeps the instance refers to it.
        assert eventually(lambda: show(guard, "ActiveState") == {"ActiveState": "inactive"})
        ports = said["ports"]
        assert isinstance(ports, dict)
        assert pong(ports["redis"])
    assert left_since(before) == set()


def test_kept_one_gives_way_to_other_settings(tmp_path: Path) -> None:
    before = traces()
    with Run(units=SERVICES) as run:
        first = run.shared("redis", group="kept", keep_s=600)
    with Run(units=SERVICES) as run:
        second = run.shared("redis", group="kept", keep_s=600, env={"A": "1"})
        assert second.run != first.run
        assert instances() == {second.unit}
        with Run(units=SERVICES) as other, pytest.raises(UsageError, match="other settings"):
            other.shared("redis", group="kept", keep_s=600)
    with Run(units=SERVICES) as run:
        # Without keep_s nobody keeps it any more, once those before have had their time.
        third = run.shared("redis", group="kept", env={"A": "1"})
        assert third.run == second.run
        run.manager.stop([f"understudy-guard@{third.run}.service"], timeout_s=30)
    assert left_since(before) == set()


def test_changed_definition_starts_another(tmp_path: Path) -> None:
    folder = tmp_path / "units"
    subprocess.run(["cp", "-r", str(SERVICES), str(folder)], check=True)
    with Run(units=folder) as run:
        first = run.shared("redis", group="kept", keep_s=600)
    with (folder / "redis/instance.conf").open("a") as file:
        file.write("\n[Service]\nEnvironment=CHANGED=yes\n")
    with Run(units=folder) as run:
        second = run.shared("redis", group="kept", keep_s=600)
        assert second.unit != first.unit
        with (folder / "redis/instance.conf").open("a") as file:
            file.write("Environment=CHANGED=again\n")
        with Run(units=folder) as other, pytest.raises(UsageError, match="has changed since"):
            other.shared("redis", group="kept")
        run.manager.stop([f"understudy-guard@{second.run}.service"], timeout_s=30)


def test_forked_child_of_a_user_ends_and_keeps_nothing() -> None:
    before = traces()
    with Run(units=SERVICES) as run:
        instance = run.shared("redis")
        child = os.fork()
        if child == 0:
            instance.stop()
            run.stop()
            signal.alarm(300)
            while True:
                signal.pause()
        try:
            assert pong(instance.ports["redis"])
            run.stop()
            assert left_since(before) == set()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_its_log_is_read_in_parts(run: Run) -> None:
    instance = run.shared("redis")
    assert "Ready to accept" in instance.journal() or instance.journal()
    mark = instance.journal_mark()
    assert instance.journal(since=mark) == ""


def test_stop_ends_it_for_all(run: Run) -> None:
    before = traces()
    with Run(units=SERVICES) as other:
        instance = other.shared("redis")
        run.manager.stop([f"understudy-guard@{instance.run}.service"], timeout_s=30)
        assert instances() == set()
    assert left_since(before) == set()


async def _gather(run: Run) -> Sequence[object]:
    return await asyncio.gather(
        run.aspawn("redis"), run.aspawn("redis"), run.ashared("redis"), run.ashared("redis")
    )


def test_spawning_does_not_block_the_loop(run: Run) -> None:
    async def main() -> tuple[Sequence[object], float]:
        longest = 0.0
        work = asyncio.ensure_future(_gather(run))
        while not work.done():
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)
        return work.result(), longest

    found, longest = asyncio.run(main())
    assert len(found) == 4
    assert found[2] is found[3]
    assert longest < 0.25


@pytest.mark.parametrize("how", ["aspawn", "ashared"])
def test_canceled_spawning_leaves_nothing(how: str) -> None:
    before = traces()

    async def main(run: Run) -> None:
        call = getattr(run, how)
        async with asyncio.timeout(0.4):
            await call("never-ready", timeout_s=60)

    with Run(units=SERVICES) as run:
        within = traces()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(main(run))
        assert time.monotonic() - began < 5
        # The run's own directory stays as long as the run.
        assert traces() - within <= {f"file {RUNTIME}/understudy/{run.id}"}
    assert left_since(before) == set()


def test_spawning_whose_errors_come_in_async(run: Run) -> None:
    with pytest.raises(StartError, match="it exited with status"):
        asyncio.run(_await(run))


async def _await(run: Run) -> None:
    await run.aspawn("dies-fast")
