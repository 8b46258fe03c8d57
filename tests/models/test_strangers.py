"""Series without a hip: every kind can be drawn, is what it says, and has no head in it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hipscore.domain import Grid, Hip, Side, Volume
from hiptrain import strangers
from hiptrain.anatomy import Anatomy, part, study
from hiptrain.strangers import cuts, metal
from tests.models import t1

DRAWN = tuple(kind for kind in strangers.KINDS if kind not in strangers.REAL_KINDS)


@pytest.fixture(scope="module")
def pelvis() -> Anatomy:
    """The synthetic T1 pelvis, with room before, behind and below its heads."""
    volume = t1.t1_volume()
    wider = ((8, 8), (0, 40), (0, 0))
    voxels = np.pad(volume.voxels, wider, mode="edge")
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_mm((-8, 0, 0))
    z, y, x = voxels.shape
    grid = Grid(shape=(z, y, x), affine=affine)
    return study(Volume(voxels=voxels, grid=grid, sources=volume.sources[:1] * z), t1.hips())


def check_series(volume: Volume) -> None:
    """A coronal stack as the service assembles one."""
    slices, rows, columns = volume.grid.shape
    assert slices >= 6
    assert min(rows, columns) >= 24
    step, row_mm, column_mm = volume.grid.spacing_mm
    assert 2.5 < step < 7.5
    assert 0.3 < row_mm < 3.0
    assert row_mm == pytest.approx(column_mm)
    axes = volume.grid.affine[:3, :3] / (step, row_mm, column_mm)
    # slices from front to back, rows to the feet, columns to the patient's left
    np.testing.assert_allclose(axes, [[0, 0, 1], [1, 0, 0], [0, -1, 0]], atol=1e-6)
    assert volume.voxels.dtype == np.float32
    assert np.isfinite(volume.voxels).all()
    assert 0 <= volume.voxels.min() < volume.voxels.max() <= 4095
    assert len({source.sop_instance_uid for source in volume.sources}) == slices


@pytest.mark.parametrize("kind", DRAWN)
def test_a_drawn_kind_is_a_coronal_series_that_depends_on_its_seed_alone(kind: str) -> None:
    one = strangers.make(kind, np.random.default_rng(1))
    check_series(one)
    again = strangers.make(kind, np.random.default_rng(1))
    np.testing.assert_array_equal(one.voxels, again.voxels)
    np.testing.assert_array_equal(one.grid.affine, again.grid.affine)
    other = strangers.make(kind, np.random.default_rng(2))
    assert not np.array_equal(one.voxels, other.voxels)


@pytest.mark.parametrize("kind", strangers.REAL_KINDS)
def test_a_part_of_a_real_pelvis_is_a_coronal_series(kind: str, pelvis: Anatomy) -> None:
    check_series(strangers.make(kind, np.random.default_rng(3), anatomy=pelvis))


def test_a_part_with_a_head_in_it_is_not_used(pelvis: Anatomy) -> None:
    everything = (slice(0, 36), slice(0, 150), slice(0, 150))
    rng = np.random.default_rng(0)
    assert cuts._cut(pelvis, everything, cuts.MOST_LEFT, rng) is None
    below = (slice(0, 36), slice(90, 150), slice(0, 150))
    assert cuts._cut(pelvis, below, cuts.RIM_LEFT, rng) is not None


@pytest.mark.parametrize("name", tuple(cuts.CUTS))
def test_cuts_leave_little_of_a_head(name: str, pelvis: Anatomy) -> None:
    grid = pelvis.volume.grid
    for seed in range(20):
        frame = cuts.Frame(grid, pelvis.hips, np.random.default_rng(seed))
        window, most = cuts.CUTS[name](frame)
        assert most <= 0.2
        view = part(grid, window)
        for hip in pelvis.hips:
            assert cuts._left_of(hip, view) <= most + 0.02
            index = view.to_index(np.array(hip.centre_mm))
            assert not ((index >= 0) & (index <= np.array(view.shape) - 1)).all()


@pytest.mark.parametrize("depth", (0.3, 0.575, 1.0, 1.5))
def test_the_remains_of_a_head_are_those_of_a_cut_ball(depth: float) -> None:
    radius = 20.0
    hip = Hip(side=Side.LEFT, centre_mm=(0.0, 0.0, 0.0), radius_mm=radius, confidence=1.0)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, 1], [1, 0, 0], [0, -1, 0]]
    # the view ends where a cap of this height is left; pixels reach half a pixel out
    affine[:3, 3] = (radius - depth * radius + 0.5, -60, 60)
    grid = Grid(shape=(120, 120, 120), affine=affine)
    cap = depth**2 * (3 - depth) / 4
    assert cuts._left_of(hip, grid) == pytest.approx(cap, abs=0.04)


def test_a_prosthesis_leaves_no_signal_of_the_head(pelvis: Anatomy) -> None:
    volume, hip = pelvis.volume, pelvis.hips[0]
    voxels = np.ones(volume.grid.shape, dtype=np.float32)
    erased = metal.erase(voxels, volume.grid, hip, pelvis.necks[0], np.random.default_rng(0))
    assert erased[pelvis.heads[0]].max() < 0.1
    assert erased[pelvis.heads[1]].min() > 0.9


def test_two_bottles_lie_as_far_apart_as_two_hips() -> None:
    apart = []
    for seed in range(6):
        volume = strangers.make("bottles", np.random.default_rng(seed))
        smooth = ndimage.gaussian_filter(volume.voxels, (0.5, 2, 2))
        labels, count = ndimage.label(smooth > 0.4 * np.percentile(smooth, 99.8))
        sizes = ndimage.sum_labels(labels > 0, labels, np.arange(1, count + 1))
        big = 1 + np.flatnonzero(sizes > 0.3 * sizes.max())
        if len(big) == 2:
            places = ndimage.center_of_mass(labels > 0, labels, big)
            one, other = volume.grid.to_mm(np.array(places, dtype=np.float64))
            apart.append(float(np.linalg.norm(one - other)))
    assert len(apart) >= 2
    assert all(130 < distance < 290 for distance in apart)


def test_cases_name_their_kind_and_do_not_depend_on_the_count() -> None:
    many = strangers.cases(3, 11)
    few = strangers.cases(2, 11)
    assert [name for name, _ in many] == [f"{kind}-{n:04d}" for n, kind in enumerate(DRAWN[:3])]
    for (_, one), (_, other) in zip(few, many, strict=False):
        np.testing.assert_array_equal(one.voxels, other.voxels)
    name, volume = strangers.case(2, 11)
    assert name == many[2][0]
    np.testing.assert_array_equal(volume.voxels, many[2][1].voxels)


def test_all_kinds_come_in_turn_and_every_pelvis_is_used(pelvis: Anatomy) -> None:
    first = len(DRAWN)
    names = [
        strangers.case(number, 1, anatomies=(pelvis,))[0]
        for number in range(first, len(strangers.KINDS))
    ]
    assert [name.rsplit("-", 1)[0] for name in names] == list(strangers.REAL_KINDS)


def test_what_cannot_be_drawn_is_said() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="there is no kind 'tooth'"):
        strangers.make("tooth", rng)
    with pytest.raises(ValueError, match="real-front is cut from a real pelvis"):
        strangers.make("real-front", rng)
