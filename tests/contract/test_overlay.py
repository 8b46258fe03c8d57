"""The contact sheet: the patient's right on the left, true shapes, outlines where masks are."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hipscore import scoring
from hipscore.domain import (
    Channel,
    DoubleArray,
    Findings,
    Grid,
    Hip,
    HipFindings,
    Masks,
    Remark,
    Side,
    SliceSource,
    Volume,
)
from hipscore.reporting import codes, png
from hipscore.reporting.overlay import TILES, render, thinned
from hipscore.reporting.picture import View, Window, draw

RADIUS = 22.0
CENTRES = {Side.RIGHT: (-80.0, 0.0, 0.0), Side.LEFT: (80.0, 0.0, 0.0)}


def canonical(rows: int = 90, columns: int = 150, dy: float = 3.0, dx: float = 2.0) -> Grid:
    """Coronal slices every 5 mm from the front; columns to the left, rows to the feet."""
    affine = np.eye(4)
    affine[:3, 0] = 0, 5, 0
    affine[:3, 1] = 0, 0, -dy
    affine[:3, 2] = dx, 0, 0
    affine[:3, 3] = -dx * (columns - 1) / 2, -60, dy * (rows - 1) / 2
    return Grid(shape=(25, rows, columns), affine=affine)


def positions(grid: Grid) -> DoubleArray:
    """(Z, Y, X, 3) LPS mm of the voxel centres."""
    return grid.to_mm(np.moveaxis(np.indices(grid.shape), 0, -1).astype(np.float64))


Scene = tuple[Volume, tuple[Masks, ...], Findings]


def scene(grid: Grid) -> Scene:
    """Two spherical heads; edema in the right one, an effusion below the left one."""
    mm = positions(grid)
    voxels = np.full(grid.shape, 100.0, dtype=np.float32)
    voxels[mm[..., 2] > 110] = 0.0  # air above
    voxels[mm[..., 0] < -120] = 900.0  # bright on the patient's right
    masks, hips = [], []
    for side, centre in CENTRES.items():
        offset = mm - centre
        distance = np.linalg.norm(offset, axis=-1)
        own = np.zeros((3, *grid.shape), dtype=bool)
        own[Channel.FEMORAL_HEAD] = distance < RADIUS
        if side is Side.RIGHT:
            own[Channel.BME] = np.linalg.norm(offset - (0, 0, 8), axis=-1) < 8
        else:
            below = offset[..., 2] < -8
            own[Channel.SYNOVITIS] = (distance >= RADIUS) & (distance < RADIUS + 6) & below
        voxels[own[Channel.BME]] = 220.0
        voxels[own[Channel.SYNOVITIS]] = 700.0
        masks.append(Masks(side=side, voxels=own))
        hips.append(Hip(side=side, centre_mm=centre, radius_mm=RADIUS, confidence=1.0))
    sources = tuple(
        SliceSource(sop_class_uid="1.2", sop_instance_uid=f"1.2.{z}", instance_number=z + 1)
        for z in range(grid.shape[0])
    )
    volume = Volume(voxels=voxels, grid=grid, sources=sources)
    findings = scoring.combine(
        [scoring.score_hip(volume, hip, item) for hip, item in zip(hips, masks, strict=True)]
    )
    return volume, tuple(masks), findings


def turned(grid: Grid, turn: Callable[[DoubleArray], DoubleArray], swap: bool) -> Grid:
    """The same place, scanned with rows or columns running the other way."""
    shape = (grid.shape[0], grid.shape[2], grid.shape[1]) if swap else grid.shape
    return Grid(shape=shape, affine=turn(grid.affine.copy()))


def _flip_columns(affine: DoubleArray) -> DoubleArray:
    affine[:3, 3] += affine[:3, 2] * (150 - 1)
    affine[:3, 2] *= -1
    return affine


def _flip_rows(affine: DoubleArray) -> DoubleArray:
    affine[:3, 3] += affine[:3, 1] * (90 - 1)
    affine[:3, 1] *= -1
    return affine


def _swap(affine: DoubleArray) -> DoubleArray:
    affine[:, [1, 2]] = affine[:, [2, 1]]
    return affine


def pixels(png: bytes) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)


def coloured(picture: NDArray[np.int16], channel: Channel) -> NDArray[np.bool_]:
    """Pixels of a structure's colour, blended or not."""
    rgb = np.array(codes.STRUCTURES[channel].rgb)
    near: NDArray[np.bool_] = np.abs(picture - rgb).sum(axis=-1) < 60
    return near


