"""The process of an instance that enters a private network by itself and becomes its command.

Run by a user's systemd manager, which cannot do it, as ``python3 -I -S enter_program.py NET USER
GATE [FILE PATH]… -- COMMAND…``:

- it enters the user namespace USER (none if empty) and the network namespace NET, both paths below
  ``/proc``, and looks whether it is there;
- it binds each FILE over its PATH, read-only, in a mount namespace of its own;
- it waits for a line from the FIFO at GATE;
- it becomes COMMAND, in the same process. What capabilities it had inside are gone with that, for
  its user is not root there.

It imports nothing but the standard library, and little of that: every instance waits for it.
"""

# ruff: noqa: PTH116, PTH123
# pathlib would be a third of all that is imported here.

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

# linux/sched.h
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

# linux/mount.h
_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_REC = 16384
_MS_SLAVE = 1 << 19
_KEPT = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
"""Flags of a mount that nobody inside may take away; their numbers are mount(2)'s."""

NOT_EXECUTABLE = 126
NOT_FOUND = 127

_libc = ctypes.CDLL(None, use_errno=True)


def enter(descriptor: int, path: str, kind: int, own: str) -> None:
    """Enter a namespace, unless this process is there already.

    Args:
        descriptor: The namespace, opened.
        path: Where it was, for people.
        kind: The CLONE_NEW… flag of its kind.
        own: Where this process's own of that kind is.

    Raises:
        OSError: It is gone, or may not be entered; or this process is not there afterwards.
    """
    wanted = os.fstat(descriptor)
    if not os.path.samestat(wanted, os.stat(own)):
        _checked(_libc.setns(descriptor, kind), path)
    if not os.path.samestat(wanted, os.stat(own)):
        raise OSError(0, "this process is in another one", path)


def bind_over(pairs: Sequence[tuple[str, str]]) -> None:
    """Bind files over paths, read-only, for this process and its children alone.

    Args:
        pairs: File and path of each.

    Raises:
        OSError: One of them is not there, or mounts are denied.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "a mount namespace")
    _mount(None, "/", _MS_REC | _MS_SLAVE)
    for file, path in pairs:
        _mount(file, path, _MS_BIND)
        kept = os.statvfs(path).f_flag & _KEPT
        _mount(None, path, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | kept)


def main(arguments: Sequence[str]) -> int:
    """Become the command; an exit code where that is not to be."""
    split = arguments.index("--")
    net, user, gate, *over = arguments[:split]
    command = [*arguments[split + 1 :]]
    try:
        # Both are opened first: what is another process's descriptor is out of reach from inside.
        wanted = [(user, _CLONE_NEWUSER, "user")] if user else []
        wanted.append((net, _CLONE_NEWNET, "net"))
        opened = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path, _kind, _name in wanted]
        for descriptor, (path, kind, name) in zip(opened, wanted, strict=True):
            enter(descriptor, path, kind, f"/proc/self/ns/{name}")
        if over:
            bind_over(list(zip(over[::2], over[1::2], strict=True)))
        with open(gate, "rb") as waiting:
            if not waiting.readline():
                return 1
    except OSError as exc:
        print(f"Cannot enter the private network: {exc.filename}: {exc.strerror}", file=sys.stderr)
        return 1
    # The interpreter ignores it; to ignore SIGPIPE is what systemd does as well.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, _environment())
    except OSError as exc:
        print(f"{command[0]}: {exc.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_EXECUTABLE


def _environment() -> dict[bytes, bytes]:
    """What systemd gave: the interpreter may have set a locale in its own copy."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0") if entry)
        return {name: value for name, _, value in pairs}


def _mount(source: str | None, target: str, flags: int) -> None:
    place = source.encode() if source is not None else None
    _checked(
        _libc.mount(place, target.encode(), None, ctypes.c_ulong(flags), None), source or target
    )


def _checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
