"""Another protocol for the same anatomy: positions, volumes and sides stay."""

from __future__ import annotations

import numpy as np
import pytest

from hipscore.domain import Hip, Masks
from hiptrain import anatomy, contrast
from hiptrain.acquire import Protocol, acquire, draw_protocol
from tests.models.t1 import CENTRES, RADIUS, hips, t1_volume


@pytest.fixture(scope="module")
def studied() -> anatomy.Anatomy:
    return anatomy.study(t1_volume(), hips())


@pytest.fixture(scope="module")
def masks(studied: anatomy.Anatomy) -> tuple[Masks, ...]:
    made = []
    for hip, head in zip(studied.hips, studied.heads, strict=True):
        voxels = np.zeros((3, *head.shape), dtype=np.bool_)
        voxels[0] = head
        made.append(Masks(side=hip.side, voxels=voxels))
    return tuple(made)


def test_the_head_follows_the_edge_of_the_marrow_not_the_given_sphere() -> None:
    """A sphere 2 mm too large and 1.5 mm off is corrected where the edge is visible."""
    volume = t1_volume()
    off = [
        Hip(
            side=hip.side,
            centre_mm=(hip.centre_mm[0] + 1.5, *hip.centre_mm[1:]),
            radius_mm=RADIUS + 2,
            confidence=1.0,
        )
        for hip in hips()
    ]
    truth = anatomy.study(volume, hips()).heads
    for corrected, given, real in zip(anatomy.study(volume, off).heads, off, truth, strict=True):
        distance = np.linalg.norm(anatomy.offsets(volume.grid, given.centre_mm), axis=-1)
        ball = distance < given.radius_mm

        def dice(mask: np.ndarray, real: np.ndarray = real) -> float:
            return float(2 * (mask & real).sum() / (mask.sum() + real.sum()))

        assert dice(corrected) > 0.93
        assert dice(corrected) > dice(ball) + 0.03


def test_depth_is_negative_inside_and_grows_outwards(studied: anatomy.Anatomy) -> None:
    hip, surface = studied.hips[0], studied.surfaces[0]
    line = np.array([[0, 0, z] for z in (0.0, 10.0, 20.0, 24.0, 40.0)], dtype=np.float32)
    depth = anatomy.depth(line, hip, surface)
    assert (np.diff(depth) > 0).all()
    assert depth[0] == pytest.approx(-RADIUS, abs=2)
    assert depth[2] < 0 < depth[3]


@pytest.mark.parametrize(
    "protocol",
    (
        Protocol(slice_mm=6.0),
        Protocol(slice_mm=3.5),
        Protocol(pixel_mm=1.4),
        Protocol(pixel_mm=2.9),
        Protocol(slice_mm=4.4, pixel_mm=1.7),
    ),
)
def test_another_grid_keeps_place_and_size_of_the_heads(
    studied: anatomy.Anatomy, masks: tuple[Masks, ...], protocol: Protocol
) -> None:
    volume, moved = acquire(studied.volume, masks, protocol, np.random.default_rng(3))
    slice_mm, *pixel = volume.grid.spacing_mm
    assert slice_mm == pytest.approx(protocol.slice_mm or 5.0)
    assert pixel == pytest.approx([protocol.pixel_mm or 2.0] * 2)
    assert volume.voxels.shape == volume.grid.shape
    for item in moved:
        found = anatomy.sphere_of(item, volume.grid)
        # slices 6 mm apart tell a centre no better
        assert np.linalg.norm(np.subtract(found.centre_mm, CENTRES[item.side])) < 2.0
        assert found.radius_mm == pytest.approx(RADIUS, abs=1.0)


def test_a_window_keeps_one_hip_and_its_position(
    studied: anatomy.Anatomy, masks: tuple[Masks, ...]
) -> None:
    protocol = Protocol(window=(1, 150.0, 130.0))
    volume, kept = acquire(studied.volume, masks, protocol, np.random.default_rng(0))
    (item,) = kept
    assert item.side is masks[1].side
    centre = anatomy.sphere_of(item, volume.grid).centre_mm
    assert np.linalg.norm(np.subtract(centre, CENTRES[item.side])) < 1.5
    _, rows, columns = volume.grid.shape
    assert rows * 2.0 == pytest.approx(150, abs=2)
    assert columns * 2.0 == pytest.approx(130, abs=2)


def test_no_wish_changes_nothing(studied: anatomy.Anatomy, masks: tuple[Masks, ...]) -> None:
    volume, kept = acquire(studied.volume, masks, Protocol(), np.random.default_rng(0))
    assert volume is studied.volume
    assert all(one is other for one, other in zip(kept, masks, strict=True))


def test_protocols_drawn_stay_within_what_sites_do() -> None:
    drawn = [draw_protocol(np.random.default_rng(seed), 2) for seed in range(200)]
    slices = [item.slice_mm for item in drawn if item.slice_mm is not None]
    assert 3.0 <= min(slices) < 4.0
    assert 6.0 < max(slices) <= 6.5
    assert {item.window[0] for item in drawn if item.window is not None} == {0, 1}


def test_ghosts_repeat_the_body_along_one_axis_only() -> None:
    image = np.zeros((2, 40, 60), dtype=np.float32)
    image[:, 18:22, 28:32] = 1.0
    ghosts = contrast.ghosted(image, np.random.default_rng(1), 0.2, rows=True) - image
    assert (ghosts[:, :, :28] == 0).all()
    assert (ghosts[:, :, 32:] == 0).all()
    assert ghosts[:, :, 30].max() == pytest.approx(0.2, abs=0.01)
    assert (ghosts[:, :18, 28:32] > 0.1).any()
    assert (ghosts[:, 22:, 28:32] > 0.1).any()


def test_a_rough_scanner_is_rougher_than_an_ordinary_one() -> None:
    rough = [contrast.draw_scanner(np.random.default_rng(seed), rough=True) for seed in range(300)]
    plain = [contrast.draw_scanner(np.random.default_rng(seed), rough=False) for seed in range(300)]
    assert max(item.noise for item in plain) < 0.2 < max(item.noise for item in rough)
    assert all(item.ghost == 0.0 and item.gamma == 1.0 for item in plain)
    assert any(item.ghost > 0.1 for item in rough)
