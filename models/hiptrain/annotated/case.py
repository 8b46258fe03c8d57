"""One case: image and labels read, brought together, sorted into hips, cut into pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hipscore import scoring
from hipscore.domain import BoolArray, Channel, Grid, Masks, Side, Volume
from hipscore.reporting import overlay
from hiptrain import dataset
from hiptrain.anatomy import sphere_of
from hiptrain.annotated import Problem, geometry, itk
from hiptrain.annotated.dicom_labels import read_seg
from hiptrain.annotated.images import Scan, read_image
from hiptrain.annotated.labels import Label, LabelSet
from hiptrain.annotated.naming import Key, Naming
from hiptrain.annotated.sides import Piece, hips_of
from hiptrain.annotated.table import Row

#: where the image reaches this far beyond a head towards the other one, both are in view, mm
_OTHER_HEAD_MM = 150.0
#: resampling that changes a volume by more than this share is worth a remark
_CHANGED = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An annotated series in hipscore's terms.

    ``keys`` are the entries of labels.toml its labels answered to. ``whole``: every
    head in view is labelled, so that the localiser can learn from it.
    """

    row: Row
    volume: Volume
    masks: tuple[Masks, ...]
    formats: str
    whole: bool
    keys: frozenset[Key]
    remarks: tuple[str, ...]


def read_case(row: Row, naming: Naming, *, resample: bool = False) -> Case:
    """Read one case.

    Parameters
    ----------
    row
        Where it lies.
    naming
        What labels mean.
    resample
        Accept labels on another grid, by nearest neighbour.

    Raises
    ------
    Problem
        If it cannot be used, with the reason.
    """
    scan = read_image(row.image)
    grid = scan.volume.grid
    found = _read_labels(row, grid)
    if scan.frame_of_reference and found.frame_of_reference not in {"", scan.frame_of_reference}:
        raise Problem(
            f"{row.labels.name} has another frame of reference than {row.image.name}: it was "
            "not drawn on images taken in this position"
        )
    remarks = [*_name_remarks(row, scan), *scan.remarks]
    pieces, keys = [], set()
    for label in found.labels:
        key = naming.key_of(label)
        keys |= {key} if key is not None else set()
        meaning = naming.meaning(label) if label.voxels.any() or key is not None else None
        if meaning is None or not label.voxels.any():
            continue
        voxels, told = _on_image(row, label, found.grid, grid, resample=resample)
        remarks += told
        pieces.append(
            Piece(structure=meaning.structure, side=meaning.side, voxels=voxels, layer=label.layer)
        )
    if not pieces:
        raise Problem(f"{row.labels.name} labels no structure")
    hips = hips_of(pieces, grid, side=row.side, head_includes_bme=naming.head_includes_bme)
    whole = len(hips.masks) == 2 or not _other_in_view(hips.masks[0], grid)
    if not whole:
        remarks.append(
            "only one head is labelled, but the other is likely in view: not used for the localiser"
        )
    return Case(
        row=row,
        volume=scan.volume,
        masks=hips.masks,
        formats=f"{scan.format} + {_format(row)}",
        whole=whole,
        keys=frozenset(keys),
        remarks=(*remarks, *hips.remarks),
    )


def _read_labels(row: Row, grid: Grid) -> LabelSet:
    if not row.labels.exists():
        raise Problem(f"there is no {row.labels}")
    return itk.read_labels(row.labels) if itk.is_itk(row.labels) else read_seg(row.labels, grid)


def _format(row: Row) -> str:
    if not itk.is_itk(row.labels):
        return "DICOM SEG"
    return "NIfTI" if ".nii" in row.labels.suffixes else "NRRD"


def _name_remarks(row: Row, scan: Scan) -> list[str]:
    """Warn of names where a pseudonym belongs: they are kept in the data set."""
    if "^" in row.patient or (scan.patient_name and row.patient == scan.patient_name):
        return ["the column patient looks like a DICOM patient name; give a pseudonym"]
    return []


