"""The hip joint of the phantom: femur, cartilage, capsule, effusion and marrow edema.

Truth is kept as the share of each voxel (0 to 1) that a structure fills; the study
thresholds the average over the slice thickness at one half.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from hipscore.domain import Channel, DoubleArray, FloatArray
from hipscore.phantom.build import HipBuild, unit
from hipscore.phantom.canvas import Canvas, Region, ball, belly, blend, ellipsoid, ramp, share
from hipscore.phantom.pelvis import CORTEX

#: cartilage of head and socket together, mm
JOINT_SPACE_MM = 3.4
#: a burden drawn at 0, and where its range starts and ends: effusion mm, blob radius mm
EFFUSION_MM = ((0.0, 0.0), (2.6, 3.8), (4.4, 6.4), (7.0, 10.5))
BLOB_MM = ((0.0, 0.0), (4.5, 7.0), (8.5, 11.5), (12.5, 17.0))
BLOBS = (0, 1, 2, 3)
#: how far effusion reaches down the neck, share of its length
REACH = (0.4, 0.5, 0.66, 0.8)
#: share of the effusion's thickness that is found on the far side too; mild fluid is focal
SPREAD = (0.2, 0.2, 0.38, 0.55)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesions:
    """The inflammation of one hip. ``blobs``: (centre in body mm, radius mm)."""

    effusion_mm: float
    reach: float
    spread: float
    favoured: DoubleArray
    blobs: tuple[tuple[DoubleArray, float], ...]
    contrast: float
    acetabular: tuple[DoubleArray, float] | None


def draw_lesions(
    rng: np.random.Generator, hip: HipBuild, level: int, kinds: Collection[Channel]
) -> Lesions:
    """Draw the lesions of the given kinds at a burden from 0 (none) to 3 (severe).

    The same stream gives the same places and relative sizes at every level, so that a
    higher level is a worse hip and not another one. BME is at its
    core 1.45 to 2.3 times the marrow around it.
    """
    thick, size = rng.random(2)
    favoured = unit(hip.off(*(rng.normal((0.4, -0.5, -0.5), 0.35))))
    contrast = float(np.clip(1.0 + rng.lognormal(np.log(0.85), 0.3), 1.45, 2.3))
    blobs: list[tuple[DoubleArray, float]] = []
    low, high = BLOB_MM[level]
    for number in range(max(BLOBS)):
        towards = unit(hip.off(*rng.normal((0.1, -0.25, 0.8), 0.55)))
        depth = float(rng.uniform(0.5, 0.8))
        shrink = float(rng.uniform(0.55, 0.95)) if number else 1.0
        if number < BLOBS[level] and Channel.BME in kinds:
            radius = (low + size * (high - low)) * shrink * hip.radius / 24.0
            blobs.append((hip.centre + towards * depth * hip.radius, radius))
    mirrored = hip.centre + unit(hip.off(*rng.normal((0.0, 0.0, 1.0), 0.2))) * hip.radius * 1.5
    beyond = rng.random() < 0.3 and len(blobs) > 0
    thin, wide = EFFUSION_MM[level if Channel.SYNOVITIS in kinds else 0]
    return Lesions(
        effusion_mm=thin + float(thick) * (wide - thin),
        reach=REACH[level],
        spread=SPREAD[level],
        favoured=favoured,
        blobs=tuple(blobs),
        contrast=contrast,
        acetabular=(mirrored, float(low) + 2.0) if beyond else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Tissue signals of one study, muscle = 1, and the textures ``(Z, Y, X)``, mean 0, SD 1."""

    marrow: float
    red_marrow: float
    fluid: float
    cartilage: float
    film: float
    fine: FloatArray
    coarse: FloatArray


@dataclass(slots=True, kw_only=True)
class Joint:
    """One hip joint laid on a canvas: the arrays all cover ``region``."""

    region: Region
    head: FloatArray
    neck: FloatArray
    along: FloatArray
    from_centre: FloatArray
    opening: FloatArray
    directions: tuple[FloatArray, FloatArray, FloatArray]


def lay_joint(canvas: Canvas, hip: HipBuild) -> Joint | None:
    """Measure distances around one hip; None where it is out of view."""
    c, r = hip.centre, hip.radius
    base = c + hip.neck * hip.neck_mm
    low, high = np.minimum(c, base) - r - 18, np.maximum(c, base) + r + 18
    region = canvas.region(low, high)
    if region is None:
        return None
    x, y, z = canvas.x[region], canvas.y[region], canvas.z[region]
    cx, cy, cz = (float(v) for v in c)
    dx, dy, dz = x - cx, y - cy, z - cz
    from_centre = np.sqrt(dx * dx + dy * dy + dz * dz)
    near = 1.0 / np.maximum(from_centre, 1e-3)
    ux, uy, uz = dx * near, dy * near, dz * near
    nx, ny, nz = (float(v) for v in hip.neck)
    mx, my, mz = (float(v) for v in hip.mouth)
    neck = belly(c, base, (0.8 * r, 0.62 * r, 0.8 * r), (np.cross(hip.neck, (0.0, 0.0, 1.0)), 0.86))
    a, b, d, e, g = (float(v) for v in hip.harmonics)
    # five harmonics of degree two: they keep the centroid, and nearly the volume
    bulge = (
        a * (3 * uz * uz - 1) * 0.5
        + b * (ux * ux - uy * uy)
        + d * ux * uy
        + e * uy * uz
        + g * ux * uz
    )
    return Joint(
        region=region,
        head=from_centre - np.float32(r) * (1.0 + bulge),
        neck=neck.distance(x, y, z),
        along=(dx * nx + dy * ny + dz * nz) * np.float32(1.0 / hip.neck_mm),
        from_centre=from_centre,
        opening=(dx * mx + dy * my + dz * mz) * np.float32(1.0 / r),
        directions=(ux, uy, uz),
    )


