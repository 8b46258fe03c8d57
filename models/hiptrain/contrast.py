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


def draw_tissues(rng: np.random.Generator, fat: tuple[float, float] | None = None) -> Tissues:
    """Draw signals: marrow 0.6 to 1.5 times, fluid 5 to 7 times the median tissue.

    The median tissue of a pelvis is about 0.75 of muscle. Every sixth acquisition
    suppresses fat badly; ``fat`` gives its range instead.
    """
    low, high = fat or ((0.12, 0.5) if rng.random() < 5 / 6 else (0.5, 1.1))
    return Tissues(
        fat=float(rng.uniform(low, high)),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanner:
    """Marks of one acquisition. ``blur_mm`` is a Gaussian's deviation in the plane.

    ``shading`` is the deviation of the coil field's coefficients, ``noise`` the deviation
    of the noise in each channel (muscle = 1), ``ghost`` the strength of the ghosts and
    ``ghost_rows`` whether they run along the rows' axis, ``gamma`` a curve of the signal
    (1: none).
    """

    blur_mm: float = 0.4
    shading: float = 0.13
    noise: float = 0.06
    ghost: float = 0.0
    ghost_rows: bool = False
    gamma: float = 1.0


def draw_scanner(rng: np.random.Generator, *, rough: bool) -> Scanner:
    """Draw the marks of an ordinary acquisition, or (``rough``) now and then of a bad one."""
    noise = float(rng.choice([0.03, 0.06, 0.1, 0.15])) * rng.uniform(0.7, 1.3)
    if not rough:
        return Scanner(blur_mm=float(rng.uniform(0.0, 0.75)), noise=noise)
    return Scanner(
        blur_mm=float(rng.uniform(0.0, 0.75) if rng.random() < 0.8 else rng.uniform(0.7, 1.4)),
        shading=0.13 if rng.random() < 0.75 else 0.28,
        noise=noise if rng.random() < 0.8 else float(rng.uniform(0.15, 0.32)),
        ghost=0.0 if rng.random() < 0.8 else float(rng.uniform(0.04, 0.2)),
        ghost_rows=bool(rng.random() < 0.5),
        gamma=1.0 if rng.random() < 0.7 else float(rng.uniform(0.7, 1.4)),
    )


def scan(
    voxels: FloatArray, rng: np.random.Generator, spacing_mm: float, scanner: Scanner
) -> FloatArray:
    """Add what the scanner adds: blur, coil shading, ghosts, Rician noise, an arbitrary scale.

    Returns integer values as stored in 12 bits, ``(Z, Y, X)`` float32.
    """
    sigma = scanner.blur_mm / spacing_mm
    image = ndimage.gaussian_filter(voxels, (0, sigma, sigma)) if sigma > 0.2 else voxels
    if scanner.gamma != 1.0:
        image = np.maximum(image, 0.0) ** np.float32(scanner.gamma)
    image = image * shading(voxels.shape, rng, scanner.shading)
    if scanner.ghost:
        image = ghosted(image, rng, scanner.ghost, rows=scanner.ghost_rows)
    pair = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.float32(scanner.noise)
    magnitude = np.hypot(image + pair[0], pair[1])
    level = rng.uniform(80.0, 260.0)
    stored: FloatArray = np.clip(np.rint(magnitude * level), 0, 4095).astype(np.float32)
    return stored


def ghosted(
    image: FloatArray, rng: np.random.Generator, strength: float, *, rows: bool
) -> FloatArray:
    """Add copies of the image ``(Z, Y, X)``, shifted by a part of the field of view.

    What moved with a period during the acquisition appears again at equal distances along
    the phase-encoding direction; ``strength`` is the share of the nearest copies.
    """
    axis = 1 if rows else 2
    step = int(image.shape[axis] * rng.uniform(0.08, 0.3))
    phase = rng.uniform(0, 2 * np.pi, 2)
    result = image.astype(np.complex64)
    for order in (1, 2):
        for sign, turn in zip((-1, 1), phase, strict=True):
            copy = np.roll(image, sign * order * step, axis=axis)
            result = result + copy * np.complex64(strength / order**2 * np.exp(1j * order * turn))
    ghosts: FloatArray = np.abs(result).astype(np.float32)
    return ghosts


def shading(shape: tuple[int, ...], rng: np.random.Generator, deviation: float) -> FloatArray:
    """Smooth gain of surface coils; 0.6 to 1.6 for a deviation of 0.13."""
    z, y, x = (np.linspace(-1, 1, size, dtype=np.float32) for size in shape)
    a = rng.normal(0, deviation, 6)
    z, y, x = z[:, None, None], y[:, None], x[None, :]
    field = a[0] * z + a[1] * y + a[2] * x + a[3] * x * x + a[4] * y * y + a[5] * x * y
    gain: FloatArray = np.exp(field).astype(np.float32)
    return gain
