"""``quantise``: a bundle with an int8 graph beside its fp32 one."""

from __future__ import annotations

from pathlib import Path

import click

from hiptrain.cli.common import FOLDER, SOURCE, data_option


@click.command()
@click.argument("bundle", type=SOURCE)
@data_option
@click.option("--out", required=True, type=FOLDER, help="bundle folder to write")
@click.option(
    "--pictures",
    default=192,
    show_default=True,
    type=click.IntRange(min=8),
    help="crops to calibrate on, by lot",
)
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
def quantise(*, bundle: Path, data: tuple[Path, ...], out: Path, pictures: int, seed: int) -> None:
    """Add an int8 graph of the segmenter to a copy of BUNDLE.

    Calibrated on series that trained the bundle; others of --data are left out, and those that
    the bundle keeps from its training are refused. The same bundle, data and seed give the same
    files. Measure it with 'hiptrain precision' before it is used.
    """
    from hiptrain import quantise as quantising
    from hiptrain.dataset import read_set

    try:
        crops = quantising.calibration(bundle, data, pictures=pictures, seed=seed)
        about = {
            "made_by": "hiptrain quantise",
            "pictures": len(crops),
            "seed": seed,
            "data": {folder.name: read_set(folder) for folder in data},
        }
        quantising.write(bundle, out, crops, about)
    except (OSError, KeyError, ValueError) as error:
        raise click.ClickException(f"{bundle} cannot be quantised: {error}") from error
    click.echo(f"calibrated on {len(crops)} crops; bundle in {out}")
