"""Private networks, against the kernel."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from understudy.errors import NetworkError
from understudy.model import Transport
from understudy.netns import Namespace, denied_hint
from understudy.ports import snapshot

TCP = Transport.TCP
ROOT = os.geteuid() == 0


@pytest.fixture(params=[True, False], ids=["user namespace", "as root"])
def user(request: pytest.FixtureRequest) -> bool:
    """Whether a user namespace is made around the network: whoever is not root needs one."""
    wanted: bool = request.param
    if not wanted and not ROOT:
        pytest.skip("a network without a user namespace is root's to make")
    return wanted


@pytest.fixture
def namespace(user: bool) -> Iterator[Namespace]:
    try:
        made = Namespace.create(user=user)
    except NetworkError as exc:
        if os.environ.get("UNDERSTUDY_REQUIRE_ALL"):
            raise
        pytest.skip(str(exc))
    with made:
        yield made


def inside(namespace: Namespace, code: str) -> str:
    """What a Python process inside prints."""
    done = subprocess.run(
        [*nsenter(namespace), sys.executable, "-c", f"import errno, os, socket\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def nsenter(namespace: Namespace) -> list[str]:
    user = namespace.user_path
    users = [f"--user={user}", "--preserve-credentials"] if user else []
    return ["nsenter", f"--net={namespace.net_path}", *users]


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


def test_its_loopback_is_up_and_everything_else_is_out_of_reach(namespace: Namespace) -> None:
    said = inside(
        namespace,
        "for kind, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):\n"
        "    with socket.create_server((host, 8003), family=kind) as server:\n"
        "        socket.create_connection((host, 8003)).close()\n"
        "print(errno.errorcode[socket.socket().connect_ex(('192.0.2.1', 80))])\n",
    )
    assert said == "ENETUNREACH"


def test_everybody_inside_may_ping(namespace: Namespace) -> None:
    said = inside(
        namespace,
        "ping = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)\n"
        "ping.settimeout(5)\n"
        "ping.sendto(bytes([8, 0, 0, 0, 0, 0, 0, 1]), ('127.0.0.1', 0))\n"
        "print(ping.recv(64)[0])\n",
    )
    assert said == "0"  # ICMP's number of an echo reply


def test_the_caller_stays_who_it_is(namespace: Namespace) -> None:
    said = inside(namespace, "print(os.getuid(), os.geteuid(), os.getgid())")
    assert said == f"{os.getuid()} {os.geteuid()} {os.getgid()}"


def test_it_is_not_ours_and_ours_is(namespace: Namespace) -> None:
    assert not namespace.is_ours()
    with Namespace.of(os.getpid()) as host:
        assert host.is_ours()
        assert host.user_path == ""
        assert not host.same_as(namespace)


def test_a_process_inside_leads_to_it(namespace: Namespace, user: bool) -> None:
    command = [*nsenter(namespace), "cat"]
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"there\n")
            assert process.stdout.readline() == b"there\n"  # nsenter(1) has become cat
            with Namespace.of(process.pid) as found:
                assert found.same_as(namespace)
                assert not found.is_ours()
                assert bool(found.user_path) == user
                with found.listen([8002])[8002]:
                    assert inside(found, "socket.create_connection(('127.0.0.1', 8002))") == ""
        finally:
            process.kill()


def test_what_listens_inside_is_reached_inside_only(namespace: Namespace) -> None:
    with namespace.listen([8003])[8003] as listener:
        with pytest.raises(ConnectionRefusedError):
            # understudy: ignore[connected-port] nobody is to answer outside
            socket.create_connection(("127.0.0.1", 8003))
        for host in ("127.0.0.1", "::1", "localhost"):
            inside(namespace, f"socket.create_connection(('{host}', 8003)).sendall(b'hello')")
            connection, _address = listener.accept()
            with connection:
                assert connection.recv(16) == b"hello"


def test_a_taken_port_is_an_error_that_names_it(namespace: Namespace) -> None:
    before = descriptors()
    said = "Cannot listen on port 8003 of a private network: Address already in use"
    with namespace.listen([8003])[8003], pytest.raises(NetworkError, match=said):
        namespace.listen([8002, 8003])
    assert descriptors() <= before


def test_the_kernel_tells_what_is_bound_inside(namespace: Namespace) -> None:
    with namespace.listen([8002])[8002] as one, namespace.sock_diag() as netlink:
        assert [each.port for each in snapshot(netlink=netlink)] == [8002]
        [found] = snapshot(netlink=netlink).bound(TCP, 8002)
        assert found.inode == os.fstat(one.fileno()).st_ino
        assert found.address == "::"


def test_ports_can_listen_from_the_start(user: bool) -> None:
    with Namespace.create(user=user, listen=[8002, 8003, 8002]) as namespace:
        with namespace.sock_diag() as netlink:
            assert {each.port for each in snapshot(netlink=netlink)} == {8002, 8003}
        made = namespace.listen([8003, 9997])
        assert sorted(made) == [8003, 9997]
        for one in made.values():
            one.close()
        with namespace.sock_diag() as netlink:
            assert {each.port for each in snapshot(netlink=netlink)} == {8002}


def test_more_ports_than_one_message_takes(namespace: Namespace) -> None:
    wanted = range(20000, 20300)
    made = namespace.listen(wanted)
    assert [one.getsockname()[1] for one in made.values()] == list(wanted)
    for one in made.values():
        assert not one.get_inheritable()
        one.close()


def test_its_loopback_goes_down_and_up(namespace: Namespace) -> None:
    connect = (
        "one = socket.socket()\none.settimeout(0.2)\n"
        "print(one.connect_ex(('127.0.0.1', 8003)) == 0)"
    )
    with namespace.listen([8003])[8003]:
        assert inside(namespace, connect) == "True"
        namespace.set_loopback(up=False)
        assert inside(namespace, connect) == "False"
        namespace.set_loopback(up=True)
        assert inside(namespace, connect) == "True"


def test_it_is_made_and_entered_from_a_thread_too(user: bool) -> None:
    found: list[bool] = []

    def make() -> None:
        with Namespace.create(user=user) as namespace, namespace.sock_diag():
            found.append(namespace.is_ours())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert found == [False]


def test_closing_gives_up_all_of_it_and_no_child_is_left(user: bool) -> None:
    before = descriptors()
    namespace = Namespace.create(user=user, listen=[8003])
    namespace.close()
    namespace.close()
    assert descriptors() <= before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_process_that_is_gone_has_no_network() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(NetworkError, match=f"of process {process.pid}: it is gone"):
        Namespace.of(process.pid)


@pytest.mark.skipif(ROOT, reason="root may look at every process")
def test_a_process_of_somebody_else_is_not_ours_to_enter() -> None:
    with pytest.raises(NetworkError, match="Permission denied") as caught:
        Namespace.of(1)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("It is another user's: as root (sudo)")


@pytest.mark.skipif(ROOT, reason="root may make one")
def test_who_may_not_make_one_is_told_what_helps() -> None:
    with pytest.raises(
        NetworkError, match="Cannot make a private network: Operation not permitted"
    ) as caught:
        Namespace.create(user=False)
    assert "sudo understudy run" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("setting", "value", "helps"),
    [
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
        ("user/max_net_namespaces", "0", "sysctl -w user.max_net_namespaces=15000"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "understudy deploy --tester $USER"),
    ],
)
def test_the_hint_names_the_setting_that_denies(
    tmp_path: Path, setting: str, value: str, helps: str
) -> None:
    path = tmp_path / "sys" / setting
    path.parent.mkdir(parents=True)
    path.write_text(f"{value}\n")
    hint = denied_hint(proc=tmp_path)
    assert f"sudo {helps};" in hint
    assert hint.endswith("or run it as root: sudo understudy run")


def test_the_hint_names_a_filter_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nSeccomp:\t2\n")
    assert denied_hint(proc=tmp_path).startswith("a seccomp filter is in force")


def test_the_hint_of_a_system_that_denies_nothing_known(tmp_path: Path) -> None:
    assert "unshare --user --net true" in denied_hint(proc=tmp_path)


def test_the_error_is_the_kernels() -> None:
    with Namespace.of(os.getpid()) as host, socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        number = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(NetworkError, match=os.strerror(errno.EADDRINUSE)):
            host.listen([number])
