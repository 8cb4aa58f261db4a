"""``understudy ports``: who holds what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from understudy.cli.options import json_option, print_json, print_table

if TYPE_CHECKING:
    from understudy.ports import Holder

KEYS = (
    "state",
    "transport",
    "address",
    "port",
    "last",
    "unit",
    "within",
    "cgroup",
    "user",
    "uid",
    "pid",
    "command",
)
"""Of every object that --json prints (docs/ports.md)."""

COMMAND_WIDTH = 60


@click.command()
@click.argument("numbers", metavar="[PORT]...", nargs=-1, type=click.IntRange(1, 65535))
@json_option
def ports(numbers: tuple[int, ...], as_json: bool) -> None:
    """Say who holds which port: unit, user and process.

    Without PORT: all that listens, and every block that is claimed for an instance. With PORT:
    whatever holds it, or that it is free. All of it in the network namespace of the caller.
    A process of another user is shown where the kernel lets it be seen.

    \b
    Examples:
      understudy ports              everything
      understudy ports 8002 8003    who has the camera service's ports
    """
    rows = list(_named(numbers) if numbers else _everything())
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("Nothing listens, and no port is claimed.", err=True)
    else:
        header = ("PORT", "TRANSPORT", "ADDRESS", "STATE", "UNIT", "USER", "PID", "COMMAND")
        print_table(header, map(_cells, rows))


def _everything() -> Iterator[dict[str, object]]:
    from understudy.ports import claims, describe, describe_claim, snapshot

    found = describe(one for one in snapshot() if one.listening)
    found += [describe_claim(one, one.block) for one in claims()]
    for holder in sorted(found, key=lambda one: (one.port, one.transport or "", one.address)):
        yield _row(holder)


def _named(numbers: Sequence[int]) -> Iterator[dict[str, object]]:
    from understudy.model import Transport
    from understudy.ports import block_of, claims, describe, describe_claim, snapshot

    sockets = snapshot(idle=True)
    claimed = claims({block_of(number) for number in numbers})
    for number in numbers:
        found = describe(one for transport in Transport for one in sockets.bound(transport, number))
        found += [describe_claim(one, number) for one in claimed if one.block == block_of(number)]
        yield from map(_row, found)
        if not found:
            yield {**dict.fromkeys(KEYS), "state": "free", "port": number, "last": number}


def _row(holder: Holder) -> dict[str, object]:
    from understudy.ports import BLOCK, State, block_of

    claimed = holder.state is State.CLAIMED
    first = block_of(holder.port) if claimed else holder.port
    return {
        "state": str(holder.state),
        "transport": holder.transport and str(holder.transport),
        "address": holder.address or None,
        "port": first,
        "last": first + BLOCK - 1 if claimed else first,
        "unit": holder.unit,
        "within": holder.within,
        "cgroup": holder.cgroup or None,
        "user": holder.user,
        "uid": holder.uid,
        "pid": holder.pid,
        "command": holder.command or None,
    }


def _cells(row: dict[str, object]) -> list[str]:
    claimed = row["last"] != row["port"]
    unit = f"{row['unit']} in {row['within']}" if row["within"] else row["unit"]
    command = " ".join(str(row["command"] or "-").split())
    return [
        f"{row['port']}-{row['last']}" if claimed else str(row["port"]),
        *(str(row[key] or "-") for key in ("transport", "address", "state")),
        str(unit or "-"),
        *(str(row[key] or "-") for key in ("user", "pid")),
        command if len(command) <= COMMAND_WIDTH else f"{command[: COMMAND_WIDTH - 1]}…",
    ]
