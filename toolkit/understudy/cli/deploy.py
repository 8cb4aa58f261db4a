"""``understudy deploy`` and ``understudy withdraw``: production, by the host's administrator."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from understudy.cli.options import (
    complete_service,
    json_option,
    parse_pairs,
    print_json,
    with_secrets,
)

if TYPE_CHECKING:
    from understudy.deploy import Outcome

_services = click.argument(
    "services", nargs=-1, metavar="SERVICE...", shell_complete=complete_service
)
_testers = click.option(
    "--tester",
    "testers",
    metavar="USER",
    multiple=True,
    help="A user who tests beside production, on a manager of their own. Repeatable.",
)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds that starting and getting ready, or stopping, may take.",
)


_now = click.option(
    "--now", is_flag=True, help="Do not wait for those who have a lease on production."
)


@click.command()
@_services
@click.option(
    "--set",
    "values",
    metavar="NAME=VALUE",
    multiple=True,
    callback=parse_pairs,
    help="Set a value of the definition, for good; SERVICE.NAME where several have it. A secret "
    "can stand in a file: api_password=@FILE; @- asks for it. Repeatable.",
)
@click.option("--adopt", is_flag=True, help="Take over units that are there, and keep a backup.")
@click.option("--restart", is_flag=True, help="Restart what runs, if its files have changed.")
@_now
@click.option("--dry-run", is_flag=True, help="Print all files and steps, and change nothing.")
@click.option("--diff", is_flag=True, help="Print what would change in files, and change nothing.")
@_testers
@click.option("--journal", is_flag=True, help="Let testers read the system's journal.")
@_timeout
@json_option
def deploy(
    services: tuple[str, ...],
    values: Mapping[str, str],
    adopt: bool,
    restart: bool,
    now: bool,
    dry_run: bool,
    diff: bool,
    testers: tuple[str, ...],
    journal: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Put production on this host: units, configuration, user. It is started and waited for.

    All of it or nothing: what goes wrong leaves the host as it was. A file that was edited is
    kept, and the new one is put beside it as FILE.new. What runs goes on as it was until
    --restart. Definitions are those shipped and those in /etc/understudy/units; more in
    docs/test-hosts.md.

    A tester has no right over production: a manager of their own that needs no login, bounds
    ([testers] in /etc/understudy/understudy.toml), the range of ports reserved, and nothing else.

    \b
    Examples:
      sudo understudy deploy mediamtx --set program=/opt/mediamtx/mediamtx
      sudo understudy deploy mediamtx camera-service --dry-run
      sudo understudy deploy mediamtx --adopt --diff
      sudo understudy deploy mediamtx --restart
      sudo understudy deploy mediamtx --set api_password=@/root/password
      sudo understudy deploy --tester anna --tester bert --journal
    """
    from understudy import deploy as deploying

    _check_named(services, testers)
    if journal and not testers:
        raise click.UsageError("--journal goes with --tester USER.")
    if any(text.startswith("@") for text in values.values()):
        from understudy.services import find

        secrets = [name for one in services for name in find(one, as_root=True).secrets]
        values = with_secrets(values, secrets)
    done: list[Outcome] = []
    with _ended_by_signals():
        if services:
            done += deploying.deploy(
                services,
                values,
                adopt=adopt,
                restart=restart,
                now=now,
                pretend=dry_run or diff,
                timeout_s=timeout,
                said=_say,
            )
        if testers:
            pretend = dry_run or diff
            done += deploying.deploy_testers(testers, journal=journal, pretend=pretend, said=_say)
    if as_json:
        print_json([one.to_json() for one in done])
    elif diff:
        click.echo("".join(text for one in done for text in one.diffs.values()), nl=False)
    elif dry_run:
        _print_plan(done)
    else:
        _print_done(done, "deployed")
    _print_notes(done)


@click.command()
@_services
@click.option("--purge", is_flag=True, help="Remove state, directories and users as well.")
@_now
@click.option("--dry-run", is_flag=True, help="Print all steps, and change nothing.")
@_testers
@_timeout
@json_option
def withdraw(
    services: tuple[str, ...],
    purge: bool,
    now: bool,
    dry_run: bool,
    testers: tuple[str, ...],
    timeout: float,
    as_json: bool,
) -> None:
    """Take away what deploy has put on this host, and nothing else.

    The services are stopped. Files that were edited are kept. What --adopt took over is there
    again, and runs if it ran. A tester's live runs are ended, by the tester's own manager.

    \b
    Examples:
      sudo understudy withdraw camera-service
      sudo understudy withdraw camera-service mediamtx --purge
      sudo understudy withdraw --tester anna
    """
    from understudy import deploy as deploying

    _check_named(services, testers)
    done: list[Outcome] = []
    with _ended_by_signals():
        if testers:
            done += deploying.withdraw_testers(testers, pretend=dry_run, said=_say)
        if services:
            done += deploying.withdraw(
                services, purge=purge, now=now, pretend=dry_run, timeout_s=timeout, said=_say
            )
    if as_json:
        print_json([one.to_json() for one in done])
    elif dry_run:
        _print_plan(done)
    else:
        _print_done(done, "withdrawn")
    _print_notes(done)


def _check_named(services: Sequence[str], testers: Sequence[str]) -> None:
    if not services and not testers:
        raise click.UsageError("Name what: SERVICE..., or --tester USER.")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _print_plan(done: Sequence[Outcome]) -> None:
    for one in done:
        for path, text in one.texts.items():
            click.echo(f"# {path}\n{text}")
        for line in one.plan or ["nothing to do"]:
            click.echo(f"{one.service}: {line}")
        _print_exposure(one)


def _print_done(done: Sequence[Outcome], verb: str) -> None:
    for one in done:
        for text in one.updates:
            click.echo(text, nl=False)
        if not one.changed:
            click.echo(f"{one.service}: nothing to do")
            continue
        for line in one.plan:
            click.echo(f"{one.service}: {line}")
        _print_exposure(one)
        click.echo(f"{one.service}: {verb}")


def _print_exposure(one: Outcome) -> None:
    for unit, level in one.exposure.items():
        click.echo(f"{one.service}: exposure of {unit} {level:g} of 10 (systemd-analyze security)")


def _print_notes(done: Sequence[Outcome]) -> None:
    for one in done:
        for note in one.notes:
            click.echo(f"note: {note}", err=True)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let the end of a terminal, or of an ssh connection, be like Ctrl-C: all is put back."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
