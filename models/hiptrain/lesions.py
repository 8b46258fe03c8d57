"""What inflammation adds to a hip: bone marrow edema and effusion; and what resembles it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hipscore.domain import BoolArray, DoubleArray, FloatArray, Grid, Hip, Masks, Side
from hipscore.phantom import Burden
from hiptrain.anatomy import Anatomy, Surface, box, depth, offsets, part
from hiptrain.contrast import Tissues

#: the line of cortical bone between marrow and fluid, mm
_CORTEX_MM = 0.7
_DISC = ndimage.generate_binary_structure(3, 1) & np.array([0, 1, 0], dtype=bool)[:, None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Severity:
    """Ranges of one burden, per hip. Lengths in mm."""

    lesions: tuple[int, int]
    lesion_mm: tuple[float, float]
    effusion_mm: tuple[float, float]


SEVERITY = {
    Burden.NONE: Severity(lesions=(0, 0), lesion_mm=(0, 0), effusion_mm=(0, 0)),
    Burden.MILD: Severity(lesions=(0, 2), lesion_mm=(4, 8), effusion_mm=(0.0, 3.5)),
    Burden.MODERATE: Severity(lesions=(1, 2), lesion_mm=(6, 14), effusion_mm=(2.0, 5.0)),
    Burden.SEVERE: Severity(lesions=(1, 3), lesion_mm=(11, 26), effusion_mm=(3.5, 8.0)),
}


def noise_field(
    rng: np.random.Generator, grid: Grid, size_mm: float, *, through: float = 1.0
) -> FloatArray:
    """Smooth random field ``(Z, Y, X)`` of mean 0 and deviation 1."""
    sigma = [max(0.3, size_mm / step) for step in grid.spacing_mm]
    sigma[0] *= through
    field = ndimage.gaussian_filter(rng.standard_normal(grid.shape, dtype=np.float32), sigma)
    result: FloatArray = field / max(float(field.std()), 1e-6)
    return result


def _direction(rng: np.random.Generator) -> DoubleArray:
    vector = rng.normal(0, 1, 3)
    unit: DoubleArray = vector / np.linalg.norm(vector)
    return unit


def add_edema(
    voxels: FloatArray,
    head: BoolArray,
    grid: Grid,
    hip: Hip,
    *,
    rng: np.random.Generator,
    severity: Severity,
) -> BoolArray:
    """Brighten blobs of marrow in place; returns their mask ``(Z, Y, X)``.

    Blobs sit under the surface of the weight-bearing (upper) head more often than
    elsewhere. Signal 1.1 to 2.5 times the marrow's, median 1.6, uneven by about 35 %.
    """
    off = offsets(grid, hip.centre_mm)
    amount = np.zeros(grid.shape, dtype=np.float32)
    for _ in range(int(rng.integers(severity.lesions[0], severity.lesions[1] + 1))):
        towards = _direction(rng) + np.array([0.0, 0.0, rng.choice([0.0, 0.9])])
        towards /= np.linalg.norm(towards)
        place = towards * hip.radius_mm * rng.uniform(0.2, 0.95)
        size = rng.uniform(*severity.lesion_mm)
        axes = np.linalg.qr(rng.normal(0, 1, (3, 3)))[0]
        radii = size * rng.uniform(0.65, 1.4, 3)
        local = ((off - place.astype(np.float32)) @ axes.astype(np.float32)) / radii
        distance = np.linalg.norm(local, axis=-1) + 0.14 * noise_field(rng, grid, 4.0)
        # a border 1 to 3 mm wide
        width = rng.uniform(0.5, 1.5) / size
        amount = np.maximum(amount, 1.0 / (1.0 + np.exp(np.clip((distance - 1) / width, -30, 30))))
    amount *= head
    mask = amount > 0.5
    if not mask.any():
        return mask
    gain = float(np.clip(rng.normal(1.65, 0.35), 1.25, 2.5))
    texture = 0.75 * noise_field(rng, grid, 1.6, through=0.5) + 0.5 * noise_field(rng, grid, 0.6)
    uneven = np.clip(1.0 + 0.3 * texture, 0.4, 2.0)
    voxels *= 1.0 + amount * np.maximum(gain * uneven - 1.0, -0.1)
    return mask


def add_effusion(
    voxels: FloatArray,
    *,
    t1: FloatArray,
    head: BoolArray,
    grid: Grid,
    hip: Hip,
    neck: DoubleArray,
    surface: Surface,
    fluid: float,
    rng: np.random.Generator,
    severity: Severity,
) -> BoolArray:
    """Fill the capsule with fluid in place; returns the mask ``(Z, Y, X)`` of the effusion.

    The fluid lies on the surface of head and neck, outside of a thin line of cortex. It
    distends the capsule unevenly along the neck, beyond the labrum; where the head touches
    socket and labrum it is a thin film.
    """
    off = offsets(grid, hip.centre_mm)
    axis = neck.astype(np.float32)
    along = off @ axis
    radial = np.linalg.norm(off - along[..., None] * axis, axis=-1)
    radius = hip.radius_mm
    ball = depth(off, hip, surface)
    waist = radius * (0.66 + 0.12 * np.clip(np.abs(along / radius - 1.25), 0, 1))
    collar = np.where(along > 0, radial - waist, ball)
    skin = np.minimum(ball, collar)
    # 0 where the socket and the labrum hold the head, 1 along the neck; 0 again where
    # the capsule ends
    out = along / np.maximum(np.linalg.norm(off, axis=-1), 1.0)
    free = 1.0 / (1.0 + np.exp(np.clip(-(out - rng.uniform(0.1, 0.45)) / 0.1, -30, 30)))
    free = free * np.clip((rng.uniform(1.55, 1.9) - along / radius) / 0.35, 0.0, 1.0)
    thickness = rng.uniform(*severity.effusion_mm)
    lobes = np.clip(0.65 + 0.45 * noise_field(rng, grid, rng.uniform(5, 12)), 0.0, 1.25)
    film = 0.6 * np.clip(noise_field(rng, grid, 6.0), 0.0, 1.0) * (np.abs(ball) < 3)
    # in front and behind, tendons and the capsule's shorter back press the fluid away
    ahead = -off[..., 1] / radius
    pressed = 0.45 * np.clip((ahead - 0.7) / 0.3, 0, 1) + 0.8 * np.clip((-ahead - 0.7) / 0.3, 0, 1)
    wide = np.maximum(
        thickness * lobes * free * (1.0 - pressed), film * rng.uniform(0.2, 1.0)
    ).astype(np.float32)
    # bone keeps its place: marrow of neck and socket is not displaced
    usual = float(np.median(t1[head])) if head.any() else 0.65
    bone = ndimage.binary_opening((np.abs(t1 - usual) < 0.17) & ~head, _DISC, iterations=2)
    bone &= (collar < 2.5) | (free < 0.5)
    share = np.clip((wide + _CORTEX_MM - skin) / 0.9 + 0.5, 0.0, 1.0)
    share *= np.clip((skin - _CORTEX_MM) / 0.9 + 0.5, 0.0, 1.0)
    share *= np.clip(wide / 1.5, 0.0, 1.0) * ~head * ~bone
    share = (ndimage.gaussian_filter(share, (0, 0.5, 0.5)) * ~head).astype(np.float32)
    uneven = np.clip(1.0 + 0.15 * noise_field(rng, grid, 2.0), 0.5, 1.4)
    level = fluid * rng.uniform(0.6, 1.05)
    voxels += share * (level * uneven - voxels)
    mask: BoolArray = share > 0.5
    return _pieces(mask, grid)


def _pieces(mask: BoolArray, grid: Grid, least_ml: float = 0.03) -> BoolArray:
    """Keep connected pieces of at least ``least_ml``."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    keep = np.bincount(labels.ravel()) * grid.voxel_ml >= least_ml
    keep[0] = False
    kept: BoolArray = keep[labels]
    return kept


