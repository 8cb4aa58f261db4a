"""The plugin for pytest: xdist's workers in private networks of their own.

Every pytest run of its environment imports this module, so at module level it imports pytest and
nothing heavier.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from pluggy import Result

OPTION = "--understudy-network"
THROUGH = "--understudy-through"
CHOICES = ("none", "worker")

_SERVICE = re.compile(r"[A-Za-z0-9][\w.-]*(:[\w-]+)?")


class WorkerSpec(Protocol):
    """How xdist is to start a worker: an ``execnet.XSpec``."""

    popen: bool | None
    via: str | None
    python: str | None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what can be asked for, on the command line and in the settings file."""
    group = parser.getgroup("understudy", "services and networks for tests (understudy)")
    group.addoption(
        OPTION,
        metavar="WHICH",
        help="'worker': start each worker of pytest-xdist in a private network of its own; "
        "'none': do not, whatever understudy_network says",
    )
    group.addoption(
        THROUGH,
        action="append",
        metavar="SERVICE[:PORT]",
        help="a service of this host that is let into private networks, on its own ports "
        "(repeatable)",
    )
    parser.addini("understudy_network", f"the default of {OPTION}", default="none")
    parser.addini("understudy_through", f"the defaults of {THROUGH}", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be meant, before anything is collected.

    Raises:
        UsageError: An unknown value, or something to let in and no network.
    """
    network = _network(config)
    if network not in CHOICES:
        raise pytest.UsageError(
            f"{_origin(config, OPTION)}: '{network}' is none of: {', '.join(CHOICES)}"
        )
    for service in _through(config):
        if not _SERVICE.fullmatch(service):
            raise pytest.UsageError(
                f"{_origin(config, THROUGH)}: '{service}' is not SERVICE or SERVICE:PORT"
            )
    if network == "none" and config.getoption(THROUGH):
        raise pytest.UsageError(
            f"{THROUGH} lets services into private networks, and there are none: add "
            f"{OPTION} worker"
        )


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> Generator[None, Result[None], None]:
    """Refuse a run without workers; say what a worker that cannot be started means.

    Raises:
        UsageError: There are no workers, or one could not be started in its network.
    """
    config = session.config
    if _network(config) == "none" or _is_worker(config):
        yield
        return
    if _runs_tests(config) and not _is_distributed(config) and not _is_inside():
        raise pytest.UsageError(
            f"{_origin(config, OPTION)}: 'worker' needs workers: run pytest with -n NUMBER "
            f"(pytest-xdist), or all of it in one network: {_one_network(config)}"
        )
    outcome = yield
    failure = outcome.excinfo[1] if outcome.excinfo else None
    if isinstance(failure, (EOFError, OSError)):
        error = pytest.UsageError(
            "Cannot start a worker in a private network: see the error above, or try: "
            f"{shlex.join(_understudy_run(config, 'understudy'))} true"
        )
        error.__cause__ = failure
        if not hasattr(outcome, "force_exception"):  # pluggy before 1.1
            raise error
        outcome.force_exception(error)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[WorkerSpec]) -> None:
    """Have each worker's Python started inside; a worker that replaces a crashed one is, too.

    A running process cannot move: it has threads, and a process with threads may not enter a
    user namespace (setns(2)).

    Raises:
        UsageError: A worker is not a process of this host.
    """
    if _network(config) == "none":
        return
    inside = _understudy_run(config, sys.executable, "-P", "-m", "understudy")
    for spec in specs:
        if not spec.popen or spec.via:
            # xdist has put a word of its own before the user's.
            given = str(spec).removeprefix("execmodel=main_thread_only//")
            raise pytest.UsageError(
                f"{_origin(config, OPTION)}: '{given}' is not a process of this host: only "
                "workers of -n NUMBER or --tx popen can have a network of their own"
            )
        # execnet takes it apart again with shlex.
        spec.python = f"{shlex.join(inside)} {spec.python or shlex.quote(sys.executable)}"


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say that the ports are not the host's."""
    if _network(config) == "none" or not _is_distributed(config):
        return None
    let_in = ", ".join(_through(config)) or "nothing"
    return f"understudy: each worker in a private network of its own, let in: {let_in}"


def _network(config: pytest.Config) -> str:
    return str(config.getoption(OPTION) or config.getini("understudy_network"))


def _through(config: pytest.Config) -> list[str]:
    return [*(config.getoption(THROUGH) or config.getini("understudy_through"))]


def _origin(config: pytest.Config, option: str) -> str:
    """What the user has written: the option or its default in the settings file."""
    return option if config.getoption(option) else option.lstrip("-").replace("-", "_")


def _understudy_run(config: pytest.Config, *program: str) -> list[str]:
    """The command line that another one follows, which it runs inside."""
    through = [word for service in _through(config) for word in ("--through", service)]
    return [*program, "run", "--network", "private", *through, "--"]


def _one_network(config: pytest.Config) -> str:
    return shlex.join([*_understudy_run(config, "understudy"), "pytest"])


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def _is_distributed(config: pytest.Config) -> bool:
    """Whether xdist has taken the tests over, which not each of its options means."""
    return config.pluginmanager.hasplugin("dsession")


def _is_inside() -> bool:
    """Whether all of pytest runs in a private network already."""
    return os.environ.get("UNDERSTUDY_NETWORK", "").partition(":")[0] == "private"


def _runs_tests(config: pytest.Config) -> bool:
    """Whether this run is for more than a look at what there is."""
    looks = ("collectonly", "showfixtures", "show_fixtures_per_test", "cacheshow")
    return not any(config.getoption(name, False) for name in looks)
