"""Slices as a radiologist sees them, with outlines: the tiles of the contact sheet.

Shape legend: ``(Y, X)`` source rows and columns, ``(V, U)`` rows and columns of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

from hipscore.domain import BoolArray, Channel, FloatArray, Grid
from hipscore.reporting import codes

BACKGROUND = (12, 12, 14)
TEXT = (235, 235, 235)
DIM = (160, 160, 165)
WARNING = (255, 196, 64)

_OVERSAMPLING = 3  # outlines are found on a finer raster, then averaged: smooth lines
#: width of an outline there
LINE = 5
THIN = 4
#: beyond the mask and beyond the tile an outline is looked for, pixels; more than it is wide
_BLEED = 3

_Pixel = TypeVar("_Pixel", np.float32, np.bool_)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The letters of all pictures; they have the default repertoire (:func:`codes.plain`)."""
    return ImageFont.load_default(size)


def outlines(masks: BoolArray | None, z: int) -> dict[tuple[int, int, int], BoolArray]:
    """Colour to mask ``(Y, X)`` of the structures ``(K, Z, Y, X)`` on one slice."""
    if masks is None:
        return {}
    return {codes.STRUCTURES[channel].rgb: masks[channel, z] for channel in Channel}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which way source rows and columns run on screen: flips and a swap, no rotation.

    The patient's right is on the left of the picture and the head is up (or, where a
    slice is not coronal, the front is up or to the left). ``letters`` name the left and
    the right border of the picture (PS3.3 C.7.6.1.1.1).
    """

    swapped: bool
    columns_forward: bool
    rows_forward: bool
    letters: tuple[str, str]
    pixel_mm: tuple[float, float]

    @classmethod
    def canonical(cls, grid: Grid) -> View:
        """The view for slices of this grid."""
        _, dy, dx = grid.spacing_mm
        column, row = grid.affine[:3, 2], grid.affine[:3, 1]
        main = [int(np.argmax(np.abs(vector))) for vector in (column, row)]
        # x runs across the screen unless the slice is sagittal; then y does
        across = 0 if 0 in main else 1
        swapped = main[1] == across
        u, v = (row, column) if swapped else (column, row)
        down = v[2] < 0 if main[0 if swapped else 1] == 2 else v[1] > 0
        return cls(
            swapped=swapped,
            columns_forward=bool(u[across] > 0),
            rows_forward=bool(down),
            letters=("A", "P") if across else ("R", "L"),
            pixel_mm=(dy, dx),
        )

    def coefficients(
        self, centre: tuple[float, float], mm: float, size: tuple[int, int]
    ) -> tuple[float, float, float, float, float, float]:
        """Pillow's affine from tile to source pixels.

        Parameters
        ----------
        centre
            (row, column) index of the source point in the middle of the tile.
        mm
            Size of a tile pixel.
        size
            (width, height) of the tile, pixels.
        """
        dy, dx = self.pixel_mm
        row, column = centre[0] + 0.5, centre[1] + 0.5  # Pillow counts from pixel edges
        u, v = (1 if self.columns_forward else -1), (1 if self.rows_forward else -1)
        half_u, half_v = size[0] / 2, size[1] / 2
        if self.swapped:
            a, b, d, e = 0.0, v * mm / dx, u * mm / dy, 0.0
        else:
            a, b, d, e = u * mm / dx, 0.0, 0.0, v * mm / dy
        return (
            a,
            b,
            column - a * half_u - b * half_v,
            d,
            e,
            row - d * half_u - e * half_v,
        )

    def axes(
        self, centre: tuple[float, float], mm: float, size: tuple[int, int]
    ) -> tuple[Axis, Axis]:
        """The axes of a tile, across and down. Arguments as for :meth:`coefficients`."""
        a, b, c, d, e, f = self.coefficients(centre, mm, size)
        return (Axis(d, f), Axis(b, c)) if self.swapped else (Axis(a, c), Axis(e, f))


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Stored values shown as black and white (PS3.3 C.11.2)."""

    low: float
    high: float

    @classmethod
    def of(cls, voxels: FloatArray) -> Window:
        """A window for STIR ``(Z, Y, X)``.

        Fluid is five to seven times as bright as tissue and would leave the marrow black;
        it may saturate, so that edema shows.
        """
        sample = voxels[:, ::4, ::4]
        ordered = np.sort(sample[np.isfinite(sample)])  # once, for all three
        if ordered.size == 0:
            return cls(low=0.0, high=1.0)
        low, top = _percentile(ordered, 1.0), _percentile(ordered, 99.7)
        dark = ordered.dtype.type(low + 0.08 * (top - low))
        body = ordered[np.searchsorted(ordered, dark, side="right") :]
        middle = _percentile(body, 50.0) if body.size else top
        high = min(top, low + 3.5 * (middle - low))
        return cls(low=low, high=high if high > low else low + 1.0)

    def apply(self, image: FloatArray) -> NDArray[np.uint8]:
        """Grey values 0 to 255 of an image ``(Y, X)``; what is no number is black."""
        scaled = np.subtract(image, self.low)
        scaled /= self.high - self.low
        np.fmin(np.fmax(scaled, 0.0, out=scaled), 1.0, out=scaled)
        scaled *= 255
        scaled += 0.5
        return scaled.astype(np.uint8)


