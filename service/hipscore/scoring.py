"""The UNet-score of Zheng et al. 2023 (Front Physiol 14:1132214), from masks.

Per slice the grey-value proportion of lesion to femoral head, summed over the slices
of the HIMRISS scheme: 5 central, 5 anterior, 5 posterior. An automatic number: it is
not a reader's score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from hipscore.arrays import bounding_box
from hipscore.domain import (
    MIN_SLICES,
    BoolArray,
    Channel,
    Findings,
    FloatArray,
    Group,
    Hip,
    HipFindings,
    Masks,
    ReasonCode,
    Remark,
    SliceScore,
    Volume,
)

MIN_HEAD_AREA_MM2 = 100.0
#: slices of a group, and how far the central group reaches from the central slice
GROUP_SIZE = 5
_CENTRAL_REACH = GROUP_SIZE // 2
_OUTER_REACH = _CENTRAL_REACH + GROUP_SIZE
#: a segmented head outside this volume is not a femoral head (radius 14 to 36 mm), mL
HEAD_ML = (11.5, 195.0)


def select_slices(
    head_mm2: Sequence[float], *, min_head_area_mm2: float = MIN_HEAD_AREA_MM2
) -> list[tuple[int, Group]]:
    """Choose the slices that count, from the head's area in each slice.

    Parameters
    ----------
    head_mm2
        Length Z, anterior to posterior, mm².
    min_head_area_mm2
        Smaller sections do not count.

    Returns
    -------
    list of (slice index, group)
        Anterior to posterior. The central slice is the one with the largest section
        (the most anterior of equals); the central group is it and two on either side,
        the outer groups the next five each way.
    """
    area = np.asarray(head_mm2, dtype=np.float64)
    if area.size == 0 or area.max() < min_head_area_mm2:
        return []
    centre = int(np.argmax(area))
    chosen: list[tuple[int, Group]] = []
    for index in range(max(0, centre - _OUTER_REACH), min(area.size, centre + _OUTER_REACH + 1)):
        if area[index] < min_head_area_mm2:
            continue
        offset = index - centre
        if offset < -_CENTRAL_REACH:
            group = Group.ANTERIOR
        elif offset > _CENTRAL_REACH:
            group = Group.POSTERIOR
        else:
            group = Group.CENTRAL
        chosen.append((index, group))
    return chosen


def score_hip(
    volume: Volume,
    hip: Hip,
    masks: Masks,
    *,
    min_head_area_mm2: float = MIN_HEAD_AREA_MM2,
) -> HipFindings:
    """Measure and score one hip.

    Intensities are the rescaled stored values of the source grid, never normalised.
    Volumes count every voxel of a mask, the score only the selected slices, the effusion's
    thickness only the central ones.

    Parameters
    ----------
    volume
        The series, ``(Z, Y, X)``, slices anterior to posterior.
    hip
        The located hip.
    masks
        ``(K, Z, Y, X)`` bool on the same grid.

    Returns
    -------
    HipFindings
        With ``reason`` and without scores where the hip cannot be scored
        (``too_few_slices``, ``implausible_segmentation``).
    """
    grid = volume.grid
    # the same voxels in the same order as on the whole grid, hundreds of times fewer
    box = bounding_box(masks.voxels)
    image, voxels = volume.voxels[box], masks.voxels[:, *box]
    head, bme, synovitis = (voxels[channel] for channel in Channel)
    first = box[0].start
    sections = np.zeros(grid.shape[0], dtype=np.int64)
    sections[box[0]] = head.sum(axis=(1, 2))
    head_mm2 = sections * grid.pixel_mm2
    # a slice that grazes the head cuts the capsule obliquely and would show it thicker
    centre = int(np.argmax(head_mm2))
    squarely = slice(
        max(0, centre - first - _CENTRAL_REACH), max(0, centre - first + _CENTRAL_REACH + 1)
    )
    measured = HipFindings(
        hip=hip,
        reason=None,
        femoral_head_ml=float(head.sum() * grid.voxel_ml),
        bme_ml=float(bme.sum() * grid.voxel_ml),
        synovitis_ml=float(synovitis.sum() * grid.voxel_ml),
        effusion_mm=effusion_thickness(synovitis[squarely], grid.spacing_mm[1], grid.spacing_mm[2]),
    )
    chosen = select_slices(head_mm2.tolist(), min_head_area_mm2=min_head_area_mm2)
    if len(chosen) < MIN_SLICES:
        text = (
            f"{len(chosen)} slices show at least {min_head_area_mm2:g} mm² of femoral head, "
            f"{MIN_SLICES} are needed"
        )
        return _declined(measured, ReasonCode.TOO_FEW_SLICES, text)
    if not HEAD_ML[0] <= measured.femoral_head_ml <= HEAD_ML[1]:
        text = (
            f"a segmented femoral head of {measured.femoral_head_ml:.1f} mL is outside "
            f"{HEAD_ML[0]:g} to {HEAD_ML[1]:g} mL"
        )
        return _declined(measured, ReasonCode.IMPLAUSIBLE_SEGMENTATION, text)

    slices = tuple(
        _score_slice(volume, image[index - first], voxels[:, index - first], index, group)
        for index, group in chosen
    )
    whole = _proportion(image, bme | synovitis, head)
    if not all(math.isfinite(ratio) for ratio in (whole, *(item.ratio for item in slices))):
        text = "the segmented femoral head has a section without signal"
        return _declined(measured, ReasonCode.IMPLAUSIBLE_SEGMENTATION, text)
    return replace(
        measured,
        slices=slices,
        unet_score=math.fsum(item.ratio for item in slices),
        bme_score=math.fsum(item.bme_ratio for item in slices),
        synovitis_score=math.fsum(item.synovitis_ratio for item in slices),
        mean_ratio=math.fsum(item.ratio for item in slices) / len(slices),
        whole_volume_index=whole,
    )


def _declined(measured: HipFindings, code: ReasonCode, text: str) -> HipFindings:
    """The measured hip without a score, and why."""
    side = measured.hip.side.value
    return replace(measured, reason=Remark(code=code.value, text=f"{side} hip: {text}"))


def _proportion(image: FloatArray, lesion: BoolArray, head: BoolArray) -> float:
    """Grey-value proportion ΣI(lesion) / ΣI(head); NaN where the head has no signal."""
    total = float(image[head].sum(dtype=np.float64))
    return float(image[lesion].sum(dtype=np.float64)) / total if total > 0 else math.nan


def _score_slice(
    volume: Volume, image: FloatArray, masks: BoolArray, index: int, group: Group
) -> SliceScore:
    """Score one slice: ``image`` ``(Y, X)`` and ``masks`` ``(K, Y, X)``, or one part of both.

    A head without signal gives NaN ratios.
    """
    head, bme, synovitis = (masks[channel] for channel in Channel)
    area = volume.grid.pixel_mm2
    return SliceScore(
        slice_index=index,
        source=volume.sources[index],
        group=group,
        ratio=_proportion(image, bme | synovitis, head),
        bme_ratio=_proportion(image, bme, head),
        synovitis_ratio=_proportion(image, synovitis, head),
        head_mm2=float(head.sum() * area),
        bme_mm2=float(bme.sum() * area),
        synovitis_mm2=float(synovitis.sum() * area),
    )


def effusion_thickness(synovitis: BoolArray, row_mm: float, column_mm: float) -> float:
    """Largest in-plane thickness of the effusion ``(Z, Y, X)``, mm.

    The diameter of the largest disc that fits inside the outline: twice the largest
    distance to the outside. Every pixel is halved first, so that the outline runs on
    the pixels' edges and a strip of n pixels measures n pixels, even or odd.
    """
    deepest = 0.0
    for index in np.flatnonzero(synovitis.any(axis=(1, 2))):
        (box,) = ndimage.find_objects(synovitis[index].astype(np.uint8))
        halves = synovitis[index][box].repeat(2, axis=0).repeat(2, axis=1)
        distance = ndimage.distance_transform_edt(
            np.pad(halves, 1), sampling=(row_mm / 2, column_mm / 2)
        )
        deepest = max(deepest, float(distance.max()))
    return 2 * deepest


def combine(hips: Sequence[HipFindings]) -> Findings:
    """Sum the scored hips into the patient's findings.

    One scored hip alone is remarked as ``one_hip_only``. Without any scored hip the
    series is not scorable: ``no_hip_found``, or the reason the hips agree on (else the
    first hip's).
    """
    if not hips:
        reason = Remark(
            code=ReasonCode.NO_HIP_FOUND.value,
            text="no femoral head was found in this series with enough confidence",
        )
        return Findings(hips=(), reason=reason, unet_score=None)
    scored = [hip for hip in hips if hip.unet_score is not None]
    if not scored:
        reasons = [hip.reason for hip in hips if hip.reason is not None]
        reason = Remark(code=reasons[0].code, text="; ".join(item.text for item in reasons))
        return Findings(hips=tuple(hips), reason=reason, unet_score=None)
    quality = []
    if len(scored) == 1:
        side = scored[0].hip.side.value
        quality.append(
            Remark(
                code="one_hip_only",
                text=f"only the {side} hip was scored; the patient's score is that hip's alone",
            )
        )
    return Findings(
        hips=tuple(hips),
        reason=None,
        unet_score=math.fsum(hip.unet_score for hip in scored if hip.unet_score is not None),
        quality=tuple(quality),
    )
