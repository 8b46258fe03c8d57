"""What one synthetic person is like: sizes, angles and tissue signals, drawn from a seed.

The signal scale is muscle = 1. Ranges of signal follow measurements on real coronal
STIR of the pelvis at 1.5 T: normal marrow 0.6 to 1.5 and free fluid 5 to 7 times the
median tissue signal.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hipscore.domain import DoubleArray, Side
from hipscore.phantom.canvas import rotation

#: half the distance between the heads of the template, mm; see :meth:`Build.at`
_TEMPLATE_HALF_MM = 87.5
_TEMPLATE_HEAD_MM = 24.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HipBuild:
    """One hip. Vectors are body coordinates; the head centre is ``centre``, mm."""

    side: Side
    centre: DoubleArray
    radius: float
    #: unit vector from the head centre down the neck
    neck: DoubleArray
    neck_mm: float
    #: unit vector of the mouth of the acetabulum
    mouth: DoubleArray
    #: amplitudes of the head's departure from a sphere, share of the radius
    harmonics: DoubleArray

    @property
    def sign(self) -> float:
        """+1 where lateral is +x (left), -1 where it is -x (right)."""
        return 1.0 if self.side is Side.LEFT else -1.0

    def off(self, lateral: float, posterior: float, superior: float) -> DoubleArray:
        """A vector from its anatomical components, mm."""
        return np.array([self.sign * lateral, posterior, superior])


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One person."""

    hips: tuple[HipBuild, HipBuild]
    half_mm: float
    scale: float
    fat_mm: float
    bulk: float
    fat: float
    skin: float

    def at(self, side: float, lateral: float, posterior: float, superior: float) -> DoubleArray:
        """Body position of a template point.

        The template has its heads at ``(+-87.5, 0, 0)`` with a radius of 24 mm; ``side``
        is +1 for the left, -1 for the right.
        """
        return np.array(
            [
                side * lateral * self.half_mm / _TEMPLATE_HALF_MM,
                posterior * self.scale,
                superior * self.scale,
            ]
        )


def stream(seed: int, name: str) -> np.random.Generator:
    """A random stream of its own for each purpose, so that one does not disturb another."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return np.random.default_rng([seed, key])


def unit(vector: ArrayLike) -> DoubleArray:
    """The vector at length 1."""
    v = np.asarray(vector, dtype=np.float64)
    out: DoubleArray = v / np.linalg.norm(v)
    return out


def _within(rng: np.random.Generator, mean: float, sd: float, low: float, high: float) -> float:
    return float(np.clip(rng.normal(mean, sd), low, high))


def _hip(
    rng: np.random.Generator, side: Side, half_mm: float, radius: float, angles: tuple[float, float]
) -> HipBuild:
    sign = 1.0 if side is Side.LEFT else -1.0
    ccd = np.deg2rad(float(np.clip(angles[0] + rng.normal(0, 1.5), 120, 140)))
    version = np.deg2rad(angles[1] + rng.normal(0, 2.0))
    neck = np.array(
        [sign * np.sin(ccd) * np.cos(version), np.sin(ccd) * np.sin(version), np.cos(ccd)]
    )
    inclination = np.deg2rad(_within(rng, 42, 3, 36, 48))
    forward = np.deg2rad(_within(rng, 17, 4, 5, 28))
    mouth = np.array(
        [
            sign * np.sin(inclination) * np.cos(forward),
            -np.sin(inclination) * np.sin(forward),
            -np.cos(inclination),
        ]
    )
    return HipBuild(
        side=side,
        centre=np.array([sign * half_mm, rng.normal(0, 1.5), rng.normal(0, 1.5)]),
        radius=float(np.clip(radius * (1 + rng.normal(0, 0.012)), 20, 27)),
        neck=neck,
        neck_mm=radius * _within(rng, 2.05, 0.1, 1.85, 2.3),
        mouth=mouth,
        harmonics=rng.normal(0, 0.008, 5),
    )


def draw_build(rng: np.random.Generator) -> Build:
    """Draw one adult: head radius 20-27 mm, heads 160-200 mm apart, CCD angle 120-140 degrees."""
    radius = _within(rng, 23.8, 1.5, 20.3, 26.6)
    half_mm = _within(rng, 0.5 * (178 + 3.0 * (radius - 23.8)), 4, 80, 100)
    angles = (_within(rng, 129, 4, 121, 139), _within(rng, 14, 5, 0, 28))
    right = _hip(rng, Side.RIGHT, half_mm, radius, angles)
    left = _hip(rng, Side.LEFT, half_mm, radius, angles)
    return Build(
        hips=(right, left),
        half_mm=half_mm,
        scale=float(np.sqrt(radius / _TEMPLATE_HEAD_MM) * rng.uniform(0.95, 1.06)),
        fat_mm=float(rng.uniform(10, 42)),
        bulk=float(rng.uniform(0.88, 1.1)),
        fat=float(rng.uniform(0.38, 0.6)),
        skin=float(rng.uniform(0.8, 1.2)),
    )


def draw_turn(rng: np.random.Generator) -> DoubleArray:
    """How the person lies on the table: a small rotation (3, 3), pelvic tilt included."""
    return rotation(float(rng.normal(0, 4)), float(rng.normal(0, 2)), float(rng.normal(0, 2)))
