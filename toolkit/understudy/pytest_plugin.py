"""The plugin for pytest: fixtures, options, reports; networks for xdist's workers.

Every pytest run of its environment imports this module, so at module level it imports pytest and
nothing heavier. What it does once it is used is in `understudy.plugin`.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import pytest

if TYPE_CHECKING:
    from pluggy import Result

    from understudy import Understudy
    from understudy.plugin.worker import News

OPTION = "--understudy-network"
THROUGH = "--understudy-through"
CHOICES = ("none", "worker")

OPTIONS: Mapping[str, tuple[str, str]] = {
    "manager": (
        "WHICH",
        "whose systemd: auto (root's is the system's, else your own), system, user",
    ),
    "engine": ("WHICH", "how instances are handed to systemd: files, systemd-run"),
    "ports": ("FIRST-LAST", "the range that ports are taken from"),
    "timeout": ("SECONDS", "how long each start may take (30)"),
    "keep": ("WHICH", "whose instances stay for an hour after the session: never, failed, always"),
    "stop": (
        "WHICH",
        "'wait': a test's end waits until its instances have ended; "
        "'soon': they end while the next test begins, where nothing speaks against it",
    ),
    "limits": ("LIMITS", "for each instance, such as memory=512M,tasks=100,cpu=50%%"),
    "background": ("", "instances get only what nobody else wants of processors and disks"),
    "reuse": ("NAME", "keep shared instances for the next session that gives the same name"),
    "logs": ("DIR", "write the whole log of each instance into this folder"),
    "units": ("DIR", "a folder of service definitions to look in before all others"),
    "network": (
        "WHICH",
        "'worker': start each worker of pytest-xdist in a private network of its own; "
        "'none': do not, whatever understudy_network says",
    ),
    "through": (
        "SERVICE[:PORT]",
        "a service of this host that is let into private networks, on its own ports (repeatable)",
    ),
    "require": ("", "absent production is a failure, not a skip"),
    "bed": (
        "",
        "run all of pytest in a bed: a throwaway boot of this machine's system (root only)",
    ),
}
"""Each option with what stands for its value, and its help; ``--understudy-…``, and without dashes
a setting of the same name."""

WORKER = pytest.StashKey[object]()
"""What `understudy.plugin.worker` keeps for this process."""
LEDGER = pytest.StashKey[object]()
"""What `understudy.plugin.ledger` keeps for this session."""
FACE = pytest.StashKey["Understudy"]()
"""What the fixture gave to a test."""
FAILED = pytest.StashKey[bool]()
"""Whether a phase of a test has failed."""
WAITS = pytest.StashKey[bool]()
"""Whether what a test has started must have ended before its fixtures go on with theirs."""
SHOWN = pytest.StashKey[bool]()
"""Whether a report of a test shows its instances already."""

INSIDE_BED = "UNDERSTUDY_INSIDE_BED"

NO_MATTER = (
    "anyio_backend",
    "capfd",
    "capfdbinary",
    "caplog",
    "capsys",
    "capsysbinary",
    "event_loop",
    "monkeypatch",
    "recwarn",
    "tmp_path",
    "tmp_path_factory",
    "tmpdir",
    "tmpdir_factory",
    "understudy",
    "understudy_session",
)
"""Fixtures whose end cannot be in an instance's way."""

_SERVICE = re.compile(r"[A-Za-z0-9][\w.-]*(:[\w-]+)?")


class WorkerSpec(Protocol):
    """How xdist is to start a worker: an ``execnet.XSpec``."""

    popen: bool | None
    via: str | None
    python: str | None


@pytest.fixture
def understudy(request: pytest.FixtureRequest) -> Iterator[Understudy]:
    """Services for this test: instances of its own, one shared by all tests, production, ports."""
    _skip_elsewhere()
    from understudy.plugin.worker import for_test

    with for_test(request) as face:
        yield face


@pytest.fixture(scope="session")
def understudy_session(request: pytest.FixtureRequest) -> Iterator[Understudy]:
    """As the fixture ``understudy``; what is spawned lives until the session's end (a worker's)."""
    _skip_elsewhere()
    from understudy.plugin.worker import for_session

    with for_session(request) as face:
        yield face


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what can be asked for, on the command line and in the settings file."""
    group = parser.getgroup("understudy", "services and networks for tests (understudy)")
    for name, (metavar, help_) in OPTIONS.items():
        option, setting = f"--understudy-{name}", f"understudy_{name}"
        if not metavar:
            group.addoption(option, action="store_true", default=None, help=help_)
            parser.addini(setting, f"the default of {option}", type="bool", default=False)
        elif name == "through":
            group.addoption(option, action="append", metavar=metavar, help=help_)
            parser.addini(setting, f"the defaults of {option}", type="args", default=[])
        else:
            group.addoption(option, metavar=metavar, help=help_)
            default = "none" if name == "network" else ""
            parser.addini(setting, f"the default of {option}", default=default)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run all of it in a bed, where that is asked for.

    Raises:
        UsageError: There is no bed to be had.
    """
    if not given(config, "bed") or os.environ.get(INSIDE_BED) or not _runs_tests(config):
        return None
    from understudy.plugin.in_bed import run_in_bed

    return run_in_bed(config)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse what cannot be meant, before anything is collected.

    Raises:
        UsageError: An unknown name or value, or something to let in and no network.
    """
    config.pluginmanager.register(_Session(config), "understudy-session")
    if _is_configured(config):
        from understudy.plugin.settings import read

        read(config)
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
    if _network(config) == "none" or is_worker(config):
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


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say that the ports are not the host's, and what has no effect here."""
    lines = []
    if _network(config) != "none" and _is_distributed(config):
        let_in = ", ".join(_through(config)) or "nothing"
        lines.append(f"understudy: each worker in a private network of its own, let in: {let_in}")
    if given(config, "limits"):
        from understudy.plugin.settings import not_in_force, read

        lines += filter(None, [not_in_force(read(config))])
    return lines


