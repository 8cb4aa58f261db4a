"""What a failing test shows of its instances, and errors of the toolkit without its frames."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pluggy
import pytest

import understudy
from understudy import failure, journal
from understudy.errors import UnderstudyError
from understudy.instance import Instance
from understudy.lead import Production
from understudy.manager import UnitStatus
from understudy.plugin.worker import Worker
from understudy.pytest_plugin import FACE, FAILED, SHOWN

FIRST_LINES = 20
LAST_LINES = 60
"""How much of a long log is shown, of its beginning and of its end."""

SETTLE_S = 0.5

_FRAMES_OF = (
    f"{Path(understudy.__file__).parent}{os.sep}",
    f"{Path(pytest.__file__).parent}{os.sep}",
    f"{Path(pytest.__file__).parent.with_name('_pytest')}{os.sep}",
    f"{Path(pluggy.__file__).parent}{os.sep}",
    f"{Path(os.__file__).parent / 'asyncio'}{os.sep}",
    f"{Path(os.__file__).parent / 'concurrent'}{os.sep}",
)
_SHORT_STYLES = ("auto", "long", "short")


def complete(
    item: pytest.Item,
    call: pytest.CallInfo[None],
    report: pytest.TestReport,
    worker: Worker,
) -> None:
    """Add to a report what there is to say.

    Args:
        item: The test.
        call: What came of one of its phases.
        report: What is reported of it.
        worker: This process.
    """
    if report.failed:
        item.stash[FAILED] = True
        if worker.session is not None and "understudy_session" in _fixtures(item):
            worker.failed = True
        if call.excinfo is not None and isinstance(call.excinfo.value, UnderstudyError):
            _shorten(item, call.excinfo, report)
        if not item.stash.get(SHOWN, False):
            _show(item, report, worker)
    if news := worker.take_news():
        report.understudy = news  # type: ignore[attr-defined]


def _shorten(
    item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException], report: pytest.TestReport
) -> None:
    """Show the line of the test that asked for it, and what was said; not how it came to that."""
    if item.config.getoption("tbstyle", "auto") not in _SHORT_STYLES or item.config.getoption(
        "fulltrace", False
    ):
        return
    kept = excinfo.traceback.filter(lambda entry: not str(entry.path).startswith(_FRAMES_OF))
    if kept:
        excinfo.traceback = kept
    report.longrepr = excinfo.getrepr(
        showlocals=False,
        style="short" if kept else "value",
        tbfilter=False,
        funcargs=False,
        chain=False,
    )


def _show(item: pytest.Item, report: pytest.TestReport, worker: Worker) -> None:
    """A section for each instance that the test had."""
    own = item.stash.get(FACE, None)
    instances = list(own.instances) if own is not None else []
    others: list[Instance] = []
    if worker.session is not None and "understudy_session" in _fixtures(item):
        others += worker.session.instances
    if own is not None or "understudy_session" in _fixtures(item):
        others += worker.shared
    others = [one for one in others if worker.was_there(one)]
    leads = list(own.leads) if own is not None else []
    if worker.session is not None and "understudy_session" in _fixtures(item):
        leads += worker.session.leads
    if not instances and not others and not leads:
        return
    item.stash[SHOWN] = True
    worker.settle()  # a fixture of the test may have failed after its instances were told to end
    states = worker.states([*instances, *others])
    for one in [*instances, *others]:
        since = None if one in instances or worker.is_new(one) else worker.mark
        log = journal.read(one.unit, since=since, settle_s=SETTLE_S)
        _add(item, report, one, describe(one, states.get(one.unit), log))
    if leads and not others and not instances:
        journal.settle(SETTLE_S)  # otherwise it has taken in by now what was written
    for lead in {one.unit: one for one in leads}.values():
        _add(item, report, lead, describe_production(lead, worker.mark))


def _add(
    item: pytest.Item, report: pytest.TestReport, one: Instance | Production, text: str
) -> None:
    report.sections.append((f"understudy: {one.service} ({one.unit})", text))
    told = (f"understudy {one.unit}", text)
    item.user_properties.append(told)  # for the XML report, whatever junit_logging says
    report.user_properties.append(told)


def describe(one: Instance, status: UnitStatus | None, log: Sequence[journal.Line]) -> str:
    """What there is to say of an instance, for people.

    Args:
        one: The instance.
        status: What its manager says of it; None if it cannot be asked.
        log: Its log, as far as it is this test's.
    """
    lines = [f"state: {_state(status)}"]
    if one.ports:
        lines.append("ports: " + _numbers(one.ports))
    if status is not None and status.cpu_usage_nsec is not None:
        lines.append(f"CPU: {status.cpu_usage_nsec / 1e9:.3f} s")
    lines.append(f"start the same: {one.reproduce()}")
    lines.append("log of this test:" if log else "log of this test: nothing was written")
    return "\n".join([*lines, *(f"| {line}" for line in shortened([one.text for one in log]))])


def describe_production(lead: Production, since: journal.Mark | None) -> str:
    """What there is to say of production, for people.

    Args:
        lead: Production.
        since: Where the test began in the journal.
    """
    try:
        state = _state(lead.status())
    except UnderstudyError:
        state = _state(None)
    lines = [f"state: {state}"]
    if lead.ports:
        lines.append("ports: " + _numbers(lead.ports))
    if lead.unreadable:
        return "\n".join([*lines, f"log of this test: {lead.unreadable}"])
    log = lead.journal(lines=None, since_s=since.time_s if since is not None else None)
    lines.append("log of this test:" if log else "log of this test: nothing was written")
    return "\n".join([*lines, *(f"| {line}" for line in shortened(log.splitlines()))])


def shortened(lines: Sequence[str]) -> Iterable[str]:
    """A log without its middle, if it is long."""
    if len(lines) <= FIRST_LINES + LAST_LINES + 1:
        return lines
    left_out = len(lines) - FIRST_LINES - LAST_LINES
    return [*lines[:FIRST_LINES], f"… {left_out} lines left out …", *lines[-LAST_LINES:]]


def _numbers(ports: Mapping[str, int]) -> str:
    return " ".join(f"{name}={number}" for name, number in ports.items())


def _state(status: UnitStatus | None) -> str:
    if status is None:
        return "its manager does not answer"
    if status.active_state == "failed" or status.exit_code:
        word = status.active_state
        end = failure.describe_end(status, word, moment="")
        return f"{word}, result '{status.result}': {end}"
    if status.active_state == "inactive":
        return "ended"
    return f"{status.active_state} ({status.sub_state}), PID {status.main_pid}"


def _fixtures(item: pytest.Item) -> Sequence[str]:
    return getattr(item, "fixturenames", ())
