"""Joints and limbs that are no hip: knee, shoulder, wrist, ankle, thighs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from hipscore.domain import DoubleArray, Volume
from hipscore.phantom.canvas import ball, belly, ellipsoid
from hiptrain.strangers.scene import Place, Scene, View, drum, limbs, mm, open_scene

_KNEE = View(wide=(140, 200), deep=(85, 125), centre=(0, 2, 5))
_KNEES = View(wide=(300, 430), deep=(85, 125), centre=(0, 2, 5), tall=(0.7, 1.1))
_SHOULDER = View(wide=(140, 210), deep=(65, 110), centre=(0, 4, -8), wander=(10, 6, 12))
_SHOULDERS = View(wide=(400, 470), deep=(70, 120), centre=(0, 4, -60), tall=(0.6, 1.0))
_WRIST = View(wide=(90, 190), deep=(45, 65), tall=(1.0, 1.5), centre=(0, 0, 15))
_ANKLE = View(wide=(130, 200), deep=(80, 130), centre=(0, 10, -15))
_THIGHS = View(wide=(300, 440), deep=(90, 150), centre=(0, 0, 0), wander=(12, 6, 25))


def knee(rng: np.random.Generator) -> Volume:
    """One knee, or both: condyles, plateau, patella, menisci, ligaments, effusion."""
    both = rng.random() < 0.45
    scene = open_scene(_KNEES if both else _KNEE, rng)
    half, size = scene.between(75, 120), scene.between(0.88, 1.12)
    for place in limbs(scene, both=both, half_mm=half, size=size):
        _knee_flesh(scene, place)
        _knee_bones(scene, place)
    return scene.finish()


def _knee_flesh(scene: Scene, p: Place) -> None:
    fat = scene.between(6, 22)
    scene.coat(belly(p.at(0, 4, 240), p.at(0, 6, -10), p.wide(72, 58, 46)), fat)
    scene.coat(belly(p.at(0, 6, -10), p.at(0, 14, -260), p.wide(46, 52, 40)), fat)
    scene.paint(ellipsoid(p.at(0, 0, 0), np.array([52, 48, 46]) * p.size), scene.fat)
    for start, end, radii in (  # quadriceps, hamstrings, heads of gastrocnemius, popliteus
        (p.at(20, -30, 220), p.at(24, -18, 22), (28, 30, 6)),
        (p.at(-20, -30, 220), p.at(-26, -18, 14), (28, 30, 7)),
        (p.at(0, -42, 220), p.at(0, -40, 48), (24, 22, 5)),
        (p.at(26, 40, 220), p.at(40, 26, -20), (24, 20, 4)),
        (p.at(-26, 42, 220), p.at(-36, 30, -20), (24, 22, 4)),
        (p.at(20, 40, 30), p.at(20, 44, -220), (6, 24, 22)),
        (p.at(-20, 40, 30), p.at(-20, 44, -220), (6, 25, 22)),
        (p.at(24, -6, -40), p.at(26, -4, -240), (8, 20, 16)),
        (p.at(0, 30, -40), p.at(0, 30, -240), (10, 24, 20)),
    ):
        scene.flesh(belly(start, end, p.wide(*radii)))
    for x, signal in ((2, scene.tissues.blood), (-6, 1.4 * scene.tissues.blood)):
        scene.paint(belly(p.at(x, 36, 220), p.at(x, 42, -220), p.wide(4, 4, 4)), signal)


def _knee_bones(scene: Scene, p: Place) -> None:
    rng, tissues, size = scene.rng, scene.tissues, p.size
    fluid = tissues.fluid * scene.between(0.8, 1.1)
    if rng.random() < 0.6:  # effusion in the suprapatellar recess and beside the condyles
        swell = scene.between(6, 20)
        scene.paint(belly(p.at(0, -30, 20), p.at(0, -26, 80), p.wide(swell, swell, 5)), fluid)
        for x in (-36, 36):
            scene.paint(
                belly(p.at(x, -14, 0), p.at(x * 0.9, -20, 40), p.wide(4, swell / 2, 3)), fluid
            )
    for x in (-23, 23):  # cartilage before bone
        scene.paint(ellipsoid(p.at(x, 6, 15), np.array([19, 33, 24]) * size), tissues.cartilage)
    scene.paint(drum(p.at(0, 6, -9), (39 * size, 26 * size), 4 * size, p.turn), tissues.cartilage)
    scene.paint(belly(p.at(4, 4, -10), p.at(-10, 18, 20), p.wide(5, 5, 5)), 0.3)
    scene.paint(belly(p.at(0, 22, -16), p.at(6, 2, 18), p.wide(5, 6, 5)), 0.3)
    scene.bone(
        [
            belly(p.at(0, -6, 60), p.at(0, -10, 260), p.wide(18, 13, 14)),
            belly(p.at(0, -2, 26), p.at(0, -6, 75), p.wide(33, 22, 17)),
            ellipsoid(p.at(-23, 4, 16), np.array([17, 27, 22]) * size),
            ellipsoid(p.at(23, 4, 16), np.array([16, 27, 22]) * size),
            ball(p.at(-23, 17, 14), 19 * size),
            ball(p.at(23, 17, 14), 18 * size),
        ]
    )
    scene.paint(ellipsoid(p.at(0, 24, 4), np.array([9, 20, 16]) * size), scene.fat)  # the notch
    scene.bone(
        [
            drum(p.at(0, 6, -19), (37 * size, 24 * size), 8 * size, p.turn),
            belly(p.at(0, 6, -22), p.at(0, 2, -75), p.wide(32, 21, 16)),
            belly(p.at(0, 0, -60), p.at(0, 4, -280), p.wide(17, 12, 13)),
        ]
    )
    scene.bone([belly(p.at(36, 22, -30), p.at(34, 16, -280), p.wide(10, 6, 7))])
    scene.bone([ellipsoid(p.at(0, -42, 20), np.array([21, 10, 21]) * size)])
    for x in (-29, 29):
        scene.paint(ellipsoid(p.at(x, 6, -6), np.array([9, 21, 3.4]) * size), 0.15)
        scene.paint(belly(p.at(x * 1.4, 0, 18), p.at(x * 1.3, 2, -45), p.wide(2, 2, 2)), 0.15)
    if rng.random() < 0.25:
        scene.paint(ellipsoid(p.at(-18, 44, 4), scene.rng.uniform(6, 20, 3)), fluid)
    if rng.random() < 0.4:  # a bone bruise
        spot = ellipsoid(p.at(float(rng.choice([-23, 23])), 4, 18), rng.uniform(6, 14, 3))
        scene.paint(spot, tissues.marrow + 0.35 * (fluid - tissues.marrow))


def shoulder(rng: np.random.Generator) -> Volume:
    """A humeral head in its shallow socket, with scapula, chest wall and lung."""
    both = rng.random() < 0.15
    scene = open_scene(_SHOULDERS if both else _SHOULDER, rng)
    radius = scene.between(19.5, 26.5)
    half = scene.between(150, 175)
    for place in limbs(scene, both=both, half_mm=half, size=radius / 23.0):
        _shoulder_trunk(scene, place)
        _shoulder_joint(scene, place)
    return scene.finish()


def _shoulder_trunk(scene: Scene, p: Place) -> None:
    tissues, size = scene.tissues, p.size
    fat = scene.between(6, 26)

    scene.coat(ellipsoid(p.at(-128, 10, -130), np.array([112, 92, 190]) * size), fat)
    scene.coat(belly(p.at(-140, 5, 20), p.at(-140, 0, 160), p.wide(62, 56, 52)), fat)
    scene.coat(belly(p.at(-70, 12, 10), p.at(6, 2, -8), p.wide(46, 46, 44)), fat)
    scene.coat(belly(p.at(6, 2, -8), p.at(26, 4, -240), p.wide(44, 46, 40)), fat)
    scene.paint(ellipsoid(p.at(-45, 8, -60), np.array([30, 40, 50]) * size), scene.fat)  # armpit
    for start, end, radii, flat in (
        (p.at(24, 0, 10), p.at(26, 0, -130), (30, 30, 12), None),  # deltoid
        (p.at(4, -26, 18), p.at(20, -16, -110), (17, 19, 9), None),
        (p.at(4, 28, 18), p.at(22, 14, -110), (17, 20, 9), None),
        (p.at(-95, 30, 34), p.at(8, 2, 27), (17, 15, 3), ((0, -0.3, 1), 0.7)),  # supraspinatus
        (p.at(-90, 40, -30), p.at(14, 22, 6), (26, 22, 6), ((0, 1, 0), 0.6)),  # infraspinatus
        (p.at(-90, 18, -40), p.at(-4, -18, -4), (30, 22, 6), ((0, 1, 0), 0.55)),  # subscapularis
        (p.at(-70, 40, -80), p.at(12, 20, -14), (14, 12, 6), None),  # teres
        (p.at(-115, -52, -50), p.at(18, -22, -60), (34, 28, 8), ((0.2, 1, 0), 0.45)),  # pectoralis
        (p.at(-150, 40, 90), p.at(-10, 30, 40), (26, 24, 8), ((0, -0.4, 1), 0.6)),  # trapezius
        (p.at(-6, -22, -2), p.at(16, -26, -190), (7, 14, 16), None),  # biceps
        (p.at(4, 26, -40), p.at(20, 26, -200), (8, 18, 16), None),  # triceps
        (p.at(-40, 58, -150), p.at(2, 20, -50), (30, 22, 6), ((0, 1, 0), 0.6)),  # latissimus
    ):
        scene.flesh(belly(start, end, p.wide(*radii), flat))
    chest = ellipsoid(p.at(-140, 4, -140), np.array([92, 80, 150]) * size)
    scene.canvas.paint_layers(chest, ((7.0, scene.fat), (5.0, scene.muscle), (0.0, 0.06)))
    for rib in range(7):
        z = -10 - 26 * rib
        shell = np.sqrt(max(1.0 - ((z + 140) / 158) ** 2, 0.05))
        for turn in np.linspace(-1.0, 1.0, 9):
            x = -140 + 98 * shell * np.cos(turn)
            y = 4 + 86 * shell * np.sin(turn)
            rod = belly(
                p.at(x, y, z - 6 * turn), p.at(x + 4, y + 14, z - 6 * turn - 5), p.wide(5, 5, 5)
            )
            scene.canvas.paint_layers(rod, ((0.8, tissues.cortex), (-0.6, tissues.marrow)))
    for x, y, signal in ((-60, -6, tissues.blood), (-58, -14, 1.5 * tissues.blood)):
        scene.paint(
            belly(p.at(x - 60, y - 10, 10), p.at(x + 40, y + 10, -60), p.wide(5, 5, 4)), signal
        )
        scene.paint(belly(p.at(x + 40, y + 10, -60), p.at(0, 0, -230), p.wide(4, 4, 3)), signal)


def _shoulder_joint(scene: Scene, p: Place) -> None:
    rng, tissues, size = scene.rng, scene.tissues, p.size
    film, radius, centre = scene.between(1.6, 3.0), 23.0 * p.size, p.centre
    joint = tissues.cartilage
    fluid = tissues.fluid * scene.between(0.8, 1.1)
    if rng.random() < 0.5:  # effusion: bursa, axillary recess, biceps sheath
        deep = scene.between(3, 9)
        scene.paint(belly(p.at(-16, 0, -14), p.at(2, 2, -30), p.wide(deep, deep, 3)), fluid)
        scene.paint(belly(p.at(-22, 2, 26), p.at(22, 0, 20), (deep / 2, deep, deep / 2)), fluid)
        scene.paint(belly(p.at(12, -20, 4), p.at(16, -18, -50), p.wide(2, 3, 2)), fluid)
    scene.paint(ball(centre, radius + film), joint)
    wing = (p.turn @ mm(p.side * 0.35, 1.0, -0.1), 0.16)
    scene.bone(
        [
            ellipsoid(p.at(-31, 5, 0), np.array([6, 14, 18]) * size),
            belly(p.at(-32, 6, 0), p.at(-56, 16, -4), p.wide(11, 9, 7)),
            belly(p.at(-54, 18, 26), p.at(-84, 30, -110), p.wide(26, 34, 8), wing),
            belly(
                p.at(-94, 42, 22), p.at(-20, 34, 34), p.wide(5, 7, 7), ((0, 0.2, 1), 0.7)
            ),  # spine
            belly(
                p.at(-20, 34, 34), p.at(10, 14, 36), p.wide(7, 8, 7), ((0, 0, 1), 0.6)
            ),  # acromion
            belly(p.at(-36, -2, 16), p.at(-14, -32, 6), p.wide(8, 7, 6)),  # coracoid
        ],
        fillet_mm=3.0,
    )
    scene.bone([belly(p.at(-2, -2, 40), p.at(-130, -34, 46), p.wide(7, 6, 9))])
    # the socket is shallow: only the film separates it from the head
    scene.paint(ball(centre, radius + film), joint)
    scene.bone(
        [
            ball(centre, radius),
            ellipsoid(p.at(13, -3, 3), np.array([13, 15, 17]) * size),
            belly(p.at(5, 0, -12), p.at(16, 3, -70), p.wide(18, 14, 12)),
            belly(p.at(15, 3, -60), p.at(26, 6, -260), p.wide(13, 12, 12)),
        ],
        cortex_mm=scene.between(0.6, 1.4),
    )
    if rng.random() < 0.35:
        spot = ellipsoid(p.at(12, -2, 12), rng.uniform(5, 12, 3))
        scene.paint(spot, tissues.marrow + 0.4 * (fluid - tissues.marrow))


def wrist(rng: np.random.Generator) -> Volume:
    """One or both wrists and hands: forearm bones, carpus, rays."""
    both = rng.random() < 0.25
    view = View(wide=(220, 320), deep=(45, 65), tall=(0.7, 1.0), centre=(0, 0, 15))
    scene = open_scene(view if both else _WRIST, rng)
    half = scene.between(60, 85)
    for place in limbs(scene, both=both, half_mm=half, size=scene.between(0.85, 1.15)):
        up = np.diag([1.0, 1.0, rng.choice([-1.0, 1.0])])
        _wrist(scene, replace(place, turn=place.turn @ up))
    return scene.finish()


def _wrist(scene: Scene, p: Place) -> None:
    rng, tissues = scene.rng, scene.tissues
    size = p.size

    fat = scene.between(2, 6)
    scene.coat(belly(p.at(0, 0, -150), p.at(0, 0, 0), p.wide(36, 29, 26), ((0, 1, 0), 0.75)), fat)
    scene.coat(belly(p.at(0, 0, 0), p.at(4, 0, 90), p.wide(26, 42, 38), ((0, 1, 0), 0.4)), fat)
    for ray, (x, length) in enumerate(((-44, 0.62), (-24, 0.92), (-5, 1.0), (13, 0.95), (30, 0.8))):
        knuckle = p.at(x * 1.05, 0, 40 + 55 * length)
        tip = p.at(x * (1.5 if ray == 0 else 1.25), 0, 42 + 150 * length)
        scene.coat(belly(knuckle, tip, p.wide(10, 9, 7)), 0.8 * fat)
    for x, signal in ((-8, 0.15), (0, 0.15), (8, 0.15), (4, 1.8)):
        scene.paint(belly(p.at(x, -11, -150), p.at(1.6 * x, -11, 90), p.wide(2.5, 3, 2)), signal)
    if rng.random() < 0.6:
        swell = scene.between(3, 8)
        scene.paint(
            ellipsoid(p.at(0, 0, 6), np.array([26, 9, 4 + swell]) * size), tissues.fluid * 0.9
        )
    else:
        scene.paint(ellipsoid(p.at(0, 0, 10), np.array([24, 9, 16]) * size), tissues.cartilage)
    scene.bone(
        [
            belly(p.at(-12, 0, -2), p.at(-9, 0, -36), p.wide(15, 9, 7), ((0, 1, 0), 0.7)),
            belly(p.at(-9, 0, -30), p.at(-10, 0, -170), p.wide(8, 6, 7)),
        ],
        cortex_mm=0.9,
    )
    scene.bone([belly(p.at(15, 0, -6), p.at(14, 0, -170), p.wide(9, 5.5, 6))], cortex_mm=0.9)
    for x, z, radius in (
        (-16, 9, 9.5), (-1, 9, 8.5), (13, 9, 7.5), (17, 13, 6),
        (-21, 24, 8), (-10, 25, 7), (2, 24, 9.5), (15, 25, 8),
    ):  # fmt: skip
        jog = rng.normal(0, 0.8, 3)
        scene.bone(
            [ellipsoid(p.at(x, 0, z) + jog, np.array([radius, 7.5, radius * 0.95]) * size)],
            cortex_mm=0.7,
        )
    for x, length in ((-34, 0.62), (-20, 0.92), (-4, 1.0), (11, 0.95), (25, 0.8)):
        joints = [(x, 34.0), (x * 1.12, 38 + 56 * length), (x * 1.2, 40 + 98 * length)]
        joints += [(x * 1.24, 40 + 124 * length), (x * 1.26, 40 + 146 * length)]
        for (xa, za), (xb, zb) in pairwise(joints):
            scene.bone(
                [belly(p.at(xa, 0, za + 2), p.at(xb, 0, zb - 2), p.wide(7, 4.2, 6))], cortex_mm=0.8
            )


def ankle(rng: np.random.Generator) -> Volume:
    """One or both ankles: tibia, fibula, talus, heel, foot."""
    both = rng.random() < 0.35
    view = View(wide=(240, 360), deep=(80, 130), tall=(0.6, 1.0), centre=(0, 10, -15))
    scene = open_scene(view if both else _ANKLE, rng)
    half = scene.between(55, 90)
    for place in limbs(scene, both=both, half_mm=half, size=scene.between(0.88, 1.12)):
        _ankle(scene, place)
    return scene.finish()


def _ankle(scene: Scene, p: Place) -> None:
    rng, tissues = scene.rng, scene.tissues
    size, fat = p.size, scene.between(3, 9)

    scene.coat(belly(p.at(0, 8, 220), p.at(0, 8, 0), p.wide(50, 34, 34)), fat)
    scene.coat(belly(p.at(0, 30, -40), p.at(-4, -120, -46), p.wide(34, 34, 26)), fat)
    scene.coat(belly(p.at(0, 8, 0), p.at(0, 26, -50), p.wide(36, 36, 34)), fat)
    scene.paint(ellipsoid(p.at(0, 6, 0), np.array([34, 34, 26]) * size), scene.fat)
    for start, end, radii in (
        (p.at(0, 34, 220), p.at(0, 34, 40), (34, 26, 6)),
        (p.at(14, -12, 220), p.at(8, -26, 0), (22, 15, 3)),
        (p.at(24, 20, 220), p.at(30, 26, -30), (14, 11, 3)),
        (p.at(-6, 22, 200), p.at(-24, 20, -30), (16, 11, 3)),
        (p.at(-8, 30, -70), p.at(-12, -90, -66), (14, 14, 6)),
    ):
        scene.flesh(belly(start, end, p.wide(*radii)))
    scene.paint(belly(p.at(0, 44, 80), p.at(0, 44, -40), p.wide(5, 5, 6)), 0.12)
    if rng.random() < 0.6:
        swell = scene.between(4, 11)
        scene.paint(ellipsoid(p.at(0, 0, -6), np.array([26, 26, 6 + swell]) * size), tissues.fluid)
    scene.paint(ellipsoid(p.at(0, 4, -14), np.array([22, 30, 16]) * size), tissues.cartilage)
    scene.bone([belly(p.at(-3, 4, 8), p.at(-3, 4, 60), p.wide(23, 17, 13)),
                belly(p.at(-3, 4, 50), p.at(-3, 0, 260), p.wide(14, 12, 14)),
                belly(p.at(-22, 4, 8), p.at(-22, 5, -9), p.wide(8, 7, 6))])  # fmt: skip
    scene.bone([belly(p.at(25, 12, 30), p.at(26, 12, -20), p.wide(8, 9, 7)),
                belly(p.at(25, 12, 20), p.at(24, 10, 260), p.wide(8, 6, 7))])  # fmt: skip
    scene.bone([drum(p.at(0, 4, -13), (18 * size, 25 * size), 10 * size),
                belly(p.at(0, -10, -18), p.at(-6, -34, -22), p.wide(14, 12, 13))])  # fmt: skip
    scene.bone([belly(p.at(0, 46, -42), p.at(4, 0, -44), p.wide(19, 16, 13)),
                belly(p.at(4, 0, -44), p.at(8, -34, -42), p.wide(13, 12, 12))])  # fmt: skip
    for x in (-16, -6, 4, 14, 22):
        scene.bone([belly(p.at(x * 0.8, -40, -36), p.at(x * 0.9, -62, -40), p.wide(9, 8, 8))])
        scene.bone([belly(p.at(x * 0.9, -66, -42), p.at(x * 1.3, -130, -56), p.wide(8, 5, 7))])


def thighs(rng: np.random.Generator) -> Volume:
    """Two femoral shafts in muscle, far below the hips."""
    scene = open_scene(_THIGHS, rng)
    half, size, fat = scene.between(70, 115), scene.between(0.9, 1.15), scene.between(8, 40)
    lean = scene.between(0.0, 0.14)
    for side in (-1.0, 1.0):

        def at(x: float, y: float, z: float, side: float = side) -> DoubleArray:
            return np.array([side * (half + x * size + lean * z), y * size, z])

        girth = (78 * size, 72 * size, 58 * size)
        scene.coat(belly(at(0, 4, 300), at(0, 4, -300), girth), fat)
        scene.paint(
            belly(at(0, 4, 300), at(0, 4, -300), (70 * size, 64 * size, 50 * size)), scene.fat
        )
        for x, y, radius in (
            (0, -20, 30), (28, -8, 30), (-20, -14, 26), (0, -46, 17), (-38, 16, 30),
            (24, 40, 22), (-10, 46, 24), (-30, 44, 18), (-46, -22, 13), (-58, 10, 11),
        ):  # fmt: skip
            shape = belly(
                at(x, y, 320), at(0.75 * x, y, -320), (radius * size, radius * size, 0.8 * radius)
            )
            scene.flesh(shape)
        scene.paint(belly(at(-26, -10, 300), at(-20, 20, -300), (5, 4, 4)), scene.tissues.blood)
        shaft = belly(at(0, 0, 330), at(0, 0, -330), (16 * size, 13 * size, 17 * size))
        scene.bone([shaft], cortex_mm=scene.between(3.5, 6.0))
    return scene.finish()
