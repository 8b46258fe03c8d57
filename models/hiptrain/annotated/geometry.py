"""Grids against grids: turning a volume into hipscore's view, laying labels onto an image.

Nothing here interpolates, but for :func:`nearest`, which is asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hipscore.domain import MIN_SLICES, BoolArray, DoubleArray, FloatArray, Grid
from hipscore.series import MAX_STEP_MM, MAX_TILT_DEG, MAX_VOXELS, PIXEL_MM
from hiptrain.annotated import Problem

#: two grids are the same where their voxels lie within this share of a voxel of each
#: other: headers round, and NIfTI keeps its rotation in 32 bits
TOLERANCE = 0.2
#: slices this much thicker than pixels show in which plane a series was acquired
_THICKER = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """How the axes of a file become (slice, row, column): an order of axes, then flips."""

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def voxels(self, array: FloatArray) -> FloatArray:
        """The array ``(a, b, c)`` of the file as ``(Z, Y, X)``."""
        turned = array.transpose(self.axes)
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return np.ascontiguousarray(turned[steps])

    def grid(self, grid: Grid) -> Grid:
        """The grid of the turned array: every voxel keeps its place in the patient."""
        shape = tuple(grid.shape[axis] for axis in self.axes)
        first = np.zeros(3)
        affine = np.eye(4)
        for position, (axis, flip) in enumerate(zip(self.axes, self.flipped, strict=True)):
            affine[:3, position] = grid.affine[:3, axis] * (-1.0 if flip else 1.0)
            first[axis] = grid.shape[axis] - 1 if flip else 0
        affine[:3, 3] = grid.to_mm(first)
        return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)


def coronal_turn(grid: Grid) -> Turn:
    """Turn a grid so that slices run to the back, rows to the feet, columns to the left.

    The slice axis is the one that runs most along the patient's A-P axis.

    Raises
    ------
    Problem
        If the grid was acquired in another plane, is tilted further than
        :data:`hipscore.series.MAX_TILT_DEG` from coronal, or is no image of a pelvis
        (number and distance of slices, size of pixels: the limits of ``hipscore.series``).
    """
    steps = np.array(grid.spacing_mm)
    unit = grid.affine[:3, :3] / steps
    slice_axis = int(np.argmax(np.abs(unit[1])))
    thick = int(np.argmax(steps))
    others = [axis for axis in range(3) if axis != thick]
    if thick != slice_axis and steps[thick] > _THICKER * steps[others].max():
        raise Problem(
            f"acquired in {_plane(unit[:, thick])} slices of {steps[thick]:.1f} mm, not coronal"
        )
    first, second = (axis for axis in range(3) if axis != slice_axis)
    normal = np.cross(unit[:, first], unit[:, second])
    tilt = float(np.degrees(np.arccos(min(1.0, abs(float(normal[1]))))))
    if tilt > MAX_TILT_DEG:
        raise Problem(
            f"slices are tilted {tilt:.0f}° from coronal, at most {MAX_TILT_DEG:.0f}° are read"
        )
    # the row axis runs most along the body
    row, column = (first, second) if abs(unit[2, first]) > abs(unit[2, second]) else (second, first)
    _check_sizes(grid, slice_axis, (row, column))
    return Turn(
        axes=(slice_axis, row, column),
        flipped=(
            bool(unit[1, slice_axis] < 0),
            bool(unit[2, row] > 0),
            bool(unit[0, column] < 0),
        ),
    )


def _plane(normal: DoubleArray) -> str:
    return ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(normal)))]


def _check_sizes(grid: Grid, slice_axis: int, pixel_axes: tuple[int, int]) -> None:
    if int(np.prod(grid.shape)) > MAX_VOXELS:
        raise Problem(f"{grid.shape} voxels, {MAX_VOXELS} are the limit")
    if grid.shape[slice_axis] < MIN_SLICES:
        raise Problem(f"{grid.shape[slice_axis]} slices, {MIN_SLICES} are needed")
    step = grid.spacing_mm[slice_axis]
    if not PIXEL_MM[0] <= step <= MAX_STEP_MM:
        raise Problem(f"slices {step:.2f} mm apart are no hip MRI (at most {MAX_STEP_MM:.0f} mm)")
    for axis in pixel_axes:
        if not PIXEL_MM[0] <= grid.spacing_mm[axis] <= PIXEL_MM[1]:
            raise Problem(f"pixels of {grid.spacing_mm[axis]:.3g} mm are no hip MRI")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Labels' index (a, b, c) to the image's index (z, y, x): ``matrix @ index + offset``."""

    matrix: NDArray[np.intp]
    offset: NDArray[np.intp]

    def place(self, mask: BoolArray, shape: tuple[int, int, int]) -> BoolArray:
        """Set the voxels of ``mask`` in an empty array of ``shape`` (Z, Y, X).

        Raises
        ------
        Problem
            If a set voxel lies outside.
        """
        index = np.argwhere(mask) @ self.matrix.T + self.offset
        inside = ((index >= 0) & (index < np.array(shape))).all(axis=1)
        if not inside.all():
            raise Problem(f"{int((~inside).sum())} labelled voxels lie outside the image")
        result = np.zeros(shape, dtype=np.bool_)
        result[tuple(index.T)] = True
        return result


