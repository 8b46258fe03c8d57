"""Overlap, surface distances and volumes against what geometry says they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hipscore.domain import BoolArray
from hiptrain import metrics

SPACING = (4.0, 0.9, 0.9)


def ball(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    centre_mm: tuple[float, float, float],
    radius_mm: float,
) -> BoolArray:
    axes = [np.arange(size) * step for size, step in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    distance2 = sum((axis - middle) ** 2 for axis, middle in zip((z, y, x), centre_mm, strict=True))
    return np.asarray(distance2 <= radius_mm**2)


def test_dice_of_known_overlaps() -> None:
    first, second = np.zeros((2, 4, 4), dtype=bool), np.zeros((2, 4, 4), dtype=bool)
    assert metrics.dice(first, second) == 1.0
    first[0, :, :2] = True
    assert metrics.dice(first, second) == 0.0
    second[0, :2, :2] = True
    assert metrics.dice(first, second) == pytest.approx(2 * 4 / (8 + 4))


@pytest.mark.parametrize("shift", (2.0, 5.0))
def test_two_equal_spheres_a_shift_apart(shift: float) -> None:
    """Known exactly on a fine grid: Dice from the lens they share, distances on the surface.

    From a point of the sphere at polar angle t to the shift's axis, the distance to the other
    sphere is | |p - c| - R |; t is spread as sin t.
    """
    radius, step = 20.0, 0.5
    shape, middle = (96, 96, 110), 23.5
    spacing = (step, step, step)
    one = ball(shape, spacing, (middle, middle, middle), radius)
    other = ball(shape, spacing, (middle, middle, middle + shift), radius)
    lens = (4 * radius + shift) * (2 * radius - shift) ** 2 / 16
    expected_dice = lens / radius**3
    cosine = np.linspace(-1, 1, 20_001)
    away = np.abs(np.sqrt(radius**2 + shift**2 - 2 * radius * shift * cosine) - radius)
    got = metrics.surface_distances(one, other, spacing)
    assert got is not None
    # voxel centres lie up to half a voxel inside the sphere
    assert got.hd95_mm == pytest.approx(np.percentile(away, 95), abs=0.7 * step)
    assert got.mean_mm == pytest.approx(away.mean(), abs=0.5 * step)
    assert metrics.dice(one, other) == pytest.approx(expected_dice, abs=0.005)


@pytest.mark.parametrize("steps", ((1, 0, 0), (0, 3, 0), (0, 0, 2), (2, 0, 0)))
def test_a_block_moved_along_an_axis_is_away_by_that_many_mm(steps: tuple[int, int, int]) -> None:
    """The two faces across the axis are shifted, 4 mm a slice but 0.9 mm a pixel."""
    block = np.zeros((14, 30, 30), dtype=bool)
    block[4:8, 8:20, 8:20] = True
    moved = np.roll(block, steps, axis=(0, 1, 2))
    got = metrics.surface_distances(block, moved, SPACING)
    assert got is not None
    assert got.hd95_mm == pytest.approx(float(np.dot(steps, SPACING)))
    assert 0 < got.mean_mm < got.hd95_mm


def test_a_mask_is_no_distance_from_itself_and_all_voxels_of_a_thin_one_are_surface() -> None:
    thin = np.zeros((5, 9, 9), dtype=bool)
    thin[2, 2:7, 2:7] = True
    np.testing.assert_array_equal(metrics.surface(thin), thin)
    assert metrics.surface_distances(thin, thin, SPACING) == metrics.SurfaceDistances(
        hd95_mm=0.0, mean_mm=0.0
    )
    whole = np.ones((3, 3, 3), dtype=bool)
    assert metrics.surface(whole).sum() == 26


def test_one_far_speck_counts_in_the_directed_percentile() -> None:
    """Five of a hundred surface voxels 10 mm off: beyond the 95th percentile of one way."""
    row = np.zeros((1, 1, 130), dtype=bool)
    row[0, 0, :95] = True
    specked = row.copy()
    specked[0, 0, 104:110] = True
    got = metrics.surface_distances(row, specked, (1.0, 1.0, 1.0))
    assert got is not None
    assert got.hd95_mm > 9.0
    assert got.mean_mm == pytest.approx(sum(range(10, 16)) / 101 / 2)


def test_nothing_has_no_surface() -> None:
    full = ball((9, 30, 30), SPACING, (16.0, 13.0, 13.0), 8.0)
    assert metrics.surface_distances(full, np.zeros_like(full), SPACING) is None
    missed = metrics.overlap(full, np.zeros_like(full), SPACING)
    assert (missed.dice, missed.hd95_mm, missed.surface_mm) == (0.0, None, None)
    assert missed.relative_error == -1.0
    false = metrics.overlap(np.zeros_like(full), full, SPACING)
    assert false.dice is None
    assert false.relative_error is None
    assert false.error_ml == pytest.approx(full.sum() * 4.0 * 0.81 / 1000)


def test_volumes_are_millilitres() -> None:
    truth = np.zeros((10, 20, 20), dtype=bool)
    truth[:5] = True
    found = np.zeros_like(truth)
    found[:6] = True
    got = metrics.overlap(truth, found, (5.0, 2.0, 1.0))
    assert got.truth_ml == pytest.approx(20.0)
    assert got.error_ml == pytest.approx(4.0)
    assert got.relative_error == pytest.approx(0.2)
    assert got.shared_ml == pytest.approx(20.0)


def test_pooled_dice_is_that_of_all_voxels_as_one_mask() -> None:
    rng = np.random.default_rng(0)
    truths, found = rng.random((2, 3, 4, 9, 9)) < 0.3
    truths[1] = False
    parts = [metrics.overlap(t, f, SPACING) for t, f in zip(truths, found, strict=True)]
    assert metrics.pooled_dice(parts) == pytest.approx(metrics.dice(truths, found))
    assert metrics.pooled_dice([]) is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.02, 0.9))
def test_distances_are_those_of_all_pairs_and_the_same_both_ways(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.random((2, 3, 6, 6)) < share
    one[0, 0, 0] = other[2, 5, 5] = True
    points = [np.argwhere(metrics.surface(mask)) * SPACING for mask in (one, other)]
    apart = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    there, back = apart.min(axis=1), apart.min(axis=0)
    got = metrics.surface_distances(one, other, SPACING)
    assert got is not None
    assert got.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert got.mean_mm == pytest.approx((there.mean() + back.mean()) / 2)
    again = metrics.surface_distances(other, one, SPACING)
    assert again is not None
    assert (again.hd95_mm, again.mean_mm) == pytest.approx((got.hd95_mm, got.mean_mm))
