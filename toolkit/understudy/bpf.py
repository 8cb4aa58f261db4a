"""BPF programs of a control group, by name: what systemd's network and device filters are made of.

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
_BPF_PROG_GET_FD_BY_ID = 13
_BPF_OBJ_GET_INFO_BY_FD = 15
_BPF_PROG_QUERY = 16
_SIZE = 64
_MOST = 64  # BPF_CGROUP_MAX_PROGS (linux/bpf-cgroup.h)
_INFO_SIZE = 128
_NAME = slice(64, 80)  # struct bpf_prog_info


def programs(cgroup: Path, attach_type: int) -> list[str]:
    """The names of the programs of a type that are attached to a control group itself (bpf(2)).

    Args:
        cgroup: Its folder.
        attach_type: One of those above.

    Raises:
        FileNotFoundError: The control group is gone.
        PermissionError: It takes CAP_NET_ADMIN and CAP_SYS_ADMIN on the host, and no seccomp
            filter against bpf(2).
    """
    ids = (ctypes.c_uint32 * _MOST)()
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt, and what came later
        fields = (folder, attach_type, 0, 0, ctypes.addressof(ids), _MOST)
        _, answer = _bpf(_BPF_PROG_QUERY, struct.pack("=IIIIQI", *fields))
    finally:
        os.close(folder)
    [count] = struct.unpack_from("=I", answer, 24)
    return [_name(number) for number in ids[:count]]


def _name(number: int) -> str:
    info = ctypes.create_string_buffer(_INFO_SIZE)
    # start_id, next_id, open_flags
    program, _ = _bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))
    try:
        # bpf_fd, info_len, info
        fields = (program, _INFO_SIZE, ctypes.addressof(info))
        _bpf(_BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", *fields))
    finally:
        os.close(program)
    return info.raw[_NAME].split(b"\0")[0].decode(errors="replace")


def _bpf(command: int, fields: bytes) -> tuple[int, bytes]:
    call = _BPF_CALL.get(platform.machine())
    if call is None:
        raise PermissionError(f"bpf(2) has no known number on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = ctypes.create_string_buffer(fields, _SIZE)
    found = libc.syscall(call, command, attributes, _SIZE)
    if found < 0:
        raise PermissionError(ctypes.get_errno(), "bpf(2)")
    return int(found), attributes.raw
