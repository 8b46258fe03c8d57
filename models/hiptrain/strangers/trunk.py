"""The trunk beside the hips: spine, abdomen, chest, breasts, scrotum, a full bladder."""

from __future__ import annotations

import numpy as np

from hipscore.domain import Volume
from hipscore.phantom.canvas import ball, belly, ellipsoid, rotation
from hiptrain.strangers.scene import Scene, View, drum, mm, open_scene

_SPINE = View(wide=(220, 380), deep=(60, 110), tall=(0.9, 1.3), centre=(0, 40, 0))
_ABDOMEN = View(wide=(330, 440), deep=(100, 170), tall=(0.8, 1.1), centre=(0, 10, 0))
_CHEST = View(wide=(340, 450), deep=(100, 160), tall=(0.8, 1.1), centre=(0, 0, 0))
_BREAST = View(wide=(300, 400), deep=(60, 120), tall=(0.6, 1.0), centre=(0, -45, 0))
_GROIN = View(wide=(160, 320), deep=(60, 100), centre=(0, -20, -10))
_BLADDER = View(wide=(120, 170), deep=(70, 110), centre=(0, 0, 0))

SIDES = (-1.0, 1.0)


def spine(rng: np.random.Generator) -> Volume:
    """Lumbar spine with discs and canal, psoas, the lower poles of the kidneys."""
    scene = open_scene(_SPINE, rng)
    _trunk(scene)
    _back(scene)
    for side in SIDES:
        _kidney(scene, side, lift=scene.between(50, 90))
    return scene.finish()


def abdomen(rng: np.random.Generator) -> Volume:
    """Liver, spleen, two bright kidneys, stomach, bowel, great vessels, spine."""
    scene = open_scene(_ABDOMEN, rng)
    tissues = scene.tissues
    _trunk(scene)
    _back(scene)
    for side in SIDES:
        _kidney(scene, side, lift=scene.between(10, 50))
    organ = 1.0 + 0.05 * scene.coarse
    for place, radii in (
        ((-85, 0, 85), (70, 75, 62)),
        ((-20, -30, 95), (70, 40, 42)),
        ((-105, 10, 30), (38, 50, 50)),
    ):
        jog = rng.normal(0, 5, 3)
        turn = rotation(0, 25, 0)
        scene.paint(ellipsoid(np.array(place) + jog, radii, turn), tissues.liver * organ)
    scene.paint(ellipsoid((108, 45, 85), rng.uniform(0.8, 1.2) * np.array([26, 36, 50])),
                tissues.spleen * organ)  # fmt: skip
    scene.paint(ellipsoid((60, -25, 85), (44, 34, 38)), 0.9)
    content = float(rng.choice([0.05, tissues.fluid, 1.2]))
    scene.paint(ellipsoid((60, -25, 85), (38, 28, 32)), content)
    scene.paint(ellipsoid((-48, -30, 40), (12, 16, 24)), tissues.fluid)
    _bowel(scene, low=(-110, -70, -170), high=(110, -5, 40), count=40)
    return scene.finish()


