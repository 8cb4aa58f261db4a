"""Claims on blocks of ports, which every user of a host sees and the kernel frees.

A claim on a block is a listening unix socket with the abstract name ``understudy/port/20016``, the
block's first number: the kernel gives a name to one socket only, and takes it back when the last
copy of its descriptor is closed, by SIGKILL too. There is no file, so none stays and none has mode
bits. Abstract names belong to a network namespace, as ports do (unix(7)).
"""

from __future__ import annotations

import contextlib
import errno
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from understudy.errors import PortError
from understudy.ports.cgroups import unit_of_process
from understudy.ports.ranges import BLOCK
from understudy.ports.sock_diag import unix_listeners

_NAME = "understudy/port/"
_CREDENTIALS = struct.Struct("=iII")  # ucred: PID, user, group (unix(7), SO_PEERCRED)

# Who looks at a claim's process connects to it, and nobody accepts: room for the kernel's maximum.
_BACKLOG = 4096


class Claim:
    """Blocks of ports that are one's own as long as a copy of the descriptors is open.

    The descriptors may be sent to another process (SCM_RIGHTS), which then holds the claim as
    well. A program that is executed does not inherit them; a fork does.
    """

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}

    def add(self, blocks: Iterable[int]) -> bool:
        """Claim further blocks: all of these or none.

        Args:
            blocks: Their first numbers.

        Returns:
            Whether they were to be had; a block that is claimed already is not.

        Raises:
            PortError: The kernel refuses for another reason.
        """
        with contextlib.ExitStack() as undo:
            added = {}
            for block in blocks:
                one = _claim_block(block)
                if one is None:
                    return False
                added[block] = undo.enter_context(one)
            undo.pop_all()
        self._sockets |= added
        return True

    @property
    def blocks(self) -> tuple[int, ...]:
        """The first numbers of the claimed blocks, ascending."""
        return tuple(sorted(self._sockets))

    def descriptors(self) -> dict[str, int]:
        """The descriptors that hold the claim, each under a name of its own: ``port/20016``."""
        return {f"port/{block}": one.fileno() for block, one in self._sockets.items()}

    def close(self) -> None:
        """Give the blocks back, unless another process has copies of the descriptors."""
        for one in self._sockets.values():
            one.close()
        self._sockets.clear()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A claimed block, as every user sees it.

    Attributes:
        block: Its first number.
        uid: The user who claimed it.
        user: That user's name, or the number where it has none.
        pid: The process that claimed it, or last called listen(2) on the claim; None if it is
            gone or cannot be asked.
        unit: The unit that process runs in; None if it runs in none.
    """

    block: int
    uid: int
    user: str
    pid: int | None
    unit: str | None


def claims(among: Iterable[int] | None = None) -> list[Claimed]:
    """The claimed blocks of this network namespace, ascending, whoever claimed them.

    Args:
        among: First numbers of the blocks to look at (`PortRange.blocks`); None for all.

    Raises:
        PortError: The kernel denies it.
    """
    wanted = None if among is None else frozenset(among)
    found = []
    for name, uid in unix_listeners():
        text = name.removeprefix(b"\0" + _NAME.encode())
        if text != name and text.isdigit() and (wanted is None or int(text) in wanted):
            block = int(text)
            pid = _claimant(block)
            found.append(
                Claimed(
                    block=block,
                    uid=uid,
                    user=user_name(uid),
                    pid=pid,
                    unit=None if pid is None else unit_of_process(pid),
                )
            )
    return sorted(found, key=lambda one: one.block)


def user_name(uid: int) -> str:
    """A user's name, or the number of one that has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _claim_block(block: int) -> socket.socket | None:
    one = None
    try:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.bind(_address(block))
        one.listen(_BACKLOG)
    except OSError as exc:
        if one is not None:
            one.close()
        if exc.errno == errno.EADDRINUSE:
            return None
        raise PortError(f"Cannot claim ports {block}-{block + BLOCK - 1}: {exc.strerror}") from exc
    return one


def _address(block: int) -> str:
    return f"\0{_NAME}{block}"


def _claimant(block: int) -> int | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.setblocking(False)
        try:
            one.connect(_address(block))
            answer = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError:  # given back meanwhile, or its queue is full
            return None
    pid: int = _CREDENTIALS.unpack(answer)[0]
    return pid if pid and Path(f"/proc/{pid}").exists() else None
