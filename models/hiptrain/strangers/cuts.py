"""Pelves without their hips: parts of real anatomies and of the service's phantom.

What counts as no hip: no head's centre inside the field of view, and of each head at most
:data:`MOST_LEFT` of its volume; where slices or rows end the view, at most
:data:`RIM_LEFT`, because the last section of a head at the end of a stack looks the same
with and without the rest of the head behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from hipscore.domain import BoolArray, DoubleArray, Grid, Hip, Masks, Side, Volume
from hipscore.phantom.build import Build, draw_build, draw_turn
from hipscore.phantom.canvas import Pose
from hipscore.phantom.painter import Painter
from hiptrain.anatomy import Anatomy, Bend, box, deform, part
from hiptrain.contrast import draw_scanner, draw_tissues, scan, shading, stir
from hiptrain.strangers.scene import sources

#: share of a head's volume that may be left where columns end the view
MOST_LEFT = 0.2
#: the same where slices or rows end it
RIM_LEFT = 0.03
#: as in anatomy, a little stronger: strangers lie as they like
BEND = Bend(scale=(0.85, 1.15), turn=9.0)
_MILD = Bend(scale=(0.92, 1.08), turn=3.0, elastic_mm=2.0)
_MARGIN_MM = 28.0
_VOXELS = 1_300_000

Window: TypeAlias = tuple[slice, slice, slice]
#: (z, y, x) index bounds of each head in a grid: [[low, high] * 3]
Bounds: TypeAlias = Sequence[DoubleArray]
Cutter: TypeAlias = Callable[["Frame"], tuple[Window, float]]


class Frame:
    """Where the heads lie in a grid, and a generator: what a cut is chosen from.

    ``low`` and ``high`` are index bounds (z, y, x) of all heads together, ``centres``
    (N, 3) their centres, ``step`` the spacing, ``radius`` the mean radius in mm.
    """

    def __init__(self, grid: Grid, hips: Sequence[Hip], rng: np.random.Generator) -> None:
        self.shape = np.array(grid.shape)
        self.step = np.array(grid.spacing_mm)
        self.rng = rng
        self.radius = float(np.mean([hip.radius_mm for hip in hips]))
        self.centres = np.array([grid.to_index(np.array(hip.centre_mm)) for hip in hips])
        reach = np.array([[hip.radius_mm] for hip in hips]) / self.step
        self.low = (self.centres - reach).min(axis=0)
        self.high = (self.centres + reach).max(axis=0)
        #: towards the feet rows count up, or down
        self.feet_up = bool(grid.affine[2, 1] < 0)

    def mm(self, axis: int, low: float, high: float) -> float:
        """A drawn length along an axis in voxels."""
        return float(self.rng.uniform(low, high)) / float(self.step[axis])

    def span(self, axis: int, low: float, high: float) -> slice:
        """An index range, clipped to the grid."""
        first = int(np.clip(np.ceil(low), 0, self.shape[axis]))
        last = int(np.clip(np.floor(high) + 1, first, self.shape[axis]))
        return slice(first, last)

    def wide(self, low: float, high: float) -> slice:
        """Columns around the midline, a drawn width in mm."""
        width = self.mm(2, low, high)
        middle = float(self.centres[:, 2].mean()) + self.mm(2, -12, 12)
        return self.span(2, middle - width / 2, middle + width / 2)

    def rows(self, *, above: bool, gap_mm: float, tall_mm: float) -> slice:
        """Rows on one side of the heads, ``gap_mm`` away from them, of a height."""
        gap, tall = gap_mm / self.step[1], tall_mm / self.step[1]
        before = above == self.feet_up  # towards row 0
        if before:
            return self.span(1, self.low[1] - gap - tall, self.low[1] - gap)
        return self.span(1, self.high[1] + gap, self.high[1] + gap + tall)


def _sacroiliac(frame: Frame) -> tuple[Window, float]:
    """Behind the heads and above them: the sacroiliac joints, in a field of their own."""
    z = frame.span(0, frame.centres[:, 0].mean() + frame.mm(0, 0, 15), frame.shape[0])
    gap, tall = frame.mm(1, 0, 8) * frame.step[1], frame.mm(1, 110, 190) * frame.step[1]
    return (z, frame.rows(above=True, gap_mm=gap, tall_mm=tall), frame.wide(150, 300)), RIM_LEFT


def _upper(frame: Frame) -> tuple[Window, float]:
    """Above the heads: wings, bowel, lower lumbar spine."""
    gap = float(frame.rng.uniform(0, 20))
    rows = frame.rows(above=True, gap_mm=gap, tall_mm=400)
    return (run(frame), rows, frame.wide(240, 450)), RIM_LEFT


def _thighs(frame: Frame) -> tuple[Window, float]:
    """Below the heads: shafts and trochanters in muscle."""
    gap = float(frame.rng.uniform(0, 30))
    rows = frame.rows(above=False, gap_mm=gap, tall_mm=400)
    return (run(frame), rows, frame.wide(240, 450)), RIM_LEFT


def _prostate(frame: Frame) -> tuple[Window, float]:
    """Between the heads: a small field of view that cuts them off."""
    left, right = sorted(frame.centres[:, 2])
    # 0.42 of the radius beyond the edge of the head: a cap of at most 14 % of the ball
    deepest = 0.42 * frame.radius / frame.step[2]
    inner = frame.radius / frame.step[2]
    low = left + inner - frame.rng.uniform(-0.6, 1.0) * deepest
    high = right - inner + frame.rng.uniform(-0.6, 1.0) * deepest
    tall = frame.mm(1, 110, 190)
    middle = frame.centres[:, 1].mean() + frame.mm(1, -25, 25)
    return (run(frame), frame.span(1, middle - tall / 2, middle + tall / 2),
            frame.span(2, low, high)), MOST_LEFT  # fmt: skip


def _beside(frame: Frame) -> tuple[Window, float]:
    """Lateral to a head: trochanter and gluteal muscle, the head cut off."""
    first = bool(frame.rng.random() < 0.5)
    centre = np.sort(frame.centres[:, 2])[0 if first else -1]
    edge = frame.rng.uniform(0.58, 1.2) * frame.radius / frame.step[2]
    columns = (
        frame.span(2, 0, centre - edge) if first else frame.span(2, centre + edge, frame.shape[2])
    )
    tall = frame.mm(1, 150, 320)
    middle = frame.centres[:, 1].mean() + frame.mm(1, -50, 50)
    return (run(frame), frame.span(1, middle - tall / 2, middle + tall / 2), columns), MOST_LEFT


def _front(frame: Frame) -> tuple[Window, float]:
    """Slices in front of the heads."""
    z = frame.span(0, 0, frame.low[0] + frame.mm(0, -10, 1))
    return (z, most_of(frame, 1), frame.wide(230, 450)), RIM_LEFT


def _behind(frame: Frame) -> tuple[Window, float]:
    """Slices behind the heads: sacrum, sciatic notch, ischium."""
    z = frame.span(0, frame.high[0] - frame.mm(0, -10, 1), frame.shape[0])
    return (z, most_of(frame, 1), frame.wide(230, 450)), RIM_LEFT


def run(frame: Frame) -> slice:
    """A run of slices about the heads."""
    count = int(frame.rng.integers(16, 28))
    middle = frame.centres[:, 0].mean() + frame.mm(0, -20, 20)
    return frame.span(0, middle - count / 2, middle + count / 2)


def most_of(frame: Frame, axis: int) -> slice:
    """Most of the grid along an axis."""
    size = float(frame.shape[axis])
    low, high = frame.rng.uniform(0, 0.15), frame.rng.uniform(0.85, 1.0)
    return frame.span(axis, low * size, high * size)


CUTS: dict[str, Cutter] = {
    "sacroiliac": _sacroiliac,
    "upper-pelvis": _upper,
    "lower-pelvis": _thighs,
    "prostate": _prostate,
    "trochanter": _beside,
    "front": _front,
    "behind": _behind,
}
REAL_CUTS = tuple(f"real-{name}" for name in CUTS)
PHANTOM_CUTS = tuple(f"phantom-{name}" for name in CUTS)


def cut_anatomy(name: str, anatomy: Anatomy, rng: np.random.Generator) -> Volume:
    """A part of a real pelvis without hips, bent, in T1 or STIR-like contrast.

    Raises
    ------
    ValueError
        If the anatomy has no room for such a part.
    """
    grid = anatomy.volume.grid
    for attempt in range(60):
        window, most = CUTS[name](Frame(grid, anatomy.hips, rng))
        # a strong bend brings the heads back into a view that ends close to them
        bend = BEND if attempt < 8 else _MILD
        made = _cut(anatomy, window, most, rng, bend) if _roomy(window, grid) else None
        if made is not None:
            return made
    raise ValueError(f"the anatomy has no room for a series of the kind real-{name}")


def _cut(
    anatomy: Anatomy,
    window: Window,
    most: float,
    rng: np.random.Generator,
    bend: Bend = BEND,
) -> Volume | None:
    """Contrast and bend in the window and a margin, then cut; None if a head is left."""
    window = thinned(window, rng)
    grid = anatomy.volume.grid
    outer, inner = with_margin(window, grid)
    small = sub(anatomy, outer)
    t1 = rng.random() < 0.3
    voxels = small.t1 if t1 else stir(small, draw_tissues(rng), rng)
    volume = Volume(voxels=np.array(voxels, np.float32), grid=small.volume.grid,
                    sources=small.volume.sources)  # fmt: skip
    masks = [_as_masks(head[outer]) for head in anatomy.heads]
    whole = [head.sum() for head in anatomy.heads]
    before = [max(int(item.voxels[0].sum()), 1) for item in masks]
    volume, moved = deform(volume, masks, rng, bend)
    for item, complete, had in zip(moved, whole, before, strict=True):
        # the size of a head after the bend, from how much of the part in view it became
        grown = max(int(item.voxels[0].sum()), 1) / had if had > 50 else 1.0
        if item.voxels[0][inner].sum() > most * complete * min(grown, 1.0):
            return None
    voxels = volume.voxels[inner]
    if t1 and rng.random() < 0.5:
        stored = voxels * shading(voxels.shape, rng, 0.13) * rng.uniform(150, 500)
        voxels = np.clip(np.rint(stored + rng.normal(0, 6, stored.shape)), 0, 4095)
    else:
        voxels = scan(voxels, rng, volume.grid.spacing_mm[1], draw_scanner(rng, rough=True))
    return Volume(
        voxels=np.ascontiguousarray(voxels, dtype=np.float32),
        grid=part(volume.grid, inner),
        sources=sources(rng, len(voxels)),
    )


def _as_masks(head: BoolArray) -> Masks:
    return Masks(side=Side.RIGHT, voxels=np.ascontiguousarray(head)[None].copy())


def _roomy(window: Window, grid: Grid) -> bool:
    """Whether a window is a series: at least 6 slices, 45 mm tall and 50 mm wide."""
    size = [piece.stop - piece.start for piece in window]
    _, row_mm, column_mm = grid.spacing_mm
    return size[0] >= 6 and size[1] * row_mm >= 45 and size[2] * column_mm >= 50


def thinned(window: Window, rng: np.random.Generator) -> Window:
    """Fewer slices where there are more voxels than the time allows."""
    z, y, x = window
    most = max(8, int(_VOXELS / ((y.stop - y.start) * (x.stop - x.start))))
    spare = (z.stop - z.start) - most
    if spare <= 0:
        return window
    start = z.start + int(rng.integers(0, spare + 1))
    return slice(start, start + most), y, x


def with_margin(window: Window, grid: Grid) -> tuple[Window, Window]:
    """The window with a margin in the plane, and the window's place inside of that."""
    outer, inner = [], []
    for axis, piece in enumerate(window):
        margin = 0 if axis == 0 else round(_MARGIN_MM / grid.spacing_mm[axis])
        start, stop = max(0, piece.start - margin), min(grid.shape[axis], piece.stop + margin)
        outer.append(slice(start, stop))
        inner.append(slice(piece.start - start, piece.stop - start))
    return (outer[0], outer[1], outer[2]), (inner[0], inner[1], inner[2])


