"""From a seed to a scanned study with its truth."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from scipy import ndimage

from hipscore.domain import (
    Channel,
    DoubleArray,
    FloatArray,
    Grid,
    Hip,
    Masks,
    Point,
    Side,
    SliceSource,
    Volume,
)
from hipscore.phantom.build import HipBuild, draw_build, draw_turn, stream
from hipscore.phantom.canvas import Pose, noise, rotation
from hipscore.phantom.painter import Painter

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
#: 12 bits stored
CEILING = 4095

Anatomy = Literal["hip", "brain"]
Plane = Literal["coronal", "axial"]


class Burden(StrEnum):
    """How inflamed a synthetic hip is."""

    NONE = "none"
    MILD = "mild"
    MODERATE = "moderate"
    SEVERE = "severe"

    @property
    def level(self) -> int:
        """0 (none) to 3 (severe)."""
        return list(Burden).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phantom:
    """A synthetic study and its truth.

    ``masks``, ``hips`` and ``burdens`` run in parallel, the right hip first; a brain has
    none. A hip's centre (LPS mm) and radius (mm) are those of the sphere its head was
    made from, its confidence is 1. ``slice_mm`` is the slice thickness without the gap.
    """

    volume: Volume
    masks: tuple[Masks, ...]
    hips: tuple[Hip, ...]
    burdens: tuple[Burden, ...]
    seed: int
    anatomy: Anatomy
    plane: Plane
    slice_mm: float
    #: tells apart phantoms made with different arguments; UIDs derive from it
    key: str


def derive_uid(*parts: object) -> str:
    """A UID that depends on ``parts`` alone: ``2.25.`` and a 128-bit number (PS3.5 B.2)."""
    digest = hashlib.sha256("/".join(["hipscore-phantom", *map(str, parts)]).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def synthesise(
    *,
    seed: int,
    burden: Burden | Mapping[Side, Burden] = Burden.MODERATE,
    kinds: Collection[Channel] = (Channel.BME, Channel.SYNOVITIS),
    hips: Sequence[Side] = (Side.RIGHT, Side.LEFT),
    anatomy: Anatomy = "hip",
    plane: Plane = "coronal",
    rows: int = 384,
    columns: int | None = None,
    pixel_mm: float | None = None,
    slice_mm: float = 4.0,
    gap_mm: float = 1.0,
    slices: int = 24,
    tilt_deg: tuple[float, float] = (0.0, 0.0),
    supersampling: int = 3,
) -> Phantom:
    """Make one STIR study of a synthetic person.

    The person, the lesions' places and the scan depend on ``seed`` in separate streams:
    another burden, plane or matrix shows the same person.

    Parameters
    ----------
    seed
        Not negative.
    burden
        Of both hips, or one per side (a side left out has none).
    kinds
        Which lesions there are: BME, synovitis or both.
    hips
        The hips in view: both, or one (a small field of view around it).
    anatomy
        ``brain`` gives a head, with no hip in it.
    plane
        ``axial`` gives transverse slices, feet to head.
    rows, columns
        Matrix; ``columns`` defaults to ``rows``.
    pixel_mm
        Pixel size. By default drawn: a field of view of 350 to 400 mm for both hips,
        180 to 220 mm for one, 220 to 250 mm for a brain.
    slice_mm, gap_mm, slices
        Slice thickness, gap between slices, mm; number of slices.
    tilt_deg
        Obliquity: rotation of the slices about their row axis, then their column axis.
    supersampling
        Sections averaged through the thickness of each slice. Fewer are faster.

    Returns
    -------
    Phantom
        Slices anterior to posterior, 12-bit integer values.

    Raises
    ------
    ValueError
        If no hip is asked for, or a size is not positive, with the value.
    """
    wide = columns or rows
    if not hips and anatomy == "hip":
        msg = "hips is empty; name Side.RIGHT, Side.LEFT or both"
        raise ValueError(msg)
    if min(rows, wide, slices, supersampling) < 1 or slice_mm <= 0 or gap_mm < 0:
        msg = (
            f"cannot scan {slices} slices of {rows} x {wide} pixels, {slice_mm:g} mm thick with "
            f"{gap_mm:g} mm gaps and {supersampling} sections; sizes must be positive"
        )
        raise ValueError(msg)
    person = draw_build(stream(seed, "person"))
    present = tuple(h for h in person.hips if h.side in set(hips)) if anatomy == "hip" else ()
    levels = burden if isinstance(burden, Mapping) else {h.side: burden for h in present}
    burdens = tuple(levels.get(h.side, Burden.NONE) for h in present)

    pose, grid = _lay_out(
        seed, present, anatomy=anatomy, plane=plane, shape=(slices, rows, wide),
        pixel_mm=pixel_mm, step_mm=slice_mm + gap_mm, tilt_deg=tilt_deg,
    )  # fmt: skip
    offsets = ((np.arange(supersampling) + 0.5) / supersampling - 0.5) * slice_mm
    painter = Painter(seed, person, pose, grid, kinds=kinds, section_mm=slice_mm / supersampling)
    for offset in offsets / (slice_mm + gap_mm):
        if anatomy == "hip":
            painter.paint_hips(
                float(offset), {h.side: b.level for h, b in zip(present, burdens, strict=True)}
            )
        else:
            painter.paint_brain(float(offset))
    who = [(h.side.value, b.value) for h, b in zip(present, burdens, strict=True)]
    lesions = sorted(kinds)
    scan = (lesions, grid.shape, pixel_mm, slice_mm, gap_mm, tilt_deg, supersampling)
    key = repr((seed, who, anatomy, plane, *scan))
    voxels = _scan(painter.signal / np.float32(supersampling), grid, stream(seed, "scan"))
    return Phantom(
        volume=Volume(voxels=voxels, grid=grid, sources=_sources(key, slices)),
        masks=tuple(
            Masks(side=h.side, voxels=painter.truth(h.side, supersampling)) for h in present
        ),
        hips=tuple(
            Hip(
                side=h.side,
                centre_mm=_point(pose.to_lps(h.centre)),
                radius_mm=h.radius,
                confidence=1.0,
            )
            for h in present
        ),
        burdens=burdens,
        seed=seed,
        anatomy=anatomy,
        plane=plane,
        slice_mm=slice_mm,
        key=key,
    )


def _point(position: DoubleArray) -> Point:
    x, y, z = (float(v) for v in position)
    return x, y, z


def _sources(key: str, slices: int) -> tuple[SliceSource, ...]:
    return tuple(
        SliceSource(
            sop_class_uid=MR_IMAGE_STORAGE,
            sop_instance_uid=derive_uid(key, "instance", number),
            instance_number=number,
        )
        for number in range(1, slices + 1)
    )


def _lay_out(
    seed: int,
    present: tuple[HipBuild, ...],
    *,
    anatomy: Anatomy,
    plane: Plane,
    shape: tuple[int, int, int],
    pixel_mm: float | None,
    step_mm: float,
    tilt_deg: tuple[float, float],
) -> tuple[Pose, Grid]:
    """Place the person on the table and the stack of slices in the person."""
    rng = stream(seed, "layout")
    pose = Pose(rotation=draw_turn(rng), origin=rng.normal(0, (12, 15, 30)))
    shift = rng.normal(0, (4, 4, 8))
    if anatomy == "brain":
        field, centre = rng.uniform(220, 250), np.zeros(3)
    elif len(present) == 1:
        field, centre = rng.uniform(180, 220), present[0].centre + present[0].off(-6, 0, -6)
    else:
        field, centre = rng.uniform(350, 400), np.array([0.0, 2.0, 6.0])
    pixel = pixel_mm or float(field) / max(shape[1:])
    across, down, through = np.array([1.0, 0, 0]), np.array([0, 0, -1.0]), np.array([0, 1.0, 0])
    if plane == "axial":
        down, through = np.array([0, 1.0, 0]), np.array([0, 0, 1.0])
    turn = rotation(tilt_deg[0], 0, 0) @ (
        rotation(0, 0, tilt_deg[1]) if plane == "coronal" else rotation(0, tilt_deg[1], 0)
    )
    affine = np.eye(4)
    affine[:3, 0] = turn @ through * step_mm
    affine[:3, 1] = turn @ down * pixel
    affine[:3, 2] = turn @ across * pixel
    middle = (np.array(shape) - 1) / 2.0
    affine[:3, 3] = pose.to_lps(centre) + shift - affine[:3, :3] @ middle
    return pose, Grid(shape=shape, affine=affine)


def _scan(signal: FloatArray, grid: Grid, rng: np.random.Generator) -> FloatArray:
    """What the scanner makes of it: blur, coil shading, Rician noise, 12-bit integers."""
    blurred = ndimage.gaussian_filter1d(signal, 0.45, axis=1)
    blurred = ndimage.gaussian_filter1d(blurred, 0.45, axis=2)
    shading = noise(grid, (130.0, 130.0, 130.0), rng) * np.float32(rng.uniform(0.05, 0.13))
    index = np.linspace(-1.0, 1.0, grid.shape[1], dtype=np.float32)
    ends = -np.float32(rng.uniform(0.1, 0.35)) * np.clip(np.abs(index) - 0.45, 0.0, None) ** 2 / 0.3
    blurred *= np.exp(shading + ends[None, :, None])
    level, sigma = float(rng.uniform(130, 300)), np.float32(rng.uniform(0.03, 0.085))
    real = blurred + sigma * rng.standard_normal(grid.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(grid.shape, dtype=np.float32)
    magnitude = np.sqrt(real * real + imaginary * imaginary)
    out: FloatArray = np.clip(np.rint(magnitude * np.float32(level)), 0, CEILING).astype(np.float32)
    return out