def effusion_distance(joint: Joint, lesions: Lesions, texture: FloatArray) -> FloatArray:
    """Signed distance to the fluid between cartilage or neck and the capsule, mm.

    The capsule runs from the rim of the socket down the neck; it bulges most at the
    junction of head and neck, in the favoured direction and irregularly.
    """
    ux, uy, uz = joint.directions
    fx, fy, fz = (float(v) for v in lesions.favoured)
    spread = lesions.spread
    facing = (spread + (1.0 - spread) * (ux * fx + uy * fy + uz * fz)).clip(0.0, 1.0)
    uncovered = ramp(joint.opening, -0.3, 0.25)
    along = joint.along
    down = 1.0 - ramp(along, lesions.reach - 0.15, lesions.reach + 0.1)
    bulge = 0.62 + 0.38 * np.exp(-(((along - 0.42) * 4.0) ** 2))
    thick = lesions.effusion_mm * facing * bulge * uncovered * down
    thick *= np.clip(1.0 + 0.28 * texture, 0.3, 1.6)
    inner = blend(joint.head - 1.2, joint.neck, 5.0)
    out: FloatArray = inner - thick
    # too thin to be told from the physiological film
    return np.where(thick > 0.6, out, np.float32(50.0))


def blob_distance(
    canvas: Canvas,
    region: Region,
    blobs: tuple[tuple[DoubleArray, float], ...],
    texture: FloatArray,
) -> FloatArray:
    """Signed distance to irregular blobs, mm."""
    out = np.full(texture.shape, 100.0, dtype=np.float32)
    for centre, radius in blobs:
        distance = canvas.distance(ball(centre, radius), region)
        np.minimum(out, distance + 0.22 * radius * texture, out=out)
    return out


def paint_fluids(canvas: Canvas, joint: Joint, lesions: Lesions, signals: Signals) -> FloatArray:
    """Capsule, effusion and labrum; returns the effusion's share of each voxel of the region."""
    region, edge = joint.region, canvas.edge_mm
    coarse = signals.coarse[region]
    shell = blend(joint.head - 1.2, joint.neck, 5.0)
    closed = ramp(joint.opening, -0.3, 0.1) * (1.0 - ramp(joint.along, 0.75, 1.0))
    fluid = effusion_distance(joint, lesions, coarse)
    capsule = np.minimum(shell - 1.5, fluid)
    canvas.cover(region, share(capsule - 2.2, edge) * closed, 0.3)
    canvas.cover(region, share(shell - 0.7, edge) * closed, signals.film)
    amount = share(fluid, edge)
    # synovium and debris make the fluid uneven
    uneven = (1.0 + 0.1 * signals.fine[region]).clip(0.6, 1.2)
    canvas.cover(region, amount, np.float32(signals.fluid) * uneven)
    return amount


def paint_socket_lining(canvas: Canvas, joint: Joint, hip: HipBuild, signals: Signals) -> None:
    """Cartilage with its thin film of fluid inside the socket, the fossa and the labrum."""
    region, edge, r = joint.region, canvas.edge_mm, np.float32(hip.radius)
    cavity = joint.from_centre - (r + JOINT_SPACE_MM)
    covered = 1.0 - ramp(joint.opening, -0.2, 0.0)
    canvas.cover(region, share(cavity, edge) * covered, signals.cartilage)
    film = np.abs(joint.from_centre - (r + np.float32(0.5 * JOINT_SPACE_MM))) - np.float32(0.4)
    canvas.cover(region, share(film, edge) * covered, signals.film)
    outward = joint.from_centre - (r + np.float32(5.0))
    rim = np.hypot((joint.opening + np.float32(0.16)) * r, outward) - np.float32(2.4)
    canvas.cover(region, share(rim, edge), 0.3)


def fossa(hip: HipBuild) -> tuple[DoubleArray, DoubleArray]:
    """Centre and radii of the acetabular fossa, medial and below the head."""
    towards = unit(hip.off(-0.9, 0.05, -0.35))
    return hip.centre + towards * (hip.radius + 3.5), np.array([4.5, 9.0, 10.0])


