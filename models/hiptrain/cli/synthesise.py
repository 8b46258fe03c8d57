"""``synthesise``: semi-real series as DICOM."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from hipscore.phantom import Burden
from hiptrain.cli.common import FOLDER, chosen, source_options


@click.command()
@source_options
@click.option("--out", required=True, type=FOLDER, help="one folder per series is made here")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--burden",
    type=click.Choice([item.value for item in Burden]),
    help="of all hips; default: drawn for each series",
)
@click.option("--series", multiple=True, help="only this series (may be repeated)")
@click.option("--new-study", is_flag=True, help="put each series into a new study")
def synthesise(
    *,
    source: Path,
    heads: Path,
    out: Path,
    seed: int,
    burden: str | None,
    series: tuple[str, ...],
    new_study: bool,
) -> None:
    """Turn real T1 series into STIR-like series with lesions of known extent.

    Writes DICOM with the scanner's headers, truth.json (scores and volumes) and
    truth.npz (masks by side).
    """
    from hiptrain.anatomy import load, read_heads
    from hiptrain.synthesise import Options, semireal, write

    spheres = read_heads(heads)
    wanted = chosen(source, series)
    with click.progressbar(wanted.items(), label="synthesise", item_show_func=_name) as bar:
        for number, (name, path) in enumerate(bar):
            try:
                images, anatomy = load(path, spheres)
            except ValueError as error:
                raise click.ClickException(str(error)) from error
            rng = np.random.default_rng((seed, number))
            made = semireal(anatomy, rng, Options(burden=Burden(burden) if burden else None))
            about = (("source", name), ("seed", seed))
            key = f"{seed}/{burden}"
            write(images, made, out / name, key=key, new_study=new_study, about=about)
    click.echo(f"{len(wanted)} series in {out}")


def _name(item: tuple[str, Path] | None) -> str:
    return item[0] if item else ""
