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
class Anatomy:
    """One T1 series, ready to be given another contrast.

    ``t1`` is ``(Z, Y, X)`` relative to fat = 1. ``hips`` are the heads' spheres,
    ``necks`` the unit vectors (LPS) from the centre of each head down its neck, ``heads``
    the heads' masks.
    """

    volume: Volume
    t1: FloatArray
    hips: tuple[Hip, ...]
    necks: tuple[DoubleArray, ...]
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
    return Anatomy(
        volume=volume,
        t1=t1,
        hips=tuple(hips),
        necks=tuple(neck_direction(t1, volume.grid, hip) for hip in hips),
        heads=tuple(head_mask(t1, volume.grid, hip) for hip in hips),
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


def head_mask(t1: FloatArray, grid: Grid, hip: Hip) -> BoolArray:
    """Mask ``(Z, Y, X)`` of one head: its sphere, fitted to the edge of the marrow.

    Within 2 mm of the sphere's surface the marrow of the T1 image decides; deeper, the
    sphere alone (a vessel or an island in the marrow is part of the head).
    """
    region = box(grid, hip.centre_mm, hip.radius_mm + 4)
    distance = np.linalg.norm(offsets(part(grid, region), hip.centre_mm), axis=-1) - hip.radius_mm
    marrow = ndimage.gaussian_filter(t1[region], (0, 0.6, 0.6)) > _MARROW[0] * 0.95
    inside = (distance < -2.0) | ((distance < 1.0) & marrow)
    # an outline as a reader draws it, without the jags of single pixels
    inside = ndimage.gaussian_filter(inside.astype(np.float32), (0, 1.8, 1.8)) > 0.5
    mask = np.zeros(grid.shape, dtype=np.bool_)
    target = mask[region]
    for index in range(len(inside)):
        target[index] = ndimage.binary_fill_holes(inside[index])
    return mask


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
    shear: float = 0.05
    elastic_mm: float = 3.5
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