def chest(rng: np.random.Generator) -> Volume:
    """Two black lungs with vessels, heart, ribs, spine, the dome of the liver."""
    scene = open_scene(_CHEST, rng)
    tissues = scene.tissues
    fat = scene.between(8, 30)
    size = scene.between(0.9, 1.1)
    body = ellipsoid((0, 5, -30), np.array([165, 105, 320]) * size)
    scene.coat(body, fat)
    scene.coat(belly((0, 0, 120), (0, 0, 260), (90, 60, 55)), fat)
    for side in SIDES:
        scene.coat(belly((side * 150, 5, 130), (side * 190, 10, -200), (52, 50, 42)), fat)
        shaft = belly((side * 172, 5, 100), (side * 196, 10, -200), (14, 12, 12))
        scene.bone([shaft], cortex_mm=2.5)
        lung = ellipsoid((side * 75, 5, 10), np.array([58, 82, 135]) * size)
        scene.canvas.paint_layers(lung, ((9.0, scene.muscle), (4.0, scene.fat), (0.0, 0.05)))
        for _ in range(12):
            end = np.array([side * 30, 0, 10]) + rng.normal(0, 1, 3) * (25, 35, 60)
            end[0] = side * abs(end[0]) + side * 15
            scene.paint(belly((side * 25, 0, 15), end, (4, 3, 1.5)), tissues.blood * 0.7)
        for rib in range(9):
            z = 110 - 27 * rib
            shell = np.sqrt(max(1 - ((z - 10) / 150) ** 2, 0.05))
            for turn in np.linspace(-1.1, 1.1, 8):
                x, y = 75 + 62 * shell * np.cos(turn), 5 + 88 * shell * np.sin(turn)
                place = np.array([side * x, y, z - 8 * turn])
                rod = belly(place, place + mm(0, 16, -4), (5, 5, 5))
                scene.canvas.paint_layers(rod, ((0.6, tissues.cortex), (-0.8, scene.marrow)))
    scene.paint(belly((0, 0, -110), (0, 0, 140), (34, 30, 30)), scene.fat)
    heart = np.array([22, -25, -45])
    scene.paint(ellipsoid(heart, (58, 48, 55), rotation(0, 40, 0)), 1.0)
    for chamber, radius in (((38, -22, -62), 22), ((-4, -32, -48), 22), ((8, 0, -18), 20)):
        scene.paint(ball(chamber, radius), tissues.blood * scene.between(0.3, 1.4))
    scene.paint(belly((6, 5, 0), (4, 40, 70), (13, 13, 12)), tissues.blood)
    scene.paint(ellipsoid((-60, 0, -150), (100, 85, 65)), tissues.liver)
    scene.paint(ellipsoid((90, 20, -150), (45, 50, 45)), tissues.spleen)
    _back(scene, low=-8, high=8, deep=55.0, small=0.85)
    return scene.finish()


def breast(rng: np.random.Generator) -> Volume:
    """Two breasts hanging from the chest wall: fat around gland, in coronal sections round."""
    scene = open_scene(_BREAST, rng)
    tissues = scene.tissues
    half, size = scene.between(70, 100), scene.between(0.7, 1.25)
    scene.coat(ellipsoid((0, 70, 0), (170, 95, 240)), scene.between(4, 18))
    for side in SIDES:
        scene.canvas.paint_layers(
            ellipsoid((side * 75, 65, 0), (58, 60, 170)), ((5.0, 0.6), (0.0, 0.05))
        )
        round_ = size * rng.uniform(0.93, 1.07)
        middle = np.array([side * half, -10 + rng.normal(0, 3), rng.normal(0, 4)])
        shape = ellipsoid(middle, np.array([58, 75, 62]) * round_)
        scene.canvas.paint_layers(shape, ((0.0, 1.0), (-2.0, scene.fat)))
        for _ in range(int(rng.integers(6, 26))):
            start = middle + rng.normal(0, 1, 3) * np.array([20, 18, 22]) * round_
            nipple = middle + np.array([0, -62 * round_, 0])
            lobe = belly(start, 0.45 * start + 0.55 * nipple, (*rng.uniform(4, 12, 2), 2.0))
            scene.paint(lobe, tissues.gland * scene.between(0.7, 1.2))
        if rng.random() < 0.3:
            scene.paint(ball(middle + rng.normal(0, 16, 3), scene.between(5, 24)), tissues.fluid)
        if rng.random() < 0.12:  # an implant
            scene.paint(ellipsoid(middle + mm(0, 14, 0), (45, 26, 45)), tissues.fluid)
    return scene.finish()


