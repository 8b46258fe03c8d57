"""``export``: from a run to a model bundle."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hiptrain.cli.common import FILE, FOLDER, SOURCE


@click.command()
@click.option("--run", required=True, type=SOURCE, help="folder of 'hiptrain fit'")
@click.option("--out", required=True, type=FOLDER, help="bundle folder to write")
@click.option("--id", "bundle_id", default="hip-unet-semireal", show_default=True)
@click.option("--version", required=True, help="for example 0.1.0")
@click.option("--name", default="U-Net for hip STIR, semi-real training", show_default=True)
@click.option("--figures", type=FILE, help="JSON of 'hiptrain evaluate', for the card")
def export(
    *, run: Path, out: Path, bundle_id: str, version: str, name: str, figures: Path | None
) -> None:
    """Write the best networks of a run as a model bundle."""
    from hiptrain import card
    from hiptrain import export as exporting

    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    about = exporting.About(
        id=bundle_id,
        version=version,
        name=name,
        trained_on=card.trained_on(data),
        training_series=data.pop("training_series"),
        held_out_series=data.pop("held_out_series"),
        data=data,
    )
    try:
        exporting.export(run, out, about)
    except FileNotFoundError as error:
        raise click.ClickException(f"{error.filename} is missing; run 'hiptrain fit'") from error
    card.write(out, json.loads(figures.read_text(encoding="utf-8")) if figures else None)
    click.echo(f"bundle in {out}")
