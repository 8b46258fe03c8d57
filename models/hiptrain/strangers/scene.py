"""What every drawn stranger shares: a scanner's view of it, its tissues, its textures.

Coordinates are body millimetres ``(x, y, z)`` towards Left, Posterior, Superior, as in
:mod:`hipscore.phantom.canvas`. The signal scale is muscle = 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hipscore.domain import DoubleArray, FloatArray, Grid, SliceSource, Volume
from hipscore.phantom.canvas import Canvas, Pose, Shape, meet, noise, rotation
from hiptrain.contrast import draw_scanner, scan

Range: TypeAlias = tuple[float, float]
Signal: TypeAlias = float | FloatArray

MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
_VOXELS = 1_000_000


def mm(x: float, y: float, z: float) -> DoubleArray:
    """A vector in body coordinates."""
    return np.array([x, y, z], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tissues:
    """Signals of one acquisition, muscle = 1."""

    fat: float
    marrow: float
    cortex: float
    fluid: float
    cartilage: float
    blood: float
    liver: float
    spleen: float
    kidney: float
    gland: float
    grey: float
    white: float


def draw_tissues(rng: np.random.Generator) -> Tissues:
    """Signals as in STIR (two of three), T1 or proton-density contrast, each varied."""
    contrast = rng.choice(["stir", "t1", "pd"], p=[0.68, 0.2, 0.12])
    table = {
        "stir": (0.32, 0.7, 0.08, 4.6, 1.4, 1.9, 0.95, 2.0, 2.3, 1.9, 2.3, 1.6),
        "t1": (3.2, 2.3, 0.15, 0.55, 1.3, 0.7, 1.5, 1.0, 1.15, 1.2, 1.2, 1.6),
        "pd": (2.2, 1.8, 0.15, 3.0, 1.8, 0.9, 0.9, 1.6, 1.9, 1.6, 1.9, 1.5),
    }
    values = np.array(table[str(contrast)]) * np.exp(rng.normal(0, 0.16, 12))
    if contrast == "stir":  # the two that vary most from person to person, and fat with the coil
        values[0] = rng.uniform(0.1, 0.55)
        values[1] = 0.75 * rng.uniform(0.55, 1.5)
    fat, marrow, cortex, fluid, cartilage, blood, liver, spleen, kidney, gland, grey, white = (
        float(v) for v in values
    )
    return Tissues(
        fat=fat, marrow=marrow, cortex=cortex, fluid=fluid, cartilage=cartilage, blood=blood,
        liver=liver, spleen=spleen, kidney=kidney, gland=gland, grey=grey, white=white,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A coronal stack of slices: ranges to draw from, mm. ``tall`` is height over width."""

    wide: Range
    deep: Range
    tall: Range = (0.9, 1.1)
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    wander: tuple[float, float, float] = (6.0, 5.0, 8.0)
    turn: float = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where one limb lies: template points and lengths in body coordinates, mm.

    ``side`` is +1 where the template's x runs to the left, ``size`` its scale.
    """

    centre: DoubleArray
    side: float
    size: float
    turn: DoubleArray

    def at(self, lateral: float, posterior: float, superior: float) -> DoubleArray:
        """A point of the template."""
        off = mm(self.side * lateral, posterior, superior) * self.size
        point: DoubleArray = self.centre + self.turn @ off
        return point

    def wide(self, a: float, b: float, c: float) -> tuple[float, float, float]:
        """Three lengths."""
        return a * self.size, b * self.size, c * self.size


def limbs(scene: Scene, *, both: bool, half_mm: float, size: float) -> Iterator[Place]:
    """The place of one limb in the middle, of a drawn side, or of both side by side."""
    rng = scene.rng
    for side in (-1.0, 1.0) if both else (float(rng.choice([-1.0, 1.0])),):
        turn = rotation(*(float(v) for v in rng.normal(0, 3.5, 3)))
        yield Place(mm(side * half_mm if both else 0.0, 0, 0), side, size, turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A canvas to paint one stranger on, with textures ``(Z, Y, X)`` of about mean 1."""

    rng: np.random.Generator
    grid: Grid
    canvas: Canvas
    tissues: Tissues
    muscle: FloatArray
    fat: FloatArray
    marrow: FloatArray
    coarse: FloatArray

    def between(self, low: float, high: float) -> float:
        """A number drawn evenly."""
        return float(self.rng.uniform(low, high))

    def paint(self, shape: Shape, value: Signal) -> None:
        """Fill a shape with a signal."""
        self.canvas.paint(shape, value)

    def flesh(self, shape: Shape) -> None:
        """A muscle, set off from its neighbours by a plane of fat."""
        plane = self.between(0.8, 2.2)
        self.canvas.paint_layers(shape, ((plane, self.fat), (0.0, self.muscle)))

    def coat(self, shape: Shape, fat_mm: float) -> None:
        """A part of the body: skin, a layer of fat, muscle inside."""
        layers = ((fat_mm + 1.6, 1.0), (fat_mm, self.fat), (0.0, self.muscle))
        self.canvas.paint_layers(shape, layers)

    def bone(
        self, shapes: Iterable[Shape], *, cortex_mm: float = 1.2, fillet_mm: float = 4.0,
        marrow: Signal | None = None,
    ) -> None:  # fmt: skip
        """Bones that touch are one: black cortex around marrow."""
        shapes = list(shapes)
        region = self.canvas.region(
            np.min([s.low for s in shapes], axis=0) - 6,
            np.max([s.high for s in shapes], axis=0) + 6,
        )
        if region is None:
            return
        field = self.canvas.field()
        for shape in shapes:
            self.canvas.unite(field, shape, fillet_mm)
        filling = self.marrow if marrow is None else marrow
        inner = filling[region] if isinstance(filling, np.ndarray) else filling
        part = field[region]
        edge = self.canvas.edge_mm
        for distance, value in ((part, self.tissues.cortex), (part + np.float32(cortex_mm), inner)):
            self.canvas.cover(region, np.clip(0.5 - distance / edge, 0.0, 1.0), value)

    def finish(self) -> Volume:
        """What the scanner makes of the painting."""
        scanner = draw_scanner(self.rng, rough=True)
        voxels = scan(self.canvas.signal, self.rng, self.grid.spacing_mm[1], scanner)
        return Volume(voxels=voxels, grid=self.grid, sources=sources(self.rng, len(voxels)))


