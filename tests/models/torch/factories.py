"""Data sets of drawn discs, small enough to train on in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hiptrain.dataset import Pictures, save_case
from hiptrain.specs import SEGMENTER


def discs(
    count: int,
    seed: int = 0,
    patient: str = "a",
    *,
    size: tuple[int, int] = (64, 64),
    slices: int = 3,
) -> Pictures:
    """A disc (the head), its brighter core (oedema) and nothing, on every picture."""
    rng = np.random.default_rng(seed)
    rows, columns = size
    y, x = np.mgrid[0:rows, 0:columns]
    inputs = np.zeros((count, slices, rows, columns), dtype=np.float16)
    truths = np.zeros((count, 3, rows, columns), dtype=np.uint8)
    for index in range(count):
        cy, cx = rng.uniform(0.35, 0.65) * rows, rng.uniform(0.35, 0.65) * columns
        radius = rng.uniform(0.15, 0.25) * min(size)
        disc = np.hypot(y - cy, x - cx) < radius
        core = np.hypot(y - cy, x - cx) < radius / 2
        inputs[index] = 0.3 + 0.5 * disc + 0.5 * core + rng.normal(0, 0.03, (slices, rows, columns))
        truths[index, 0] = 255 * disc
        truths[index, 1] = 255 * core
    return Pictures(
        inputs=inputs,
        truths=truths,
        patients=np.full(count, patient),
        hips=np.arange(count) // 2,
    )


def write_set(folder: Path, kinds: Mapping[str, str], *, each: int = 4) -> Path:
    """A data set folder with one case per patient: ``kinds`` says of which kind."""
    for seed, (patient, kind) in enumerate(kinds.items()):
        made = discs(each, seed, patient, size=(160, 128), slices=SEGMENTER.context)
        planes = discs(each, seed, patient, size=(224, 224))
        save_case(
            folder / f"{patient}.npz",
            {"name": patient, "patient": patient, "kind": kind},
            {
                "crops": made.inputs,
                "crop_masks": made.truths,
                "crop_hips": made.hips,
                "planes": planes.inputs[:, 0],
                "plane_masks": planes.truths[:, :2],
                "slice_mm": np.array(4.0),
            },
        )
    (folder / "set.json").write_text(json.dumps({"made_by": "discs", "seed": 0}))
    return folder
