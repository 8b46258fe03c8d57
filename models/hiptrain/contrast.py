"""From T1 to a STIR-like contrast: which signal becomes which, and the scanner's marks.

Signal scale of the result: muscle = 1. Fat is nulled, muscle is mid-grey, cortical bone
and air stay black, marrow lies between, whatever is fluid is bright.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hipscore.domain import FloatArray
from hiptrain.anatomy import Anatomy, box, offsets, part

#: a pixel whose neighbourhood spans more than this (fat = 1) is a border of two tissues
_BORDER = 0.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissues:
    """Signals of one synthetic acquisition, muscle = 1."""

    fat: float
    #: bone marrow inside the femoral heads
    marrow: float
    fluid: float
    #: T1 signal that is darkest soft tissue, and that is muscle
    soft: tuple[float, float]


def draw_tissues(rng: np.random.Generator) -> Tissues:
    """Draw signals: marrow 0.6 to 1.5 times, fluid 5 to 7 times the median tissue.

    The median tissue of a pelvis is about 0.75 of muscle.
    """
    return Tissues(
        fat=float(rng.uniform(0.12, 0.5)),
        marrow=float(0.75 * rng.uniform(0.55, 1.5)),
        fluid=float(0.75 * rng.uniform(4.5, 7.5)),
        soft=(float(rng.uniform(0.1, 0.15)), float(rng.uniform(0.24, 0.32))),
    )


def stir(anatomy: Anatomy, tissues: Tissues, rng: np.random.Generator) -> FloatArray:
    """Voxels ``(Z, Y, X)`` in STIR-like contrast, without lesions, noise or shading."""
    t1 = anatomy.t1
    dark, muscle = tissues.soft
    bumps = rng.uniform(0.85, 1.15, 4)
    knots = np.array([0.0, 0.05, dark, muscle, 0.42, 0.62, 0.8, 1.0, 1.25, 3.0])
    levels = np.array(
        [
            0.0,
            0.05,
            0.75 * bumps[0],
            1.0,
            0.9 * bumps[1],
            0.5 * (tissues.fat + 0.6) * bumps[2],
            1.15 * tissues.fat * bumps[3],
            tissues.fat,
            0.9 * tissues.fat,
            1.2 * tissues.fat,
        ]
    )
    result = _mapped(t1, knots, levels)
    for hip, neck, head in zip(anatomy.hips, anatomy.necks, anatomy.heads, strict=True):
        grid = anatomy.volume.grid
        region = box(grid, hip.centre_mm, 3.2 * hip.radius_mm)
        inside = t1[region][head[region]]
        usual = float(np.clip(np.median(inside), 0.5, 0.85)) if inside.size else 0.65
        # the same tissue signal in neck, shaft and socket: one curve, faded out with distance
        bone_levels = levels.copy()
        bone_knots = np.array(
            [0.0, 0.05, dark, muscle, 0.8 * usual, usual, usual * 1.18, 1.0, 1.25, 3.0]
        )
        slope = rng.uniform(-0.25, 0.35)
        bone_levels[4] = tissues.marrow * (1.0 - slope)
        bone_levels[5] = tissues.marrow
        bone_levels[6] = 0.5 * (tissues.marrow * (1.0 + slope) + tissues.fat)
        bone = _mapped(t1[region], bone_knots, bone_levels)
        off = offsets(part(grid, region), hip.centre_mm)
        along = np.clip(off @ neck.astype(np.float32), 0.0, 1.9 * hip.radius_mm)
        axis = np.linalg.norm(off - along[..., None] * neck.astype(np.float32), axis=-1)
        width = hip.radius_mm * (1.1 - 0.25 * np.clip(along / hip.radius_mm - 0.6, 0.0, 1.0))
        near = 1.0 / (1.0 + np.exp(np.clip((axis - width - 1.0) / 2.5, -30, 30)))
        # inside the head a dark pixel is marrow with a vessel or a trabecula, no other tissue
        core = ndimage.binary_erosion(head[region], iterations=2)
        floor = tissues.marrow * np.clip(0.75 + 0.4 * (t1[region] / usual - 0.5), 0.6, 1.0)
        bone = np.where(core, np.maximum(bone, floor), bone)
        result[region] += (near * (bone - result[region])).astype(np.float32)
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, t1.shape).astype(np.float32), (1.0, 3.0, 3.0))
    result *= 1.0 + 0.06 * smooth / float(smooth.std())
    return result


def _mapped(t1: FloatArray, knots: FloatArray, levels: FloatArray) -> FloatArray:
    """Map T1 to STIR; a border pixel becomes the mixture of its two tissues.

    Mapping the mixture itself would draw a bright muscle-like rim around everything.
    """
    table = np.interp(np.arange(0, 3.0, 0.005), knots, levels).astype(np.float32)

    def look(signal: FloatArray) -> FloatArray:
        return table[np.clip(signal * 200, 0, len(table) - 1).astype(np.int32)]

    low = ndimage.minimum_filter(t1, (1, 3, 3))
    high = ndimage.maximum_filter(t1, (1, 3, 3))
    span = high - low
    share = (t1 - low) / np.maximum(span, 1e-3)
    mixed = look(low) + (look(high) - look(low)) * share
    weight = np.clip((span - 0.6 * _BORDER) / (0.8 * _BORDER), 0.0, 1.0)
    plain = look(t1)
    result: FloatArray = (plain + weight * (mixed - plain)).astype(np.float32)
    return result


def scan(voxels: FloatArray, rng: np.random.Generator, spacing_mm: float) -> FloatArray:
    """Add what the scanner adds: blur, coil shading, Rician noise, an arbitrary scale.

    Returns integer values as stored in 12 bits, ``(Z, Y, X)`` float32.
    """
    sigma = rng.uniform(0.0, 0.75) / spacing_mm
    image = ndimage.gaussian_filter(voxels, (0, sigma, sigma)) if sigma > 0.2 else voxels
    image = image * shading(voxels.shape, rng)
    noise = float(rng.choice([0.03, 0.06, 0.1, 0.15])) * rng.uniform(0.7, 1.3)
    pair = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(noise)
    magnitude = np.hypot(image + pair[0], pair[1])
    level = rng.uniform(80.0, 260.0)
    stored: FloatArray = np.clip(np.rint(magnitude * level), 0, 4095).astype(np.float32)
    return stored


def shading(shape: tuple[int, ...], rng: np.random.Generator) -> FloatArray:
    """Smooth gain of surface coils, about 0.6 to 1.6."""
    z, y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    a = rng.normal(0, 0.13, 6)
    z, y, x = z[:, None, None], y[:, None], x[None, :]
    field = a[0] * z + a[1] * y + a[2] * x + a[3] * x * x + a[4] * y * y + a[5] * x * y
    gain: FloatArray = np.exp(field).astype(np.float32)
    return gain
