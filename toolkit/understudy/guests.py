"""Instances that talk to production's own server: a name for each, under which it may do anything.

What is below such a name is the instance's and goes with it; nothing else is ever taken from the
server on its account (docs/decisions has the reasons).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from understudy import lead, paths
from understudy.errors import UnderstudyError
from understudy.leases import Lease


class Guest:
    """One instance's name on production's server, and its lease, until it has ended."""

    def __init__(self, reserved: paths.Reserved, lease: Lease) -> None:
        self._reserved = reserved
        self._lease: Lease | None = lease
        self._owner_pid = os.getpid()

    def close(self) -> None:
        """Remove the name with all below it, once its instance has ended; twice does no harm.

        What the server will not give up now is what the next run removes.
        """
        lease, self._lease = self._lease, None
        if lease is None or self._owner_pid != os.getpid():
            return
        try:
            with contextlib.suppress(UnderstudyError):
                self._reserved.remove()
        finally:
            lease.close()


def welcome(service: str, unit: str, prefix: str, run: str, *, units: Path | None) -> Guest | None:
    """Reserve a name on production's server, with a shared lease.

    Args:
        service: What the instance uses: ``mediamtx``.
        unit: Production's unit, where it is called otherwise than by definition; "" if not.
        prefix: The name: ``r7k2mq/camera-service-1``.
        run: The instance's run, with whose end the name has no owner.
        units: A folder of definitions to look in before all others.

    Returns:
        None where there is no such server to be found, or none with a control API.

    Raises:
        LeaseError: Somebody is alone with it, for the whole time.
        ProductionError: The server refuses.
    """
    found = lead.seen(service, unit=unit or None, units=units)
    if found is None or found.active_since is None or "api" not in found.urls:
        return None
    lease = found.lease()
    try:
        return Guest(paths.reserve(found.api, lease, prefix, run=run), lease)
    except BaseException:
        lease.close()
        raise
