"""Quality remarks: each is made where its defect is, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from hipscore import artefacts, quality, scoring
from hipscore.domain import (
    ArtifactKind,
    Channel,
    DoubleArray,
    FloatArray,
    Grid,
    Hip,
    Masks,
    Remark,
    Side,
    SliceSource,
    Volume,
)
from hipscore.phantom import Burden, Phantom, synthesise, to_datasets
from hipscore.pipeline import Analysis, analyse, report
from hipscore.quality import QualityCode
from hipscore.reporting import codes
from hipscore.reporting.result import result_json
from tests.analytic import CARD, Oracle
from tests.contract.factories import CONTEXT, coded, comments, groups

pytestmark = pytest.mark.computes

Case = tuple[Volume, tuple[Hip, ...], tuple[Masks, ...]]
RIGHT, LEFT = 0, 1


@cache
def phantom(
    seed: int = 3,
    burden: Burden = Burden.MODERATE,
    hips: tuple[Side, ...] = (Side.RIGHT, Side.LEFT),
) -> Phantom:
    return synthesise(seed=seed, burden=burden, hips=hips, rows=192, slices=18, supersampling=1)


def clean(made: Phantom | None = None) -> Case:
    made = made or phantom()
    return made.volume, made.hips, made.masks


def told(case: Case) -> tuple[Remark, ...]:
    """The remarks on a case whose hips and outlines are given."""
    volume, hips, masks = case
    around = artefacts.survey(volume, hips)
    found = [scoring.score_hip(volume, hip, own) for hip, own in zip(hips, masks, strict=True)]
    checked = quality.checked(volume, found, masks, around)
    return quality.remarks(volume, checked, masks, CARD, around)


def told_codes(case: Case) -> list[str]:
    return [remark.code for remark in told(case)]


def with_voxels(case: Case, voxels: FloatArray) -> Case:
    return replace(case[0], voxels=voxels.astype(np.float32)), *case[1:]


def distance(volume: Volume, hip: Hip) -> DoubleArray:
    """Distance of every voxel from the centre of a head, mm, ``(Z, Y, X)``."""
    index = np.moveaxis(np.indices(volume.grid.shape), 0, -1).astype(np.float64)
    return np.asarray(np.linalg.norm(volume.grid.to_mm(index) - hip.centre_mm, axis=-1))


# --- the defects ----------------------------------------------------------------------------


def untouched(case: Case) -> Case:
    return case


def unsure(case: Case) -> Case:
    volume, hips, masks = case
    return volume, (hips[RIGHT], replace(hips[LEFT], confidence=CARD.min_confidence + 0.05)), masks


def with_head(case: Case, index: int, radius: float) -> Case:
    """The case with a ball of this radius as one head."""
    volume, hips, masks = case
    voxels = masks[index].voxels.copy()
    voxels[Channel.FEMORAL_HEAD] = distance(volume, hips[index]) <= radius
    changed = list(masks)
    changed[index] = Masks(side=masks[index].side, voxels=voxels)
    return volume, hips, tuple(changed)


def huge(case: Case) -> Case:
    return with_head(with_head(case, LEFT, 33.5), RIGHT, 33.0)


def unlike(case: Case) -> Case:
    return with_head(with_head(case, LEFT, 26.0), RIGHT, 21.5)


def part(case: Case, region: tuple[slice, slice, slice]) -> Case:
    """A smaller field of view."""
    volume, hips, masks = case
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_mm([float(piece.start or 0) for piece in region])
    voxels = volume.voxels[region].copy()
    return (
        Volume(
            voxels=voxels,
            grid=Grid(shape=voxels.shape, affine=affine),
            sources=volume.sources[region[0]],
        ),
        hips,
        tuple(replace(each, voxels=each.voxels[(slice(None), *region)].copy()) for each in masks),
    )


def cut_in_front(case: Case) -> Case:
    middle = round(float(case[0].grid.to_index(case[1][RIGHT].centre_mm)[0]))
    return part(case, (slice(middle - 1, None), slice(None), slice(None)))


def cut_beside(case: Case) -> Case:
    volume, hips, _ = case
    middle = float(volume.grid.to_index(hips[RIGHT].centre_mm)[2])
    reach = (hips[RIGHT].radius_mm + 3.0) / volume.grid.spacing_mm[2]
    return part(case, (slice(None), slice(None), slice(round(middle - reach), None)))


def spreading(case: Case) -> Case:
    """Synovitis all the way down to the border of the crop and beyond."""
    volume, hips, masks = case
    z, y, x = (round(float(value)) for value in volume.grid.to_index(hips[LEFT].centre_mm))
    voxels = masks[LEFT].voxels.copy()
    voxels[Channel.SYNOVITIS, z, y + 15 :, x - 6 : x + 6] = True
    voxels[Channel.SYNOVITIS] &= ~voxels[Channel.FEMORAL_HEAD]
    return volume, hips, (masks[RIGHT], Masks(side=Side.LEFT, voxels=voxels))


def metal(case: Case, radius: float = 30.0) -> Case:
    """No signal within so many mm of the left head, and a bright rim around it."""
    volume, hips, _ = case
    away = distance(volume, hips[LEFT])
    voxels = volume.voxels.copy()
    voxels[(away > radius) & (away < radius + 4)] = 9 * np.percentile(voxels, 75)
    noise = np.random.default_rng(1).rayleigh(2.0, voxels.shape)
    return with_voxels(case, np.where(away <= radius, noise, voxels))


def partial_void(case: Case) -> Case:
    """No signal in the upper third of the left head."""
    volume, hips, _ = case
    mm = volume.grid.to_mm(np.moveaxis(np.indices(volume.grid.shape), 0, -1).astype(np.float64))
    above = mm[..., 2] - hips[LEFT].centre_mm[2] > 0.3 * hips[LEFT].radius_mm
    empty = above & (distance(volume, hips[LEFT]) < 1.2 * hips[LEFT].radius_mm)
    return with_voxels(case, np.where(empty, 2.0, volume.voxels))


def piled_up(case: Case) -> Case:
    """Signal piled up beside the left head, which itself looks whole."""
    volume, hips, _ = case
    away = distance(volume, hips[LEFT]) / hips[LEFT].radius_mm
    bright = 14 * np.percentile(volume.voxels, 75)
    return with_voxels(case, np.where((away > 1.2) & (away < 1.3), bright, volume.voxels))


def noisy(case: Case) -> Case:
    volume = case[0]
    deviation = 0.45 * float(volume.voxels[case[2][RIGHT].voxels[Channel.FEMORAL_HEAD]].mean())
    pair = np.random.default_rng(2).normal(0.0, deviation, (2, *volume.grid.shape))
    return with_voxels(case, np.hypot(volume.voxels + pair[0], pair[1]))


def bright_fat(case: Case) -> Case:
    """Everything darker than muscle as bright as muscle, but for the air."""
    voxels = case[0].voxels
    usual = float(np.percentile(voxels, 75))
    return with_voxels(case, np.where(voxels > 0.25 * usual, np.maximum(voxels, usual), voxels))


def like_t1(case: Case) -> Case:
    """Fat brightest, muscle dark, fluid black: the contrast turned over, but for the air."""
    voxels = case[0].voxels
    usual = float(np.percentile(voxels, 75))
    turned = np.clip(1.7 * usual - voxels, 0.1 * usual, None)
    return with_voxels(case, np.where(voxels > 0.25 * usual, turned, voxels))


def ghosts(case: Case, axis: int = 2, strength: float = 0.15) -> Case:
    """A copy a quarter of the field of view away to either side, wrapped around."""
    voxels = case[0].voxels
    step = voxels.shape[axis] // 4
    copies = np.roll(voxels, step, axis=axis) + np.roll(voxels, -step, axis=axis)
    return with_voxels(case, voxels + strength * copies)


DEFECTS: dict[Callable[[Case], Case], tuple[QualityCode, str]] = {
    unsure: (QualityCode.LOW_CONFIDENCE, "left hip"),
    huge: (QualityCode.HEAD_RADIUS_UNUSUAL, "right hip: the femoral head's radius of 33"),
    unlike: (QualityCode.HEAD_SIZE_DISAGREEMENT, "right 21.5 mm, left 26.0 mm"),
    cut_in_front: (QualityCode.CLIPPED_FIELD_OF_VIEW, "first slice"),
    cut_beside: (QualityCode.CLIPPED_FIELD_OF_VIEW, "right hip: the joint reaches 5 mm beyond"),
    spreading: (QualityCode.LESION_AT_CROP_BORDER, "left hip"),
    partial_void: (QualityCode.SIGNAL_VOID, "left hip"),
    metal: (QualityCode.SIGNAL_VOID, "left hip: 100%"),
    piled_up: (QualityCode.SIGNAL_VOID, "brighter than fluid"),
    noisy: (QualityCode.NOISY_IMAGE, "right hip: signal-to-noise ratio of 2"),
    bright_fat: (QualityCode.WEAK_FAT_SUPPRESSION, "darkest tenth"),
    like_t1: (QualityCode.WEAK_FAT_SUPPRESSION, "under the skin"),
    ghosts: (QualityCode.MOTION_OR_GHOSTING, "along its rows"),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("burden", (Burden.NONE, Burden.MILD))
def test_a_clean_study_has_no_remark(seed: int, burden: Burden) -> None:
    assert told(clean(phantom(seed, burden))) == ()


@pytest.mark.parametrize("side", tuple(Side))
def test_a_clean_study_of_one_hip_has_no_remark(side: Side) -> None:
    assert told(clean(phantom(5, Burden.MILD, (side,)))) == ()


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_remarked_with_side_and_figure(defect: Callable[[Case], Case]) -> None:
    code, words = DEFECTS[defect]
    said = [remark.text for remark in told(defect(clean())) if remark.code == code.value]
    assert said
    assert any(words in text for text in said), said


@pytest.mark.parametrize("code", tuple(QualityCode))
def test_every_remark_is_tried(code: QualityCode) -> None:
    assert code in {code for code, _ in DEFECTS.values()}


@pytest.mark.parametrize(
    "defect",
    (unsure, unlike, spreading, partial_void, ghosts),
    ids=lambda it: it.__name__,
)
def test_a_single_defect_has_a_single_remark(defect: Callable[[Case], Case]) -> None:
    assert told_codes(defect(clean())) == [DEFECTS[defect][0].value]


# --- properties -----------------------------------------------------------------------------


@pytest.mark.parametrize("defect", (untouched, *DEFECTS), ids=lambda defect: defect.__name__)
@pytest.mark.parametrize("factor", (1 / 64, 1024.0))
def test_the_scale_of_the_intensities_does_not_matter(
    defect: Callable[[Case], Case], factor: float
) -> None:
    case = defect(clean())
    assert told(with_voxels(case, case[0].voxels * factor)) == told(case)


def _flipped(case: Case, axis: int) -> Case:
    volume, hips, masks = case
    affine = volume.grid.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (volume.grid.shape[axis] - 1)
    affine[:3, axis] *= -1
    grid = Grid(shape=volume.grid.shape, affine=affine)
    voxels = np.ascontiguousarray(np.flip(volume.voxels, axis))
    turned = [replace(each, voxels=np.flip(each.voxels, axis + 1).copy()) for each in masks]
    return Volume(voxels=voxels, grid=grid, sources=volume.sources), hips, tuple(turned)


def _transposed(case: Case) -> Case:
    volume, hips, masks = case
    z, y, x = volume.grid.shape
    grid = Grid(shape=(z, x, y), affine=volume.grid.affine[:, [0, 2, 1, 3]].copy())
    voxels = np.ascontiguousarray(volume.voxels.swapaxes(1, 2))
    turned = [replace(each, voxels=each.voxels.swapaxes(2, 3).copy()) for each in masks]
    return Volume(voxels=voxels, grid=grid, sources=volume.sources), hips, tuple(turned)


@pytest.mark.parametrize(
    "turn",
    (lambda case: _flipped(case, 1), lambda case: _flipped(case, 2), _transposed),
    ids=["rows to the head", "columns to the right", "rows and columns exchanged"],
)
@pytest.mark.parametrize(
    "defect", (like_t1, bright_fat, spreading, metal, cut_beside), ids=lambda it: it.__name__
)
def test_how_the_source_images_run_does_not_matter(
    defect: Callable[[Case], Case], turn: Callable[[Case], Case]
) -> None:
    case = defect(clean())
    assert told_codes(turn(case)) == told_codes(case)


@settings(max_examples=20, deadline=None)
@given(deviation=st.floats(0.5, 50.0), level=st.floats(6.0, 40.0), seed=st.integers(0, 2**16))
def test_noise_is_measured_as_it_was_made(deviation: float, level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    slope = np.linspace(0.7, 1.3, 96)[:, None] * deviation * level
    voxels = slope + rng.normal(0.0, deviation, (4, 96, 96))
    assert artefacts.noise_level(voxels.astype(np.float32)) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("axis", (1, 2))
@pytest.mark.parametrize("strength", (0.1, 0.2))
def test_a_repetition_is_found_where_it_is(axis: int, strength: float) -> None:
    volume = ghosts(clean(), axis, strength)[0]
    found = artefacts.repetition(volume)
    size = volume.grid.shape[axis] * volume.grid.spacing_mm[axis]
    assert found.axis == {1: "columns", 2: "rows"}[axis]
    assert found.distance_mm == pytest.approx(size / 4, abs=3.0)
    assert found.strength > strength / 2


def test_coil_shading_and_noise_are_no_ghosts() -> None:
    volume = clean()[0]
    z, y, x = volume.grid.shape
    rng = np.random.default_rng(0)
    gain = np.exp(0.5 * np.linspace(-1, 1, y)[:, None] - 0.5 * np.linspace(-1, 1, x))
    pair = rng.normal(0, 0.15 * np.percentile(volume.voxels, 75), (2, z, y, x))
    rough = with_voxels(clean(), np.hypot(gain * volume.voxels + pair[0], pair[1]))
    assert artefacts.repetition(rough[0]).strength < quality.GHOST
    assert QualityCode.WEAK_FAT_SUPPRESSION.value not in told_codes(rough)


@pytest.mark.parametrize("value", (0.0, 100.0))
def test_an_even_image_is_no_obstacle(value: float) -> None:
    case = clean()
    found = told_codes(with_voxels(case, np.full(case[0].grid.shape, value)))
    assert QualityCode.MOTION_OR_GHOSTING.value not in found


def test_without_a_hip_only_the_image_is_judged() -> None:
    volume = ghosts(clean())[0]
    assert artefacts.survey(volume, ()) is None
    found = quality.remarks(volume, (), (), CARD, None)
    assert [remark.code for remark in found] == [QualityCode.MOTION_OR_GHOSTING.value]


# --- what becomes of them -------------------------------------------------------------------


def through_the_pipeline(defect: Callable[[Case], Case]) -> Analysis:
    made = phantom()
    volume, _, masks = defect(clean(made))
    changed = replace(made, volume=volume, masks=masks, key=made.key + defect.__name__)
    images = to_datasets(changed)
    oracle = Oracle()
    oracle.learn(changed, images)
    return analyse(images, oracle)


def test_a_metal_head_gets_no_number() -> None:
    findings = through_the_pipeline(metal).findings
    right, left = findings.hips
    assert right.scored
    assert not left.scored
    assert left.reason is not None
    assert left.reason.code == "implausible_segmentation"
    assert "no signal" in left.reason.text
    assert left.slices == ()
    assert findings.unet_score == right.unet_score
    assert {remark.code for remark in findings.quality} >= {"one_hip_only", "signal_void"}


def test_remarks_are_in_the_report_the_result_and_the_picture() -> None:
    analysis = through_the_pipeline(ghosts)
    [remark] = analysis.findings.quality
    assert remark.code == QualityCode.MOTION_OR_GHOSTING.value
    artifacts = {item.kind: item.data for item in report(analysis, CARD, context=CONTEXT)}
    patient = groups(dcmread(BytesIO(artifacts[ArtifactKind.SR])))["Patient"]
    assert coded(patient, "Quality remark") == ["MOTION_GHOSTING"]
    assert remark.text in comments(patient)
    document = result_json(
        study_uid="1.2",
        series_uid="1.3",
        status="scored",
        findings=analysis.findings,
        card=CARD,
        created_at=CONTEXT.created_at,
    )
    assert document["quality"] == [{"code": remark.code, "text": remark.text}]
    silent = replace(analysis, findings=replace(analysis.findings, quality=()))
    quiet = {item.kind: item.data for item in report(silent, CARD, context=CONTEXT)}
    assert quiet[ArtifactKind.OVERLAY] != artifacts[ArtifactKind.OVERLAY]


def test_every_remark_has_a_code_of_its_own() -> None:
    values = [codes.remark_code(Remark(code=code.value, text="")).value for code in QualityCode]
    assert len({*values, codes.OTHER.value}) == len(values) + 1


@pytest.mark.parametrize("flipped", (False, True))
@pytest.mark.parametrize("side", (Side.RIGHT, Side.LEFT))
def test_the_coat_is_read_on_the_hip_s_own_side(side: Side, flipped: bool) -> None:
    """Subcutis of 100 on the patient's right, of 40 on the left."""
    affine = np.eye(4)
    step = -2.0 if flipped else 2.0
    affine[:3, :3] = [[0, 0, step], [5.0, 0, 0], [0, -2.0, 0]]
    affine[:3, 3] = [-63.5 * step, -47.5, 127.0]
    grid = Grid(shape=(20, 128, 128), affine=affine)
    x = grid.to_mm(np.array([[0.0, 0.0, i] for i in range(128)]))[:, 0]
    voxels = np.where(x < -97, 100.0, 40.0)[None, None].repeat(20, 0).repeat(128, 1)
    sources = (SliceSource(sop_class_uid="1", sop_instance_uid="1", instance_number=1),) * 20
    volume = Volume(voxels=voxels.astype(np.float32), grid=grid, sources=sources)
    x_mm = -60.0 if side is Side.RIGHT else 60.0
    hip = Hip(side=side, centre_mm=(x_mm, 0.0, 0.0), radius_mm=22.0, confidence=1.0)
    around = artefacts.survey(volume, [hip])
    assert around is not None
    assert around.coat == pytest.approx(100.0 if side is Side.RIGHT else 40.0, rel=0.02)
