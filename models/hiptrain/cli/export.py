"""``export``: from a run to a model bundle."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hiptrain.cli.common import FILE, FOLDER, SOURCE


@click.command()
@click.option(
    "--run",
    required=True,
    multiple=True,
    type=SOURCE,
    help="folder of 'hiptrain fit'; repeated where each network has its own",
)
@click.option("--out", required=True, type=FOLDER, help="bundle folder to write")
@click.option("--id", "bundle_id", default="hip-unet-semireal", show_default=True)
@click.option("--version", required=True, help="for example 0.1.0")
@click.option("--name", default="U-Net for hip STIR, semi-real training", show_default=True)
@click.option(
    "--unseen",
    multiple=True,
    help="patient kept from every step and choice, for the figures (may be repeated)",
)
@click.option(
    "--thresholds",
    nargs=3,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=(0.5, 0.5, 0.5),
    show_default=True,
    help="probability from which a pixel is femoral head, BME, synovitis",
)
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    default=0.75,
    show_default=True,
    help="a located head below this is none",
)
@click.option("--figures", type=FILE, help="JSON of 'hiptrain evaluate', for the card")
def export(
    *,
    run: tuple[Path, ...],
    out: Path,
    bundle_id: str,
    version: str,
    name: str,
    unseen: tuple[str, ...],
    thresholds: tuple[float, float, float],
    min_confidence: float,
    figures: Path | None,
) -> None:
    """Write the best networks of a run as a verified model bundle.

    The exported files must answer as the networks do; ``hipscore bundle verify`` checks
    them again wherever the bundle is used.
    """
    from hiptrain import card
    from hiptrain import export as exporting

    about = exporting.About(
        id=bundle_id,
        version=version,
        name=name,
        unseen=unseen,
        thresholds=thresholds,
        min_confidence=min_confidence,
    )
    try:
        exporting.export(run, out, about)
    except FileNotFoundError as error:
        raise click.ClickException(f"{error.filename} is missing; run 'hiptrain fit'") from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    card.write(out, json.loads(figures.read_text(encoding="utf-8")) if figures else None)
    click.echo(f"bundle in {out}")


@click.command()
@click.argument("bundle", type=SOURCE)
@click.option("--figures", required=True, type=FILE, help="JSON of 'hiptrain evaluate'")
def card(*, bundle: Path, figures: Path) -> None:
    """Write the figures of an evaluation on a bundle's card (CARD.md)."""
    from hiptrain import card as writing

    click.echo(writing.write(bundle, json.loads(figures.read_text(encoding="utf-8"))))
