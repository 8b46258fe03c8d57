"""A head instead of a hip: what the hip finder must decline."""

from __future__ import annotations

import numpy as np

from hipscore.domain import FloatArray
from hipscore.phantom.canvas import Canvas, ball, belly, ellipsoid, share


def paint_brain(
    canvas: Canvas, fluid: float, texture: FloatArray, rng: np.random.Generator
) -> None:
    """Scalp, skull, cerebrospinal fluid, folded cortex, white matter, ventricles and eyes."""
    size = rng.uniform(0.94, 1.06, 3) * 1.0
    origin = np.zeros(3)

    def at(x: float, y: float, z: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return origin + np.array([x, y, z]) * size

    for side in (-1.0, 1.0):  # neck and jaw below the skull
        canvas.paint(belly(at(side * 22, 25, -60), at(side * 26, 30, -190), (38, 40, 46)), 0.5)
        canvas.paint(belly(at(side * 24, 38, -70), at(side * 30, 42, -190), (16, 22, 24)), 1.0)
    canvas.paint(ellipsoid(at(0, -35, -75), np.array([52, 55, 60]) * size), 0.5)
    canvas.paint(ellipsoid(at(0, -40, -82), np.array([38, 40, 42]) * size), 1.0)
    skull = np.array([72, 90, 76]) * size
    for margin, value in ((9.0, 0.9), (7.5, 0.45), (3.5, 0.1), (0.0, fluid)):
        canvas.paint(ellipsoid(origin, skull + margin), value)
    shape = ellipsoid(origin, skull - 3.0)
    region = canvas.region(shape.low, shape.high)
    if region is not None:
        folds = canvas.distance(shape, region) + 4.0 * np.abs(texture[region])
        midline = 1.6 - np.abs(canvas.x[region])
        canvas.cover(region, share(np.maximum(folds, midline), canvas.edge_mm), 2.6)
        canvas.cover(region, share(np.maximum(folds + 5.0, midline), canvas.edge_mm), 1.5)
    for side in (-1.0, 1.0):
        canvas.paint(belly(at(side * 9, -30, 8), at(side * 16, 40, 14), (7, 6, 5)), fluid)
        canvas.paint(ellipsoid(at(side * 18, -5, -4), (9, 18, 9)), 2.2)
        canvas.paint(ball(at(side * 31, -84, -34), 14.0), 0.4)
        canvas.paint(ball(at(side * 31, -84, -34), 12.0), fluid)
    canvas.paint(ellipsoid(at(0, 48, -52), (48, 30, 24)), 1.9)
    canvas.paint(belly(at(0, 12, -25), at(0, 22, -120), (15, 13, 8)), 1.6)
