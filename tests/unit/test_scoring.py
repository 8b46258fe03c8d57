"""The UNet-score (Zheng et al. 2023), against a reading of its definition in plain loops."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hipscore import scoring
from hipscore.domain import (
    BoolArray,
    Channel,
    Grid,
    Group,
    Hip,
    HipFindings,
    Masks,
    Remark,
    Side,
    SliceSource,
    Volume,
)

HIP = Hip(side=Side.RIGHT, centre_mm=(-90.0, 0.0, 0.0), radius_mm=24.0, confidence=0.9)
LEFT = replace(HIP, side=Side.LEFT, centre_mm=(90.0, 0.0, 0.0))


def volume_of(
    voxels: NDArray[Any], spacing: tuple[float, float, float] = (5.0, 1.0, 1.0)
) -> Volume:
    """A coronal volume of these voxels, ``(Z, Y, X)``."""
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = spacing[0], -spacing[1], spacing[2], 1
    shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
    sources = tuple(
        SliceSource(sop_class_uid="1.2", sop_instance_uid=f"1.2.{z}", instance_number=z + 1)
        for z in range(shape[0])
    )
    return Volume(
        voxels=voxels.astype(np.float32), grid=Grid(shape=shape, affine=affine), sources=sources
    )


def masks_of(head: BoolArray, bme: BoolArray, synovitis: BoolArray) -> Masks:
    return Masks(side=Side.RIGHT, voxels=np.stack([head, bme, synovitis]))


def squares(sides: list[int], size: int = 40) -> BoolArray:
    """A mask with one square a slice, of these sides in pixels."""
    mask = np.zeros((len(sides), size, size), dtype=bool)
    for z, side in enumerate(sides):
        mask[z, :side, :side] = True
    return mask


def score(
    head: BoolArray,
    bme: BoolArray | None = None,
    synovitis: BoolArray | None = None,
    voxels: NDArray[Any] | None = None,
) -> HipFindings:
    """Score a hip; no lesion and a uniform signal of 100 unless given."""
    empty = np.zeros_like(head)
    return scoring.score_hip(
        volume_of(np.full(head.shape, 100.0) if voxels is None else voxels),
        HIP,
        masks_of(head, empty if bme is None else bme, empty if synovitis is None else synovitis),
    )


# --- an independent implementation: every pixel by hand --------------------------------------


def by_hand(
    volume: Volume, masks: Masks, min_area: float
) -> tuple[list[tuple[int, str, float]], dict[str, float]] | None:
    """Slices (index, group, ratio) and sums, or None with fewer than five slices."""
    slices, rows, columns = volume.grid.shape
    dy, dx = volume.grid.spacing_mm[1:]
    head, bme, synovitis = masks.voxels.tolist()
    intensity = volume.voxels.tolist()
    areas = []
    for z in range(slices):
        pixels = sum(head[z][y][x] for y in range(rows) for x in range(columns))
        areas.append(pixels * dy * dx)
    centre = 0
    for z in range(slices):
        if areas[z] > areas[centre]:
            centre = z
    groups = [
        ("anterior", range(centre - 7, centre - 2)),
        ("central", range(centre - 2, centre + 3)),
        ("posterior", range(centre + 3, centre + 8)),
    ]
    chosen = []
    sums = {"bme": 0.0, "synovitis": 0.0}
    for name, indices in groups:
        for z in indices:
            if not 0 <= z < slices or areas[z] < min_area:
                continue
            of_head = of_lesion = of_bme = of_synovitis = 0.0
            for y in range(rows):
                for x in range(columns):
                    value = intensity[z][y][x]
                    of_head += value if head[z][y][x] else 0.0
                    of_lesion += value if bme[z][y][x] or synovitis[z][y][x] else 0.0
                    of_bme += value if bme[z][y][x] else 0.0
                    of_synovitis += value if synovitis[z][y][x] else 0.0
            chosen.append((z, name, of_lesion / of_head))
            sums["bme"] += of_bme / of_head
            sums["synovitis"] += of_synovitis / of_head
    return (chosen, sums) if len(chosen) >= 5 else None


@given(
    seed=st.integers(0, 2**32 - 1),
    slices=st.integers(4, 22),
    spacing=st.tuples(st.floats(2, 8), st.floats(0.5, 2), st.floats(0.5, 2)),
    share=st.floats(0.1, 0.9),
    min_area=st.floats(1, 60),
)
def test_the_score_is_that_of_the_definition(
    seed: int, slices: int, spacing: tuple[float, float, float], share: float, min_area: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (slices, 8, 9)
    volume = volume_of(rng.integers(1, 4000, shape).astype(np.float32), spacing)
    fill = rng.uniform(0, 1, (slices, 1, 1)) * share * 2
    masks = Masks(
        side=Side.RIGHT,
        voxels=np.stack([rng.uniform(size=shape) < fill, *(rng.uniform(size=(2, *shape)) < 0.2)]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "HEAD_ML", (0.0, math.inf))  # a toy head weighs little
        found = scoring.score_hip(volume, HIP, masks, min_head_area_mm2=min_area)
    expected = by_hand(volume, masks, min_area)
    if expected is None:
        assert found.reason is not None
        assert found.reason.code == "too_few_slices"
        assert found.unet_score is None
        return
    chosen, sums = expected
    assert found.reason is None
    assert [(item.slice_index, item.group.value) for item in found.slices] == [
        (z, name) for z, name, _ in chosen
    ]
    assert [item.ratio for item in found.slices] == pytest.approx([ratio for *_, ratio in chosen])
    assert found.unet_score == pytest.approx(sum(ratio for *_, ratio in chosen))
    assert found.bme_score == pytest.approx(sums["bme"])
    assert found.synovitis_score == pytest.approx(sums["synovitis"])
    assert found.mean_ratio == pytest.approx(sum(ratio for *_, ratio in chosen) / len(chosen))
    assert [item.source for item in found.slices] == [volume.sources[z] for z, *_ in chosen]


# --- which slices count ---------------------------------------------------------------------


def groups(area: list[float]) -> str:
    """One letter a slice: a, c, p, or a dot where it does not count."""
    letters = ["."] * len(area)
    for index, group in scoring.select_slices(area):
        letters[index] = group.value[0]
    return "".join(letters)


def test_five_central_five_anterior_five_posterior_slices() -> None:
    area = [500.0] * 30
    area[14] = 900.0
    assert groups(area) == "......." + "aaaaa" + "ccccc" + "ppppp" + "........"


def test_as_many_as_exist() -> None:
    assert groups([900.0, 500, 500, 500]) == "cccp"
    assert groups([500.0, 500, 500, 900]) == "accc"
    assert groups([]) == ""


def test_the_most_anterior_of_equal_sections_is_the_centre() -> None:
    area = [0.0, 300, 300, 300, 300, 0]
    assert groups(area) == ".cccp."


@pytest.mark.parametrize(("least", "counts"), ((99.9, "."), (100.0, "c")))
def test_the_smallest_section_that_counts(least: float, counts: str) -> None:
    assert groups([200.0, least])[1] == counts


def test_a_small_section_inside_the_range_is_left_out_and_not_replaced() -> None:
    area = [500.0] * 20
    area[10], area[9], area[4] = 900, 99, 99
    assert groups(area) == "..." + "a.aaa" + "c.ccc" + "ppppp" + ".."


def test_slices_are_reported_anterior_to_posterior() -> None:
    found = score(squares([20] * 15))
    assert [item.slice_index for item in found.slices] == sorted(
        item.slice_index for item in found.slices
    )


# --- what counts as lesion ------------------------------------------------------------------


def test_overlapping_bme_and_synovitis_count_once_and_the_head_counts_its_bme() -> None:
    head = squares([25] * 5)
    bme, synovitis = np.zeros_like(head), np.zeros_like(head)
    bme[:, :4, :5] = True  # 20 pixels
    synovitis[:, :4, 3:8] = True  # 20 pixels, 8 of them shared
    found = score(head, bme, synovitis)
    assert found.unet_score == pytest.approx(5 * 32 / 625)
    assert found.whole_volume_index == pytest.approx(32 / 625)
    assert found.bme_score == pytest.approx(5 * 20 / 625)
    assert found.synovitis_score == pytest.approx(5 * 20 / 625)


def test_bright_lesions_weigh_more_and_raise_the_head_they_lie_in() -> None:
    head = squares([25] * 5)
    bme = np.zeros_like(head)
    bme[:, :10, :10] = True
    voxels = np.where(bme, 300.0, 100.0)
    found = score(head, bme, voxels=voxels)
    assert found.unet_score == pytest.approx(5 * (100 * 300) / (100 * 300 + 525 * 100))


@given(scale=st.floats(1e-3, 1e4))
def test_the_score_does_not_depend_on_the_scale_of_the_signal(scale: float) -> None:
    rng = np.random.default_rng(5)
    head, bme = squares([20] * 6), squares([7] * 6)
    voxels = rng.uniform(50, 150, head.shape)
    first, second = score(head, bme, voxels=voxels), score(head, bme, voxels=voxels * scale)
    assert second.unet_score == pytest.approx(first.unet_score, rel=1e-5)


def test_a_clean_hip_scores_zero() -> None:
    found = score(squares([20] * 9))
    assert found.scored
    assert (found.unet_score, found.bme_score, found.synovitis_score) == (0.0, 0.0, 0.0)
    assert (found.effusion_mm, found.bme_ml, found.whole_volume_index) == (0.0, 0.0, 0.0)


def test_the_whole_volume_index_takes_every_slice() -> None:
    sides = [4, *([20] * 15), 4]  # the outermost sections are too small to be scored
    head, bme = squares(sides), squares([4, *([2] * 15), 4])
    found = score(head, bme)
    assert len(found.slices) == 8  # the first of equals is the centre: 8 slices on one side
    lesion, whole = 2 * 16 + 15 * 4, 2 * 16 + 15 * 400
    assert found.whole_volume_index == pytest.approx(lesion / whole)


# --- volumes and thickness ------------------------------------------------------------------


def test_a_sphere_has_its_volume_and_its_sections() -> None:
    spacing, radius = (2.0, 0.7, 0.7), 24.0
    z, y, x = np.meshgrid(*(np.arange(n) for n in (31, 81, 81)), indexing="ij")
    distance = np.sqrt(((z - 15) * 2.0) ** 2 + ((y - 40) * 0.7) ** 2 + ((x - 40) * 0.7) ** 2)
    head, bme = distance <= radius, distance <= 12.0
    masks = masks_of(head, bme, np.zeros_like(head))
    found = scoring.score_hip(volume_of(np.full(head.shape, 80.0), spacing), HIP, masks)
    assert found.femoral_head_ml == pytest.approx(4 / 3 * math.pi * 2.4**3, rel=0.01)
    assert found.bme_ml == pytest.approx(4 / 3 * math.pi * 1.2**3, rel=0.02)
    assert found.synovitis_ml == 0.0
    assert found.whole_volume_index == pytest.approx(1 / 8, rel=0.02)
    assert [item.slice_index for item in found.slices] == list(range(8, 23))
    for item in found.slices:
        off = (item.slice_index - 15) * 2.0
        assert item.head_mm2 == pytest.approx(math.pi * (radius**2 - off**2), rel=0.02)
        lesion = max(0.0, 12.0**2 - off**2)
        assert item.ratio == pytest.approx(lesion / (radius**2 - off**2), abs=0.01)
    assert found.unet_score == pytest.approx(
        sum(max(0.0, 144 - (2 * k) ** 2) / (576 - (2 * k) ** 2) for k in range(-7, 8)), rel=0.02
    )


@pytest.mark.parametrize("pixels", range(1, 8))
@pytest.mark.parametrize("spacing", ((1.0, 1.0), (0.5, 0.8)))
def test_the_thickness_of_a_strip_is_its_width(pixels: int, spacing: tuple[float, float]) -> None:
    mask = np.zeros((3, 60, 60), dtype=bool)
    mask[1, 10 : 10 + pixels, 5:50] = True
    assert scoring.effusion_thickness(mask, *spacing) == pytest.approx(pixels * spacing[0])
    turned = mask.swapaxes(1, 2)
    assert scoring.effusion_thickness(turned, *spacing) == pytest.approx(pixels * spacing[1])


def test_the_thickness_of_a_disc_is_its_diameter_and_slices_do_not_add_up() -> None:
    y, x = np.mgrid[:61, :61]
    disc = np.hypot(y - 30, x - 30) * 0.5 <= 10.0
    mask = np.stack([disc, disc, disc])
    assert scoring.effusion_thickness(mask, 0.5, 0.5) == pytest.approx(20.0, abs=0.6)
    assert scoring.effusion_thickness(np.zeros_like(mask), 0.5, 0.5) == 0.0


def test_effusion_that_fills_the_field_of_view_has_a_thickness() -> None:
    assert scoring.effusion_thickness(np.ones((1, 10, 30), dtype=bool), 1.0, 1.0) == 10.0


# --- hips that cannot be scored -------------------------------------------------------------


def declined(found: HipFindings) -> tuple[str, str]:
    """Reason of a hip without scores."""
    assert not found.scored
    assert found.reason is not None
    scores = (
        found.unet_score,
        found.bme_score,
        found.synovitis_score,
        found.mean_ratio,
        found.whole_volume_index,
    )
    assert scores == (None,) * 5
    assert found.slices == ()
    return found.reason.code, found.reason.text


def test_four_usable_slices_are_too_few() -> None:
    head = squares([30, 30, 30, 30, 5, 0])
    assert declined(score(head)) == (
        "too_few_slices",
        "right hip: 4 slices show at least 100 mm² of femoral head, 5 are needed",
    )
    assert score(squares([30, 30, 30, 30, 10, 0])).scored


def test_without_a_head_there_are_too_few_slices() -> None:
    code, text = declined(score(squares([0] * 10)))
    assert code == "too_few_slices"
    assert "0 slices" in text


@pytest.mark.parametrize("sides", ([12] * 9, [70] * 15))
def test_a_head_of_impossible_volume_is_implausible(sides: list[int]) -> None:
    code, text = declined(score(squares(sides, size=80)))
    assert code == "implausible_segmentation"
    assert f"{sum(side**2 for side in sides) * 5 / 1000:.1f} mL" in text


@pytest.mark.parametrize("value", (0.0, -5.0, math.nan))
def test_a_section_without_signal_is_implausible(value: float) -> None:
    head, bme = squares([20] * 9), squares([5] * 9)
    voxels = np.full(head.shape, 100.0)
    voxels[4] = value
    assert declined(score(head, bme, voxels=voxels))[0] == "implausible_segmentation"


def test_a_head_without_signal_as_a_whole_is_implausible() -> None:
    head = squares([9, *([20] * 9)])  # the first section is too small to be scored
    voxels = np.full(head.shape, 100.0)
    voxels[0] = -1e6
    assert declined(score(head, voxels=voxels))[0] == "implausible_segmentation"


def test_what_was_measured_is_reported_without_a_score_too() -> None:
    head = squares([30] * 4)
    found = score(head, squares([10] * 4), squares([3] * 4))
    assert declined(found)[0] == "too_few_slices"
    assert found.femoral_head_ml == pytest.approx(4 * 900 * 5 / 1000)
    assert found.bme_ml == pytest.approx(4 * 100 * 5 / 1000)
    assert found.synovitis_ml == pytest.approx(4 * 9 * 5 / 1000)
    assert found.effusion_mm == pytest.approx(3.0)


def test_effusion_around_a_ball_is_as_thick_as_it_is() -> None:
    z, y, x = np.ogrid[-10:11, -40:41, -40:41]
    distance = np.sqrt((5.0 * z) ** 2 + y**2 + x**2)  # 5 mm slices, 1 mm pixels
    head = distance <= 24.0
    found = score(head, synovitis=~head & (distance <= 30.0))
    assert found.effusion_mm == pytest.approx(6.0, rel=0.2)


def test_the_smallest_section_that_counts_can_be_chosen() -> None:
    head = squares([20] * 9)
    masks = masks_of(head, np.zeros_like(head), np.zeros_like(head))
    volume = volume_of(np.full(head.shape, 100.0))
    assert scoring.score_hip(volume, HIP, masks, min_head_area_mm2=400.0).scored
    found = scoring.score_hip(volume, HIP, masks, min_head_area_mm2=401.0)
    assert declined(found)[0] == "too_few_slices"


# --- the patient ----------------------------------------------------------------------------


def test_the_patients_score_is_the_sum_of_the_hips() -> None:
    right = score(squares([20] * 9), squares([5] * 9))
    left = replace(score(squares([20] * 7), squares([8] * 7)), hip=LEFT)
    assert right.unet_score is not None
    assert left.unet_score is not None
    found = scoring.combine([right, left])
    assert found.scored
    assert found.reason is None
    assert found.unet_score == pytest.approx(right.unet_score + left.unet_score)
    assert found.hips == (right, left)
    assert found.quality == ()


def test_totals_of_different_slice_counts_come_with_their_counts() -> None:
    many, few = score(squares([20] * 9)), score(squares([20] * 6))
    assert [len(hip.slices) for hip in scoring.combine([many, few]).hips] == [8, 6]


def test_one_hip_alone_is_scored_and_says_so() -> None:
    right = score(squares([20] * 9), squares([5] * 9))
    unusable = replace(score(squares([20] * 4)), hip=LEFT)
    for hips in ([right], [right, unusable], [unusable, right]):
        found = scoring.combine(hips)
        assert found.scored
        assert found.unet_score == right.unet_score
        assert [remark.code for remark in found.quality] == ["one_hip_only"]
        assert "right" in found.quality[0].text
        assert len(found.hips) == len(hips)


def test_without_any_hip_nothing_is_found() -> None:
    found = scoring.combine([])
    assert found.unet_score is None
    assert not found.scored
    assert found.reason == Remark(
        code="no_hip_found", text="no femoral head was found in this series with enough confidence"
    )


def test_two_hips_without_a_score_give_their_reasons() -> None:
    few = score(squares([20] * 4))
    strange = replace(score(squares([12] * 9)), hip=LEFT)
    found = scoring.combine([few, strange])
    assert found.unet_score is None
    assert found.reason is not None
    assert found.reason.code == "too_few_slices"
    assert "4 slices" in found.reason.text
    assert "mL" in found.reason.text


# --- plain numbers --------------------------------------------------------------------------


def _plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or type(value) in {int, float, str} or isinstance(value, Side | Group)


def test_every_number_is_a_plain_python_number() -> None:
    scored = score(squares([20] * 9), squares([5] * 9), squares([6] * 9))
    unscored = score(squares([20] * 4))
    for findings in (scoring.combine([scored, unscored]), scoring.combine([unscored])):
        assert _plain(asdict(findings))
        json.dumps(asdict(findings), allow_nan=False)


def test_the_order_of_channels_is_that_of_the_domain() -> None:
    assert list(Channel) == [Channel.FEMORAL_HEAD, Channel.BME, Channel.SYNOVITIS]
