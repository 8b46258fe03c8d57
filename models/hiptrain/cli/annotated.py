"""``annotated``: users' own annotated series as a data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hiptrain.cli.common import FILE, FOLDER

_COLUMNS = ("case", "side", "head mL", "slices", "BME mL", "synovitis mL", "slice mm", "pixel mm")


@click.command()
@click.option(
    "--table",
    required=True,
    type=FILE,
    help="CSV with the columns patient, image, labels and, if wanted, name and side.",
)
@click.option("--out", required=True, type=FOLDER, help="Data set to make; a new folder.")
@click.option("--labels", type=FILE, help="labels.toml: which label is which structure.")
@click.option("--resample", is_flag=True, help="Accept labels on another grid (nearest voxel).")
@click.option("--keep-going", is_flag=True, help="Leave out cases with problems, list them all.")
@click.option("--pictures", is_flag=True, help="Also write a picture of every case's outlines.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def annotated(
    *,
    table: Path,
    out: Path,
    labels: Path | None,
    resample: bool,
    keep_going: bool,
    pictures: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Make a data set of your own annotated series.

    Images: folders of one coronal DICOM series, NIfTI or NRRD. Labels: DICOM SEG, NIfTI
    label maps, or segmentations of 3D Slicer (.seg.nrrd). The column patient is a
    pseudonym: all series of one patient must have the same. Exits 1 when a case cannot
    be used.
    """
    from hiptrain.annotated import Problem
    from hiptrain.annotated.build import Wishes, build, totals

    wishes = Wishes(
        labels=labels, resample=resample, keep_going=keep_going, pictures=pictures, seed=seed
    )
    try:
        # standard output is for the figures
        with click.progressbar(length=1, label="annotated", file=sys.stderr) as bar:

            def begun(count: int) -> None:
                bar.length = count

            built = build(table, out, wishes, begun=begun, done=bar.update)
    except Problem as problem:
        raise click.ClickException(str(problem)) from problem
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error}") from error
    for case in built.cases:
        for remark in case["remarks"]:
            click.echo(f"case {case['name']}: {remark}", err=True)
    if built.unused:
        click.echo(f"labels.toml: no case has the label {', '.join(built.unused)}", err=True)
    counts = totals(built.cases)
    if as_json:
        figures = {"cases": list(built.cases), **counts, "problems": list(built.problems)}
        click.echo(json.dumps(figures, indent=1))
    else:
        click.echo(_summary(built.cases, counts))
        click.echo(f"data set in {out}")
    if built.problems:
        lines = "\n".join(f"  {problem}" for problem in built.problems)
        raise click.ClickException(f"{len(built.problems)} cases were left out:\n{lines}")


def _summary(cases: Sequence[dict[str, Any]], counts: dict[str, int]) -> str:
    """A line per hip, and the counts."""
    lines = [_COLUMNS]
    for case in cases:
        row_mm, column_mm = case["pixel_mm"]
        pixel = f"{row_mm:.2f}" if row_mm == column_mm else f"{row_mm:.2f}x{column_mm:.2f}"
        lines += [
            (
                case["name"],
                hip["side"],
                f"{hip['head_ml']:.1f}",
                str(hip["head_slices"]),
                f"{hip['bme_ml']:.2f}",
                f"{hip['synovitis_ml']:.2f}",
                f"{case['slice_mm']:.2f}",
                pixel,
            )
            for hip in case["hips"]
        ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_COLUMNS))]
    shown = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    patients = len({case["patient"] for case in cases})
    counted = (
        f"{len(cases)} cases of {patients} patients; {counts['hips']} hips with a femoral head, "
        f"{counts['hips_with_bme']} with BME, {counts['hips_with_synovitis']} with synovitis, "
        f"{counts['hips_without_lesion']} without a lesion"
    )
    return "\n".join([*shown, "", counted])
