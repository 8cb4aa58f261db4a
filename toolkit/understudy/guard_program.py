"""The process of a run's guard: its end ends the run.

Run by a systemd manager as ``python3 -I -S guard_program.py`` with one end of a socket pair
(AF_UNIX, SOCK_SEQPACKET) as standard input, over which the owner of the run says:

======================  ===========================  ==========================================
message                 descriptors                  meaning
======================  ===========================  ==========================================
``own``                 a pidfd (pidfd_open(2))      end when this process ends
``detach [SECONDS]``    none                         live on without the owner, at most so long
``hold NAME …``         a claim for each name        keep these claims on ports
``free NAME …``         none                         give them up, and answer ``freed``
``hurry``               none                         have the kernel ready to move a process
======================  ===========================  ==========================================

A pidfd and not the end of the pair says that the owner is gone: a forked child would inherit
the pair and keep the run alive, and an owner that closes all its descriptors would end it.
It imports nothing but the standard library: it is the first thing of a run to start.
"""

import contextlib
import os
import resource
import select
import socket
import time

BACKLOG = 4096
MESSAGE_BYTES = 65536
CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


def hurry() -> None:
    """Have the kernel ready to move a process to another cgroup, as the start of a service does.

    The first move after some 20 ms without one waits for a grace period of RCU, two ticks of the
    kernel. Moving this process to where it is begins that period at once, while the owner and the
    manager are busy with what comes before.
    """
    with contextlib.suppress(OSError):
        with open("/proc/self/cgroup", encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes 5 ms
            paths = [line[3:].rstrip("\n") for line in file if line.startswith("0::")]
        for folder in (f"{root}{path}" for path in paths for root in CGROUP_ROOTS):
            with contextlib.suppress(FileNotFoundError):
                processes = os.open(f"{folder}/cgroup.procs", os.O_WRONLY)
                try:
                    os.write(processes, b"0")  # whoever writes
                finally:
                    os.close(processes)


def main() -> None:
    """Serve the owner's messages until the owner ends, or systemd ends this."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    channel = socket.socket(fileno=0)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    claims: dict[str, socket.socket] = {}
    owner: int | None = None
    detached = False
    ends = 0.0
    while True:
        left_ms = max(0.0, ends - time.monotonic()) * 1000 if ends else None
        ready = {descriptor for descriptor, _event in poll.poll(left_ms)}
        # Its last words come before its end: "detach" may be one of them.
        if channel.fileno() not in ready:
            return
        try:
            message, descriptors, _flags, _address = socket.recv_fds(channel, MESSAGE_BYTES, 253)
        except ConnectionResetError:
            message, descriptors = b"", []
        verb, *names = message.decode().split() or [""]
        if verb == "own":
            owner = descriptors[0]
            poll.register(owner, select.POLLIN)
        elif verb == "detach" and owner is not None:
            poll.unregister(owner)
            os.close(owner)
            owner, detached = None, True
            ends = time.monotonic() + float(names[0]) if names else 0.0
        elif verb == "hold":
            for name, held in zip(names, descriptors, strict=True):
                claims[name] = socket.socket(fileno=held)
                # Whoever asks the kernel for the claim's process gets who listened last.
                claims[name].listen(BACKLOG)
        elif verb == "free":
            for name in names:
                with contextlib.suppress(KeyError):
                    claims.pop(name).close()
            with contextlib.suppress(OSError):
                channel.send(b"freed", socket.MSG_DONTWAIT)
        elif verb == "hurry":
            hurry()
        elif owner is not None or detached:
            poll.unregister(channel)
        else:
            return


if __name__ == "__main__":
    main()
