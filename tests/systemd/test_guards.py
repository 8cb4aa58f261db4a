"""What the kernel keeps an instance from: production's ports, and other hosts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from tests.systemd.support import (
    ACTIVATED,
    ROOT,
    eventually,
    get,
    require,
    show,
    systemctl,
    units,
)

from understudy import effects, listing, names
from understudy.errors import StartError
from understudy.instance import Instance
from understudy.manager import connect
from understudy.model import Engine
from understudy.run import Run

SERVICE = """\
[Service]
Type=notify
ExecStart=/usr/bin/python3 -IS {{ program | quote }}
IPAddressAllow=198.51.100.1
"""

DEFINITION = """\
description = "probe"
production = "guarded.service"
[values]
program = "/usr/local/lib/guarded/probe.py"
[instance.files]
"probe.py" = "probe.py"
"""

PORTS = """\
[ports]
http = { tcp = 8490, env = "PORT", value = "{port}" }
talk = { udp = 8490, env = "UDP_PORT", value = "{port}" }
"""

LEAD = """\
description = "what others must leave alone"
[ports]
http = { tcp = 8491 }
talk = { udp = 8492 }
"""

INSTANCE = """\
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -IS {{ (files ~ "/probe.py") | quote }}
"""

PROBE = '''
"""Try what may be refused, and say in one line of JSON how each went."""
import errno, json, os, signal, socket

V4, V6, TCP, UDP = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
kept = []

def tried(call, *arguments):
    try:
        call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return "done"

def bind(family, kind, port):
    kept.append(socket.socket(family, kind))
    kept[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == V6:
        kept[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    kept[-1].bind(("", port))
    if kind == TCP:
        kept[-1].listen()

def send(family, address):
    with socket.socket(family, UDP) as talker:
        talker.sendto(b"", (address, 9))

facts = {
    "own": tried(bind, V4, TCP, int(os.environ.get("PORT", 0))),
    "own udp": tried(bind, V4, UDP, int(os.environ.get("UDP_PORT", 0))),
    "own v6": tried(bind, V6, UDP, int(os.environ.get("UDP_PORT", 0))),
    "free": tried(bind, V4, UDP, 0),
    "other transport": tried(bind, V4, UDP, 8491),
    "production": tried(bind, V4, TCP, 8491),
    "production v6": tried(bind, V6, TCP, 8491),
    "production udp": tried(bind, V4, UDP, 8492),
    "localhost": tried(send, V4, "127.0.0.1"),
    "localhost v6": tried(send, V6, "::1"),
    "elsewhere": tried(send, V4, "192.0.2.1"),
    "camera": tried(send, V4, "192.0.2.2"),
    "production's": tried(send, V4, "198.51.100.1"),
}
print("FACTS", json.dumps(facts), flush=True)
with socket.socket(socket.AF_UNIX, UDP) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
'''

OWN = ("own", "own udp", "own v6", "free", "other transport", "localhost", "localhost v6")
PRODUCTION = ("production", "production v6", "production udp")

GUARDS = {"IPAddressDeny", "SocketBindDeny"}
NO_PROGRAM = "no BPF program is attached to the unit's control group"
USERS_REASON = "a user manager cannot load BPF programs"


@pytest.fixture(scope="session")
def in_force() -> set[str]:
    """The guards that hold on this machine, as systemd-run by itself shows."""
    code = """
import socket
for name in "IPAddressDeny", "SocketBindDeny":
    with socket.socket(type=socket.SOCK_DGRAM) as tried:
        try:
            if name == "IPAddressDeny":
                tried.sendto(b"", ("127.0.0.1", 9))
            else:
                tried.bind(("127.0.0.1", 8493))
        except PermissionError:
            print(name)