def sources(rng: np.random.Generator, slices: int) -> tuple[SliceSource, ...]:
    """Made-up SOP instances of a stack."""
    root = f"2.25.{int(rng.integers(1, 2**62))}"
    return tuple(
        SliceSource(
            sop_class_uid=MR_IMAGE_STORAGE, sop_instance_uid=f"{root}.{n}", instance_number=n
        )
        for n in range(1, slices + 1)
    )


def lay_grid(view: View, rng: np.random.Generator) -> tuple[Grid, Pose]:
    """A coronal grid and the pose of a body in it."""
    wide = rng.uniform(*view.wide)
    tall = wide * rng.uniform(*view.tall)
    step = rng.uniform(3.2, 6.0)
    slices = int(np.clip(rng.uniform(*view.deep) / step, 9, 30))
    finest = np.sqrt(wide * tall * slices / _VOXELS)
    pixel = max(finest, wide / rng.choice([192, 256, 320]))
    shape = (slices, max(32, round(tall / pixel)), max(32, round(wide / pixel)))
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, pixel], [step, 0, 0], [0, -pixel, 0]]
    turn = rotation(*(float(v) for v in rng.normal(0, view.turn, 3)))
    origin = rng.normal(0, 20.0, 3)
    pose = Pose(rotation=turn, origin=origin)
    middle = pose.to_lps(np.asarray(view.centre) + rng.normal(0, 1, 3) * view.wander)
    affine[:3, 3] = middle - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Grid(shape=shape, affine=affine), pose


def open_scene(view: View, rng: np.random.Generator) -> Scene:
    """An empty scene: the view, tissues and textures are drawn."""
    grid, pose = lay_grid(view, rng)
    bends = tuple(
        np.clip(1.8 * noise(grid, (45.0, 45.0, 45.0), rng), -5.0, 5.0).astype(np.float32)
        for _ in range(3)
    )
    tissues = draw_tissues(rng)
    fine, coarse = noise(grid, (5.0, 2.5, 2.5), rng), noise(grid, (9.0, 9.0, 9.0), rng)
    return Scene(
        rng=rng,
        grid=grid,
        canvas=Canvas(grid, pose, bends, section_mm=min(4.0, grid.spacing_mm[0])),
        tissues=tissues,
        muscle=1.0 + 0.06 * fine + 0.05 * coarse,
        fat=(tissues.fat * (1.0 + 0.12 * fine * np.clip(coarse, 0, 1) + 0.05 * fine)).astype(
            np.float32
        ),
        marrow=tissues.marrow * (1.0 + 0.07 * (fine + coarse)),
        coarse=coarse,
    )


def drum(
    centre: Sequence[float] | DoubleArray, radii: tuple[float, float], half: float,
    turn: DoubleArray | None = None, *, waist: float = 0.0, round_mm: float = 4.0,
) -> Shape:  # fmt: skip
    """An elliptical cylinder along the turned z axis, ``half`` its half height, mm."""
    middle = np.asarray(centre, dtype=np.float64)
    m = [[float(v) for v in column] for column in (np.eye(3) if turn is None else turn).T]
    cx, cy, cz = (float(v) for v in middle)
    rx, ry = radii

    def distance(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
        dx, dy, dz = x - cx, y - cy, z - cz
        u, v, w = (row[0] * dx + row[1] * dy + row[2] * dz for row in m)
        height = np.abs(w)
        side = (np.sqrt((u / rx) ** 2 + (v / ry) ** 2) - 1.0) * min(rx, ry)
        side = side + waist * (1.0 - np.clip(height / half, 0.0, 1.0))
        return meet(side, height - half, round_mm).astype(np.float32, copy=False)

    reach = float(np.hypot(max(rx, ry), half))
    return Shape(middle - reach, middle + reach, distance)
