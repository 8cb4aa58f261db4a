"""``understudy network``: faults in the private network of an instance."""

from __future__ import annotations

import click

from understudy.cli.options import complete_instance, connected, manager_option


@click.command()
@click.argument("instance", shell_complete=complete_instance)
@click.option("--down", is_flag=True, help="Cut it off.")
@click.option("--up", is_flag=True, help="Undo --down.")
@click.option(
    "--delay",
    type=click.FloatRange(0, 60_000),
    metavar="MS",
    help="Delay each packet; an answer comes after twice that.",
)
@click.option(
    "--loss", type=click.FloatRange(0, 100), metavar="PERCENT", help="Lose so many of the packets."
)
@click.option("--calm", is_flag=True, help="Undo --delay and --loss.")
@manager_option
def network(
    instance: str,
    down: bool,
    up: bool,
    delay: float | None,
    loss: float | None,
    calm: bool,
    manager: str,
) -> None:
    """Cut off, delay or thin out the private network of an instance.

    It is felt by all that is in that network: services, and the proxies of published ports. It
    goes with the network.

    \b
    Examples:
      understudy network r7k2mq-1 --down
      understudy network r7k2mq-1 --up
      understudy network r7k2mq-1 --delay 50 --loss 1
      understudy network r7k2mq-1 --calm
    """
    disturbed = delay is not None or loss is not None
    if calm and disturbed:
        raise click.UsageError("--calm undoes --delay and --loss: one or the other.")
    if down and up:
        raise click.UsageError("--up undoes --down: one or the other.")
    if not (down or up or disturbed or calm):
        raise click.UsageError("Say what to do: --down, --up, --delay MS, --loss PERCENT, --calm.")
    from understudy import listing
    from understudy.faults import InstanceNetwork

    one = listing.find(listing.instances(connected(manager)), instance)
    faults = InstanceNetwork(one.network, one.unit, lambda: one.status.main_pid)
    if disturbed or calm:
        faults.disturb(delay_s=(delay or 0) / 1000, loss=(loss or 0) / 100)
    if down:
        faults.down()
    if up:
        faults.up()
