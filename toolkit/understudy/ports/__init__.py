"""Ports of one's own: claim them, and see who holds which. It knows nothing of systemd managers.

`Allocator` gives numbers out of the range that `configured_range` names, in blocks that no other
user of the host has (`Claim`). A claim binds nothing, so once an instance is up `check` looks at
`snapshot` whether it holds its ports, it alone. `holder` says who does where somebody else is.

The names are imported when they are used: most commands need few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from understudy.ports.allocation import Allocator
    from understudy.ports.cgroups import cgroup_ids, socket_inodes, unit_of
    from understudy.ports.checking import Check, Conflict, Hold, check
    from understudy.ports.claiming import Claim, Claimed, claims
    from understudy.ports.ownership import Holder, State, describe, describe_claim, holder, holders
    from understudy.ports.ranges import (
        BLOCK,
        PortRange,
        block_of,
        configured_range,
        ephemeral_ports,
    )
    from understudy.ports.sock_diag import Socket, Sockets, snapshot

__all__ = [
    "BLOCK",
    "Allocator",
    "Check",
    "Claim",
    "Claimed",
    "Conflict",
    "Hold",
    "Holder",
    "PortRange",
    "Socket",
    "Sockets",
    "State",
    "block_of",
    "cgroup_ids",
    "check",
    "claims",
    "configured_range",
    "describe",
    "describe_claim",
    "ephemeral_ports",
    "holder",
    "holders",
    "snapshot",
    "socket_inodes",
    "unit_of",
]

_HOMES = {
    "Allocator": "allocation",
    "BLOCK": "ranges",
    "Check": "checking",
    "Claim": "claiming",
    "Claimed": "claiming",
    "Conflict": "checking",
    "Hold": "checking",
    "Holder": "ownership",
    "PortRange": "ranges",
    "Socket": "sock_diag",
    "Sockets": "sock_diag",
    "State": "ownership",
    "block_of": "ranges",
    "cgroup_ids": "cgroups",
    "check": "checking",
    "claims": "claiming",
    "configured_range": "ranges",
    "describe": "ownership",
    "describe_claim": "ownership",
    "ephemeral_ports": "ranges",
    "holder": "ownership",
    "holders": "ownership",
    "snapshot": "sock_diag",
    "socket_inodes": "cgroups",
    "unit_of": "cgroups",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'understudy.ports' has no attribute '{name}'")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"understudy.ports.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