def inflame(
    voxels: FloatArray,
    anatomy: Anatomy,
    burden: Burden,
    tissues: Tissues,
    rng: np.random.Generator,
) -> tuple[Masks, ...]:
    """Add lesions to every hip in place; returns the truth, one :class:`Masks` per hip."""
    result = []
    grid = anatomy.volume.grid
    for hip, neck, surface, head in zip(
        anatomy.hips, anatomy.necks, anatomy.surfaces, anatomy.heads, strict=True
    ):
        severity = SEVERITY[burden]
        region = box(grid, hip.centre_mm, 3.0 * hip.radius_mm)
        local, inside = part(grid, region), head[region]
        image = np.ascontiguousarray(voxels[region])
        masks = np.zeros((3, *grid.shape), dtype=np.bool_)
        masks[0] = head
        masks[1][region] = add_edema(image, inside, local, hip, rng=rng, severity=severity)
        masks[2][region] = add_effusion(
            image,
            t1=anatomy.t1[region],
            head=inside,
            grid=local,
            hip=hip,
            neck=neck,
            surface=surface,
            fluid=tissues.fluid,
            rng=rng,
            severity=severity,
        )
        voxels[region] = image
        result.append(Masks(side=hip.side, voxels=masks))
    return tuple(result)


def add_distractors(
    voxels: FloatArray, anatomy: Anatomy, tissues: Tissues, rng: np.random.Generator
) -> None:
    """Add in place what is bright without being a lesion: bladder, vessels, bursae."""
    grid = anatomy.volume.grid
    centres = np.array([hip.centre_mm for hip in anatomy.hips])
    middle = centres.mean(axis=0)
    if rng.random() < 0.8 and len(centres) > 1:
        place = middle + np.array([rng.normal(0, 6), rng.uniform(-30, -5), rng.uniform(10, 45)])
        radii = rng.uniform([20, 15, 12], [42, 35, 34])
        level = tissues.fluid * rng.uniform(0.8, 1.2)
        _paint_blob(voxels, grid, place=place, radii=radii, level=level, rng=rng)
    for hip in anatomy.hips:
        lateral = 1.0 if hip.side is Side.LEFT else -1.0
        centre = np.array(hip.centre_mm)
        for _ in range(int(rng.integers(0, 3))):
            ahead = -hip.radius_mm - rng.uniform(7, 18)
            start = centre + np.array([-lateral * rng.uniform(0, 16), ahead, -20.0])
            run = np.array([-lateral * rng.uniform(-0.1, 0.6), rng.uniform(-0.2, 0.5), 1.0])
            ends = (start - 45 * run, start + 90 * run)
            level = tissues.fluid * rng.uniform(0.35, 1.0)
            _paint_tube(voxels, grid, ends=ends, radius=rng.uniform(2, 4.5), level=level)
        if rng.random() < 0.5:
            place = centre + _direction(rng) * hip.radius_mm * rng.uniform(2.1, 2.8)
            level = tissues.fluid * rng.uniform(0.5, 1.0)
            radii = rng.uniform(2.5, 8, 3)
            _paint_blob(voxels, grid, place=place, radii=radii, level=level, rng=rng)