def placement(labels: Grid, image: Grid) -> Placement | None:
    """How the grid of the labels lies on the image's: permuted, flipped, cropped or padded.

    None where it is another grid: other spacing, rotated, or shifted by a part of a voxel.
    """
    relation = np.linalg.inv(image.affine[:3, :3]) @ labels.affine[:3, :3]
    matrix = np.rint(relation)
    permutes = (np.abs(matrix).sum(axis=0) == 1).all() and (np.abs(matrix).sum(axis=1) == 1).all()
    if not permutes:
        return None
    start = image.to_index(labels.affine[:3, 3])
    ends = np.array(labels.shape) - 1
    corners = np.array(np.meshgrid(*[(0, end) for end in ends])).reshape(3, -1).T
    # the offset that suits the middle: rounded rotations are worst at the corners
    middle = ends / 2
    offset = np.rint(start + (relation - matrix) @ middle)
    strays = corners @ (relation - matrix).T + start - offset
    if np.abs(strays).max() > TOLERANCE:
        return None
    return Placement(matrix=matrix.astype(np.intp), offset=offset.astype(np.intp))


def nearest(mask: BoolArray, labels: Grid, image: Grid) -> BoolArray:
    """Sample a mask ``(a, b, c)`` of one grid at the voxels ``(Z, Y, X)`` of another."""
    inverse = np.linalg.inv(labels.affine[:3, :3])
    sampled = ndimage.affine_transform(
        mask.astype(np.uint8),
        inverse @ image.affine[:3, :3],
        labels.to_index(image.affine[:3, 3]),
        output_shape=image.shape,
        order=0,
        mode="grid-constant",
    )
    result: BoolArray = sampled.astype(np.bool_)
    return result


def difference(labels: Grid, image: Grid) -> str:
    """What differs between two grids, in words."""
    mine, other = np.sort(labels.spacing_mm), np.sort(image.spacing_mm)
    if not np.allclose(mine, other, rtol=5e-3):
        return f"voxels of {_times(mine)} mm, the image's are {_times(other)} mm"
    relation = np.linalg.inv(image.affine[:3, :3]) @ labels.affine[:3, :3]
    if np.abs(relation - np.rint(relation)).max() > 5e-3:
        return "a rotated grid"
    shift = image.to_index(labels.affine[:3, 3])
    return f"a grid shifted by parts of a voxel ({_times(shift - np.rint(shift))})"


def _times(values: DoubleArray) -> str:
    return " × ".join(f"{value:.2f}" for value in values)
