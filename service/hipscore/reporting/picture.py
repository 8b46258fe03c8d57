"""Slices as a radiologist sees them, with outlines: the tiles of the contact sheet.

Shape legend: ``(Y, X)`` source rows and columns, ``(V, U)`` rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hipscore.domain import BoolArray, FloatArray, Grid

_OVERSAMPLING = 3  # outlines are found on a finer raster, then averaged: smooth lines
_LINE = 5  # their width there


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
    outlines: Mapping[tuple[int, int, int], BoolArray],
    *,
    view: View,
    window: Window,
    centre: tuple[float, float],
    mm: float,
    size: tuple[int, int],
) -> Image.Image:
    """Draw one tile.

    Parameters
    ----------
    image
        ``(Y, X)`` stored values.
    outlines
        Colour to mask ``(Y, X)``; drawn in order, the last on top.
    view, window
        How to show it.
    centre, mm, size
        See :meth:`View.coefficients`.

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
    for colour, mask in outlines.items():
        if mask.any():
            alpha = _outline(mask, view=view, centre=centre, mm=mm, size=size)
            tile.paste(colour, mask=alpha)
    return tile


def _outline(
    mask: BoolArray,
    *,
    view: View,
    centre: tuple[float, float],
    mm: float,
    size: tuple[int, int],
) -> Image.Image:
    """Opacity of the mask's inner edge on the tile, mode L."""
    fine = (size[0] * _OVERSAMPLING, size[1] * _OVERSAMPLING)
    coefficients = view.coefficients(centre, mm / _OVERSAMPLING, fine)
    source = Image.fromarray(mask.astype(np.uint8) * 255)
    inside = (
        np.asarray(
            source.transform(
                fine, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR
            )
        )
        >= 128
    )
    core = inside
    for _ in range(_LINE):
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
