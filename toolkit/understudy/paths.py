"""A name of one's own on a MediaMTX that others use too, and the removal of names left behind.

A path is called ``r7k2mq/test_x/cam0``: whose it is, which test's, what. Its first part is the id
of a lease or a run that lives as long as somebody needs the path. The path's own settings say the
same, in a text that only a Raspberry Pi's camera would show: so a path that happens to be called
like one of ours is never taken for it, and one of another host or container is known as that.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from understudy.api import Api, Json, Session
from understudy.errors import ProductionError, UsageError
from understudy.leases import Lease, program_name
from understudy.model import HOST
from understudy.ports.claiming import user_name

TIMEOUT_S = 10.0
PAUSE_MIN_S = 0.001
PAUSE_MAX_S = 0.05

MARK: Final = "rpiCameraTextOverlay"
"""A setting of every version that is a text, is checked by none, and shows nothing here."""

_MARK = re.compile(
    r"understudy (?P<owner>r[a-z0-9]{1,15}) uid (?P<uid>[0-9]+) on (?P<network>\S+)"
    r"(?P<below> and below)?"
)
_NAME = re.compile(r"[0-9a-zA-Z_\-.]+(/[0-9a-zA-Z_\-.]+)*")
_LABEL_LENGTH = 60

_URLS: Final = {
    "rtsp": "{base}/{name}",
    "rtsps": "{base}/{name}",
    "rtmp": "{base}/{name}",
    "hls": "{base}/{name}/index.m3u8",
    "webrtc": "{base}/{name}",
    "srt": "{base}?streamid=read:{name}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """A path on a server that says it is ours: of some run, live or dead.

    Attributes:
        name: Its name.
        owner: The id of the run or lease that it belongs to.
        uid: The user whose that was.
        network: What tells the host and network that its owner was seen in.
        below: Whether all that is configured below it belongs to it as well.
    """

    name: str
    owner: str
    uid: int
    network: str
    below: bool = False


class ProductionPath:
    """A path of one's own on production's server, until it is closed.

    Made by `understudy.Production.path`. A forked child cannot close it.

    Attributes:
        name: ``r7k2mq/test_x/cam0``.
        prefix: ``r7k2mq/test_x``: whatever else is published below it goes with it.
        urls: By the port's name (``rtsp``, ``hls``, ``webrtc``, …) where to publish and read.
    """

    def __init__(self, api: Api, lease: Lease, name: str, urls: Mapping[str, str]) -> None:
        self.name = name
        self.prefix = name.rpartition("/")[0]
        self.urls = urls_of(name, urls)
        self._api = api
        self._lease = lease
        self._pid = os.getpid()
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ProductionPath {self.name}>"

    def ready(self) -> bool:
        """Whether somebody publishes to it.

        Raises:
            ProductionError: The server does not say.
        """
        state = self._api.path(self.name)
        return state is not None and state.ready

    def sessions(self) -> list[Session]:
        """The sessions that use it.

        Raises:
            ProductionError: The server does not say.
        """
        return [one for one in self._api.sessions() if _is_under(one.path, self.name)]

    def close(self, *, timeout_s: float = TIMEOUT_S) -> None:
        """Remove it, end the sessions that still use it, and wait until it is gone.

        Args:
            timeout_s: Seconds that this may take.

        Raises:
            ProductionError: The server refuses; what is left the next run removes.
        """
        if not self._open or self._pid != os.getpid():
            return
        self._open = False
        try:
            _remove(self._api, self.name, time.monotonic() + timeout_s)
        finally:
            self._lease.close()


class Reserved:
    """A name on a server below which an instance adds whatever it likes. Made by `reserve`.

    Attributes:
        name: ``r7k2mq/camera-service-1``.
    """

    def __init__(self, api: Api, name: str) -> None:
        self.name = name
        self._api = api

    def remove(self, *, timeout_s: float = TIMEOUT_S) -> None:
        """Remove it, with all below it and the sessions that use that.

        Args:
            timeout_s: Seconds that this may take.

        Raises:
            ProductionError: The server refuses; what is left the next run removes.
        """
        _remove(self._api, self.name, time.monotonic() + timeout_s, below=True)


def reserve(api: Api, lease: Lease, name: str, *, run: str) -> Reserved:
    """Have all below a name be a run's, and known as that after its death.

    Args:
        api: The server's.
        lease: A lease on it, which the caller keeps as long as the name is used.
        name: The name, which begins with the run's id.
        run: That.

    Raises:
        ProductionError: The server refuses.
    """
    lease.keep_run(run)
    api.add(name, **{MARK: f"{_mark(run, lease)} and below"})
    return Reserved(api, name)


def create(
    api: Api,
    lease: Lease,
    name: str,
    *,
    test: str | None,
    run: str | None,
    urls: Mapping[str, str],
    settings: Mapping[str, Json],
    timeout_s: float = TIMEOUT_S,
) -> ProductionPath:
    """Add a path and wait until it is there.

    Args:
        api: The server's.
        lease: A lease on it, which the path closes.
        name: The last part of its name.
        test: The middle part; None: the test that pytest says it is at, else the program.
        run: The first part: the id of a run of the caller's; None: the lease's.
        urls: The server's URLs by port name.
        settings: The path's settings in MediaMTX's words.
        timeout_s: Seconds until it must be there.

    Raises:
        UsageError: It cannot be called so, or sets what marks it as ours.
        ProductionError: The server refuses, or it was not there in time.
    """
    if MARK in settings:
        raise UsageError(f"Cannot add path '{name}' with '{MARK}': it is how our paths are known")
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"Cannot add path '{name}': MediaMTX takes letters, digits and _ - . / in its name",
            hint="no slash at either end",
        )
    owner = run or lease.id
    if run is not None:
        lease.keep_run(run)
    whole = f"{owner}/{label(test)}/{name}"
    path = ProductionPath(api, lease, whole, urls)
    deadline = time.monotonic() + timeout_s
    api.add(whole, **{**settings, MARK: _mark(owner, lease)})
    try:
        pause_s = PAUSE_MIN_S
        while api.path(whole) is None:
            if time.monotonic() >= deadline:
                raise ProductionError(
                    f"Cannot add path '{whole}': it is not there after {timeout_s:g} s, although "
                    f"{api!r} has accepted it"
                )
            pause_s = _pause(pause_s)
    except BaseException:
        with contextlib.suppress(ProductionError):
            _remove(api, whole, time.monotonic() + timeout_s)
        raise
    return path


def owned(api: Api) -> list[Owned]:
    """The paths on a server that say they are ours, of whichever run, user and host.

    Raises:
        ProductionError: The server does not say.
    """
    return _owned(api.configured())


def others(api: Api) -> list[str]:
    """The configured paths that are of none of our runs, of whichever run, user and host.

    Raises:
        ProductionError: The server does not say.
    """
    configured = api.configured()
    ours = _owned(configured)
    names = {one.name for one in ours}
    reserved = [one.name for one in ours if one.below]
    return [
        name
        for name in configured
        if name not in names and not any(_is_under(name, one) for one in reserved)
    ]


def _owned(configured: Mapping[str, Mapping[str, Json]]) -> list[Owned]:
    found = []
    for name, settings in configured.items():
        mark = settings.get(MARK)
        match = _MARK.fullmatch(mark) if isinstance(mark, str) else None
        if match is not None and name.startswith(f"{match['owner']}/"):
            found.append(
                Owned(
                    name=name,
                    owner=match["owner"],
                    uid=int(match["uid"]),
                    network=match["network"],
                    below=match["below"] is not None,
                )
            )
    return found


def sweep(api: Api, lease: Lease, *, timeout_s: float = TIMEOUT_S) -> list[Owned]:
    """Remove what runs left that are no more, whoever's they were, with the sessions below.

    What a live run has stays, and so does what is not ours or is of another host or network, whose
    runs cannot be seen from here.

    Args:
        api: The server's.
        lease: A lease on it, which sees all live runs of the host.
        timeout_s: Seconds that this may take.

    Returns:
        What was removed.

    Raises:
        ProductionError: The server refuses.
    """
    here = [one for one in owned(api) if one.network == lease.network]
    if not here:
        return []
    # Asked after the list was read: who had a path then and lives now has lived all the while.
    live = lease.live_runs()
    left = [one for one in here if one.owner not in live]
    deadline = time.monotonic() + timeout_s
    for one in left:
        _remove(api, one.name, deadline, below=one.below)
    return left


def _mark(owner: str, lease: Lease) -> str:
    return f"understudy {owner} uid {os.geteuid()} on {lease.network}"


def remove(api: Api, lease: Lease, name: str, *, timeout_s: float = TIMEOUT_S) -> None:
    """Remove a path that somebody says may go, with its sessions; not one of a live run.

    Args:
        api: The server's.
        lease: A lease on it.
        name: Its name.
        timeout_s: Seconds that this may take.

    Raises:
        ProductionError: There is none, a live run has it, or the server refuses.
    """
    configured = api.configured()
    if name not in configured:
        raise ProductionError(f"Cannot remove path '{name}': none of that name is configured")
    live = lease.live_runs()
    for one in _owned(configured):
        if one.owner in live and (one.name == name or (one.below and _is_under(name, one.name))):
            raise ProductionError(
                f"Cannot remove path '{name}': run {one.owner} of user {user_name(one.uid)} has it",
                hint=f"it goes with its run: understudy stop {one.owner}",
            )
    _remove(api, name, time.monotonic() + timeout_s)


def label(test: str | None) -> str:
    """A test's name as a part of a path's.

    Args:
        test: The name; None: the test that pytest says it is at, else the program.
    """
    if test is None:
        # "tests/test_x.py::TestX::test_x[a] (call)"
        current = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
        test = current.rpartition("::")[2] or program_name()
    return re.sub(r"[^0-9a-zA-Z_\-.]+", "-", test)[:_LABEL_LENGTH].strip("-") or "test"


def urls_of(name: str, urls: Mapping[str, str]) -> dict[str, str]:
    """Where a path is published and read, by port.

    Args:
        name: The path's name.
        urls: The server's URLs by port.
    """
    return {
        port: _URLS[port].format(base=base.rstrip("/"), name=name, host=HOST)
        for port, base in urls.items()
        if port in _URLS
    }


def _remove(api: Api, name: str, deadline: float, *, below: bool = False) -> None:
    """Remove a path's settings first: so nobody who is sent away comes back to it.

    What says whose all of it is goes last: whoever is killed meanwhile leaves that.
    """
    for each in api.configured() if below else ():
        if each.startswith(f"{name}/"):
            api.delete(each)
    api.delete(name)
    pause_s = PAUSE_MIN_S
    while True:
        users = [one for one in api.sessions() if _is_under(one.path, name)]
        for one in users:
            api.kick(one)
        if not users and api.path(name) is None:
            return
        if time.monotonic() >= deadline:
            raise ProductionError(
                f"Cannot remove path '{name}': "
                + (f"{len(users)} sessions come back to it" if users else "it is still there"),
                hint="who uses it: GET /v3/rtspsessions/list; what is left: understudy clean",
            )
        pause_s = _pause(pause_s)


def _is_under(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}/")


def _pause(pause_s: float) -> float:
    select.select([], [], [], pause_s)
    return min(2 * pause_s, PAUSE_MAX_S)
