"""Shapes as signed distances, and the canvas they are painted on.

Body coordinates are millimetres ``(x, y, z)`` towards Left, Posterior, Superior of the
phantom itself; :class:`Pose` places the phantom in patient space. Distances are in mm,
negative inside. Painting is by partial volume: a voxel that a surface crosses gets the
share of the shape that lies in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hipscore.domain import DoubleArray, FloatArray, Grid

Distance = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]
Region = tuple[slice, slice, slice]

FAR_MM = 1000.0
#: how far the organic warp may move a surface, mm
WARP_MM = 6.0
#: half a megabyte of float32
_CACHED_VOXELS = 128 * 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """A solid: its signed distance and the body-coordinate box that holds it, mm."""

    low: DoubleArray
    high: DoubleArray
    distance: Distance

    def grown(self, mm: float) -> Shape:
        """The same solid with its surface moved outwards by ``mm``."""
        inner = self.distance
        return Shape(self.low - mm, self.high + mm, lambda x, y, z: inner(x, y, z) - mm)


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the body lies: LPS = ``origin + rotation @ body``. ``rotation`` is (3, 3)."""

    rotation: DoubleArray
    origin: DoubleArray

    def to_lps(self, body: ArrayLike) -> DoubleArray:
        """Patient coordinates ``(..., 3)`` of the body coordinates ``(..., 3)``, mm."""
        moved: DoubleArray = np.asarray(body, dtype=np.float64) @ self.rotation.T + self.origin
        return moved


def rotation(about_x: float, about_y: float, about_z: float) -> DoubleArray:
    """Rotation matrix (3, 3) from three small angles in degrees."""
    a, b, c = np.deg2rad([about_x, about_y, about_z])
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    turned: DoubleArray = rz @ ry @ rx
    return turned


def ball(centre: ArrayLike, radius: float) -> Shape:
    """A sphere."""
    c = np.asarray(centre, dtype=np.float64)
    cx, cy, cz = (float(v) for v in c)

    def distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        out: FloatArray = np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) - radius
        return out

    return Shape(c - radius, c + radius, distance)