def _on_image(
    row: Row, label: Label, labels: Grid, image: Grid, *, resample: bool
) -> tuple[BoolArray, list[str]]:
    """The voxels of a label on the grid of the image, and what is remarkable about it."""
    place = geometry.placement(labels, image)
    if place is not None:
        return place.place(label.voxels, image.shape), []
    if not resample:
        raise Problem(
            f"{row.labels.name} lies on {geometry.difference(labels, image)}; draw the labels on "
            "this image, or accept nearest-neighbour resampling with --resample"
        )
    voxels = geometry.nearest(label.voxels, labels, image)
    before, after = label.voxels.sum() * labels.voxel_ml, voxels.sum() * image.voxel_ml
    if not after:
        raise Problem(f"label {label.title} of {row.labels.name} does not lie on the image")
    if abs(after - before) > _CHANGED * before:
        return voxels, [f"resampling made {before:.2f} mL of label {label.title} {after:.2f} mL"]
    return voxels, []


def _other_in_view(masks: Masks, grid: Grid) -> bool:
    """Whether the image reaches to where the other head must be."""
    hip = sphere_of(masks, grid)
    ends = np.array([[z, y, x] for z in (0, 1) for y in (0, 1) for x in (0, 1)])
    x = grid.to_mm(ends * (np.array(grid.shape) - 1))[:, 0]
    towards = x.max() - hip.centre_mm[0] if hip.side is Side.RIGHT else hip.centre_mm[0] - x.min()
    return bool(towards > _OTHER_HEAD_MM)


def arrays_of(case: Case, seed: int) -> dict[str, NDArray[np.generic]]:
    """The arrays of a case's file, see :mod:`hiptrain.dataset`; the same for the same seed."""
    digest = hashlib.sha256(case.row.name.encode()).digest()
    rng = np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))
    arrays = dict(dataset.planes_of(case.volume, case.masks)) if case.whole else {}
    return arrays | dataset.crops_of(case.volume, case.masks, rng)


def figures_of(case: Case) -> dict[str, object]:
    """What the summary tells about a case: sizes, and volumes in mL of every hip."""
    slice_mm, row_mm, column_mm = case.volume.grid.spacing_mm
    slices, rows, columns = case.volume.grid.shape
    hips = []
    for masks in case.masks:
        head, bme, synovitis = (
            round(float(masks.voxels[channel].sum()) * case.volume.grid.voxel_ml, 3)
            for channel in Channel
        )
        sections = int(masks.voxels[Channel.FEMORAL_HEAD].any(axis=(1, 2)).sum())
        hips.append(
            {
                "side": masks.side.value,
                "head_ml": head,
                "bme_ml": bme,
                "synovitis_ml": synovitis,
                "head_slices": sections,
            }
        )
    return {
        "name": case.row.name,
        "patient": case.row.patient,
        "formats": case.formats,
        "shape": [slices, rows, columns],
        "slice_mm": round(slice_mm, 3),
        "pixel_mm": [round(row_mm, 4), round(column_mm, 4)],
        "localiser": case.whole,
        "hips": hips,
        "remarks": list(case.remarks),
    }


def sheet(case: Case) -> bytes:
    """A contact sheet (PNG): the outlines on the slices, and the score they give."""
    hips = [sphere_of(masks, case.volume.grid) for masks in case.masks]
    findings = scoring.combine(
        [
            scoring.score_hip(case.volume, hip, masks)
            for hip, masks in zip(hips, case.masks, strict=True)
        ]
    )
    subtitle = f"annotation as given, {case.formats}"
    return overlay.render(case.volume, case.masks, findings, title=case.row.name, subtitle=subtitle)


def formats_of(cases: Sequence[dict[str, object]]) -> dict[str, int]:
    """How many cases there are of each pair of formats."""
    kinds = [str(case["formats"]) for case in cases]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
