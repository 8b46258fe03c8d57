"""Real T1 anatomy: reading it, finding its parts, bending it into other anatomies.

Shapes: ``(Z, Y, X)`` as in :mod:`hipscore.domain`. T1 signal is relative: fat is 1.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from scipy import ndimage

from hipscore import series
from hipscore.domain import (
    BoolArray,
    DoubleArray,
    FloatArray,
    Grid,
    Hip,
    Masks,
    Side,
    Volume,
)

#: body tissue has more than this share of the brightest tissue
_BODY = 0.08
#: T1 signal of bone marrow, fat = 1
_MARROW = (0.42, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Outline of a head in space: how far it lies from the sphere, by direction.

    ``directions`` ``(N, 3)`` are unit vectors (LPS) from the centre, ``shift`` ``(N,)``
    the distance from the sphere along them, outwards positive, mm.
    """

    directions: DoubleArray
    shift: DoubleArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """One T1 series, ready to be given another contrast.

    ``t1`` is ``(Z, Y, X)`` relative to fat = 1. ``hips`` are the heads' spheres,
    ``necks`` the unit vectors (LPS) from the centre of each head down its neck,
    ``surfaces`` the heads' outlines in space, ``heads`` their masks.
    """

    volume: Volume
    t1: FloatArray
    hips: tuple[Hip, ...]
    necks: tuple[DoubleArray, ...]
    surfaces: tuple[Surface, ...]
    heads: tuple[BoolArray, ...]


def read_images(source: Path) -> list[Dataset]:
    """Read the DICOM images of one series: a folder, or a tar archive of one.

    Raises
    ------
    ValueError
        If there is no DICOM image in ``source``.
    """
    images: list[Dataset] = []
    for name, stream in _members(source):
        try:
            images.append(pydicom.dcmread(stream))
        except pydicom.errors.InvalidDicomError as error:
            if name.endswith(".dcm"):
                raise ValueError(f"{source}: {name} is not a DICOM file") from error
    if not images:
        raise ValueError(f"{source} holds no DICOM image; give a folder or a tar archive of one")
    return images


def _members(source: Path) -> Iterable[tuple[str, io.BytesIO]]:
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if path.is_file():
                yield path.name, io.BytesIO(path.read_bytes())
        return
    with tarfile.open(source) as archive:
        for member in sorted(archive.getmembers(), key=lambda item: item.name):
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name, io.BytesIO(stream.read())


def find_series(source: Path) -> dict[str, Path]:
    """Series by name inside a folder: subfolders and ``*.tar*`` archives, sorted by name."""
    found = {
        path.name.split(".")[0]: path
        for path in sorted(source.iterdir())
        if path.is_dir() or ".tar" in path.name
    }
    if not found:
        raise ValueError(f"{source} holds neither folders nor tar archives of series")
    return found