def paint_femur(
    canvas: Canvas, joint: Joint, hip: HipBuild, signals: Signals
) -> tuple[FloatArray, FloatArray]:
    """Femur with cortex and marrow.

    Returns the shares of each voxel of the joint's region that are bone, and head ball.
    """
    f = hip.radius / 24.0
    base = hip.centre + hip.neck * hip.neck_mm
    field = canvas.field()
    part = field[joint.region]
    np.copyto(part, blend(joint.head, joint.neck, 4.0))
    foot = base + hip.off(-16, 6, -220)
    for shape in (
        ellipsoid(base + hip.off(-1, 2, -2) * f, np.array([17, 15, 20]) * f),
        belly(base + hip.off(5, 4, -4) * f, base + hip.off(12, 9, 22) * f, (14 * f, 12 * f, 9 * f)),
        belly(base, base + hip.off(-13, 13, -30) * f, (12 * f, 9 * f, 6 * f)),
        belly(base + hip.off(2, 2, -12) * f, foot, (17 * f, 13.5 * f, 13 * f)),
    ):
        canvas.unite(field, shape, 8.0)
    for piece in canvas.pieces():
        if field[piece].min() < canvas.edge_mm:
            _paint_shaft(canvas, piece, field[piece], float(base[2]), signals)
    _paint_head_marrow(canvas, joint, signals)
    return share(field[joint.region], canvas.edge_mm), share(joint.head, canvas.edge_mm)


def _paint_shaft(
    canvas: Canvas, piece: Region, distance: FloatArray, base_z: float, signals: Signals
) -> None:
    """Cortex that thickens and marrow that turns fatty down the shaft."""
    below = np.float32(base_z) - canvas.z[piece]
    cortex = np.float32(1.1) + np.float32(4.4) * ramp(below, 12.0, 60.0)
    yellow = np.float32(1.0) - np.float32(0.3) * ramp(below, 40.0, 90.0)
    grain = 1.0 + 0.09 * signals.fine[piece] + 0.1 * signals.coarse[piece]
    value: FloatArray = np.float32(signals.red_marrow) * yellow * grain
    canvas.cover(piece, share(distance, canvas.edge_mm), CORTEX)
    canvas.cover(piece, share(distance + cortex, canvas.edge_mm), value)


def _paint_head_marrow(canvas: Canvas, joint: Joint, signals: Signals) -> None:
    """Fatty marrow of the head up to the scar of its growth plate."""
    region, edge = joint.region, canvas.edge_mm
    grain = 1.0 + 0.08 * signals.fine[region] + 0.05 * signals.coarse[region]
    value: FloatArray = np.float32(signals.marrow) * grain
    fatty = share(joint.head + 1.1, edge) * (1.0 - ramp(joint.along, 0.12, 0.24))
    canvas.cover(region, fatty, value)
    scar = np.abs(joint.along - 0.17 - 0.012 * signals.coarse[region]) * 40.0
    line = np.exp(-scar * scar * 0.6) * share(joint.head + 3.0, edge)
    canvas.cover(region, 0.35 * line, 0.3 * signals.marrow)


def paint_edema(
    canvas: Canvas, joint: Joint, lesions: Lesions, bone: FloatArray, signals: Signals
) -> FloatArray:
    """Brighten the marrow of the lesions; returns the lesions' share of each voxel.

    ``bone`` is the femur's share of each voxel. Edema may run on into the neck: there it
    is painted but is not truth (the caller cuts it to the head).
    """
    region, edge = joint.region, canvas.edge_mm
    distance = blob_distance(canvas, region, lesions.blobs, signals.coarse[region])
    femur: FloatArray = np.minimum(joint.head, joint.neck) + np.float32(1.1)
    marrow = ramp(bone * share(femur, edge), 0.5, 1.0)
    fill = ramp(-distance, -3.0, 2.5) * marrow
    _brighten(canvas, region, fill, lesions.contrast, signals)
    return share(distance, edge)


def _brighten(
    canvas: Canvas, region: Region, fill: FloatArray, contrast: float, signals: Signals
) -> None:
    """Raise the signal of marrow to ``contrast`` times where ``fill`` (0 to 1) says, unevenly."""
    texture = 1.0 + 0.16 * signals.fine[region] + 0.2 * signals.coarse[region]
    gain = 1.0 + fill * (contrast * texture.clip(0.4, 1.7) - 1.0)
    canvas.signal[region] *= gain.clip(1.0)


def paint_reaction(
    canvas: Canvas, joint: Joint, lesions: Lesions, socket: FloatArray, signals: Signals
) -> None:
    """Edema of the acetabular roof: seen in some inflamed hips, and no part of the truth."""
    if lesions.acetabular is None:
        return
    region = joint.region
    distance = blob_distance(canvas, region, (lesions.acetabular,), signals.coarse[region])
    fill = ramp(-distance, -3.0, 2.5) * ramp(socket, 0.5, 1.0)
    _brighten(canvas, region, fill, lesions.contrast, signals)
