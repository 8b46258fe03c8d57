"""``prepare``: the data set of semi-real series, T1, phantoms and series without hips."""

from __future__ import annotations

from pathlib import Path

import click

from hiptrain.cli.common import FOLDER, chosen, source_options


@click.command()
@source_options
@click.option("--out", required=True, type=FOLDER, help="the data set is made here")
@click.option("--series", multiple=True, help="only this anatomy (may be repeated)")
@click.option("--leave-out", multiple=True, help="not this anatomy (may be repeated)")
@click.option("--draws", default=24, show_default=True, help="semi-real series per anatomy")
@click.option("--plain", default=4, show_default=True, help="bent T1 series per anatomy")
@click.option("--phantoms", default=60, show_default=True)
@click.option("--strangers", default=160, show_default=True, help="series without hips")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=1))
def prepare(
    *,
    source: Path,
    heads: Path,
    out: Path,
    series: tuple[str, ...],
    leave_out: tuple[str, ...],
    draws: int,
    plain: int,
    phantoms: int,
    strangers: int,
    seed: int,
    workers: int,
) -> None:
    """Make a data set from real T1 anatomies. Continues where it was interrupted."""
    from hiptrain import prepare as preparing

    names = [name for name in chosen(source, series) if name not in leave_out]
    unknown = sorted(set(leave_out) - set(chosen(source, ())))
    if unknown:
        raise click.ClickException(f"{source} has no {', '.join(unknown)} to leave out")
    plan = preparing.Plan(
        draws=draws, plain=plain, phantoms=phantoms, strangers=strangers, seed=seed
    )
    jobs = preparing.plan_jobs(source, names, plan)
    try:
        with click.progressbar(length=len(jobs), label="prepare") as bar:
            preparing.prepare(jobs, heads, out, plan, workers=workers, done=bar.update)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(jobs)} series of {len(names)} anatomies in {out}")
