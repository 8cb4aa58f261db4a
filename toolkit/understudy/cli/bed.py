"""``understudy bed``: boot a throwaway copy of this machine's OS tree, enter it, end it."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from understudy.bed import Bed, beds
from understudy.cli import fail_unknown, show_error
from understudy.cli.options import print_json, print_table
from understudy.errors import UnderstudyError

DEFAULT_NAME = "bed"
NONE_UP = "No bed is up."

_OUR_FAILURE = 125  # as env(1), timeout(1) and docker run have it; 126 and up are the command's


class _BedGroup(click.Group):
    """A group in which ``-- CMD`` without a command's name means ``run -- CMD``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before = args[: args.index("--")] if "--" in args else args
        if len(before) < len(args) and not set(before) & set(self.commands):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            fail_unknown(ctx, args[0], self.commands)
        return super().resolve_command(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["up|down|status|run …", "|", "[--user NAME] -- CMD…"]


def _complete_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(bed.name) for bed in beds() if bed.name.startswith(incomplete)]


_PATH = click.Path(exists=True, path_type=Path)


@click.group(cls=_BedGroup)
def bed() -> None:
    """Boot a throwaway copy of this machine's OS tree under a real systemd.

    A bed has a private network and a systemd of its own; nothing that is enabled on this machine
    is started in it. What is done in a bed is gone with it, but for the working directory,
    which is bound into it.

    \b
    Examples:
      sudo understudy bed -- systemctl status       one command, in a bed of its own
      sudo understudy bed --user anna -- pytest     as anna, with her user manager
      sudo understudy bed up                        a bed that stays
      sudo understudy bed -- bash                   … entered
      sudo understudy bed down                      … ended
    """


@bed.command()
@click.argument("name", default=DEFAULT_NAME)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default="/",
    help="The OS tree to boot instead of this machine's own.",
)
@click.option("--bind", "binds", type=_PATH, multiple=True, help="Bind this too, read-write.")
@click.option(
    "--capability", "capabilities", multiple=True, help="A capability more, such as CAP_BPF."
)
@click.option("--owner", "owner_pid", type=int, metavar="PID", help="End it with this process.")
@click.option("--timeout", "timeout_s", default=60.0, help="Seconds for the boot.  [60]")
def up(
    name: str,
    root: Path,
    binds: tuple[Path, ...],
    capabilities: tuple[str, ...],
    owner_pid: int | None,
    timeout_s: float,
) -> None:
    """Boot a bed that stays until `understudy bed down`. The default NAME is "bed".

    \b
    Examples:
      sudo understudy bed up
      sudo understudy bed up trixie --root /var/cache/trixie
      sudo understudy bed up --bind /srv/venv --capability CAP_BPF
      sudo understudy bed up ci --owner $$          gone with this shell, however it ends
    """
    booted = Bed.up(
        name,
        root=root,
        binds=binds,
        capabilities=capabilities,
        owner_pid=owner_pid,
        timeout_s=timeout_s,
    ).state
    click.echo(f"Bed '{name}' is up: systemd {booted.systemd}, leader PID {booted.leader_pid}")


@bed.command()
@click.argument("name", default=DEFAULT_NAME, shell_complete=_complete_name)
@click.option("--all", "everyone", is_flag=True, help="End all beds.")
def down(name: str, everyone: bool) -> None:
    """End a bed; nothing of it is left. The default NAME is "bed".

    \b
    Examples:
      sudo understudy bed down
      sudo understudy bed down --all
    """
    ending = beds() if everyone else [Bed.find(name)]
    for each in ending:
        each.down()
        click.echo(f"Bed '{each.name}' is down")
    if not ending:
        click.echo(NONE_UP, err=True)


@bed.command()
@click.option("--json", "as_json", is_flag=True, help="Print an array of objects.")
def status(as_json: bool) -> None:
    """List the beds that are up.

    \b
    Examples:
      understudy bed status
      understudy bed status --json | jq -r '.[].name'
    """
    states = [each.state for each in beds()]
    if as_json:
        print_json([asdict(state) for state in states])
        return
    if not states:
        click.echo(NONE_UP, err=True)
        return
    print_table(
        ("NAME", "ROOT", "SYSTEMD", "LEADER", "OWNER", "BOUND"),
        [
            (
                state.name,
                state.root,
                state.systemd,
                str(state.leader_pid),
                "-" if state.owner_pid is None else str(state.owner_pid),
                " ".join(state.binds) or "-",
            )
            for state in states
        ],
    )


@bed.command(context_settings={"allow_interspersed_args": False})
@click.option("--user", metavar="NAME", help="Run as this user, with a user manager.  [root]")
@click.option(
    "--name",
    shell_complete=_complete_name,
    help='The bed to enter. Without it: "bed" if it is up, else one of the command\'s own.',
)
@click.option("--bind", "binds", type=_PATH, multiple=True, help="Bind this into an own bed too.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD…")
def run(
    user: str | None, name: str | None, binds: tuple[Path, ...], command: tuple[str, ...]
) -> None:
    """Run a command in a bed; `understudy bed -- CMD` is short for it.

    The exit code is the command's own, 128+n for an end by signal n, 126 or 127 for a command
    that cannot be executed or found, and 125 for a failure of the bed. Signals are passed on.

    \b
    Examples:
      sudo understudy bed run -- systemctl is-system-running
      sudo understudy bed run --name trixie --user tester -- python3 -m pytest
    """
    try:
        code = _run(user, name, binds, command)
    except UnderstudyError as exc:
        show_error(exc)
        code = _OUR_FAILURE
    sys.exit(code)


def _run(
    user: str | None, name: str | None, binds: tuple[Path, ...], command: tuple[str, ...]
) -> int:
    wanted = name or DEFAULT_NAME
    if name is None and all(each.name != DEFAULT_NAME for each in beds()):
        with Bed.up(binds=binds, owner_pid=os.getpid()) as own:
            return own.run(command, user=user)
    running = Bed.find(wanted)
    here = Path.cwd()
    if not any(here.is_relative_to(path) for path in running.state.binds):
        click.echo(
            f"note: '{here}' is not bound into bed '{wanted}': what is written there stays in it",
            err=True,
        )
    return running.run(command, user=user)