def head_tile(view: View, grid: Grid, size: int = 200) -> NDArray[np.int16]:
    """The central slice of the right hip, one tile wide 100 mm."""
    volume, masks, _ = scene(grid)
    z, y, x = grid.to_index(CENTRES[Side.RIGHT])
    tile = draw(
        volume.voxels[round(z)],
        [(codes.STRUCTURES[c].rgb, masks[0].voxels[c, round(z)]) for c in Channel],
        view=view,
        window=Window.of(volume.voxels),
        centre=(y, x),
        mm=100 / size,
        size=(size, size),
    )
    return np.asarray(tile).astype(np.int16)


@pytest.mark.computes
def test_is_a_png_with_the_given_size_and_the_same_bytes_every_time() -> None:
    volume, masks, findings = scene(canonical())
    png = render(volume, masks, findings, title="hipscore", subtitle="hip-unet 1")
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode) == ("PNG", "RGB")
    assert 1500 < image.width < 2400
    assert 500 < image.height < 1200
    assert png == render(volume, masks, findings, title="hipscore", subtitle="hip-unet 1")


@pytest.mark.computes
@pytest.mark.parametrize(
    ("turn", "swap"),
    ((_flip_columns, False), (_flip_rows, False), (_swap, True)),
    ids=["columns to the right", "rows to the head", "rows and columns exchanged"],
)
def test_the_picture_does_not_depend_on_how_the_source_images_run(
    turn: Callable[[DoubleArray], DoubleArray], swap: bool
) -> None:
    straight = pixels(render(*scene(canonical())))
    other = pixels(render(*scene(turned(canonical(), turn, swap))))
    assert straight.shape == other.shape
    assert np.mean(np.abs(straight - other).max(axis=-1) > 24) < 0.001


def test_the_patients_right_is_on_the_left_of_the_overview() -> None:
    picture = pixels(render(*scene(canonical())))
    overview = picture[100:460, 24:412].mean(axis=-1)
    assert overview[:, :60].max() > 200
    assert overview[100:200, -30:].mean() < 160
    lesion = np.flatnonzero(coloured(picture[100:460, 24:412], Channel.BME).any(axis=0))
    effusion = np.flatnonzero(coloured(picture[100:460, 24:412], Channel.SYNOVITIS).any(axis=0))
    assert lesion.max() < 180 < effusion.min()


def test_the_right_hip_is_the_upper_row_and_the_left_hip_the_lower() -> None:
    picture = pixels(render(*scene(canonical())))[82:, 430:]
    upper, lower = picture[40:480], picture[510:960]  # nine slices a hip: two lines
    assert coloured(upper, Channel.BME).sum() > 100
    assert coloured(lower, Channel.SYNOVITIS).sum() > 100
    tiles = np.concatenate([lower[40:200], lower[270:430]])  # without what is written below them
    assert coloured(tiles, Channel.BME).sum() == 0


def test_a_round_head_is_round_although_pixels_are_not_square() -> None:
    grid = canonical(dy=3.0, dx=2.0)
    edge = coloured(head_tile(View.canonical(grid), grid), Channel.FEMORAL_HEAD)
    height = np.ptp(np.flatnonzero(edge.any(axis=1))) + 1
    width = np.ptp(np.flatnonzero(edge.any(axis=0))) + 1
    # 44 mm at 2 pixels per mm, on voxels of 3 by 2 mm
    assert height == pytest.approx(88, abs=6)
    assert width == pytest.approx(88, abs=4)