def sub(anatomy: Anatomy, window: Window) -> Anatomy:
    """The anatomy inside a window; heads far outside of it are forgotten."""
    grid = part(anatomy.volume.grid, window)
    near = [
        number
        for number, hip in enumerate(anatomy.hips)
        if all(p.stop - p.start > 2 for p in box(grid, hip.centre_mm, 3.2 * hip.radius_mm))
    ]
    return replace(
        anatomy,
        volume=Volume(
            voxels=np.ascontiguousarray(anatomy.volume.voxels[window]),
            grid=grid,
            sources=anatomy.volume.sources[window[0]],
        ),
        t1=np.ascontiguousarray(anatomy.t1[window]),
        hips=tuple(anatomy.hips[number] for number in near),
        necks=tuple(anatomy.necks[number] for number in near),
        surfaces=tuple(anatomy.surfaces[number] for number in near),
        heads=tuple(np.ascontiguousarray(anatomy.heads[number][window]) for number in near),
    )


def cut_phantom(name: str, rng: np.random.Generator) -> Volume:
    """The same part of a synthetic person: only the part is painted."""
    person = draw_build(rng)
    pose = Pose(rotation=draw_turn(rng), origin=rng.normal(0, (12, 15, 30)))
    pixel, step = float(rng.uniform(1.2, 1.7)), float(rng.uniform(3.5, 6.0))
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, pixel], [step, 0, 0], [0, -pixel, 0]]
    shape = (round(150 / step), round(430 / pixel), round(400 / pixel))
    centre = pose.to_lps(np.array([0, 5, float(rng.uniform(-25, 25))]))
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)
    hips = _heads(person, pose)
    for _ in range(30):
        window, most = CUTS[name](Frame(grid, hips, rng))
        view = part(grid, window)
        if _roomy(window, grid) and all(_left_of(hip, view) <= most for hip in hips):
            break
    else:
        raise ValueError(f"the phantom has no room for a series of the kind phantom-{name}")
    seed = int(rng.integers(1, 2**31))
    painter = Painter(seed, person, pose, view, kinds=(), section_mm=0.7 * step)
    painter.paint_hips(0.0, dict.fromkeys(Side, 0))
    voxels = scan(painter.signal, rng, pixel, draw_scanner(rng, rough=True))
    return Volume(voxels=voxels, grid=view, sources=sources(rng, len(voxels)))


def _heads(person: Build, pose: Pose) -> list[Hip]:
    made = []
    for hip in person.hips:
        x, y, z = (float(v) for v in pose.to_lps(hip.centre))
        made.append(Hip(side=hip.side, centre_mm=(x, y, z), radius_mm=hip.radius, confidence=1.0))
    return made


def _left_of(hip: Hip, grid: Grid) -> float:
    """Share of a head's ball that lies inside a grid's field of view; 1 if its centre does."""
    along = np.linspace(-1, 1, 25)
    ball = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1).reshape(-1, 3)
    ball = ball[(ball**2).sum(axis=1) <= 1.0]
    index = grid.to_index(np.asarray(hip.centre_mm) + ball * hip.radius_mm)
    inside = ((index >= -0.5) & (index <= np.array(grid.shape) - 0.5)).all(axis=1)
    return float(inside.mean())
