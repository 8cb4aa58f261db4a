from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from understudy import activation

# Started like a service of systemd's: descriptors from 3 on, LISTEN_PID its own.
_AS_SERVICE = """
import json, os, sys
fds, names, program = json.loads(sys.argv[1])
for target, fd in enumerate(fds, 3):
    os.dup2(fd, target)
    os.set_inheritable(target, True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(fds))
if names is not None:
    os.environ["LISTEN_FDNAMES"] = names
exec(program)
"""


def run_as_service(fds: Sequence[int], names: str | None, program: str) -> str:
    """The output of ``program`` in a process that was passed these descriptors."""
    # Above any target, so that no dup2 overwrites one that is still to come.
    high = [os.dup(fd) for fd in fds]
    moved = [fd + 100 for fd in high]
    for fd, target in zip(high, moved, strict=True):
        os.dup2(fd, target, inheritable=True)
        os.close(fd)
    try:
        return subprocess.run(
            [sys.executable, "-c", _AS_SERVICE, json.dumps([moved, names, program])],
            pass_fds=moved,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            timeout=30,
        ).stdout
    finally:
        for fd in moved:
            os.close(fd)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"):
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def set_variables(environment: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)


def test_inherited_sockets_serve_under_their_names() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as websocket,
        socket.create_server(("127.0.0.1", 0)) as health,
    ):
        output = run_as_service(
            [websocket.fileno(), health.fileno()],
            "websocket:health",
            "from understudy import activation\n"
            "health = activation.socket_named('health')\n"
            "websocket = activation.socket_named('websocket')\n"
            "print(websocket.getsockname()[1], health.getsockname()[1])\n"
            "print(websocket.get_inheritable(), health.get_inheritable())\n",
        )
        assert output.splitlines() == [
            f"{websocket.getsockname()[1]} {health.getsockname()[1]}",
            "False False",
        ]


def test_an_inherited_listener_accepts_a_connection_made_before_the_service_ran() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            output = run_as_service(
                [listener.fileno()],
                "web",
                "from understudy import activation\n"
                "connection, _ = activation.socket_named('web').accept()\n"
                "connection.sendall(b'hello')\n",
            )
            assert client.recv(5) == b"hello"
        assert output == ""


def test_a_udp_socket_is_taken_as_what_it_is() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        output = run_as_service(
            [udp.fileno()],
            "rtp",
            "import socket\n"
            "from understudy import activation\n"
            "print(activation.socket_named('rtp').type is socket.SOCK_DGRAM)\n",
        )
    assert output == "True\n"


def test_sockets_of_one_name_come_in_the_order_they_were_passed() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        output = run_as_service(
            [first.fileno(), other.fileno(), second.fileno()],
            "web:admin:web",
            "import json\n"
            "from understudy import activation\n"
            "taken = activation.sockets()\n"
            "print(json.dumps({n: [s.getsockname()[1] for s in l] for n, l in taken.items()}))\n"
            "try:\n"
            "    activation.socket_named('web')\n"
            "except activation.ActivationError as exc:\n"
            "    print(exc)\n",
        )
        ports = {
            "web": [first.getsockname()[1], second.getsockname()[1]],
            "admin": [other.getsockname()[1]],
        }
    taken, error = output.splitlines()
    assert json.loads(taken) == ports
    assert error == "Cannot take socket 'web': 2 were passed; use sockets()"


def test_unsetting_the_environment_leaves_nothing_to_take_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        output = run_as_service(
            [listener.fileno()],
            "web",
            "import os\n"
            "from understudy import activation\n"
            "kept = activation.sockets(unset_environment=True)\n"
            "print(list(kept), activation.sockets())\n"
            "print([name for name in os.environ if name.startswith('LISTEN_')])\n",
        )
    assert output.splitlines() == ["['web'] {}", "[]"]


def test_sockets_without_names_are_called_unknown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        output = run_as_service(
            [listener.fileno()],
            None,
            "from understudy import activation\nprint(list(activation.sockets()))\n",
        )
    assert output == "['unknown']\n"


def test_a_missing_name_is_answered_with_the_names_there_are() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        output = run_as_service(
            [listener.fileno()],
            "web",
            "from understudy import activation\n"
            "try:\n"
            "    activation.socket_named('health')\n"
            "except activation.ActivationError as exc:\n"
            "    print(exc)\n",
        )
    assert output == "Cannot take socket 'health': passed were 'web'\n"


def test_a_descriptor_that_is_no_socket_is_named() -> None:
    read, write = os.pipe()
    try:
        output = run_as_service(
            [read],
            "fifo",
            "from understudy import activation\n"
            "try:\n"
            "    activation.sockets()\n"
            "except activation.ActivationError as exc:\n"
            "    print(exc)\n",
        )
    finally:
        os.close(read)
        os.close(write)
    assert output.startswith("Cannot take descriptor 3 ('fifo') as a socket: ")


def test_a_process_without_sockets_says_so(environment: pytest.MonkeyPatch) -> None:
    assert activation.sockets() == {}
    with pytest.raises(activation.ActivationError, match="started without any"):
        activation.socket_named("web")


def test_variables_meant_for_the_parent_are_ignored(environment: pytest.MonkeyPatch) -> None:
    set_variables(environment, {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "1"})
    assert activation.sockets() == {}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LISTEN_FDS": "two"}, "Cannot read 'LISTEN_FDS': 'two' is not a number"),
        ({"LISTEN_FDS": "-1"}, "Cannot read 'LISTEN_FDS': '-1' is not a number"),
        (
            {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web"},
            "LISTEN_FDS=2, but LISTEN_FDNAMES=web",
        ),
    ],
)
def test_contradicting_variables_are_an_error(
    environment: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    set_variables(environment, {"LISTEN_PID": str(os.getpid()), **variables})
    with pytest.raises(activation.ActivationError, match=message):
        activation.sockets()


@pytest.mark.parametrize("abstract", [False, True])
def test_notify_reaches_the_manager(
    environment: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path if abstract else path)
        manager.settimeout(5)
        environment.setenv("NOTIFY_SOCKET", "@" + path if abstract else path)
        assert activation.notify("READY=1\nSTATUS=Up")
        assert manager.recv(100) == b"READY=1\nSTATUS=Up"


def test_notify_without_a_manager_is_no_error(environment: pytest.MonkeyPatch) -> None:
    assert not activation.notify("READY=1")


def test_notify_says_when_nobody_is_there(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with pytest.raises(activation.ActivationError, match="No such file or directory"):
        activation.notify("READY=1")
