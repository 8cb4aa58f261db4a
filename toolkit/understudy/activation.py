"""Inherited sockets by name, and word of being ready: for authors of services.

A service that takes its listening sockets from systemd never binds a port, so no port of it
can be taken. Two calls are all it needs::

    from understudy import activation

    websocket = activation.socket_named("websocket")  # FileDescriptorName=websocket
    health = activation.socket_named("health")
    ...  # serve on them
    activation.notify("READY=1")  # Type=notify

This module uses the standard library alone and imports nothing of understudy, so it may also
be copied into a service's own tree. The protocol is that of sd_listen_fds(3) and sd_notify(3).
"""

from __future__ import annotations

import os
import socket

__all__ = ["ActivationError", "notify", "socket_named", "sockets"]

_FIRST_FD = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""

_UNNAMED = "unknown"
"""The name of a descriptor to which nobody gave one (sd_listen_fds(3))."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class ActivationError(Exception):
    """A socket that the service counts on was not passed, or the manager cannot be told."""


def sockets(*, unset_environment: bool = False) -> dict[str, list[socket.socket]]:
    """Take every socket that the service manager passed to this process.

    Take them once and keep them: each call makes new objects for the same descriptors, and an
    object that is closed or collected closes its descriptor. Close-on-exec is set on every
    descriptor, so programs that the service starts do not inherit them.

    Args:
        unset_environment: Whether to remove the ``LISTEN_…`` variables, so that neither a later
            call nor a child process takes the sockets for its own.

    Returns:
        The sockets by name (``FileDescriptorName=`` of systemd.socket(5), by default the socket
        unit's name; ``unknown`` where nobody named them), in the order in which they were
        passed. Empty if this process was not started with sockets.

    Raises:
        ActivationError: The variables contradict each other, or a descriptor is no socket.
    """
    passed = _passed()
    if unset_environment:
        for variable in _VARIABLES:
            os.environ.pop(variable, None)
    return {name: [_adopt(fd, name) for fd in fds] for name, fds in passed.items()}


def socket_named(name: str) -> socket.socket:
    """Take the one socket of that name; the others stay as they are.

    Args:
        name: What ``FileDescriptorName=`` of its socket unit says.

    Returns:
        The socket, already bound and, if it is a stream socket, listening. The caller owns it.

    Raises:
        ActivationError: There is none or more than one of that name (the message says which
            names there are), or `sockets` would raise it.
    """
    passed = _passed()
    fds = passed.get(name, [])
    if len(fds) == 1:
        return _adopt(fds[0], name)
    if fds:
        raise ActivationError(f"Cannot take socket '{name}': {len(fds)} were passed; use sockets()")
    if passed:
        what = "passed were " + ", ".join(f"'{known}'" for known in passed)
    else:
        what = "this process was started without any (no LISTEN_FDS for it in the environment)"
    raise ActivationError(f"Cannot take socket '{name}': {what}")


def notify(state: str) -> bool:
    """Tell the service manager something (sd_notify(3)).

    Args:
        state: Assignments, one a line: ``READY=1``, ``STATUS=Waiting for cameras``, ``STOPPING=1``.

    Returns:
        Whether somebody listens: False where NOTIFY_SOCKET is not set, as in a shell.

    Raises:
        ActivationError: NOTIFY_SOCKET is set, but nothing can be sent there.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    # An at-sign stands for the zero byte of an abstract socket (unix(7)).
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(state.encode(), target)
    except OSError as exc:
        raise ActivationError(f"Cannot notify '{address}': {exc.strerror or exc}") from exc
    return True


def _passed() -> dict[str, list[int]]:
    """The descriptors passed to this process, by name; empty if they are for another one."""
    count = _number("LISTEN_FDS")
    # A process inherits its parent's variables; LISTEN_PID says whose they are.
    if not count or _number("LISTEN_PID") != os.getpid():
        return {}
    listed = os.environ.get("LISTEN_FDNAMES")
    names = listed.split(":") if listed is not None else [_UNNAMED] * count
    if len(names) != count:
        raise ActivationError(
            f"Cannot name the passed sockets: LISTEN_FDS={count}, but LISTEN_FDNAMES={listed}"
        )
    passed: dict[str, list[int]] = {}
    for fd, name in enumerate(names, _FIRST_FD):
        passed.setdefault(name or _UNNAMED, []).append(fd)
    return passed


def _number(variable: str) -> int:
    text = os.environ.get(variable, "0")
    if not (text.isascii() and text.isdigit()):
        raise ActivationError(f"Cannot read '{variable}': '{text}' is not a number")
    return int(text)


def _adopt(fd: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        adopted = socket.socket(fileno=fd)
    except OSError as exc:
        raise ActivationError(
            f"Cannot take descriptor {fd} ('{name}') as a socket: {exc.strerror or exc}"
        ) from exc
    # The object assumes a blocking descriptor; with NonBlocking=yes (systemd.service(5)) it is not.
    adopted.setblocking(os.get_blocking(fd))
    return adopted
