"""How far a mask is from the truth: overlap, surface distance and volume, per structure.

Definitions as in Maier-Hein et al., Metrics reloaded, Nat Methods 2024;21:195, and its
supplement. Masks are ``(Z, Y, X)`` bool on one grid; spacing is that of ``(z, y, x)``, mm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from hipscore.domain import BoolArray, DoubleArray

_FACES = ndimage.generate_binary_structure(3, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceDistances:
    """Distances between two surfaces, mm."""

    #: the larger of the two 95th percentiles
    hd95_mm: float
    #: the mean of the two mean distances
    mean_mm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """One structure of one hip, truth beside what was found.

    ``dice`` and the distances are None where they say nothing: ``dice`` where the truth is
    empty (then ``found_ml`` is the false volume), the distances where either mask is empty.
    """

    truth_ml: float
    found_ml: float
    shared_ml: float
    dice: float | None
    hd95_mm: float | None
    surface_mm: float | None

    @property
    def error_ml(self) -> float:
        """Found minus true volume, mL."""
        return self.found_ml - self.truth_ml

    @property
    def relative_error(self) -> float | None:
        """Found minus true volume over the true volume; None where the truth is empty."""
        return self.error_ml / self.truth_ml if self.truth_ml > 0 else None


def dice(first: BoolArray, second: BoolArray) -> float:
    """Dice similarity coefficient of two masks of any shape; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / total if total else 1.0


def pooled_dice(overlaps: Iterable[Overlap]) -> float | None:
    """Dice of all hips' voxels as one mask, by volume; None where there is none at all.

    Large lesions weigh more than in the mean over hips, and false lesions on healthy hips
    count.
    """
    items = list(overlaps)
    total = sum(item.truth_ml + item.found_ml for item in items)
    return 2.0 * sum(item.shared_ml for item in items) / total if total > 0 else None


def surface(mask: BoolArray) -> BoolArray:
    """Voxels of a mask with a face on the outside; the outside of the array counts as such."""
    return mask & ~ndimage.binary_erosion(mask, _FACES)


def directed_distances(
    first: BoolArray, second: BoolArray, spacing_mm: Sequence[float]
) -> DoubleArray:
    """Distance of every surface voxel of ``first`` to the nearest one of ``second``, mm.

    ``(N,)``, between voxel centres. Both masks must hold something.
    """
    away: DoubleArray = ndimage.distance_transform_edt(~surface(second), sampling=spacing_mm)
    return away[surface(first)]


def surface_distances(
    first: BoolArray, second: BoolArray, spacing_mm: Sequence[float]
) -> SurfaceDistances | None:
    """Distances between the surfaces of two masks; None where either is empty.

    A surface is the set of voxels with a face on the outside, measured between voxel
    centres: on a grid of 5 mm slices a surface can be no nearer than the next slice. With
    the distances of every surface voxel of one mask to the nearest of the other, both ways:
    HD95 is the larger of the two 95th percentiles, the mean is the mean of the two means
    (MASD: both surfaces count the same, whichever has more voxels).
    """
    if not first.any() or not second.any():
        return None
    (region,) = ndimage.find_objects((first | second).astype(np.uint8))
    one, other = first[region], second[region]
    there = directed_distances(one, other, spacing_mm)
    back = directed_distances(other, one, spacing_mm)
    return SurfaceDistances(
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        mean_mm=float((there.mean() + back.mean()) / 2),
    )


def overlap(truth: BoolArray, found: BoolArray, spacing_mm: Sequence[float]) -> Overlap:
    """Compare one structure, ``(Z, Y, X)`` bool."""
    ml = float(np.prod(spacing_mm)) / 1000.0
    apart = surface_distances(truth, found, spacing_mm)
    return Overlap(
        truth_ml=float(truth.sum() * ml),
        found_ml=float(found.sum() * ml),
        shared_ml=float((truth & found).sum() * ml),
        dice=dice(truth, found) if truth.any() else None,
        hd95_mm=apart.hd95_mm if apart else None,
        surface_mm=apart.mean_mm if apart else None,
    )
