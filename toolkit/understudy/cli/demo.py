"""``understudy demo``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from understudy.cli.options import Progress, print_table

if TYPE_CHECKING:
    from understudy.demo import Demo, Row, Step
    from understudy.manager import Manager

SHOWN_PORTS = 2


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the same facts as a JSON object.")
def demo(as_json: bool) -> int:
    """Show production and twelve instances beside it, on one screen.

    Nothing of this machine is touched. As root it boots a bed (see 'understudy bed') and plays in
    it; as anybody else it plays on your own user manager, if production's ports are free. The exit
    code is 0 if all held, else 1.

    \b
    Examples:
      sudo understudy demo
      understudy demo
      understudy demo --json | jq '.steps[] | select(.held | not)'
      UNDERSTUDY_MEDIAMTX=/usr/local/bin/mediamtx sudo -E understudy demo
    """
    from understudy import bed
    from understudy.manager import connect

    # Whoever ends us ends production as well, in an orderly way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    if os.geteuid() == 0 and not bed.inside():
        return _in_a_bed(as_json)
    return _here(connect(), as_json)


def _in_a_bed(as_json: bool) -> int:
    from understudy.bed import Bed
    from understudy.demo import MEDIAMTX_VARIABLE, real_mediamtx

    mediamtx = real_mediamtx()
    # Nothing of this machine is bound into the bed, not even the working directory.
    os.chdir("/")
    with Progress() as progress:
        progress.show("booting a bed")
        booted = Bed.up(owner_pid=os.getpid())
    with booted:
        return booted.run(
            [sys.executable, "-m", "understudy", "demo", *(["--json"] if as_json else [])],
            env={MEDIAMTX_VARIABLE: mediamtx} if mediamtx else {},
        )


def _here(manager: Manager, as_json: bool) -> int:
    from understudy.demo import Demo

    steps: list[Step] = []
    with Demo(manager) as play:
        place = _place(manager)
        if not as_json:
            click.echo(f"{place}.\n{_cast(play)}\n")
        with Progress() as progress:
            for step in play.steps(begun=lambda name: progress.show(f"… {name}")):
                progress.clear()
                steps.append(step)
                if not as_json:
                    _show(step)
        held = all(step.held for step in steps)
        if as_json:
            facts = {
                "held": held,
                "place": place,
                "mediamtx": play.mediamtx,
                "production": play.production,
                "instances": [row.to_json() for row in play.rows],
                "steps": [step.to_json() for step in steps],
            }
            click.echo(json.dumps(facts, indent=2))
    if not as_json:
        failed = [step.name for step in steps if not step.held]
        click.echo("\nAll of it held." if held else f"\nDid not hold: {'; '.join(failed)}.")
    return 0 if held else 1


def _place(manager: Manager) -> str:
    from understudy import bed

    version = subprocess.run(
        ["systemctl", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    where = "In a bed of this machine" if bed.inside() else "On this machine"
    return f"{where}: {version}, the {manager.kind} manager"


def _cast(play: Demo) -> str:
    mediamtx = f"MediaMTX is {play.mediamtx}" if play.mediamtx else "MediaMTX is a stand-in"
    return f"{mediamtx}; the camera service is a stand-in ({play.camera})."


def _show(step: Step) -> None:
    mark = click.style("✓", fg="green") if step.held else click.style("✗", fg="red", bold=True)
    click.echo(f"{mark} {click.style(step.name, bold=True)}")
    for line in step.measured.splitlines():
        click.echo(f"    {line}")
    if not step.rows:
        return
    click.echo()
    print_table(
        ["    UNIT", "PORTS", "TALKS TO", "READY IN"],
        [
            (
                f"    {row.unit}",
                _ports(row),
                _short(row.talks_to) if row.talks_to else "-",
                f"{row.started_in_s * 1000:.0f} ms",
            )
            for row in step.rows
        ],
    )
    click.echo()


def _ports(row: Row) -> str:
    shown = [f"{name}={number}" for name, number in row.ports.items()][:SHOWN_PORTS]
    more = len(row.ports) - len(shown)
    return " ".join([*shown, *([f"and {more} more"] if more else [])])


def _short(unit: str) -> str:
    return Path(unit).stem.removeprefix("understudy-")