"""
    whose = [] if ROOT else ["--user"]
    done = subprocess.run(
        ["systemd-run", *whose, "--quiet", "--wait", "--pipe", "--collect",
         "--property=IPAddressDeny=any", "--property=SocketBindDeny=udp:8493",
         "/usr/bin/python3", "-IS", "-c", code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.fixture
def defined(open_directory: Path) -> Path:
    """Definitions: of the probe, and of a production whose ports it tries."""
    for name in ("guarded", "lead"):
        (open_directory / name).mkdir()
    (open_directory / "lead/service.toml").write_text(LEAD)
    (open_directory / "guarded/guarded.service.j2").write_text(SERVICE)
    (open_directory / "guarded/probe.py").write_text(PROBE)
    define(open_directory, PORTS)
    return open_directory


@pytest.fixture
def run(defined: Path) -> Iterator[Run]:
    with Run(units=defined) as run:
        yield run


@pytest.fixture
def network() -> Iterator[str]:
    """A network in which addresses of documentation (RFC 5737) are this very host's."""
    if not ROOT:
        pytest.skip("only root can make a network")
    name = "understudy-tests"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for words in (
            "link set lo up",
            "address add 192.0.2.1/32 dev lo",
            "address add 192.0.2.2/32 dev lo",
            "address add 198.51.100.1/32 dev lo",
        ):
            subprocess.run(["ip", "-n", name, *words.split()], check=True)
        yield f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def define(units: Path, toml: str = "", *, conf: str = "") -> None:
    (units / "guarded/service.toml").write_text(DEFINITION + toml)
    (units / "guarded/instance.conf").write_text(INSTANCE + conf)


def facts_of(instance: Instance) -> dict[str, str]:
    said = next(line for line in instance.journal().splitlines() if line.startswith("FACTS "))
    return dict(json.loads(said.removeprefix("FACTS ")))


def words_of(unit: str, name: str) -> set[str]:
    """What systemd has in a list: it shows a rule each line, the way of writing varies."""
    shown = systemctl("show", f"--property={name}", "--value", unit)
    return {word if name.startswith("IP") else word.replace(":", "") for word in shown.split()}


def denied_to(instance: Instance) -> set[str]:
    """The ports that it may not bind, as far as systemd was told: its slice was, or itself."""
    run = names.parse(instance.unit)
    assert run is not None
    own = words_of(instance.unit, "SocketBindDeny")
    above = words_of(names.guarded_slice_unit(run[1]), "SocketBindDeny") if ROOT else set()
    assert not (own and above)
    assert words_of(instance.unit, "SocketBindAllow") == set()
    return own | above


def slice_of(instance: Instance) -> str:
    return instance.status().control_group.split("/")[-2]


def reported(run: Run, instance: Instance) -> dict[str, str]:
    """What `show` lists of the guards: directive and reason."""
    one = listing.find(listing.instances(run.manager), instance.unit)
    return {
        name: effect.reason
        for effect in effects.not_in_force(run.manager, one)
        if (name := effect.setting.partition("=")[0]) in GUARDS
    }


def test_show_lists_the_guards_that_do_not_hold(run: Run, in_force: set[str]) -> None:
    found = reported(run, instance := run.spawn("guarded"))
    assert set(found) == GUARDS - in_force
    assert set(found.values()) <= {USERS_REASON if not ROOT else NO_PROGRAM}
    facts = facts_of(instance)
    assert {name: facts[name] for name in OWN} == dict.fromkeys(OWN, "done")
    expected = "EPERM" if "SocketBindDeny" in in_force else "done"
    assert {name: facts[name] for name in PRODUCTION} == dict.fromkeys(PRODUCTION, expected)


def test_an_instance_reaches_this_host_and_whom_its_definition_names(
    run: Run, defined: Path, network: str, in_force: set[str]
) -> None:
    require("IPAddressDeny" in in_force, "the system manager may not load BPF programs here")
    define(defined, conf=f"NetworkNamespacePath={network}\n")
    facts = facts_of(run.spawn("guarded"))
    assert {name: facts[name] for name in OWN} == dict.fromkeys(OWN, "done")
    assert [facts[name] for name in ("elsewhere", "camera", "production's")] == ["EPERM"] * 3

    define(defined, conf=f"NetworkNamespacePath={network}\nIPAddressAllow=192.0.2.2\n")
    facts = facts_of(run.spawn("guarded"))
    assert {name: facts[name] for name in OWN} == dict.fromkeys(OWN, "done")
    assert [facts[name] for name in ("elsewhere", "camera", "production's")] == [
        "EPERM",
        "done",
        "EPERM",
    ]


