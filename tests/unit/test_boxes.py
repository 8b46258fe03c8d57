"""What is computed in a box, or with a few ranks, is what the whole grid would give."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn
from numpy.typing import NDArray
from scipy import ndimage

from hipscore import arrays, hips, pixels, quality, sampling, scoring
from hipscore.domain import (
    BoolArray,
    Channel,
    DoubleArray,
    FloatArray,
    Grid,
    Hip,
    Masks,
    PlaneSpec,
    Point,
    Side,
)
from tests.unit.test_hips import CARD, CROP, GRIDS, Painter, ball, grid_of, places, volume_on

pytestmark = pytest.mark.computes

FACE = ndimage.generate_binary_structure(3, 1)
#: small crops, so that heads and lesions reach their edges
SMALL = replace(CARD, segmenter=replace(CROP, rows=40, columns=56), margin_mm=0.0)

#: in the middle, at the sides of the field of view, at the ends of the stack, half outside
CENTRES: dict[str, Point] = {
    "inside": (-88.0, 4.0, -3.0),
    "lateral edge": (-146.0, 0.0, 0.0),
    "upper edge": (60.0, 0.0, 62.0),
    "first slices": (-80.0, -34.0, 5.0),
    "last slices in a corner": (148.0, 36.0, -66.0),
    "outside": (400.0, 0.0, 0.0),
    "before the stack": (-80.0, -200.0, 0.0),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
every_place = pytest.mark.parametrize("centre", CENTRES.values(), ids=CENTRES.keys())


def a_hip(centre: Point, side: Side = Side.LEFT) -> Hip:
    return Hip(side=side, centre_mm=centre, radius_mm=24.0, confidence=1.0)


# --- pictures there and back ----------------------------------------------------------------


def dense(coordinates: DoubleArray, size: int, step: float) -> DoubleArray:
    """Weights of the triangle filter by its definition, all of them."""
    width = max(1.0, step)
    weights = np.clip(1 - np.abs(coordinates[:, None] - np.arange(size)) / width, 0, None)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
    inside = (coordinates > -0.5 - 1e-6) & (coordinates < size - 0.5 + 1e-6)
    return np.where(inside[:, None], weights, 0.0)


@pytest.mark.parametrize("step", (0.3, 0.77, 1.0, 1.9, 4.0))
@pytest.mark.parametrize("start", (-31.37, -0.5, 0.0, 17.25, 90.0))
def test_sparse_weights_are_those_of_the_definition(step: float, start: float) -> None:
    coordinates = start + step * np.arange(60, dtype=np.float64)
    for each in (coordinates, coordinates[::-1]):
        found = sampling._weights(each, 64, step)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.toarray(), dense(each, 64, step), rtol=0, atol=1e-7)


@every_grid
@every_place
def test_pictures_are_products_with_all_weights(grid: Grid, centre: Point) -> None:
    rng = np.random.default_rng(5)
    voxels = rng.uniform(0, 1, grid.shape).astype(np.float32)
    crop = hips.frame(grid, a_hip(centre), CROP, 12.0)
    lie = crop.sampling
    stack = voxels[list(crop.slice_indices)]
    expected = (
        lie.rows.toarray().astype(np.float64)
        @ (stack.swapaxes(1, 2) if lie.transposed else stack)
        @ lie.columns.toarray().T
    )
    np.testing.assert_allclose(hips.sample(voxels, crop), expected, atol=1e-6)


@every_grid
@every_place
def test_what_comes_back_is_all_there_is(grid: Grid, centre: Point) -> None:
    crop = hips.frame(grid, a_hip(centre), CROP, 12.0)
    lie = crop.sampling
    shape = (len(crop.slice_indices), 2, CROP.rows, CROP.columns)
    pictures = np.random.default_rng(6).uniform(0, 1, shape).astype(np.float32)
    expected = np.zeros((2, *grid.shape))
    for z, picture in zip(crop.slice_indices, pictures, strict=True):
        whole = lie.back_rows.toarray() @ picture @ lie.back_columns.toarray().T
        expected[:, z] = whole.swapaxes(1, 2) if lie.transposed else whole
    np.testing.assert_allclose(hips.restore(pictures, crop), expected, atol=1e-6)


# --- masks ----------------------------------------------------------------------------------


def tidied_on_the_whole_grid(voxels: BoolArray, grid: Grid, hip: Hip) -> BoolArray:
    """:func:`hipscore.hips.tidy` without any short cut."""
    result = np.zeros_like(voxels)
    labels, count = ndimage.label(voxels[Channel.FEMORAL_HEAD], FACE)
    near = np.linalg.norm(places(grid) - np.array(hip.centre_mm), axis=-1) <= hip.radius_mm * 1.5
    sizes = np.bincount(labels[near & (labels > 0)], minlength=count + 1)[1:]
    if not sizes.any():
        return result
    head = labels == 1 + int(np.argmax(sizes))
    head = np.stack([ndimage.binary_fill_holes(section) for section in head])
    result[Channel.FEMORAL_HEAD] = head
    for channel, where in ((Channel.BME, head), (Channel.SYNOVITIS, ~head)):
        labels, count = ndimage.label(voxels[channel] & where, FACE)
        ml = np.bincount(labels.ravel(), minlength=count + 1) * grid.voxel_ml
        large = [label for label in range(1, count + 1) if ml[label] >= hips.MIN_LESION_ML]
        result[channel] = np.isin(labels, large)
    return result


def blobs(rng: np.random.Generator, shape: tuple[int, ...], coarse: float) -> FloatArray:
    """Probabilities with pieces, holes and specks of all sizes, up to the edges."""
    noise = rng.normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, (0.7, 0, coarse, coarse), mode="wrap")
    result: FloatArray = (0.5 + 0.4 * smooth / smooth.std()).astype(np.float32)
    return result


class Crops(Painter):
    """A painter of crops of any size."""

    def segment(self, crops: FloatArray) -> FloatArray:
        return self.answer(crops)


@every_grid
@pytest.mark.parametrize("place", [place for place in CENTRES if place != "before the stack"])
def test_a_segmented_hip_is_what_the_whole_grid_gives(grid: Grid, place: str) -> None:
    hip = a_hip(CENTRES[place], Side.RIGHT if CENTRES[place][0] < 0 else Side.LEFT)
    crop = hips.frame(grid, hip, SMALL.segmenter, SMALL.margin_mm)
    if not crop.slice_indices:  # an oblique stack ends before this corner
        assert place == "last slices in a corner"
        return
    rng = np.random.default_rng(len(crop.slice_indices))
    shape = (len(crop.slice_indices), 3, SMALL.segmenter.rows, SMALL.segmenter.columns)
    probability = blobs(rng, shape, 2.5)
    probability[:, Channel.FEMORAL_HEAD] += 0.3
    volume = volume_on(grid, np.ones(grid.shape))
    marked = hips.restore(probability, crop) > 0.5
    expected = tidied_on_the_whole_grid(marked, grid, hip)
    painted = hips.segment(volume, hip, Crops(SMALL, lambda _: probability))
    np.testing.assert_array_equal(painted.voxels, expected)
    np.testing.assert_array_equal(hips.tidy(marked, grid, hip), expected)


@pytest.mark.parametrize("seed", range(6))
def test_tidy_masks_up_to_all_edges_of_the_grid(seed: int) -> None:
    grid = grid_of(shape=(9, 40, 50), spacing=(4.0, 1.0, 1.0))
    rng = np.random.default_rng(seed)
    voxels = blobs(rng, (9, 3, 40, 50), 2.0).swapaxes(0, 1) > 0.45
    hip = replace(a_hip((0.0, 0.0, 0.0)), radius_mm=5.0 + 4 * seed)
    expected = tidied_on_the_whole_grid(voxels, grid, hip)
    assert expected.any()
    np.testing.assert_array_equal(hips.tidy(voxels, grid, hip), expected)


def test_a_bay_that_opens_at_the_edge_of_the_grid_is_no_hole() -> None:
    grid = grid_of(shape=(5, 30, 30), spacing=(4.0, 2.0, 2.0))
    voxels = np.zeros((3, *grid.shape), dtype=np.bool_)
    voxels[0, 1:4, 5:25, 0:20] = True
    voxels[0, 1:4, 12:15, 0:9] = False  # open to the left edge
    voxels[0, 1:4, 12:15, 11:14] = False  # closed
    found = hips.tidy(voxels, grid, a_hip((0.0, 0.0, 0.0)))[0]
    assert not found[2, 13, 4]
    assert found[2, 13, 12]


# --- scores and remarks ---------------------------------------------------------------------


def corner_masks(grid: Grid) -> tuple[Hip, Masks]:
    """A head in a corner of the grid, with lesions around it that touch the edges."""
    corner = grid.to_mm(np.array([3.0, 14.0, grid.shape[2] - 10.0]))
    hip = a_hip((float(corner[0]), float(corner[1]), float(corner[2])))
    head = ball(grid, hip.centre_mm, 24.0)
    around = ball(grid, hip.centre_mm, 29.0) & ~head
    edema = head & (np.random.default_rng(2).random(grid.shape) < 0.4)
    return hip, Masks(side=hip.side, voxels=np.stack([head, edema, around]))


@every_grid
def test_a_hip_in_a_corner_of_the_grid_scores_as_on_the_whole_grid(grid: Grid) -> None:
    image = np.random.default_rng(1).uniform(10, 900, grid.shape).astype(np.float32)
    hip, masks = corner_masks(grid)
    found = scoring.score_hip(volume_on(grid, image), hip, masks)
    head, edema, around = masks.voxels
    assert found.femoral_head_ml == head.sum() * grid.voxel_ml
    assert (found.bme_ml, found.synovitis_ml) == tuple(
        each.sum() * grid.voxel_ml for each in (edema, around)
    )
    areas = head.sum(axis=(1, 2)) * grid.pixel_mm2
    centre = int(np.argmax(areas))
    thickness = scoring.effusion_thickness(
        around[max(0, centre - 2) : centre + 3], *grid.spacing_mm[1:]
    )
    assert found.effusion_mm == thickness > 0
    assert found.scored == (len(scoring.select_slices(areas.tolist())) >= 5)
    for item in found.slices:
        z = item.slice_index
        signal = [float(image[z][mask[z]].sum(dtype=np.float64)) for mask in masks.voxels]
        total = float(image[z][(edema | around)[z]].sum(dtype=np.float64))
        assert (item.ratio, item.bme_ratio) == (total / signal[0], signal[1] / signal[0])
        assert (item.head_mm2, item.synovitis_mm2) == (areas[z], around[z].sum() * grid.pixel_mm2)
    if found.scored:
        sums = [float(image[m].sum(dtype=np.float64)) for m in (edema | around, head)]
        assert found.whole_volume_index == sums[0] / sums[1]


def lesion_at_border_of_the_whole_grid(grid: Grid, hip: Hip, masks: Masks) -> float:
    crop = hips.frame(grid, hip, CROP, CARD.margin_mm)
    border = np.zeros(grid.shape, dtype=np.bool_)
    stack = slice(crop.slice_indices[0], crop.slice_indices[-1] + 1)
    for axis, covered in enumerate((stack, *crop.sampling.window)):
        width = 1 if axis == 0 else max(1, round(quality.BORDER_MM / grid.spacing_mm[axis]))
        inside = np.arange(grid.shape[axis])[covered]
        lines = np.moveaxis(border, axis, 0)
        lines[inside[:width]] = True
        lines[inside[-width:]] = True
    border[[z for z in range(grid.shape[0]) if z not in crop.slice_indices]] = False
    lesion = masks.voxels[Channel.BME] | masks.voxels[Channel.SYNOVITIS]
    return float((lesion & border).sum() * grid.pixel_mm2)


@every_grid
@pytest.mark.parametrize("place", ("inside", "lateral edge", "upper edge", "first slices"))
def test_the_lesion_at_the_border_is_that_of_the_whole_grid(grid: Grid, place: str) -> None:
    hip = a_hip(CENTRES[place])
    rng = np.random.default_rng(8)
    voxels = rng.random((3, *grid.shape)) < 0.02
    voxels[:, :2] = voxels[:, :, :3] = False
    masks = Masks(side=hip.side, voxels=voxels)
    expected = lesion_at_border_of_the_whole_grid(grid, hip, masks)
    assert expected > 0
    assert quality.lesion_at_border(grid, hip, masks, CARD) == expected


def test_the_head_settles_in_a_corner_as_on_the_whole_grid() -> None:
    grid = grid_of()
    truth = a_hip((-130.0, 0.0, 45.0))
    head = ball(grid, truth.centre_mm, 24.0)
    voxels = np.stack([head, np.zeros_like(head), np.zeros_like(head)])
    near = replace(truth, centre_mm=(-129.0, 0.5, 45.5))
    found = hips.settled(near, Masks(side=near.side, voxels=voxels), grid)
    assert found.centre_mm == tuple(grid.to_mm(np.argwhere(head).mean(axis=0)).tolist())


# --- the tools ------------------------------------------------------------------------------

numbers = drawn.arrays(
    np.float32,
    drawn.array_shapes(min_dims=1, max_dims=3, max_side=12),
    elements=st.floats(-1e6, 1e6, width=32) | st.sampled_from((0.0, 1.0, 7.0)),
)


@settings(max_examples=200)
@given(values=numbers, percent=st.sampled_from((0.0, 25.0, 50.0, 75.0, 95.0, 99.8, 100.0)))
def test_percentile_and_median_are_those_of_numpy(values: FloatArray, percent: float) -> None:
    before = values.copy()
    assert arrays.percentile(values, percent) == float(np.percentile(values, percent))
    assert arrays.median(values) == float(np.median(values))
    np.testing.assert_array_equal(values, before)


def test_of_no_values_there_is_no_percentile() -> None:
    nothing = np.zeros(0, dtype=np.float32)
    assert math.isnan(arrays.percentile(nothing, 75))
    assert math.isnan(arrays.median(nothing))


@settings(max_examples=200)
@given(mask=drawn.arrays(np.bool_, drawn.array_shapes(min_dims=3, max_dims=4, max_side=6)))
def test_the_bounding_box_reaches_from_the_first_to_the_last_voxel(mask: BoolArray) -> None:
    index = np.argwhere(mask)[:, -3:]
    box = arrays.bounding_box(mask)
    if not len(index):
        assert mask[..., *box].size == 0
        return
    assert [piece.start for piece in box] == index.min(axis=0).tolist()
    assert [piece.stop - 1 for piece in box] == index.max(axis=0).tolist()


@pytest.mark.parametrize("dtype", (np.uint8, np.int16, np.uint16, np.int32, np.uint32))
@pytest.mark.parametrize(("slope", "intercept"), ((1.0, 0.0), (1.0, -3.5), (0.37, 0.0)))
def test_rescaling_is_the_formula_of_the_standard(
    dtype: type[np.integer], slope: float, intercept: float
) -> None:
    top = min(np.iinfo(dtype).max, 900_000_000)
    stored: NDArray[np.integer] = np.array([[0, 1, 7], [top - 1, top, 3]], dtype=dtype)
    expected = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    found = pixels.rescaled(stored, slope, intercept)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_a_spec_larger_than_the_image_covers_all_of_it() -> None:
    grid = grid_of(shape=(5, 20, 30))
    spec = PlaneSpec(rows=200, columns=200, pixel_mm=1.0, context=1)
    lie = sampling.lay(grid, spec, np.array([0.0, 9.5, 14.5]), mirrored=False)
    assert lie.window == (slice(0, 20), slice(0, 30))