def scrotum(rng: np.random.Generator) -> Volume:
    """Two bright testicles between the thighs, possibly in fluid."""
    scene = open_scene(_GROIN, rng)
    tissues = scene.tissues
    fat = scene.between(6, 30)
    for side in SIDES:
        thigh = belly((side * 110, 10, 60), (side * 100, 10, -300), (88, 84, 70))
        scene.coat(thigh, fat)
        shaft = belly((side * 115, 12, 60), (side * 108, 10, -300), (15, 13, 13))
        scene.bone([shaft], cortex_mm=4.0)
    scene.coat(ellipsoid((0, 10, 110), (180, 95, 90)), fat)
    scene.coat(ellipsoid((0, -38, -12), (38, 32, 40)), 2.0)
    for side in SIDES:
        middle = np.array([side * scene.between(16, 24), -40, -18]) + rng.normal(0, 3, 3)
        radii = np.array([13, 15, 19]) * scene.between(0.75, 1.25)
        if rng.random() < 0.4:
            scene.paint(ellipsoid(middle, radii + scene.between(2, 14)), tissues.fluid)
        scene.paint(ellipsoid(middle, radii + 1.2), 0.4)
        scene.paint(ellipsoid(middle, radii), 0.75 * tissues.fluid)
        scene.paint(ellipsoid(middle + mm(0, 4, 20), (6, 6, 6)), 1.6)
        scene.paint(belly(middle + mm(0, 0, 22), (side * 40, -50, 70), (6, 5, 5)), scene.fat)
    scene.paint(belly((0, -40, 20), (0, -70, -30), (14, 13, 12)), 1.8)
    return scene.finish()


def bladder(rng: np.random.Generator) -> Volume:
    """A small field of view filled by the bladder, prostate or womb, and rectum."""
    scene = open_scene(_BLADDER, rng)
    tissues = scene.tissues
    scene.canvas.signal[:] = scene.fat
    for side in SIDES:
        scene.flesh(belly((side * 52, 5, 70), (side * 40, 14, -60), (14, 20, 12)))
        scene.flesh(belly((side * 80, 5, 90), (side * 72, 10, -20), (18, 20, 12)))
        scene.bone([belly((side * 68, -5, 40), (side * 56, 20, -70), (10, 12, 12))])
        for _ in range(3):
            start = np.array([side * 44, 0, 60]) + rng.normal(0, 9, 3)
            scene.paint(belly(start, start + mm(side * 4, -10, -60), (4, 3, 3)), tissues.blood)
    full = scene.between(0.5, 1.25)
    middle = np.array([rng.normal(0, 5), -10, 10])
    radii = np.array([40, 30, 30]) * full
    scene.paint(ellipsoid(middle, radii + 3), 1.0)
    scene.paint(ellipsoid(middle, radii), tissues.fluid)
    below = middle + mm(0, 14, -radii[2] - 18)
    scene.paint(ellipsoid(below, np.array([24, 18, 20]) * scene.between(0.7, 1.4)), 1.7)
    scene.paint(ellipsoid(below + mm(0, 4, 0), (14, 8, 12)), 2.4)
    scene.paint(belly((0, 38, 60), (0, 36, -60), (16, 15, 10)), 1.1)
    scene.paint(belly((0, 38, 60), (0, 36, -60), (10, 10, 4)), scene.between(0.05, 2.0))
    _bowel(scene, low=(-50, -40, 45), high=(50, 20, 90), count=8)
    return scene.finish()


def _trunk(scene: Scene) -> None:
    """Body wall, peritoneal fat."""
    fat = scene.between(8, 45)
    wide, deep = scene.between(125, 150), scene.between(85, 110)
    scene.coat(ellipsoid((0, 5, 0), (wide + 8, deep + 8, 600)), fat)
    scene.paint(ellipsoid((0, -5, 0), (wide - 8, deep - 12, 500)), scene.fat)
    for side in SIDES:
        scene.flesh(belly((side * 32, 78, 200), (side * 34, 76, -200), (30, 32, 30)))
        scene.flesh(belly((side * 75, 68, 200), (side * 78, 66, -200), (20, 30, 24)))


