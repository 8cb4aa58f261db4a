"""The text of a private instance: the gate before its command, and the proxies of its ports. Pure.

A private network that did not come about would put a service that insists on its ports beside
production, or in its place. So the command of a private instance waits at a gate, a FIFO, until
its network was looked at; what is in the wrong one never runs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from understudy.errors import RenderError
from understudy.model import PrivateNetwork
from understudy.templates import UnitText
from understudy.unitfile import quote

PROXY: Final = "/usr/lib/systemd/systemd-socket-proxyd"
"""systemd's own proxy (systemd-socket-proxyd(8))."""

CONNECTIONS_MAX: Final = 2048
"""Connections at a time through one proxy; further ones are closed."""

PID_VARIABLE: Final = "UNDERSTUDY_PID"
"""What a proxy on a user manager finds its instance by, in the file beside the gate."""

_ENTER_PROGRAM: Final = Path(__file__).resolve().with_name("enter_program.py")
_PREFIXES = re.compile(r"[@\-:+!|]*")
_WAIT = 'read -r _ <"$0" && exec "$@"'


def gate_path(files: str) -> str:
    """The FIFO of an instance.

    Args:
        files: The folder of its files.
    """
    return f"{files}/gate"


def pid_path(files: str) -> str:
    """The file that says the process whose network its proxies enter.

    Args:
        files: The folder of its files.
    """
    return f"{files}/network.env"


def gated(command: str, gate: str, *, unit: str) -> UnitText:
    """A command line that waits at the gate first, in the same process.

    Args:
        command: What stands after ``ExecStart=``.
        gate: The FIFO.
        unit: Whose it is, for people.

    Raises:
        RenderError: It has a prefix that no shell can stand for.
    """
    prefixes, rest = _taken_apart(command, unit)
    # With the colon systemd expands nothing; without it "$$" is a dollar sign.
    script = _WAIT if ":" in prefixes else _WAIT.replace("$", "$$")
    return UnitText(f"{prefixes}/bin/sh -c {quote(script)} {_word(gate)} {rest}")


def entering(
    command: str, gate: str, network: PrivateNetwork, over: Sequence[tuple[str, str]], *, unit: str
) -> UnitText:
    """A command line that enters a network by itself, and then waits at the gate.

    For user managers: only their own processes can enter a network that one of them has made.

    Args:
        command: What stands after ``ExecStart=``.
        gate: The FIFO.
        network: Where to.
        over: Files and the paths over which they are bound, for this process alone.
        unit: Whose it is, for people.

    Raises:
        RenderError: It has a prefix that no program can stand for.
    """
    prefixes, rest = _taken_apart(command, unit)
    words = [sys.executable, "-I", "-S", str(_ENTER_PROGRAM)]
    words += [network.net_path, network.user_path, gate]
    for pair in over:
        words += pair
    return UnitText(f"{prefixes}{' '.join(map(_word, words))} -- {rest}")


def proxy_command(inside: int, *, network: PrivateNetwork, user_manager: bool) -> UnitText:
    """The command line of a proxy to a port inside.

    A system manager puts it into the network; on a user manager it goes there by itself.

    Args:
        inside: The port's number inside.
        network: The instance's.
        user_manager: Whether a user's manager runs it.
    """
    words = [PROXY, f"--connections-max={CONNECTIONS_MAX}", f"127.0.0.1:{inside}"]
    enter: list[str] = []
    if user_manager:
        enter = ["nsenter", "--preserve-credentials"]
        if network.net_path:
            enter += [f"--user={network.user_path}"] if network.user_path else []
            enter += [f"--net={network.net_path}"]
        else:
            enter += ["--user", "--net", f"--target=${{{PID_VARIABLE}}}"]
    return UnitText(" ".join(map(_word, [*enter, *words])))


def environment(
    network: PrivateNetwork, inside: Mapping[str, int], *, by_sockets: bool
) -> dict[str, str]:
    """What an instance, and whoever lists it, is told of its network.

    Args:
        network: The instance's.
        inside: The numbers of its ports inside, by name.
        by_sockets: Whether its sockets are bound outside and handed in.
    """
    numbers = "" if by_sockets else ",".join(f"{name}={port}" for name, port in inside.items())
    return {"UNDERSTUDY_NETWORK": str(network), "UNDERSTUDY_INSIDE_PORTS": numbers}


def _taken_apart(command: str, unit: str) -> tuple[str, str]:
    """Prefixes of ``ExecStart=``, wherever systemd finds them, and the command line after them."""
    mark = command[:1] if command[:1] in ("'", '"') else ""
    found = _PREFIXES.match(command, len(mark))
    prefixes = found[0] if found else ""
    if "@" in prefixes or "|" in prefixes:
        raise RenderError(
            f"Cannot derive '{unit}' for a private network: nothing can stand before a command "
            f"with the prefix '{'@' if '@' in prefixes else '|'}' of ExecStart=",
            hint="an instance.conf in the definition that resets ExecStart= and gives its own",
        )
    return prefixes, mark + command[len(mark) + len(prefixes) :]


def _word(text: str) -> str:
    return quote(text).replace("%", "%%")
