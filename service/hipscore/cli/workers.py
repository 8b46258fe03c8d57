"""``workers``: who analyses and delivers; also the question that probes ask."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from hipscore import heartbeat
from hipscore.cli.common import load_settings, print_json, table


@click.command()
@click.option(
    "--queue", type=click.Choice(["analysis", "delivery"]), help="Only those that serve this queue."
)
@click.option("--here", is_flag=True, help="Only those of this machine or container.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def workers(*, queue: str | None, here: bool, as_json: bool) -> None:
    """List the workers that share this data directory. Exits 1 if none of them lives.

    A worker whose heartbeat is older than a minute was killed, hangs, or has lost its broker.
    """
    data_dir: Path = load_settings().data_dir
    found = [
        each
        for each in heartbeat.read(heartbeat.folder(data_dir))
        if (queue is None or queue in each.queues) and (not here or each.host == heartbeat.here())
    ]
    if as_json:
        print_json([{**asdict(each), "alive": each.alive} for each in found])
    elif found:
        rows = [
            (
                "+".join(each.queues),
                each.host,
                each.pid,
                f"{each.warm} of {each.processes}",
                "alive" if each.alive else "lost",
                f"{each.age_s:.0f} s ago",
            )
            for each in found
        ]
        click.echo(table(rows, ("queue", "host", "process", "warm", "state", "seen")))
    else:
        click.echo(f"no worker in {data_dir}; start hipscore up, or hipscore work", err=True)
    if not any(each.alive for each in found):
        raise click.exceptions.Exit(1)