def test_outlines_are_lines_and_not_fillings() -> None:
    grid = canonical()
    tile = head_tile(View.canonical(grid), grid)
    head = coloured(tile, Channel.FEMORAL_HEAD)
    assert head.sum() < 0.12 * np.pi * 44**2
    assert not head[110:130, 90:110].any()


def test_the_edema_is_drawn_where_it_is() -> None:
    grid = canonical()
    edge = coloured(head_tile(View.canonical(grid), grid), Channel.BME)
    rows, columns = np.nonzero(edge)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(100 - 16, abs=4)  # 8 mm above
    assert (columns.min() + columns.max()) / 2 == pytest.approx(100, abs=3)


def test_a_structure_without_a_voxel_has_no_outline() -> None:
    grid = canonical()
    assert not coloured(head_tile(View.canonical(grid), grid), Channel.SYNOVITIS).any()


@pytest.mark.parametrize("sides", ((Side.RIGHT,), (Side.LEFT,)))
def test_one_hip_gets_one_row(sides: tuple[Side, ...]) -> None:
    volume, masks, findings = scene(canonical())
    hips = [hip for hip in findings.hips if hip.hip.side in sides]
    kept = [item for item in masks if item.side in sides]
    picture = pixels(render(volume, kept, scoring.combine(hips)))
    assert coloured(picture[82:580, 430:], Channel.FEMORAL_HEAD).sum() > 500
    assert coloured(picture[590:, 430:], Channel.FEMORAL_HEAD).sum() == 0


def test_what_is_not_scorable_still_gets_a_sheet() -> None:
    volume, masks, findings = scene(canonical())
    reason = Remark(code="missing_slices", text="slices 3 to 7 are missing")
    declined = Findings(hips=(), reason=reason, unet_score=None)
    blank = pixels(render(None, (), declined))
    slices = pixels(render(volume, (), declined))
    full = pixels(render(volume, masks, findings))
    assert blank.shape == slices.shape
    assert full.shape[1] <= blank.shape[1]
    assert (blank.max(axis=-1) > 100).mean() < 0.02
    assert (slices[90:250, 430:].max(axis=-1) > 40).mean() > 0.5
    other = Findings(
        hips=(), reason=Remark(code="not_coronal", text="axial slices"), unet_score=None
    )
    assert not np.array_equal(blank, pixels(render(None, (), other)))


def test_a_located_hip_that_was_not_scored_is_shown() -> None:
    volume, masks, findings = scene(canonical())
    reason = Remark(code="too_few_slices", text="right hip: 3 slices")
    hip = HipFindings(hip=findings.hips[0].hip, reason=reason)
    empty = Findings(hips=(hip,), reason=reason, unet_score=None)
    assert coloured(pixels(render(volume, masks, empty))[82:300, 430:], Channel.BME).sum() > 100
    assert render(volume, (), empty)


def test_an_even_image_is_no_obstacle() -> None:
    volume, masks, findings = scene(canonical())
    flat = Volume(
        voxels=np.zeros(volume.grid.shape, dtype=np.float32),
        grid=volume.grid,
        sources=volume.sources,
    )
    assert render(flat, masks, findings)


def test_every_scored_slice_is_shown_with_its_number() -> None:
    volume, masks, findings = scene(canonical())
    right = findings.hips[0]
    assert len(right.slices) > TILES
    only = Findings(hips=(right,), reason=None, unet_score=right.unet_score)
    picture = pixels(render(volume, masks, only))[82:, 430:]
    lines = (picture[46:224], picture[46 + 222 : 224 + 222])
    tiles = [
        coloured(line[:, left : left + 178], Channel.FEMORAL_HEAD).sum() > 50
        for line in lines
        for left in range(8, 8 + 5 * 183, 183)
    ]
    assert sum(tiles) == len(right.slices)


def test_the_sheet_says_of_which_series_when_and_by_which_model_it_was_made() -> None:
    volume, masks, findings = scene(canonical())
    bare, told = (
        pixels(render(volume, masks, findings, subtitle=text)) for text in ("", "Study of 2024")
    )
    changed = np.argwhere(np.abs(bare - told).max(axis=-1) > 60)
    assert len(changed) > 50
    assert changed[:, 1].max() < 418  # in the column of the overview, over nothing


