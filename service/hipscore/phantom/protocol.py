"""The acquisition the phantom pretends to be, and its geometry as DICOM writes it."""

from __future__ import annotations

import numpy as np

from hipscore.domain import DoubleArray
from hipscore.phantom.study import Phantom

FIELD_TESLA = 1.5
PROTON_MHZ = 63.86
REPETITION_MS, ECHO_MS, INVERSION_MS, FLIP_DEG, BANDWIDTH_HZ = 4500.0, 40.0, 150.0, 150.0, 200.0
ECHO_TRAIN = 8


def window(phantom: Phantom) -> tuple[float, float]:
    """Window centre and width that show tissue, with fluid near the top."""
    top = float(np.percentile(phantom.volume.voxels, 99.0))
    return round(top / 2, 1), max(round(top, 1), 1.0)


def geometry(phantom: Phantom) -> tuple[list[float], list[float], float]:
    """Image Orientation (Patient), Pixel Spacing and Spacing Between Slices."""
    affine = phantom.volume.grid.affine
    step, row_mm, column_mm = phantom.volume.grid.spacing_mm
    cosines = np.concatenate([affine[:3, 2] / column_mm, affine[:3, 1] / row_mm])
    return _decimals(cosines, 10), _decimals(np.array([row_mm, column_mm]), 6), round(step, 6)


def _decimals(values: DoubleArray, places: int) -> list[float]:
    """Numbers that fit the 16 characters of VR DS; no negative zero."""
    return [round(float(v), places) + 0.0 for v in values]


def position(phantom: Phantom, z: int) -> list[float]:
    """Image Position (Patient) of slice ``z``, mm."""
    return _decimals(phantom.volume.grid.to_mm([z, 0, 0]), 6)