def ellipsoid(centre: ArrayLike, radii: ArrayLike, axes: DoubleArray | None = None) -> Shape:
    """An ellipsoid; ``axes`` (3, 3) has its unit axes as columns (default: x, y, z)."""
    c, r = np.asarray(centre, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    turn = np.eye(3) if axes is None else axes
    to_unit = (turn / r).T  # rows: body offset -> unit-sphere coordinate
    reach = np.sqrt(((turn * r) ** 2).sum(axis=1))
    cx, cy, cz = (float(v) for v in c)
    m = [[float(v) for v in row] for row in to_unit]
    inverse = [float(1.0 / v) for v in r]

    def distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        dx, dy, dz = x - cx, y - cy, z - cz
        inside, slope = np.zeros_like(dx), np.zeros_like(dx)
        for row, i in zip(m, inverse, strict=True):
            u = dx * np.float32(row[0])
            u += dy * np.float32(row[1])
            u += dz * np.float32(row[2])
            u *= u
            inside += u
            slope += u * np.float32(i * i)
        out = (inside - np.sqrt(inside)) / np.sqrt(slope + np.float32(1e-12))
        return out.astype(np.float32, copy=False)

    return Shape(c - reach, c + reach, distance)


def belly(
    start: ArrayLike,
    end: ArrayLike,
    radius: tuple[float, float, float],
    flat: tuple[ArrayLike, float] | None = None,
) -> Shape:
    """A rounded spindle from ``start`` to ``end``.

    ``radius`` at the start, the middle and the end, mm. ``flat`` is (direction, share):
    the extent along that direction is only this share of the radius.
    """
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    length2 = float(np.sum((b - a) ** 2))
    ax, ay, az = (float(v) for v in a)
    vx, vy, vz = (float(v) for v in (b - a) / length2)
    r0, r1, r2 = radius
    bend = 2.0 * (r0 + r2) - 4.0 * r1
    slope = r2 - r0 - bend
    widest = max(r0, r1, r2)
    if flat is not None:
        n = np.asarray(flat[0], dtype=np.float64)
        n /= np.linalg.norm(n)
        nx, ny, nz = (float(v) for v in n)
        drift, squeeze = float(n @ (b - a)), 1.0 / flat[1] ** 2 - 1.0

    def distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        # |p - a - h (b - a)|² = |p - a|² - |b - a|² h (2 t - h), h being t cut to the segment
        dx, dy, dz = x - ax, y - ay, z - az
        t = dx * vx
        t += dy * vy
        t += dz * vz
        h = t.clip(0.0, 1.0)
        if flat is not None:
            across = dx * nx
            across += dy * ny
            across += dz * nz
            across -= h * drift
            across *= across
            across *= squeeze
        dx *= dx
        dy *= dy
        dz *= dz
        dx += dy
        dx += dz
        t += t
        t -= h
        t *= h
        t *= length2
        dx -= t
        if flat is not None:
            dx += across
        np.maximum(dx, 0.0, out=dx)
        np.sqrt(dx, out=dx)
        np.multiply(h, bend, out=t)
        t += slope
        t *= h
        t += r0
        dx -= t
        return dx

    return Shape(np.minimum(a, b) - widest, np.maximum(a, b) + widest, distance)


def _near(first: FloatArray, second: FloatArray, mm: float) -> FloatArray:
    h = np.maximum(np.float32(mm) - np.abs(first - second), np.float32(0.0))
    out: FloatArray = h * h * np.float32(0.25 / mm)
    return out


def blend(first: FloatArray, second: FloatArray, mm: float) -> FloatArray:
    """Union of two distances with a fillet of about ``mm``."""
    return np.minimum(first, second) - _near(first, second, mm)


def meet(first: FloatArray, second: FloatArray, mm: float) -> FloatArray:
    """Intersection of two distances with its edge rounded by about ``mm``."""
    return np.maximum(first, second) + _near(first, second, mm)


def share(distance: FloatArray, edge_mm: float) -> FloatArray:
    """Share of a voxel (0 to 1) inside the surface at ``distance``."""
    return (np.float32(0.5) - distance * np.float32(1.0 / edge_mm)).clip(0.0, 1.0)


def ramp(values: FloatArray, low: float, high: float) -> FloatArray:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = ((values - np.float32(low)) * np.float32(1.0 / (high - low))).clip(0.0, 1.0)
    out: FloatArray = t * t * (np.float32(3.0) - np.float32(2.0) * t)
    return out


def _smoothing(size: int, step_mm: float, scale_mm: float) -> DoubleArray:
    """Gaussian weights ``(size, knots)`` that give unit variance from white knots."""
    spacing = max(scale_mm, step_mm)
    knots = int(np.ceil(size * step_mm / spacing)) + 3
    at = np.arange(size) * step_mm
    where = (np.arange(knots) - 1) * spacing
    weights = np.exp(-0.5 * ((at[:, None] - where[None, :]) / (0.75 * spacing)) ** 2)
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return weights


def noise(grid: Grid, scale_mm: tuple[float, float, float], rng: np.random.Generator) -> FloatArray:
    """Smooth random texture ``(Z, Y, X)``, mean 0 and SD 1, of about ``scale_mm`` grain."""
    along = [
        _smoothing(size, step, scale).astype(np.float32)
        for size, step, scale in zip(grid.shape, grid.spacing_mm, scale_mm, strict=True)
    ]
    knots = rng.standard_normal([w.shape[1] for w in along], dtype=np.float32)
    # one large product per axis: many small ones keep the threads of a BLAS waiting
    deep = np.tensordot(along[0], knots, axes=1)
    across = np.tensordot(deep, along[2], axes=(2, 1))
    down = np.tensordot(along[1], across, axes=(1, 1))
    return np.ascontiguousarray(down.swapaxes(0, 1), dtype=np.float32)


class Canvas:
    """One sampling of the body: where each voxel lies and what signal it has.

    Attributes
    ----------
    x, y, z
        ``(Z, Y, X)`` float32, body coordinates of the voxels after the organic warp, mm.
    signal
        ``(Z, Y, X)`` float32, muscle = 1, air = 0.
    edge_mm
        Width of a partial-volume edge: the pixel size, or what hides the steps between
        sections of a slice.
    """

    def __init__(
        self,
        grid: Grid,
        pose: Pose,
        warp: tuple[FloatArray, ...],
        *,
        offset: float = 0.0,
        section_mm: float = 0.0,
    ) -> None:
        """Lay the canvas ``offset`` slices behind the slice centres of ``grid``."""
        to_body = np.eye(4)
        to_body[:3, :3] = pose.rotation.T
        to_body[:3, 3] = -pose.rotation.T @ pose.origin
        affine = to_body @ grid.affine
        self._to_index = np.linalg.inv(affine)
        self._shape = grid.shape
        index = [np.arange(n, dtype=np.float32) for n in grid.shape]
        axes: list[FloatArray] = []
        for i in range(3):
            step = [float(v) for v in affine[i]]
            plane = (index[1] * step[1])[:, None] + (index[2] * step[2])[None, :]
            start = (index[0] + np.float32(offset)) * step[0] + step[3]
            axes.append((start[:, None, None] + plane + warp[i]).astype(np.float32, copy=False))
        self.x, self.y, self.z = axes
        self.signal: FloatArray = np.zeros(grid.shape, dtype=np.float32)
        self.edge_mm = max(grid.spacing_mm[1], grid.spacing_mm[2], min(0.7 * section_mm, 1.2))

    def region(self, low: DoubleArray, high: DoubleArray) -> Region | None:
        """Index box that holds the body-coordinate box, None where it is out of view."""
        pad = WARP_MM + self.edge_mm
        corners = np.array(
            [
                (x, y, z, 1.0)
                for x in (low[0] - pad, high[0] + pad)
                for y in (low[1] - pad, high[1] + pad)
                for z in (low[2] - pad, high[2] + pad)
            ]
        )
        index = corners @ self._to_index.T
        # a canvas is up to half a slice off its grid
        first = np.floor(index.min(axis=0)[:3] - 0.5).astype(int)
        last = np.ceil(index.max(axis=0)[:3] + 0.5).astype(int) + 1
        first, last = np.maximum(first, 0), np.minimum(last, self._shape)
        if np.any(last <= first):
            return None
        z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        return z, y, x

    def pieces(self, region: Region | None = None) -> Iterator[Region]:
        """The region (default: everything) in runs of slices that fit a processor's cache."""
        z, y, x = region or tuple(slice(0, n) for n in self._shape)
        run = max(1, _CACHED_VOXELS // ((y.stop - y.start) * (x.stop - x.start)))
        for start in range(z.start, z.stop, run):
            yield slice(start, min(start + run, z.stop)), y, x

    def distance(self, shape: Shape, region: Region) -> FloatArray:
        """Signed distance of ``shape`` in ``region``, mm."""
        return shape.distance(self.x[region], self.y[region], self.z[region])

    def paint(self, shape: Shape, value: float | FloatArray) -> None:
        """Put tissue of ``value`` (a number, or a ``(Z, Y, X)`` texture) inside ``shape``."""
        self.paint_layers(shape, ((0.0, value),))

    def paint_layers(
        self, shape: Shape, layers: Sequence[tuple[float, float | FloatArray]]
    ) -> None:
        """Put several tissues over each other: (how far beyond the surface in mm, value)."""
        region = self.region(shape.low, shape.high)
        if region is None:
            return
        for piece in self.pieces(region):
            distance = self.distance(shape, piece)
            for beyond_mm, value in layers:
                over = value[piece] if isinstance(value, np.ndarray) else value
                self.cover(piece, share(distance - np.float32(beyond_mm), self.edge_mm), over)

    def cover(self, region: Region, amount: FloatArray, value: float | FloatArray) -> None:
        """Mix ``value`` into ``region`` by ``amount`` (0 to 1); both are shaped as the region."""
        under = self.signal[region]
        under += amount * (value - under)

    def field(self) -> FloatArray:
        """An empty distance field ``(Z, Y, X)`` to unite shapes in."""
        return np.full(self._shape, FAR_MM, dtype=np.float32)

    def unite(self, field: FloatArray, shape: Shape, fillet_mm: float = 3.0) -> None:
        """Add ``shape`` to a distance field, with a fillet where they meet."""
        grown = shape.grown(fillet_mm)
        region = self.region(grown.low, grown.high)
        if region is None:
            return
        for piece in self.pieces(region):
            part = field[piece]
            np.copyto(part, blend(part, self.distance(shape, piece), fillet_mm))
