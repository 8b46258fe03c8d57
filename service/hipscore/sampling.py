"""Pictures of slices: where a picture's pixels lie in a grid, and the interpolation there and back.

A pixel is interpolated from the few around it, so the weights are sparse matrices. Their
products run in one thread and give the same on every machine, where a BLAS splits dense
ones over threads that wait for each other (milliseconds each on a busy machine) and rounds
as its number of threads and the processor's kernel happen to.

Shapes as in :mod:`hipscore.hips`; ``v`` and ``u`` are rows and columns of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from hipscore.domain import DoubleArray, FloatArray, Grid, PlaneSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Where the pixels of a canonical picture lie in the slices of a grid.

    ``rows`` is ``(H, Y)`` and ``columns`` is ``(W, X)``: sparse interpolation weights, rows
    summing to 1 inside the slice and to 0 outside. ``back_rows`` ``(Y, H)`` and
    ``back_columns`` ``(X, W)`` lead back. ``transposed`` says that the patient's
    left-right axis runs along the source rows: then Y and X above change places.
    """

    rows: sparse.csr_array
    columns: sparse.csr_array
    back_rows: sparse.csr_array
    back_columns: sparse.csr_array
    transposed: bool

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the source that the picture covers; empty where none."""
        down, across = _covered(self.back_rows), _covered(self.back_columns)
        return (across, down) if self.transposed else (down, across)

    def pictures(self, voxels: FloatArray | Sequence[FloatArray]) -> FloatArray:
        """Sample slices ``(N, Y, X)`` as pictures ``(N, H, W)``, linear, antialiased."""
        turned = [each.T if self.transposed else each for each in voxels]
        return _sampled(self.rows, self.columns, turned)

    def slices(self, pictures: FloatArray) -> FloatArray:
        """Sample pictures ``(N, H, W)`` on the source pixels of the window ``(N, v, u)``.

        Every pixel outside of :attr:`window` would be 0.
        """
        down, across = _covered(self.back_rows), _covered(self.back_columns)
        part = _sampled(self.back_rows[down], self.back_columns[across], pictures)
        return part.swapaxes(1, 2) if self.transposed else part


def lay(grid: Grid, spec: PlaneSpec, centre: DoubleArray, *, mirrored: bool) -> Sampling:
    """Lay the picture of ``spec`` around the index ``centre`` (z, y, x)."""
    row_step, column_step = grid.affine[:3, 1], grid.affine[:3, 2]
    transposed = bool(abs(row_step[0]) > abs(column_step[0]))
    down, across = (column_step, row_step) if transposed else (row_step, column_step)
    centre_down, centre_across = (centre[2], centre[1]) if transposed else (centre[1], centre[2])
    size_down, size_across = (
        (grid.shape[2], grid.shape[1]) if transposed else (grid.shape[1], grid.shape[2])
    )
    down_mm, across_mm = float(np.linalg.norm(down)), float(np.linalg.norm(across))
    # canonical view: columns run to the patient's left (+x), rows to the feet (-z)
    feet = -1.0 if down[2] > 0 else 1.0
    left = -1.0 if across[0] < 0 else 1.0
    if mirrored:
        left = -left

    def pair(
        count: int, size: int, middle: float, sign: float, mm: float
    ) -> tuple[sparse.csr_array, sparse.csr_array]:
        step = spec.pixel_mm / mm
        shown, stored = np.arange(count, dtype=np.float64), np.arange(size, dtype=np.float64)
        picture = middle + sign * step * (shown - (count - 1) / 2)
        source = (stored - middle) * sign / step + (count - 1) / 2
        return _weights(picture, size, step), _weights(source, count, 1.0 / step)

    rows, back_rows = pair(spec.rows, size_down, centre_down, feet, down_mm)
    columns, back_columns = pair(spec.columns, size_across, centre_across, left, across_mm)
    return Sampling(
        rows=rows,
        columns=columns,
        back_rows=back_rows,
        back_columns=back_columns,
        transposed=transposed,
    )


def _weights(coordinates: DoubleArray, size: int, step: float) -> sparse.csr_array:
    """Triangle-filter weights ``(len(coordinates), size)`` at fractional source indices.

    ``step`` is the distance between neighbouring coordinates in source pixels; a step
    above 1 widens the filter so that fine structure is averaged, not aliased.
    """
    width = max(1.0, step)
    first = np.ceil(coordinates - width)
    index = first[:, None] + np.arange(int(2 * width) + 1)
    weights = np.clip(1.0 - np.abs(coordinates[:, None] - index) / width, 0.0, None)
    weights[(index < 0) | (index > size - 1)] = 0.0
    inside = (coordinates > -0.5 - 1e-6) & (coordinates < size - 0.5 + 1e-6)
    weights[~inside] = 0.0
    total = weights.sum(axis=1)
    weights[total > 0] /= total[total > 0, None]
    row, tap = np.nonzero(weights)
    return sparse.csr_array(
        (weights[row, tap].astype(np.float32), (row, index[row, tap].astype(np.int32))),
        shape=(len(coordinates), size),
    )


def _covered(weights: sparse.csr_array) -> slice:
    """Rows that have any weight, from the first to the last."""
    rows = np.flatnonzero(np.diff(weights.indptr))
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows.size else slice(0, 0)


def _used(weights: sparse.csr_array) -> slice:
    """Columns that have any weight, from the first to the last."""
    columns = weights.indices
    return slice(int(columns.min()), int(columns.max()) + 1) if columns.size else slice(0, 0)


def _sampled(
    rows: sparse.csr_array, columns: sparse.csr_array, source: FloatArray | Sequence[FloatArray]
) -> FloatArray:
    """``rows @ each @ columns.T`` of ``source`` ``(N, rows of it, columns of it)``."""
    down, across = _used(rows), _used(columns)
    rows, columns = rows[:, down], columns[:, across]
    result = np.empty((len(source), rows.shape[0], columns.shape[0]), dtype=np.float32)
    for each, sampled in zip(source, result, strict=True):
        sampled[:] = (columns @ (rows @ each[down, across]).T).T
    return result
