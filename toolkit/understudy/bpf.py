"""BPF programs of a control group, counted: what systemd's network and device filters are made of.

They show nowhere in /proc, and systemd leaves them out without a word where it may not load them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

INGRESS = 0
EGRESS = 1
DEVICE = 6
INET4_BIND = 8
INET6_BIND = 9
"""Attach types (uapi/linux/bpf.h): where in the kernel a program of the group is asked."""

_BPF_CALL = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_QUERY = 16
_SIZE = 64


def programs(cgroup: Path, attach_type: int) -> int:
    """How many programs of a type are attached to a control group (bpf(2), BPF_PROG_QUERY).

    Args:
        cgroup: Its folder.
        attach_type: One of those above.

    Raises:
        FileNotFoundError: The control group is gone.
        PermissionError: It takes CAP_NET_ADMIN on the host, and no seccomp filter against bpf(2).
    """
    number = _BPF_CALL.get(platform.machine())
    if number is None:
        raise PermissionError(f"bpf(2) has no known number on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt, and what came later
        query = ctypes.create_string_buffer(
            struct.pack("=IIIIQI36x", folder, attach_type, 0, 0, 0, 0), _SIZE
        )
        if libc.syscall(number, _BPF_PROG_QUERY, query, _SIZE) < 0:
            raise PermissionError(ctypes.get_errno(), "bpf(2)")
    finally:
        os.close(folder)
    return int(struct.unpack_from("=I", query.raw, 24)[0])
