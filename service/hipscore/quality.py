"""Quality remarks beside the score, and refusal of a hip whose number would be wrong.

A remark is no verdict: it says what was measured and where, for whoever reads the score. The
thresholds were chosen on semi-real STIR of eleven anatomies and on phantoms, never on real
STIR; what each was chosen on stands beside it. ``tissue``: see :mod:`hipscore.artefacts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TypeAlias

import numpy as np

from hipscore import artefacts
from hipscore.arrays import bounding_box
from hipscore.artefacts import Surroundings
from hipscore.domain import (
    BoolArray,
    Channel,
    Grid,
    Hip,
    HipFindings,
    Masks,
    ModelCard,
    ReasonCode,
    Remark,
    Side,
    Volume,
)
from hipscore.hips import frame


class QualityCode(StrEnum):
    """What may be remarked beside a score. These strings are stable."""

    LOW_CONFIDENCE = "low_confidence"
    HEAD_RADIUS_UNUSUAL = "head_radius_unusual"
    HEAD_SIZE_DISAGREEMENT = "head_size_disagreement"
    CLIPPED_FIELD_OF_VIEW = "clipped_field_of_view"
    LESION_AT_CROP_BORDER = "lesion_at_crop_border"
    SIGNAL_VOID = "signal_void"
    NOISY_IMAGE = "noisy_image"
    WEAK_FAT_SUPPRESSION = "weak_fat_suppression"
    MOTION_OR_GHOSTING = "motion_or_ghosting"


#: a confidence is low below this share of the way from the bundle's limit to 1
LOW_CONFIDENCE_SHARE = 0.4
#: heads of adults; the radius is that of a ball of the segmented volume, mm
HEAD_RADIUS_MM = (18.0, 32.0)
#: largest difference of the two radii over their mean (healthy heads: below 0.05)
HEAD_SIZE_DIFFERENCE = 0.15
#: a section of the head this large in the first or last slice: the head goes on, mm²
CUT_SECTION_MM2 = 100.0
#: the joint reaches this far beyond the head and must lie inside the image, mm
JOINT_MM = 8.0
#: a located ball is no more precise than this: so far may it stand out of the stack, mm
STACK_TOLERANCE_MM = 3.0
#: lesion within BORDER_MM of the border of the crop, or in its end slices, mm²
BORDER_LESION_MM2 = 20.0
BORDER_MM = 1.5
#: signal below this share of tissue is none: normal marrow has 0.35 and more, metal about 0
VOID_SIGNAL = 0.2
#: share of a head without signal that is remarked, and that is no head to be scored
VOID_SHARE = 0.1
VOID_REFUSED = 0.5
#: signal above this multiple of tissue is no fluid (3.5 to 6.6) but pile-up beside metal
PILE_UP = 9.0
PILE_UP_SHARE = 0.02
#: mean signal of the head over the noise's deviation: noise of 15 % of muscle leaves the darkest
#: normal marrow with 3. Below it the noise of magnitudes is no longer Gaussian (Gudbjartsson &
#: Patz, Magn Reson Med 1995;34:910) and lifts the dark
LOW_SNR = 3.0
#: 10th percentile of the signal around the hips over tissue: dark fat makes it at most 0.54
#: on semi-real STIR and 0.55 on phantoms, fat of 0.9 to 1.2 of muscle at least 0.65
DARK_TENTH = 0.6
#: T1: nothing around the hips is brighter than this multiple of tissue (T1 at most 1.55 as it
#: is, 1.8 with noise and shading; STIR with fluid in view at least 1.9), and what lies under
#: the skin is as bright as this share (T1 at least 0.6; STIR without fluid at most 0.51)
BRIGHTEST = 1.7
BRIGHT_COAT = 0.58
#: strength of the image's repetition along one axis: at most 0.046 without ghosts (T1 as it is
#: included), 0.08 to 0.25 with ghosts of 6 % of the signal. Ghosts a quarter of a period out of
#: phase with the signal hardly change its magnitude (0.03 to 0.07 at 12 %) and escape
GHOST = 0.06

_Found: TypeAlias = Iterator[tuple[QualityCode, str]]


def checked(
    volume: Volume,
    found: Sequence[HipFindings],
    masks: Sequence[Masks],
    around: Surroundings | None,
) -> tuple[HipFindings, ...]:
    """Take the score from a hip most of whose head has no signal, and say why.

    The arguments are those of :func:`remarks`.
    """
    return tuple(
        _refused(volume, item, own, around) for item, own in zip(found, masks, strict=True)
    )


def _refused(
    volume: Volume, item: HipFindings, masks: Masks, around: Surroundings | None
) -> HipFindings:
    if around is None or not item.scored:
        return item
    share = _void(volume, item.hip, masks, around)
    if share < VOID_REFUSED:
        return item
    side = item.hip.side.value
    text = f"{side} hip: {share:.0%} of the femoral head has no signal beyond noise (metal?)"
    return HipFindings(
        hip=item.hip,
        reason=Remark(code=ReasonCode.IMPLAUSIBLE_SEGMENTATION.value, text=text),
        femoral_head_ml=item.femoral_head_ml,
        bme_ml=item.bme_ml,
        synovitis_ml=item.synovitis_ml,
        effusion_mm=item.effusion_mm,
    )


def remarks(
    volume: Volume,
    found: Sequence[HipFindings],
    masks: Sequence[Masks],
    card: ModelCard,
    around: Surroundings | None,
) -> tuple[Remark, ...]:
    """Everything that speaks against reading the score as it stands.

    Parameters
    ----------
    volume
        The series.
    found, masks
        One per located hip, scored or not, in the same order.
    card
        The bundle, whose crops and limits apply.
    around
        What :func:`hipscore.artefacts.survey` made of the same hips.

    Returns
    -------
    tuple of Remark
        Of each hip by itself, then of both, then of the image. Codes are
        :class:`QualityCode`; one may come once per hip.
    """
    result: list[Remark] = []
    for item, own in zip(found, masks, strict=True):
        for code, text in _of_hip(volume, item.hip, own, card, around):
            result.append(Remark(code=code.value, text=f"{item.hip.side.value} hip: {text}"))
    for code, text in (*_of_sizes(found), *_of_fat(around), *_of_motion(volume)):
        result.append(Remark(code=code.value, text=text))
    return tuple(result)


def _of_hip(
    volume: Volume, hip: Hip, masks: Masks, card: ModelCard, around: Surroundings | None
) -> _Found:
    limit = card.min_confidence + LOW_CONFIDENCE_SHARE * (1.0 - card.min_confidence)
    if hip.confidence < limit:
        text = f"located with a confidence of {hip.confidence:.2f}, below {limit:.2f}"
        yield QualityCode.LOW_CONFIDENCE, text
    head = masks.voxels[Channel.FEMORAL_HEAD]
    radius = _radius(float(np.count_nonzero(head)) * volume.grid.voxel_ml) or hip.radius_mm
    low, high = HEAD_RADIUS_MM
    if not low <= radius <= high:
        text = f"the femoral head's radius of {radius:.1f} mm is outside {low:g} to {high:g} mm"
        yield QualityCode.HEAD_RADIUS_UNUSUAL, text
    if cut := _cut(volume.grid, hip, head):
        yield QualityCode.CLIPPED_FIELD_OF_VIEW, cut
    area = lesion_at_border(volume.grid, hip, masks, card)
    if area >= BORDER_LESION_MM2:
        text = f"{area:.0f} mm² of lesion at the border of the analysed crop may go on beyond it"
        yield QualityCode.LESION_AT_CROP_BORDER, text
    if around is None:
        return
    void = _void(volume, hip, masks, around)
    piled = artefacts.bright_share(volume, hip, around, PILE_UP)
    if void >= VOID_SHARE:
        text = f"{void:.0%} of the femoral head has no signal"
        yield QualityCode.SIGNAL_VOID, text
        return  # what has no signal is noisy besides
    if piled >= PILE_UP_SHARE:
        text = f"{piled:.0%} of its surroundings are brighter than fluid, as beside metal"
        yield QualityCode.SIGNAL_VOID, text
    ratio = artefacts.snr(volume, head, around)
    if ratio < LOW_SNR:
        text = f"signal-to-noise ratio of {ratio:.1f} in the femoral head, below {LOW_SNR:g}"
        yield QualityCode.NOISY_IMAGE, text


def _of_sizes(found: Sequence[HipFindings]) -> _Found:
    radii = {item.hip.side: _radius(item.femoral_head_ml) for item in found}
    if len(radii) != 2 or not all(radii.values()):
        return
    right, left = radii[Side.RIGHT], radii[Side.LEFT]
    difference = abs(right - left) / ((right + left) / 2)
    if difference > HEAD_SIZE_DIFFERENCE:
        text = (
            f"the radii of the femoral heads differ by {difference:.0%}: "
            f"right {right:.1f} mm, left {left:.1f} mm"
        )
        yield QualityCode.HEAD_SIZE_DISAGREEMENT, text


def _of_fat(around: Surroundings | None) -> _Found:
    if around is None:
        return
    dark, bright, coat = (
        value / around.tissue for value in (around.dark, around.bright, around.coat)
    )
    if dark > DARK_TENTH:
        text = (
            f"the darkest tenth around the hips has {dark:.2f} of the signal of tissue, "
            f"above {DARK_TENTH:g}: fat is not dark"
        )
        yield QualityCode.WEAK_FAT_SUPPRESSION, text
    elif bright < BRIGHTEST and coat > BRIGHT_COAT:
        text = (
            f"under the skin there is {coat:.2f} of the signal of bright tissue, and nothing is "
            f"brighter than {bright:.1f} times that: fat is not dark"
        )
        yield QualityCode.WEAK_FAT_SUPPRESSION, text


def _of_motion(volume: Volume) -> _Found:
    ghost = artefacts.repetition(volume)
    if ghost.strength > GHOST:
        text = (
            f"the image repeats itself {ghost.distance_mm:.0f} mm away along its {ghost.axis} "
            f"with a strength of {ghost.strength:.2f}, above {GHOST:g}"
        )
        yield QualityCode.MOTION_OR_GHOSTING, text


def _void(volume: Volume, hip: Hip, masks: Masks, around: Surroundings) -> float:
    head = masks.voxels[Channel.FEMORAL_HEAD]
    return artefacts.void_share(volume, hip, head, around, VOID_SIGNAL)


def _cut(grid: Grid, hip: Hip, head: BoolArray) -> str:
    """What of a hip lies outside the series, in words; empty where nothing does."""
    ends = head[[0, -1]].sum(axis=(1, 2)) * grid.pixel_mm2
    for area, name in zip(ends, ("first", "last"), strict=True):
        if area >= CUT_SECTION_MM2:
            return f"{area:.0f} mm² of the femoral head are in the {name} slice: it is cut off"
    joint = hip.radius_mm + JOINT_MM
    head_inside = hip.radius_mm - STACK_TOLERANCE_MM
    # how far inside the centre must lie, and what stands out by how much more if it does not
    limits = (
        ("femoral head", STACK_TOLERANCE_MM, "stack of slices", head_inside),
        ("joint", 0.0, "image", joint),
        ("joint", 0.0, "image", joint),
    )
    places = zip(grid.to_index(hip.centre_mm), grid.shape, grid.spacing_mm, limits, strict=True)
    for middle, size, step, (part, more, name, reach) in places:
        inside = float(min(middle + 0.5, size - 0.5 - middle)) * step
        if inside < reach:
            beyond = math.ceil(reach + more - inside)
            return f"the {part} reaches {beyond} mm beyond the {name}"
    return ""


def lesion_at_border(grid: Grid, hip: Hip, masks: Masks, card: ModelCard) -> float:
    """Area of segmented lesion at the border of the hip's crop, mm²: edges and end slices."""
    crop = frame(grid, hip, card.segmenter, card.margin_mm)
    if not crop.slice_indices:
        return 0.0
    edges = [np.zeros(size, dtype=np.bool_) for size in grid.shape]
    widths = (1, *(max(1, round(BORDER_MM / step)) for step in grid.spacing_mm[1:]))
    for edge, covered, width in zip(edges, crop.box, widths, strict=True):
        inside = edge[covered]
        inside[:width] = inside[-width:] = True
    lesions = masks.voxels[Channel.BME : Channel.SYNOVITIS + 1, crop.box[0]]
    slices, rows, columns = bounding_box(lesions)
    border = (
        edges[0][crop.box[0]][slices][:, None, None] | edges[1][rows][:, None] | edges[2][columns]
    )
    lesion = lesions[:, slices, rows, columns].any(axis=0)
    return float((lesion & border).sum() * grid.pixel_mm2)


def _radius(millilitres: float) -> float:
    """Radius of a ball of this volume, mm."""
    return float((3000.0 * millilitres / (4 * math.pi)) ** (1 / 3))