@pytest.mark.parametrize("engine", Engine)
def test_one_that_binds_productions_port_fails_and_is_told_why(
    defined: Path, in_force: set[str], engine: Engine
) -> None:
    if "SocketBindDeny" not in in_force:
        pytest.skip(
            "SocketBindDeny= does not hold: a user manager, or systemd without BPF_FRAMEWORK"
        )
    code = "import socket; socket.create_server(('127.0.0.1', 9997))"
    with (
        Run(units=defined, engine=engine) as run,
        pytest.raises(StartError, match="exited with status 1") as error,
    ):
        run.spawn(exec=["/usr/bin/python3", "-c", code, "{port.http}"], ports=["http"])
    assert "PermissionError: [Errno 1] Operation not permitted" in error.value.journal
    assert error.value.hint is not None
    assert error.value.hint.startswith("9997 is production's: the kernel keeps instances from")


@pytest.mark.parametrize("engine", [None, *Engine])
def test_ad_hoc_commands_have_the_guards_too(
    defined: Path, in_force: set[str], engine: Engine | None
) -> None:
    with Run(units=defined, engine=engine) as run:
        server = ["/usr/bin/python3", "-m", "http.server", "--bind", "{host}", "{port.http}"]
        instance = run.spawn(exec=server, ports=["http"])
        assert set(reported(run, instance)) == GUARDS - in_force
        assert {"tcp8490-8491", "udp8490", "udp8492", "tcp9996-9999"} <= denied_to(instance)
        assert words_of(instance.unit, "IPAddressAllow") == {"127.0.0.0/8", "::1/128"}
        assert "Directory listing" in get(instance.urls["http"])


def test_an_instance_that_is_handed_its_sockets_may_bind_none_of_productions(
    in_force: set[str],
) -> None:
    with Run() as run:
        instance = run.spawn("camera-service-activated", values=ACTIVATED)
        assert set(reported(run, instance)) == GUARDS - in_force
        assert "tcp8002-8003" in denied_to(instance)
        assert get(f"{instance.urls['health']}/health/ready")


@pytest.mark.parametrize("prefer", ["dbus", "commands"])
def test_production_is_guarded_once_a_run_from_the_first_instance_on(
    defined: Path, in_force: set[str], prefer: Literal["dbus", "commands"]
) -> None:
    if not ROOT:
        pytest.skip("user managers cannot load BPF programs")
    with Run(units=defined, manager=connect(prefer=prefer)) as run:
        guarded = names.guarded_slice_unit(run.id)
        assert show(guarded, "LoadState", "ActiveState", "BindsTo") == {
            "LoadState": "loaded",
            "ActiveState": "inactive",
            "BindsTo": run.guard,
        }
        one = run.spawn(exec=["/bin/sleep", "1000"])
        assert show(guarded, "ActiveState") == {"ActiveState": "active"}
        one.stop()
        # A reload makes systemd 257 drop the program, and load it anew after the next start of a
        # unit in the slice. The rules are then what it wrote down itself.
        systemctl("daemon-reload")
        two = run.spawn("guarded")
        assert eventually(lambda: set(reported(run, two)) == GUARDS - in_force)
        assert slice_of(two) == guarded
        two.stop()  # where the kernel does not guard them it holds production's ports
        three = run.spawn("guarded")
        assert slice_of(three) == guarded
        expected = "EPERM" if "SocketBindDeny" in in_force else "done"
        facts = facts_of(three)
        assert {name: facts[name] for name in PRODUCTION} == dict.fromkeys(PRODUCTION, expected)
        assert slice_of(run.spawn("guarded", network="private")) == run.slice
    assert not units(f"understudy-{run.id}*")


def test_what_a_user_manager_cannot_guard_is_in_no_slice_of_its_own(run: Run) -> None:
    if ROOT:
        pytest.skip("the system manager can")
    instance = run.spawn("guarded")
    assert slice_of(instance) == run.slice
    assert {"tcp8490-8491", "udp8492"} <= denied_to(instance)
    assert units(f"understudy-{run.id}*.slice") == {run.slice}


def test_an_instance_cannot_allow_itself_what_its_slice_denies(
    run: Run, defined: Path, in_force: set[str]
) -> None:
    if "SocketBindDeny" not in in_force:
        pytest.skip("SocketBindDeny= does not hold here")
    define(defined, PORTS, conf="SocketBindAllow=any\n")
    facts = facts_of(run.spawn("guarded"))
    assert {name: facts[name] for name in PRODUCTION} == dict.fromkeys(PRODUCTION, "EPERM")
