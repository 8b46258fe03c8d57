"""From checkpoints to a model bundle: ONNX files, reference, ``bundle.json``, ``CARD.md``.

``bundle.json`` is read by ``hipscore.inference``. Keys: ``format``, ``id``, ``version``,
``name``, ``trained_on``, ``files`` (SHA-256 by name), ``localiser`` and ``segmenter`` (the
pictures they take, and their thresholds), ``reference.tolerance``, ``normalisation`` and
``training`` (recipes and data, for the reader).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hipscore import hips, phantom
from hipscore.domain import FloatArray, PlaneSpec
from hiptrain.networks import Probability, restore_network
from hiptrain.specs import LOCALISER, MARGIN_MM, SEGMENTER

FORMAT = 1
FILES = {"localiser": "localiser.onnx", "segmenter": "model.onnx"}
#: opset every onnxruntime since 1.14 reads
_OPSET = 18
#: reference inputs are rounded to this, so that they compress
_GRAIN = 64.0


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a bundle says about itself."""

    id: str
    version: str
    name: str
    trained_on: str
    training_series: Sequence[str] = ()
    held_out_series: Sequence[str] = ()
    data: Mapping[str, object] = field(default_factory=dict)
    thresholds: tuple[float, float, float] = (0.5, 0.5, 0.5)
    localiser_threshold: float = 0.5
    min_confidence: float = 0.75
    tolerance: float = 0.02


def export(run: Path, out: Path, about: About) -> Path:
    """Write a bundle from ``localiser.best.pt`` and ``segmenter.best.pt`` of a run.

    Raises
    ------
    FileNotFoundError
        If a checkpoint is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    pictures = reference_pictures()
    recipes, reference = {}, {}
    for task, name in FILES.items():
        saved = torch.load(run / f"{task}.best.pt", weights_only=True)
        model = Probability(restore_network(saved)).eval()
        given = pictures[task]
        write_onnx(model, given, out / name)
        with torch.no_grad():
            answer = model(torch.from_numpy(given)).numpy()
        reference[f"{task}_input"] = given.astype(np.float16)
        reference[f"{task}_output"] = answer.astype(np.float16)
        recipes[task] = saved["recipe"] | {
            "design": saved["design"],
            "best_epoch": saved["best_epoch"],
            "validation_dice": round(saved["best"], 4),
        }
    np.savez_compressed(out / "reference.npz", allow_pickle=False, **reference)
    described = describe(out, about, recipes)
    (out / "bundle.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    return out


def write_onnx(model: Any, pictures: FloatArray, path: Path) -> None:
    """Export ``model`` as one file with a free batch size."""
    example = torch.from_numpy(np.repeat(pictures[:1], 2, axis=0))
    torch.onnx.export(
        model,
        (example,),
        path,
        input_names=["pictures"],
        output_names=["probability"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        opset_version=_OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def reference_pictures() -> dict[str, FloatArray]:
    """One picture for each network, of a phantom: anyone can make them again."""
    made = phantom.synthesise(seed=0, rows=256, slices=20, supersampling=1)
    middle = made.volume.grid.shape[0] // 2
    planes = hips.localiser_planes(made.volume, LOCALISER).planes[middle : middle + 1]
    crop = hips.frame(made.volume.grid, made.hips[0], SEGMENTER, MARGIN_MM)
    stack = hips.crops(made.volume, crop)
    return {
        "localiser": _rounded(planes),
        "segmenter": _rounded(stack[len(stack) // 2 : len(stack) // 2 + 1]),
    }


def _rounded(pictures: FloatArray) -> FloatArray:
    result: FloatArray = (np.rint(pictures * _GRAIN) / _GRAIN).astype(np.float32)
    return result


def describe(folder: Path, about: About, recipes: Mapping[str, object]) -> dict[str, object]:
    """Contents of ``bundle.json`` for the files in ``folder``."""
    names = sorted([*FILES.values(), "reference.npz"])
    return {
        "format": FORMAT,
        "id": about.id,
        "version": about.version,
        "name": about.name,
        "trained_on": about.trained_on,
        "normalisation": "log1p(x / reference), clipped at 20 x reference; see hipscore.hips",
        "localiser": _picture(LOCALISER)
        | {
            "outputs": ["right head", "left head"],
            "threshold": about.localiser_threshold,
            "min_confidence": about.min_confidence,
        },
        "segmenter": _picture(SEGMENTER)
        | {
            "outputs": ["femoral head", "bone marrow edema", "synovitis"],
            "thresholds": list(about.thresholds),
            "margin_mm": MARGIN_MM,
        },
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        "reference": {"tolerance": about.tolerance},
        "training": {
            "training_series": list(about.training_series),
            "held_out_series": list(about.held_out_series),
            "data": dict(about.data),
            "networks": dict(recipes),
        },
    }


def _picture(spec: PlaneSpec) -> dict[str, object]:
    return asdict(spec)
