"""The fixtures' value: what a test asks instances, production and ports of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

from understudy.claimed import ClaimedPorts
from understudy.errors import LeaseError, ManagerError, PortError, ProductionError
from understudy.instance import Instance
from understudy.lead import LEASE_TIMEOUT_S, Production, production
from understudy.manager import Manager
from understudy.model import ManagerKind, Service
from understudy.plan import Request
from understudy.run import Run, SpawnArguments
from understudy.shared import SharedInstance

if TYPE_CHECKING:
    from understudy.plugin.worker import Worker

_T = TypeVar("_T")


class Understudy:
    """What the fixtures ``understudy`` and ``understudy_session`` give.

    What is spawned ends with the test, or with the session; so do claimed ports, leases on
    production, and paths on its server.

    Attributes:
        instances: What was spawned by way of it, those included that have been stopped since.
        leads: What `production` gave.
        test: The test that it was made for.
    """

    def __init__(self, worker: Worker, test: str, *, label: str | None = None) -> None:
        self.instances: list[Instance] = []
        self.leads: list[Production] = []
        self.test = test
        self._label = label
        self._worker = worker
        self._ports: list[ClaimedPorts] = []
        self._owner_pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Understudy of {self.test}, {len(self.instances)} instances>"

    @property
    def run(self) -> Run:
        """The run that its instances live in: one for each process that runs tests.

        Raises:
            UnderstudyError: There is no manager, or no run to be had.
        """
        return self._worker.run()

    def spawn(
        self,
        service: str | Service | None = None,
        *,
        timeout_s: float | None = None,
        **arguments: Unpack[SpawnArguments],
    ) -> Instance:
        """Start one instance, and return when it is ready: `understudy.Run.spawn`.

        Args:
            service: A service's name or definition; None with ``exec``.
            timeout_s: Deadline in seconds; None: as the session was told.
            arguments: ``exec``, ``ports``, ``values``, ``env``, ``uses``, ``installed``, ``lazy``,
                ``network``, ``background``: as `understudy.Run.spawn`.

        Raises:
            UnderstudyError: As `understudy.Run.spawn`.
        """
        request = self.request(service, **arguments)
        return self.spawn_many([request], timeout_s=timeout_s)[0]

    def spawn_many(
        self, wanted: Iterable[str | Service | Request], *, timeout_s: float | None = None
    ) -> list[Instance]:
        """Start many instances in parallel: `understudy.Run.spawn_many`.

        Args:
            wanted: Service names, or what `request` gives.
            timeout_s: Deadline in seconds for all of them; None: as the session was told.

        Raises:
            UnderstudyError: As `understudy.Run.spawn`; then none of them is left.
        """
        wanted = [*wanted]
        run = self.run
        return self._started(self._given(lambda: run.spawn_many(wanted, timeout_s=timeout_s)))

    async def aspawn(
        self,
        service: str | Service | None = None,
        *,
        timeout_s: float | None = None,
        **arguments: Unpack[SpawnArguments],
    ) -> Instance:
        """`spawn` for asyncio: the event loop goes on meanwhile.

        Args:
            service: As `spawn`.
            timeout_s: As `spawn`.
            arguments: As `spawn`.
        """
        run = await self._arun()
        instance = await self._agiven(lambda: run.aspawn(service, timeout_s=timeout_s, **arguments))
        return self._started([instance])[0]

    def request(
        self, service: str | Service | None = None, **arguments: Unpack[SpawnArguments]
    ) -> Request:
        """What `spawn` with these arguments asks for, to be given to `spawn_many`.

        Args:
            service: As `spawn`.
            arguments: As `spawn`.
        """
        return self.run.request(service, **arguments)

    def shared(
        self,
        service: str | Service | None = None,
        *,
        timeout_s: float | None = None,
        **arguments: Unpack[SpawnArguments],
    ) -> SharedInstance:
        """The one instance that all tests of this session have together, in all of its workers.

        Whoever asks first starts it; it ends after the last worker, with ``--understudy-reuse`` an
        hour later.

        Args:
            service: As `spawn`.
            timeout_s: As `spawn`.
            arguments: As `spawn`; the same from all who ask.

        Raises:
            UnderstudyError: As `understudy.Run.shared`.
        """
        group, keep_s = self._worker.sharing
        run = self.run
        found = self._given(
            lambda: run.shared(
                service, group=group, keep_s=keep_s, timeout_s=timeout_s, **arguments
            )
        )
        return self._worker.shares(found)

    async def ashared(
        self,
        service: str | Service | None = None,
        *,
        timeout_s: float | None = None,
        **arguments: Unpack[SpawnArguments],
    ) -> SharedInstance:
        """`shared` for asyncio, as `aspawn` is `spawn`.

        Args:
            service: As `shared`.
            timeout_s: As `shared`.
            arguments: As `shared`.
        """
        group, keep_s = self._worker.sharing
        run = await self._arun()
        found = await self._agiven(
            lambda: run.ashared(
                service, group=group, keep_s=keep_s, timeout_s=timeout_s, **arguments
            )
        )
        return self._worker.shares(found)

    def production(
        self,
        service: str | Service,
        *,
        unit: str | None = None,
        manager: Manager | ManagerKind | None = None,
        units: Path | None = None,
        exclusive: bool = False,
        lease_timeout_s: float = LEASE_TIMEOUT_S,
    ) -> Production:
        """The host's own copy of a service, leased until the end of the test, or of the session.

        Paths that are added by way of it are called after run and test, and go with it. Without
        such a copy the test is skipped, with the reason; with ``--understudy-require`` it fails.

        Args:
            service: Its name or definition.
            unit: Its unit, where that is called otherwise here than its definition says.
            manager: As `understudy.production`.
            units: A folder of definitions to look in first; None: as the session was told.
            exclusive: Be alone with it, to reload its configuration; otherwise it is shared. Who
                has it is waited for, and that is shown.
            lease_timeout_s: Deadline in seconds for the lease.

        Raises:
            LeaseError: Others have it for the whole time.
            UsageError: There is no such service, or it has no production, or this process shares
                it already and cannot be alone.
        """
        __tracebackhide__ = True  # a skip is told with the line of the test
        worker = self._worker
        worker.settle()  # earlier tests' instances may use it until they end
        try:
            lead = production(
                service,
                unit=unit,
                manager=manager,
                units=units or worker.settings.units,
                exclusive=exclusive,
                lease_timeout_s=lease_timeout_s,
                waiting=worker.show,
                who=worker.name,
            )
        except LeaseError:
            raise
        except (ProductionError, ManagerError) as exc:
            if worker.settings.require:
                raise
            import pytest

            pytest.skip(str(exc).replace("\n  hint: ", "; "))
        self.leads.append(lead)
        lead.name_paths(test=self._label, run=lambda: worker.run_id)
        worker.has_production(lead, alone=exclusive)
        return lead

    def ports(self, *transports: str) -> ClaimedPorts:
        """Numbers for servers that the test starts by itself, nobody else's until it ends.

        Args:
            transports: ``tcp`` or ``udp``, one for each number.

        Raises:
            UsageError: A transport is neither.
            PortError: There are none to be had.
        """
        run = self.run
        claimed = self._given(lambda: run.claim_ports(*transports))
        self._ports.append(claimed)
        return claimed

    def end(self, *, keep: bool, wait: bool) -> None:
        """End what was begun by way of it; for the fixtures.

        Args:
            keep: Whether instances stay; those of a forked child's parent always do.
            wait: Whether they must have ended then.

        Raises:
            ManagerError: An instance was not stopped in time; it ends with the session.
            ExceptionGroup: Paths on production's server could not be removed.
        """
        if self._owner_pid != os.getpid():
            return
        with contextlib.ExitStack() as undo:
            # Last, when no instance can come back to a path that is removed.
            for lead in self.leads:
                undo.callback(lead.close)
            if keep:
                self._worker.keeps(self)
                return
            for claimed in self._ports:
                claimed.release()
            if self.instances:
                self._worker.end(self.instances, wait=wait or bool(self.leads))

    def _given(self, take: Callable[[], _T]) -> _T:
        """What takes ports; where there are none, after the end of earlier tests' instances."""
        try:
            return take()
        except PortError:
            if not self._worker.settle():
                raise
        return take()

    async def _agiven(self, take: Callable[[], Awaitable[_T]]) -> _T:
        from understudy.awaiting import in_thread

        try:
            return await take()
        except PortError:
            if not await in_thread(lambda _canceled: self._worker.settle(), undo=lambda _any: None):
                raise
        return await take()

    async def _arun(self) -> Run:
        from understudy.awaiting import in_thread

        return await in_thread(lambda _canceled: self._worker.run(), undo=lambda _run: None)

    def _started(self, found: list[Instance]) -> list[Instance]:
        self.instances += found
        self._worker.started(found)
        return found
