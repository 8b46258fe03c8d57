"""From a volume to hips: where a picture's pixels lie, and what comes back from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from hipscore import hips
from hipscore.domain import (
    BoolArray,
    Channel,
    Engine,
    FloatArray,
    Grid,
    Hip,
    Masks,
    ModelCard,
    PlaneSpec,
    Point,
    Side,
    SliceSource,
    Volume,
)
from tests import stacks

pytestmark = pytest.mark.computes

ENGINE = Engine(provider="ball", precision="fp32", runtime="numpy", device="cpu")
LOCALISER = PlaneSpec(rows=56, columns=128, pixel_mm=2.5, context=3)
CROP = PlaneSpec(rows=96, columns=96, pixel_mm=1.0, context=3)
CARD = ModelCard(id="ball", version="1", sha256="0" * 64, localiser=LOCALISER, segmenter=CROP)
RIGHT = Hip(side=Side.RIGHT, centre_mm=(-88.0, 4.0, -3.0), radius_mm=24.0, confidence=1.0)
LEFT = Hip(side=Side.LEFT, centre_mm=(87.0, 3.0, 2.0), radius_mm=24.0, confidence=1.0)


def grid_of(
    along: Sequence[float] = (1, 0, 0),
    down: Sequence[float] = (0, 0, -1),
    *,
    tilt: tuple[float, float, float] = (0, 0, 0),
    spacing: tuple[float, float, float] = (4.0, 0.9, 0.9),
    shape: tuple[int, int, int] | None = None,
) -> Grid:
    """A coronal grid about the origin: row and column direction, turned by ``tilt`` degrees.

    Unless a shape is given, both hips are in view: 75 mm deep, 135 mm high, 300 mm wide.
    """
    if shape is None:
        high, wide = (135, 300) if along[2] == 0 else (300, 135)
        shape = (round(75 / spacing[0]), round(high / spacing[1]), round(wide / spacing[2]))
    turn = Rotation.from_euler("zyx", tilt, degrees=True).as_matrix()
    first, second = turn @ np.array(along, dtype=float), turn @ np.array(down, dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = stacks.normal_of([*first, *second]) * spacing[0]
    affine[:3, 1], affine[:3, 2] = second * spacing[1], first * spacing[2]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape=shape, affine=affine)


GRIDS = {
    "plain": grid_of(),
    "rows reversed": grid_of(down=(0, 0, 1)),
    "columns reversed": grid_of(along=(-1, 0, 0)),
    "both reversed": grid_of(along=(-1, 0, 0), down=(0, 0, 1)),
    "transposed": grid_of(along=(0, 0, -1), down=(1, 0, 0)),
    "transposed and reversed": grid_of(along=(0, 0, 1), down=(-1, 0, 0)),
    "oblique": grid_of(tilt=(6, 4, 15)),
    "oblique and transposed": grid_of(along=(0, 0, 1), down=(1, 0, 0), tilt=(-5, 3, -12)),
    "anisotropic": grid_of(spacing=(5.2, 0.7, 1.3)),
    "coarse": grid_of(spacing=(6.0, 1.6, 1.6)),
    "fine": grid_of(spacing=(2.5, 0.6, 0.6)),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
both_hips = pytest.mark.parametrize("hip", (RIGHT, LEFT), ids=("right", "left"))


def volume_on(grid: Grid, voxels: NDArray[np.generic]) -> Volume:
    sources = tuple(
        SliceSource(sop_class_uid="1.2", sop_instance_uid=f"1.2.{z}", instance_number=z + 1)
        for z in range(grid.shape[0])
    )
    return Volume(voxels=voxels.astype(np.float32), grid=grid, sources=sources)


def places(grid: Grid) -> NDArray[np.float64]:
    """Where the voxels lie, ``(Z, Y, X, 3)``."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return grid.to_mm(index.astype(np.float64))


