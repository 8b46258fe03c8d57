"""What goes wrong in an image, measured on its pixels: noise, bright fat, voids, ghosts.

Nothing depends on the scale of the intensities, or on headers. Shapes as in
:mod:`hipscore.domain`. ``tissue`` is the 80th percentile of the signal around the hips: muscle
in STIR, fat in T1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from hipscore.arrays import Box, bounding_box, percentile
from hipscore.domain import BoolArray, FloatArray, Grid, Hip, Side, Volume

#: tissue is measured on squares of about this size, mm, in which noise averages out
_BLOCK_MM = 3.6
#: around a hip: radius in the plane and half thickness, mm
_REGION_MM = (80.0, 25.0)
#: thickness under the skin that is taken for fat, and the rows above and below the centre of
#: the head in which it is looked for, mm: the side of the hip, no waist and no thigh
_COAT_MM = 12.0
_COAT_ROWS_MM = (20.0, 60.0)
#: below this share of tissue lies air
_AIR = 0.15
#: less than this multiple of the noise's deviation, or this share of tissue, is no signal
_ABOVE_NOISE = 3.0
_NOTHING = 0.06
#: slices that the noise, and those that the ghosts, are measured on
_SLICES = 8
#: differences along each side of a square the noise is measured in, and the lower quartile of
#: the mean of that many squares of a standard normal deviate: chi-squared of 16, over 16
_NOISE_CELLS = 4
_NOISE_QUARTILE = 0.745
_GHOST_PIXEL_MM = 1.8
#: structure coarser than this (width of the Gaussian in space, mm) is no ghost's edge
_COARSE_MM = 20.0
#: half width of what a peak is compared with, mm
_PEAK_MM = 12.0
#: a nearer ghost cannot be told from the anatomy's own pattern, mm
_GHOST_LAG_MM = 30.0
#: fluid is held down to this multiple of the image's 75th percentile
_GHOST_CEILING = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Signal around the hips, in the image's units.

    ``noise`` is the deviation of the noise. ``dark`` and ``bright`` are the 10th and the
    99.8th percentile. ``coat`` is the median signal under the skin beside the hips, NaN
    where no skin and no lateral edge is in view.
    """

    noise: float
    tissue: float
    dark: float
    bright: float
    coat: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """The image's strongest repetition: how far away, and along which axis.

    ``strength`` is its height in the autocorrelation of the fine structure, relative to the
    lag of one pixel: it grows with the ghosts but is no share of the signal.
    """

    strength: float
    distance_mm: float
    axis: str


NO_REPETITION = Repetition(strength=0.0, distance_mm=0.0, axis="rows")


