"""``phantom``: a synthetic study with known truth, as DICOM files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hipscore import scoring
from hipscore.domain import RESEARCH_USE, HipFindings, Side
from hipscore.phantom import Burden, Phantom, synthesise
from hipscore.phantom.dicom import to_datasets


@click.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--seed", type=click.IntRange(0), default=1, help="Same seed, same study.")
@click.option(
    "--burden",
    type=click.Choice([item.value for item in Burden]),
    default=Burden.MODERATE.value,
    help="How inflamed the hips are.",
)
@click.option(
    "--side", type=click.Choice(["both", "right", "left"]), default="both", help="Hips in view."
)
@click.option(
    "--anatomy", type=click.Choice(["hip", "brain"]), default="hip", help="What is in it."
)
@click.option("--plane", type=click.Choice(["coronal", "axial"]), default="coronal")
@click.option("--slices", type=click.IntRange(1, 200), default=24)
@click.option("--enhanced", is_flag=True, help="Write one Enhanced MR multi-frame object.")
def phantom(
    *,
    out: Path,
    seed: int,
    burden: str,
    side: str,
    anatomy: Any,
    plane: Any,
    slices: int,
    enhanced: bool,
) -> None:
    """Write a synthetic coronal hip STIR study with known truth.

    DICOM images and truth.json (per hip: centre, radius, volumes and the score that the
    true outlines give) are written to --out.
    """
    made = synthesise(
        seed=seed,
        burden=Burden(burden),
        hips=tuple(Side) if side == "both" else (Side(side),),
        anatomy=anatomy,
        plane=plane,
        slices=slices,
    )
    try:
        files = write(made, out, enhanced=enhanced)
    except OSError as error:
        msg = f"{out} cannot be written: {error}"
        raise click.ClickException(msg) from error
    click.echo(f"{len(files)} images and truth.json in {out}. {RESEARCH_USE}.")


def write(made: Phantom, out: Path, *, enhanced: bool = False) -> list[Path]:
    """Write the images of a phantom as IM0001.dcm … and truth.json. Returns the image files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, dataset in enumerate(to_datasets(made, enhanced=enhanced), start=1):
        path = out / f"IM{number:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    truth_json = [truth_of(found) for found in truth(made)]
    (out / "truth.json").write_text(json.dumps(truth_json, indent=2) + "\n", "utf-8")
    return files


def truth(made: Phantom) -> Sequence[HipFindings]:
    """Score the true outlines of a phantom, as the service scores found ones."""
    return [
        scoring.score_hip(made.volume, hip, masks)
        for hip, masks in zip(made.hips, made.masks, strict=True)
    ]


def truth_of(found: HipFindings) -> dict[str, object]:
    """JSON of one hip's truth."""
    return {
        "side": found.hip.side.value,
        "centre_mm": list(found.hip.centre_mm),
        "radius_mm": found.hip.radius_mm,
        "unet_score": found.unet_score,
        "bme_score": found.bme_score,
        "synovitis_score": found.synovitis_score,
        "slices_used": len(found.slices),
        "femoral_head_ml": found.femoral_head_ml,
        "bme_ml": found.bme_ml,
        "synovitis_ml": found.synovitis_ml,
    }
