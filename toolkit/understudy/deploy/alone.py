"""Production for oneself while it is restarted or stopped: who has a lease on it is waited for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from understudy import leases
from understudy.errors import DeployError, LeaseError
from understudy.model import ManagerKind


@contextlib.contextmanager
def alone(
    units: Mapping[str, str], verb: str, *, timeout_s: float, said: Callable[[str], None]
) -> Iterator[None]:
    """Have exclusive leases on units of production meanwhile.

    Args:
        units: The service of each.
        verb: What is about to be done to them: ``restart``.
        timeout_s: Seconds to wait for each.
        said: Told who is waited for.

    Raises:
        DeployError: Others have had one for the whole time; the message names them.
    """

    def waiting(text: str, news: bool) -> None:
        if news:
            said(text)

    with contextlib.ExitStack() as held:
        for unit, service in units.items():
            try:
                lease = leases.lease(
                    leases.key_of(unit, ManagerKind.SYSTEM),
                    service=service,
                    exclusive=True,
                    timeout_s=timeout_s,
                    waiting=waiting,
                )
            except LeaseError as exc:
                raise DeployError(
                    f"Cannot {verb} '{unit}': {exc.message.partition(': ')[2]}",
                    hint="a longer wait: --timeout; without regard for who has a lease: --now",
                ) from exc
            held.enter_context(lease)
        yield
