"""A real pelvis whose heads are metal: what is left of a hip around a prosthesis."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from hipscore.domain import DoubleArray, FloatArray, Grid, Hip, Volume
from hiptrain.anatomy import Anatomy, deform, offsets, part
from hiptrain.contrast import draw_scanner, draw_tissues, scan, stir
from hiptrain.strangers.cuts import BEND, Frame, most_of, run, sub, thinned, with_margin
from hiptrain.strangers.scene import sources


def cut_prosthesis(anatomy: Anatomy, rng: np.random.Generator) -> Volume:
    """Both hips, or one, with a signal void for every head and the femur below it."""
    frame = Frame(anatomy.volume.grid, anatomy.hips, rng)
    rows, columns = most_of(frame, 1), frame.wide(300, 450)
    if rng.random() < 0.5:  # a field of view around one side
        _, row, column = frame.centres[int(rng.integers(len(frame.centres)))]
        tall, wide = frame.mm(1, 170, 230), frame.mm(2, 170, 230)
        rows = frame.span(1, row - tall / 2, row + tall / 2)
        columns = frame.span(2, column - wide / 2, column + wide / 2)
    outer, inner = with_margin(thinned((run(frame), rows, columns), rng), anatomy.volume.grid)
    small = sub(anatomy, outer)
    voxels = np.array(stir(small, draw_tissues(rng), rng), dtype=np.float32)
    for hip, neck in zip(small.hips, small.necks, strict=True):
        voxels = erase(voxels, small.volume.grid, hip, neck, rng)
    volume = Volume(voxels=voxels, grid=small.volume.grid, sources=small.volume.sources)
    volume, _ = deform(volume, (), rng, BEND)
    step = volume.grid.spacing_mm[1]
    scanned = scan(volume.voxels[inner], rng, step, draw_scanner(rng, rough=True))
    grid = part(volume.grid, inner)
    return Volume(voxels=scanned, grid=grid, sources=sources(rng, len(scanned)))


def erase(
    voxels: FloatArray, grid: Grid, hip: Hip, neck: DoubleArray, rng: np.random.Generator
) -> FloatArray:
    """Put a prosthesis in the place of one head: no signal, and a rim where signal piled up.

    The void covers head, neck and the shaft below, 1.4 to 1.9 head radii wide, with a
    ragged edge. ``voxels`` is ``(Z, Y, X)``, muscle = 1; a new array is returned.
    """
    off = offsets(grid, hip.centre_mm)
    along_neck = neck.astype(np.float32)
    length = np.float32(2.1 * hip.radius_mm)
    along = np.clip(off @ along_neck, 0.0, length)
    joint = np.linalg.norm(off - along[..., None] * along_neck, axis=-1)
    shaft = off - length * along_neck
    shaft[..., 2] -= np.clip(shaft[..., 2], -150.0, 0.0)
    distance = np.minimum(joint, np.linalg.norm(shaft, axis=-1) + 0.5 * hip.radius_mm)
    ragged = rng.normal(0, 1, voxels.shape).astype(np.float32)
    ragged = ndimage.gaussian_filter(ragged, (1.5, 6.0, 6.0))
    ragged /= ragged.std()
    edge = hip.radius_mm * rng.uniform(1.4, 1.9) + ragged * rng.uniform(1.5, 4.0)
    piled = np.exp(-(((distance - edge - 2.0) / 2.5) ** 2)) * (off[..., 0] * ragged > 0)
    rimmed = voxels * (1.0 + rng.uniform(1, 4) * piled)
    erased: FloatArray = (
        rimmed / (1.0 + np.exp(np.clip((edge - distance) / 0.8, -30, 30)))
    ).astype(np.float32)
    return erased
