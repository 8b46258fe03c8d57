"""Heads, test objects and empty fields."""

from __future__ import annotations

import numpy as np

from hipscore import phantom
from hipscore.domain import Volume
from hipscore.phantom.canvas import Shape, ball, belly, ellipsoid, rotation
from hiptrain.strangers.scene import Scene, View, drum, lay_grid, mm, open_scene, sources

_ORBITS = View(wide=(130, 200), deep=(45, 80), centre=(0, 0, 0))
_OBJECT = View(wide=(220, 440), deep=(70, 160), tall=(0.7, 1.1), wander=(12, 8, 12), turn=3)
_ANY = View(wide=(160, 450), deep=(60, 140), tall=(0.7, 1.2))

SIDES = (-1.0, 1.0)


def brain(rng: np.random.Generator) -> Volume:
    """The head of the service's own phantom."""
    return phantom.synthesise(
        seed=int(rng.integers(1, 2**31)),
        anatomy="brain",
        rows=176,
        pixel_mm=float(rng.uniform(1.15, 1.5)),
        slice_mm=float(rng.uniform(3.5, 6.5)),
        slices=int(rng.integers(16, 26)),
        supersampling=1,
    ).volume


def orbits(rng: np.random.Generator) -> Volume:
    """Two eyeballs with nerves and muscles, sinuses, nose and the frontal lobes."""
    scene = open_scene(_ORBITS, rng)
    tissues = scene.tissues
    half, radius = scene.between(28, 34), scene.between(11.5, 13.5)
    head = ellipsoid((0, 60, 20), (78, 92, 105))
    scene.canvas.paint_layers(head, ((3.0, 1.0), (0.0, scene.fat)))
    scene.coat(ellipsoid((0, 20, -55), (58, 50, 55)), 4.0)
    skull = ellipsoid((0, 75, 50), (70, 85, 72))
    layers = (
        (3.0, tissues.cortex),
        (0.0, tissues.fluid),
        (-3.0, tissues.grey),
        (-7.0, tissues.white),
    )
    scene.canvas.paint_layers(skull, layers)
    scene.paint(ellipsoid((0, 30, 0), (62, 30, 24)), tissues.cortex)
    for side in SIDES:
        middle = np.array([side * half, 0, 0]) + rng.normal(0, 0.6, 3)
        scene.paint(ellipsoid(middle + mm(-side * 3, 16, 0), (21, 32, 19)), scene.fat)
        apex = middle + mm(-side * 14, 42, 2)
        for dx, dz in ((13, 0), (-13, 0), (0, 13), (0, -13)):
            scene.paint(belly(middle + mm(dx, 6, dz), apex, (2.5, 4, 2)), 1.1)
        scene.paint(belly(middle + mm(0, 12, 0), apex, (3.2, 3, 3)), tissues.fluid * 0.6)
        scene.paint(belly(middle + mm(0, 12, 0), apex, (1.8, 1.7, 1.7)), tissues.white)
        scene.paint(ball(middle, radius + 1.2), 0.7)
        scene.paint(ball(middle, radius), tissues.fluid)
        scene.paint(ellipsoid(middle + mm(0, -radius + 5, 0), (4.5, 2, 4.5)), 0.4)
        air = ellipsoid((side * 26, 18, -36), (17, 20, 18))
        scene.canvas.paint_layers(air, ((1.5, tissues.gland), (0.0, 0.03)))
        scene.paint(ellipsoid((side * 7, 16, -6), (6, 24, 14)), 0.05)
        scene.paint(ellipsoid((side * 9, 14, -30), (5, 22, 9)), tissues.gland * 1.4)
        scene.flesh(belly((side * 52, 40, -10), (side * 48, 40, -80), (9, 14, 10)))
    scene.paint(ellipsoid((0, -2, -72), (26, 34, 10)), tissues.cortex)
    scene.paint(ellipsoid((0, 14, -84), (22, 26, 14)), 1.0)
    return scene.finish()


