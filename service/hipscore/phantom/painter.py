"""The order in which one person is painted, and the truth that comes of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from hipscore.domain import BoolArray, Channel, FloatArray, Grid, Side
from hipscore.phantom import joint as joints
from hipscore.phantom import pelvis
from hipscore.phantom.brain import paint_brain
from hipscore.phantom.build import Build, HipBuild, stream
from hipscore.phantom.canvas import (
    WARP_MM,
    Canvas,
    Pose,
    Region,
    ellipsoid,
    noise,
    ramp,
    share,
)


class Painter:
    """Paints the same person section by section and adds the sections up."""

    def __init__(
        self,
        seed: int,
        person: Build,
        pose: Pose,
        grid: Grid,
        *,
        kinds: Collection[Channel],
        section_mm: float,
    ) -> None:
        self._kinds, self._section_mm = kinds, section_mm
        self._seed, self._person, self._pose, self._grid = seed, person, pose, grid
        rng = stream(seed, "texture")
        self.signal: FloatArray = np.zeros(grid.shape, dtype=np.float32)
        self._shares: dict[tuple[Side, Channel], FloatArray] = {}
        self._fine = noise(grid, (5.0, 2.2, 2.2), rng)
        self._coarse = noise(grid, (9.0, 9.0, 9.0), rng)
        ridges = np.exp(-((noise(grid, (9.0, 10.0, 14.0), rng) * 6.0) ** 2))
        ridges *= np.clip(self._coarse, 0.0, 1.0)
        self._septa = 1.0 + 0.5 * ridges + 0.06 * self._fine
        streaks = noise(grid, (5.0, 14.0, 2.5), rng)
        self._muscle = 1.0 + 0.06 * streaks + 0.05 * self._coarse
        self._muscle -= 0.18 * np.clip(streaks - 1.5, 0.0, 1.5)
        self._warp = self._draw_warp(rng)
        self._median: float | None = None

    def _draw_warp(self, rng: np.random.Generator) -> tuple[FloatArray, ...]:
        """Displacement (mm) that makes shapes organic, none near the femoral heads."""
        still = np.zeros(self._grid.shape, dtype=np.float32)
        plain = Canvas(self._grid, self._pose, (still, still, still))
        weight = np.full(self._grid.shape, 2.2, dtype=np.float32)
        for hip in self._person.hips:
            cx, cy, cz = (float(v) for v in hip.centre)
            far = (plain.x - cx) ** 2 + (plain.y - cy) ** 2 + (plain.z - cz) ** 2
            weight *= ramp(np.sqrt(far), hip.radius + 18.0, hip.radius + 60.0)
        return tuple(
            np.clip(noise(self._grid, (40.0, 40.0, 40.0), rng) * weight, -WARP_MM, WARP_MM)
            for _ in range(3)
        )

    def truth(self, side: Side, sections: int) -> BoolArray:
        """Masks ``(K, Z, Y, X)`` of one hip: voxels at least half filled."""
        empty = np.zeros(self._grid.shape, dtype=np.float32)
        masks = np.stack(
            [self._shares.get((side, k), empty) >= 0.5 * sections - 1e-4 for k in Channel]
        )
        # a voxel on the border may be half of each
        masks[Channel.SYNOVITIS] &= ~masks[Channel.FEMORAL_HEAD]
        return masks

    def _record(self, side: Side, channel: Channel, region: Region, part: FloatArray) -> None:
        key = (side, channel)
        if key not in self._shares:
            self._shares[key] = np.zeros(self._grid.shape, dtype=np.float32)
        self._shares[key][region] += part

    def _canvas(self, offset: float) -> Canvas:
        return Canvas(
            self._grid, self._pose, self._warp, offset=offset, section_mm=self._section_mm
        )

    def paint_brain(self, offset: float) -> None:
        """Add one section of a head."""
        canvas = self._canvas(offset)
        rng = stream(self._seed, "brain")
        paint_brain(canvas, float(rng.uniform(4.5, 6.0)), self._coarse, rng)
        self.signal += canvas.signal

    def paint_hips(self, offset: float, levels: Mapping[Side, int]) -> None:
        """Add one section of a pelvis; ``levels`` are the burdens of the hips in view."""
        canvas = self._canvas(offset)
        person = self._person
        skin = pelvis.paint_body(canvas, person, self._septa)
        pelvis.paint_muscles(canvas, person, self._muscle, stream(self._seed, "muscles"))
        if self._median is None:
            self._median = float(np.median(canvas.signal[skin < -2.0]))
        signals = self._draw_signals(self._median)
        organs = stream(self._seed, "organs")
        pelvis.paint_viscera(canvas, person, signals.fluid, self._coarse, organs)
        red = np.float32(1.08 * signals.red_marrow) * (1.0 + 0.08 * (self._fine + self._coarse))
        pelvis.paint_spine(canvas, person, red, signals.fluid, organs)
        for hip in person.hips:
            self._paint_joint(
                canvas, hip, levels.get(hip.side, 0), signals, red, shown=hip.side in levels
            )
        canvas.signal *= share(skin, canvas.edge_mm)
        self.signal += canvas.signal

    def _draw_signals(self, median: float) -> joints.Signals:
        """Tissue signals from the ranges measured on real STIR, relative to the median tissue."""
        rng = stream(self._seed, "signals")
        marrow = median * float(rng.uniform(0.75, 1.2))
        fluid = median * float(rng.uniform(5.4, 6.8))
        return joints.Signals(
            marrow=marrow,
            red_marrow=min(marrow * float(rng.uniform(1.0, 1.3)), 1.45 * median),
            fluid=fluid,
            cartilage=float(rng.uniform(0.9, 1.6)),
            film=fluid * float(rng.uniform(0.25, 0.42)),
            fine=self._fine,
            coarse=self._coarse,
        )

    def _paint_joint(
        self,
        canvas: Canvas,
        hip: HipBuild,
        level: int,
        signals: joints.Signals,
        red: FloatArray,
        *,
        shown: bool,
    ) -> None:
        rng = stream(self._seed, f"lesions {hip.side.value}")
        lesions = joints.draw_lesions(rng, hip, level, self._kinds)
        joint = joints.lay_joint(canvas, hip)
        field = pelvis.pelvic_field(canvas, self._person, hip)
        if joint is None:
            pelvis.paint_bone(canvas, field, red, 1.0)
            return
        region = joint.region
        centre, radii = joints.fossa(hip)
        canvas.paint(ellipsoid(centre, radii), 1.1)
        joints.paint_socket_lining(canvas, joint, hip, signals)
        effusion = joints.paint_fluids(canvas, joint, lesions, signals)
        hollow = np.minimum(
            joint.from_centre - np.float32(hip.radius + joints.JOINT_SPACE_MM),
            canvas.distance(ellipsoid(centre, radii), region),
        )
        field[region] = np.maximum(field[region], -hollow)
        pelvis.paint_bone(canvas, field, red, 1.0)
        socket = share(field[region], canvas.edge_mm)
        joints.paint_reaction(canvas, joint, lesions, socket, signals)
        bone, head = joints.paint_femur(canvas, joint, hip, signals)
        edema = joints.paint_edema(canvas, joint, lesions, bone, signals)
        if shown:
            free = (1.0 - socket) * (1.0 - bone)
            self._record(hip.side, Channel.FEMORAL_HEAD, region, head)
            self._record(hip.side, Channel.BME, region, np.minimum(edema, head))
            self._record(hip.side, Channel.SYNOVITIS, region, effusion * free)
