"""Soft tissue and bones of the synthetic pelvis, up to the hip joints.

Every point is given in the template of :meth:`Build.at`: (lateral, posterior,
superior) of the midpoint between the femoral heads, mm.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage

from hipscore.domain import DoubleArray, FloatArray
from hipscore.phantom.build import Build, HipBuild
from hipscore.phantom.canvas import (
    Canvas,
    Shape,
    ball,
    belly,
    blend,
    ellipsoid,
    meet,
    rotation,
    share,
)

SIDES = (-1.0, 1.0)
CORTEX = 0.12

Point = tuple[float, float, float]
#: (start, end, radius at start / middle / end, flat direction or None, its share)
Strand = tuple[Point, Point, tuple[float, float, float], Point | None, float]

#: Muscle compartments of one side, filled before the single muscles divide them.
COMPARTMENTS: tuple[Strand, ...] = (
    ((84, 2, -46), (86, 4, -260), (34, 66, 62), (0, 1, 0), 0.92),  # thigh
    ((60, -6, -34), (80, 2, -130), (22, 48, 46), (0.2, 1, 0), 0.8),  # adductors
    ((112, -4, 112), (134, 0, -2), (26, 46, 20), (1, -0.1, 0.25), 0.52),  # gluteal
    ((78, 30, 92), (130, 26, 2), (28, 48, 24), (-0.3, 1, 0), 0.6),  # gluteals behind the wing
    ((68, 66, 74), (142, 38, -62), (34, 64, 40), (-0.45, 1, 0.1), 0.42),  # gluteus maximus
)

#: Muscles of one side, drawn deep to superficial.
MUSCLES: tuple[Strand, ...] = (
    ((50, 4, 22), (50, 24, -38), (12, 26, 10), (1, 0.1, 0), 0.28),  # obturator internus
    ((48, 26, 8), (6, 34, -46), (8, 22, 8), (1, 0, -0.9), 0.14),  # levator ani
    ((30, -22, -38), (98, 18, -26), (13, 15, 6), None, 1.0),  # obturator externus
    ((60, 30, -50), (118, 26, -36), (10, 12, 9), (0, 1, 0), 0.7),  # quadratus femoris
    ((30, 56, 48), (130, 16, 14), (10, 13, 4), None, 1.0),  # piriformis
    ((55, 36, 0), (124, 18, 2), (6, 9, 4), None, 1.0),  # gemelli
    ((106, -2, 88), (126, 4, 6), (24, 40, 9), (1, 0.0, 0.2), 0.36),  # gluteus minimus
    ((118, 4, 122), (146, 10, -4), (36, 66, 14), (1, -0.1, 0.2), 0.36),  # gluteus medius
    ((124, -46, 72), (146, -28, -80), (9, 20, 11), (1, 0.3, 0), 0.7),  # tensor fasciae latae
    ((106, -8, 112), (78, -34, 16), (28, 34, 13), (1, 0.4, 0), 0.55),  # iliacus
    ((44, 4, 185), (62, -14, 70), (20, 25, 19), None, 1.0),  # psoas, lumbar
    ((62, -14, 70), (80, -36, 4), (19, 18, 15), None, 1.0),  # iliopsoas, pelvic brim
    ((80, -36, 4), (82, 8, -62), (15, 15, 6), None, 1.0),  # iliopsoas, to lesser trochanter
    ((26, -40, -20), (92, -2, -78), (13, 20, 9), (0.3, 1, 0.3), 0.75),  # pectineus
    ((16, -40, -38), (90, -8, -200), (10, 26, 16), None, 1.0),  # adductor longus
    ((20, -32, -46), (94, 0, -150), (11, 24, 12), None, 1.0),  # adductor brevis
    ((44, 14, -62), (84, 14, -240), (20, 44, 36), (0.3, 1, 0), 0.75),  # adductor magnus
    ((13, -24, -50), (34, 0, -230), (6, 12, 10), None, 1.0),  # gracilis
    ((62, 44, -60), (82, 48, -240), (13, 30, 25), None, 1.0),  # hamstrings
    ((134, -4, -40), (126, -8, -250), (14, 32, 30), (0.2, 1, 0), 1.0),  # vastus lateralis
    ((112, -24, -58), (108, -30, -240), (12, 25, 22), None, 1.0),  # vastus intermedius
    ((90, -16, -76), (80, -26, -240), (8, 22, 24), None, 1.0),  # vastus medialis
    ((94, -42, 26), (104, -52, -230), (8, 20, 18), None, 1.0),  # rectus femoris
    ((118, -52, 78), (62, -58, -170), (6, 11, 10), None, 1.0),  # sartorius
    ((30, 90, 190), (22, 94, 66), (30, 30, 10), (0, 1, 0), 0.8),  # erector spinae
    ((26, -82, 175), (16, -58, -6), (28, 26, 9), (0, 1, -0.1), 0.28),  # rectus abdominis
    ((134, 0, 185), (128, -30, 112), (50, 46, 16), (1, 0.2, 0.2), 0.2),  # oblique muscles
)

#: Arteries, veins and nerves of one side: start, end, radius mm, signal.
VESSELS: tuple[tuple[Point, Point, float, float], ...] = (
    ((16, 0, 150), (34, 4, 96), 5.5, 1.7),
    ((34, 4, 96), (60, -44, 14), 4.5, 1.8),
    ((28, 12, 100), (52, -40, 12), 5.0, 2.6),
    ((60, -44, 14), (68, -56, -90), 3.8, 1.7),
    ((52, -42, 12), (60, -52, -90), 4.2, 2.8),
    ((68, -56, -90), (58, -34, -230), 3.4, 2.2),
    ((62, -48, -30), (94, -14, -130), 2.4, 2.6),
    ((34, 6, 94), (46, 40, 40), 3.0, 2.6),
    ((46, 40, 40), (30, 30, -10), 2.2, 3.0),
    ((64, -46, -18), (126, -16, -42), 1.6, 2.6),
    ((66, -44, -24), (72, 20, -66), 1.4, 2.6),
    ((70, 46, 18), (76, 44, -60), 4.0, 1.4),
    ((76, 44, -60), (86, 32, -230), 4.0, 1.4),
    ((50, -52, 0), (30, -70, 60), 1.3, 2.6),
    ((56, -64, -20), (56, -72, -200), 2.0, 2.6),
)


def body_distance(x: FloatArray, y: FloatArray, z: FloatArray, build: Build) -> FloatArray:
    """Signed distance to the skin: trunk and two thighs, mm."""
    wide = build.half_mm + 58.0 * build.scale + build.fat_mm
    deep = 88.0 * build.scale + 0.7 * build.fat_mm
    height = np.clip(z, -100.0, 220.0)
    half_width = wide - height * height * np.float32(0.0005)
    u = x / half_width
    v = (y - 12.0 + 0.03 * height) * np.float32(1.0 / deep)
    uu, vv = u * u, v * v
    radius = 0.5 * np.sqrt(uu + vv) + 0.5 * np.sqrt(np.sqrt(uu * uu + vv * vv))
    trunk = (radius - 1.0) * np.minimum(half_width, deep)
    # the trunk ends at the perineum
    out = meet(trunk, -(z + 78.0 * build.scale), 30.0)
    thigh = 0.5 * wide - 2.0
    deeper = (80.0 * build.scale + 0.5 * build.fat_mm) / thigh
    for side in SIDES:
        top, foot = (np.array([side * 0.5 * wide, 6.0, z]) for z in (-10.0, -330.0))
        leg = belly(top, foot, (thigh * 0.98, thigh, thigh * 0.84), ((0, 1, 0), deeper))
        out = blend(out, leg.distance(x, y, z), 14.0)
    return out


def _strand(build: Build, side: float, strand: Strand, shift: DoubleArray) -> Shape:
    start, end, radius, flat, part = strand
    direction = None if flat is None else ((side * flat[0], flat[1], flat[2]), part)
    grown = (radius[0] * build.bulk, radius[1] * build.bulk, radius[2] * build.bulk)
    return belly(
        build.at(side, *start) + shift[0], build.at(side, *end) + shift[1], grown, direction
    )


def paint_muscles(
    canvas: Canvas, build: Build, texture: FloatArray, rng: np.random.Generator
) -> None:
    """Muscles with fat planes between them, then vessels and nerves."""
    for strand in COMPARTMENTS:
        for side in SIDES:
            canvas.paint(_strand(build, side, strand, np.zeros((2, 3))), texture)
    for strand in MUSCLES:
        for side in SIDES:
            shape = _strand(build, side, strand, rng.normal(0, 2.0, (2, 3)))
            plane = float(rng.uniform(0.9, 2.3))
            # fat sets each muscle off from the one below it
            canvas.paint_layers(shape, ((plane, build.fat), (0.0, texture)))
    for start, end, radius, signal in VESSELS:
        for side in SIDES:
            a, b = build.at(side, *start), build.at(side, *end)
            a += rng.normal(0, 2.0, 3)
            b += rng.normal(0, 2.0, 3)
            canvas.paint(
                belly(a, b, (radius, radius, radius)), signal * float(rng.uniform(0.8, 1.2))
            )


def paint_viscera(
    canvas: Canvas, build: Build, fluid: float, texture: FloatArray, rng: np.random.Generator
) -> None:
    """Bowel, uterus or prostate, rectum, perineum and bladder."""
    mottled = np.clip(1.1 + 0.4 * texture, 0.5, 1.9)
    for _ in range(46):
        a = build.at(1.0, *(rng.uniform((-85, -62, 66), (85, 10, 190))))
        b = a + rng.normal(0, 15, 3)
        wide = float(rng.uniform(7, 14))
        wall, content = belly(a, b, (wide, wide, wide)), belly(a, b, (wide - 2.5,) * 3)
        kind = rng.random()
        canvas.paint(wall, 1.15)
        if kind < 0.12:
            canvas.paint(content, fluid * float(rng.uniform(0.4, 0.8)))
        elif kind < 0.35:
            canvas.paint(content, 0.15)
        else:
            canvas.paint(content, mottled)
    lean = rotation(float(rng.uniform(10, 50)), 0, float(rng.uniform(-8, 8)))
    womb = build.at(1.0, float(rng.normal(0, 5)), 10, float(rng.uniform(22, 48)))
    size = float(rng.uniform(0.65, 1.1))
    canvas.paint(ellipsoid(womb, np.array([24, 18, 30]) * size, lean), 1.6)
    canvas.paint(ellipsoid(womb, np.array([9, 4, 18]) * size, lean), 3.2)
    gut = (build.at(1.0, 4, 40, 60), build.at(1.0, 0, 48, 14), build.at(1.0, 0, 34, -40))
    for a, b in pairwise(gut):
        canvas.paint(belly(a, b, (15, 14, 10)), 1.25)
        canvas.paint(belly(a, b, (10, 10, 4)), mottled)
    canvas.paint(ellipsoid(build.at(1.0, 0, 14, -44), (13, 26, 16)), 1.1)
    full = float(rng.uniform(0.6, 1.25))
    bladder = build.at(1.0, float(rng.normal(0, 6)), -22, 8 + 18 * full)
    radii = np.array([40, 24, 22]) * np.array([full, 0.5 + 0.5 * full, full]) * build.scale
    turn = rotation(-15, float(rng.normal(0, 6)), 0)
    canvas.paint(ellipsoid(bladder, radii + 3.0, turn), 1.1)
    canvas.paint(ellipsoid(bladder, radii, turn), fluid * float(rng.uniform(1.0, 1.15)))


#: Outline of the iliac wing seen from the side: (posterior, superior).
_WING = np.array(
    [
        (-16, 22), (-30, 28), (-38, 38), (-38, 52), (-50, 82), (-40, 106), (-18, 128), (12, 138),
        (44, 128), (66, 104), (80, 80), (72, 66), (66, 48), (50, 34), (38, 32), (28, 22),
    ],
    dtype=np.float64,
)  # fmt: skip


def _wing_table() -> FloatArray:
    """Signed distance inside the wing outline on a 1 mm raster, origin (-100, -50)."""
    posterior, superior = np.mgrid[-100:140, -50:200].astype(np.float64)
    inside = np.zeros(posterior.shape, dtype=bool)
    for (p0, s0), (p1, s1) in zip(_WING, np.roll(_WING, -1, axis=0), strict=True):
        crosses = (s0 > superior) != (s1 > superior)
        at = p0 + (superior - s0) * (p1 - p0) / (s1 - s0 + 1e-9)
        inside ^= crosses & (posterior < at)
    outer = ndimage.distance_transform_edt(~inside)
    table: FloatArray = np.where(
        inside, 0.5 - ndimage.distance_transform_edt(inside), outer - 0.5
    ).astype(np.float32)
    return table


_TABLE = _wing_table()


def _wing(build: Build, side: float) -> Shape:
    """The iliac wing: a bent plate, thick at its rim and thin in the middle."""
    across, scale = build.half_mm / 87.5, build.scale

    def distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        p, s = y * np.float32(1 / scale), z * np.float32(1 / scale)
        at_p = np.clip(p + 100.5, 0, 239).astype(np.intp)
        at_s = np.clip(s + 50.5, 0, 249).astype(np.intp)
        outline = _TABLE[at_p, at_s]
        front = 0.5 * (-p - 5.0 + np.sqrt((p + 5.0) ** 2 + 200.0))
        lean = np.clip(0.3 - 0.012 * p, -0.12, 0.55)
        centre = 68.0 - 18.0 * np.tanh((p - 22.0) * (1 / 14.0)) + lean * (s - 25.0) + 0.25 * front
        # the plate leans, so its thickness is less than its extent along x
        off = np.abs(side * x * np.float32(1 / across) - centre) * 0.8
        rim = np.exp(np.minimum(outline, 0.0) * (1 / 7.0))
        low = np.exp(-np.clip(s - 22.0, 0.0, None) * (1 / 20.0))
        thick_back = 3.5 / (1.0 + np.exp((16.0 - p) * 0.2))
        plate = off - (2.6 + 3.0 * rim + 9.0 * low + thick_back)
        return meet(plate, outline, 9.0)

    a, b = build.at(side, 15, -55, 15), build.at(side, 160, 85, 145)
    return Shape(np.minimum(a, b), np.maximum(a, b), distance)


def pelvic_field(canvas: Canvas, build: Build, hip: HipBuild) -> FloatArray:
    """Signed distance ``(Z, Y, X)`` to one innominate bone, the joint cavity hollowed out."""
    side, r, c = hip.sign, hip.radius, hip.centre
    f = r / 24.0

    def at(lateral: float, posterior: float, superior: float) -> DoubleArray:
        return build.at(side, lateral, posterior, superior)

    field = canvas.field()
    roof = c + hip.off(-3, 2, 9) * f
    cup = canvas.field()
    canvas.unite(cup, ball(roof, r + 9.0 * f), 1.0)
    nx, ny, nz = (float(v) for v in hip.mouth)
    cx, cy, cz = (float(v) for v in c)
    region = canvas.region(roof - r - 16 * f, roof + r + 16 * f)
    if region is not None:
        x, y, z = canvas.x[region], canvas.y[region], canvas.z[region]
        lip = (x - cx) * nx + (y - cy) * ny + (z - cz) * nz + np.float32(0.2 * r)
        cup[region] = np.maximum(cup[region], lip)
        np.copyto(field[region], cup[region])
    canvas.unite(field, _wing(build, side), 8.0)
    back = (0.3, 1.0, 0.0)
    for shape in (
        belly(c + hip.off(-6, 2, 1.25 * r), at(96, -2, 58), (17 * f, 13, 9), ((1, 0, -0.3), 0.7)),
        belly(at(90, -26, 26), at(92, -38, 40), (10, 9, 7)),  # anterior inferior spine
        belly(c + hip.off(-12, -22, -8) * f, at(52, -38, -11), (13 * f, 10, 8.5)),
        belly(at(52, -38, -11), at(15, -44, -22), (8.5, 8, 9)),  # superior pubic ramus
        belly(at(13, -45, -20), at(12, -34, -47), (8, 9.5, 8), ((0, 1, 0.3), 0.8)),  # pubis
        belly(c + hip.off(-13, 22, 2) * f, at(62, 38, -36), (15 * f, 13, 12), (back, 0.85)),
        belly(at(62, 38, -36), at(58, 32, -60), (12, 13, 9)),  # ischial tuberosity
        belly(at(57, 28, -62), at(16, -30, -50), (8, 6, 7)),  # ischiopubic ramus
        belly(c + hip.off(-16, 24, 6) * f, at(54, 46, 4), (9, 6, 3)),  # ischial spine
    ):
        canvas.unite(field, shape, 7.0)
    return field


def sacrum_shapes(build: Build) -> list[Shape]:
    """Sacrum and coccyx."""
    shapes: list[Shape] = []
    for lateral, posterior, superior, radii in (
        (0, 26, 94, (30, 17, 17)),
        (0, 44, 74, (30, 13, 16)),
        (0, 58, 52, (31, 12, 16)),
        (0, 65, 30, (22, 9, 14)),
        (0, 64, 8, (14, 6, 14)),
        (0, 56, -10, (8, 5, 12)),
    ):
        turn = rotation(-28 if superior > 30 else 12, 0, 0)
        shapes.append(ellipsoid(build.at(1.0, lateral, posterior, superior), radii, turn))
    for side in SIDES:
        for lateral, posterior, superior, radii in (
            (32, 30, 86, (22, 15, 20)),
            (32, 46, 70, (22, 15, 22)),
        ):
            shapes.append(
                ellipsoid(
                    build.at(side, lateral, posterior, superior), radii, rotation(-28, 0, side * 20)
                )
            )
    return shapes


def paint_spine(
    canvas: Canvas, build: Build, marrow: float | FloatArray, fluid: float, rng: np.random.Generator
) -> None:
    """Lumbar vertebrae with discs, sacrum and the thecal sac."""
    for level in range(3):
        centre = build.at(1.0, 0, 8 - 5 * level, 127 + 36 * level)
        turn = rotation(-18 + 12 * level, 0, 0)
        body = _drum(centre, turn, (25.0, 17.0), 13.5)
        canvas.paint_layers(body, ((0.0, CORTEX), (-1.0, marrow)))
        disc = centre + turn @ np.array([0, 0, -18.5 * build.scale])
        canvas.paint(ellipsoid(disc, (23, 16, 4.5), turn), float(rng.uniform(0.7, 1.8)))
        sac = centre + turn @ np.array([0, 28.0, 0])
        lower = sac + turn @ np.array([0, 2.0, -36.0])
        canvas.paint(belly(lower, sac, (8, 8, 8)), fluid * 0.8)
        canvas.paint(belly(lower, sac, (3.5, 4, 3.5)), 1.5)
    field = canvas.field()
    for shape in sacrum_shapes(build):
        canvas.unite(field, shape, 5.0)
    paint_bone(canvas, field, marrow, 0.8)
    for side in SIDES:
        for level in range(3):  # sacral foramina with fat and nerve roots
            hole = build.at(side, 19 - 2 * level, 40 + 10 * level, 84 - 21 * level)
            canvas.paint(ellipsoid(hole, (4, 9, 4)), build.fat)
            canvas.paint(ball(hole, 2.2), 1.8)
    canvas.paint(belly(build.at(1.0, 0, 46, 98), build.at(1.0, 0, 66, 62), (6, 6, 3)), fluid * 0.8)


def _drum(centre: DoubleArray, turn: DoubleArray, radii: tuple[float, float], half: float) -> Shape:
    """A waisted elliptical cylinder along the turned z axis: a vertebral body."""
    cx, cy, cz = (float(v) for v in centre)
    m = [[float(v) for v in column] for column in turn.T]
    rx, ry = radii

    def distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        dx, dy, dz = x - cx, y - cy, z - cz
        u, v, w = (row[0] * dx + row[1] * dy + row[2] * dz for row in m)
        height = np.abs(w)
        side = (np.sqrt((u / rx) ** 2 + (v / ry) ** 2) - 1.0) * min(rx, ry)
        waist = side + 2.0 * (1.0 - np.clip(height / half, 0.0, 1.0))
        return meet(waist, height - half, 4.0)

    return Shape(centre - 1.5 * rx, centre + 1.5 * rx, distance)


def paint_bone(
    canvas: Canvas, field: FloatArray, marrow: float | FloatArray, cortex_mm: float
) -> None:
    """Paint the bone of a distance field ``(Z, Y, X)``."""
    for piece in canvas.pieces():
        distance = field[piece]
        if distance.min() < canvas.edge_mm:
            canvas.cover(piece, share(distance, canvas.edge_mm), CORTEX)
            over = marrow[piece] if isinstance(marrow, np.ndarray) else marrow
            canvas.cover(piece, share(distance + cortex_mm, canvas.edge_mm), over)


def paint_body(canvas: Canvas, build: Build, septa: FloatArray) -> FloatArray:
    """Skin, and fat with its septa; returns the distance to the skin ``(Z, Y, X)``, mm."""
    distance = canvas.field()
    for piece in canvas.pieces():
        part = body_distance(canvas.x[piece], canvas.y[piece], canvas.z[piece], build)
        canvas.cover(piece, share(part, canvas.edge_mm), build.skin)
        canvas.cover(piece, share(part + 1.6, canvas.edge_mm), build.fat * septa[piece])
        distance[piece] = part
    return distance