class _Session:
    """The hooks that need the session's settings. Nothing is imported before a fixture was used."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._has_wider = False
        self._waits = False

    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> None:
        """Take note of what instances may be made from, and is taken away after their end."""
        if not _has_an_end(fixturedef):
            return
        if fixturedef.scope != "function":
            self._has_wider = True
            # It ends in the set-up of the first test with another parameter.
            self._waits = self._waits or hasattr(request, "param")
        elif FACE not in request.node.stash:
            request.node.stash[WAITS] = True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """See whether fixtures of a wider scope end with this test."""
        last = nextitem is None or nextitem.parent is not item.parent
        if self._waits or (self._has_wider and last):
            item.stash[WAITS] = True

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test begins: what is written to logs from here on is its."""
        worker = self._config.stash.get(WORKER, None)
        if worker is not None:
            from understudy.plugin.worker import Worker

            cast(Worker, worker).begin_test(item.nodeid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Result[pytest.TestReport], None]:
        """Show what a failing test's instances did, and tell what was started."""
        outcome = yield
        worker = self._config.stash.get(WORKER, None)
        if worker is not None:
            from understudy.plugin.reporting import complete
            from understudy.plugin.worker import Worker

            complete(item, call, outcome.get_result(), cast(Worker, worker))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enter what a test's process tells."""
        self._enter(getattr(report, "understudy", None))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        """Enter what a worker told at its end."""
        self._enter(getattr(node, "workeroutput", {}).get("understudy"))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End what is there still, and see what is left."""
        worker = self._config.stash.get(WORKER, None)
        if worker is not None:
            from understudy.plugin.worker import Worker

            if cast(Worker, worker).pid != os.getpid():
                return  # a forked child of a test, which has left it by an exception
            news = cast(Worker, worker).finish()
            if is_worker(self._config):
                getattr(self._config, "workeroutput")["understudy"] = news  # noqa: B009 - xdist's
            else:
                self._enter(news)
        if LEDGER in self._config.stash:
            from understudy.plugin.ledger import Ledger

            ledger = Ledger.of(self._config)
            ledger.close()
            passed = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
            if ledger.problems and session.exitstatus in passed:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Give the account of the session."""
        if LEDGER in self._config.stash:
            from understudy.plugin.ledger import Ledger

            for line in Ledger.of(self._config).lines():
                terminalreporter.write_line(line)

    def _enter(self, news: News | None) -> None:
        if news and not is_worker(self._config):
            from understudy.plugin.ledger import Ledger

            Ledger.of(self._config).add(news)


def given(config: pytest.Config, name: str) -> object:
    """What was given for an option: on the command line, else in the settings file.

    Args:
        config: The session's.
        name: The option's, without ``--understudy-``.
    """
    value = config.getoption(f"--understudy-{name}")
    return config.getini(f"understudy_{name}") if value is None else value


def origin(config: pytest.Config, name: str) -> str:
    """What the user has written: the option, or its default in the settings file."""
    return _origin(config, f"--understudy-{name}")


def stands_in(config: pytest.Config, name: str) -> Path:
    """The folder that a path given for an option is relative to."""
    if config.getoption(f"--understudy-{name}") is not None or config.inipath is None:
        return config.invocation_params.dir
    return config.inipath.parent


def setting_names(config: pytest.Config) -> list[str]:
    """All names in the settings file, known or not; none where this pytest does not tell."""
    held = vars(config)  # the public attribute is deprecated since pytest 9.1
    return [str(name) for name in held.get("_inicfg") or held.get("inicfg") or ()]


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of xdist's workers."""
    return hasattr(config, "workerinput")


def _is_configured(config: pytest.Config) -> bool:
    """Whether anything was asked for that is to be checked."""
    names = [name for name in OPTIONS if name not in ("network", "through")]
    if any(given(config, name) for name in names):
        return True
    return any(
        str(key).startswith("understudy_") and str(key)[11:] not in OPTIONS
        for key in setting_names(config)
    )


def _has_an_end(fixturedef: pytest.FixtureDef[object]) -> bool:
    """Whether a fixture does something at its end, or could, that can be in an instance's way."""
    func = fixturedef.func
    return (
        inspect.isgeneratorfunction(func)
        or inspect.isasyncgenfunction(func)
        or "request" in fixturedef.argnames  # which has addfinalizer()
    ) and fixturedef.argname not in NO_MATTER


def _skip_elsewhere() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip(f"understudy starts systemd services, which {sys.platform} has not")


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
