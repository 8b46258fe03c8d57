"""Each corruption does what its name says, and keeps truth and image together."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from hipscore import phantom
from hipscore.domain import Channel, DoubleArray, FloatArray, Grid, Masks, Side, SliceSource, Volume
from hiptrain import corruptions
from hiptrain.anatomy import sphere_of

BACKGROUND = 200.0
INSIDE = 400.0


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    """Coronal: slices run back, rows to the feet, columns to the left; the middle is at 0."""
    affine = np.eye(4)
    dz, dy, dx = spacing
    affine[:3, :3] = [[0, 0, dx], [dz, 0, 0], [0, -dy, 0]]
    affine[:3, 3] = [
        -(shape[2] - 1) / 2 * dx,
        -(shape[0] - 1) / 2 * dz,
        (shape[1] - 1) / 2 * dy,
    ]
    return Grid(shape=shape, affine=affine)


def volume_of(voxels: FloatArray | DoubleArray, spacing: tuple[float, float, float]) -> Volume:
    return Volume(
        voxels=voxels.astype(np.float32),
        grid=grid(voxels.shape, spacing),
        sources=tuple(
            SliceSource(sop_class_uid="1.2", sop_instance_uid=f"1.2.{n}", instance_number=n)
            for n in range(len(voxels))
        ),
    )


SMALL = ((4.0, 2.0, 2.0), (16, 120, 180))
#: for what needs more than 256 columns
FINE = ((4.0, 1.25, 1.25), (16, 192, 288))


@cache
def scene(
    spacing: tuple[float, float, float] = SMALL[0], shape: tuple[int, int, int] = SMALL[1]
) -> tuple[Volume, tuple[Masks, ...]]:
    """Two bright balls in a noisy body: the heads, with a brighter corner and a fluid shell."""
    place = grid(shape, spacing)
    index = np.meshgrid(*map(np.arange, shape), indexing="ij")
    mm = place.to_mm(np.stack(index, axis=-1).astype(np.float64))
    voxels = np.full(shape, BACKGROUND, dtype=np.float32)
    masks = []
    for side, centre in ((Side.RIGHT, (-85.0, 0.0, 20.0)), (Side.LEFT, (85.0, 0.0, 10.0))):
        away = np.linalg.norm(mm - np.array(centre), axis=-1)
        head = away <= 24
        edema = head & (mm[..., 2] > centre[2] + 8)
        fluid = (away > 24) & (away <= 30) & (mm[..., 2] < centre[2])
        voxels[head] = INSIDE
        voxels[edema] = 600.0
        voxels[fluid] = 1000.0
        masks.append(Masks(side=side, voxels=np.stack([head, edema, fluid])))
    voxels += np.random.default_rng(0).normal(0, 5, shape)
    return volume_of(voxels, spacing), tuple(masks)


def apply(name: str, seed: int = 0) -> tuple[Volume, tuple[Masks, ...], Volume, tuple[Masks, ...]]:
    volume, masks = scene(*(FINE if name == "256 matrix" else SMALL))
    after = corruptions.CORRUPTIONS[name](volume, masks, np.random.default_rng(seed))
    return volume, masks, *after


def head_ml(masks: Masks, volume: Volume) -> float:
    return float(masks.voxels[Channel.FEMORAL_HEAD].sum() * volume.grid.voxel_ml)


def test_there_are_ten_with_the_weak_fat_suppression() -> None:
    assert len([*corruptions.CORRUPTIONS, corruptions.WEAK_FAT_NAME]) == 10
    assert corruptions.WEAK_FAT[0] > 0.5  # beyond what training calls suppressed


@pytest.mark.parametrize("name", list(corruptions.CORRUPTIONS))
@pytest.mark.parametrize("seed", range(2))
def test_truth_and_image_stay_together(name: str, seed: int) -> None:
    """Same head, same place in the patient, and bright where the truth says."""
    volume, masks, spoilt, kept = apply(name, seed)
    assert spoilt.voxels.dtype == np.float32
    assert spoilt.voxels.min() >= 0
    by_side = {item.side: item for item in masks}
    assert len(kept) == (1 if name == "one hip only" else 2)
    for item in kept:
        assert item.voxels.shape == (3, *spoilt.grid.shape)
        before = by_side[item.side]
        assert head_ml(item, spoilt) == pytest.approx(head_ml(before, volume), rel=0.03)
        was, now = sphere_of(before, volume.grid), sphere_of(item, spoilt.grid)
        if name != "rotation 15°":
            np.testing.assert_allclose(now.centre_mm, was.centre_mm, atol=0.8)
        head, edema, fluid = item.voxels
        assert not (edema & ~head).any()
        assert not (fluid & head).any()
        signal = [float(np.median(spoilt.voxels[part])) for part in (head & ~edema, edema, fluid)]
        assert signal == sorted(signal)
        assert signal[2] > 1.3 * signal[1] > 1.3 * signal[0]


@pytest.mark.parametrize("name", list(corruptions.CORRUPTIONS))
def test_the_same_seed_gives_the_same_and_the_original_is_left_alone(name: str) -> None:
    volume, _, spoilt, kept = apply(name, 3)
    before = volume.voxels.copy()
    *_, again, kept_again = apply(name, 3)
    np.testing.assert_array_equal(spoilt.voxels, again.voxels)
    for one, other in zip(kept, kept_again, strict=True):
        np.testing.assert_array_equal(one.voxels, other.voxels)
    np.testing.assert_array_equal(volume.voxels, before)
    assert not np.array_equal(spoilt.voxels, volume.voxels)


@pytest.mark.parametrize("sigma", (8.0, 20.0))
def test_the_noise_doubles(sigma: float) -> None:
    volume, masks = scene()
    signal = np.where(volume.voxels < 300, BACKGROUND, volume.voxels)
    pair = np.random.default_rng(1).normal(0, sigma, (2, *volume.grid.shape))
    noisy = volume_of(np.hypot(signal + pair[0], pair[1]), SMALL[0])
    assert corruptions.noise_level(noisy.voxels) == pytest.approx(sigma, rel=0.05)
    twice, _ = corruptions.noise(noisy, masks, np.random.default_rng(2))
    flat = twice.voxels[:, :20]
    assert flat.std() == pytest.approx(2 * sigma, rel=0.05)
    # Rician: the mean is a little above the signal
    assert flat.mean() == pytest.approx(np.sqrt(BACKGROUND**2 + (2 * sigma) ** 2), rel=0.02)


def test_the_noise_of_a_phantom_is_measured_in_spite_of_its_anatomy() -> None:
    made = phantom.synthesise(seed=3, rows=256, supersampling=1)
    level = corruptions.noise_level(made.volume.voxels)
    twice, masks = corruptions.noise(made.volume, made.masks, np.random.default_rng(0))
    assert masks == made.masks
    assert corruptions.noise_level(twice.voxels) == pytest.approx(2 * level, rel=0.15)


def test_shading_changes_the_gain_slowly_and_by_a_factor_of_four() -> None:
    volume, _, spoilt, _ = apply("shading")
    gain = spoilt.voxels / volume.voxels
    assert 4 < gain.max() / gain.min() < 8
    assert 0.9 < np.median(gain) < 1.1
    steps = np.abs(np.diff(np.log(gain), axis=2)).max(), np.abs(np.diff(np.log(gain), axis=1)).max()
    assert max(steps) < 0.02


def test_blur_spreads_an_edge_by_its_width_in_mm() -> None:
    step = np.zeros((2, 40, 60))
    step[:, :, 30:] = 100.0
    blurred, _ = corruptions.blur(volume_of(step, (4.0, 1.0, 0.5)), (), np.random.default_rng(0))
    profile = blurred.voxels[0, 20]
    slope = np.diff(profile) / 0.5
    # the derivative of a blurred edge is the Gaussian itself
    assert slope.max() == pytest.approx(100 / (corruptions.BLUR_MM * np.sqrt(2 * np.pi)), rel=0.05)


def test_ghosts_lie_a_quarter_of_the_field_of_view_away() -> None:
    dot = np.zeros((1, 64, 64))
    dot[0, 32, 32] = 100.0
    axes = set()
    for seed in range(6):
        ghosted, _ = corruptions.ghosting(
            volume_of(dot, (4.0, 1.0, 1.0)), (), np.random.default_rng(seed)
        )
        plane = ghosted.voxels[0]
        assert plane[32, 32] == pytest.approx(100.0, rel=1e-3)
        places = np.argwhere(plane > 1.0).tolist()
        along = 0 if plane[16, 32] > 1 else 1
        axes.add(along)
        wanted = [[16, 32], [32, 32], [48, 32]] if along == 0 else [[32, 16], [32, 32], [32, 48]]
        assert places == wanted
        assert plane[tuple(wanted[0])] == pytest.approx(100 * corruptions.GHOST, rel=1e-3)
    assert axes == {0, 1}


@pytest.mark.parametrize("seed", range(4))
def test_ghosts_add_here_and_cancel_there(seed: int) -> None:
    """Whatever is drawn, the image is visibly another."""
    volume, _, spoilt, _ = apply("ghosting", seed)
    change = spoilt.voxels / volume.voxels - 1
    assert np.percentile(change, 5) < -0.1
    assert np.percentile(change, 95) > 0.1


def test_gamma_bends_the_signal_and_keeps_its_order() -> None:
    ramp = np.linspace(0, 1000, 40_000).reshape(4, 100, 100)
    found = set()
    for seed in range(8):
        bent, _ = corruptions.gamma(
            volume_of(ramp, (4.0, 1.0, 1.0)), (), np.random.default_rng(seed)
        )
        values = bent.voxels.ravel()
        assert (np.diff(values) >= 0).all()
        bright = np.percentile(ramp, 99)
        middle = float(values[np.argmin(np.abs(ramp.ravel() - bright / 2))] / bright)
        found.add(round(float(np.log(middle) / np.log(0.5)), 2))
    assert found == set(corruptions.GAMMAS)


def test_thick_slices_are_averages_over_six_millimetres() -> None:
    volume, _, thick, _ = apply("6 mm slices")
    assert thick.grid.spacing_mm == pytest.approx((6.0, *SMALL[0][1:]))
    assert thick.grid.shape == (10, *SMALL[1][1:])  # 64 mm hold ten slices of 6 mm
    mean = thick.voxels.mean()
    covered = np.full(16, 4.0)
    covered[[0, -1]] = 2.0
    plane = volume.voxels.mean(axis=(1, 2))
    assert mean == pytest.approx(float(covered @ plane / 60), rel=1e-4)
    first = (2 * volume.voxels[0] + 4 * volume.voxels[1]) / 6
    np.testing.assert_allclose(thick.voxels[0], first, rtol=1e-5)
    # its middle lies 2 + 3 mm behind the front face
    front = volume.grid.to_mm((-0.5, 0.0, 0.0))[1]
    assert thick.grid.to_mm((0.0, 0.0, 0.0))[1] - front == pytest.approx(5.0)
    assert len(thick.sources) == 10


def test_slices_thicker_than_six_millimetres_stay() -> None:
    volume, masks = scene((7.0, 2.0, 2.0), (9, 120, 180))
    same, kept = corruptions.thick_slices(volume, masks, np.random.default_rng(0))
    assert same is volume
    assert kept == masks


def test_a_small_matrix_shows_the_same_field_of_view() -> None:
    volume, _, small, _ = apply("256 matrix")
    assert small.grid.shape == (16, round(192 * 256 / 288), 256)
    old, new = (
        np.array(each.shape[1:]) * each.spacing_mm[1:] for each in (volume.grid, small.grid)
    )
    np.testing.assert_allclose(new, old)
    assert small.voxels.mean() == pytest.approx(volume.voxels.mean(), rel=1e-3)
    tiny, masks = scene((4.0, 1.5, 1.5), (9, 180, 256))
    assert corruptions.small_matrix(tiny, masks, np.random.default_rng(0))[0] is tiny


def test_noise_is_averaged_in_a_small_matrix() -> None:
    noise = np.random.default_rng(0).normal(500, 10, (4, 384, 384))
    small, _ = corruptions.small_matrix(
        volume_of(noise, (4.0, 1.0, 1.0)), (), np.random.default_rng(0)
    )
    assert small.voxels.std() == pytest.approx(10 * 256 / 384, rel=0.03)


def test_rotation_turns_the_line_of_the_heads_by_fifteen_degrees() -> None:
    turned = set()
    for seed in range(5):
        volume, masks, spoilt, kept = apply("rotation 15°", seed)
        lines = []
        for items, place in ((masks, volume.grid), (kept, spoilt.grid)):
            right, left = (np.array(sphere_of(item, place).centre_mm) for item in items)
            lines.append(np.degrees(np.arctan2(left[2] - right[2], left[0] - right[0])))
        turned.add(round(float(lines[1] - lines[0]), 0))
        assert spoilt.grid == volume.grid
    assert turned == {-15.0, 15.0}


def test_one_hip_only_shows_no_other() -> None:
    sides = set()
    for seed in range(6):
        volume, masks, cut, kept = apply("one hip only", seed)
        (item,) = kept
        sides.add(item.side)
        _, height, width = np.array(cut.grid.shape) * cut.grid.spacing_mm
        assert max(height, width) <= corruptions.ONE_HIP_MM + 4
        other = next(each for each in masks if each.side is not item.side)
        at = cut.grid.to_index(sphere_of(other, volume.grid).centre_mm)
        assert not 0 <= at[2] < cut.grid.shape[2]
        assert cut.sources == volume.sources
    assert sides == set(Side)
