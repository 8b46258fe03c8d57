"""Slices as a radiologist sees them, with outlines: the tiles of the contact sheet.

Shape legend: ``(Y, X)`` source rows and columns, ``(V, U)`` rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

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
        sample = sample[np.isfinite(sample)]
        if sample.size == 0:
            return cls(low=0.0, high=1.0)
        low, top = (float(value) for value in np.percentile(sample, (1.0, 99.7)))
        body = sample[sample > low + 0.08 * (top - low)]
        middle = float(np.median(body)) if body.size else top
        high = min(top, low + 3.5 * (middle - low))
        return cls(low=low, high=high if high > low else low + 1.0)

    def apply(self, image: FloatArray) -> NDArray[np.uint8]:
        """Grey values 0 to 255 of an image ``(Y, X)``; what is not finite is black."""
        scaled = (np.nan_to_num(image) - self.low) / (self.high - self.low)
        grey: NDArray[np.uint8] = (np.clip(scaled, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
        return grey


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
    coefficients = view.coefficients(centre, mm, size)
    grey = Image.fromarray(window.apply(image))
    tile = grey.transform(
        size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
    ).convert("RGB")
    for colour, mask in outlines:
        box = _covered(mask, coefficients, size)
        if box is not None:
            tile.paste(colour, box, _outline(mask, coefficients, box, line))
    return tile


_Coefficients = tuple[float, float, float, float, float, float]
_Box = tuple[int, int, int, int]


def _covered(mask: BoolArray, coefficients: _Coefficients, size: tuple[int, int]) -> _Box | None:
    """The part of the tile where the mask is: left, upper, right, lower; None where it is not."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    a, b, c, d, e, f = coefficients
    corners = [(x, y) for x in (columns[0], columns[-1] + 1) for y in (rows[0], rows[-1] + 1)]
    found = np.array([np.linalg.solve([[a, b], [d, e]], [x - c, y - f]) for x, y in corners])
    low, high = np.floor(found.min(axis=0)) - 3, np.ceil(found.max(axis=0)) + 3
    box = (
        max(0, int(low[0])),
        max(0, int(low[1])),
        min(size[0], int(high[0])),
        min(size[1], int(high[1])),
    )
    return box if box[0] < box[2] and box[1] < box[3] else None


def _outline(mask: BoolArray, coefficients: _Coefficients, box: _Box, line: int) -> Image.Image:
    """Opacity of the mask's inner edge in a box of the tile, mode L."""
    size = (box[2] - box[0], box[3] - box[1])
    fine = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    a, b, c, d, e, f = coefficients
    step = 1 / _OVERSAMPLING
    shifted = (
        a * step,
        b * step,
        c + a * box[0] + b * box[1],
        d * step,
        e * step,
        f + d * box[0] + e * box[1],
    )
    source = Image.fromarray(mask.astype(np.uint8) * 255)
    inside = (
        np.asarray(
            source.transform(
                fine, Image.Transform.AFFINE, shifted, resample=Image.Resampling.BILINEAR
            )
        )
        >= 128
    )
    core = inside
    for _ in range(line):
        core = _eroded(core)
    edge = Image.fromarray((inside & ~core).astype(np.uint8) * 255)
    return edge.resize(size, Image.Resampling.BOX)


def _eroded(mask: BoolArray) -> BoolArray:
    """The pixels all four neighbours of which are set; outside the tile counts as set."""
    result = mask.copy()
    result[1:] &= mask[:-1]
    result[:-1] &= mask[1:]
    result[:, 1:] &= mask[:, :-1]
    result[:, :-1] &= mask[:, 1:]
    return result
