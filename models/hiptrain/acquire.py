"""The same anatomy through another protocol: slices, matrix and field of view.

Shapes: ``(Z, Y, X)`` and ``(K, Z, Y, X)`` as in :mod:`hipscore.domain`; masks stay aligned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hipscore.domain import DoubleArray, FloatArray, Grid, Masks, Volume


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """Slice distance and pixel in mm; None keeps what the anatomy has.

    ``window`` keeps a rectangle of the field of view: a hip's number and the rectangle's
    height and width in mm; hips whose centre lies outside are gone.
    """

    slice_mm: float | None = None
    pixel_mm: float | None = None
    window: tuple[int, float, float] | None = None


def draw_protocol(rng: np.random.Generator, hips: int) -> Protocol:
    """Draw what sites do: slices of 3 to 6.5 mm, pixels of 0.6 to 1.4 mm, one hip or both."""
    window = None
    if rng.random() < 0.25:
        size = float(rng.uniform(170, 230))
        window = (int(rng.integers(hips)), size, size * float(rng.uniform(0.85, 1.0)))
    return Protocol(
        slice_mm=float(rng.uniform(3.2, 6.5)) if rng.random() < 0.5 else None,
        pixel_mm=float(rng.uniform(0.6, 1.4)) if rng.random() < 0.4 else None,
        window=window,
    )


def acquire(
    volume: Volume, masks: Sequence[Masks], protocol: Protocol, rng: np.random.Generator
) -> tuple[Volume, tuple[Masks, ...]]:
    """Acquire a series and its masks by another protocol."""
    kept = tuple(masks)
    if protocol.window is not None:
        volume, kept = _cut(volume, kept, protocol.window, rng)
    steps = volume.grid.spacing_mm
    wanted = (protocol.slice_mm or steps[0], *[protocol.pixel_mm or step for step in steps[1:]])
    if wanted == steps:
        return volume, kept
    # where the first new slice lies is the operator's choice
    places = (float(rng.uniform(0, 1)), 0.5, 0.5)
    along = [
        _places(size, new / old, place)
        for size, new, old, place in zip(volume.grid.shape, wanted, steps, places, strict=True)
    ]
    weights = [_weights(where, size) for where, size in zip(along, volume.grid.shape, strict=True)]
    affine = volume.grid.affine.copy()
    first = np.array([where[0] for where in along])
    affine[:3, 3] = volume.grid.to_mm(first)
    affine[:3, :3] *= [new / old for new, old in zip(wanted, steps, strict=True)]
    z, y, x = (len(row) for row in weights)
    grid = Grid(shape=(z, y, x), affine=affine)
    sources = volume.sources[:1] * len(weights[0])
    return (
        Volume(voxels=_resampled(volume.voxels, weights), grid=grid, sources=sources),
        tuple(_masks(item, weights) for item in kept),
    )


def _places(size: int, step: float, place: float) -> DoubleArray:
    """Where the new samples lie, in old indices.

    ``place`` (0 to 1) is where in the room that is left the first one lies.
    """
    count = int(np.floor((size - 1) / step + 1e-6)) + 1
    return np.arange(count, dtype=np.float64) * step + place * (size - 1 - (count - 1) * step)


def _weights(where: DoubleArray, size: int) -> FloatArray:
    """Triangle-filter weights ``(new, size)``; wider than a pixel where the step is."""
    step = where[1] - where[0] if len(where) > 1 else 1.0
    weights = np.clip(1 - np.abs(where[:, None] - np.arange(size)) / max(1.0, step), 0, None)
    normal: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normal


def _resampled(voxels: FloatArray, weights: Sequence[FloatArray]) -> FloatArray:
    along_z, along_y, along_x = weights
    planes = np.tensordot(along_z, voxels, axes=1)
    result: FloatArray = np.matmul(np.matmul(along_y, planes), along_x.T)
    return result


def _masks(masks: Masks, weights: Sequence[FloatArray]) -> Masks:
    channels = [_resampled(item.astype(np.float32), weights) > 0.5 for item in masks.voxels]
    return Masks(side=masks.side, voxels=np.stack(channels))


def _cut(
    volume: Volume,
    masks: tuple[Masks, ...],
    window: tuple[int, float, float],
    rng: np.random.Generator,
) -> tuple[Volume, tuple[Masks, ...]]:
    """Keep a rectangle around one hip, a little off its centre."""
    number, height, width = window
    index = np.argwhere(masks[number % len(masks)].voxels[0])
    if not len(index):
        return volume, masks
    centre = index.mean(axis=0)[1:]
    spans = []
    for middle, size_mm, step, size in zip(
        centre,
        (height, width),
        volume.grid.spacing_mm[1:],
        volume.grid.shape[1:],
        strict=True,
    ):
        length = min(size, round(size_mm / step))
        start = round(middle + rng.normal(0, 12) / step - length / 2)
        start = int(np.clip(start, 0, size - length))
        spans.append(slice(start, start + length))
    rows, columns = spans
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_mm(np.array([0, rows.start, columns.start], dtype=np.float64))
    voxels = np.ascontiguousarray(volume.voxels[:, rows, columns])
    kept = []
    for item in masks:
        inside = item.voxels[:, :, rows, columns]
        # a hip of which most is cut away is no hip of this series
        if inside[0].sum() > 0.6 * item.voxels[0].sum():
            kept.append(Masks(side=item.side, voxels=np.ascontiguousarray(inside)))
    grid = Grid(shape=voxels.shape, affine=affine)
    return Volume(voxels=voxels, grid=grid, sources=volume.sources), tuple(kept)