def _back(scene: Scene, *, low: int = -4, high: int = 6, deep: float = 38.0,
          small: float = 1.0) -> None:  # fmt: skip
    """Vertebrae with discs, canal, pedicles; psoas and great vessels beside them."""
    rng, tissues = scene.rng, scene.tissues
    pitch = 35.0 * small * scene.between(0.94, 1.08)
    bow, sway = scene.between(-0.0012, 0.0012), scene.between(-0.02, 0.02)

    def at(x: float, y: float, z: float) -> tuple[float, float, float]:
        return x + sway * z + bow * z * z, y + deep - 0.0008 * z * z, z

    scene.paint(belly(at(10, -28, 250), at(10, -28, -70), (9, 9, 8)), tissues.blood * 0.4)
    scene.paint(belly(at(-14, -26, 250), at(-14, -26, -70), (10, 10, 10)), tissues.blood)
    for side in SIDES:
        scene.flesh(belly(at(side * 28, 2, 60), at(side * 58, -16, -190), (10, 26, 22)))
    for level in range(low, high):
        z = pitch * level
        turn = rotation(float(rng.normal(0, 3)), float(rng.normal(0, 2)), 0)
        body = drum(at(0, 0, z), (24 * small, 17 * small), 13 * small, turn, waist=2.0)
        scene.canvas.paint_layers(body, ((0.0, tissues.cortex), (-1.0, scene.marrow)))
        disc = ellipsoid(at(0, 0, z + pitch / 2), (22 * small, 15 * small, 4.5), turn)
        scene.paint(disc, 0.6 * tissues.cartilage)
        scene.paint(ellipsoid(at(0, 0, z + pitch / 2), (13, 9, 3)), scene.between(0.4, 2.5))
        for side in SIDES:
            arch = belly(at(side * 12, 18, z + 3), at(side * 17, 32, z - 4), (6, 6, 8))
            scene.canvas.paint_layers(arch, ((0.0, tissues.cortex), (-1.2, scene.marrow)))
            scene.paint(belly(at(side * 12, 22, z - 10), at(side * 32, 14, z - 30), (3, 3, 2)), 1.8)
    scene.paint(belly(at(0, 26, 260), at(0, 26, -200), (9, 9, 8)), tissues.fluid * 0.9)
    scene.paint(belly(at(0, 26, 260), at(0, 26, 30), (5, 5, 3)), tissues.white)


def _kidney(scene: Scene, side: float, lift: float) -> None:
    tissues, rng = scene.tissues, scene.rng
    size = scene.between(0.85, 1.12)
    middle = np.array([side * scene.between(58, 76), 38, lift]) + rng.normal(0, 4, 3)
    turn = rotation(0, -side * 16, 0)
    scene.paint(ellipsoid(middle, np.array([40, 34, 66]) * size, turn), scene.fat)
    scene.paint(ellipsoid(middle, np.array([28, 24, 54]) * size, turn), tissues.kidney)
    for z in (-28, -10, 10, 28):
        pyramid = middle + turn @ (np.array([side * 8, 0, z]) * size)
        scene.paint(ball(pyramid, 7.5 * size), 1.35 * tissues.kidney)
    scene.paint(ellipsoid(middle - mm(side * 12, 0, 0), np.array([16, 12, 26]) * size), scene.fat)
    if rng.random() < 0.3:
        scene.paint(ellipsoid(middle - mm(side * 12, 0, 0), (8, 7, 12)), tissues.fluid)
    if rng.random() < 0.25:  # a cyst: a bright ball
        cyst = middle + mm(side * 14, 0, float(rng.choice([-45, 40])))
        scene.paint(ball(cyst, scene.between(8, 28)), tissues.fluid)


def _bowel(scene: Scene, *, low: tuple[float, float, float], high: tuple[float, float, float],
           count: int) -> None:  # fmt: skip
    rng, tissues = scene.rng, scene.tissues
    mottled = np.clip(1.1 + 0.4 * scene.coarse, 0.5, 1.9)
    for _ in range(count):
        start = rng.uniform(low, high)
        end = start + rng.normal(0, 16, 3)
        wide = scene.between(7, 15)
        scene.paint(belly(start, end, (wide, wide, wide)), 1.1)
        kind = rng.random()
        inner = belly(start, end, (wide - 2.5, wide - 2.5, wide - 2.5))
        if kind < 0.15:
            scene.paint(inner, tissues.fluid * scene.between(0.4, 0.9))
        else:
            scene.paint(inner, 0.1 if kind < 0.4 else mottled)