def test_slices_are_left_alone_as_long_as_they_fit() -> None:
    assert thinned([4, 5, 6, 7], [5]) == (4, 5, 6, 7)


def test_otherwise_the_central_and_the_worst_are_among_those_shown() -> None:
    wanted = list(range(3, 18))
    for must in ([10], [10, 4], [3, 17], [11, 11]):
        shown = thinned(wanted, must)
        assert len(shown) == TILES
        assert set(must) <= set(shown) <= set(wanted)
        assert list(shown) == sorted(shown)
    assert max(np.diff(thinned(wanted, [10]))) <= 3


@pytest.mark.parametrize("size", ((1, 1), (300, 1), (1, 40), (333, 77)))
def test_a_picture_is_in_its_png_to_the_pixel(size: tuple[int, int]) -> None:
    width, height = size
    made = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(png.encoded(Image.fromarray(made)))) as read:
        read.verify()  # the checksums of its chunks
    with Image.open(io.BytesIO(png.encoded(Image.fromarray(made)))) as read:
        assert (read.format, read.mode, read.size) == ("PNG", "RGB", size)
        assert np.array_equal(np.asarray(read), made)


@pytest.mark.parametrize("forward", (True, False))
def test_a_slice_is_where_its_coordinates_say_and_black_beyond_its_border(forward: bool) -> None:
    view = View(
        swapped=False,
        columns_forward=forward,
        rows_forward=True,
        letters=("R", "L"),
        pixel_mm=(1.0, 1.0),
    )
    columns = np.arange(40, dtype=np.float32)
    image = np.tile(columns, (30, 1)) + 100
    tile = np.asarray(
        draw(
            image,
            (),
            view=view,
            window=Window(low=0.0, high=255.0),
            centre=(15.0, 0.0),
            mm=0.25,
            size=(80, 40),
        )
    )[..., 0].astype(float)
    # the middle of the tile is the middle of column 0; four tile pixels are one column
    at = (np.arange(80) + 0.5 - 40) / 4 * (1 if forward else -1)
    beyond = at < -0.5
    assert beyond.sum() == 38
    assert (tile[:, beyond] == 0).all()
    inner = at > 2
    assert tile[:, inner] == pytest.approx(np.tile(at[inner] + 100, (40, 1)), abs=0.6)


def test_a_structure_that_the_tile_cuts_has_no_line_along_the_cut() -> None:
    grid = canonical()
    volume, masks, _ = scene(grid)
    z, y, x = grid.to_index(CENTRES[Side.RIGHT])
    tile = draw(
        np.zeros_like(volume.voxels[round(z)]),
        [((255, 255, 255), masks[0].voxels[Channel.FEMORAL_HEAD, round(z)])],
        view=View.canonical(grid),
        window=Window.of(volume.voxels),
        centre=(y, x + RADIUS / 2.0),  # its left half, and a little
        mm=0.5,
        size=(88, 200),
    )
    drawn = np.asarray(tile)[..., 0] > 128
    assert drawn.any()
    assert not drawn[80:120, 0].any()
    assert not drawn[80:120, 1].any()


def test_what_is_no_number_is_black() -> None:
    image = np.array([[np.nan, -5.0, 0.0, 5.0, 10.0, 99.0]], dtype=np.float32)
    assert Window(low=-10.0, high=10.0).apply(image).tolist() == [[0, 64, 128, 191, 255, 255]]


def test_the_window_is_that_of_the_percentiles() -> None:
    voxels = np.random.default_rng(1).gamma(2.0, 90.0, (9, 61, 47)).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    sample = voxels[:, ::4, ::4]
    sample = sample[np.isfinite(sample)]
    low, top = np.percentile(sample, (1.0, 99.7))
    middle = np.median(sample[sample > low + 0.08 * (top - low)])
    window = Window.of(voxels)
    assert window.low == pytest.approx(low, rel=1e-6)
    assert window.high == pytest.approx(min(top, low + 3.5 * (middle - low)), rel=1e-6)