def read_heads(path: Path) -> dict[str, tuple[Hip, ...]]:
    """Femoral-head spheres by Series Instance UID.

    The file has the columns ``series_instance_uid, side, radius_mm, x_mm, y_mm, z_mm``
    (LPS) and possibly others.
    """
    heads: dict[str, tuple[Hip, ...]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            hip = Hip(
                side=Side(row["side"]),
                centre_mm=(float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"])),
                radius_mm=float(row["radius_mm"]),
                confidence=1.0,
            )
            uid = row["series_instance_uid"]
            heads[uid] = (*heads.get(uid, ()), hip)
    return heads


def load(source: Path, heads: dict[str, tuple[Hip, ...]]) -> tuple[list[Dataset], Anatomy]:
    """Read one series with its femoral heads: images in slice order, and the anatomy."""
    read = series.assemble(read_images(source), protocol_check=False)
    uid = str(read.images[0].SeriesInstanceUID)
    if uid not in heads:
        raise ValueError(f"{source}: series {uid} has no femoral heads in the table")
    return list(read.images), study(read.volume, heads[uid])


def study(volume: Volume, hips: Sequence[Hip]) -> Anatomy:
    """Find what the change of contrast needs: the scale of fat, the heads, their necks."""
    t1 = volume.voxels / fat_signal(volume.voxels)
    necks = tuple(neck_direction(t1, volume.grid, hip) for hip in hips)
    surfaces = tuple(
        head_surface(t1, volume.grid, hip, neck) for hip, neck in zip(hips, necks, strict=True)
    )
    return Anatomy(
        volume=volume,
        t1=t1,
        hips=tuple(hips),
        necks=necks,
        surfaces=surfaces,
        heads=tuple(
            head_mask(volume.grid, hip, surface)
            for hip, surface in zip(hips, surfaces, strict=True)
        ),
    )


def fat_signal(voxels: FloatArray) -> float:
    """97th percentile of the body's signal: the signal of fat in a T1 image."""
    body = voxels[voxels > _BODY * np.percentile(voxels, 99.5)]
    return float(np.percentile(body, 97)) if body.size else 1.0


def offsets(grid: Grid, centre_mm: Sequence[float]) -> FloatArray:
    """Position of every voxel relative to a point, ``(Z, Y, X, 3)`` LPS mm."""
    axes = [np.arange(size, dtype=np.float32) for size in grid.shape]
    steps = grid.affine[:3, :3].astype(np.float32)
    start = (grid.affine[:3, 3] - np.asarray(centre_mm)).astype(np.float32)
    moved: FloatArray = (
        axes[0][:, None, None, None] * steps[:, 0]
        + axes[1][:, None, None] * steps[:, 1]
        + axes[2][:, None] * steps[:, 2]
        + start
    )
    return moved


def box(grid: Grid, centre_mm: Sequence[float], reach_mm: float) -> tuple[slice, slice, slice]:
    """Index box that holds the ball of ``reach_mm`` around a point, clipped to the grid."""
    centre = grid.to_index(np.asarray(centre_mm))
    parts = []
    for middle, step, size in zip(centre, grid.spacing_mm, grid.shape, strict=True):
        low = int(np.clip(np.floor(middle - reach_mm / step), 0, size))
        high = int(np.clip(np.ceil(middle + reach_mm / step) + 1, 0, size))
        parts.append(slice(low, high))
    return parts[0], parts[1], parts[2]


def part(grid: Grid, region: tuple[slice, slice, slice]) -> Grid:
    """The grid of an index box of ``grid``."""
    start = np.array([piece.start for piece in region], dtype=np.float64)
    affine = grid.affine.copy()
    affine[:3, 3] = grid.to_mm(start)
    z, y, x = (piece.stop - piece.start for piece in region)
    return Grid(shape=(z, y, x), affine=affine)


def head_mask(grid: Grid, hip: Hip, surface: Surface) -> BoolArray:
    """Mask ``(Z, Y, X)`` of one head: the voxels whose centre lies inside its surface."""
    region = box(grid, hip.centre_mm, hip.radius_mm + _REACH_MM[1] + 1)
    mask = np.zeros(grid.shape, dtype=np.bool_)
    mask[region] = depth(offsets(part(grid, region), hip.centre_mm), hip, surface) < 0
    return mask


def depth(off: FloatArray, hip: Hip, surface: Surface) -> FloatArray:
    """Distance from the head's surface ``(...)`` of positions ``(..., 3)``, inside negative, mm.

    Along the line to the head's centre; ``off`` is relative to that centre.
    """
    flat = off.reshape(-1, 3)
    distance = np.linalg.norm(flat, axis=1)
    result = distance - hip.radius_mm
    near = np.abs(result) <= 4 * max(map(abs, _REACH_MM))
    weight = _nearness(flat[near] / np.maximum(distance[near, None], 1e-3), surface.directions, 9.0)
    result[near] -= (weight @ surface.shift) / weight.sum(axis=1)
    shaped: FloatArray = result.reshape(off.shape[:-1]).astype(np.float32)
    return shaped


#: how far inside and outside of the sphere the edge of the marrow is looked for, mm
_REACH_MM = (-6.5, 4.0)
#: T1 signal of cortical bone with its partial volume, fat = 1
_CORTEX = 0.36
#: an edge steeper than this (fat = 1, per 4 mm) is trusted fully
_STEEP = 0.35


def head_surface(t1: FloatArray, grid: Grid, hip: Hip, neck: DoubleArray) -> Surface:
    """Move the sphere to the edge of the marrow.

    In every direction from the centre the surface lies where the marrow ends within a few
    mm of the sphere, smooth over neighbouring directions. Towards the neck there is no
    edge: there the surface goes on smoothly between the visible parts.
    """
    count = 700
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    height = 1 - 2 * (np.arange(count) + 0.5) / count
    ring = np.sqrt(1 - height**2)
    directions = np.stack([ring * np.cos(turn), ring * np.sin(turn), height], axis=1)
    steps = np.arange(_REACH_MM[0] - 2, _REACH_MM[1] + 2.01, 0.25)
    points = directions[:, None] * (hip.radius_mm + steps)[None, :, None] + hip.centre_mm
    index = np.moveaxis(grid.to_index(points), -1, 0)
    ray = ndimage.map_coordinates(t1, index, order=1, mode="nearest")
    # marrow on the inside 2 mm minus what lies on the outside 2 mm
    total = np.cumsum(np.pad(ray, ((0, 0), (1, 0))), axis=1)
    places = np.arange(8, len(steps) - 8)
    edge = (total[:, places] - total[:, places - 8]) - (total[:, places + 8] - total[:, places])
    edge /= 8
    where = steps[places] - 0.125
    # beyond the first dark line lies the fat of the socket, whose edge is as steep
    darkest = np.minimum.accumulate(ray, axis=1)[:, places - 6]
    edge -= 0.5 * np.clip((_CORTEX - darkest) / 0.12, 0.0, 1.0)
    # no edge towards the neck; across thick slices an edge is blurred, and counts less
    trust = np.clip((0.72 - directions @ neck) / 0.2, 0.0, 1.0)
    trust *= np.clip(1.25 - np.abs(directions[:, 1]), 0.25, 1.0)
    likeness = _nearness(directions, directions, 14.0)
    shift = np.zeros(count)
    for stiffness in (0.004, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06):
        merit = edge - stiffness * (where[None] - shift[:, None]) ** 2
        best = merit.argmax(axis=1)
        weight = trust * np.clip(edge[np.arange(count), best] / _STEEP, 0.0, 1.0) ** 2
        # the sphere itself is a weak wish
        spread = likeness @ weight
        shift = (likeness @ (weight * where[best])) / (spread + 0.5)
    return Surface(directions=directions, shift=shift)


def _nearness(one: DoubleArray, other: DoubleArray, degrees: float) -> FloatArray:
    """Weights ``(N, M)`` of unit vectors by the angle between them, a Gaussian."""
    cosine = one.astype(np.float32) @ other.T.astype(np.float32)
    weights: FloatArray = np.exp((cosine - 1.0) / np.float32(np.deg2rad(degrees) ** 2))
    return weights


def neck_direction(t1: FloatArray, grid: Grid, hip: Hip) -> DoubleArray:
    """Unit vector (LPS) from the head's centre down its neck.

    Among the directions lateral and downwards, the one along which a cylinder stays in
    marrow longest.
    """
    lateral = 1.0 if hip.side is Side.LEFT else -1.0
    candidates = [
        (lateral * np.sin(tilt) * np.cos(turn), np.sin(tilt) * np.sin(turn), -np.cos(tilt))
        for tilt in np.deg2rad(np.arange(35, 76, 5))
        for turn in np.deg2rad(np.arange(-25, 41, 5))
    ]
    along = np.linspace(0.9, 1.7, 9) * hip.radius_mm
    # a disc of points across each direction
    angle, size = np.meshgrid(np.arange(8) * np.pi / 4, np.array([0.0, 0.25, 0.45]))
    best, direction = -1.0, np.array(candidates[0])
    for candidate in np.array(candidates):
        side = np.cross(candidate, [0.0, 1.0, 0.0])
        side /= np.linalg.norm(side)
        other = np.cross(candidate, side)
        disc = (np.cos(angle)[..., None] * side + np.sin(angle)[..., None] * other) * size[
            ..., None
        ]
        points = (
            np.asarray(hip.centre_mm)
            + along[:, None, None, None] * candidate
            + disc[None] * hip.radius_mm
        )
        index = np.rint(grid.to_index(points.reshape(-1, 3))).astype(int)
        inside = ((index >= 0) & (index < np.array(grid.shape))).all(axis=1)
        index = np.clip(index, 0, np.array(grid.shape) - 1)
        value = t1[index[:, 0], index[:, 1], index[:, 2]]
        score = float((inside & (value > _MARROW[0]) & (value < _MARROW[1])).mean())
        if score > best:
            best, direction = score, candidate
    return direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Bend:
    """How far anatomies are bent. Angles in degrees, lengths in mm, shares of 1."""

    scale: tuple[float, float] = (0.85, 1.15)
    turn: float = 10.0
    shear: float = 0.04
    elastic_mm: float = 2.5
    wave_mm: float = 60.0
    mirror: bool = True


def deform(
    volume: Volume, masks: Sequence[Masks], rng: np.random.Generator, bend: Bend
) -> tuple[Volume, tuple[Masks, ...]]:
    """Bend a series and its masks into another anatomy.

    In the plane: scale, rotation, shear and smooth elastic displacements that change
    slowly from slice to slice, possibly mirrored (right and left change places). Across:
    another slice distance. The grid keeps its position and shape.
    """
    slices, rows, columns = volume.grid.shape
    _, row_mm, column_mm = volume.grid.spacing_mm
    angle = np.deg2rad(rng.uniform(-bend.turn, bend.turn))
    shear = rng.uniform(-bend.shear, bend.shear)
    scale = rng.uniform(*bend.scale)
    aspect = np.sqrt(rng.uniform(0.93, 1.07))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([1 / aspect, aspect]) / scale
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    middle = np.array([(rows - 1) / 2, (columns - 1) / 2])
    base = np.tensordot(matrix, np.stack([y - middle[0], x - middle[1]]), axes=1)
    base += middle[:, None, None]
    waves = _waves(rng, volume.grid, bend)
    mirrored = bend.mirror and rng.random() < 0.5
    voxels = np.empty_like(volume.voxels)
    moved = [np.empty_like(item.voxels) for item in masks]
    for index in range(slices):
        where = base + waves[:, index] / np.array([row_mm, column_mm])[:, None, None]
        if mirrored:
            where = where[:, :, ::-1]
        voxels[index] = ndimage.map_coordinates(volume.voxels[index], where, order=1)
        for source, target in zip(masks, moved, strict=True):
            for channel in range(len(target)):
                plane = source.voxels[channel, index]
                target[channel, index] = plane.any() and (
                    ndimage.map_coordinates(plane.astype(np.float32), where, order=1) > 0.5
                )
    affine = volume.grid.affine.copy()
    affine[:3, 0] *= rng.uniform(*bend.scale) / np.sqrt(scale) if slices > 1 else 1.0
    grid = Grid(shape=volume.grid.shape, affine=affine)
    other = {Side.RIGHT: Side.LEFT, Side.LEFT: Side.RIGHT}
    return (
        Volume(voxels=voxels, grid=grid, sources=volume.sources),
        tuple(
            Masks(side=other[item.side] if mirrored else item.side, voxels=target)
            for item, target in zip(masks, moved, strict=True)
        ),
    )


def _waves(rng: np.random.Generator, grid: Grid, bend: Bend) -> FloatArray:
    """Smooth random displacements ``(2, Z, Y, X)``, mm."""
    parts = []
    for size, step in zip(grid.shape, grid.spacing_mm, strict=True):
        count = max(4, round(size * step / bend.wave_mm) + 3)
        smooth = ndimage.zoom(np.eye(count, dtype=np.float32), (size / count, 1.0), order=2)
        parts.append(smooth)
    along_z, along_y, along_x = parts
    shape = (2, along_z.shape[1], along_y.shape[1], along_x.shape[1])
    coarse = rng.normal(0.0, bend.elastic_mm, shape).astype(np.float32)
    waves: FloatArray = np.einsum("zi,dijk->dzjk", along_z, coarse)
    shaped: FloatArray = along_y @ (waves @ along_x.T)
    return shaped


def sphere_of(masks: Masks, grid: Grid) -> Hip:
    """Centre and radius of a head mask: where it was bent to."""
    head = masks.voxels[0]
    index = np.argwhere(head)
    if not len(index):
        raise ValueError(f"the {masks.side.value} head was bent out of the field of view")
    x, y, z = grid.to_mm(index.mean(axis=0))
    voxel_mm3 = grid.voxel_ml * 1000.0
    return Hip(
        side=masks.side,
        centre_mm=(float(x), float(y), float(z)),
        radius_mm=float((3 * len(index) * voxel_mm3 / (4 * np.pi)) ** (1 / 3)),
        confidence=1.0,
    )
