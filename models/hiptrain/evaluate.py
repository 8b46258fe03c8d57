"""Figures of a bundle on series with known truth, through the code the service runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from hipscore import hips, phantom
from hipscore.domain import Channel, Hip, Masks, Segmenter, Volume
from hipscore.phantom import Burden
from hipscore.scoring import score_hip
from hiptrain.anatomy import Anatomy, sphere_of
from hiptrain.synthesise import Options, semireal

#: hips with less lesion than this are lesion-free, mL
_CLEAN_ML = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A series and its truth."""

    name: str
    volume: Volume
    masks: tuple[Masks, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HipFigures:
    """One hip: how far the result is from the truth. None where it was not found."""

    case: str
    side: str
    centre_error_mm: float | None
    head_dice: float | None = None
    bme_dice: float | None = None
    synovitis_dice: float | None = None
    bme_ml: float = 0.0
    synovitis_ml: float = 0.0
    found_bme_ml: float = 0.0
    found_synovitis_ml: float = 0.0
    score: float | None = None
    found_score: float | None = None


def semireal_cases(
    anatomies: Sequence[tuple[str, Anatomy]], *, draws: int, seed: int
) -> list[Case]:
    """Every anatomy with every burden, ``draws`` times, in its real shape."""
    cases = []
    for number, (name, anatomy) in enumerate(anatomies):
        for draw in range(draws):
            for index, burden in enumerate(Burden):
                rng = np.random.default_rng((seed, number, draw, index))
                made = semireal(anatomy, rng, Options(burden=burden))
                label = f"{name}-{burden.value}-{draw}"
                cases.append(Case(name=label, volume=made.volume, masks=made.masks))
    return cases


def plain_cases(anatomies: Sequence[tuple[str, Anatomy]]) -> list[Case]:
    """The T1 images as they are: hips must be found in any contrast."""
    cases = []
    for name, anatomy in anatomies:
        masks = []
        for hip, head in zip(anatomy.hips, anatomy.heads, strict=True):
            voxels = np.zeros((len(Channel), *head.shape), dtype=np.bool_)
            voxels[Channel.FEMORAL_HEAD] = head
            masks.append(Masks(side=hip.side, voxels=voxels))
        cases.append(Case(name=f"{name}-t1", volume=anatomy.volume, masks=tuple(masks)))
    return cases


def phantom_cases(count: int, *, seed: int) -> list[Case]:
    """Phantoms of all burdens in turn."""
    burdens = list(Burden)
    cases = []
    for number in range(count):
        made = phantom.synthesise(seed=seed + number, burden=burdens[number % len(burdens)])
        cases.append(
            Case(
                name=f"phantom-{seed + number}-{burdens[number % len(burdens)].value}",
                volume=made.volume,
                masks=made.masks,
            )
        )
    return cases


def evaluate(
    cases: Sequence[Case], segmenter: Segmenter, done: Callable[[int], object] = lambda _: None
) -> list[HipFigures]:
    """Locate, segment and score every case; compare with the truth."""
    figures = []
    for case in cases:
        found = {hip.side: hip for hip in hips.locate(case.volume, segmenter)}
        figures += [_compare(case, item, found.get(item.side), segmenter) for item in case.masks]
        done(1)
    return figures


def _compare(case: Case, truth: Masks, hip: Hip | None, segmenter: Segmenter) -> HipFigures:
    real = sphere_of(truth, case.volume.grid)
    ml = case.volume.grid.voxel_ml
    volumes = [float(truth.voxels[channel].sum() * ml) for channel in Channel]
    if hip is None:
        return HipFigures(
            case=case.name,
            side=truth.side.value,
            centre_error_mm=None,
            bme_ml=volumes[1],
            synovitis_ml=volumes[2],
        )
    masks = hips.segment(case.volume, hip, segmenter)
    scored = score_hip(case.volume, hip, masks)
    wanted = score_hip(case.volume, real, truth)
    overlap = [overlap_of(truth.voxels[channel], masks.voxels[channel]) for channel in Channel]
    return HipFigures(
        case=case.name,
        side=truth.side.value,
        centre_error_mm=float(np.linalg.norm(np.subtract(hip.centre_mm, real.centre_mm))),
        head_dice=overlap[0],
        bme_dice=overlap[1] if volumes[1] > _CLEAN_ML else None,
        synovitis_dice=overlap[2] if volumes[2] > _CLEAN_ML else None,
        bme_ml=volumes[1],
        synovitis_ml=volumes[2],
        found_bme_ml=scored.bme_ml,
        found_synovitis_ml=scored.synovitis_ml,
        score=wanted.unet_score,
        found_score=scored.unet_score,
    )


def overlap_of(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 1.0


def summary(figures: Sequence[HipFigures]) -> dict[str, object]:
    """The figures of merit of all hips together."""
    errors = [item.centre_error_mm for item in figures if item.centre_error_mm is not None]
    scores = np.array(
        [
            (item.score, item.found_score)
            for item in figures
            if item.score is not None and item.found_score is not None
        ]
    ).reshape(-1, 2)
    clean_bme = [
        item.found_bme_ml
        for item in figures
        if item.bme_ml <= _CLEAN_ML and item.head_dice is not None
    ]
    clean_synovitis = [
        item.found_synovitis_ml
        for item in figures
        if item.synovitis_ml <= _CLEAN_ML and item.head_dice is not None
    ]
    difference = scores[:, 1] - scores[:, 0]
    return {
        "hips": len(figures),
        "hips_not_found": len(figures) - len(errors),
        "centre_error_mm": _spread(errors),
        "head_dice": _spread([item.head_dice for item in figures]),
        "bme_dice": _spread([item.bme_dice for item in figures]),
        "synovitis_dice": _spread([item.synovitis_dice for item in figures]),
        "false_bme_ml": _spread(clean_bme),
        "false_synovitis_ml": _spread(clean_synovitis),
        "score_difference": _spread(difference.tolist()),
        "score_absolute_difference": _spread(np.abs(difference).tolist()),
        "score_correlation": (
            round(float(np.corrcoef(scores.T)[0, 1]), 4)
            if len(scores) > 2 and scores.std(axis=0).min() > 0
            else None
        ),
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    known = np.array([value for value in values if value is not None])
    if not known.size:
        return None
    return {
        "n": int(known.size),
        "median": round(float(np.median(known)), 3),
        "mean": round(float(known.mean()), 3),
        "min": round(float(known.min()), 3),
        "max": round(float(known.max()), 3),
    }


def table(groups: dict[str, dict[str, object]]) -> str:
    """Summaries as a table, one column a group."""
    names = list(groups)
    rows = [["", *names]]
    for key in next(iter(groups.values())):
        row = [key.replace("_", " ")]
        for name in names:
            value = groups[name][key]
            if isinstance(value, dict):
                row.append(f"{value['median']:g} ({value['min']:g} to {value['max']:g})")
            else:
                row.append("-" if value is None else f"{value}")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def write_json(groups: dict[str, list[HipFigures]], path: Path) -> None:
    """Summary and single figures of every group."""
    content = {
        name: {"summary": summary(figures), "hips": [asdict(item) for item in figures]}
        for name, figures in groups.items()
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