def bottles(rng: np.random.Generator) -> Volume:
    """One to three bottles or balls of one uniform signal in air."""
    scene = open_scene(_OBJECT, rng)
    signal = scene.between(0.8, 6.0)
    radius = scene.between(16, 60)
    layout = rng.choice(["one", "pair", "three"], p=[0.35, 0.5, 0.15])
    if layout == "one":
        places = [np.zeros(3)]
        radius = scene.between(18, 90)
    elif layout == "pair":  # as far apart as the two heads of a person
        half = 0.5 * scene.between(max(150.0, 2.2 * radius), max(200.0, 2.4 * radius))
        places = [np.array([-half, 0, 0]), np.array([half, 0, 0])]
    else:
        places = [np.array([x, 0, 0]) + rng.normal(0, 5, 3) for x in (-110, 0, 110)]
        radius = min(radius, 45.0)
    form = rng.choice(["ball", "bottle", "drum", "lying"], p=[0.4, 0.25, 0.2, 0.15])
    wall = scene.between(0.0, 3.0)
    for place in places:
        shape = _vessel(scene, place, radius, str(form))
        dim = float(rng.choice([0.05, 0.3]))
        scene.canvas.paint_layers(shape, ((wall, dim), (0.0, signal)))
        if rng.random() < 0.25:  # an air bubble at the top
            scene.paint(ball(place + mm(0, -0.75 * radius, 0.6 * radius), 0.35 * radius), 0.03)
        if rng.random() < 0.2:  # a ball inside of another fluid
            scene.paint(ball(place, 0.5 * radius), signal * scene.between(0.2, 0.7))
    return scene.finish()


def _vessel(scene: Scene, place: np.ndarray[tuple[int], np.dtype[np.float64]], radius: float,
            form: str) -> Shape:  # fmt: skip
    if form == "ball":
        return ball(place, radius)
    if form == "bottle":
        end = place + mm(0, 0, 1.6 * radius)
        return belly(place - mm(0, 0, 1.2 * radius), end, (radius, radius * 1.05, 0.35 * radius))
    turn = rotation(90, 0, 0) if form == "lying" else np.eye(3)
    return drum(place, (radius, radius), scene.between(0.8, 2.2) * radius, turn, round_mm=3.0)


def inserts(rng: np.random.Generator) -> Volume:
    """A test object: a bright body with balls, rods, wedges and a grid in it."""
    scene = open_scene(_OBJECT, rng)
    signal = scene.between(1.0, 4.0)
    lying = rng.random() < 0.6
    turn = rotation(90, 0, 0) if lying else np.eye(3)
    radius, half = scene.between(85, 115), scene.between(50, 90)
    body = drum((0, 0, 0), (radius, radius * scene.between(0.8, 1.0)), half, turn)
    scene.canvas.paint_layers(body, ((4.0, 0.05), (0.0, signal)))
    other = signal * float(rng.choice([0.04, 0.3, 1.8]))
    if rng.random() < 0.6:  # two balls as far apart as they fit
        reach, size = scene.between(0.55, 0.7) * radius, scene.between(10, 26)
        for side in SIDES:
            scene.paint(ball((side * reach, 0, 0), size), other)
    for _ in range(int(rng.integers(2, 9))):
        place = rng.uniform(-0.65, 0.65, 3) * radius * (1, 0.5, 1)
        if rng.random() < 0.5:
            scene.paint(ball(place, scene.between(4, 20)), other)
        else:
            rod = belly(place - mm(0, 60, 0), place + mm(0, 60, 0), (scene.between(3, 14),) * 3)
            scene.paint(rod, other)
    if rng.random() < 0.5:
        for step in range(-4, 5):
            for bar in (
                drum((step * 12, 0, -10), (1.5, 30), 50),
                drum((0, 0, step * 12 - 10), (50, 30), 1.5),
            ):
                scene.paint(bar, 0.05)
    if rng.random() < 0.5:
        scene.paint(drum((0, 0, 0.55 * radius), (0.6 * radius, 40), 5), 0.05)
    return scene.finish()


def empty(rng: np.random.Generator) -> Volume:
    """Noise and nothing else."""
    grid, _ = lay_grid(_ANY, rng)
    level = rng.uniform(5, 120)
    voxels = np.rint(rng.rayleigh(level, grid.shape)).astype(np.float32)
    return Volume(voxels=voxels, grid=grid, sources=sources(rng, grid.shape[0]))


def uniform(rng: np.random.Generator) -> Volume:
    """A field of view inside one tissue, or inside blotches of several."""
    scene = open_scene(_ANY, rng)
    scene.canvas.signal[:] = 1.0
    if rng.random() < 0.5:
        for _ in range(int(rng.integers(1, 25))):
            index = scene.rng.uniform(0, 1, 3) * (np.array(scene.grid.shape) - 1)
            z, y, x = (int(v) for v in index)
            place = (scene.canvas.x[z, y, x], scene.canvas.y[z, y, x], scene.canvas.z[z, y, x])
            radii = rng.uniform(6, 40, 3)
            scene.paint(ellipsoid(place, radii), scene.between(0.05, 4.0))
    else:
        scene.canvas.signal[:] *= 1.0 + scene.between(0, 0.4) * scene.coarse
    return scene.finish()