def _percentile(ordered: FloatArray, percent: float) -> float:
    """Percentile of values in rising order; between two of them in proportion."""
    place = (ordered.size - 1) * percent / 100
    below, above = math.floor(place), math.ceil(place)
    share = place - below
    return float(ordered[below]) * (1 - share) + float(ordered[above]) * share


def draw(
    image: FloatArray,
    outlines: Iterable[tuple[tuple[int, int, int], BoolArray]],
    *,
    view: View,
    window: Window,
    centre: tuple[float, float],
    mm: float,
    size: tuple[int, int],
    line: int = LINE,
) -> Image.Image:
    """Draw one tile.

    Parameters
    ----------
    image
        ``(Y, X)`` stored values.
    outlines
        Colour and mask ``(Y, X)``; drawn in order, the last on top.
    view, window
        How to show it.
    centre, mm, size
        See :meth:`View.coefficients`.
    line
        Width of the outlines, third pixels.

    Returns
    -------
    PIL.Image.Image
        RGB, ``size``.
    """
    across, down = view.axes(centre, mm, size)
    axes = (
        across.forward(image.shape[0 if view.swapped else 1]),
        down.forward(image.shape[1 if view.swapped else 0]),
    )

    def turned(source: NDArray[_Pixel]) -> NDArray[_Pixel]:
        upright = source.T if view.swapped else source
        return upright[:: 1 if down.step > 0 else -1, :: 1 if across.step > 0 else -1]

    tile = _grey(turned(image), axes, size, window).convert("RGB")
    for colour, mask in outlines:
        outline = _outline(turned(mask), axes, size, line)
        if outline is not None:
            place, opacity = outline
            tile.paste(colour, place, opacity)
    return tile


@dataclass(frozen=True, slots=True)
class _Part:
    """What the pixels ``start`` to ``stop`` of a tile show of their source, along one axis.

    ``indices`` are those of the source, with some to spare that may lie beyond it; ``low`` and
    ``high`` say where in them the first pixel begins and the last one ends.
    """

    start: int
    stop: int
    indices: NDArray[np.intp]
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a tile: its pixel edge ``t`` lies on the source's ``step * t + offset``."""

    step: float
    offset: float

    def place(self, index: float) -> float:
        """Where on the tile the middle of a source pixel lies."""
        return (index + 0.5 - self.offset) / self.step

    def forward(self, length: int) -> Axis:
        """The axis on a source of this length that is turned round if the axis runs backwards."""
        return self if self.step > 0 else Axis(-self.step, length - self.offset)

    def part(self, start: int, stop: int, length: int) -> _Part | None:
        """The part of a source of this length that these pixels show; the axis runs forward.

        Pixels whose middle is not on the source are left out; None where all are.
        """
        start = max(start, math.ceil(-self.offset / self.step - 0.5))
        stop = min(stop, math.ceil((length - self.offset) / self.step - 0.5))
        if start >= stop:
            return None
        low, high = (self.step * t + self.offset for t in (start, stop))
        spare = 3 + 2 * math.ceil(self.step)  # what interpolation looks at beyond the ends
        first = math.floor(low) - spare
        return _Part(
            start, stop, np.arange(first, math.ceil(high) + spare), low - first, high - first
        )

    def covered(self, some: NDArray[np.bool_], size: int) -> tuple[int, int] | None:
        """First and last pixel of a tile of this size, with a margin, that show any of a mask.

        ``some`` says of each source pixel along this axis whether the mask is there; the axis
        runs forward.
        """
        first, last = int(some.argmax()), some.size - int(some[::-1].argmax())
        if not some[first]:
            return None
        start = math.floor((first - self.offset) / self.step) - _BLEED
        stop = math.ceil((last - self.offset) / self.step) + _BLEED
        if stop <= 0 or start >= size:
            return None
        return max(start, -_BLEED), min(stop, size + _BLEED)