def _paint_blob(
    voxels: FloatArray,
    grid: Grid,
    *,
    place: DoubleArray,
    radii: DoubleArray,
    level: float,
    rng: np.random.Generator,
) -> None:
    region = box(grid, place.tolist(), float(radii.max()) * 1.5)
    local = part(grid, region)
    if 0 in local.shape:
        return
    distance = np.linalg.norm(offsets(local, place.tolist()) / radii, axis=-1)
    distance += 0.1 * noise_field(rng, local, 8.0)
    share = np.clip((1.0 - distance) * float(radii.mean()) / 1.0 + 0.5, 0.0, 1.0)
    voxels[region] += (share * (level - voxels[region])).astype(np.float32)


def _paint_tube(
    voxels: FloatArray,
    grid: Grid,
    *,
    ends: tuple[DoubleArray, DoubleArray],
    radius: float,
    level: float,
) -> None:
    start, end = ends
    middle, reach = (start + end) / 2, float(np.linalg.norm(end - start)) / 2 + radius
    region = box(grid, middle.tolist(), reach)
    local = part(grid, region)
    if 0 in local.shape:
        return
    axis = ((end - start) / np.linalg.norm(end - start)).astype(np.float32)
    off = offsets(local, start.tolist())
    along = np.clip(off @ axis, 0.0, 2 * reach)
    bow = (
        4.0
        * np.sin(np.pi * along / (2 * reach))[..., None]
        * np.array([0, -1, 0], dtype=np.float32)
    )
    distance = np.linalg.norm(off - along[..., None] * axis - bow, axis=-1) - radius
    share = np.clip(0.5 - distance, 0.0, 1.0)
    voxels[region] += (share * (level - voxels[region])).astype(np.float32)