def survey(volume: Volume, located: Sequence[Hip]) -> Surroundings | None:
    """Measure what is around the located hips; None without a hip, or without signal."""
    grid = volume.grid
    noise = noise_level(volume.voxels[:: max(1, grid.shape[0] // _SLICES)])
    parts = [_blocks(volume.voxels[box(grid, hip, *_REGION_MM)], grid, noise) for hip in located]
    signals = np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0)
    if not signals.size:
        return None
    dark, tissue, bright = (float(v) for v in np.percentile(signals, (10.0, 80.0, 99.8)))
    if tissue <= 0:
        return None
    coats = [signal for hip in located for signal in _coat(volume, hip, noise, tissue)]
    coat = float(np.median(coats)) if coats else math.nan
    return Surroundings(noise=noise, tissue=tissue, dark=dark, bright=bright, coat=coat)


def noise_level(voxels: FloatArray) -> float:
    """Standard deviation of the noise in the tissue of slices ``(Z, Y, X)``.

    From the diagonal differences of neighbouring pixels (the finest Haar wavelet, Donoho &
    Johnstone, Biometrika 1994;81:425) in squares of 8 pixels, of which the smoother quarter
    counts: texture and edges are in the others. Images that were interpolated show less
    noise than they have.
    """
    even = voxels[:, : voxels.shape[1] // 2 * 2, : voxels.shape[2] // 2 * 2]
    a, b = even[:, ::2, ::2], even[:, ::2, 1::2]
    c, d = even[:, 1::2, ::2], even[:, 1::2, 1::2]
    detail = _means(np.square(a - b - c + d), _NOISE_CELLS) / 4
    level = _means(a + b + c + d, _NOISE_CELLS) / 4
    if not level.size:
        return 0.0
    tissue = level > 0.3 * np.percentile(level, 95)
    if not tissue.any():
        return 0.0
    return math.sqrt(float(np.percentile(detail[tissue], 25)) / _NOISE_QUARTILE)


def void_share(
    volume: Volume, hip: Hip, head: BoolArray, around: Surroundings, signal: float
) -> float:
    """Share of a head without signal: below ``signal`` times tissue, and hardly above the noise.

    Marrow whose fat is nulled well may be dark, but it is not nothing; a void is.
    Of the located ball (0.9 of its radius) or of the outline ``head`` ``(Z, Y, X)``, the larger:
    an outline may leave the void out.
    """
    grid = volume.grid
    region = box(grid, hip, hip.radius_mm, hip.radius_mm)
    factor = _factor(grid)
    smooth = ndimage.uniform_filter(volume.voxels[region] ** 2, (1, factor, factor))
    nothing = max(_ABOVE_NOISE * around.noise, _NOTHING * around.tissue)
    empty = smooth - 2 * around.noise**2 < min(signal * around.tissue, nothing) ** 2
    parts = (ball(grid, hip, region, 0.9), head[region])
    return max(float(empty[part].mean()) if part.any() else 0.0 for part in parts)


def bright_share(volume: Volume, hip: Hip, around: Surroundings, signal: float) -> float:
    """Share of the ball of 1.5 radii around a hip with more than ``signal`` times tissue."""
    region = box(volume.grid, hip, 1.5 * hip.radius_mm, 1.5 * hip.radius_mm)
    part = volume.voxels[region][ball(volume.grid, hip, region, 1.5)]
    return float((part > signal * around.tissue).mean()) if part.size else 0.0


def snr(volume: Volume, head: BoolArray, around: Surroundings) -> float:
    """Mean signal in the outline ``head`` ``(Z, Y, X)`` over the noise's deviation."""
    if around.noise <= 0 or not head.any():
        return math.inf
    part = bounding_box(head)
    return float(volume.voxels[part][head[part]].mean()) / around.noise


def _coat(volume: Volume, hip: Hip, noise: float, tissue: float) -> list[float]:
    """Signal under the skin beside one hip, a value per row where there is any.

    From the image's lateral edge, past the air: the first :data:`_COAT_MM`.
    """
    grid = volume.grid
    transposed = abs(grid.affine[0, 1]) > abs(grid.affine[0, 2])
    down, across = (2, 1) if transposed else (1, 2)
    step = grid.spacing_mm[down] * (-1.0 if grid.affine[2, down] > 0 else 1.0)
    middle = float(grid.to_index(hip.centre_mm)[down])
    above, below = _COAT_ROWS_MM
    first, last = sorted((middle - above / step, middle + below / step))
    region = list(box(grid, hip, max(grid.shape) * max(grid.spacing_mm), 15.0))
    region[down] = slice(max(0, round(first)), max(0, round(last)))
    blocks = _blocks(volume.voxels[tuple(region)], grid, noise)
    if not blocks.size:
        return []
    lines = blocks.swapaxes(1, 2) if transposed else blocks
    lines = lines.reshape(-1, lines.shape[2])
    right_first = bool(grid.affine[0, across] > 0)
    if right_first != (hip.side is Side.RIGHT):
        lines = lines[:, ::-1]
    depth = math.ceil(_COAT_MM / (_factor(grid) * grid.spacing_mm[across]))
    body = lines > _AIR * tissue
    result = []
    for line, inside in zip(lines, body, strict=True):
        start = int(np.argmax(inside)) + 1  # the outermost block is half skin, half air
        if inside.any() and start + depth <= line.size:
            result.append(float(line[start : start + depth].mean()))
    return result


def repetition(volume: Volume) -> Repetition:
    """Find the strongest repetition of the image along its rows or columns.

    Motion with a period copies the image along the phase-encoding direction (Wood & Henkelman,
    Med Phys 1985;12:143). The copies are narrow peaks of the autocorrelation, even where
    the body fills the field of view and leaves no air to see them in. Coarse anatomy is
    filtered out, and fluid held down, first.
    """
    grid = volume.grid
    count = grid.shape[0]
    middle = np.linspace(0.2 * (count - 1), 0.8 * (count - 1), min(_SLICES, count))
    factor = max(1, round(_GHOST_PIXEL_MM / grid.spacing_mm[1]))
    planes = _means(volume.voxels[np.unique(np.rint(middle).astype(int))], factor)
    reference = percentile(planes, 75) if planes.size else 0.0
    if reference <= 0:
        return NO_REPETITION
    planes = np.minimum(planes / np.float32(reference), np.float32(_GHOST_CEILING))
    down_mm, across_mm = (factor * step for step in grid.spacing_mm[1:])
    down = fft.fftfreq(planes.shape[1], down_mm)[:, None]
    across = fft.rfftfreq(planes.shape[2], across_mm)[None, :]
    fine = 1.0 - np.exp(-(_COARSE_MM**2) * (down**2 + across**2))
    power = (np.abs(fft.rfft2(planes)) ** 2).sum(axis=0) * fine**2
    correlation = fft.irfft2(power, planes.shape[1:])
    found = (
        _strongest(correlation[:, 0], down_mm, "columns"),
        _strongest(correlation[0], across_mm, "rows"),
    )
    return max(found, key=lambda item: item.strength)


def _strongest(correlation: FloatArray, step_mm: float, axis: str) -> Repetition:
    """Strongest narrow peak of a circular autocorrelation, relative to its first lag.

    Noise has part in lag 0 alone.
    """
    nearest = round(_GHOST_LAG_MM / step_mm)
    if correlation.size < 2 * nearest + 2 or correlation[1] <= 0:
        return NO_REPETITION
    width = 2 * round(_PEAK_MM / step_mm) + 1
    usual = ndimage.median_filter(correlation, width, mode="wrap")
    peaks = np.abs(correlation - usual)[: correlation.size // 2 + 1] / correlation[1]
    lag = nearest + int(np.argmax(peaks[nearest:]))
    return Repetition(strength=float(peaks[lag]), distance_mm=lag * step_mm, axis=axis)


def box(grid: Grid, hip: Hip, in_plane_mm: float, through_mm: float) -> Box:
    """Index box of this half size around a hip, clipped to the grid."""
    reach = (through_mm, in_plane_mm, in_plane_mm)
    parts = []
    for middle, far, step, size in zip(
        grid.to_index(hip.centre_mm), reach, grid.spacing_mm, grid.shape, strict=True
    ):
        low, high = math.ceil(middle - far / step), math.floor(middle + far / step) + 1
        parts.append(slice(min(max(low, 0), size), min(max(high, 0), size)))
    return parts[0], parts[1], parts[2]


def ball(grid: Grid, hip: Hip, region: Box, radii: float) -> BoolArray:
    """Voxels of an index box within so many radii of a hip's centre."""
    squares = [
        ((np.arange(piece.start, piece.stop) - middle) * step) ** 2
        for piece, middle, step in zip(
            region, grid.to_index(hip.centre_mm), grid.spacing_mm, strict=True
        )
    ]
    distance = squares[0][:, None, None] + squares[1][:, None] + squares[2]
    inside: BoolArray = distance <= (radii * hip.radius_mm) ** 2
    return inside


def _factor(grid: Grid) -> int:
    return max(1, round(_BLOCK_MM / grid.spacing_mm[1]))


def _blocks(voxels: FloatArray, grid: Grid, noise: float) -> FloatArray:
    """Root mean square of square blocks of slices, without what noise adds to it.

    The mean square of a Rician signal is that of the signal and twice the noise's
    (Gudbjartsson & Patz, Magn Reson Med 1995;34:910).
    """
    squares = _means(voxels * voxels, _factor(grid)) - np.float32(2 * noise**2)
    blocks: FloatArray = np.sqrt(np.maximum(squares, 0.0))
    return blocks


def _means(voxels: FloatArray, factor: int) -> FloatArray:
    """Means over squares of ``factor`` pixels; what is left over at the ends is dropped."""
    rows, columns = (size // factor * factor for size in voxels.shape[1:])
    even = voxels[:, :rows, :columns]
    # whole arrays added to each other: numpy's mean over short axes takes ten times as long
    total = np.zeros((voxels.shape[0], rows // factor, columns // factor), dtype=np.float32)
    for row in range(factor):
        line = even[:, row::factor, ::factor].copy()
        for column in range(1, factor):
            line += even[:, row::factor, column::factor]
        total += line
    total /= factor * factor
    return total
