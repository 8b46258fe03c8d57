"""``phantom``: a synthetic study with known truth, as DICOM files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from hipscore import scoring
from hipscore.domain import RESEARCH_USE, HipFindings, Side
from hipscore.phantom import Burden, Phantom, synthesise
from hipscore.phantom.dicom import to_datasets
from hipscore.phantom.study import derive_uid

#: of a phantom that is given no other day
STUDY_DATE = "20240102"


def _text(longest: int) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    """Check that a text can be an attribute: short, without backslash and controls (PS3.5 6.2)."""

    def check(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
        del context, parameter
        if value is not None and (len(value) > longest or "\\" in value or not value.isprintable()):
            msg = f"{value!r} has more than {longest} characters, a backslash or controls"
            raise click.BadParameter(msg)
        return value

    return check


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
@click.option("--patient-id", callback=_text(64), help="Patient ID.  [default: HIPSCORE-SEED]")
@click.option("--patient-name", callback=_text(64), default="HIPSCORE^PHANTOM", show_default=True)
@click.option(
    "--study-date", type=click.DateTime(["%Y-%m-%d"]), help="Day of the study.  [2024-01-02]"
)
@click.option("--accession", callback=_text(16), help="Accession Number.")
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
    patient_id: str | None,
    patient_name: str | None,
    study_date: datetime | None,
    accession: str | None,
) -> None:
    """Write a synthetic coronal hip STIR study with known truth.

    DICOM images are written to --out; beside that folder, in OUT-truth.json, what is true per
    hip: centre, radius, volumes and the score that the true outlines give. The same --seed
    with another --burden and --study-date is the same patient at another time.
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
        files = write(
            made,
            out,
            enhanced=enhanced,
            patient_id=patient_id,
            patient_name=patient_name or "",
            study_date=f"{study_date:%Y%m%d}" if study_date else STUDY_DATE,
            accession_number=accession or "",
        )
    except OSError as error:
        msg = f"{out} cannot be written: {error}"
        raise click.ClickException(msg) from error
    click.echo(
        f"{len(files)} images in {out}, the truth in {truth_file(out).name} beside it. "
        f"{RESEARCH_USE}."
    )


def write(
    made: Phantom,
    out: Path,
    *,
    enhanced: bool = False,
    study_date: str = STUDY_DATE,
    patient_id: str | None = None,
    **more: Any,
) -> list[Path]:
    """Write the images of a phantom as IM0001.dcm …, and its truth beside the folder.

    ``more`` goes to :func:`hipscore.phantom.dicom.to_datasets`. Another day or patient makes
    another study, with UIDs of its own. Returns the image files.
    """
    if study_date != STUDY_DATE or patient_id is not None:
        whose = (made.key, study_date, patient_id, enhanced)
        more = {
            "study_uid": derive_uid(*whose, "study"),
            "series_uid": derive_uid(*whose, "series"),
            "frame_of_reference_uid": derive_uid(*whose, "frame of reference"),
            **more,
        }
    images = to_datasets(
        made, enhanced=enhanced, study_date=study_date, patient_id=patient_id, **more
    )
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, dataset in enumerate(images, start=1):
        path = out / f"IM{number:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    truth_json = [truth_of(found) for found in truth(made)]
    truth_file(out).write_text(json.dumps(truth_json, indent=2) + "\n", "utf-8")
    return files


def truth_file(out: Path) -> Path:
    """Where the truth about the images in a folder is: beside it, for ``storescu`` sends it all."""
    folder = out.resolve()
    return folder.with_name(f"{folder.name}-truth.json")


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
