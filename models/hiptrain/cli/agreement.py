"""``agreement``: UNet-scores beside readers and clinical indices."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hiptrain.cli.common import FILE, FOLDER


@click.command()
@click.option("--table", required=True, type=FILE, help="CSV, one row per patient (and visit)")
@click.option("--out", required=True, type=FOLDER, help="folder for the report and pictures")
@click.option("--scores", type=FILE, help="CSV of 'hipscore score --csv' to join")
@click.option(
    "--key", default="series_instance_uid", show_default=True, help="column to join --scores on"
)
@click.option("--score", default="unet_score", show_default=True, help="column of the score")
@click.option("--reader", "readers", multiple=True, help="default: columns named reader_...")
@click.option("--index", "indices", multiple=True, help="default: all other columns of numbers")
@click.option(
    "--same-scale", is_flag=True, help="readers are in the unit of the score: ICC with it too"
)
@click.option("--resamples", default=2000, show_default=True, type=click.IntRange(min=100))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="print the figures as JSON")
def agreement(
    *,
    table: Path,
    out: Path,
    scores: Path | None,
    key: str,
    score: str,
    readers: tuple[str, ...],
    indices: tuple[str, ...],
    same_scale: bool,
    resamples: int,
    seed: int,
    as_json: bool,
) -> None:
    """Correlate UNet-scores with readers' scores and clinical indices.

    The table has a column patient, optionally visit and side, the score, and one column for
    each reader and index. Options that name a column may be repeated. Writes agreement.md,
    agreement.json and pictures.
    """
    from hiptrain import agreement as comparing
    from hiptrain import agreement_report as reporting
    from hiptrain import agreement_table as reading

    try:
        rows = reading.read_table(table)
        remarks: list[str] = []
        if scores is not None:
            rows, remarks = reading.join(rows, reading.read_table(scores), key=key)
        study = reading.study_of(
            rows, score=score, readers=readers, indices=indices, remarks=remarks
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    length = comparing.steps(study, same_scale=same_scale)
    with click.progressbar(length=length, label="comparing", hidden=as_json) as bar:
        found = comparing.compare(
            study, resamples=resamples, seed=seed, same_scale=same_scale, done=bar.update
        )
    try:
        written = reporting.write(found, out)
    except OSError as error:
        raise click.ClickException(f"the report cannot be written: {error}") from error
    if as_json:
        click.echo(json.dumps(reporting.as_json(found), indent=1))
    else:
        click.echo(reporting.correlation_table(found.correlations))
        click.echo(f"report: {written[0]}")
