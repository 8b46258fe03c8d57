"""``evaluate``: figures of a bundle on series of known truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hiptrain.cli.common import HELD_OUT, SOURCE, chosen, source_options

if TYPE_CHECKING:
    from hiptrain.anatomy import Anatomy


@click.command()
@source_options
@click.option("--bundle", type=SOURCE, help="default: the shipped one")
@click.option("--series", multiple=True, default=HELD_OUT, show_default=True)
@click.option("--draws", default=1, show_default=True, help="of every burden, per series")
@click.option("--phantoms", default=4, show_default=True)
@click.option("--seed", default=20_000, show_default=True, type=click.IntRange(min=0))
@click.option("--json", "target", type=click.Path(dir_okay=False, path_type=Path))
def evaluate(
    *,
    source: Path,
    heads: Path,
    bundle: Path | None,
    series: tuple[str, ...],
    draws: int,
    phantoms: int,
    seed: int,
    target: Path | None,
) -> None:
    """Measure a bundle on series it was not trained on, through the service's own code."""
    from hipscore.inference import BundleError, load_segmenter
    from hiptrain import evaluate as measuring
    from hiptrain.anatomy import load, read_heads

    try:
        segmenter = load_segmenter(bundle)
    except BundleError as error:
        raise click.ClickException(str(error)) from error
    spheres = read_heads(heads)
    anatomies: list[tuple[str, Anatomy]] = [
        (name, load(path, spheres)[1]) for name, path in chosen(source, series).items()
    ]
    groups = {
        "semi-real": measuring.semireal_cases(anatomies, draws=draws, seed=seed),
        "T1": measuring.plain_cases(anatomies),
        "phantom": measuring.phantom_cases(phantoms, seed=seed),
    }
    figures = {}
    for name, cases in groups.items():
        if cases:
            with click.progressbar(length=len(cases), label=name) as bar:
                figures[name] = measuring.evaluate(cases, segmenter, done=bar.update)
    click.echo(f"{segmenter.card.id} {segmenter.card.version}: median (smallest to largest)")
    click.echo(measuring.table({name: measuring.summary(items) for name, items in figures.items()}))
    if target is not None:
        measuring.write_json(figures, target)
        click.echo(f"single figures in {target}")