#: across and down, both forward
_Axes = tuple[Axis, Axis]


def _grey(image: FloatArray, axes: _Axes, size: tuple[int, int], window: Window) -> Image.Image:
    """A slice on a tile, mode L; black beyond its border."""
    u = axes[0].part(0, size[0], image.shape[1])
    v = axes[1].part(0, size[1], image.shape[0])
    if u is None or v is None:
        return Image.new("L", size)
    grey = Image.fromarray(window.apply(_taken(image, v, u)))
    shown = _resized(grey, v, u, Image.Resampling.BICUBIC)
    if shown.size == size:
        return shown
    tile = Image.new("L", size)
    tile.paste(shown, (u.start, v.start))
    return tile


def _taken(source: NDArray[_Pixel], v: _Part, u: _Part) -> NDArray[_Pixel]:
    """The pixels of two parts, ``(V, U)``; beyond the border those at the border."""
    return source.take(v.indices, axis=0, mode="clip").take(u.indices, axis=1, mode="clip")


def _resized(taken: Image.Image, v: _Part, u: _Part, resampling: Image.Resampling) -> Image.Image:
    """The pixels of two parts at the size of the tile."""
    size = (u.stop - u.start, v.stop - v.start)
    return taken.resize(size, resampling, (u.low, v.low, u.high, v.high))


def _outline(
    mask: BoolArray, axes: _Axes, size: tuple[int, int], line: int
) -> tuple[tuple[int, int], Image.Image] | None:
    """Where on the tile a mask's inner edge lies, and its opacity there, mode L."""
    columns = axes[0].covered(np.asarray(mask.any(axis=0)), size[0])
    rows = axes[1].covered(np.asarray(mask.any(axis=1)), size[1])
    if columns is None or rows is None:
        return None
    inside = _fine(mask, axes, columns, rows)
    edge = inside ^ _core(inside, line)
    left, right = max(columns[0], 0), min(columns[1], size[0])
    upper, lower = max(rows[0], 0), min(rows[1], size[1])
    seen = edge[
        (upper - rows[0]) * _OVERSAMPLING : (lower - rows[0]) * _OVERSAMPLING,
        (left - columns[0]) * _OVERSAMPLING : (right - columns[0]) * _OVERSAMPLING,
    ]
    opacity = Image.fromarray(seen.view(np.uint8) * np.uint8(255))
    return (left, upper), opacity.reduce(_OVERSAMPLING)


def _fine(
    mask: BoolArray, axes: _Axes, columns: tuple[int, int], rows: tuple[int, int]
) -> BoolArray:
    """A mask on the finer raster of these columns and rows of the tile."""
    u, v = (
        Axis(axis.step / _OVERSAMPLING, axis.offset + axis.step * start).part(
            0, _OVERSAMPLING * (stop - start), length
        )
        for axis, (start, stop), length in zip(axes, (columns, rows), mask.shape[::-1], strict=True)
    )
    inside = np.zeros(
        tuple(_OVERSAMPLING * (stop - start) for start, stop in (rows, columns)), dtype=bool
    )
    if u is not None and v is not None:
        coarse = Image.fromarray(_taken(mask, v, u).view(np.uint8) * np.uint8(255))
        fine = np.asarray(_resized(coarse, v, u, Image.Resampling.BILINEAR))
        np.greater_equal(fine, 128, out=inside[v.start : v.stop, u.start : u.stop])
    return inside


def _core(mask: BoolArray, steps: int) -> BoolArray:
    """What is left of a mask without a rim of so many steps to one of four neighbours.

    Beyond the first and the last row counts as set. Rows are taken to go on in the next one,
    so that the neighbours are one run of memory: wrong within ``steps`` of the first and last
    column, which are outside the tile or outside the mask.
    """
    width, core = mask.shape[1], mask.ravel()
    for _ in range(steps):
        before, core = core, core.copy()
        for step in (1, width):
            core[step:] &= before[:-step]
            core[:-step] &= before[step:]
    return core.reshape(mask.shape)
