"""What goes wrong in a scanner room, done to a series and to its truth alike.

Each corruption is a pure function ``(volume, masks, rng) -> (volume, masks)``; strengths are
fixed and written beside it, ``rng`` draws only signs, places and noise. Masks stay on the
volume's grid. Weak fat suppression cannot be done to a finished image, in which fat is no
longer told from other dark tissue: :data:`WEAK_FAT` is the signal to synthesise it with.

Shapes: ``(Z, Y, X)`` voxels, ``(K, Z, Y, X)`` masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
from scipy import ndimage

from hipscore.domain import Channel, DoubleArray, FloatArray, Grid, Masks, Volume
from hiptrain.anatomy import box, part, sphere_of

Case: TypeAlias = tuple[Volume, tuple[Masks, ...]]
Corruption: TypeAlias = Callable[[Volume, Sequence[Masks], np.random.Generator], Case]

#: signal of fat where its suppression fails, muscle = 1 (usual here: 0.12 to 0.5)
WEAK_FAT = (0.8, 1.1)
#: natural logarithm of the coils' gain, from the middle of the field of view to its edge
SHADING = 0.8
#: standard deviation of the blur in the plane, mm (full width at half maximum 3 mm)
BLUR_MM = 1.27
#: signal of each of the two ghosts, a quarter of the field of view away
GHOST = 0.15
GAMMAS = (0.7, 1.5)
SLICE_MM = 6.0
MATRIX = 256
TURN_DEG = 15.0
#: width and height of a field of view for one hip, mm
ONE_HIP_MM = 200.0


def noise(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """Twice the noise: the magnitude of the signal with more complex Gaussian noise.

    What is added has √3 of the standard deviation that is there: the sum is Rician
    (Gudbjartsson & Patz, Magn Reson Med 1995;34:910) with twice of it.
    """
    added = np.float32(np.sqrt(3.0) * noise_level(volume.voxels))
    pair = rng.standard_normal((2, *volume.grid.shape), dtype=np.float32) * added
    return _with(volume, np.hypot(volume.voxels + pair[0], pair[1])), tuple(masks)


def noise_level(voxels: FloatArray) -> float:
    """Standard deviation of the noise in tissue, in the image's units.

    From the diagonal differences of neighbouring pixels (the finest Haar wavelet, Donoho &
    Johnstone, Biometrika 1994;81:425), whose median hardly sees anatomy; only where there
    is signal, because the noise of air is not Gaussian.
    """
    even = voxels[:, : voxels.shape[1] // 2 * 2, : voxels.shape[2] // 2 * 2]
    a, b = even[:, ::2, ::2], even[:, ::2, 1::2]
    c, d = even[:, 1::2, ::2], even[:, 1::2, 1::2]
    mean = (a + b + c + d) / 4
    tissue = mean > 0.3 * np.percentile(mean, 95)
    if not tissue.any():
        return 0.0
    return float(np.median(np.abs((a - b - c + d)[tissue])) / 2 / 0.6745)


def shading(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """Surface coils: gain falls from one corner of the body to the opposite one.

    About 2.2 at the one end and 0.45 at the other, a tenth of that from front to back.
    """
    z, y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in volume.grid.shape)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None]
    reach = abs(np.cos(angle)) + abs(np.sin(angle))
    depth = float(rng.choice([-0.1, 0.1])) * z[:, None, None]
    gain = np.exp(SHADING * (along / reach + depth))
    return _with(volume, volume.voxels * gain), tuple(masks)


def blur(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """Blur in the plane by a Gaussian of :data:`BLUR_MM`."""
    del rng
    _, dy, dx = volume.grid.spacing_mm
    voxels = ndimage.gaussian_filter(volume.voxels, (0, BLUR_MM / dy, BLUR_MM / dx))
    return _with(volume, voxels), tuple(masks)


def ghosting(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """Periodic motion: k-space lines modulated with a period of four along one axis.

    The phase runs along the rows or the columns, drawn. Two ghosts of :data:`GHOST` appear
    a quarter of the field of view to either side, wrapped around. The image has a smooth
    phase, as coils give it: ghosts add to it here and cancel there.
    """
    axis = int(rng.integers(1, 3))
    size = volume.grid.shape[axis]
    y, x = (np.linspace(-1, 1, count) for count in volume.grid.shape[1:])
    a, b, turn = rng.uniform(1.0, 2.0), rng.uniform(-1.0, 1.0), rng.uniform(0.0, 2 * np.pi)
    turns = a * (x[None, :] ** 2 + y[:, None] ** 2) + b * y[:, None] * x[None, :]
    phase = np.exp(2j * np.pi * turns).astype(np.complex64)
    lines = np.arange(size) - size // 2
    modulation = np.fft.ifftshift(1.0 + 2 * GHOST * np.cos(2 * np.pi * lines / 4 + turn))
    shape = [1, 1, 1]
    shape[axis] = size
    space = np.fft.fft(volume.voxels * phase, axis=axis) * modulation.reshape(shape)
    return _with(volume, np.abs(np.fft.ifft(space, axis=axis))), tuple(masks)


def gamma(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """Another transfer curve: (signal / bright)^γ, γ drawn from :data:`GAMMAS`.

    Bright is the 99th percentile, which keeps its value.
    """
    power = float(rng.choice(GAMMAS))
    bright = max(float(np.percentile(volume.voxels, 99)), 1e-6)
    return _with(volume, bright * (volume.voxels / bright) ** power), tuple(masks)


def thick_slices(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """Slices of :data:`SLICE_MM` every as many mm: averages over the slices they cover.

    A series with thicker slices stays as it is. The new slices keep the UIDs of the
    nearest old ones.
    """
    del rng
    count, step = volume.grid.shape[0], volume.grid.spacing_mm[0]
    ratio = SLICE_MM / step
    made = int(count / ratio + 1e-6)
    if ratio <= 1.0 or made < 1:
        return volume, tuple(masks)
    first = (count - made * ratio) / 2 - 0.5  # index of the lower face of the first new slice
    weights = _shares(first + ratio * np.arange(made, dtype=np.float64), ratio, count)
    middles = first + ratio * (np.arange(made) + 0.5)
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.to_mm((float(middles[0]), 0.0, 0.0))
    affine[:3, 0] *= ratio
    grid = Grid(shape=(made, *volume.grid.shape[1:]), affine=affine)
    nearest = np.clip(np.rint(middles).astype(int), 0, count - 1)
    moved = Volume(
        voxels=_along_slices(weights, volume.voxels),
        grid=grid,
        sources=tuple(volume.sources[index] for index in nearest),
    )
    return moved, tuple(
        _masked(item, [_along_slices(weights, each.astype(np.float32)) for each in item.voxels])
        for item in masks
    )


def small_matrix(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """The same field of view with :data:`MATRIX` pixels along its longer side.

    The image is cut in k-space, as when fewer lines are acquired (fine structure is lost,
    edges ring, noise is averaged); masks by area. A smaller matrix stays as it is.
    """
    del rng
    slices, rows, columns = volume.grid.shape
    share = MATRIX / max(rows, columns)
    if share >= 1.0:
        return volume, tuple(masks)
    new_rows, new_columns = round(rows * share), round(columns * share)
    affine = volume.grid.affine.copy()  # the first pixel's centre stays where it is
    affine[:3, 1] *= rows / new_rows
    affine[:3, 2] *= columns / new_columns
    grid = Grid(shape=(slices, new_rows, new_columns), affine=affine)
    voxels = _cut(_cut(volume.voxels, new_rows, 1), new_columns, 2)
    down, across = (
        _shares((np.arange(new, dtype=np.float64) - 0.5) * old / new, old / new, old)
        for new, old in ((new_rows, rows), (new_columns, columns))
    )
    moved = Volume(voxels=np.clip(voxels, 0, None), grid=grid, sources=volume.sources)
    return moved, tuple(
        _masked(item, [down @ each.astype(np.float32) @ across.T for each in item.voxels])
        for item in masks
    )


def rotation(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """The patient lies turned by :data:`TURN_DEG` in the plane, one way or the other."""
    _, dy, dx = volume.grid.spacing_mm
    angle = np.deg2rad(TURN_DEG) * float(rng.choice([-1.0, 1.0]))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.array([dy, dx])
    matrix = turn * scale[None, :] / scale[:, None]
    middle = (np.array(volume.grid.shape[1:]) - 1) / 2

    def turned(planes: FloatArray, order: Literal[1, 3]) -> FloatArray:
        result = np.empty_like(planes)
        for index, plane in enumerate(planes):
            result[index] = ndimage.affine_transform(
                plane, matrix, offset=middle - matrix @ middle, order=order
            )
        return result

    # a cubic keeps the noise, which a linear interpolation would smooth away
    return _with(volume, np.clip(turned(volume.voxels, 3), 0, None)), tuple(
        _masked(item, [turned(each.astype(np.float32), 1) for each in item.voxels])
        for item in masks
    )


def one_hip(volume: Volume, masks: Sequence[Masks], rng: np.random.Generator) -> Case:
    """Only one hip in view: :data:`ONE_HIP_MM` squared around one head, drawn.

    The truth is that hip alone.
    """
    kept = masks[int(rng.integers(len(masks)))]
    _, rows, columns = box(volume.grid, sphere_of(kept, volume.grid).centre_mm, ONE_HIP_MM / 2)
    region = (slice(0, volume.grid.shape[0]), rows, columns)
    cut = Volume(
        voxels=np.ascontiguousarray(volume.voxels[region]),
        grid=part(volume.grid, region),
        sources=volume.sources,
    )
    return cut, (replace(kept, voxels=np.ascontiguousarray(kept.voxels[:, *region])),)


#: in the order they are listed in; all but weak fat suppression
CORRUPTIONS: dict[str, Corruption] = {
    "noise ×2": noise,
    "shading": shading,
    "blur": blur,
    "ghosting": ghosting,
    "gamma": gamma,
    "6 mm slices": thick_slices,
    "256 matrix": small_matrix,
    "rotation 15°": rotation,
    "one hip only": one_hip,
}
WEAK_FAT_NAME = "weak fat suppression"


def _with(volume: Volume, voxels: FloatArray) -> Volume:
    return replace(volume, voxels=voxels.astype(np.float32, copy=False))


def _masked(masks: Masks, channels: Sequence[FloatArray]) -> Masks:
    """Masks of what is more than half inside; edema stays in the head, synovitis outside."""
    voxels = np.stack(channels) > 0.5
    voxels[Channel.BME] &= voxels[Channel.FEMORAL_HEAD]
    voxels[Channel.SYNOVITIS] &= ~voxels[Channel.FEMORAL_HEAD]
    return replace(masks, voxels=voxels)


def _shares(lower: DoubleArray, width: float, size: int) -> FloatArray:
    """Weights ``(len(lower), size)``: share of each old cell in each new one.

    A new cell reaches from ``lower`` over ``width``, in old indices; old cell i from
    i - 0.5 to i + 0.5. Rows sum to 1.
    """
    cells = np.arange(size)
    high = np.minimum(lower[:, None] + width, cells + 0.5)
    low = np.maximum(lower[:, None], cells - 0.5)
    weights = np.clip(high - low, 0.0, None)
    shares: FloatArray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares


def _along_slices(weights: FloatArray, voxels: FloatArray) -> FloatArray:
    """Weighted means of slices: ``(M, Z)`` times ``(Z, Y, X)``."""
    averaged: FloatArray = np.tensordot(weights, voxels, axes=1)
    return averaged


def _cut(voxels: FloatArray, size: int, axis: int) -> FloatArray:
    """Resample one axis to fewer pixels by leaving out the outer part of k-space."""
    space = np.fft.rfft(voxels, axis=axis)
    kept = [slice(None)] * voxels.ndim
    kept[axis] = slice(0, size // 2 + 1)
    result: FloatArray = np.fft.irfft(space[tuple(kept)], n=size, axis=axis) * (
        size / voxels.shape[axis]
    )
    return result.astype(np.float32)