def ball(grid: Grid, centre: Point, radius: float) -> BoolArray:
    """Voxels within ``radius`` mm of ``centre``."""
    mask = np.zeros(grid.shape, dtype=bool)
    reach, middle = radius / np.array(grid.spacing_mm) + 1, grid.to_index(centre)
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, grid.shape).astype(int)
    axes = [np.arange(first, last) for first, last in zip(low, high, strict=True)]
    index = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float64)
    box = tuple(slice(first, last) for first, last in zip(low, high, strict=True))
    mask[box] = np.linalg.norm(grid.to_mm(index) - np.array(centre), axis=-1) <= radius
    return mask


def dice(first: BoolArray, second: BoolArray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def centroid(mask: BoolArray, grid: Grid) -> NDArray[np.float64]:
    return grid.to_mm(np.argwhere(mask).mean(axis=0))


# --- pictures -------------------------------------------------------------------------------


@every_grid
def test_localiser_pictures_lie_where_their_affine_says(grid: Grid) -> None:
    volume = volume_on(grid, stacks.value_at(places(grid)))
    stack = hips.localiser_planes(volume, LOCALISER)
    assert stack.planes.shape == (grid.shape[0], 3, 56, 128)
    assert stack.planes.dtype == np.float32
    pictures = stack.sampling.pictures(volume.voxels)
    index = np.stack(np.meshgrid(*map(np.arange, pictures.shape), indexing="ij"), axis=-1)
    mm = index @ stack.affine[:3, :3].T + stack.affine[:3, 3]
    place = grid.to_index(mm)
    inside = ((place[..., 1:] > 4) & (place[..., 1:] < np.array(grid.shape[1:]) - 5)).all(axis=-1)
    assert inside.mean() > 0.5
    assert np.abs(pictures - stacks.value_at(mm))[inside].max() < 2.0


@every_grid
def test_pictures_are_in_radiological_view(grid: Grid) -> None:
    affine = hips.localiser_planes(volume_on(grid, np.ones(grid.shape)), LOCALISER).affine
    assert affine[2, 1] < -2.0  # rows to the feet
    assert affine[0, 2] > 2.0  # columns to the patient's left
    assert affine[1, 0] > 1.5  # slices to the back


def test_outside_of_the_slice_a_picture_is_zero() -> None:
    grid = grid_of(shape=(6, 100, 80))
    pictures = hips.localiser_planes(volume_on(grid, np.full(grid.shape, 7.0)), LOCALISER)
    seen = pictures.planes[0, 0] > 0
    height, width = 100 * 0.9 / 2.5, 80 * 0.9 / 2.5
    assert seen.any(axis=1).sum() == pytest.approx(height, abs=1)
    assert seen.any(axis=0).sum() == pytest.approx(width, abs=1)
    np.testing.assert_allclose(pictures.planes[0, 0][seen], math.log(2), rtol=1e-5)


@pytest.mark.parametrize(
    ("slice_mm", "context"),
    (
        (5.2, [(0, 0, 1), (0, 1, 2), (4, 5, 6), (5, 6, 6)]),
        (2.0, [(0, 0, 2), (0, 1, 3), (3, 5, 6), (4, 6, 6)]),
    ),
)
def test_context_planes_lie_about_four_millimetres_apart(
    slice_mm: float, context: list[tuple[int, ...]]
) -> None:
    grid = grid_of(spacing=(slice_mm, 1, 1), shape=(7, 16, 16))
    numbered = np.arange(1, 8)[:, None, None] * np.ones((1, 16, 16))
    stack = hips.localiser_planes(volume_on(grid, numbered), replace(LOCALISER, pixel_mm=1.0))
    middle = np.expm1(stack.planes[:, :, 28, 64]) * np.percentile(numbered, 75)
    found = np.rint(middle).astype(int) - 1
    assert [tuple(found[z]) for z in (0, 1, 5, 6)] == context


@settings(max_examples=20)
@given(scale=st.floats(1e-3, 1e5))
def test_networks_do_not_see_the_scale_of_the_signal(scale: float) -> None:
    rng = np.random.default_rng(3)
    grid = grid_of(shape=(7, 30, 40), spacing=(4, 4, 4))
    voxels = rng.uniform(0, 100, grid.shape)
    hip = replace(RIGHT, centre_mm=(0.0, 0.0, 0.0))
    crop = hips.frame(grid, hip, CROP, 10.0)
    first, second = (volume_on(grid, voxels * factor) for factor in (1.0, scale))
    np.testing.assert_allclose(
        hips.crops(first, crop), hips.crops(second, crop), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(
        hips.localiser_planes(first, LOCALISER).planes,
        hips.localiser_planes(second, LOCALISER).planes,
        rtol=1e-3,
        atol=1e-5,
    )


def test_normalised_values_are_compressed_and_bounded() -> None:
    values = np.array([-5.0, 0.0, 10.0, 60.0, 1e9], dtype=np.float32)
    found = hips.normalise(values, 10.0)
    np.testing.assert_allclose(found, [0, 0, math.log(2), math.log(7), math.log(21)], rtol=1e-6)
    assert found.dtype == np.float32
    assert np.isfinite(hips.normalise(values, 0.0)).all()


# --- crops there and back -------------------------------------------------------------------


@every_grid
@both_hips
def test_a_ball_survives_the_way_into_the_crop_and_back(grid: Grid, hip: Hip) -> None:
    mask = ball(grid, hip.centre_mm, 24.0)
    crop = hips.frame(grid, hip, CROP, 12.0)
    there = hips.sample(mask.astype(np.float32), crop)
    assert there.shape == (len(crop.slice_indices), 96, 96)
    back = hips.restore(there[:, None], crop)
    assert back.shape == (1, *grid.shape)
    assert back.dtype == np.float32
    found = back[0] > 0.5
    assert dice(found, mask) > 0.97
    np.testing.assert_allclose(centroid(found, grid), centroid(mask, grid), atol=0.3)


@every_grid
@both_hips
def test_the_crop_shows_the_hip_in_the_middle(grid: Grid, hip: Hip) -> None:
    there = hips.sample(
        ball(grid, hip.centre_mm, 24.0).astype(np.float32), hips.frame(grid, hip, CROP, 12.0)
    )
    rows, columns = (np.average(np.arange(96), weights=there.sum(axis=(0, a))) for a in (2, 1))
    assert (rows, columns) == pytest.approx((47.5, 47.5), abs=0.4)


@every_grid
@both_hips
def test_lateral_is_always_on_the_same_side_of_the_crop(grid: Grid, hip: Hip) -> None:
    lateral = -20.0 if hip.side is Side.RIGHT else 20.0
    x, y, z = hip.centre_mm
    mark = ball(grid, (x + lateral, y, z + 15.0), 6.0).astype(np.float32)
    there = hips.sample(mark, hips.frame(grid, hip, CROP, 12.0)).sum(axis=0)
    row, column = np.average(np.argwhere(there > 0), axis=0, weights=there[there > 0])
    assert column < 47.5 - 12.0
    assert row < 47.5 - 8.0


def test_mirror_images_give_the_same_crop() -> None:
    grid = grid_of()
    where = places(grid)
    across = np.abs(where[..., 0])
    voxels = 100 + across + 0.5 * where[..., 1] + 0.25 * where[..., 2]
    volume = volume_on(grid, voxels)
    right = replace(RIGHT, centre_mm=(-88.0, 4.0, -3.0))
    left = replace(LEFT, centre_mm=(88.0, 4.0, -3.0))
    first, second = (hips.crops(volume, hips.frame(grid, hip, CROP, 12.0)) for hip in (right, left))
    assert first.shape[1:] == (3, 96, 96)
    np.testing.assert_allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("margin", (0.0, 12.0, 1000.0))
def test_the_crop_stack_reaches_around_the_head(margin: float) -> None:
    grid = grid_of()
    crop = hips.frame(grid, RIGHT, CROP, margin)
    y = [grid.to_mm([z, 0, 0])[1] for z in range(grid.shape[0])]
    expected = [z for z in range(grid.shape[0]) if abs(y[z] - 4.0) <= 24.0 + margin]
    assert list(crop.slice_indices) == expected
    assert len(crop.context) == len(expected)


def test_a_hip_far_from_the_stack_has_an_empty_crop() -> None:
    grid = grid_of(shape=(10, 64, 64))
    crop = hips.frame(grid, replace(RIGHT, centre_mm=(0.0, 500.0, 0.0)), CROP, 12.0)
    assert crop.slice_indices == ()
    back = hips.restore(np.zeros((0, 3, 96, 96), dtype=np.float32), crop)
    assert back.shape == (3, 10, 64, 64)
    assert not back.any()


def test_nothing_comes_back_outside_of_the_crop() -> None:
    grid = grid_of()
    crop = hips.frame(grid, RIGHT, CROP, 0.0)
    ones = np.ones((len(crop.slice_indices), 3, 96, 96), dtype=np.float32)
    back = hips.restore(ones, crop)
    assert back.max() == pytest.approx(1.0)
    where = places(grid)[back[0] > 0.5] - np.array(RIGHT.centre_mm)
    assert np.abs(where[:, [0, 2]]).max() <= 48.5
    assert np.abs(where[:, 1]).max() <= 24.0


# --- locate ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ball:
    """A perfect localiser: it knows the heads, given as (side, centre, radius)."""

    volume: Volume
    heads: tuple[Hip, ...]
    card: ModelCard = CARD
    peak: float = 1.0
    engine: Engine = ENGINE

    def localise(self, planes: FloatArray) -> FloatArray:
        affine = hips.localiser_planes(self.volume, self.card.localiser).affine
        index = np.stack(
            np.meshgrid(*map(np.arange, (len(planes), *planes.shape[2:])), indexing="ij"), axis=-1
        )
        mm = index @ affine[:3, :3].T + affine[:3, 3]
        found = np.zeros((len(planes), 2, *planes.shape[2:]), dtype=np.float32)
        for head in self.heads:
            distance = np.linalg.norm(mm - np.array(head.centre_mm), axis=-1)
            probability = np.clip(0.5 + (head.radius_mm - distance) / 4.0, 0.0, 1.0) * self.peak
            channel = found[:, (Side.RIGHT, Side.LEFT).index(head.side)]
            np.maximum(channel, probability, out=channel)
        return found

    def segment(self, crops: FloatArray) -> FloatArray:
        raise AssertionError("the localiser alone is asked")


def located(
    grid: Grid,
    *heads: Hip,
    peak: float = 1.0,
    min_confidence: float = 0.1,
    localiser_threshold: float = 0.5,
) -> tuple[Hip, ...]:
    volume = volume_on(grid, np.ones(grid.shape))
    card = replace(CARD, min_confidence=min_confidence, localiser_threshold=localiser_threshold)
    return hips.locate(volume, Ball(volume, heads, card, peak))


@every_grid
def test_both_heads_are_found_where_they_are(grid: Grid) -> None:
    found = located(grid, RIGHT, LEFT)
    assert [hip.side for hip in found] == [Side.RIGHT, Side.LEFT]
    for hip, truth in zip(found, (RIGHT, LEFT), strict=True):
        assert math.dist(hip.centre_mm, truth.centre_mm) < 1.0
        assert hip.radius_mm == pytest.approx(truth.radius_mm, rel=0.05)
        assert hip.confidence > 0.8
        assert all(type(value) is float for value in (*hip.centre_mm, hip.radius_mm))


def test_one_head_is_found_alone() -> None:
    for head in (RIGHT, LEFT):
        (hip,) = located(GRIDS["plain"], head)
        assert hip.side is head.side


def test_nothing_is_found_where_there_is_nothing() -> None:
    assert located(GRIDS["plain"]) == ()
    assert located(GRIDS["plain"], RIGHT, peak=0.4) == ()


def test_the_bundle_says_what_is_a_head_and_how_sure_it_must_be() -> None:
    grid = GRIDS["coarse"]
    pair = (RIGHT, LEFT)
    assert len(located(grid, *pair, peak=0.4, localiser_threshold=0.3, min_confidence=0.3)) == 2
    assert located(grid, *pair, peak=0.4, localiser_threshold=0.3, min_confidence=0.5) == ()
    assert located(grid, RIGHT, peak=0.8, localiser_threshold=0.9, min_confidence=0.1) == ()
    (wide,), (narrow,) = (located(grid, RIGHT, localiser_threshold=t) for t in (0.05, 0.95))
    assert wide.radius_mm - narrow.radius_mm == pytest.approx(0.9 * 4.0, abs=1.0)


@pytest.mark.parametrize(
    ("radius", "alone", "paired"),
    ((10.0, 0, 0), (14.0, 0, 0), (16.3, 0, 2), (19.0, 1, 2), (36.0, 1, 2), (44.0, 0, 0)),
)
def test_only_balls_of_the_size_of_a_head_are_heads(radius: float, alone: int, paired: int) -> None:
    right, left = (replace(hip, radius_mm=radius) for hip in (RIGHT, LEFT))
    assert len(located(GRIDS["plain"], right)) == alone
    assert len(located(GRIDS["plain"], right, left)) == paired


def test_a_ball_that_is_alone_must_be_surer_than_one_of_a_pair() -> None:
    """Its confidence must be 70 % of the way from the limit to 1: nothing else vouches for it."""
    grid = GRIDS["plain"]
    (sure, _) = located(grid, RIGHT, LEFT, peak=0.9)
    limit = (sure.confidence - 0.7) / 0.3
    assert len(located(grid, RIGHT, peak=0.9, min_confidence=limit - 0.05)) == 1
    assert located(grid, RIGHT, peak=0.9, min_confidence=limit + 0.05) == ()
    assert len(located(grid, RIGHT, LEFT, peak=0.9, min_confidence=limit + 0.05)) == 2


def test_a_second_smaller_ball_is_left_out() -> None:
    stray = replace(RIGHT, centre_mm=(30.0, 0.0, 30.0), radius_mm=15.0)
    (hip,) = located(GRIDS["plain"], RIGHT, stray)
    assert math.dist(hip.centre_mm, RIGHT.centre_mm) < 1.0


def test_a_long_structure_is_no_head_where_a_ball_is_one() -> None:
    shaft = [replace(RIGHT, centre_mm=(10.0 * k - 88, 4.0, -3.0), radius_mm=14.0) for k in range(9)]
    assert len(located(GRIDS["plain"], RIGHT, min_confidence=0.0)) == 1
    assert located(GRIDS["plain"], *shaft, min_confidence=0.0) == ()


def test_two_heads_too_near_are_one() -> None:
    near = replace(LEFT, centre_mm=(-40.0, 4.0, -3.0))
    (hip,) = located(GRIDS["plain"], RIGHT, near)
    assert hip.side in Side


def test_a_pair_of_heads_is_worth_more_than_a_heavier_ball_without_a_partner() -> None:
    bladder = replace(RIGHT, centre_mm=(-10.0, 4.0, -3.0), radius_mm=34.0)
    right, left = located(GRIDS["plain"], bladder, RIGHT, LEFT)
    assert math.dist(right.centre_mm, RIGHT.centre_mm) < 1.0
    assert math.dist(left.centre_mm, LEFT.centre_mm) < 1.0


def test_of_two_heads_the_right_one_is_on_the_right_whatever_the_network_says() -> None:
    swapped = (replace(RIGHT, side=Side.LEFT), replace(LEFT, side=Side.RIGHT))
    for heads in (swapped, (RIGHT, replace(LEFT, side=Side.RIGHT))):
        right, left = located(GRIDS["plain"], *heads)
        assert (right.side, left.side) == (Side.RIGHT, Side.LEFT)
        assert math.dist(right.centre_mm, RIGHT.centre_mm) < 1.0
        assert math.dist(left.centre_mm, LEFT.centre_mm) < 1.0


# --- tidy -----------------------------------------------------------------------------------

GRID = grid_of(shape=(20, 120, 120), spacing=(4.0, 1.0, 1.0))
HEAD = replace(RIGHT, centre_mm=(0.0, 0.0, 0.0))


def tidied(**channels: BoolArray) -> dict[str, BoolArray]:
    """Tidy masks given by the names of their channels; the head is a ball unless given."""
    given = {"femoral_head": ball(GRID, HEAD.centre_mm, 24.0), **channels}
    voxels = np.stack(
        [given.get(channel.name.lower(), np.zeros(GRID.shape, dtype=bool)) for channel in Channel]
    )
    before = voxels.copy()
    found = hips.tidy(voxels, GRID, HEAD)
    np.testing.assert_array_equal(voxels, before)
    return {channel.name.lower(): found[channel] for channel in Channel}


def test_a_clean_head_stays_as_it_is() -> None:
    head = ball(GRID, HEAD.centre_mm, 24.0)
    np.testing.assert_array_equal(tidied()["femoral_head"], head)


def ball_masks(grid: Grid, hip: Hip) -> Masks:
    index = np.moveaxis(np.indices(grid.shape), 0, -1).astype(np.float64)
    distance = np.linalg.norm(grid.to_mm(index) - np.array(hip.centre_mm), axis=-1)
    voxels = np.zeros((3, *grid.shape), dtype=np.bool_)
    voxels[0] = distance < hip.radius_mm
    return Masks(side=hip.side, voxels=voxels)


def test_a_hip_settles_where_its_segmented_head_lies() -> None:
    grid = GRIDS["plain"]
    truth = ball_masks(grid, RIGHT)
    near = replace(RIGHT, centre_mm=(-91.0, 2.0, 0.0), radius_mm=25.0, confidence=0.9)
    settled = hips.settled(near, truth, grid)
    assert math.dist(settled.centre_mm, RIGHT.centre_mm) < 0.7
    assert settled.radius_mm == pytest.approx(RIGHT.radius_mm, abs=0.3)
    assert (settled.side, settled.confidence) == (Side.RIGHT, 0.9)


@pytest.mark.parametrize(
    "located",
    (
        replace(RIGHT, centre_mm=(-96.0, 4.0, -3.0)),
        replace(RIGHT, radius_mm=27.0),
        replace(RIGHT, radius_mm=21.0),
    ),
)
def test_a_mask_that_is_not_what_was_located_moves_nothing(located: Hip) -> None:
    grid = GRIDS["plain"]
    assert hips.settled(located, ball_masks(grid, RIGHT), grid) is located


def test_a_head_cut_by_the_stack_or_missing_moves_nothing() -> None:
    grid = GRIDS["plain"]
    cut = replace(RIGHT, centre_mm=(-88.0, -33.0, -3.0))
    assert hips.settled(cut, ball_masks(grid, cut), grid) is cut
    empty = Masks(side=Side.RIGHT, voxels=np.zeros((3, *grid.shape), dtype=np.bool_))
    assert hips.settled(RIGHT, empty, grid) is RIGHT


def test_the_head_is_one_piece_near_the_located_ball() -> None:
    head = ball(GRID, (0, 0, 0), 20.0)
    far = ball(GRID, (45, 0, 45), 14.0)
    np.testing.assert_array_equal(tidied(femoral_head=head | far)["femoral_head"], head)
    assert not tidied(femoral_head=far)["femoral_head"].any()


def test_a_larger_structure_that_begins_farther_away_is_not_the_head() -> None:
    head = ball(GRID, (0, 0, 0), 16.0)
    pelvis = np.zeros(GRID.shape, dtype=bool)
    pelvis[:, :30, :] = True
    np.testing.assert_array_equal(tidied(femoral_head=head | pelvis)["femoral_head"], head)


def test_holes_in_the_head_are_filled() -> None:
    head = ball(GRID, (0, 0, 0), 24.0)
    hollow = head & ~ball(GRID, (4, 0, 4), 9.0)
    np.testing.assert_array_equal(tidied(femoral_head=hollow)["femoral_head"], head)


def test_edema_lies_inside_the_head_and_synovitis_outside() -> None:
    around = ball(GRID, (24, 0, 0), 12.0)
    head = ball(GRID, (0, 0, 0), 24.0)
    found = tidied(bme=around, synovitis=around)
    np.testing.assert_array_equal(found["bme"], around & head)
    np.testing.assert_array_equal(found["synovitis"], around & ~head)


def test_speckle_is_dropped() -> None:
    speckle = np.zeros(GRID.shape, dtype=bool)
    speckle[10, 60, 60:67] = True  # 7 voxels of 4 mm³: less than 0.03 mL
    lesion = np.zeros(GRID.shape, dtype=bool)
    lesion[9, 50, 55:63] = True  # 8 voxels: more
    found = tidied(bme=speckle | lesion)["bme"]
    np.testing.assert_array_equal(found, lesion)


def test_without_a_head_there_is_no_lesion() -> None:
    lesion = ball(GRID, (0, 0, 0), 9.0)
    found = tidied(femoral_head=np.zeros(GRID.shape, dtype=bool), bme=lesion, synovitis=lesion)
    assert not any(mask.any() for mask in found.values())


# --- segment --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Painter:
    """A segmenter that marks what is bright in the middle plane of each crop."""

    card: ModelCard
    answer: Callable[[FloatArray], FloatArray]
    engine: Engine = ENGINE

    def localise(self, planes: FloatArray) -> FloatArray:
        raise AssertionError("the segmenter alone is asked")

    def segment(self, crops: FloatArray) -> FloatArray:
        assert crops.shape[1:] == (3, 96, 96)
        return self.answer(crops)


@every_grid
@both_hips
def test_what_the_network_marks_in_a_crop_is_a_mask_on_the_source_grid(
    grid: Grid, hip: Hip
) -> None:
    head, edema = ball(grid, hip.centre_mm, 24.0), ball(grid, hip.centre_mm, 10.0)
    volume = volume_on(grid, np.where(edema, 300.0, np.where(head, 100.0, 1.0)))
    crop = hips.frame(grid, hip, CROP, CARD.margin_mm)
    truth = np.stack(
        [hips.sample(m.astype(np.float32), crop) for m in (head, edema, np.zeros_like(head))],
        axis=1,
    )
    masks = hips.segment(volume, hip, Painter(CARD, lambda _: truth))
    assert masks.side is hip.side
    assert masks.voxels.shape == (3, *grid.shape)
    assert masks.voxels.dtype == np.bool_
    assert dice(masks.voxels[Channel.FEMORAL_HEAD], head) > 0.97
    assert dice(masks.voxels[Channel.BME], edema) > 0.95
    assert not masks.voxels[Channel.SYNOVITIS].any()


def test_each_channel_has_its_own_threshold() -> None:
    grid = GRIDS["plain"]
    card = replace(CARD, thresholds=(0.2, 0.5, 0.7))
    head = hips.sample(
        ball(grid, RIGHT.centre_mm, 24.0).astype(np.float32), hips.frame(grid, RIGHT, CROP, 12.0)
    )

    def answer(crops: FloatArray) -> FloatArray:
        ring = np.ones_like(head)
        return np.stack([head * 0.3, head * 0.45, ring * 0.75], axis=1)

    masks = hips.segment(volume_on(grid, np.ones(grid.shape)), RIGHT, Painter(card, answer))
    assert [bool(mask.any()) for mask in masks.voxels] == [True, False, True]
